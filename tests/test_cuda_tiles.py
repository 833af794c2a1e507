# SPDX-License-Identifier: Apache-2.0
"""Fields of GPU tiles do what they say: kernels on emulated devices against
f64, and what the emitted text has and has not."""
import os
import re
import unittest

import numpy as np

from _cli import Case

# arguments of a run, and fields of its tile
PEELED = (
    ("emu:sm_80", "--dtype f16 --mask causal --seqlen 200 --head-dim 64",
     "block_q=64,block_k=32,warps=2,rows=32,stages=2,q_regs=0"),
    ("emu:sm_80", "--dtype bf16 --mask causal:-7 --seqlen 131 --head-dim 40",
     "block_q=64,block_k=64,warps=4,rows=16,stages=3,q_regs=1"),
    ("emu:sm_80", "--dtype f16 --mask window:50,3 --seqlen 259 --head-dim 32",
     "block_q=32,block_k=16,warps=2,rows=16,stages=4,q_regs=0"),
    ("emu:sm_80", "--dtype f16 --mask prefix:37 --seqlen 129 --head-dim 32",
     "block_q=32,block_k=48,warps=1,rows=32,stages=2,q_regs=1"),
    ("emu:sm_80", "--dtype f16 --seqlen 1 --seqlen-k 133 --head-dim 24",
     "block_q=16,block_k=32,warps=1,rows=16,stages=3,q_regs=0"),
    ("emu:sm_80", "--dtype f32 --f32-math tf32 --mask window:20,9 --seqlen 90",
     "block_q=32,block_k=32,warps=2,rows=16,stages=2,q_regs=0"),
    ("emu:sm_80", "--dtype f16 --mask causal --seqlen 5 --seqlen-k 300 "
     "--heads 4 --kv-heads 1", "block_k=32,split_k=96"),
    ("emu:sm_75", "--dtype f16 --mask causal --seqlen 150 --seqlen-k 90 "
     "--softcap 9", "block_q=32,block_k=32,warps=2,rows=16,q_regs=1"),
    ("emu:sm_75", "--dtype bf16 --mask causal --seqlen 70 --head-dim 20", ""),
)


def tile_of(pairs, **more):
    return ",".join(filter(None, [pairs] + [f"{k}={v}" for k, v in
                                            more.items()]))


class Peel(Case):
    def test_masked_keys_in_a_loop_of_their_own(self):
        for target, args, tile in PEELED:
            with self.subTest(target=target, args=args):
                self.good("run", "--target", target, "--heads", "2",
                          *args.split(), "--tile",
                          tile_of(tile, blocks=1, peel=1), "--check")

    def text(self, peel, *more):
        j = self.object("emit", "--target", "sm_80", "--dtype", "f16",
                        "--mask", "causal", "-o", self.path(f"p{peel}"),
                        "--tile", f"peel={peel}", *more)
        name = os.path.join(self.path(f"p{peel}"), j["files"][0]["name"])
        return self.read(name).decode()

    def test_only_then_there_are_two_loops(self):
        calls = [re.findall(r"step_tile\(&a.*", self.text(p)) for p in (0, 1)]
        self.assertEqual(len(calls[0]), 1)
        self.assertIn("is_partial", calls[0][0])
        self.assertEqual([c.split("lo, ")[1] for c in calls[1]],
                         ["0, 1);", "1, 0);"])


def loops(ptx):
    """The innermost loops of a PTX text, lists of lines."""
    lines = [line.strip() for line in ptx.split("\n")]
    at = {line[:-1]: i for i, line in enumerate(lines)
          if re.fullmatch(r"\$L\w+:", line)}
    jumps = [(at.get(m[1], len(lines)), i) for i, line in enumerate(lines)
             if (m := re.search(r"bra(?:\.uni)?\s+(\$L\w+);", line))]
    back = [(a, b) for a, b in jumps if a < b]
    return [lines[a:b] for a, b in back
            if not any((c, d) != (a, b) and a <= c and d <= b
                       for c, d in back)]


