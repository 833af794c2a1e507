# SPDX-License-Identifier: Apache-2.0
"""`attnc explain` on what a query sees: block maps are the golden layouts of
the patterns' sources, and counts of tiles and pairs are those of NumPy."""
import unittest
import xml.etree.ElementTree as ElementTree

import numpy as np

from _cli import Case, mask

BUILTIN = {"ATTNC_COMPILERS": ""}
# 8 blocks of keys: a hex byte for each row of blocks, bit e: block e is kept.
GOLDEN = (
    ("ds-longformer:window=3,global=1", "none",
     "ff 07 0f 1d 39 71 e1 c1"),
    ("ds-longformer:window=3,global=1,causal=1", "none",
     "01 03 07 0d 19 31 61 c1"),
    ("ds-longformer", "causal", "01 03 07 0d 19 31 61 c1"),
    ("orig-bigbird:random=0", "none", "ff 87 8f 9d b9 f1 e1 ff"),
    ("fixed:stride=4,vert=1", "none", "01 03 07 0f 18 38 78 f8"),
    ("ds-fixed:stride=4,global=1", "none", "8f 8f 8f 8f f8 f8 f8 f8"),
    ("ds-fixed:stride=3,global=1", "none", "a7 a7 a7 bc bc bc e4 e4"),
    ("butterfly:m=1", "none", "03 03 0c 0c 30 30 c0 c0"),
    ("butterfly:m=2", "none", "07 0b 0d 0e 70 b0 d0 e0"),
    ("butterfly:m=3", "none", "17 2b 4d 8e 71 b2 d4 e8"),
    ("butterfly:m=3,causal=1", "none", "01 03 05 0e 11 32 54 e8"),
    ("butterfly", "causal", "01 03 05 0e 11 32 54 e8"))


def lines(text, blocks=8):
    """"03 .." as the lines of a map."""
    return ["".join("01"[int(byte, 16) >> e & 1] for e in range(blocks))
            for byte in text.split()]


