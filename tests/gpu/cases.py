# SPDX-License-Identifier: Apache-2.0
"""Correctness cases: a spec with sizes, lengths and layouts; tensors amid NaN,
outputs amid poison; the result against f64."""
import random

import numpy as np

import abi
from _cli import attention, mask, rel_err, round_to

# ||x - ref|| / ||ref|| : 4 eps of the type, or what unfused attention needs.
LIMIT = {"f32": 4e-6, "tf32": 2e-3, "f16": 2e-3, "bf16": 1.6e-2}
MASKS = ("none", "causal", "window", "prefix")
AXES = {
    "dtype": ("f16", "bf16", "f32", "tf32"),
    "head_dim": (64, 128, 16, 32, 40, 72, 80, 96, 160, 256, 1, 8, 57, 200),
    "head_dim_v": (0, 0, 0, 64, 32, 128, 24),
    "mask": MASKS,
    "heads": ((4, 4), (8, 2), (6, 1), (3, 3)),
    "lengths": ((257, 257), (64, 64), (1, 500), (5, 1200), (300, 77),
                (128, 1000), (33, 33), (1, 1), (200, 0), (1, 5000)),
    "lens": ("none", "none", "lens_k", "varlen"),
    "offset": (0, 2, 1),
    "score": ("", "", "softcap", "alibi", "sink", "softcap alibi sink"),
    "layout": ("bhnd", "bnhd", "padded", "odd"),
    "lse": (True, True, False),
}


def first_cases():
    """What matters most comes first: each type, mask and common size."""
    for dtype in AXES["dtype"]:
        for kind in MASKS:
            for dim in (64, 128):
                yield {"dtype": dtype, "head_dim": dim, "mask": kind}


def all_cases(seed, chosen=None):
    """Endless: first the fixed ones, then draws from all axes."""
    rng = random.Random(seed)
    usual = {name: values[0] for name, values in AXES.items()}
    for i, case in enumerate(first_cases()):
        yield {**usual, **case, "seed": i, **(chosen or {})}
    i = 1000
    while True:
        i += 1
        yield {**{n: rng.choice(v) for n, v in AXES.items()}, "seed": i,
               **(chosen or {})}


def name_of(c):
    nq, nk = c["lengths"]
    words = [c["dtype"], f"d{c['head_dim']}"]
    words += [f"dv{c['head_dim_v']}"] if c["head_dim_v"] else []
    words += [c["mask"], f"{nq}x{nk}", "h{}/{}".format(*c["heads"])]
    words += [c["layout"]]
    words += [c["lens"]] if c["lens"] != "none" else []
    words += [c["score"].replace(" ", "+")] if c["score"] else []
    words += ["" if c["lse"] else "nolse"]
    return " ".join(words).strip()


