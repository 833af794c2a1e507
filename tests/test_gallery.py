# SPDX-License-Identifier: Apache-2.0
"""docs/gallery: every spec agrees with f64, its page shows its text, its
picture is the one that `attnc explain` draws, with the shares it tells."""
import glob
import os
import random
import subprocess
import sys
import unittest

import _attnc
from _cli import Case

HERE = os.path.join(_attnc.SOURCE, "docs", "gallery")
SPECS = sorted(glob.glob(os.path.join(HERE, "*.lua")))
GRADIENTS = ("t5", "swin", "butterfly", "natten-2d")


class Gallery(Case):
    def tensors(self, *seed):
        """The .npy that the specs read, in this test's directory."""
        subprocess.run([sys.executable, "-B", os.path.join(HERE, "tensors.py"),
                        *map(str, seed)], cwd=self.dir, check=True)

    def attnc(self, *args, env=None):
        p = subprocess.run([_attnc.ATTNC, *args], cwd=self.dir, text=True,
                           capture_output=True, timeout=_attnc.PATIENCE,
                           env=dict(os.environ, **(env or {})))
        self.assertEqual(p.returncode, 0, p.stdout + p.stderr)
        return p.stdout

    def test_every_spec_agrees_with_f64(self):
        seed = random.randrange(2**31)
        self.tensors(seed)
        for path in SPECS:
            with self.subTest(spec=path, seed=seed):
                self.assertIn("check     ok",
                              self.attnc("run", "--spec", path, "--check",
                                         "--data-seed", str(seed)))

    def test_gradients(self):
        self.tensors(random.randrange(2**31))
        for name in GRADIENTS:
            with self.subTest(name=name):
                self.assertIn("check     ok", self.attnc(
                    "run", "--spec", os.path.join(HERE, name + ".lua"),
                    "--seqlen", "49" if name == "swin" else "256", "--pass",
                    "bwd", "--check", env={"ATTNC_COMPILERS": ""}))

    def test_pictures_and_shares(self):
        self.tensors()
        page = self.read(os.path.join(_attnc.SOURCE, "docs", "gallery.md"))
        entries = {e.split("\n")[0]: e
                   for e in page.decode().split("\n### ")[1:]}
        self.assertEqual(sorted(entries), sorted(
            os.path.basename(p)[:-4] for p in SPECS))
        for path in SPECS:
            name = os.path.basename(path)[:-4]
            with self.subTest(name=name):
                text = self.attnc("explain", "--spec", path, "--svg", "a.svg")
                self.assertEqual(self.read(self.path("a.svg")),
                                 self.read(path[:-4] + ".svg"))
                shares = text[text.index("\nblocks ") + 11:].split("\n")[0]
                blocks, pairs = (float(w) for w in shares.split()
                                 if w[0].isdigit())
                said = entries[name].split("% of the ")
                self.assertAlmostEqual(float(said[0].split()[-1]), blocks,
                                       delta=0.06)
                self.assertAlmostEqual(float(said[1].split()[-1]), pairs,
                                       delta=0.06)
                code = self.read(path).decode()
                self.assertIn(code[code.index("return"):], entries[name])


if __name__ == "__main__":
    unittest.main()