class Blocks(Case):
    def printed(self, *args):
        return self.good("explain", "--print-blocks", *args,
                         env=BUILTIN).split()

    def test_golden_layouts(self):
        for block in (16, 64):
            for pattern, kind, text in GOLDEN:
                with self.subTest(pattern=pattern, block=block):
                    self.assertEqual(
                        self.printed("--sparsity", pattern, "--mask", kind,
                                     "--sparsity-block", str(block),
                                     "--seqlen", str(8 * block - 5)),
                        lines(text))
        self.assertEqual(self.printed("--sparsity", "butterfly:m=2",
                                      "--seqlen", "384"),
                         lines("1f 1f 27 3b 3b 3c", 6))

    def test_json_has_the_map(self):
        args = ("--sparsity", "butterfly:m=1", "--seqlen", "512")
        j = self.object("explain", "--print-blocks", *args)
        self.assertEqual(j["blocks"]["map"], self.printed(*args))
        self.assertNotIn("map", self.object("explain", *args)["blocks"])

    def test_heads_differ(self):
        args = ("--sparsity", "fixed:stride=4,vert=1,verts=2", "--seqlen",
                "512")
        one, other = (self.printed(*args, "--head", str(h)) for h in (0, 1))
        self.assertNotEqual(one, other)
        self.assertEqual(one, self.printed(*args, "--head", "2"))
        self.refused("explain", *args, "--print-blocks", "--head", "8",
                     says=("--head", "nearest accepted: 7"))
        self.refused("explain", "--head", "0", says="--print-blocks")

    def test_entries_differ(self):
        args = ("--mask", "expr:k / 64 == b", "--batch", "2", "--seqlen", "128")
        one, other = (self.printed(*args, "--entry", str(b)) for b in (0, 1))
        self.assertEqual((one, other), (["10"] * 2, ["01"] * 2))
        j = self.object("explain", *args, "--entry", "1")
        self.assertEqual(j["blocks"]["entry"], 1)
        self.refused("explain", *args, "--entry", "2",
                     says=("--entry", "nearest accepted: 1"))

    def test_drawn_blocks_are_those_of_the_run(self):
        # With all blocks drawn nothing is left to chance.
        self.assertEqual(self.printed("--sparsity", "ds-bigbird:random=8",
                                      "--seqlen", "500"), ["1" * 8] * 8)
        a = self.printed("--sparsity", "bigbird:seed=3", "--seqlen", "1024")
        b = self.printed("--sparsity", "bigbird:seed=4", "--seqlen", "1024")
        self.assertNotEqual(a, b)
        for i, row in enumerate(a):
            self.assertEqual(row[0], "1")
            self.assertEqual(row[i], "1")

    def test_listed_blocks(self):
        at = self.save("at.npy", np.array([0, 1, 1, 3]))
        index = self.save("index.npy", np.array([2, 1, 0]))
        self.assertEqual(self.printed("--sparsity", f"bsr:{at},{index}",
                                      "--seqlen", "192"),
                         ["001", "000", "110"])

    def counts(self, visible, args):
        """Of a map of blocks and of tiles of 64 rows and keys."""
        nq, nk = visible.shape
        j = self.object("explain", "--seqlen", str(nq), "--seqlen-k", str(nk),
                        "--heads", "3", *args, env=BUILTIN)["blocks"]
        tiles, blocks = ([visible[a:a + n, e:e + n] for a in range(0, nq, n)
                          for e in range(0, nk, n)] for n in (64, j["block"]))
        full, none = sum(t.all() for t in tiles), sum(not t.any()
                                                      for t in tiles)
        self.assertEqual((j["tiles"]["q"], j["tiles"]["k"]), (64, 64))
        self.assertAlmostEqual(j["density"],
                               sum(t.any() for t in blocks) / len(blocks))
        self.assertAlmostEqual(j["pairs"], visible.mean())
        self.assertEqual((j["tiles"]["full"], j["tiles"]["skipped"]),
                         (3 * full, 3 * none))
        return j

    def test_counts_are_exact(self):
        q, k = np.arange(300)[:, None], np.arange(420)[None, :]
        doc = np.sort(np.random.default_rng().integers(0, 6, 420))
        file = self.save("doc.npy", doc)
        j = self.counts(k <= q, ["--mask", "expr:k <= q"])
        self.assertGreater(j["speedup"], 1)
        self.assertGreater(j["balance"], 1)
        self.counts(mask(300, 420, "causal") & (abs(q // 64 - k // 64) <= 1),
                    ["--mask", "causal", "--sparsity",
                     "longformer:global=0"])
        self.counts(doc[None, :] == doc[:300, None],
                    ["--mask", "expr:doc[q] == doc[k]", "--tensor",
                     "doc=" + file])
        self.counts((q - k) % 5 == 0, ["--mask", "expr:(q - k) % 5 == 0"])

    def test_waiting_is_what_order_and_splits_leave(self):
        def wait(cores, pins=""):
            args = ("--tile", pins) if pins else ()
            return self.object(
                "explain", "--target", f"avx512@cores={cores}", "--sparsity",
                "longformer", "--heads", "1", "--seqlen", "16384",
                *args)["blocks"]["wait"]
        # Two cores do not wait for the item with the global rows, 64 do.
        self.assertLess(wait(2), 1.05)
        whole, split = wait(64, "split_k=0,block_q=384"), wait(64)
        self.assertGreater(whole, 10)
        self.assertLess(split, 2)

    def test_gflops_count_the_pairs_that_see(self):
        j = self.object("run", "--seqlen", "200", "--heads", "2", "--mask",
                        "expr:k % 4 == 0 && k <= q", "--head-dim", "16",
                        env=BUILTIN)
        pairs = 2 * sum(q // 4 + 1 for q in range(200))
        self.assertAlmostEqual(
            j["gflops"] * j["time_ms"]["median"] * 1e6 / (64 * pairs), 1,
            places=5)

    def test_text_and_picture(self):
        file = self.path("a.svg")
        text = self.good("explain", "--sparsity", "butterfly:m=1", "--seqlen",
                         "512", "--mask", "causal", "--svg", file, env=BUILTIN)
        for words in ("+.......\n#+......\n..+.....", "% kept", "speed-up",
                      "the longest item"):
            self.assertIn(words, text)
        root = ElementTree.parse(file).getroot()
        self.assertEqual(root.get("viewBox"), "0 0 8 8")
        self.refused("explain", "--sparsity", "butterfly", "--svg",
                     self.path("none/a.svg"), rc=4, says="none/")

    def test_a_mask_without_its_tensors_is_not_drawn(self):
        args = ("--mask", "expr:i32 doc[:]; doc[k] == 0")
        self.assertIn("not drawn", self.good("explain", *args, env=BUILTIN))
        self.refused("explain", *args, "--print-blocks", env=BUILTIN,
                     says="--tensor doc=FILE.npy")


if __name__ == "__main__":
    unittest.main()
