# SPDX-License-Identifier: Apache-2.0
"""Correctness cases: a spec with sizes, lengths and layouts; tensors amid NaN,
outputs amid poison; the result against f64."""
import random

import numpy as np

import abi
import grads
from _cli import attention, mask, rel_err, round_to
from _dropout import grow, kept

# ||x - ref|| / ||ref|| : 4 eps of the type, or what unfused attention needs.
LIMIT = {"f32": 4e-6, "tf32": 2e-3, "f16": 2e-3, "bf16": 1.6e-2}
MASKS = ("none", "causal", "window", "prefix")
AXES = {
    "pass": ("fwd", "fwd", "bwd"),
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
    "dropout": (0, 0, 0.2),
    "layout": ("bhnd", "bnhd", "padded", "odd"),
    "lse": (True, True, False),
}


def first_cases():
    """What matters most comes first: each type, mask and common size."""
    for way in ("fwd", "bwd"):
        for dtype in AXES["dtype"]:
            for kind in MASKS:
                for dim in (64, 128):
                    yield {"dtype": dtype, "head_dim": dim, "mask": kind,
                           "pass": way}


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
    words = [c["pass"], c["dtype"], f"d{c['head_dim']}"]
    words += [f"dv{c['head_dim_v']}"] if c["head_dim_v"] else []
    words += [c["mask"], f"{nq}x{nk}", "h{}/{}".format(*c["heads"])]
    words += [c["layout"]]
    words += [c["lens"]] if c["lens"] != "none" else []
    words += [c["score"].replace(" ", "+")] if c["score"] else []
    words += [f"p{c['dropout']}"] if c["dropout"] else []
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


GRADS = {"dout": "o", "dq": "q", "dk": "k", "dv": "v"}


