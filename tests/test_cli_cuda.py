# SPDX-License-Identifier: Apache-2.0
"""The command for chips this machine does not have: explain, emit to cubin and
PTX, devices."""
import hashlib
import json
import os
import shutil
import subprocess
import unittest

from _cli import Case

CHIPS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")


class Explain(Case):
    def explain(self, target, *more):
        return self.object("explain", "--target", target, "--dtype", "f16",
                           "--head-dim", "128", "--batch", "4", "--heads",
                           "16", "--seqlen", "4096", *more)

    def test_why_tiles_differ_between_chips(self):
        t4, h200 = (self.explain(x)["steps"][0] for x in ("T4", "H200"))
        self.assertNotEqual(t4["tile"], h200["tile"])
        # A Turing SM reads half as much shared memory in a cycle.
        self.assertEqual(t4["model"]["bound"], "smem")
        self.assertEqual(h200["model"]["bound"], "tensor")
        self.assertEqual(h200["tile"]["rows"], 32)
        self.assertLessEqual(t4["model"]["sram_footprint"], 64 * 1024)
        self.assertGreater(h200["model"]["sram_footprint"], 64 * 1024)
        why = {r["why"] for r in t4["rejected"]}
        self.assertTrue(any("of SRAM, a block has 65536" in w for w in why))
        self.assertTrue(any("registers a thread" in w for w in why))
        # What the H200 takes is among them, with the reason.
        def same(tile):
            return all(tile[k] == h200["tile"][k] for k in
                       ("block_q", "block_k", "rows", "q_regs", "blocks"))
        why = [r["why"] for r in t4["rejected"] if same(r["tile"])]
        self.assertTrue(why and "of SRAM, a block has 65536" in why[0], why)

    def test_what_people_read(self):
        text = self.good("explain", "--target", "T4", "--dtype", "f16")
        for words in ("T4 (sm_75, 40 SMs)", "mma.sync m16n8k8, no cp.async",
                      "SRAM reads", "registers each", "rejected",
                      "would take"):
            self.assertIn(words, text)

    def test_figures_decide(self):
        one = self.explain("A100")["steps"][0]["model"]
        two = self.explain("A100@sram_width=64")["steps"][0]["model"]
        self.assertGreater(two["time_ms"], one["time_ms"])
        self.assertEqual(two["bound"], "smem")

    def test_families(self):
        for target, dtype, family in (("T4", "bf16", "fma_fwd"),
                                      ("A100", "bf16", "mma_fwd"),
                                      ("A100", "f32", "fma_fwd")):
            j = self.object("explain", "--target", target, "--dtype", dtype)
            self.assertEqual(j["target"], "cuda")
            self.assertEqual(j["steps"][0]["tile"]["family"], family)

    def test_decoding_is_split(self):
        j = self.object("explain", "--target", "H100", "--dtype", "f16",
                        "--seqlen", "1", "--seqlen-k", "65536")
        self.assertEqual([s["role"] for s in j["steps"]],
                         ["fwd_split", "combine"])


class Backward(Case):
    def test_explain_ranks_the_ways_to_sum_dq(self):
        flags = ("--target", "sm_80", "--dtype", "f16", "--pass", "bwd")
        ways = self.object("explain", *flags)["dq"]
        self.assertEqual([w["dq"] for w in ways], [0, 1, 2, 3])
        self.assertGreater(ways[0]["time_ms"], 0)
        self.assertIn("max_seqlen", ways[1]["why"])
        self.assertGreater(ways[2]["time_ms"], 0)
        self.assertIn("deterministic", ways[3]["why"])
        text = self.good("explain", *flags, "--deterministic", "0")
        self.assertRegex(text, r"dq=3 the same, in any order: \d")


class Emit(Case):
    def emit(self, target, *more, **kw):
        return self.object("emit", "--target", target, "--dtype", "f16",
                           "--head-dim", "32", "-o", self.path("out"), *more,
                           **kw)

    def nvrtc(self):
        j = self.object("devices")["nvrtc"]
        if not j["found"]:
            self.skipTest("no NVRTC in " + j["looked_in"])
        return j

    def test_a_source_needs_no_compiler(self):
        j = self.emit("sm_86")
        self.assertEqual(j["target"], "cuda")
        name = j["files"][0]["name"]
        self.assertTrue(name.endswith(".cu"))
        text = self.read(os.path.join(self.path("out"), name)).decode()
        self.assertIn("#define ARCH 860", text)
        self.assertNotIn("#include", text)
        step = j["steps"][0]
        self.assertEqual(step["threads"], 32 * step["tile"]["warps"])
        self.assertGreater(step["smem_bytes"], 0)

    def test_files_are_named_after_the_plan(self):
        j = self.emit("sm_86", "--pass", "bwd")
        self.assertRegex(j["files"][0]["name"],
                         r"^attn_bwd_f16_d32_none__sm_86_\d+x\d+\.cu$")

    def test_a_cubin_for_every_chip(self):
        newest = self.nvrtc()["newest"]
        for chip in CHIPS:
            if int(chip[3:].rstrip("a")) > newest:
                continue
            with self.subTest(chip=chip):
                j = self.emit(chip, "--cubin")
                f = j["files"][1]
                data = self.read(os.path.join(self.path("out"), f["name"]))
                self.assertEqual(data[:4], b"\x7fELF")
                self.assertEqual(hashlib.sha256(data).hexdigest(), f["sha256"])
                self.assertIn("NVRTC", f["compiler"])
                step = j["steps"][0]
                self.assertGreater(step["registers"], 16)
                self.assertEqual(step["spill_bytes"], 0)
                self.assertIn(step["entry"].encode(), data)

    def test_ptx(self):
        self.nvrtc()
        j = self.emit("sm_89", "--ptx")
        text = self.read(os.path.join(self.path("out"), j["files"][1]["name"]))
        self.assertIn(b".target sm_89", text)
        manifest = json.loads(self.read(os.path.join(self.path("out"),
                                                     "manifest.json")))
        self.assertEqual(manifest["files"], j["files"])

    def test_forms_that_do_not_fit(self):
        for target, flag, says in (("sm_86", "--obj", "--cubin, --ptx"),
                                   ("avx2", "--cubin", "--obj"),
                                   ("emu:sm_80", "--ptx", "--obj")):
            self.refused("emit", "--target", target, flag, "-o",
                         self.path("out"), says=(flag, says))
            self.assertFalse(os.path.exists(self.path("out")))


