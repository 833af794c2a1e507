# SPDX-License-Identifier: Apache-2.0
"""`attnc run` on arrays that NumPy wrote agrees with NumPy in f64."""
import unittest

import numpy as np

import _dropout
from _cli import DTYPES, LIMIT, Case, attention, mask, rel_err, round_to

HEAD_DIMS = (1, 8, 20, 40, 64, 72, 80, 96, 112, 128, 192, 256)
BUILTIN = {"ATTNC_COMPILERS": ""}


class Run(Case):
    def inputs(self, b=1, h=2, hk=None, nq=70, nk=None, d=64, dv=None, seed=0):
        rng = np.random.default_rng(seed)
        hk, nk, dv = hk or h, nq if nk is None else nk, dv or d
        shapes = ((b, h, nq, d), (b, hk, nk, d), (b, hk, nk, dv))
        return [rng.standard_normal(s) for s in shapes]

    def compute(self, q, k, v, *args, dtype="f32", kind=np.float32, env=None):
        """Result of the command on these arrays: report, o, lse."""
        out = self.path("out")
        files = [f for n, x in (("q", q), ("k", k), ("v", v))
                 for f in ("--" + n, self.save(n + ".npy", x.astype(kind)))]
        report = self.object("run", *files, "--dtype", dtype, "--out", out,
                             "--check", *args, env=env)
        o, lse = np.load(out + "/o.npy"), np.load(out + "/lse.npy")
        self.assertEqual((o.dtype, lse.dtype), (np.float32, np.float32))
        return report, o, lse

    def agree(self, got, want, dtype="f32"):
        (report, o, lse), (ref, ref_lse) = got, want
        self.assertTrue(report["check"]["ok"], report)
        self.assertEqual(o.shape, ref.shape)
        self.assertEqual(lse.shape, ref_lse.shape)
        self.assertTrue(np.isfinite(o).all())
        self.assertLess(rel_err(o, ref), LIMIT[dtype])
        there = np.isfinite(ref_lse)
        np.testing.assert_array_equal(np.isneginf(lse), ~there)
        np.testing.assert_allclose(lse[there], ref_lse[there],
                                   atol=3 * LIMIT[dtype], rtol=0)
        np.testing.assert_array_equal(o, round_to(o, dtype))

    def test_every_head_dim_and_dtype_is_right(self):
        for dtype in DTYPES:
            for d in HEAD_DIMS:
                with self.subTest(dtype=dtype, d=d):
                    x = self.inputs(d=d, seed=d)
                    r = [round_to(a.astype(np.float32), dtype) for a in x]
                    self.agree(self.compute(*x, "--mask", "causal",
                                            dtype=dtype),
                               attention(*r, mask(70, 70, "causal")), dtype)

    def test_builtin_kernel_gives_the_same(self):
        for dtype in DTYPES:
            for d in HEAD_DIMS:
                with self.subTest(dtype=dtype, d=d):
                    x = self.inputs(d=d, seed=d)
                    r = [round_to(a.astype(np.float32), dtype) for a in x]
                    got = self.compute(*x, "--mask", "causal", dtype=dtype,
                                       env=BUILTIN)
                    self.assertEqual(got[0]["compile"]["compiler"], "builtin")
                    self.agree(got, attention(*r, mask(70, 70, "causal")),
                               dtype)

    def test_files_of_f16_and_f64_are_rounded_once(self):
        x = self.inputs(d=24)
        for kind in (np.float16, np.float64):
            for dtype in DTYPES:
                with self.subTest(kind=kind, dtype=dtype):
                    r = [a.astype(kind).astype(np.float64) for a in x]
                    # bf16 of f64: through f32, as round_to does, is exact
                    # enough unless f32 falls on a midpoint: it does not here.
                    r = [round_to(a, dtype) for a in r]
                    self.agree(self.compute(*x, dtype=dtype, kind=kind),
                               attention(*r), dtype)

    def test_masks_and_offsets(self):
        cases = (("causal", 70, 33, "causal", (), None),
                 ("causal:0", 33, 70, "causal", (), 0),
                 ("causal:-5", 33, 70, "causal", (), -5),
                 ("causal:br", 33, 70, "causal", (), None),
                 ("window:10,3", 50, 70, "window", (10, 3), None),
                 ("window:0,0,2", 50, 50, "window", (0, 0), 2),
                 ("window:inf,3,0", 50, 50, "window", (1e9, 3), 0),
                 ("window:4,inf", 50, 70, "window", (4, 1e9), None),
                 ("prefix:7", 50, 40, "prefix", (7,), None),
                 ("prefix:500,3", 50, 40, "prefix", (500,), 3))
        for text, nq, nk, kind, numbers, off in cases:
            with self.subTest(mask=text):
                x = self.inputs(nq=nq, nk=nk, d=16)
                r = [round_to(a, "f32") for a in x]
                self.agree(self.compute(*x, "--mask", text),
                           attention(*r, mask(nq, nk, kind, *numbers,
                                              off=off)))

    def test_values_of_another_dim_and_groups(self):
        x = self.inputs(b=2, h=6, hk=2, nq=19, nk=45, d=24, dv=40)
        r = [round_to(a, "f32") for a in x]
        self.agree(self.compute(*x), attention(*r))

    def test_layout_bnhd(self):
        x = self.inputs(b=2, h=4, hk=2, nq=19, nk=45, d=24)
        r = [round_to(a, "f32") for a in x]
        ref, lse = attention(*r)
        got = self.compute(*(a.transpose(0, 2, 1, 3).copy() for a in x),
                           "--layout", "bnhd")
        self.agree(got, (ref.transpose(0, 2, 1, 3), lse))

    def test_key_lengths(self):
        lens = (45, 0, 17)
        x = self.inputs(b=3, h=2, nq=19, nk=45, d=24)
        x[1][2, :, 17:] = np.nan  # behind the end: must not leak
        x[2][1, :, :] = np.inf
        r = [round_to(a, "f32") for a in x]
        r[1][2, :, 17:] = r[2][1] = 0
        there = np.arange(45)[None, None, None, :] < \
            np.array(lens)[:, None, None, None]
        self.agree(self.compute(*x, "--lens-k", "45,0,17"),
                   attention(*r, there))
        offs = [mask(19, 45, "causal", off=n - 19) for n in lens]
        self.agree(self.compute(*x, "--lens-k", "45,0,17", "--mask",
                                "causal:len"),
                   attention(*r, there & np.array(offs)[:, None]))

    def test_packed_sequences(self):
        lq, lk = (5, 0, 30, 1), (7, 4, 30, 0)
        cq, ck = np.cumsum((0,) + lq), np.cumsum((0,) + lk)
        rng = np.random.default_rng(3)
        q = rng.standard_normal((36, 4, 24))
        k, v = (rng.standard_normal((41, 2, 24)) for _ in range(2))
        ref, ref_lse = np.zeros((36, 4, 24)), np.zeros((4, 36))
        for i in range(4):
            a, b = slice(cq[i], cq[i + 1]), slice(ck[i], ck[i + 1])
            part = [round_to(x, "f32").transpose(1, 0, 2)[None]
                    for x in (q[a], k[b], v[b])]
            o, lse = attention(*part, mask(lq[i], lk[i], "causal"))
            ref[a], ref_lse[:, a] = o[0].transpose(1, 0, 2), lse[0]
        def text(c):
            return ",".join(map(str, c))
        got = self.compute(q, k, v, "--mask", "causal", "--cu-seqlens-q",
                           text(cq), "--cu-seqlens-k", text(ck))
        self.agree(got, (ref, ref_lse))

    def test_scores(self):
        x = self.inputs(h=4, nq=33, nk=50, d=24)
        r = [round_to(a, "f32") for a in x]
        sink = np.array([0.5, -1, 3, 0.25], np.float32)
        slopes = np.array([0.5, 0.1, 0.02, 1], np.float32)
        far = np.abs(np.arange(33)[:, None] + 17 - np.arange(50)[None, :])
        paper = np.array([2.0 ** (-2 * (i + 1)) for i in range(4)])
        def alibi(m):
            return lambda s: s - m[None, :, None, None] * far
        sink_file = self.save("sink.npy", sink)
        slope_file = self.save("slopes.npy", slopes)
        self.agree(self.compute(*x, "--sink", sink_file),
                   attention(*r, sink=sink.astype(float)))
        self.agree(self.compute(*x, "--alibi"), attention(*r,
                                                          score=alibi(paper)))
        self.agree(self.compute(*x, "--alibi", slope_file),
                   attention(*r, score=alibi(slopes.astype(float))))
        self.agree(self.compute(*x, "--softcap", "2.5"),
                   attention(*r, score=lambda s: 2.5 * np.tanh(s / 2.5)))
        self.agree(self.compute(*x, "--scale", "0.3"),
                   attention(*r, scale=0.3))

    def test_dropout(self):
        sizes = {"b": 2, "h": 6, "hk": 2, "nq": 45, "nk": 70}
        for dtype, env, p, extra in (
                ("f32", None, 0.1, ()), ("f16", None, 0.5, ()),
                ("bf16", None, 0.9, ()), ("f32", BUILTIN, 0.3, ()),
                ("f32", None, 0.3, ("--mask", "causal")),
                ("f32", BUILTIN, 0, ("--mask", "causal"))):
            with self.subTest(dtype=dtype, env=env, p=p, extra=extra):
                x = self.inputs(**sizes, d=24)
                r = [round_to(a, dtype) for a in x]
                keep = _dropout.kept(p, 2 ** 40 + 5, 7, 2, 6, 45, 70)
                file = self.path("kept.npy")
                got = self.compute(*x, "--dropout", p, "--seed", 2 ** 40 + 5,
                                   "--offset", 7, "--dropout-mask", file,
                                   *extra, dtype=dtype, env=env)
                np.testing.assert_array_equal(np.load(file), keep)
                self.assertEqual(np.load(file).dtype, bool)
                seen = mask(45, 70, "causal") if extra else None
                self.agree(got, attention(*r, seen,
                                          keep=keep * _dropout.grow(p)), dtype)

    def test_dropout_of_packed_sequences(self):
        lengths, rng = (5, 0, 33), np.random.default_rng(8)
        at = np.cumsum((0,) + lengths)
        x = [rng.standard_normal((38, 2, 24)) for _ in range(3)]
        keep = _dropout.kept(0.4, 3, 0, 3, 2, 33, 33)
        ref, ref_lse = np.zeros((38, 2, 24)), np.zeros((2, 38))
        for b, n in enumerate(lengths):
            rows = slice(at[b], at[b] + n)
            part = [round_to(a[rows], "f32").transpose(1, 0, 2)[None]
                    for a in x]
            o, lse = attention(*part, keep=keep[b:b + 1, :, :n, :n] *
                               _dropout.grow(0.4))
            ref[rows], ref_lse[:, rows] = o[0].transpose(1, 0, 2), lse[0]
            keep[b, :, n:] = keep[b, :, :, n:] = False
        file = self.path("kept.npy")
        got = self.compute(*x, "--cu-seqlens-q", ",".join(map(str, at)),
                           "--dropout", 0.4, "--seed", 3, "--dropout-mask",
                           file)
        self.agree(got, (ref, ref_lse))
        np.testing.assert_array_equal(np.load(file), keep)

    def test_few_queries_with_many_keys(self):
        x = self.inputs(h=8, hk=2, nq=1, nk=9001, d=64)
        r = [round_to(a, "f32") for a in x]
        self.agree(self.compute(*x, "--mask", "causal"), attention(*r))

    def test_threads_do_not_change_bits(self):
        x = self.inputs(h=3, nq=333, d=40)
        bits = {self.compute(*x, "--threads", t)[1].tobytes()
                for t in (1, 2, 5)}
        self.assertEqual(len(bits), 1)


if __name__ == "__main__":
    unittest.main()
