# SPDX-License-Identifier: Apache-2.0
"""Machines that lack something: no Lua library, nothing in /proc and /sys, no
memory left for a child process. What can still work does; the rest is told."""
import os
import signal
import subprocess
import time
import unittest

from _attnc import ATTNC
from _cli import Case

SANITIZED = bool(os.environ.get("SANITIZE"))
SMALL = ("run", "--heads", "2", "--seqlen", "70", "--head-dim", "16", "--check")

# dlopen finds nothing that has lua in its name.
NO_LUA = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
void *dlopen(const char *name, int flags) {
    void *(*real)(const char *, int);
    *(void **)&real = dlsym(RTLD_NEXT, "dlopen");
    return name && strstr(name, "lua") ? 0 : real(name, flags);
}
"""


@unittest.skipIf(SANITIZED, "a sanitizer's runtime must be loaded first")
class NoLua(Case):
    def setUp(self):
        super().setUp()
        self.cache = {"ATTNC_CACHE_DIR": self.path("cache")}
        shim = self.path("shim.so")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", shim,
                        self.write("shim.c", NO_LUA)], check=True)
        self.env = dict(self.cache, LD_PRELOAD=shim)

    def test_what_needs_it_says_what_to_install(self):
        spec = self.write("a.lua", "return {}")
        for args in (SMALL, ("explain", "--spec", spec),
                     ("emit", "-o", self.path("out"))):
            with self.subTest(verb=args[0]):
                line = self.refused(*args, rc=3, env=self.env,
                                    says=("liblua5.4.so.0", "install Lua 5.4"))
                self.assertEqual(line.count("install"), 1)

    def test_a_cached_kernel_needs_none(self):
        self.good(*SMALL, env=self.cache)
        j = self.object(*SMALL, env=self.env)
        self.assertTrue(j["check"]["ok"])
        self.assertEqual(j["compile"]["cache"], "disk")

    def test_the_builtin_needs_none(self):
        j = self.object(*SMALL, env=dict(self.env, PATH="/nowhere"))
        self.assertTrue(j["check"]["ok"])
        self.assertEqual(j["compile"]["compiler"], "builtin")


class NotMounted(Case):
    """In a mount namespace of its own, with an empty directory for each."""

    def shell(self, line):
        return subprocess.run(["unshare", "-rm", "sh", "-ec", line], text=True,
                              capture_output=True, timeout=300)

    def covered(self, *places):
        cover = " && ".join(f"mount -t tmpfs none {p}" for p in places)
        if self.shell(cover).returncode:
            self.skipTest("may not mount here")
        env = f"ATTNC_CACHE_DIR={self.path('cache')}"
        for _ in range(2):  # compiled, then from the cache
            p = self.shell(f"{cover}; {env} {ATTNC} {' '.join(SMALL)}")
            self.assertEqual(p.returncode, 0, p.stdout + p.stderr)
            self.assertIn("check     ok", p.stdout)
        self.assertIn("from the cache (disk)", p.stdout)

    @unittest.skipIf(SANITIZED, "sanitizers read /proc")
    def test_no_proc(self):
        self.covered("/proc")

    @unittest.skipIf(SANITIZED, "sanitizers read /proc")
    def test_no_proc_and_no_sys(self):
        self.covered("/proc", "/sys")

    def test_no_sys(self):
        self.covered("/sys")


def child_of(pid):
    """A child of the process, once there is one; None: it has ended."""
    while os.path.exists(f"/proc/{pid}/task/{pid}/children"):
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            children = f.read().split()
        if children:
            return int(children[0])
        time.sleep(0.01)
    return None


class OutOfMemory(Case):
    """The kernel's way out is SIGKILL for somebody."""

    def test_a_killed_evaluation_is_told(self):
        spec = self.write("a.lua", "while true do end")
        p = subprocess.Popen([ATTNC, "explain", "--spec", spec], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        child = child_of(p.pid)
        if not child:
            p.communicate()
            self.skipTest("/proc does not tell who is whose child")
        os.kill(child, signal.SIGKILL)
        out, line = p.communicate(timeout=60)
        self.assertEqual((p.returncode, out), (4, ""))
        self.assertEqual(line, f"attnc: {spec}: the process that evaluates it "
                               "was killed; was memory short?\n")

    def test_a_killed_compiler_is_told(self):
        tools = self.path("tools")
        os.mkdir(tools)
        clang = os.path.join(tools, "clang")
        with open(clang, "w") as f:
            f.write("#!/bin/sh\nkill -9 $$\n")
        os.chmod(clang, 0o755)
        self.refused(*SMALL, rc=4,
                     env={"PATH": tools, "ATTNC_CACHE_DIR": self.path("c"),
                          "TMPDIR": self.dir},
                     says=("killed by signal 9", "was memory short?"))


if __name__ == "__main__":
    unittest.main()
