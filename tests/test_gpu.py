# SPDX-License-Identifier: Apache-2.0
"""./run gpu without a GPU: its scripts on the CPU, on an emulated device, on a
driver that computes nothing, and where there is nothing at all."""
import json
import os
import shutil
import subprocess
import sys
import unittest

import _attnc
from _cli import Case

GPU = os.path.join(_attnc.SOURCE, "tests/gpu/gpu.py")
SMALL = '{"lengths": [33, 40], "heads": [2, 1], "head_dim": 32}'


class Gpu(Case):
    def run_gpu(self, *args, rc, **env):
        p = subprocess.run([sys.executable, "-B", GPU, "--out", self.dir,
                            "--small", *args], text=True,
                           stdin=subprocess.DEVNULL, capture_output=True,
                           env={**os.environ, **env})
        self.assertEqual(p.returncode, rc, p.stdout + p.stderr)
        return p

    def results(self):
        return json.loads(self.read(self.path("gpu.json")))["sections"]

    def check_training(self, lines, who):
        for w in who:
            self.assertEqual(sum(x.get("who") == w and x.get("tflops", 0) > 0
                                 for x in lines), 2, w)
        told = [x.get("what") for x in lines]
        for what in ("dq apart", "dq in order", "dq in any order",
                     "cost of dropout", "memory"):
            self.assertEqual(told.count(what), 1, what)
        for x in lines:
            if x.get("what") == "memory": # 16 x 8 rows of 16, as they are
                least = 16 * 8 * 16 * (8 * 64 * 2 + 4 + 8) / 2**20
                self.assertGreaterEqual(x["counted_mib"], least)
                self.assertGreaterEqual(x.get("measured_mib", least), least)

    def test_training_on_an_emulated_device(self):
        self.run_gpu("--host", "--target", "emu:sm_80", "--sections",
                     "training", "--limit", "100", rc=0)
        s = self.results()["training"]
        self.assertEqual(s["state"], "done")
        self.check_training(s["lines"], who=("attnc",))
        costs = [x for x in s["lines"]
                 if x.get("what") == "cost of determinism"]
        self.assertEqual(len(costs), 1)
        tiles = {x["what"]: x["tile"] for x in s["lines"]
                 if x.get("what", "").startswith("dq ")}
        for way, dq in (("apart", 0), ("in order", 2), ("in any order", 3)):
            self.assertRegex(tiles["dq " + way], rf"dq={dq}\b")

    def test_the_whole_of_it_on_this_cpu(self):
        p = self.run_gpu("--host", "--target", "cpu", "--limit", "60",
                         "--most", "6", "--only", SMALL, rc=0)
        s = self.results()
        self.assertEqual(list(s), ["device", "correct", "prims", "timing",
                                   "training", "sparse", "extras"])
        self.assertEqual({x["state"] for x in s.values()}, {"done"})
        self.assertEqual([x["ok"] for x in s["correct"]["lines"]], [True] * 6)
        timed = [x for x in s["timing"]["lines"] if "who" in x]
        self.assertEqual(len(timed), 4)
        for x in timed:
            self.assertGreater(x["tflops"], 0)
        sparse = [x for x in s["sparse"]["lines"] if "who" in x]
        self.assertEqual([x.get("why") for x in sparse], [None] * 5)
        self.check_training(s["training"]["lines"], who=("attnc",))
        extras = s["extras"]["lines"]
        self.assertEqual(sum(x["what"] == "compile" for x in extras), 2)
        for x in extras:
            if x["what"] == "first pick of the best":
                self.assertTrue(0 < x["share"] <= 1)
        self.assertIn("correct: 6 of 6", p.stdout)

    def test_its_way_through_pytorch(self):
        if not shutil.which("cc"):
            self.skipTest("no cc for the fake driver")
        fake = os.path.join(_attnc.SOURCE, "tests/fake")
        subprocess.run(["cc", "-shared", "-fPIC", "-o",
                        self.path("libcuda.so.1"), fake + "/cuda.c"],
                       check=True)
        p = self.run_gpu("--target", "cpu", "--limit", "60", "--most", "4",
                         "--only", SMALL, rc=0, LD_LIBRARY_PATH=self.dir,
                         PYTHONPATH=fake, FAKE_H200="1")
        s = self.results()
        self.assertEqual({x["state"] for x in s.values()}, {"done"})
        timed = [x for x in s["timing"]["lines"] if "who" in x]
        for who in ("attnc", "flash", "cudnn", "math", "flex"):
            self.assertEqual(sum(x["who"] == who and "ms" in x
                                 for x in timed), 4, who)
        for x in timed:
            if x["who"] == "attnc":
                self.assertLess(x["distance_to_flash"], 2e-3)
            if x["who"] == "efficient":
                self.assertIn("No available kernel", x["why"])
        self.check_training(s["training"]["lines"],
                            who=("attnc", "flash", "cudnn", "math"))
        graphs = [x for x in s["extras"]["lines"] if x["what"] == "graph"]
        self.assertEqual(len(graphs), 1)
        self.assertEqual(p.stdout.count("of flash"), 6)

    def test_correctness_on_an_emulated_device(self):
        for way, most in (("fwd", 5), ("bwd", 2)):
            only = json.dumps({**json.loads(SMALL), "pass": way})
            self.run_gpu("--host", "--target", "emu:sm_80", "--sections",
                         "correct", "--most", str(most), "--only", only, rc=0)
            lines = self.results()["correct"]["lines"]
            self.assertEqual([x["ok"] for x in lines], [True] * most)

    def test_gradients_and_dropout_on_this_cpu(self):
        only = json.dumps({"pass": "bwd", "dropout": 0.2, "head_dim": 24,
                           "heads": [4, 2], "lengths": [20, 37],
                           "lens": "varlen", "score": "sink"})
        self.run_gpu("--host", "--target", "cpu", "--sections", "correct",
                     "--most", "2", "--only", only, rc=0)
        for x in self.results()["correct"]["lines"]:
            self.assertTrue(x["ok"])
            self.assertEqual(set(x["errors"]), {"dq", "dk", "dv", "dsink"})

    def test_what_fails_is_told_and_loses_nothing(self):
        source = os.path.join(_attnc.SOURCE, "tests/fake/cuda.c")
        if not shutil.which("cc") or \
                not self.object("devices")["nvrtc"]["found"]:
            self.skipTest("no cc for the fake driver, or no NVRTC")
        subprocess.run(["cc", "-shared", "-fPIC", "-o",
                        self.path("libcuda.so.1"), source], check=True)
        self.run_gpu("--host", "--limit", "60", "--most", "2", "--only", SMALL,
                     "--sections", "correct,timing,extras", rc=1,
                     LD_LIBRARY_PATH=self.dir, FAKE_H200="1")
        s = self.results()
        self.assertEqual({x["state"] for x in s.values()}, {"done"})
        for x in s["correct"]["lines"]:
            self.assertIn("not memory of the GPU", x["why"])
        self.assertEqual(sum("why" in x for x in s["timing"]["lines"]), 4)
        told = {x["what"] for x in s["extras"]["lines"]}
        self.assertLessEqual({"graph", "compile", "time candidates"}, told)

    def test_a_section_that_dies_is_told(self):
        self.run_gpu("--host", "--target", "cpu", "--limit", "20",
                     "--sections", "device,correct", rc=1,
                     LIBATTNC="/no/such/library.so")
        s = self.results()
        for name in ("device", "correct"):
            self.assertEqual(s[name]["state"], "ended with 1")
            self.assertIn("/no/such/library.so", s[name]["stderr"])

    def test_the_clock_ends_it(self):
        self.run_gpu("--host", "--target", "cpu", "--limit", "1", rc=1)
        self.assertEqual(self.results()["timing"]["state"],
                         "ended with no time left")

    def test_calls_that_make_no_sense(self):
        p = self.run_gpu("--host", "--sections", "corect", rc=2)
        self.assertIn("'corect'; there are device, correct", p.stderr)

    def test_without_a_gpu_there_is_one_line(self):
        if not self.object("devices")["no_gpu"]:
            self.skipTest("there is a GPU")
        p = subprocess.run(["./run", "gpu"], cwd=_attnc.SOURCE, text=True,
                           stdin=subprocess.DEVNULL, capture_output=True)
        self.assertEqual((p.returncode, p.stdout), (3, ""))
        self.assertEqual(p.stderr.count("\n"), 1)
        self.assertTrue(p.stderr.startswith("gpu: no NVIDIA driver here"))


if __name__ == "__main__":
    _attnc.library() # skips, or starts anew, under a sanitizer
    unittest.main()
