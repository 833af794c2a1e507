# SPDX-License-Identifier: Apache-2.0
"""Lua spec files: fields become options; nothing else gets out of them."""
import os
import resource
import unittest

import numpy as np

from _cli import Case

SANITIZED = bool(os.environ.get("SANITIZE"))
ESCAPES = ("io.open('/etc/passwd')", "os.execute('true')", "require('x')",
           "load('return 1')()", "loadfile('/etc/passwd')",
           "dofile('/etc/passwd')", "debug.getinfo(1)", "package.path",
           "print('x')", "collectgarbage()", "warn('x')", "coroutine.wrap(f)")
ENDLESS = ("while true do end", "local function f() return f() end f()",
           # no count hook stops a loop inside string.find
           "string.find(('a'):rep(60000), ('a-'):rep(150) .. 'b')",
           "repeat pcall(error) until false")
BOMBS = ("string.rep('x', 1 << 30)",
         "local s = 'x' while true do s = s .. s end",
         "local t = {} for i = 1, 1 << 40 do t[i] = i end",
         "table.concat(setmetatable({}, {__index = function() return "
         "('x'):rep(1 << 20) end, __len = function() return 1 << 20 end}))")


def children_seconds():
    """CPU time of all that this process has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Lua(Case):
    def spec(self, text, name="a.lua"):
        return self.write(name, text)

    def explained(self, text, *args):
        return self.object("explain", "--spec", self.spec(text), *args)

    def bad(self, text, *says, **kw):
        return self.refused("explain", "--spec", self.spec(text),
                            says=("a.lua", *says), **kw)

    def test_fields_are_options(self):
        sink = self.save("s.npy", np.zeros(6, np.float32))
        j = self.explained(f"""
            local heads = 2
            return {{ head_dim = 32 * 2.0, dtype = "bf16", heads = heads * 3,
                      kv_heads = 2, mask = "window:" .. math.min(9, 4) .. ",0",
                      softcap = 12.5, alibi = true, sink = "{sink}",
                      batch_invariant = true, deterministic = false,
                      batch = 3, seqlen = 70, lens_k = {{ 70, 0, 7 }},
                      tile = {{ block_k = 64 }} }}""")
        s, shape = j["spec"], j["shape"]
        self.assertEqual((s["head_dim"], s["dtype"], s["mask"], s["softcap"],
                          s["alibi"], s["sink"], s["lens_k"],
                          s["batch_invariant"], s["deterministic"]),
                         (64, "bf16", "window", 1, 1, 1, 1, 1, 0))
        self.assertEqual((shape["heads"], shape["kv_heads"], shape["batch"],
                          shape["seqlen_q"]), (6, 2, 3, 70))
        self.assertEqual(j["steps"][0]["tile"]["block_k"], 64)

    def test_flags_after_it_win(self):
        spec = self.spec("return { head_dim = 64, dtype = 'f16' }")
        j = self.object("explain", "--head-dim", "8", "--spec", spec,
                        "--dtype", "f32")
        self.assertEqual((j["spec"]["head_dim"], j["spec"]["dtype"]),
                         (64, "f32"))

    def test_off_switches(self):
        self.assertEqual(self.explained("return { alibi = false }")["spec"]
                         ["alibi"], 0)

    def test_errors_name_file_and_line(self):
        self.bad("return {\n head_dim = }", "a.lua:2:")
        self.bad("\n\nerror('no luck')", "a.lua:3:", "no luck")
        self.bad("return nil + 1", "a.lua:1:")
        self.bad("error({})")
        self.bad("return 7", "no table")
        self.bad("", "no table")
        self.bad("return { head_dim = function() end }", "head_dim",
                 "function")
        self.bad("return { 64 }", "key")
        self.bad("return { lens_k = { 1, nil, 3 } }", "lens_k", "gaps")
        self.bad("return { lens_k = { 1, 2, x = 1 } }", "lens_k", "gaps")
        self.bad("return { lens_k = { { 1 } } }", "lens_k")
        self.bad("return { mask = 'causal\\nheads\\n3' }", "mask")
        self.bad("return { mask = 'causal\\0' }", "mask")

    def test_bad_values_name_the_key(self):
        self.bad("return { head_dmi = 64 }", "head_dmi", "nearest: head_dim")
        self.bad("return { ['head-dim'] = 64 }", "nearest: head_dim")
        self.bad("return { heads = 0 }", "heads", "nearest accepted: 1")
        self.bad("return { mask = 'casual' }", "mask", "nearest: causal")
        self.bad("return { dropout = 1.5 }", "dropout", "0 <= P < 1")
        spec = self.spec("return { bias = 'none.npy' }")
        self.refused("explain", "--spec", spec, says="none.npy")
        for key in ("spec", "json", "out", "check", "help"):
            self.bad("return { %s = 'x' }" % key, key)

    def test_nothing_to_escape_through(self):
        for text in ESCAPES:
            with self.subTest(text=text):
                self.bad(f"local x = {text}\nreturn {{}}", "a.lua:1:", "nil")
        self.bad("string.dump = nil\nreturn { head_dim = ('').x.y }",
                 "a.lua:2:")

    def test_endless_loops_end(self):
        # The limit is CPU time, which a busy machine does not stretch.
        for text in ENDLESS[:None if not SANITIZED else 1]:
            with self.subTest(text=text):
                before = children_seconds()
                self.bad(text, "2 s")
                self.assertLess(children_seconds() - before, 4)

    @unittest.skipIf(SANITIZED, "sanitizers map more than any limit")
    def test_memory_is_limited(self):
        for text in BOMBS:
            with self.subTest(text=text):
                self.bad(text, "memory")

    def test_a_flood_of_text_is_refused(self):
        self.bad("return { mask = ('x'):rep(2 << 20) }", "1 MiB")
        self.bad("local t = {} for i = 1, 70000 do t[i] = i end "
                 "return { lens_k = t }", "lens_k")

    def test_only_text_files(self):
        self.refused("explain", "--spec", self.path("none.lua"),
                     says=("none.lua", "No such file"))
        self.refused("explain", "--spec", self.dir, says="ordinary file")
        self.refused("explain", "--spec", "/dev/zero", says="ordinary file")
        self.refused("explain", "--spec",
                     self.write("b.lua", b"\x1bLua\x54\x00\x19\x93\r\n"),
                     says=("b.lua", "binary"))
        self.refused("explain", "--spec", self.write("l.lua", " " * (2 << 20)),
                     says=("l.lua", "1 MiB"))
        spec = self.spec("return {}")
        self.refused("explain", "--spec", spec, "--spec", spec, says="twice")


if __name__ == "__main__":
    unittest.main()