def bits_of(x, dtype):
    """Elements as the type holds them."""
    if dtype == "f16":
        return x.astype(np.float16)
    f = x.astype(np.float32)
    return (f.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bf16" \
        else f


def values_of(bits, dtype):
    if dtype == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(float)
    return bits.astype(float)


class Laid:
    """A tensor [B, H, N, d] laid into a poisoned buffer, or [total, H, d]."""

    def __init__(self, shape, layout, elem, packed):
        b, h, n, d = shape
        self.pad = 0 if layout in ("bhnd", "bnhd") else \
            16 // elem if layout == "padded" else 1
        self.head = 64 // elem + (1 if layout == "odd" else 0)
        row = d + self.pad
        self.strides = (h * n * row, row, h * row) \
            if layout == "bnhd" or packed else (h * n * row, n * row, row)
        self.shape = shape
        self.count = self.head + b * h * n * row + 64 // elem
        sb, sh, sn = self.strides
        at = self.head + sb * np.arange(b)[:, None, None, None] \
            + sh * np.arange(h)[None, :, None, None] \
            + sn * np.arange(n)[None, None, :, None] + np.arange(d)
        self.at = at.reshape(-1)

    def buffer(self, fill, kind, x=None):
        flat = np.full(self.count, fill, kind)
        if x is not None:
            flat[self.at] = x.reshape(-1)
        return flat

    def cut(self, flat):
        return flat[self.at].reshape(self.shape)

    def outside(self, flat):
        keep = np.ones(self.count, bool)
        keep[self.at] = False
        return flat[keep]

    def tensor(self, address, elem):
        return abi.Tensor(address + self.head * elem, *self.strides)


POISON = {"f16": 0x7e5a, "bf16": 0x7fda, "f32": 0x7fc0005a}


class Problem:
    """One case with its numbers and the f64 result."""

    def __init__(self, case):
        c = self.case = dict(case)
        self.dtype = "f32" if c["dtype"] == "tf32" else c["dtype"]
        self.elem = 4 if self.dtype == "f32" else 2
        self.d, self.dv = c["head_dim"], c["head_dim_v"] or c["head_dim"]
        self.h, self.hk = c["heads"]
        self.rng = np.random.default_rng(c["seed"])
        self.packed = c["lens"] == "varlen"
        self.set_lengths(*c["lengths"])
        self.set_numbers()
        self.make_tensors()

    def set_lengths(self, nq, nk):
        pick = self.rng.integers
        self.nq, self.nk, self.batch = nq, nk, int(pick(1, 4))
        self.qlen, self.klen = [nq] * self.batch, [nk] * self.batch
        if self.packed:
            self.qlen = [int(x) for x in pick(0, nq + 1, self.batch)]
            self.klen = [int(x) for x in pick(0, nk + 1, self.batch)]
        elif self.case["lens"] == "lens_k":
            self.klen = [int(x) for x in pick(0, nk + 1, self.batch)]

    def set_numbers(self):
        pick, score = self.rng.integers, self.case["score"]
        self.left, self.right = int(pick(0, 80)), int(pick(0, 40))
        self.prefix, self.mode = int(pick(0, 90)), self.case["offset"]
        if self.mode == 2 and self.case["lens"] != "lens_k":
            self.mode = 1
        self.softcap = 8.0 if "softcap" in score else 0.0
        self.slopes = np.abs(self.rng.standard_normal(self.h)) / 8 \
            if "alibi" in score else None
        self.sink = self.rng.standard_normal(self.h) * 2 \
            if "sink" in score else None
        if self.slopes is not None:
            self.slopes = self.slopes.astype(np.float32)
        if self.sink is not None:
            self.sink = self.sink.astype(np.float32)

    def make_tensors(self):
        b, nq, nk = self.batch, self.nq, self.nk
        if self.packed:
            b, nq, nk = 1, sum(self.qlen), sum(self.klen)
        shapes = {"q": (b, self.h, nq, self.d), "k": (b, self.hk, nk, self.d),
                  "v": (b, self.hk, nk, self.dv), "o": (b, self.h, nq, self.dv)}
        self.laid = {n: Laid(s, self.case["layout"], self.elem, self.packed)
                     for n, s in shapes.items()}
        self.x = {n: round_to(self.rng.standard_normal(shapes[n]), self.dtype)
                  for n in "qkv"}
        if not self.packed: # what lies behind a key length is never read
            for i, length in enumerate(self.klen):
                self.x["k"][i, :, length:] = self.x["v"][i, :, length:] = np.nan

    def spec(self):
        c = self.case
        return {"dtype": self.dtype, "head_dim": self.d, "mask": c["mask"],
                "head_dim_v": c["head_dim_v"],
                "f32_math": "tf32" if c["dtype"] == "tf32" else "ieee",
                "lens_k": int(c["lens"] == "lens_k"),
                "varlen": int(self.packed), "softcap": int(self.softcap > 0),
                "alibi": int(self.slopes is not None),
                "sink": int(self.sink is not None)}

    def shape(self):
        return {"batch": self.batch, "heads": self.h, "kv_heads": self.hk,
                "seqlen_q": max(self.nq, 1), "seqlen_k": max(self.nk, 1)}

    # ---- f64 ----

    def visible(self, b):
        nq, nk = self.qlen[b], self.klen[b]
        off = (0, (nk if self.packed else self.nk) - (
            nq if self.packed else self.nq), nk - nq)[self.mode]
        numbers = {"window": (self.left, self.right),
                   "prefix": (self.prefix,)}.get(self.case["mask"], ())
        return mask(nq, nk, self.case["mask"], *numbers, off=off), off

    def entry(self, name, b):
        """[1, H, n, d] of one batch entry or sequence."""
        x, length = self.x[name], self.qlen if name == "q" else self.klen
        if not self.packed:
            return x[b:b + 1, :, :length[b]]
        start = sum(length[:b])
        return x[:, :, start:start + length[b]]

    def score(self, off):
        def change(s):
            if self.softcap:
                s = self.softcap * np.tanh(s / self.softcap)
            if self.slopes is not None:
                far = np.abs(np.arange(s.shape[2])[:, None] + off
                             - np.arange(s.shape[3])[None])
                s = s - self.slopes.astype(float)[None, :, None, None] * far
            return s
        return change

    def reference(self):
        """[(O, LSE)] of each entry or sequence."""
        out = []
        scale = float(np.float32(1 / np.sqrt(self.d)))
        sink = None if self.sink is None else self.sink.astype(float)
        for b in range(self.batch):
            seen, off = self.visible(b)
            out.append(attention(self.entry("q", b), self.entry("k", b),
                                 self.entry("v", b), seen, scale,
                                 self.score(off), sink))
        return out

    # ---- in the device's memory ----

    def buffers(self):
        """Named host buffers; what no kernel may read holds NaN."""
        out = {}
        nan = np.array(np.nan) if self.dtype != "bf16" else np.uint16(0x7fc1)
        for n in "qkv":
            bits = bits_of(self.x[n], self.dtype)
            out[n] = self.laid[n].buffer(nan, bits.dtype, bits)
        kind = np.uint32 if self.elem == 4 else np.uint16
        out["o"] = self.laid["o"].buffer(POISON[self.dtype], kind)
        if self.case["lse"]:
            rows = self.laid["o"].shape
            out["lse"] = np.full(rows[0] * rows[1] * rows[2] + 16,
                                 POISON["f32"], np.uint32)
        if self.packed:
            out["cu_seqlens_q"] = np.cumsum([0] + self.qlen).astype(np.int32)
            out["cu_seqlens_k"] = np.cumsum([0] + self.klen).astype(np.int32)
        if self.case["lens"] == "lens_k":
            out["lens_k"] = np.array(self.klen, np.int32)
        if self.slopes is not None:
            out["slopes"] = self.slopes
        if self.sink is not None:
            out["sink"] = self.sink
        return out

    def args(self, address):
        """address: {buffer name: where it lies}"""
        rows = self.laid["o"].shape
        a = abi.make_args(
            batch=self.batch, heads=self.h, kv_heads=self.hk, seqlen_q=self.nq,
            seqlen_k=self.nk, mask_offset_mode=self.mode, softcap=self.softcap)
        if self.case["mask"] == "window":
            a.mask_left, a.mask_right = self.left, self.right
        if self.case["mask"] == "prefix":
            a.mask_prefix = self.prefix
        for n in "qkvo":
            setattr(a, n, self.laid[n].tensor(address[n], self.elem))
        for n in ("lens_k", "cu_seqlens_q", "cu_seqlens_k", "slopes", "sink"):
            if n in address:
                setattr(a, n, address[n])
        if "lse" in address:
            a.lse = address["lse"]
            a.lse_stride_b, a.lse_stride_h = rows[1] * rows[2], rows[2]
        return a

    # ---- the verdict ----

    def part(self, x, b):
        if not self.packed:
            return x[b:b + 1]
        start = sum(self.qlen[:b])
        return x[:, :, start:start + self.qlen[b]]

    def judge(self, o_flat, lse_flat):
        """{"o": error, "lse": error, "why": text or None}"""
        laid, why = self.laid["o"], None
        if np.any(laid.outside(o_flat) != POISON[self.dtype]):
            why = "wrote outside of O"
        o = laid.cut(o_flat)
        if self.dtype != "bf16":
            o = o.view(np.float32 if self.elem == 4 else np.float16)
        o = values_of(o, self.dtype)
        ref = self.reference()
        want = [r[0] for r in ref]
        got = [self.part(o, b) for b in range(self.batch)]
        err = rel_err(np.concatenate([x.ravel() for x in got] + [[0]]),
                      np.concatenate([x.ravel() for x in want] + [[0]]))
        worst = 0.0
        if lse_flat is not None:
            n = lse_flat.size - 16
            if np.any(lse_flat[n:] != POISON["f32"]):
                why = "wrote behind LSE"
            lse = lse_flat[:n].view(np.float32).reshape(laid.shape[:3])
            worst = max([self.lse_error(self.part(lse, b), ref[b][1])
                         for b in range(self.batch)] + [0.0])
        limit = LIMIT[self.case["dtype"]]
        if why is None and not err <= limit:
            why = f"O differs by {err:.3g}, accepted {limit:.1g}"
        if why is None and not worst <= limit:
            why = f"LSE differs by {worst:.3g}, accepted {limit:.1g}"
        return {"o": float(err), "lse": float(worst), "why": why}

    @staticmethod
    def lse_error(got, want):
        if not np.array_equal(np.isfinite(got), np.isfinite(want)):
            return np.inf
        fine = np.isfinite(want)
        return float(np.max(np.abs(got[fine] - want[fine])
                            / np.maximum(1, np.abs(want[fine])), initial=0))
