# SPDX-License-Identifier: Apache-2.0
"""attnc run on emulated devices: checked results, the report of what each
template line cost, faults told with their line, refusals."""
import os
import shutil
import unittest

from _cli import Case
import _attnc

RUN = ("run", "--dtype", "f16", "--heads", "2", "--seqlen", "128")
HAVE_CLANG = shutil.which("clang")


@unittest.skipUnless(HAVE_CLANG, "no clang to compile emulated kernels with")
class Emulated(Case):
    def test_every_chip_checks_and_is_named(self):
        for arch in ("sm_75", "sm_80", "sm_89", "sm_120"):
            j = self.object(*RUN, "--target", "emu:" + arch, "--check",
                            "--mask", "causal")
            self.assertEqual(j["target"], "emulated")
            self.assertTrue(j["check"]["ok"], j)
            self.assertNotIn("emulated", j["steps"][0])
        self.assertIn("of the emulation",
                      self.good(*RUN, "--target", "emu:sm_75"))

    def test_the_report_is_for_people(self):
        text = self.good(*RUN, "--target", "emu:sm_80", "--emu-report",
                         "--check")
        table = text[text.index("counted"):]
        self.assertRegex(table, r"counted   fwd: [\d.]+ Mflop by mma; DRAM")
        self.assertRegex(table, r"\n    stage/qk:\d+ +ldmatrix +[\d.]+ K? +")
        self.assertRegex(table, r"\n    all +[\d.]+ K +1\.00 ")
        for line in table.splitlines():
            self.assertLessEqual(len(line), 80, line)
            self.assertEqual(line, line.rstrip())

    def check_counts(self, counts, dim, tile, model):
        """128 rows and keys, whole tiles of them, in each of 2 heads; no bank
        conflict; what the model says of DRAM; each line where it stands."""
        rows, keys = (-(-128 // tile[x]) * tile[x]
                      for x in ("block_q", "block_k"))
        self.assertEqual(counts["mma_flops"], 2 * 4 * dim * rows * keys)
        self.assertEqual(counts["waves"], counts["ideal"])
        self.assertLess(abs(counts["dram_bytes"] - model), 0.02 * model)
        classes = set()
        for row in counts["lines"]:
            classes.add(row["class"])
            text = self.read(os.path.join(_attnc.SOURCE, "templates",
                                          row["template"])).decode()
            self.assertLessEqual(row["line"], text.count("\n"))
            self.assertEqual(row["waves"], row["ideal"], row)
        self.assertTrue({"mma", "ldmatrix", "sync", "shfl"} <= classes)
        total = sum(r["dram_bytes"] for r in counts["lines"])
        self.assertEqual(total, counts["dram_bytes"])

    def test_no_bank_conflict_in_the_tile_that_is_picked(self):
        for arch in ("sm_75", "sm_80"):
            for dim in (64, 80, 96, 128):
                j = self.object(*RUN, "--head-dim", str(dim), "--target",
                                "emu:" + arch, "--emu-report")
                with self.subTest(arch=arch, dim=dim):
                    step = j["steps"][0]
                    self.check_counts(step["emulated"], dim, step["tile"],
                                      step["model"]["dram_bytes"])

    def test_each_step_has_its_report(self):
        j = self.object("run", "--dtype", "f16", "--seqlen", "1", "--seqlen-k",
                        "3000", "--heads", "1", "--batch-invariant", "1",
                        "--target", "emu:sm_80", "--emu-report")
        self.assertEqual([s["role"] for s in j["steps"]],
                         ["fwd_split", "combine"])
        self.assertGreater(j["steps"][0]["emulated"]["mma_flops"], 0)
        self.assertEqual(j["steps"][1]["emulated"]["mma_flops"], 0)

    def test_a_fault_is_one_line_with_its_place(self):
        templates = self.path("templates")
        shutil.copytree(os.path.join(_attnc.SOURCE, "templates"), templates)
        stage = os.path.join(templates, "cuda/stage/store.cu.in")
        with open(stage) as f:
            text = f.read()
        with open(stage, "w") as f:
            f.write(text.replace("(i32)row < w->count", "1"))
        env = dict(ATTNC_TEMPLATES=templates)
        for more in ((), ("--emu-report",)):
            p = _attnc.attnc("run", "--dtype", "f16", "--heads", "1",
                             "--seqlen", "100", "--target", "emu:sm_80",
                             *more, env=env)
            self.assertEqual((p.returncode, p.stdout), (4, ""), p.stderr)
            self.assertEqual(p.stderr.count("\n"), 1, p.stderr)
            self.assertRegex(p.stderr, r"cuda/stage/save_chunk.cu.in:\d+: "
                             r"access out of bounds: 16 bytes, ")


    def test_all_faults_are_kept(self):
        templates = self.path("templates")
        shutil.copytree(os.path.join(_attnc.SOURCE, "templates"), templates)
        stage = os.path.join(templates, "cuda/stage/team.cu.in")
        with open(stage) as f:
            text = f.read()
        with open(stage, "w") as f:
            f.write(text.replace("block_sync();", "(void)0;"))
        said = self.refused("run", "--dtype", "f16", "--heads", "1",
                            "--seqlen", "200", "--target", "emu:sm_80", rc=4,
                            env=dict(ATTNC_TEMPLATES=templates,
                                     TMPDIR=self.dir),
                            says="; more faults are kept in ")
        kept = self.read(said.split()[-1]).decode()
        self.assertRegex(kept, r"cuda/stage/\w+.cu.in:\d+")


class Refused(Case):
    def test_what_is_not_emulated_has_no_report(self):
        self.refused("run", "--target", "portable", "--emu-report",
                     says=("--emu-report", "nearest: --target emu:sm_80"))
        self.refused("explain", "--emu-report", says="no option of")

    def test_without_clang(self):
        self.refused(*RUN, "--target", "emu:sm_80", rc=3,
                     env={"ATTNC_COMPILERS": "gcc", "ATTNC_CACHE_DIR": ""},
                     says="needs clang")


if __name__ == "__main__":
    unittest.main()
