# SPDX-License-Identifier: Apache-2.0
"""Section `training`: forward and backward as the paper counts them, 3.5 times
the forward's flops, next to PyTorch's back ends; what each way to sum dQ, order
and dropout cost; memory in the cells of the paper's Table 21."""
import time

import abi
import memory as mem
import timing

TIMES = 3.5 # of the forward's flops
INPUTS, OUTPUTS = ("q", "k", "v", "dout"), ("o", "dq", "dk", "dv")
# {tokens: MiB} of the paper's row "FlashAttention": batch 16, 8 heads of 64
TABLE_21 = {128: 22, 256: 44, 512: 104, 1024: 209, 2048: 418, 4096: 836,
            8192: 1672, 16384: 3344, 32768: 6688, 65536: 13376}
WAYS = {"apart": ("dq=0", 1), "in order": ("dq=2", 1),
        "in any order": ("dq=3", 0),
        # and with own rows read in each step, not held in registers
        "apart, rows read": ("dq=0,kv_regs=0,q_do_regs=0", 1),
        "in order, rows read": ("dq=2,kv_regs=0", 1)}


class Numbers:
    """All tensors of one cell, f16, and the sum of each row."""

    def __init__(self, memory, cell):
        self.memory = memory
        shape = (cell["batch"], cell["heads"], cell["seqlen"],
                 cell["head_dim"])
        self.bytes = 0
        if memory.torch:
            t = memory.torch
            self.t = {n: t.randn(shape, dtype=t.float16, device="cuda")
                      for n in INPUTS + OUTPUTS}
            self.at = {n: x.data_ptr() for n, x in self.t.items()}
        else:
            x = timing.Numbers(memory, cell)
            self.t = {n: x.t[i % 3].copy()
                      for i, n in enumerate(INPUTS + OUTPUTS)}
            self.at = {n: x.ctypes.data for n, x in self.t.items()}
        elements = shape[0] * shape[1] * shape[2]
        self.lse = memory.empty(4 * elements)
        self.bytes = elements * (2 * shape[3] * len(self.t) + 4)


class Both:
    """Plans of forward and backward, and a workspace for either."""

    def __init__(self, job, context, cell, tile=None, **spec):
        n, h, d = cell["seqlen"], cell["heads"], cell["head_dim"]
        shape = {"batch": cell["batch"], "heads": h, "kv_heads": h,
                 "seqlen_q": n, "seqlen_k": n, "align_q": 16, "align_k": 16,
                 "align_v": 16, "align_o": 16}
        shape.update(dict.fromkeys(("mult_q", "mult_k"),
                                   128 if n % 128 == 0 else 1))
        self.memory = job.memory
        self.plans = [context.prepare(
            {"dtype": "f16", "head_dim": d, "mask": cell["mask"],
             "pass": way, **spec}, shape, tile if way == "bwd" else None)
            for way in ("fwd", "bwd")]
        self.args = abi.make_args(batch=cell["batch"], heads=h, kv_heads=h,
                                  seqlen_q=n, seqlen_k=n, lse_stride_b=h * n,
                                  lse_stride_h=n)
        if spec.get("dropout"):
            self.args.dropout_p = 0.1
        self.strides = (h * n * d, n * d, d)
        self.workspace = max(p.workspace(self.args) for p in self.plans)

    def take(self, numbers):
        """Where everything lies; allocates the workspace."""
        a = self.args
        for name, at in numbers.at.items():
            setattr(a, name, abi.Tensor(at, *self.strides))
        a.lse = self.memory.address(numbers.lse)
        self.work = self.memory.empty(self.workspace + 64)
        a.workspace = (self.memory.address(self.work) + 63) // 64 * 64
        a.workspace_bytes = self.workspace

    def launch(self, passes=(0, 1)):
        for i in passes:
            self.plans[i].launch(self.args, self.memory.stream)

    def release(self):
        for p in self.plans:
            p.release()


def time_attnc(job, context, cell, tile=None, **spec):
    numbers = Numbers(job.memory, cell)
    both = Both(job, context, cell, tile, **spec)
    both.take(numbers)
    out = mem.measure(job.memory, both.launch, job.cell_ms)
    back = mem.measure(job.memory, lambda: both.launch((1,)), job.cell_ms / 2)
    out["backward_ms"] = back["ms"]
    out["workspace"] = both.workspace
    out["tile"] = next((line for line in
                        both.plans[1].info["text"].splitlines()
                        if "block_k" in line), "")
    both.release()
    return out


