# SPDX-License-Identifier: Apache-2.0
"""The kernel cache as the command's users meet it: many processes at once, a
kill during a compile, damage, and directories that cannot be used."""
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from _attnc import ATTNC, FULL, attnc, skip

SMALL = ["--heads", 2, "--seqlen", 33, "--check", "--json"]
NOBODY = 65534


def spec(i):
    """Arguments of kernel number i: another head_dim, another kernel."""
    return ["run", "--head-dim", 8 + i, *SMALL]


def start(args, env):
    return subprocess.Popen([ATTNC, *map(str, args)], text=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=env)


class Cache(unittest.TestCase):
    def setUp(self):
        self.top = tempfile.mkdtemp(prefix="attnc-test-", dir="/tmp")
        self.dir = os.path.join(self.top, "cache")
        tmp = os.path.join(self.top, "tmp")  # what a killed compile leaves
        os.mkdir(tmp)
        self.env = dict(os.environ, ATTNC_CACHE_DIR=self.dir, TMPDIR=tmp)

    def tearDown(self):
        shutil.rmtree(self.top)

    def good(self, code, out, err):
        """Where the kernel of a finished, correct run came from."""
        self.assertEqual(code, 0, err)
        result = json.loads(out)
        self.assertTrue(result["check"]["ok"], result["check"])
        return result["compile"]["cache"]

    def run_spec(self, i, warnings=0, says="", prefix=(), more=()):
        """One run; its warnings are counted. Returns the kernel's origin."""
        done = subprocess.run(
            [*prefix, ATTNC, *map(str, spec(i)), *more], text=True,
            timeout=120, stdin=subprocess.DEVNULL, capture_output=True,
            env=self.env, check=False)
        self.assertEqual(done.stderr.count("warning"), warnings, done.stderr)
        self.assertIn(says, done.stderr)
        return self.good(done.returncode, done.stdout, done.stderr)

    def entries(self):
        """Paths of the entries on disk."""
        top = os.path.join(self.dir, "v1")
        return sorted(os.path.join(top, shard, name)
                      for shard in os.listdir(top) if len(shard) == 2
                      for name in os.listdir(os.path.join(top, shard)))

    # ---- processes ---------------------------------------------------------

    def test_16_processes_compile_each_kernel_once(self):
        runs = [(i % 4, start(spec(i % 4), self.env)) for i in range(16)]
        origins = {}
        for i, p in runs:
            out, err = p.communicate(timeout=240)
            origins.setdefault(i, []).append(self.good(p.returncode, out, err))
        for got in origins.values():
            self.assertEqual(sorted(got), ["disk"] * 3 + ["miss"])
        self.assertEqual(len(self.entries()), 4)

    def test_a_kill_during_a_compile_harms_nobody(self):
        draw = random.Random(time.time_ns())
        for _ in range(60 if FULL else 15):
            p = start(spec(0), self.env)
            time.sleep(draw.uniform(0, 0.15))
            p.send_signal(signal.SIGKILL)
            p.communicate()
            if os.path.isdir(self.dir):  # another kernel next time
                self.assertEqual(attnc("cache", "clear",
                                       env=self.env).returncode, 0)
        begin = time.monotonic()
        self.assertEqual(self.run_spec(0), "miss")
        self.assertLess(time.monotonic() - begin, 30, "a lock outlived it")
        self.assertEqual(self.run_spec(0), "disk")
        verify = attnc("cache", "verify", env=self.env)
        self.assertEqual(verify.returncode, 0, verify.stdout + verify.stderr)

    # ---- damage ------------------------------------------------------------

    def test_a_damaged_entry_is_made_anew(self):
        self.assertEqual(self.run_spec(0), "miss")
        self.assertEqual(self.run_spec(0), "disk")
        (path,) = self.entries()
        size = os.path.getsize(path)
        for at in (0, 9, 40, 80, 300, size // 2, size - 1):
            with open(path, "r+b") as f:
                f.seek(at)
                byte = f.read(1)
                f.seek(at)
                f.write(bytes([byte[0] ^ 0x5a]))
            self.assertEqual(self.run_spec(0), "miss", f"byte {at}")
        for length in (0, 1, 71, 200, size - 1):
            os.truncate(path, length)
            self.assertEqual(self.run_spec(0), "miss", f"cut to {length}")
        self.assertEqual(self.run_spec(0), "disk")

    def test_verify_finds_a_damaged_entry(self):
        self.run_spec(0)
        (path,) = self.entries()
        os.truncate(path, os.path.getsize(path) - 1)
        done = attnc("cache", "verify", env=self.env)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)

    def test_a_moved_directory_still_hits(self):
        self.run_spec(0)
        moved = os.path.join(self.top, "moved")
        os.rename(self.dir, moved)
        self.env["ATTNC_CACHE_DIR"] = moved
        self.assertEqual(self.run_spec(0), "disk")

    def test_the_key_names_no_path_and_no_time(self):
        fixed = ("--target", "auto@dram_gbs=20,clock_ghz=3,llc_gbs=100,"
                 "f32_tflops=0.2")  # nothing measured, so the same tile
        self.run_spec(0, more=fixed)
        first = [os.path.relpath(p, self.dir) for p in self.entries()]
        self.dir = self.env["ATTNC_CACHE_DIR"] = os.path.join(self.top, "two")
        self.run_spec(0, more=fixed)
        second = [os.path.relpath(p, self.dir) for p in self.entries()]
        self.assertEqual(first, second)

    # ---- directories that cannot be used -----------------------------------

    def unusable(self, says):
        """Each run compiles, is right, and warns once."""
        for _ in range(2):
            self.assertEqual(self.run_spec(0, 1, says), "miss")

    def test_no_disk_when_asked_for(self):
        self.env["ATTNC_CACHE_DIR"] = ""
        self.assertEqual(self.run_spec(0), "miss")
        self.assertEqual(self.run_spec(0), "miss")

    def test_a_missing_home(self):
        del self.env["ATTNC_CACHE_DIR"]
        self.env.pop("XDG_CACHE_HOME", None)
        self.env["HOME"] = os.path.join(self.top, "none")
        self.unusable("home")
        self.assertFalse(os.path.exists(self.env["HOME"]))

    def test_a_missing_directory_is_made(self):
        self.dir = self.env["ATTNC_CACHE_DIR"] = os.path.join(self.top, "a/b")
        self.assertEqual(self.run_spec(0), "miss")
        self.assertEqual(self.run_spec(0), "disk")
        self.assertEqual(os.stat(self.dir).st_mode & 0o777, 0o700)

    def test_a_file_in_its_place(self):
        with open(self.dir, "w", encoding="ascii") as f:
            f.write("mine")
        self.unusable("Not a directory")
        with open(self.dir, encoding="ascii") as f:
            self.assertEqual(f.read(), "mine")

    def test_a_link_in_its_place(self):
        os.mkdir(self.dir + ".real")
        os.symlink(self.dir + ".real", self.dir)
        self.unusable("symbolic link")

    def test_a_directory_open_to_all(self):
        os.mkdir(self.dir)
        os.chmod(self.dir, 0o777)
        self.unusable("others may write")

    def test_a_directory_of_another_user(self):
        if os.geteuid() != 0:
            self.skipTest("needs root to give a directory away")
        os.mkdir(self.dir)
        os.chown(self.dir, NOBODY, NOBODY)
        self.unusable("belongs to user")

    def mounted(self, how):
        """A prefix that runs a command in its own mount space."""
        prefix = ["unshare", "-m", "sh", "-c", f'{how} && exec "$@"', "sh"]
        if subprocess.run([*prefix, "true"], capture_output=True,
                          check=False).returncode != 0:
            self.skipTest("needs the right to mount")
        return prefix

    def test_a_readonly_file_system(self):
        self.run_spec(0)
        readonly = self.mounted(
            f"mount --bind {self.dir} {self.dir} && "
            f"mount -o remount,bind,ro {self.dir}")
        self.assertEqual(self.run_spec(0, 1, "Read-only", readonly), "disk")
        self.assertEqual(self.run_spec(1, 1, "Read-only", readonly), "miss")
        self.assertEqual(len(self.entries()), 1)

    def test_a_directory_one_may_only_read(self):
        if os.geteuid() == 0:
            self.skipTest("root may write anywhere; see the file system")
        self.run_spec(0)
        for name in ("v1/tmp", "v1", "."):
            os.chmod(os.path.join(self.dir, name), 0o500)
        self.assertEqual(self.run_spec(0, 1, "reading only"), "disk")
        self.assertEqual(self.run_spec(1, 1, "reading only"), "miss")
        for name in (".", "v1", "v1/tmp"):
            os.chmod(os.path.join(self.dir, name), 0o700)

    def test_a_full_disk(self):
        os.mkdir(self.dir)
        full = self.mounted(
            f"mount -t tmpfs -o size=16k,mode=0700 none {self.dir} && "
            f"mkdir -m 0700 {self.dir}/v1 {self.dir}/v1/tmp && "
            f"(head -c 1M /dev/zero >{self.dir}/fill || true) 2>/dev/null")
        self.assertEqual(self.run_spec(0, 1, "No space left", full), "miss")


if __name__ == "__main__":
    probe = attnc(*spec(0), env={"ATTNC_CACHE_DIR": ""})
    if '"builtin"' in probe.stdout:
        skip("no compiler on this machine, so nothing to cache")
    unittest.main(verbosity=2)
