#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Backward kernels of every CPU arch agree with NumPy in f64, as test_isa has
it of the forward ones; in one pass, with partial sums of dQ, and in two."""
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile

import numpy as np

import _dropout
import test_isa as isa
from _attnc import FULL, skip

# Relative error, or that of the terms where these cancel to less.
LIMIT = {"f32": 4e-6, "f16": 4e-3, "bf16": 3e-2}


def gradients(case, q, k, v, do):
    """O, LSE in f64, then dQ, dK, dV, dsink, each with the size of its terms
    before they cancel, in quadrature."""
    o, lse = isa.reference(case, q, k, v, np.float64)
    B, H, nq, _ = q.shape
    HK, nk = k.shape[1], k.shape[2]
    zeros = [np.zeros(x.shape) for x in (q, k, v)] + [np.zeros(H)]
    out, size = zeros, [np.zeros(x.shape) for x in zeros]
    grow = _dropout.grow(case["dropout"])
    for b, h in itertools.product(range(B), range(H)):
        kv = h // (H // HK)
        s, bend = case["scale"] * (q[b, h] @ k[b, kv].T), 1
        if case["softcap"]:
            t = np.tanh(s / case["softcap"])
            s, bend = case["softcap"] * t, 1 - t ** 2
        if case["slopes"] is not None:
            i, j = np.arange(nq)[:, None], np.arange(nk)[None, :]
            s = s - case["slopes"][h] * np.abs(i + case["offset"] - j)
        seen = isa.visible(case, nq, nk, b) & np.isfinite(lse[b, h])[:, None]
        base = np.where(np.isfinite(lse[b, h]), lse[b, h], 0)[:, None]
        p = np.where(seen, np.exp(np.where(seen, s, 0) - base), 0)
        z = case["kept"][b, h] * grow if case["dropout"] else 1
        dp = z * (do[b, h] @ v[b, kv].T)
        delta = (do[b, h] * o[b, h]).sum(1, keepdims=True)
        noise = np.sqrt(((do[b, h] * o[b, h]) ** 2).sum(1, keepdims=True))
        ds = case["scale"] * p * (dp - delta) * bend
        at = case["scale"] * p * (np.abs(dp) + np.abs(delta) + noise)
        for x, w, g, kv_row in ((out, 1, ds, p * z), (size, 2, at, p * z)):
            x[0][b, h] += g ** w @ k[b, kv] ** w
            x[1][b, kv] += g.T ** w @ q[b, h] ** w
            x[2][b, kv] += kv_row.T ** w @ do[b, h] ** w
        if case["sink"] is not None:
            weight = np.exp(case["sink"][h] - lse[b, h])
            out[3][h] -= (weight * delta[:, 0]).sum()
            size[3][h] += ((weight * (np.abs(delta) + noise)[:, 0]) ** 2).sum()
    return o, lse, out, [np.sqrt(x) for x in size]


def draw(r, arch, dtype):
    c = isa.draw(r, arch, dtype)
    while c["nk"] > 1000:
        c = isa.draw(r, arch, dtype)
    c["flags"] = ("--pass", "bwd", "--tile", "chunk_k=128,block_k=64,parts=%d"
                  % r.choice((0, 1, 2, 8)))
    rng = np.random.default_rng(r.randrange(2 ** 31))
    c["data"].append(rng.standard_normal((2, c["H"], c["nq"], c["dv"])))
    return c


def run_case(c, prefix):
    dtype = c["dtype"]
    kind = {"f32": "f4", "f16": "f2", "bf16": "u2"}[dtype]
    with tempfile.TemporaryDirectory() as folder:
        manifest = isa.prepare(c, folder)
        c["values"]["dlse"] = 0
        program = isa.compile_case(c, folder, manifest)
        bits = [isa.to_bits(x, dtype) for x in c["data"]]
        data = [isa.from_bits(x, dtype) for x in bits]
        o, lse, want, size = gradients(c, *data)
        inputs = dict(zip(("q", "k", "v", "dout"), bits))
        inputs["o"] = isa.to_bits(o, dtype)
        inputs["lse"] = lse.astype(np.float32)
        for name in ("lens_k", "slopes", "sink"):
            if c[name] is not None:
                inputs[name] = c[name]
        names = ("dq", "dk", "dv") + (("dsink",) if "sink" in inputs else ())
        wide = {n: (4 if n == "dsink" else np.dtype(kind).itemsize)
                for n in names}
        image, at = isa.build(c, manifest, inputs,
                              {n: w.size * wide[n]
                               for n, w in zip(names, want)})
        done = subprocess.run([*prefix, program], input=image,
                              capture_output=True, timeout=120)
        assert done.returncode == 0, "exit %d" % done.returncode
        for n, w, t in zip(names, want, size):
            own = n != "dsink"
            x = np.frombuffer(done.stdout, kind if own else "f4", w.size,
                              at[n])
            x = isa.from_bits(x, dtype if own else "f32").reshape(w.shape)
            assert np.isfinite(x).all(), n + ": not finite"
            scale = max(np.linalg.norm(w), np.linalg.norm(t)) or 1
            err = np.linalg.norm(x - w) / scale
            assert err < LIMIT[dtype], "%s: %.3g" % (n, err)


def main():
    if not isa.CLANG or not shutil.which("ld.lld"):
        skip("needs clang and ld.lld")
    seed = int(os.environ.get("ATTNC_TEST_SEED", random.randrange(10 ** 6)))
    print("seed", seed)
    count, failed = 0, 0
    for arch in isa.ARCHS:
        prefix = isa.runs(arch)
        if prefix is None:
            print("skipped:", arch)
            continue
        for n in range((30 if FULL else 2) * 3):
            r = random.Random("%d %s %d" % (seed, arch, n))
            c = draw(r, arch, ("f32", "f16", "bf16")[n % 3])
            count += 1
            try:
                run_case(c, prefix)
            except (AssertionError, subprocess.TimeoutExpired) as e:
                failed += 1
                shown = {k: v for k, v in c.items()
                         if k not in ("data", "kept")}
                print("FAILED", shown, e, sep="\n")
    print("%d cases, %d failed" % (count, failed))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
