# SPDX-License-Identifier: Apache-2.0
"""What scripts rely on: keys and their order, exact counts, files, --help,
exit codes, and that stdout is whole or the exit status says so."""
import hashlib
import json
import os
import re
import shutil
import subprocess
import unittest

import numpy as np

import _attnc
from _cli import Case, mask

BUILTIN = {"ATTNC_COMPILERS": ""}
SPEC = ["pass", "dtype", "f32_math", "head_dim", "head_dim_v", "mask", "lens_k",
        "varlen", "softcap", "alibi", "sink", "deterministic",
        "batch_invariant", "dropout", "bias", "tensor_grads", "mask_program",
        "score_program", "sparsity"]
VERBS = ("run", "explain", "emit", "devices", "cache")


class Run(Case):
    def test_keys_and_their_order(self):
        j = self.object("run", "--seqlen", 64, "--check", "--repeat", 3)
        self.assertEqual(list(j), ["target", "device", "spec", "shape", "steps",
                                   "compile", "workspace_bytes", "time_ms",
                                   "gflops", "check"])
        self.assertEqual(list(j["spec"]), SPEC)
        self.assertEqual(list(j["shape"])[:5], ["batch", "heads", "kv_heads",
                                                "seqlen_q", "seqlen_k"])
        step = j["steps"][0]
        self.assertEqual(list(step), ["role", "tile", "cache", "compile_ms",
                                      "model"])
        tile = list(step["tile"])
        self.assertEqual((tile[0], tile[-1]), ("family", "from"))
        self.assertIn("block_q", tile)
        self.assertIn(step["tile"]["from"], ("pin", "table", "model", "safe"))
        self.assertEqual(list(step["model"]), ["dram_bytes", "time_ms",
                                               "bound"])
        self.assertEqual(list(j["compile"]), ["cache", "ms", "compiler"])
        self.assertEqual(list(j["time_ms"]), ["min", "median", "max", "runs"])
        t = j["time_ms"]
        self.assertTrue(0 < t["min"] <= t["median"] <= t["max"])
        self.assertEqual((t["runs"], j["target"]), (3, "cpu"))
        check = j["check"]
        self.assertEqual(list(check), ["ok", "coverage", "rel_err",
                                       "unfused_rel_err"])
        self.assertEqual(list(check["rel_err"]), ["o", "lse"])
        self.assertEqual(list(check["unfused_rel_err"]), ["o", "lse"])
        self.assertIs(check["ok"], True)
        self.assertEqual(check["coverage"], 1.0)

    def test_no_check_no_key(self):
        j = self.object("run", "--seqlen", 16, env=BUILTIN)
        self.assertNotIn("check", j)
        self.assertEqual(j["compile"]["compiler"], "builtin")

    def test_second_run_is_a_cache_hit(self):
        env = {"ATTNC_CACHE_DIR": self.path("cache")}
        args = ("run", "--seqlen", 64, "--head-dim", 24)
        first, second = (self.object(*args, env=env) for _ in range(2))
        for j, origin in ((first, "miss"), (second, "disk")):
            self.assertEqual(j["compile"]["cache"], origin)
            self.assertEqual(j["steps"][0]["cache"], origin)
        self.assertGreater(first["steps"][0]["compile_ms"], 0)
        self.assertEqual(second["steps"][0]["compile_ms"], 0)
        self.assertEqual(first["compile"]["compiler"],
                         second["compile"]["compiler"])
        j = self.object(*args, env=dict(env, ATTNC_NO_COMPILE="1"))
        self.assertEqual(j["compile"]["cache"], "disk")

    def test_pinned_tile(self):
        j = self.object("run", "--seqlen", 64, "--tile", "block_k=64")
        self.assertEqual(j["steps"][0]["tile"]["block_k"], 64)
        self.assertEqual(j["steps"][0]["tile"]["from"], "pin")

    def pairs(self, *args):
        j = self.object("run", "--head-dim", 3, "--head-dim-v", 5, *args,
                        env=BUILTIN)
        return round(j["gflops"] * 1e6 * j["time_ms"]["median"] / (2 * 8))

    def test_flops_count_visible_pairs(self):
        def dense(nq, nk, *m, off=None, keys=None):
            there = mask(nq, nk, *m, off=off)
            return there[:, :nk if keys is None else keys].sum()
        size = ("--batch", 2, "--heads", 3, "--seqlen", 70, "--seqlen-k", 90)
        for text, m, off in (("none", ("none",), None),
                             ("causal", ("causal",), None),
                             ("causal:-50", ("causal",), -50),
                             ("window:9,4", ("window", 9, 4), None),
                             ("window:inf,0,5", ("window", 1e9, 0), 5),
                             ("window:3,inf", ("window", 3, 1e9), None),
                             ("prefix:30", ("prefix", 30), None),
                             ("prefix:999,-99", ("prefix", 999), -99)):
            with self.subTest(mask=text):
                n = self.pairs(*size, "--mask", text)
                self.assertEqual(n, 6 * dense(70, 90, *m, off=off))
        n = self.pairs(*size, "--mask", "causal", "--lens-k", "80,10")
        self.assertEqual(n, 3 * sum(dense(70, 90, "causal", keys=k)
                                    for k in (80, 10)))
        n = self.pairs(*size, "--mask", "causal:len", "--lens-k", "80,10")
        self.assertEqual(n, 3 * sum(dense(70, 90, "causal", keys=k, off=k - 70)
                                    for k in (80, 10)))
        n = self.pairs("--heads", 2, "--mask", "causal", "--cu-seqlens-q",
                       "0,5,5,25", "--cu-seqlens-k", "0,9,12,22")
        self.assertEqual(n, 2 * sum(dense(a, b, "causal")
                                    for a, b in ((5, 9), (0, 3), (20, 10))))

    def test_same_seed_same_data(self):
        def o(*args):
            self.good("run", "--seqlen", 33, "--out", self.dir, *args,
                      env=BUILTIN)
            return self.read(self.path("o.npy"))
        self.assertEqual(o(), o("--data-seed", 0))
        self.assertNotEqual(o(), o("--data-seed", 1))
        self.assertEqual(o("--data-seed", 7), o("--data-seed", 7))

    def test_failed_check_is_exit_1(self):
        templates, wrong = self.path("templates"), 0
        shutil.copytree(os.path.join(_attnc.SOURCE, "templates"), templates)
        for root, _, files in os.walk(templates):
            for name in files:
                path = os.path.join(root, name)
                text = self.read(path)
                bad = text.replace(b"0.6931471805599453", b"0.7")  # ln 2
                wrong += text != bad
                with open(path, "wb") as f:
                    f.write(bad)
        self.assertGreater(wrong, 0)
        env = {"ATTNC_TEMPLATES": templates}
        j = self.object("run", "--seqlen", 64, "--check", rc=1, env=env)
        self.assertIs(j["check"]["ok"], False)
        self.assertIn("lse", j["check"]["why"])
        text = self.good("run", "--seqlen", 64, "--check", rc=1, env=env)
        self.assertIn("check     FAILED", text)

    def test_infinite_inputs_are_no_failure(self):
        x = np.zeros((1, 1, 4, 8))
        x[0, 0, 1, 2] = 1e308  # infinity in f32: NaN in O, as in f64
        self.good("run", "--q", self.save("q.npy", x), "--seqlen-k", 4,
                  "--check", env=BUILTIN)

    def test_text_says_what_ran(self):
        text = self.good("run", "--seqlen", 64, "--check", "--out", self.dir)
        for word in ("attention", "machine", "tile", "kernel", "time", "speed",
                     "GFLOP/s", "check     ok", "o.npy"):
            self.assertIn(word, text)

    def test_results_load_in_numpy(self):
        self.good("run", "--batch", 2, "--heads", 6, "--kv-heads", 3,
                  "--seqlen", 7, "--head-dim-v", 5, "--layout", "bnhd",
                  "-o", self.path("deep"), env=BUILTIN)
        o, lse = (np.load(self.path("deep/" + n)) for n in ("o.npy", "lse.npy"))
        self.assertEqual((o.shape, lse.shape), ((2, 7, 6, 5), (2, 6, 7)))
        self.assertTrue(o.flags.c_contiguous and o.dtype == np.float32)
        self.assertEqual(sorted(os.listdir(self.path("deep"))),
                         ["lse.npy", "o.npy"])


