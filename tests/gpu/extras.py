# SPDX-License-Identifier: Apache-2.0
"""Section `extras`: what compiling costs, how the model's first pick stands
among its best candidates, and a launch inside a CUDA graph."""
import json
import os
import subprocess
import time

import memory as mem
import timing


def compile_times(job):
    for cell in timing.cells(**{**job.grid, "lengths": job.short_long}):
        context = job.library.context(target=job.target, cache_dir="")
        plan = timing.prepare(context, cell, "f16")
        job.tell(what="compile", head_dim=cell["head_dim"],
                 mask=cell["mask"], seqlen=cell["seqlen"],
                 compiler=plan.info["compiler"],
                 **{k: plan.info[k] for k in ("prepare_ms", "compile_ms",
                                              "emit_ms", "load_ms")})
        plan.release()
        context.close()


def candidates(job, cell):
    """The model's best tiles, first pick first: (text to pin, time it says)"""
    text = subprocess.run(
        [os.environ["ATTNC"], "explain", "--json", "--target", job.target,
         "--dtype", "f16", "--head-dim", str(cell["head_dim"]), "--mask",
         cell["mask"], "--batch", str(cell["batch"]), "--heads",
         str(cell["heads"]), "--seqlen", str(cell["seqlen"])], text=True,
        capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout
    for c in json.loads(text)["steps"][0]["candidates"][:job.best]:
        tile = {k: v for k, v in c["tile"].items()
                if k not in ("family", "from", "split_k")}
        yield ",".join(f"{k}={v}" for k, v in tile.items()), \
            c["model"]["time_ms"]


def time_candidates(job, cell):
    memory, numbers = job.memory, timing.Numbers(job.memory, cell)
    context = job.library.context(target=job.target, cache_dir="")
    first = best = None
    for tile, predicted in candidates(job, cell):
        if time.monotonic() > job.deadline:
            break
        plan = timing.prepare(context, cell, "f16", tile)
        a, work = timing.args_of(plan, cell, numbers.address, memory)
        out = mem.measure(memory, lambda: plan.launch(a, memory.stream),
                          job.cell_ms / 2)
        plan.release()
        del work
        first, best = first or out["ms"], min(best or out["ms"], out["ms"])
        job.tell(what="candidate", tile=tile, predicted_ms=predicted, **cell,
                 **out)
    if first:
        job.tell(what="first pick of the best", share=best / first, **cell)
    context.close()


def graph(job):
    """Captured once, replayed; the same bits as a plain launch."""
    t = job.memory.torch
    if not t:
        job.tell(what="graph", why="needs PyTorch")
        return
    cell = {"head_dim": 128, "mask": "causal", "seqlen": 1024, "batch": 1,
            "heads": 8}
    numbers = timing.Numbers(job.memory, cell)
    context = job.library.context(target=job.target, cache_dir="")
    plan = timing.prepare(context, cell, "f16")
    a, work = timing.args_of(plan, cell, numbers.address, job.memory)
    plan.launch(a, job.memory.stream)
    job.memory.wait()
    want = numbers.t[3].clone()
    numbers.t[3].fill_(float("nan"))
    g = t.cuda.CUDAGraph()
    with t.cuda.graph(g):
        plan.launch(a, t.cuda.current_stream().cuda_stream)
    times = mem.measure(job.memory, g.replay, job.cell_ms)
    job.tell(what="graph", ok=bool(t.equal(want, numbers.t[3])), **times)
    del work
    context.close()


def guarded(job, part, *more):
    """A part that fails costs itself only."""
    try:
        part(job, *more)
    except Exception as e:
        job.tell(what=part.__name__.replace("_", " "), ok=False,
                 why=f"{type(e).__name__}: {e}".split("\n")[0][:200])


def run(job):
    guarded(job, graph)
    guarded(job, compile_times)
    grid = {**job.grid, "lengths": (job.candidate_length,)}
    for cell in timing.cells(**grid):
        if time.monotonic() < job.deadline:
            guarded(job, time_candidates, cell)
