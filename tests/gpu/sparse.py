# SPDX-License-Identifier: Apache-2.0
"""Section `sparse`: Block-Sparse FlashAttention's butterfly as the paper's
tables use it, and masks as programs next to the built-in ones, f16, head_dim
64; FlexAttention runs the same masks."""
import contextlib
import time

import memory as mem
import timing

MASK, PATTERN = 0, 3 # enum attnc_program_kind


def butterfly(n):
    """(m + 1) x 64 keys of a query, min(n / 8, 256) of them."""
    keys = max(min(n // 8, 256), 128)
    return f"butterfly:m={keys // 64 - 1} block=64"


def rows(n):
    """name, mask, fields of the spec that are programs"""
    yield "dense", "none", {}
    yield "butterfly", "none", {"sparsity": (butterfly(n), PATTERN)}
    yield "longformer", "none", {"sparsity": ("longformer:window=7 block=64",
                                              PATTERN)}
    yield "causal, built in", "causal", {}
    yield "causal, a program", "program", {"mask_program": ("k <= q", MASK)}


def flex_mask(name, n):
    """The same for FlexAttention; None: it has no such row here."""
    nb, m = n // 64, int(butterfly(n).split("=")[1].split()[0])

    def butterfly_mod(b, h, q, k):
        x = (q // 64) ^ (k // 64)
        seen = x == 0
        for i in range(m):
            seen = seen | (x == 1 << i)
        return seen

    def longformer_mod(b, h, q, k):
        a, e = q // 64, k // 64
        return ((a - e).abs() <= 3) | (a == 0) | (e == 0)

    return {"butterfly": butterfly_mod if nb & (nb - 1) == 0 else None,
            "longformer": longformer_mod,
            "causal, a program": lambda b, h, q, k: q >= k}.get(name)


def time_flex(job, cell, name):
    from torch.nn.attention import flex_attention as fa
    numbers = timing.Numbers(job.memory, cell)
    t, n = job.memory.torch, cell["seqlen"]
    t._dynamo.reset()
    block = fa.create_block_mask(flex_mask(name, n), None, None, n, n,
                                 device="cuda")
    fast = t.compile(fa.flex_attention, dynamic=False)
    with t.no_grad():
        return mem.measure(job.memory, lambda: fast(*numbers.t[:3],
                                                    block_mask=block),
                           job.cell_ms)


def time_attnc(job, context, cell, programs):
    memory, numbers = job.memory, timing.Numbers(job.memory, cell)
    made = {field: job.library.program(*text)
            for field, text in programs.items()}
    plan = timing.prepare(context, cell, "f16", None, made)
    a, work = timing.args_of(plan, cell, numbers.address, memory)
    out = mem.measure(memory, lambda: plan.launch(a, memory.stream),
                      job.cell_ms)
    out["compile_ms"] = plan.info["compile_ms"]
    plan.release()
    del work
    return out


def one(job, context, cell, name, programs):
    line = {"who": "attnc" if context else "flex", "what": name, **cell}
    try:
        line.update(time_attnc(job, context, cell, programs) if context
                    else time_flex(job, cell, name))
    except Exception as e: # a rival that refuses costs its own line only
        line["why"] = f"{type(e).__name__}: {e}".split("\n")[0][:200]
    job.tell(**line)
    return line.get("ms")


def cells(job):
    for cell in timing.cells(**{**job.grid, "dims": (64,)}):
        if cell["mask"] == "none" and cell["seqlen"] >= job.sparse_least:
            yield cell


def run(job):
    context = job.library.context(target=job.target, cache_dir="")
    todo = [(context, c) for c in cells(job)]
    if job.memory.torch:
        todo += [(None, c) for c in cells(job)]
    for i, (who, cell) in enumerate(todo):
        if i < job.start:
            continue
        if time.monotonic() > job.deadline:
            job.tell(left_out=len(todo) - i, why="the section's time is up")
            break
        ms = {}
        for name, mask, programs in rows(cell["seqlen"]):
            if who or flex_mask(name, cell["seqlen"]):
                ms[name] = one(job, who, {**cell, "mask": mask}, name,
                               programs)
        with contextlib.suppress(KeyError, TypeError):
            job.tell(what="butterfly over dense", share=ms["butterfly"] /
                     ms["dense"], **cell)
    context.close()