class Explain(Case):
    def test_keys(self):
        j = self.object("explain", "--mask", "causal", "--seqlen", 4096)
        self.assertEqual(list(j), ["target", "device", "spec", "shape", "steps",
                                   "compile", "machine", "plan"])
        s = j["steps"][0]
        self.assertTrue(s["candidates"] and s["rejected"])
        self.assertLessEqual(len(s["candidates"]), 8)
        self.assertEqual(s["candidates"][0]["tile"]["block_q"],
                         s["tile"]["block_q"])
        times = [c["model"]["time_ms"] for c in s["candidates"]]
        self.assertEqual(times, sorted(times))
        self.assertTrue(all(r["why"] for r in s["rejected"]))
        for c in s["candidates"]:
            self.assertIn(c["model"]["bound"],
                          ("compute", "dram", "sram", "waves"))

    def test_other_targets_and_their_figures(self):
        for target in ("avx512", "avx512bf16", "neon", "portable", "avx2"):
            j = self.object("explain", "--target",
                            target + "@cores=5,dram_gbs=77")
            self.assertEqual((j["machine"]["arch"], j["machine"]["cores"],
                              j["machine"]["dram_gbs"]), (target, 5, 77))
        small, large = (self.object("explain", "--seqlen", 8192, "--target",
                                    f"avx2@sram_bytes={n}")
                        ["steps"][0]["tile"]["block_q"]
                        for n in (65536, 4 << 20))
        self.assertLess(small, large)

    def test_it_compiles_nothing(self):
        cache = self.path("cache")
        j = self.object("explain", env={"ATTNC_CACHE_DIR": cache})
        self.assertEqual(j["compile"]["cache"], "miss")
        entries = self.object("cache", "stat", env={"ATTNC_CACHE_DIR": cache})
        self.assertEqual(entries["entries"], 0)
        j = self.object("explain", env=BUILTIN)
        self.assertEqual(j["compile"]["compiler"], "builtin")
        self.assertEqual(j["steps"][0]["tile"]["family"], "builtin")

    def test_the_tile_explained_is_the_tile_run(self):
        args = ("--seqlen", 500, "--head-dim", 40, "--mask", "causal")
        a, b = (self.object(v, *args) for v in ("explain", "run"))
        self.assertEqual(a["steps"][0]["tile"], b["steps"][0]["tile"])
        c = self.object("explain", *args)
        self.assertEqual(c["compile"]["cache"], "disk")

    def test_text(self):
        text = self.good("explain", "--mask", "causal")
        for word in ("attention", "machine", "SRAM", "bound", "rejected",
                     "block_q", "plan as text", "spec pass=fwd"):
            self.assertIn(word, text)
        self.assertIn("compiler: builtin", self.good("explain", env=BUILTIN))


