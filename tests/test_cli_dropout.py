# SPDX-License-Identifier: Apache-2.0
"""Dropout on every target: the same kept set, and what it makes of values
that are not finite."""
import unittest

import numpy as np

import _dropout
from _cli import Case

TARGETS = ((), ("--target", "portable"), ("--target", "emu:sm_80"),
           ("--target", "emu:sm_75"), ("--target", "emu:sm_80", "--f32-math",
                                       "tf32"))


class Dropout(Case):
    def kept(self, heads, kv_heads, *more):
        """The kept set as a kernel applies it: scores of 0, V = identity."""
        zeros = self.save("q.npy", np.zeros((1, heads, 40, 16), np.float32))
        keys = self.save("k.npy", np.zeros((1, kv_heads, 64, 16), np.float32))
        eye = np.broadcast_to(np.eye(64, dtype=np.float32),
                              (1, kv_heads, 64, 64))
        self.good("run", "--q", zeros, "--k", keys, "--v",
                  self.save("v.npy", eye), "--dropout", 0.4, "--seed", 77,
                  "--offset", 5, "--out", self.path("out"), "--check", *more)
        return np.load(self.path("out/o.npy")) != 0

    def test_every_target_keeps_the_same(self):
        for heads, kv_heads in ((2, 2), (3, 1)):
            want = _dropout.kept(0.4, 77, 5, 1, heads, 40, 64)
            for more in TARGETS:
                with self.subTest(heads=heads, target=more):
                    got = self.kept(heads, kv_heads, *more)
                    np.testing.assert_array_equal(got, want)

    def test_gradients_drop_the_same(self):
        for env in (None, {"ATTNC_COMPILERS": ""}):
            for more in (("--mask", "causal"),
                         ("--cu-seqlens-q", "0,33,33,90", "--mask",
                          "window:9,9"),
                         ("--lens-k", "70,5", "--dtype", "bf16")):
                with self.subTest(env=env, args=more):
                    sizes = () if "--cu-seqlens-q" in more else \
                        ("--seqlen", 90)
                    j = self.object("run", "--pass", "fwd+bwd", "--head-dim",
                                    24, "--heads", 4, "--kv-heads", 2, *sizes,
                                    *more, "--dropout", 0.3, "--seed", 4,
                                    "--check", env=env)
                    self.assertTrue(j["check"]["ok"], j["check"])

    def test_gradients_of_emulated_gpus(self):
        for more in (("--target", "emu:sm_80", "--dtype", "f16"),
                     ("--target", "emu:sm_75", "--dtype", "f32")):
            with self.subTest(args=more):
                j = self.object("run", "--pass", "fwd+bwd", "--head-dim", 24,
                                "--heads", 3, "--kv-heads", 1, "--seqlen", 50,
                                "--mask", "causal", "--dropout", 0.3, *more,
                                "--check")
                self.assertTrue(j["check"]["ok"], j["check"])

    def test_zero_times_what_is_not_finite_is_nan(self):
        v = np.random.default_rng(0).standard_normal((1, 2, 70, 16))
        v[0, 0, 33, 3], v[0, 1, 7], v[0, 1, 50, 2] = np.inf, np.nan, -np.inf
        file = self.save("v.npy", v)
        for more in TARGETS:
            for mask in ("causal", "window:20,3"):
                with self.subTest(target=more, mask=mask):
                    self.good("run", "--v", file, "--mask", mask, "--dropout",
                              0.5, "--seqlen", 70, "--check", *more)


if __name__ == "__main__":
    unittest.main()
