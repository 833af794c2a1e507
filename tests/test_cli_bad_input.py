# SPDX-License-Identifier: Apache-2.0
"""Every bad request: exit 2 (3: the machine, 4: the system), stdout empty, one
line on stderr that names what and where, and nothing written."""
import os
import resource
import subprocess
import unittest

import numpy as np

import _attnc
from _cli import Case

# What is wrong, and what the line has to say.
OPTIONS = (
    (("--dtyp", "f32"), ("--dtyp", "nearest: --dtype")),
    (("--sed", "1"), ("unknown option", "nearest")),
    (("--seq", "5"), ("unknown option", "--seqlen")),  # no abbreviations
    (("--dtype", "f23"), ("f23", "f32")),
    (("--dtype",), ("--dtype", "missing")),
    (("--json=1",), ("--json", "no value")),
    (("-x",), ("-x", "unknown option")),
    (("stray",), ("stray",)),
    (("--", "stray"), ("stray",)),
    (("--head-dim", "0"), ("head_dim", "1..256")),
    (("--head-dim", "-3"), ("head_dim", "1..256")),
    (("--head-dim", "257"), ("head_dim", "256")),
    (("--head-dim", "1e3"), ("head_dim",)),
    (("--head-dim", "99999999999999999999"), ("head_dim", "256")),
    (("--head-dim-v", "300"), ("head_dim_v", "256")),
    (("--deterministic", "2"), ("deterministic",)),
    (("--f32-math", "tf32", "--dtype", "f16"), ("f32_math",)),
    (("--batch", "0"), ("--batch", "nearest accepted: 1")),
    (("--heads", "-8"), ("--heads", "nearest accepted: 1")),
    (("--seqlen", "0"), ("--seqlen", "nearest accepted: 1")),
    (("--seqlen", "99999999999999999999"), ("--seqlen",)),
    (("--seqlen", "4294967296"), ("--seqlen", "2147483647")),
    (("--seqlen", "12x"), ("--seqlen", "12x")),
    (("--batch", "2147483647", "--heads", "2147483647", "--seqlen",
      "2147483647"), ("overflow",)),
    (("--heads", "6", "--kv-heads", "4"), ("kv_heads", "nearest")),
    (("--mask", "casual"), ("--mask casual", "nearest: causal")),
    (("--mask", "window"), ("window:L,R",)),
    (("--mask", "window:3"), ("window:L,R",)),
    (("--mask", "window:-1,3"), ("-1",)),
    (("--mask", "window:1,2,3,4"), ("window:L,R",)),
    (("--mask", "none:3"), ("--mask",)),
    (("--mask", "causal:x"), ("br", "len")),
    (("--mask", "causal:len"), ("--lens-k",)),
    (("--mask", "prefix:inf"), ("inf",)),
    (("--scale", "nan"), ("--scale",)),
    (("--scale", "1e39"), ("--scale",)),
    (("--softcap", "0"), ("--softcap", "> 0")),
    (("--softcap", "-1"), ("--softcap", "> 0")),
    (("--dropout", "1"), ("--dropout", "0 <= P < 1", "0.999985")),
    (("--dropout", "-0.5"), ("--dropout", "0 <= P < 1", "nearest 0")),
    (("--dropout", "some"), ("--dropout", "no number")),
    (("--dropout", "nan"), ("--dropout", "0 <= P < 1")),
    (("--seed", "3"), ("--seed", "--dropout P")),
    (("--offset", "3"), ("--offset", "--dropout P")),
    (("--dropout", "0.1", "--seed", "-1"), ("--seed", "0")),
    (("--dropout", "0.1", "--offset", "4294967296"), ("4294967295",)),
    (("--layout", "bnhx"), ("bhnd", "bnhd")),
    (("--lens-k", "5,x", "--batch", "2"), ("--lens-k", "`x`")),
    (("--lens-k", "5,6,7", "--batch", "2"), ("--lens-k", "batch")),
    (("--lens-k", "1025"), ("--lens-k", "1024")),
    (("--lens-k", "-1"), ("--lens-k",)),
    (("--lens-k", ""), ("--lens-k",)),
    (("--cu-seqlens-q", "5"), ("--cu-seqlens-q",)),
    (("--cu-seqlens-q", "1,5"), ("--cu-seqlens-q", "0,")),
    (("--cu-seqlens-q", "0,5,3"), ("nearest accepted: 5",)),
    (("--cu-seqlens-k", "0,5"), ("--cu-seqlens-q",)),
    (("--cu-seqlens-q", "0,5", "--cu-seqlens-k", "0,2,5"), ("batch",)),
    (("--cu-seqlens-q", "0,5", "--layout", "bnhd"), ("--layout",)),
    (("--cu-seqlens-q", "0,5", "--seqlen", "7"), ("seqlen_q",)),
    (("--threads", "0"), ("--threads", "1")),
    (("--data-seed", "-1"), ("--data-seed", "0")),
    (("--target", "emu:avx2"), ("emu:avx2", "emu:sm_80")),
    (("--target", "sm_90"), ("sm_90", "sm_90a")),
    (("--target", "avx3"), ("avx3", "avx2")),
    (("--target", "avx2@coers=4"), ("coers", "cores")),
    (("--tile", "block_z=3"), ("block_z", "block_")),
    (("--tile", "block_q=-8"), ("block_q",)),
    (("--tile", "block_k=13"), ("block_k",)),
    (("--tile", "block_q=1000000"), ("block_q",)),
    (("--pass", "sideways"), ("sideways", "fwd")),
)


