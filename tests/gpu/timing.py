# SPDX-License-Identifier: Apache-2.0
"""Section `timing`: attnc next to PyTorch's back ends over the grid of head
dims, masks and lengths, 16384 tokens of 2048 elements each. What matters most
comes first: all cells of attnc and flash, then the others' by turns."""
import contextlib
import time

import numpy as np

import memory as mem

TOKENS, WIDTH = 16384, 2048
LENGTHS = (2048, 4096, 8192, 16384, 1024, 512)
MATH_MOST = 4096 # S and P of longer ones fill the memory


def flops(cell):
    d, causal, n = cell["head_dim"], cell["mask"] == "causal", cell["seqlen"]
    pairs = n * (n + 1) / 2 if causal else n * n
    return 4 * d * pairs * cell["batch"] * cell["heads"]


def cells(tokens=TOKENS, width=WIDTH, lengths=LENGTHS, dims=(64, 128)):
    for n in lengths:
        for d in dims:
            for mask in ("none", "causal"):
                yield {"head_dim": d, "mask": mask, "seqlen": n,
                       "batch": max(tokens // n, 1),
                       "heads": max(width // d, 1)}


# ---- attnc ------------------------------------------------------------------

def prepare(context, cell, dtype, tile=None, programs=None):
    n, h = cell["seqlen"], cell["heads"]
    return context.prepare(
        {"dtype": dtype, "head_dim": cell["head_dim"], "mask": cell["mask"],
         **(programs or {})},
        {"batch": cell["batch"], "heads": h, "kv_heads": h, "seqlen_q": n,
         "seqlen_k": n, "mult_q": 128 if n % 128 == 0 else 1,
         "mult_k": 128 if n % 128 == 0 else 1, "align_q": 16, "align_k": 16,
         "align_v": 16, "align_o": 16}, tile)


def args_of(plan, cell, address, memory):
    """Arguments for packed tensors [B, H, N, d] at four addresses; what must
    stay alive as long as they do."""
    import abi
    n, h, d = cell["seqlen"], cell["heads"], cell["head_dim"]
    a = abi.make_args(batch=cell["batch"], heads=h, kv_heads=h, seqlen_q=n,
                      seqlen_k=n)
    for name, at in zip("qkvo", address):
        setattr(a, name, abi.Tensor(at, h * n * d, n * d, d))
    a.workspace_bytes = plan.workspace(a)
    work = memory.empty(a.workspace_bytes + 64)
    a.workspace = (memory.address(work) + 63) // 64 * 64
    return a, work


class Numbers:
    """Q, K, V, O of one cell, f16."""

    def __init__(self, memory, cell):
        self.memory = memory
        shape = (cell["batch"], cell["heads"], cell["seqlen"],
                 cell["head_dim"])
        if memory.torch:
            t = memory.torch
            self.t = [t.randn(shape, dtype=t.float16, device="cuda")
                      for _ in range(3)] + [t.full(shape, float("nan"),
                                                   dtype=t.float16,
                                                   device="cuda")]
            self.address = [x.data_ptr() for x in self.t]
        else:
            rng = np.random.default_rng(1)
            self.t = [rng.standard_normal(shape, np.float32)
                      .astype(np.float16) for _ in range(4)]
            self.address = [x.ctypes.data for x in self.t]

    def distance(self, other):
        """Of O to another's, in 2-norm, relative."""
        o = self.t[3].float()
        return float((o - other.float()).norm() / other.float().norm())


# ---- the others -------------------------------------------------------------

def sdpa(name):
    def make(t, x, causal):
        from torch.nn import attention
        kind = getattr(attention.SDPBackend, name)

        def call():
            with attention.sdpa_kernel(kind):
                return t.nn.functional.scaled_dot_product_attention(
                    *x[:3], is_causal=causal)
        return call
    return make


def flex(t, x, causal):
    from torch.nn.attention import flex_attention as fa
    n = x[0].shape[2]
    t._dynamo.reset() # else the ninth shape runs uncompiled
    block = fa.create_block_mask(lambda b, h, i, j: i >= j, None, None, n, n,
                                 device="cuda") if causal else None
    fast = t.compile(fa.flex_attention, dynamic=False)
    return lambda: fast(*x[:3], block_mask=block)


RIVALS = {"flash": sdpa("FLASH_ATTENTION"), "cudnn": sdpa("CUDNN_ATTENTION"),
          "efficient": sdpa("EFFICIENT_ATTENTION"), "math": sdpa("MATH"),
          "flex": flex}


def time_rival(job, cell, name):
    memory, numbers = job.memory, Numbers(job.memory, cell)
    t = memory.torch
    call = RIVALS[name](t, numbers.t, cell["mask"] == "causal")
    with t.no_grad():
        return mem.measure(memory, call, job.cell_ms)


def time_attnc(job, context, cell):
    memory, numbers = job.memory, Numbers(job.memory, cell)
    plan = prepare(context, cell, "f16")
    a, work = args_of(plan, cell, numbers.address, memory)
    out = mem.measure(memory, lambda: plan.launch(a, memory.stream),
                      job.cell_ms)
    out["compile_ms"] = plan.info["compile_ms"]
    out["tile"] = next((line for line in plan.info["text"].splitlines()
                        if "block_q" in line), "")
    if memory.torch:
        with memory.torch.no_grad(), contextlib.suppress(RuntimeError):
            other = RIVALS["flash"](memory.torch, numbers.t,
                                    cell["mask"] == "causal")()
            out["distance_to_flash"] = numbers.distance(other)
    plan.release()
    del work
    return out


# ---- the section ------------------------------------------------------------

def one(job, context, cell, who):
    line = {"who": who, "dtype": "f16", **cell}
    try:
        line.update(time_attnc(job, context, cell) if who == "attnc"
                    else time_rival(job, cell, who))
        line["tflops"] = flops(cell) / line["ms"] * 1e-9
    except Exception as e: # a rival that refuses costs its own line only
        line["why"] = f"{type(e).__name__}: {e}".split("\n")[0][:200]
    job.tell(**line)


def turns(job):
    """(who, cell) in the order of what is to be known first."""
    grid = list(cells(**job.grid))
    if not job.memory.torch:
        return [("attnc", c) for c in grid]
    todo = [(who, c) for c in grid for who in ("attnc", "flash")]
    todo += [("cudnn", c) for c in grid]
    todo += [("efficient", c) for c in grid]
    todo += [("flex", c) for c in grid] # each compiles for many seconds
    return todo + [("math", c) for c in grid if c["seqlen"] <= MATH_MOST]


def run(job):
    context = job.library.context(target=job.target, cache_dir="")
    todo = turns(job)
    job.tell(l2_flushed=False, clocks=job.memory.clocks(), cells=len(todo))
    for i, (who, cell) in enumerate(todo):
        if i < job.start:
            continue
        if time.monotonic() > job.deadline:
            job.tell(left_out=len(todo) - i, why="the section's time is up")
            break
        one(job, context, cell, who)
        if i % 8 == 7:
            job.tell(clocks=job.memory.clocks())
    context.close()