class MainLoop(Case):
    """The loop over full tiles does its work and next to nothing else."""

    # mma of a step, and what integers it may take: a 64-bit sum for each
    # 16 bytes that a thread copies, four for the next tiles, the loop's own.
    def test_addresses_are_not_worked_out_again(self):
        if not self.object("devices")["nvrtc"]["found"]:
            self.skipTest("no NVRTC")
        for dim, products, most in ((64, 64, 10), (128, 128, 14)):
            with self.subTest(dim=dim):
                self.check(dim, products, most)

    def check(self, dim, products, most):
        j = self.object("emit", "--target", "sm_80", "--dtype", "f16",
                        "--mask", "causal", "--head-dim", dim, "--ptx", "-o",
                        self.path("out"), "--tile",
                        "block_q=128,block_k=32,warps=4,rows=32,stages=2,"
                        "q_regs=0,blocks=1,peel=1")
        name = os.path.join(self.path("out"), j["files"][1]["name"])
        texts = ["\n".join(x) for x in loops(self.read(name).decode())]
        full = [x for x in texts if x.count("mma.sync") == products]
        self.assertEqual(len(full), 1)
        integers = re.findall(r"^(?:add|sub|mad|mul|shl|shr|and|or|xor|lop3)"
                              r"\S*\.[subB](?:32|64) .*", full[0], re.M)
        self.assertLessEqual(len(integers), most, "\n".join(integers))
        for word in ("selp", "ld.param", "ld.local", "st.local", "ld.global"):
            self.assertNotIn(word, full[0])


class NotFinite(Case):
    """Inf and NaN of V reach the rows that see them, and no other."""

    def seen(self, mask, nq, nk):
        q, k = np.arange(nq)[:, None] + nk - nq, np.arange(nk)[None]
        kind, *numbers = re.split("[:,]", mask)
        a, b = (list(map(int, numbers)) + [0, 0])[:2]
        return {"causal": k <= q, "prefix": (k < a) | (k <= q),
                "window": (k >= q - a) & (k <= q + b)}[kind]

    def inputs(self, nq, nk, d):
        rng = np.random.default_rng(nq)
        q, k, v = (rng.standard_normal((1, 2, n, d)).astype(np.float32)
                   for n in (nq, nk, nk))
        for x in (np.nan, np.inf, -np.inf):
            v[0, rng.integers(2), rng.integers(nk), rng.integers(d)] = x
        v[0, 0, nk - 1, 0], v[0, 1, nk // 2, d - 1] = np.inf, np.nan
        return q, k, v

    def check(self, target, dtype, mask, nq, nk, d, tile):
        q, k, v = self.inputs(nq, nk, d)
        args = [x for name, a in zip("qkv", (q, k, v))
                for x in ("--" + name, self.save(name + ".npy", a))]
        self.good("run", "--target", target, "--dtype", dtype, "--mask", mask,
                  *args, "--tile", tile, "--out", self.path("out"))
        o = np.load(os.path.join(self.path("out"), "o.npy"))[0]
        seen = self.seen(mask, nq, nk)[None, :, :, None]
        odd = np.where(np.isfinite(v[0]), 0, v[0])[:, None]
        with np.errstate(invalid="ignore"):
            want = np.where(seen, odd, 0).sum(2)
        np.testing.assert_array_equal(np.where(np.isfinite(o), 0, o), want)

    def test_in_every_kind_of_kernel(self):
        for target, dtype, mask, nq, nk, d, tile in (
                ("emu:sm_80", "f16", "causal", 150, 150, 40,
                 "block_q=32,block_k=32,warps=2,rows=16,stages=2"),
                ("emu:sm_80", "bf16", "window:20,5", 150, 150, 64,
                 "block_k=16"),
                ("emu:sm_80", "f16", "causal", 3, 150, 64,
                 "block_k=32,split_k=64"),
                ("emu:sm_75", "f32", "prefix:30", 100, 100, 24,
                 "block_k=32")):
            for peel in (0, 1):
                with self.subTest(target=target, mask=mask, peel=peel):
                    self.check(target, dtype, mask, nq, nk, d,
                               tile_of(tile, peel=peel))


if __name__ == "__main__":
    unittest.main()