class Requests(Case):
    def test_every_bad_option(self):
        for args, says in OPTIONS:
            for verb in ("run", "explain"):
                with self.subTest(verb=verb, args=args):
                    self.refused(verb, *args, says=says)

    def test_verbs(self):
        self.refused("rnu", says=("rnu", "nearest: run"))
        self.refused("", says="unknown verb")
        for verb in ("tune", "bench", "build"):
            self.refused(verb, says=(verb, "not in this version"))
        self.refused("cache", says="ls")
        self.refused("cache", "lss", says=("lss", "nearest: ls"))
        self.refused("cache", "ls", "more", says="more")
        self.refused("cache", "prune", "--max-bytes", "-1", says="--max-bytes")
        self.refused("cache", "prune", "--max-bytes", "9999999999G",
                     says="--max-bytes")
        self.refused("devices", "--dtype", "f32", says="--dtype")
        self.refused("explain", "--check", says="--check")
        self.refused("run", "--repeat", "0", says=("--repeat", "1"))
        self.refused("emit", says="-o DIR")
        self.refused("emit", "-o", says="-o")

    def test_one_line_whatever_is_quoted(self):
        self.refused("run", "--mask", "a\nb\r\x1b[31m", says="--mask")
        self.refused("run", "--mask", "\xff" * 5000, says="--mask")
        self.refused("run", "--q", "/no\n/such.npy")


class Files(Case):
    """A .npy that cannot be used is named together with its fault."""

    def array(self, *shape):
        return np.zeros(shape, np.float32)

    def bad(self, path, *says, args=()):
        self.refused("run", "--q", path, *args, "--out", self.path("out"),
                     says=(os.path.basename(path), *says))
        self.assertFalse(os.path.exists(self.path("out")))

    def test_truncated(self):
        whole = self.read(self.save("q.npy", self.array(1, 2, 3, 4)))
        for n in (0, 5, 8, 9, 60, 127, 128, 200, len(whole) - 1):
            self.bad(self.write("cut.npy", whole[:n]), "truncated")
        self.bad(self.write("long.npy", whole + b"x"), "trailing")

    def test_wrong_kind(self):
        x = self.array(1, 2, 3, 4)
        for kind, word in (("i4", "i32"), ("i8", "i64"), ("?", "bool"),
                           ("u1", "u8 data"), ("u2", "<u2"), ("c8", "<c8"),
                           (">f4", "big-endian"), ("S3", "|S3")):
            self.bad(self.save("q.npy", x.astype(kind)), word)
        self.bad(self.save("o.npy", np.array([[[[None]]]])), "object")
        self.bad(self.save("r.npy", np.zeros((1, 1, 1, 1), "f4,f4")), "records")
        self.bad(self.save("f.npy", np.asfortranarray(x)), "Fortran")
        self.bad(self.write("t.npy", "no array"), "not a .npy")
        self.bad(self.path("none.npy"), "No such file")
        self.bad(self.dir, "directory")

    def test_wrong_shape(self):
        self.bad(self.save("q.npy", self.array(2, 3, 4)), "[B,H,N,d]")
        self.bad(self.save("q.npy", self.array(1, 1, 2, 3, 4)), "[B,H,N,d]")
        self.bad(self.save("q.npy", self.array()), "[B,H,N,d]")
        self.bad(self.save("q.npy", self.array(1, 2, 0, 4)), "0")
        self.bad(self.save("q.npy", self.array(1, 2, 3, 4)), "[total,H,d]",
                 args=("--cu-seqlens-q", "0,3"))
        self.refused("run", "--q", self.save("w.npy", self.array(1, 2, 3, 300)),
                     says=("head_dim", "300", "256"))

    def test_files_that_disagree(self):
        q = self.save("q.npy", self.array(1, 4, 6, 8))
        for name, shape, says in (("k", (2, 4, 6, 8), "batch"),
                                  ("k", (1, 4, 6, 9), "head_dim"),
                                  ("k", (1, 3, 6, 8), "kv_heads")):
            other = self.save("k.npy", self.array(*shape))
            self.refused("run", "--q", q, "--" + name, other, says=says)
        k = self.save("k.npy", self.array(1, 4, 6, 8))
        v = self.save("v.npy", self.array(1, 4, 7, 8))
        self.refused("run", "--q", q, "--k", k, "--v", v,
                     says=("v.npy", "seqlen_k", "7", "6"))
        for flag, n, name in (("--heads", 8, "heads"), ("--batch", 2, "batch"),
                              ("--seqlen", 9, "seqlen_q"),
                              ("--head-dim", 16, "head_dim")):
            self.refused("run", "--q", q, flag, n, says=(flag, name, str(n)))
        self.refused("run", "--q", q, "--sink",
                     self.save("s.npy", self.array(5)), says=("s.npy", "heads"))
        self.refused("run", "--sink", self.save("s.npy", self.array(8, 1)),
                     says="[H]")
        self.refused("run", "--q", q, "--alibi",
                     self.save("a.npy", self.array(7)), says=("a.npy", "heads"))

    def test_no_damaged_file_is_believed(self):
        rng = np.random.default_rng(5)
        whole = self.read(self.save("q.npy", self.array(1, 2, 3, 4)))
        for _ in range(1000 if _attnc.FULL else 120):
            bad = bytearray(whole)
            for _ in range(rng.integers(1, 4)):
                bad[rng.integers(0, 100)] = rng.integers(0, 256)
            p = _attnc.attnc("run", "--q", self.write("q.npy", bytes(bad)),
                             env={"ATTNC_COMPILERS": ""})
            self.assertIn(p.returncode, (0, 2), p.stderr)
            if p.returncode:
                self.assertEqual(p.stdout, "")
                self.assertEqual(p.stderr.count("\n"), 1)


