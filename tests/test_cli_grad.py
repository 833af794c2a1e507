# SPDX-License-Identifier: Apache-2.0
"""`attnc run` with a backward: gradients agree with NumPy in f64."""
import unittest

import numpy as np

from _cli import DTYPES, LIMIT, Case, attention, mask, rel_err, round_to


def gradients(q, k, v, do, visible=None, softcap=None, sink=None, score=None):
    """dQ, dK, dV, dsink in f64, written out; shapes as of attention()."""
    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scale = 1 / np.sqrt(q.shape[3])
    s = scale * np.einsum("bhqd,bhkd->bhqk", q, wide_k)
    bend = 1
    if softcap:
        bend = 1 - np.tanh(s / softcap) ** 2
        s = softcap * np.tanh(s / softcap)
    s = score(s) if score else s
    capped = (lambda x: softcap * np.tanh(x / softcap)) if softcap else None
    o, lse = attention(q, k, v, visible, score=score or capped, sink=sink)
    seen = np.isfinite(lse)[..., None]
    p = np.exp(s - np.where(seen, lse[..., None], 0))
    p = np.where(seen & (True if visible is None else visible), p, 0)
    dp = np.einsum("bhqd,bhkd->bhqk", do, wide_v)
    delta = (do * o).sum(3)
    ds = scale * p * (dp - delta[..., None]) * bend

    def of_groups(x):
        return x.reshape(k.shape[0], k.shape[1], group, *x.shape[2:]).sum(2)
    dsink = None
    if sink is not None:
        weight = np.exp(sink[None, :, None] - lse)
        dsink = -(weight * delta).sum((0, 2))
    return (np.einsum("bhqk,bhkd->bhqd", ds, wide_k),
            of_groups(np.einsum("bhqk,bhqd->bhkd", ds, q)),
            of_groups(np.einsum("bhqk,bhqd->bhkd", p, do)), dsink)