class FakeGpu(Case):
    """A driver that takes everything and computes nothing."""

    def setUp(self):
        super().setUp()
        source = os.path.join(os.environ["SOURCE"], "tests/fake/cuda.c")
        cc = shutil.which("cc")
        if not cc:
            self.skipTest("no cc to build the fake driver with")
        subprocess.run([cc, "-shared", "-fPIC", "-o",
                        self.path("libcuda.so.1"), source], check=True)
        self.env = dict(LD_LIBRARY_PATH=self.dir, FAKE_H200="1")
        if not self.object("devices")["nvrtc"]["found"]:
            self.skipTest("no NVRTC")

    def test_run_goes_to_the_gpu_and_nowhere_else(self):
        args = ("run", "--target", "cuda", "--dtype", "f16", "--seqlen", "64",
                "--head-dim", "32")
        j = self.object(*args, env=self.env)
        self.assertEqual((j["target"], j["device"]), ("cuda", "H200"))
        self.assertEqual(j["time_ms"]["median"], 0.5)  # of its events
        # O stays as poisoned: no CPU has helped out.
        self.good(*args, "--check", rc=1, env=self.env)

    def test_decoding_has_a_workspace_there(self):
        j = self.object("run", "--target", "cuda:0", "--dtype", "f16",
                        "--seqlen", "1", "--seqlen-k", "20000", "--mask",
                        "causal", "--lens-k", "15000", env=self.env)
        self.assertEqual(len(j["steps"]), 2)
        self.assertGreater(j["workspace_bytes"], 0)

    def test_vectors_of_primitives_are_recorded(self):
        recorder = os.path.join(os.environ["BUILD"], "tests/record_vectors")
        p = subprocess.run([recorder, "cuda", self.path("v.json")], text=True,
                           env=dict(os.environ, **self.env),
                           capture_output=True)
        self.assertEqual(p.returncode, 0, p.stderr)
        j = json.loads(self.read(self.path("v.json")))
        self.assertEqual((j["chip"], j["arch"]), ("H200", "sm_90a"))
        self.assertEqual(len(j["vectors"]["mma_m16n8k16_f16 F16_REAL"]), 4)

    def test_the_gpu_is_told(self):
        j = self.object("devices", env=self.env)
        self.assertEqual([(g["name"], g["arch"]) for g in j["gpus"]],
                         [("H200", "sm_90a")])
        self.assertIn("H200", self.good("devices", env=self.env))
        self.refused("run", "--target", "cuda:1", env=self.env,
                     says=("GPU 1", "has 1"))

    def test_auto_is_the_first_gpu(self):
        j = self.object("devices", env=self.env)
        self.assertEqual(j["auto"], "cuda")
        self.assertNotEqual(j["machine"]["arch"], "sm_90a") # this CPU
        for verb in ("run", "explain"):
            j = self.object(verb, "--dtype", "f16", "--seqlen", "64",
                            "--head-dim", "32", env=self.env)
            self.assertEqual((j["target"], j["device"]), ("cuda", "H200"))
        j = self.object("explain", "--target", "cpu", env=self.env)
        self.assertEqual(j["target"], "cpu")

    def test_a_gpu_too_old_is_told_and_not_taken(self):
        env = dict(self.env, FAKE_MAJOR="7")
        j = self.object("devices", env=env)
        self.assertEqual((j["auto"], j["gpus"]), ("cpu", []))
        self.assertIn("accepted: 7.5 and newer", j["no_gpu"])
        self.assertEqual(self.object("explain", env=env)["target"], "cpu")
        self.refused("run", "--target", "cuda", env=env, says="7.5")

    def test_a_chip_that_is_not_here(self):
        self.refused("run", "--target", "T4", "--dtype", "f16", "--seqlen",
                     "64", rc=3, env=self.env, says="no GPU")


class Devices(Case):
    def test_what_was_found_and_where_it_was_looked_for(self):
        j = self.object("devices")
        text = self.good("devices")
        self.assertIn("NVIDIA GPUs", text)
        if not j["gpus"]:
            self.assertIn(j["no_gpu"], text)
            self.assertIn("auto means this CPU", text)
            self.assertEqual(j["auto"], "cpu")
        self.assertIn("NVRTC", text)
        if j["nvrtc"]["found"]:
            self.assertIn(j["nvrtc"]["path"], text)

    def test_a_gpu_that_is_not_here(self):
        if not self.object("devices")["gpus"]:
            for verb in ("run", "explain"):
                self.refused(verb, "--target", "cuda", rc=3, says="driver")


if __name__ == "__main__":
    unittest.main()