class Emit(Case):
    def test_files_are_what_the_manifest_says(self):
        j = self.object("emit", "-o", self.path("e"), "--obj", "--head-dim", 8)
        with open(self.path("e/manifest.json")) as f:
            self.assertEqual(json.load(f), j)
        self.assertEqual(sorted(os.listdir(self.path("e"))),
                         sorted([f["name"] for f in j["files"]] +
                                ["manifest.json"]))
        for f in j["files"]:
            data = self.read(self.path("e/" + f["name"]))
            self.assertEqual(len(data), f["bytes"])
            self.assertEqual(hashlib.sha256(data).hexdigest(), f["sha256"])
        source, binary = (self.read(self.path("e/" + f["name"]))
                          for f in j["files"])
        step = j["steps"][0]
        self.assertIn(step["entry"].encode(), source)
        self.assertEqual(binary[:4], b"\x7fELF")
        self.assertIn("compiler", j["files"][1])
        self.assertEqual([p["name"] for p in step["params"]][:4],
                         ["q", "k", "v", "o"])
        self.assertTrue(step["grid"] and step["scratch_bytes"] > 0)

    def test_same_request_same_bytes(self):
        texts = set()
        for name in ("a", "b"):
            self.good("emit", "-o", self.path(name))
            texts.add(tuple(self.read(self.path(name + "/" + f))
                            for f in sorted(os.listdir(self.path(name)))))
        self.assertEqual(len(texts), 1)

    def test_object_needs_a_compiler(self):
        self.refused("emit", "-o", self.path("e"), "--obj", rc=3, env=BUILTIN,
                     says="clang")
        self.good("emit", "-o", self.path("e"), env=BUILTIN)