class Gradients(Case):
    def inputs(self, b=1, h=2, hk=None, nq=70, nk=None, d=64, dv=None, seed=0):
        rng = np.random.default_rng(seed)
        hk, nk, dv = hk or h, nq if nk is None else nk, dv or d
        shapes = ((b, h, nq, d), (b, hk, nk, d), (b, hk, nk, dv),
                  (b, h, nq, dv))
        return [rng.standard_normal(s) for s in shapes]

    def compute(self, *x, args=(), dtype="f32", env=None, only=False):
        """Report, and the arrays written by name."""
        out = self.path("out")
        files = [f for n, a in zip(("q", "k", "v", "do"), x)
                 for f in ("--" + n, self.save(n + ".npy",
                                               a.astype(np.float32)))]
        report = self.object("run", "--pass", "bwd" if only else "fwd+bwd",
                             *files, "--dtype", dtype, "--out", out,
                             "--check", *args, env=env)
        return report, {n: np.load(f"{out}/{n}.npy")
                        for n in ("o", "lse", "dq", "dk", "dv")}

    def agree(self, got, want, dtype="f32"):
        report, arrays = got
        self.assertTrue(report["check"]["ok"], report)
        for name, ref in zip(("dq", "dk", "dv"), want):
            self.assertEqual(arrays[name].dtype, np.float32)
            self.assertEqual(arrays[name].shape, ref.shape)
            self.assertTrue(np.isfinite(arrays[name]).all())
            self.assertLess(rel_err(arrays[name], ref), LIMIT[dtype], name)
            self.assertLess(report["check"]["rel_err"][name], LIMIT[dtype])
            np.testing.assert_array_equal(arrays[name],
                                          round_to(arrays[name], dtype))

    def test_dtypes_masks_and_groups(self):
        for i, (dtype, text, kind, numbers) in enumerate((
                ("f32", "none", "none", ()), ("f16", "causal", "causal", ()),
                ("bf16", "window:10,3", "window", (10, 3)),
                ("f32", "prefix:7", "prefix", (7,)))):
            with self.subTest(dtype=dtype, mask=text):
                x = self.inputs(b=2, h=6, hk=2, nq=45, nk=70, d=24, dv=40,
                                seed=i)
                r = [round_to(a.astype(np.float32), dtype) for a in x]
                self.agree(self.compute(*x, args=("--mask", text),
                                        dtype=dtype),
                           gradients(*r, mask(45, 70, kind, *numbers)), dtype)

    def test_every_dtype_backward_alone(self):
        for dtype in DTYPES:
            with self.subTest(dtype=dtype):
                x = self.inputs(d=33, seed=5)
                r = [round_to(a.astype(np.float32), dtype) for a in x]
                got = self.compute(*x, dtype=dtype, only=True)
                self.agree(got, gradients(*r), dtype)
                roles = [s["role"] for s in got[0]["steps"]]
                self.assertEqual(got[0]["spec"]["pass"], "bwd")
                self.assertNotIn("fwd", roles)

    def test_both_passes_are_timed_together(self):
        report, _ = self.compute(*self.inputs())
        roles = [s["role"] for s in report["steps"]]
        self.assertEqual((report["spec"]["pass"], roles[0]),
                         ("fwd+bwd", "fwd"))
        self.assertIn("delta", roles)
        flops = 2 * 2 * 70 * 70 * (64 + 64 + 3 * 64 + 2 * 64)
        self.assertAlmostEqual(
            report["gflops"] * report["time_ms"]["median"] * 1e6 / flops, 1,
            places=6)

    def test_scores(self):
        x = self.inputs(h=4, nq=33, nk=50, d=24)
        r = [round_to(a, "f32") for a in x]
        sink = np.array([0.5, -1, 3, 0.25], np.float32)
        got = self.compute(*x, args=("--sink", self.save("sink.npy", sink)))
        want = gradients(*r, sink=sink.astype(float))
        self.agree(got, want)
        dsink = np.load(self.path("out") + "/dsink.npy")
        self.assertLess(rel_err(dsink, want[3]), LIMIT["f32"])
        self.agree(self.compute(*x, args=("--softcap", "2.5")),
                   gradients(*r, softcap=2.5))
        far = np.abs(np.arange(33)[:, None] + 17 - np.arange(50)[None, :])
        slopes = np.array([2.0 ** (-2 * (i + 1)) for i in range(4)])
        self.agree(self.compute(*x, args=("--alibi",)),
                   gradients(*r, score=lambda s:
                             s - slopes[None, :, None, None] * far))

    def test_padding_gets_exact_zeros(self):
        x = self.inputs(b=3, nq=19, nk=45, d=24)
        x[1][2, :, 17:] = np.nan  # behind the end: must not leak
        x[2][1] = np.inf
        r = [round_to(a, "f32") for a in x]
        r[1][2, :, 17:] = r[2][1] = 0
        there = np.arange(45)[None, None, None, :] < \
            np.array((45, 0, 17))[:, None, None, None]
        got = self.compute(*x, args=("--lens-k", "45,0,17"))
        self.agree(got, gradients(*r, there))
        for name in ("dk", "dv"):
            self.assertFalse(got[1][name][2, :, 17:].any())
            self.assertFalse(got[1][name][1].any())
        self.assertFalse(got[1]["dq"][1].any())

    def test_layout_bnhd_and_packed(self):
        x = self.inputs(h=4, hk=2, nq=19, nk=45, d=24)
        r = [round_to(a, "f32") for a in x]
        want = gradients(*r)[:3]
        turned = [a.transpose(0, 2, 1, 3).copy() for a in x]
        self.agree(self.compute(*turned, args=("--layout", "bnhd")),
                   [a.transpose(0, 2, 1, 3) for a in want])
        self.agree(self.compute(*(a[0] for a in turned),
                                args=("--cu-seqlens-q", "0,19",
                                      "--cu-seqlens-k", "0,45")),
                   [a[0].transpose(1, 0, 2) for a in want])

    def test_bad_requests(self):
        file = self.save("do.npy", np.zeros((1, 2, 7, 64), np.float32))
        self.refused("run", "--do", file, says=("--do", "--pass bwd"))
        self.refused("run", "--pass", "bwd", "--seqlen", "9", "--heads", "2",
                     "--do", file, says=("do.npy", "seqlen_q"))
        self.refused("run", "--pass", "bwdd", says="fwd bwd fwd+bwd")
        self.refused("explain", "--pass", "fwd+bwd", says="accepted: fwd, bwd")


if __name__ == "__main__":
    unittest.main()