def time_rival(job, cell, name):
    t, numbers = job.memory.torch, Numbers(job.memory, cell)
    inputs = [numbers.t[n].requires_grad_() for n in ("q", "k", "v")]
    forward = timing.RIVALS[name](t, inputs, cell["mask"] == "causal")
    return mem.measure(job.memory, lambda: t.autograd.grad(
        forward(), inputs, numbers.t["dout"]), job.cell_ms)


def guarded(job, line, fn, *args, **spec):
    """One line; what fails costs itself only."""
    try:
        line.update(fn(job, *args, **spec))
        if "ms" in line:
            line["tflops"] = TIMES * timing.flops(line) / line["ms"] * 1e-9
    except Exception as e:
        line["why"] = f"{type(e).__name__}: {e}".split("\n")[0][:200]
    job.tell(**line)
    return line.get("ms")


# ---- what it is made of -----------------------------------------------------

def ways(job, context, cell):
    """The ways to sum dQ, and what bits that never change cost."""
    ms = {way: guarded(job, {"what": "dq " + way, **cell}, time_attnc, context,
                       cell, tile, deterministic=fixed)
          for way, (tile, fixed) in WAYS.items()}
    fixed = [x for x in (ms["apart"], ms["in order"]) if x]
    if fixed and ms["in any order"]:
        job.tell(what="cost of determinism", **cell,
                 share=min(fixed) / min(*fixed, ms["in any order"]) - 1)


def dropout(job, context, cell):
    plain = guarded(job, {"what": "no dropout", **cell}, time_attnc, context,
                    cell)
    drop = guarded(job, {"what": "dropout", **cell}, time_attnc, context, cell,
                   dropout=1)
    if plain and drop:
        job.tell(what="cost of dropout", share=drop / plain - 1, **cell)


def table_21(job, context, tokens):
    """Forward and backward: counted exactly, and PyTorch's measured peak."""
    cell = {"head_dim": 64, "mask": "none", "seqlen": tokens, "batch": 16,
            "heads": 8}
    both = Both(job, context, cell)
    line = {"what": "memory", **cell, "paper_mib": TABLE_21.get(tokens)}
    t = job.memory.torch
    if t:
        t.cuda.empty_cache()
        t.cuda.reset_peak_memory_stats()
        before = t.cuda.memory_allocated()
    numbers = Numbers(job.memory, cell)
    both.take(numbers)
    both.launch()
    job.memory.wait()
    line["counted_mib"] = (numbers.bytes + both.workspace) / 2**20
    line["workspace"] = both.workspace
    if t:
        peak = t.cuda.max_memory_allocated() - before
        line["measured_mib"] = peak / 2**20
    both.release()
    if line["paper_mib"]:
        line["ok"] = max(line["counted_mib"],
                         line.get("measured_mib", 0)) <= line["paper_mib"]
    return line


# ---- the section ------------------------------------------------------------

def rivals(job, grid):
    """(who, cell) in the order of what is to be known first."""
    if not job.memory.torch:
        return [("attnc", c) for c in grid]
    todo = [(who, c) for c in grid for who in ("attnc", "flash")]
    todo += [(who, c) for who in ("cudnn", "efficient") for c in grid]
    return todo + [("math", c) for c in grid
                   if c["seqlen"] <= timing.MATH_MOST]


def steps(job, context):
    """Calls, what matters most first."""
    grid = list(timing.cells(**job.grid))[:job.training_most]
    todo = rivals(job, grid)

    def timed(who, cell):
        line = {"who": who, "dtype": "f16", **cell}
        if who == "attnc":
            guarded(job, line, time_attnc, context, cell)
        else:
            guarded(job, line, time_rival, cell, who)

    def told(tokens):
        job.tell(**table_21(job, context, tokens))
    first = 2 * len(grid) if job.memory.torch else len(grid)
    yield from (lambda p=p: timed(*p) for p in todo[:first])
    some = grid[:job.ways_most]
    yield from (lambda c=c: ways(job, context, c) for c in some)
    yield from (lambda c=c: dropout(job, context, c) for c in some)
    yield from (lambda n=n: told(n) for n in job.memory_tokens)
    yield from (lambda p=p: timed(*p) for p in todo[first:])


def run(job):
    context = job.library.context(target=job.target, cache_dir="")
    job.tell(clocks=job.memory.clocks(), counted=f"{TIMES} x forward")
    for i, step in enumerate(steps(job, context)):
        if time.monotonic() > job.deadline:
            job.tell(left_out_from=i, why="the section's time is up")
            break
        try:
            step()
        except Exception as e:
            job.tell(ok=False, why=f"{type(e).__name__}: {e}".split("\n")[0])
    job.tell(clocks=job.memory.clocks())
    context.close()