class Problem:
    """One case with its numbers and the f64 result."""

    def __init__(self, case):
        c = self.case = dict(case)
        self.dtype = "f32" if c["dtype"] == "tf32" else c["dtype"]
        self.elem = 4 if self.dtype == "f32" else 2
        self.d, self.dv = c["head_dim"], c["head_dim_v"] or c["head_dim"]
        self.bwd = c["pass"] == "bwd"
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
        self.p, self.seed = self.case["dropout"], int(pick(0, 2 ** 62))
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
        for grad, of in GRADS.items():
            shapes[grad] = shapes[of]
        self.laid = {n: Laid(s, self.case["layout"], self.elem, self.packed)
                     for n, s in shapes.items()}
        self.x = {n: round_to(self.rng.standard_normal(shapes[n]), self.dtype)
                  for n in ("q", "k", "v", "dout")}
        if not self.packed: # what lies behind a key length is never read
            for i, length in enumerate(self.klen):
                self.x["k"][i, :, length:] = self.x["v"][i, :, length:] = np.nan

    def spec(self):
        c = self.case
        return {"pass": c["pass"], "dropout": int(self.p > 0),
                "dtype": self.dtype, "head_dim": self.d, "mask": c["mask"],
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
        x, rows = self.x[name], name in ("q", "dout")
        length = self.qlen if rows else self.klen
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

    def keep(self, b):
        if not self.p:
            return None
        k = kept(self.p, self.seed, 3, self.batch, self.h, self.qlen[b],
                 self.klen[b])[b:b + 1]
        return k * grow(self.p)

    def reference(self):
        """({gradient: (value, size)}, O, LSE) of each entry or sequence."""
        out = []
        scale = float(np.float32(1 / np.sqrt(self.d)))
        sink = None if self.sink is None else self.sink.astype(float)
        for b in range(self.batch):
            seen, off = self.visible(b)
            x = [self.entry(n, b) for n in "qkv"]
            if self.bwd:
                out.append(grads.gradients(
                    *x, self.entry("dout", b), seen, scale, self.score(off),
                    sink, self.keep(b), self.softcap))
            else:
                out.append(({}, *attention(*x, seen, scale, self.score(off),
                                           sink, self.keep(b))))
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
        rows = self.laid["o"].shape
        lse = np.full(rows[0] * rows[1] * rows[2] + 16, POISON["f32"],
                      np.uint32)
        if self.bwd:
            self.add_backward(out, nan, kind, lse)
        else:
            out["o"] = self.laid["o"].buffer(POISON[self.dtype], kind)
        if self.case["lse"] or self.bwd:
            out["lse"] = lse
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

    def add_backward(self, out, nan, kind, lse):
        """O, LSE and dO go in; dQ, dK, dV and the sink's come out."""
        self.ref = self.reference()
        o = np.zeros(self.laid["o"].shape)
        flat = lse[:-16].view(np.float32).reshape(o.shape[:3])
        for b in range(self.batch):
            self.part(o, b)[...] = self.ref[b][1]
            self.part(flat, b)[...] = self.ref[b][2]
        for n, x in (("o", o), ("dout", self.x["dout"])):
            bits = bits_of(round_to(x, self.dtype), self.dtype)
            out[n] = self.laid[n].buffer(nan, bits.dtype, bits)
        for n in ("dq", "dk", "dv"):
            out[n] = self.laid[n].buffer(POISON[self.dtype], kind)
        if self.sink is not None:
            out["dsink"] = np.full(self.h, POISON["f32"], np.uint32)

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
        if self.p:
            a.dropout_p, a.dropout_seed = self.p, self.seed
            a.dropout_offset = 3
        for n in self.laid:
            if n in address:
                setattr(a, n, self.laid[n].tensor(address[n], self.elem))
        for n in ("lens_k", "cu_seqlens_q", "cu_seqlens_k", "slopes", "sink",
                  "dsink"):
            if n in address:
                setattr(a, n, address[n])
        if "lse" in address:
            a.lse = address["lse"]
            a.lse_stride_b, a.lse_stride_h = rows[1] * rows[2], rows[2]
        return a

    # ---- the verdict ----

    def part(self, x, b, length=None):
        length = length or self.qlen
        if not self.packed:
            return x[b:b + 1, :, :length[b]]
        start = sum(length[:b])
        return x[:, :, start:start + length[b]]

    def outputs(self):
        """Names of the buffers that a launch writes."""
        more = ("dsink",) if self.sink is not None else ()
        return ("dq", "dk", "dv") + more if self.bwd else \
            ("o",) + ("lse",) * self.case["lse"]

    def values(self, name, flat, faults):
        """The elements of an output; what lies outside of it is looked at."""
        laid = self.laid[name]
        if np.any(laid.outside(flat) != POISON[self.dtype]):
            faults.append(f"wrote outside of {name}")
        x = laid.cut(flat)
        if self.dtype != "bf16":
            x = x.view(np.float32 if self.elem == 4 else np.float16)
        return values_of(x, self.dtype)

    def judge(self, flat):
        """({output: error}, why it is refused or None)"""
        faults = []
        errors = self.judge_backward(flat, faults) if self.bwd else \
            self.judge_forward(flat, faults)
        limit = LIMIT[self.case["dtype"]]
        faults += [f"{n} differs by {e:.3g}, accepted {limit:.1g}"
                   for n, e in errors.items() if not e <= limit]
        return errors, faults[0] if faults else None

    def judge_forward(self, flat, faults):
        ref, o = self.reference(), self.values("o", flat["o"], faults)
        want = [r[1].ravel() for r in ref] + [[0]]
        got = [self.part(o, b).ravel() for b in range(self.batch)] + [[0]]
        errors = {"o": rel_err(np.concatenate(got), np.concatenate(want))}
        if "lse" in flat:
            n = flat["lse"].size - 16
            if np.any(flat["lse"][n:] != POISON["f32"]):
                faults.append("wrote behind LSE")
            lse = flat["lse"][:n].view(np.float32).reshape(o.shape[:3])
            errors["lse"] = max(self.lse_error(self.part(lse, b), ref[b][2])
                                for b in range(self.batch))
        return errors

    def judge_backward(self, flat, faults):
        errors = {}
        for n in ("dq", "dk", "dv"):
            x = self.values(n, flat[n], faults)
            length = self.qlen if n == "dq" else self.klen
            parts = [self.part(x, b, length) for b in range(self.batch)]
            errors[n] = grads.error(parts, *zip(*(r[0][n] for r in self.ref)))
            for b in range(0 if self.packed or n == "dq" else self.batch):
                if np.any(x[b, :, length[b]:] != 0):
                    faults.append(f"{n} is not 0 behind a key length")
        if "dsink" in flat:
            value, size = (sum(r[0]["dsink"][i] for r in self.ref)
                           for i in (0, 1))
            errors["dsink"] = grads.error([flat["dsink"].view(np.float32)],
                                          [value], [size])
        return errors

    @staticmethod
    def lse_error(got, want):
        if not np.array_equal(np.isfinite(got), np.isfinite(want)):
            return np.inf
        fine = np.isfinite(want)
        return float(np.max(np.abs(got[fine] - want[fine])
                            / np.maximum(1, np.abs(want[fine])), initial=0))