class Others(Case):
    def test_devices(self):
        j = self.object("devices")
        self.assertEqual(list(j), ["machine", "known", "gpus", "auto", "no_gpu",
                                   "nvrtc", "compilers",
                                   "looked_for", "lua"])
        names = [d["name"] for d in j["known"]]
        for name in ("H100", "T4", "RTX 4090", "neon"):
            self.assertIn(name, names)
        self.assertTrue(all(d["source"] for d in j["known"]))
        self.assertIn("H100", self.good("devices"))

    def test_cache(self):
        env = {"ATTNC_CACHE_DIR": self.path("c")}
        for d in (8, 16):
            self.good("run", "--seqlen", 16, "--head-dim", d, env=env)
        j = self.object("cache", "ls", env=env)
        self.assertEqual((j["entries"], len(j["items"]), j["damaged"]),
                         (2, 2, 0))
        self.assertIn("head_dim=8", "".join(i["identity"] for i in j["items"]))
        self.assertIn("d16", self.good("cache", "ls", env=env))
        self.assertIn("entries   2", self.good("cache", "stat", env=env))
        self.good("cache", "verify", env=env)
        self.assertEqual(self.object("cache", "prune", "--max-bytes", "1G",
                                     env=env), {"removed": 0})
        for root, _, files in os.walk(self.path("c")):
            for f in files:
                path = os.path.join(root, f)
                if len(f) == 62:
                    data = bytearray(self.read(path))
                    data[len(data) // 2] ^= 1
                    with open(path, "wb") as out:
                        out.write(data)
                    break
        self.assertIn("1 damaged", self.good("cache", "verify", env=env, rc=1)
                      .replace("2 damaged", "1 damaged"))
        self.assertGreater(self.object("cache", "clear", env=env)["removed"],
                           0)
        self.assertIn("empty", self.good("cache", "ls", env=env))
        self.refused("cache", "ls", rc=3, env={"ATTNC_CACHE_DIR": ""},
                     says="ATTNC_CACHE_DIR")

    def test_help_fits_and_names_every_option(self):
        texts = [self.good(), self.good("--help"), self.good("-h")]
        self.assertEqual(len(set(texts)), 1)
        self.assertRegex(self.good("--version"), r"^attnc \d+\.\d+\.\d+\n$")
        for verb in VERBS:
            text = self.good(verb, "--help")
            self.assertEqual(text, self.good(verb, "--json", "-h"))
            texts.append(text)
        for line in "".join(texts).splitlines():
            self.assertLessEqual(len(line), 80, line)
            self.assertEqual(line, line.rstrip())
        table = self.read(os.path.join(
            _attnc.SOURCE, "runtime/command/options.def")).decode()
        for option in re.findall(r"^OPTION\((\w+)", table, re.M):
            flag = "--" + option.replace("_", "-")
            self.assertIn(flag + " ", "".join(texts))
        for name in ("ATTNC_TEMPLATES", "ATTNC_NO_COMPILE", "ATTNC_COMPILERS",
                     "ATTNC_CACHE_DIR"):
            self.assertIn(name, texts[0])

    def stdout_to(self, target, *args):
        with open(target, "wb") as f:
            p = subprocess.run([_attnc.ATTNC, *args], stdout=f,
                               stderr=subprocess.PIPE, text=True)
        return p

    def test_stdout_that_takes_nothing(self):
        for args in (("--help",), ("explain",), ("devices", "--json")):
            p = self.stdout_to("/dev/full", *args)
            self.assertEqual(p.returncode, 4)
            self.assertIn("standard output", p.stderr)
            p = subprocess.run(f"{_attnc.ATTNC} {' '.join(args)} >&-",
                               shell=True, stderr=subprocess.PIPE, text=True)
            self.assertEqual(p.returncode, 4, p.stderr)
            r, w = os.pipe()
            os.close(r)
            p = subprocess.run([_attnc.ATTNC, *args], stdout=w,
                               stderr=subprocess.PIPE, text=True)
            os.close(w)
            self.assertEqual(p.returncode, 4, p.stderr)

    def test_closed_streams_do_no_harm_to_files(self):
        subprocess.run(f"{_attnc.ATTNC} run --seqlen 16 --out {self.dir} "
                       ">&- 2>&- <&-", shell=True,
                       env=dict(os.environ, **BUILTIN))
        self.assertEqual(np.load(self.path("o.npy")).shape, (1, 8, 16, 64))

    def test_progress_only_on_a_terminal(self):
        slow = os.environ.get("SANITIZE")
        args = (_attnc.ATTNC, "run", "--seqlen", "512", "--threads", "1",
                "--repeat", "8" if slow else "120")
        env = dict(os.environ, **BUILTIN)
        p = subprocess.run(args, capture_output=True, text=True, env=env)
        self.assertEqual(p.returncode, 0)
        self.assertNotIn("\r", p.stderr + p.stdout)
        ours, theirs = os.openpty()
        p = subprocess.run(args, stdout=subprocess.PIPE, stderr=theirs,
                           text=True, env=env)
        os.close(theirs)
        seen = b""
        try:
            while part := os.read(ours, 65536):
                seen += part
        except OSError:  # the other end is closed
            os.close(ours)
        self.assertRegex(seen.decode(), r"\rlaunches +\d+ %")
        self.assertNotIn("\r", p.stdout)


if __name__ == "__main__":
    unittest.main()
