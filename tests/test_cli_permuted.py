#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What permuting queries and keys may not change: attention as it is, and a
strided pattern, which is a causal mask inside the blocks of a transposed
order. Forward and backward."""
import unittest

import numpy as np

from _cli import LIMIT, Case, rel_err

NAMES = ("o", "lse", "dq", "dk", "dv")


class Permuted(Case):
    def compute(self, x, *args):
        """Arrays by name, checked against f64 by the command itself."""
        out = self.path("out")
        files = [f for n, a in zip(("q", "k", "v", "do"), x)
                 for f in ("--" + n, self.save(n + ".npy", a))]
        report = self.object("run", "--pass", "fwd+bwd", *files, "--out", out,
                             "--check", *args)
        self.assertTrue(report["check"]["ok"], report)
        return {n: np.load(f"{out}/{n}.npy") for n in NAMES}

    def inputs(self, nq, nk, seed=None):
        rng = np.random.default_rng(seed)
        return rng, [rng.standard_normal((1, 2, n, 24)).astype(np.float32)
                     for n in (nq, nk, nk, nq)]

    def agree(self, got, want, of_query, of_key):
        """got: of inputs whose rows were taken in these orders."""
        for name in NAMES:
            order = of_key if name in ("dk", "dv") else of_query
            back = np.empty_like(got[name])
            back[:, :, order] = got[name]
            self.assertLess(rel_err(back, want[name]), 2 * LIMIT["f32"], name)

    def test_attention_knows_no_order(self):
        for nq, nk in ((45, 70), (64, 128)):
            rng, (q, k, v, do) = self.inputs(nq, nk)
            pq, pk = rng.permutation(nq), rng.permutation(nk)
            want = self.compute((q, k, v, do))
            got = self.compute((q[:, :, pq], k[:, :, pk], v[:, :, pk],
                                do[:, :, pq]))
            self.agree(got, want, pq, pk)

    def test_strided_is_causal_inside_transposed_blocks(self):
        for n, stride in ((96, 8), (130, 10)):
            _, x = self.inputs(n, n)
            rows = n // stride
            order = np.arange(n).reshape(rows, stride).T.ravel()
            want = self.compute(x, "--sparsity", f"strided:{stride}")
            got = self.compute([a[:, :, order] for a in x], "--mask",
                               f"expr:q / {rows} == k / {rows} && k <= q")
            self.agree(got, want, order, order)


if __name__ == "__main__":
    unittest.main()