class System(Case):
    """What the system refuses: exit 4, or 3 when the machine lacks it."""

    def limit_files(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    def test_unwritable_out(self):
        plain = self.write("plain", "x")
        for out in (plain, plain + "/sub", "/proc/attnc", self.path("a/b")):
            for verb in ("run", "emit"):
                with self.subTest(verb=verb, out=out):
                    self.refused(verb, "--out", out, rc=4, says=out)
        self.assertEqual(self.read(plain), b"x")
        if os.getuid():
            os.mkdir(self.path("shut"), 0o555)
            self.refused("run", "--out", self.path("shut"), rc=4, says="shut")

    def test_full_disk_leaves_what_was_there(self):
        out = self.path("out")
        args = ("run", "--seqlen", "256", "--out", out)
        env = {"ATTNC_COMPILERS": ""}
        self.good(*args, env=env)
        before = self.read(out + "/o.npy")
        p = subprocess.run([_attnc.ATTNC, *args, "--data-seed", "9"],
                           capture_output=True, text=True,
                           preexec_fn=self.limit_files,
                           env=dict(os.environ, **env))
        self.assertEqual((p.returncode, p.stdout), (4, ""), p.stderr)
        self.assertIn("o.npy", p.stderr)
        self.assertEqual(self.read(out + "/o.npy"), before)
        self.assertEqual(sorted(os.listdir(out)), ["lse.npy", "o.npy"])

    def test_memory_that_no_machine_has(self):
        self.refused("run", "--batch", "2000000", "--seqlen", "100000", rc=4,
                     says="TiB")

    def test_target_of_another_machine(self):
        foreign = "avx2" if os.uname().machine == "aarch64" else "neon"
        self.refused("run", "--target", foreign, rc=3, says=foreign)

    def test_no_compile(self):
        self.refused("run", "--head-dim", "13", rc=3,
                     env={"ATTNC_NO_COMPILE": "1", "ATTNC_CACHE_DIR": ""})

    def test_compiler_that_fails(self):
        cc = self.write("clang-bad", "#!/bin/sh\necho 'kernel.c:1:1: error: "
                        "no good' >&2\necho more >&2\nexit 1\n")
        os.chmod(cc, 0o755)
        line = self.refused("run", "--head-dim", "13", rc=4, says="no good",
                            env={"ATTNC_COMPILERS": cc, "TMPDIR": self.dir,
                                 "ATTNC_CACHE_DIR": ""})
        log = line.split("kept in ")[1].strip()
        self.assertIn(b"more", self.read(log))

    def test_missing_templates(self):
        self.refused("run", rc=4, says="nowhere",
                     env={"ATTNC_TEMPLATES": self.path("nowhere")})


if __name__ == "__main__":
    unittest.main()
