#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kernels of every CPU arch agree with NumPy in f64: the emitted source is
compiled with a freestanding driver and run natively or by qemu-user."""
import itertools
import json
import os
import platform
import random
import shutil
import struct
import subprocess
import sys
import tempfile

import numpy as np

import _dropout
from _attnc import FULL, SOURCE, attnc, skip

CLANG = shutil.which("clang") or shutil.which("clang-14")
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
EPS = {"f32": 2.0 ** -23, "f16": 2.0 ** -10, "bf16": 2.0 ** -7}
COMMON = ["-std=gnu11", "-O1", "-ffp-contract=fast", "-fno-math-errno"]
ARCHS = {
    "portable": [],
    # The shape of AVX-512 in plain C: 16 lanes, 32 registers.
    "portable@vector_bytes=64,vector_regs=32": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
    "avx512bf16": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl",
                   "-mavx512bf16"],
    "neon": ["--target=aarch64-linux-gnu"],
}


def runs(arch):
    """The words before the program that run it here; None: nothing does."""
    if arch == "neon":
        return [QEMU] if QEMU else None
    if platform.machine() != "x86_64":
        return None
    with open("/proc/cpuinfo") as f:
        flags = f.read()
    need = {"avx512": "avx512f", "avx512bf16": "avx512_bf16", "avx2": "avx2"}
    return [] if need.get(arch, "") in flags else None


# ---- element types ---------------------------------------------------------

def to_bits(x, dtype):
    if dtype == "f32":
        return x.astype(np.float32)
    if dtype == "f16":
        return x.astype(np.float16)
    b = x.astype(np.float32).view(np.uint32)
    return ((b + 0x7fff + ((b >> 16) & 1)) >> 16).astype(np.uint16)


def from_bits(x, dtype):
    if dtype == "bf16":
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return x.astype(np.float64)


# ---- the image -------------------------------------------------------------

class Image:
    """Steps and buffers of one run, in the driver's form."""

    def __init__(self, head):
        self.data = bytearray(head)

    def add(self, raw):
        self.data += b"\xff" * (-len(self.data) % 64)
        at = len(self.data)
        self.data += raw
        return at


def ceil(a, b):
    return -(-a // b)


def extent(factors, dims):
    n = 1
    for f in factors:
        n *= ceil(dims[f["dim"]], f["div"])
    return n


def scalar(x):
    return struct.unpack("<I", struct.pack("<f", x))[0]


def build(case, manifest, inputs, out_bits):
    steps = manifest["steps"]
    head = 16 + sum(24 + 16 * len(s["params"]) for s in steps)
    image = Image(head)
    dims = case["dims"]
    values = dict(case["values"])
    pointers = {name: image.add(a.tobytes()) for name, a in inputs.items()}
    for name, n in out_bits.items():
        pointers[name] = image.add(b"\xff" * n)
    for buf in manifest["buffers"]:
        n = extent(buf["extent"], dims) * buf["fixed"] * buf["elem_bytes"]
        pointers[buf["name"]] = image.add(b"\xff" * n)
    at = 16
    for s in steps:
        scratch = image.add(b"\xff" * s["scratch_bytes"])
        struct.pack_into("<3Q", image.data, at, extent(s["grid"], dims),
                         scratch, len(s["params"]))
        at += 24
        for p in s["params"]:
            name = p["name"]
            value = pointers[name] if name in pointers else values[name]
            struct.pack_into("<2Q", image.data, at, name in pointers,
                             value % 2 ** 64)
            at += 16
    image.add(b"")
    struct.pack_into("<2Q", image.data, 0, len(image.data), len(steps))
    return bytes(image.data), pointers


# ---- the reference ---------------------------------------------------------

def visible(case, nq, nk, b):
    q, k = np.arange(nq)[:, None], np.arange(nk)[None, :]
    off = case["offset"]
    keep = k < (case["lens_k"][b] if case["lens_k"] is not None else nk)
    if case["mask"] == "causal":
        keep = keep & (k <= q + off)
    elif case["mask"] == "window":
        keep = keep & (k >= q + off - case["left"])
        keep = keep & (k <= q + off + case["right"])
    elif case["mask"] == "prefix":
        keep = keep & ((k < case["prefix"]) | (k <= q + off))
    return np.broadcast_to(keep, (nq, nk))


def reference(case, q, k, v, real):
    """O and LSE with every step rounded to `real`: f64 is the judge, f32 says
    what an unfused evaluation loses."""
    q, k, v = (x.astype(real) for x in (q, k, v))
    B, H, nq, d = q.shape
    HK, nk = k.shape[1], k.shape[2]
    o = np.zeros((B, H, nq, v.shape[3]), real)
    lse = np.full((B, H, nq), -np.inf, real)
    for b, h in itertools.product(range(B), range(H)):
        kv = h // (H // HK)
        s = real(case["scale"]) * (q[b, h] @ k[b, kv].T)
        if case["softcap"]:
            cap = real(case["softcap"])
            s = cap * np.tanh(s / cap)
        if case["slopes"] is not None:
            i, j = np.arange(nq)[:, None], np.arange(nk)[None, :]
            s = s - (real(case["slopes"][h]) *
                     np.abs(i + case["offset"] - j).astype(real))
        s = np.where(visible(case, nq, nk, b), s, real(-np.inf))
        extra = real(case["sink"][h] if case["sink"] is not None
                     else -np.inf)
        top = np.maximum(s.max(axis=1, initial=-np.inf), extra)
        top = np.where(np.isfinite(top), top, real(0))
        p = np.exp(s - top[:, None])
        total = p.sum(axis=1) + np.exp(extra - top)
        if case["dropout"]:
            p = p * case["kept"][b, h] * real(_dropout.grow(case["dropout"]))
        with np.errstate(divide="ignore", invalid="ignore"):
            o[b, h] = np.where(total[:, None] > 0, p @ v[b, kv] /
                               total[:, None], 0)
            lse[b, h] = np.where(total > 0, top + np.log(total), -np.inf)
    return o, lse


# ---- one case --------------------------------------------------------------

def draw(r, arch, dtype):
    """A random request: features, sizes and data."""
    hk = r.choice([1, 2])
    h = hk * r.choice([1, 1, 3])
    nq, nk = r.choice([1, 5, 33, 70]), r.choice([1, 19, 70, 131])
    if r.random() < 0.15:
        nq, nk = 1, 4000  # split over keys
    d = r.choice([1, 8, 20, 33, 64, 72])
    dv = r.choice([d, d, 5, 48])
    case = {
        "arch": arch, "dtype": dtype, "d": d, "dv": dv,
        "mask": r.choice(["none", "causal", "window", "prefix"]),
        "offset": r.choice([nk - nq, 0, -3, 7]),
        "left": r.choice([0, 3, 50]), "right": r.choice([0, 2]),
        "prefix": r.choice([0, 4, 30]),
        "softcap": r.choice([0, 0, 3.0]), "scale": r.choice([d ** -0.5, 1.0]),
        "B": 2, "H": h, "HK": hk, "nq": nq, "nk": nk,
        "dropout": r.choice([0, 0.1, 0.6]), "seed": r.getrandbits(64),
        "draw": r.getrandbits(32), "b0": r.choice([0, 9]),
        "h0": r.choice([0, 2]),
    }
    case["kept"] = _dropout.kept(case["dropout"], case["seed"], case["draw"],
                                 2, h, nq, nk, case["b0"], case["h0"], h + 3)
    rng = np.random.default_rng(r.randrange(2 ** 31))
    has = {f: r.random() < 0.3 for f in ("lens_k", "alibi", "sink")}
    case["lens_k"] = (rng.integers(0, nk + 1, 2).astype(np.int32)
                      if has["lens_k"] else None)
    case["slopes"] = (rng.random(h).astype(np.float32)
                      if has["alibi"] else None)
    case["sink"] = (rng.standard_normal(h).astype(np.float32)
                    if has["sink"] else None)
    case["data"] = [rng.standard_normal(s) for s in
                    ((2, h, nq, d), (2, hk, nk, d), (2, hk, nk, dv))]
    return case


def spec_flags(c):
    mask = {"none": "none", "causal": "causal:%d" % c["offset"],
            "window": "window:%d,%d,%d" % (c["left"], c["right"],
                                           c["offset"]),
            "prefix": "prefix:%d,%d" % (c["prefix"], c["offset"])}[c["mask"]]
    flags = ["--target", c["arch"], "--dtype", c["dtype"],
             "--head-dim", c["d"], "--head-dim-v", c["dv"], "--mask", mask,
             "--batch", c["B"], "--heads", c["H"], "--kv-heads", c["HK"],
             "--seqlen", c["nq"], "--seqlen-k", c["nk"]]
    if c["lens_k"] is not None:
        flags += ["--lens-k", ",".join(map(str, c["lens_k"]))]
    if c["slopes"] is not None:
        flags += ["--alibi"]
    if c["softcap"]:
        flags += ["--softcap", c["softcap"]]
    if c["sink"] is not None:
        flags += ["--sink", c["sink_file"]]
    if c["dropout"]:
        flags += ["--dropout", c["dropout"]]
    return flags


def values_of(c):
    """Every length, stride and scalar a step may take, by name."""
    v = {"batch": c["B"], "heads": c["H"], "kv_heads": c["HK"],
         "seqlen_q": c["nq"], "seqlen_k": c["nk"], "mask_left": c["left"],
         "mask_right": c["right"], "mask_prefix": c["prefix"],
         "mask_offset": c["offset"], "mask_offset_mode": 0,
         "scale": scalar(c["scale"]), "softcap": scalar(c["softcap"]),
         "lse_stride_b": c["H"] * c["nq"], "lse_stride_h": c["nq"],
         "dropout_threshold": _dropout.threshold(c["dropout"]),
         "dropout_scale": scalar(_dropout.grow(c["dropout"])),
         "dropout_seed": c["seed"], "dropout_offset": c["draw"],
         "dropout_first": c["b0"] * (c["H"] + 3) + c["h0"],
         "dropout_heads": c["H"] + 3}
    for name, heads, n, d in (("q", c["H"], c["nq"], c["d"]),
                              ("k", c["HK"], c["nk"], c["d"]),
                              ("v", c["HK"], c["nk"], c["dv"]),
                              ("o", c["H"], c["nq"], c["dv"]),
                              ("dout", c["H"], c["nq"], c["dv"]),
                              ("dq", c["H"], c["nq"], c["d"]),
                              ("dk", c["HK"], c["nk"], c["d"]),
                              ("dv", c["HK"], c["nk"], c["dv"])):
        v[name + "_stride_b"] = heads * n * d
        v[name + "_stride_h"] = n * d
        v[name + "_stride_n"] = d
    return v


def compile_case(c, folder, manifest):
    source = [f for f in os.listdir(folder) if f.endswith(".c")]
    entries = " ".join("X(%s)" % s["entry"] for s in manifest["steps"])
    program = os.path.join(folder, "program")
    flags = ARCHS[c["arch"]]
    done = subprocess.run(
        [CLANG, *COMMON, *flags, "-ffreestanding", "-nostdlib", "-static",
         "-fuse-ld=lld", "-DENTRIES=" + entries, "-o", program,
         os.path.join(SOURCE, "tests", "isa", "driver.c"),
         *(os.path.join(folder, s) for s in source)],
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]
    return program


def prepare(c, folder):
    sink = os.path.join(folder, "sink.npy")
    if c["sink"] is not None:
        np.save(sink, c["sink"])
    c["sink_file"] = sink
    done = attnc("emit", "-o", folder, *spec_flags(c), *c.get("flags", ()))
    assert done.returncode == 0, done.stderr
    with open(os.path.join(folder, "manifest.json")) as f:
        manifest = json.load(f)
    group = c["H"] // c["HK"]
    c["dims"] = {"ONE": 1, "BATCH": c["B"], "HEADS": c["H"],
                 "KV_HEADS": c["HK"], "GROUP": group, "SEQLEN_Q": c["nq"],
                 "SEQLEN_K": c["nk"], "ROWS": group * c["nq"],
                 "TOTAL_Q": c["B"] * c["nq"], "PARTS": 8}
    c["values"] = values_of(c)
    return manifest


def check(name, x, want, unfused, eps, relative):
    """Root mean square over finite entries. NumPy sums in pairs, which loses
    less than the plain unfused evaluation of the contract (1.5 times its
    error, unit_numeric), and a case may be one row: hence 4 times here. An
    absolute error cannot be below what rounding the number costs."""
    finite = np.isfinite(want)
    assert np.array_equal(np.isfinite(x), finite), name + ": not finite"
    scale = np.linalg.norm(want[finite]) if relative else finite.sum() ** 0.5
    err, plain = (np.linalg.norm(y[finite] - want[finite]) / (scale or 1)
                  for y in (x, unfused))
    size = np.linalg.norm(want[finite]) / (finite.sum() ** 0.5 or 1)
    eps = eps if relative else max(eps, 2 ** -23 * size)
    limit = 4 * plain + 4 * eps
    assert err <= limit, "%s: %.3g, limit %.3g" % (name, err, limit)


def run_case(c, prefix):
    dtype = c["dtype"]
    with tempfile.TemporaryDirectory() as folder:
        manifest = prepare(c, folder)
        program = compile_case(c, folder, manifest)
        bits = [to_bits(x, dtype) for x in c["data"]]
        inputs = dict(zip("qkv", bits))
        for name in ("lens_k", "slopes", "sink"):
            if c[name] is not None:
                inputs[name] = c[name]
        size = {"f32": 4}.get(dtype, 2)
        rows = c["B"] * c["H"] * c["nq"]
        image, at = build(c, manifest, inputs,
                          {"o": rows * c["dv"] * size, "lse": rows * 4})
        done = subprocess.run([*prefix, program], input=image,
                              capture_output=True, timeout=120)
        assert done.returncode == 0, "exit %d" % done.returncode
        kind = {"f32": "f4", "f16": "f2", "bf16": "u2"}[dtype]
        o = np.frombuffer(done.stdout, kind, rows * c["dv"], at["o"])
        o = from_bits(o, dtype).reshape(c["B"], c["H"], c["nq"], c["dv"])
        lse = np.frombuffer(done.stdout, "f4", rows, at["lse"])
        data = [from_bits(x, dtype) for x in bits]
        want = reference(c, *data, np.float64)
        plain = [x.astype(np.float64) for x in reference(c, *data, np.float32)]
        plain[0] = from_bits(to_bits(plain[0], dtype), dtype)
        lse = lse.reshape(want[1].shape).astype(np.float64)
        check("o", o, want[0], plain[0], EPS[dtype], True)
        check("lse", lse, want[1], plain[1], EPS[dtype], False)


def main():
    if not CLANG or not shutil.which("ld.lld"):
        skip("needs clang and ld.lld")
    seed = int(os.environ.get("ATTNC_TEST_SEED", random.randrange(10 ** 6)))
    print("seed", seed)
    count, skipped, failed = 0, [], 0
    for arch in ARCHS:
        prefix = runs(arch)
        if prefix is None:
            skipped.append(arch)
            continue
        for n in range((40 if FULL else 4) * 3):
            r = random.Random("%d %s %d" % (seed, arch, n))
            c = draw(r, arch, ("f32", "f16", "bf16")[n % 3])
            try:
                run_case(c, prefix)
            except AssertionError as e:
                failed += 1
                print("FAILED", arch, n, " ".join(map(str, spec_flags(c))),
                      "\n   ", e)
            count += 1
    print("not run here (no such CPU):", ", ".join(skipped) or "none")
    print("%d passed, %d failed" % (count - failed, failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
