# SPDX-License-Identifier: Apache-2.0
"""Mask and score programs, tensors, bias and patterns of the command: results
and gradients agree with NumPy in f64; every fault is told with its place."""
import unittest

import numpy as np

import _attnc
from _cli import LIMIT, Case, attention, mask, rel_err, round_to

BUILTIN = {"ATTNC_COMPILERS": ""}
B, H, HK, NQ, NK, D = 2, 4, 2, 37, 53, 24
q_, k_ = np.arange(NQ)[:, None], np.arange(NK)[None, :]


def steps(q, k, v, do, visible, score, slope):
    """O, dQ, dK, dV and the gradient of the score that the softmax takes;
    score and slope map s [B,H,Nq,Nk] to values and derivatives."""
    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scale = 1 / np.sqrt(q.shape[3])
    s = scale * np.einsum("bhqd,bhkd->bhqk", q, wide_k)
    o, lse = attention(q, k, v, visible, score=score)
    seen = np.isfinite(lse)[..., None] & visible & np.isfinite(score(s))
    p = np.where(seen, np.exp(np.where(seen, score(s), 0) -
                              np.where(np.isfinite(lse), lse, 0)[..., None]),
                 0)
    dp = np.einsum("bhqd,bhkd->bhqk", do, wide_v)
    g = p * (dp - (do * o).sum(3)[..., None])
    ds = np.where(seen, g * slope(s), 0) * scale

    def of_groups(x):
        return x.reshape(k.shape[0], k.shape[1], group, *x.shape[2:]).sum(2)
    return (o, np.einsum("bhqk,bhkd->bhqd", ds, wide_k),
            of_groups(np.einsum("bhqk,bhqd->bhkd", ds, q)),
            of_groups(np.einsum("bhqk,bhqd->bhkd", p, do)), g, s)


class Programs(Case):
    def setUp(self):
        super().setUp()
        self.rng = np.random.default_rng()

    def normal(self, *shape):
        return self.rng.standard_normal(shape).astype(np.float32)

    def inputs(self):
        return (self.normal(B, H, NQ, D), self.normal(B, HK, NK, D),
                self.normal(B, HK, NK, D), self.normal(B, H, NQ, D))

    def compute(self, x, *args, grad=True, env=BUILTIN):
        """Report, and the arrays written, by name."""
        files = [f for n, a in zip(("q", "k", "v", "do"), x[:4 if grad else 3])
                 for f in ("--" + n, self.save(n + ".npy", a))]
        report = self.object("run", *files, "--check", "--out",
                             self.path("out"), *args,
                             *(("--pass", "fwd+bwd") if grad else ()),
                             env=env)
        self.assertTrue(report["check"]["ok"], report)
        names = ["o", "lse"] + (["dq", "dk", "dv"] if grad else [])
        return report, {n: np.load(self.path(f"out/{n}.npy")) for n in names}

    def agree(self, x, visible, args, score=lambda s: s,
              slope=np.ones_like, grads=lambda g, s: {}, env=BUILTIN):
        """A run with both passes against NumPy; grads: what is owed of the
        tensors by name, of the score's gradient and s."""
        report, got = self.compute(x, *args, env=env)
        visible = np.broadcast_to(visible, (B, H, NQ, NK))
        wide = [round_to(a, "f32") for a in x]
        *want, g, s = steps(*wide, visible, score, slope)
        for name, ref in zip(("o", "dq", "dk", "dv"), want):
            self.assertLess(rel_err(got[name], ref), LIMIT["f32"], name)
        for name, ref in grads(g, s).items():
            x = np.load(self.path(f"out/d{name}.npy"))
            self.assertEqual((x.dtype, x.shape), (np.float32, ref.shape))
            # Sums may cancel: a bias that all keys share changes nothing.
            size = max(np.linalg.norm(ref), np.linalg.norm(g))
            self.assertLess(np.linalg.norm(x - ref) / size, 2e-5, name)
            self.assertIn(f"d{name}", report["check"]["rel_err"])
        return report

    def test_masks(self):
        doc = np.sort(self.rng.integers(0, 5, (B, NK)), 1)
        on = self.rng.integers(0, 2, (H, NQ, NK)).astype(bool)
        same = doc[:, None, :NQ, None] == doc[:, None, None, :]
        cases = (
            ("k <= q + off && k % 3 != 1", (),
             (k_ <= q_ + NK - NQ) & (k_ % 3 != 1)),
            ("doc[b,q] == doc[b,k] && k <= q", (("doc", doc),),
             same & (k_ <= q_)),
            ("on[h, q, k] || k == 0", (("on", on),), on | (k_ == 0)),
            ("false", (), np.zeros((NQ, NK), bool)),
            ("h % 2 == 0 ? k < 7 : q < nq - 5", (),
             np.where(np.arange(H)[:, None, None] % 2 == 0, k_ < 7,
                      q_ < NQ - 5)))
        for text, tensors, visible in cases:
            with self.subTest(text=text):
                files = [f for n, a in tensors
                         for f in ("--tensor",
                                   f"{n}={self.save(n + '.npy', a)}")]
                self.agree(self.inputs(), visible,
                           ["--mask", "expr:" + text, *files])

    def test_scores(self):
        slope = self.normal(H)
        w = slope.astype(float)[None, :, None, None]
        file = "slope=" + self.save("slope.npy", slope)
        far = np.abs(q_ + NK - NQ - k_)
        self.agree(self.inputs(), True,
                   ["--score", "s - slope[h] * abs(q + off - k)", "--tensor",
                    file], lambda s: s - w * far,
                   grads=lambda g, s: {"slope": -(g * far).sum((0, 2, 3))})
        self.agree(self.inputs(), True,
                   ["--score", "s * tanh(slope[h])", "--tensor", file],
                   lambda s: s * np.tanh(w),
                   lambda s: np.tanh(w) * np.ones_like(s),
                   lambda g, s: {"slope": (g * s / np.cosh(w) ** 2)
                                 .sum((0, 2, 3))})
        self.agree(self.inputs(), True, ["--score", "2.5 * tanh(s / 2.5)"],
                   lambda s: 2.5 * np.tanh(s / 2.5),
                   lambda s: 1 - np.tanh(s / 2.5) ** 2)
        self.agree(self.inputs(), k_ % 2 == 0,
                   ["--score", "k % 2 == 1 ? -inf : s"])

    def test_biases(self):
        for shape in ((B, H, NQ, NK), (1, H, NQ, NK), (B, 1, 1, NK),
                      (NQ, NK), (H, 1, 1), (NQ, 1), (1,), (B, 1, NQ, 1)):
            with self.subTest(shape=shape):
                bias = self.normal(*shape)
                wide = (1,) * (4 - len(shape)) + shape
                over = tuple(i for i in range(4) if wide[i] == 1)
                self.agree(self.inputs(), mask(NQ, NK, "causal"),
                           ["--bias", self.save("bias.npy", bias), "--mask",
                            "causal"], lambda s: s + bias.astype(float),
                           grads=lambda g, s: {
                               "bias": g.sum(over).reshape(shape)})

    def test_bias_comes_before_the_score(self):
        bias = self.normal(NQ, NK)
        self.agree(self.inputs(), True,
                   ["--bias", self.save("bias.npy", bias), "--score",
                    "3.0 * tanh(s / 3.0)"],
                   lambda s: 3 * np.tanh((s + bias) / 3),
                   lambda s: 1 - np.tanh((s + bias) / 3) ** 2,
                   lambda g, s: {"bias": (g * (1 - np.tanh((s + bias) / 3)
                                               ** 2)).sum((0, 1))})

    def test_bias_says_sizes(self):
        file = self.save("bias.npy", self.normal(3, 5, 7, 9))
        j = self.object("explain", "--bias", file)
        self.assertEqual([j["shape"][n] for n in ("batch", "heads", "seqlen_q",
                                                  "seqlen_k")], [3, 5, 7, 9])
        self.assertEqual(j["spec"]["bias"], "bhqk")
        self.refused("run", "--bias", file, "--heads", "4",
                     says=("bias.npy", "heads", "5", "4"))

    def test_patterns(self):
        def blocks(of, block):
            keep = np.zeros((NQ, NK), bool)
            for i in range(NQ):
                for j in range(NK):
                    keep[i, j] = of(i // block, j // block)
            return keep
        at = self.save("at.npy", np.array([0, 2, 3, 4]))
        index = self.save("index.npy", np.array([3, 0, 1, 2], np.int32))
        listed = {(0, 3), (0, 0), (1, 1), (2, 2)}
        cases = (
            ("local-ft:c=9", (), (k_ - q_ >= -4) & (k_ - q_ < 5)),
            ("strided:5", (), (k_ <= q_) & ((q_ - k_) % 5 == 0)),
            ("longformer:window=1,global=0", (16,),
             blocks(lambda a, e: a == e, 16)),
            (f"bsr:{at},{index}", (16,),
             blocks(lambda a, e: (a, e) in listed, 16)))
        for text, block, visible in cases:
            with self.subTest(text=text):
                more = ["--sparsity-block", block[0]] if block else []
                self.agree(self.inputs(), visible,
                           ["--sparsity", text, *more])
                self.agree(self.inputs(),
                           visible & mask(NQ, NK, "causal"),
                           ["--sparsity", text, *more, "--mask", "causal"])

    def test_lists_of_each_head(self):
        at = np.array([[0, 1, 2, 3], [3, 3, 4, 5], [5, 6, 6, 7],
                       [7, 8, 9, 10]], np.int32)
        index = self.rng.integers(0, 4, 10)
        visible = np.zeros((H, NQ, NK), bool)
        for h in range(H):
            for a in range(3):
                for e in index[at[h, a]:at[h, a + 1]]:
                    visible[h, a * 16:a * 16 + 16, e * 16:e * 16 + 16] = True
        self.agree(self.inputs(), visible[None],
                   ["--sparsity-block", "16", "--sparsity",
                    f"bsr:{self.save('at.npy', at)},"
                    f"{self.save('index.npy', index)}"])

    def test_compiled_kernels(self):
        bias, w = self.normal(H, 1, NK), self.normal(H)
        doc = np.sort(self.rng.integers(0, 4, (B, NK)), 1)
        wide = w.astype(float)[None, :, None, None]
        files = [f for n, a in (("doc", doc), ("w", w))
                 for f in ("--tensor", f"{n}={self.save(n + '.npy', a)}")]
        report = self.agree(
            self.inputs(), (doc[:, None, :NQ, None] == doc[:, None, None, :]) &
            (abs(q_ // 16 - k_ // 16) <= 1),
            ["--mask", "expr:doc[b,q] == doc[b,k]", "--score", "s * w[h]",
             "--bias", self.save("bias.npy", bias), *files, "--sparsity",
             "longformer:global=0", "--sparsity-block", "16"],
            lambda s: (s + bias) * wide, lambda s: wide * np.ones_like(s),
            lambda g, s: {"bias": (g * wide).sum((0, 2))[:, None],
                          "w": (g * (s + bias)).sum((0, 2, 3))}, env=None)
        self.assertNotEqual(report["steps"][0]["tile"]["family"], "builtin")

    def test_types_of_tensors(self):
        for dtype in (np.float16, np.float32, np.float64):
            x = self.normal(NK).astype(dtype)
            self.agree(self.inputs(), True,
                       ["--score", "s + x[k]", "--tensor",
                        f"x={self.save('x.npy', x)}"],
                       lambda s, x=x: s + x.astype(np.float32),
                       grads=lambda g, s: {"x": g.sum((0, 1, 2))})
        for dtype in (np.int32, np.int64):
            x = self.rng.integers(-2**31, 2**31, NK).astype(dtype)
            self.agree(self.inputs(), np.broadcast_to(x > 5, (NQ, NK)),
                       ["--mask", "expr:x[k] > 5", "--tensor",
                        f"x={self.save('x.npy', x)}"])

    def test_bits(self):
        keep = self.rng.integers(0, 2, (H, NQ, NK)).astype(bool)
        keep[:, 16:32, :] = keep[:, 32:] = False
        keep[:, 5:9, 3:] = True
        wide = np.zeros((H, NQ, (NK + 31) // 32 * 32), bool)
        wide[..., :NK] = keep
        bits = np.packbits(wide, axis=-1, bitorder="little")
        for env in (BUILTIN, None):
            self.agree(self.inputs(), keep[None],
                       ["--mask", "expr:keep[h,q,k]", "--tensor",
                        f"keep={self.save('keep.npy', bits)}"], env=env)
        self.refused("run", "--mask", "expr:keep[h,q,k]", "--tensor",
                     f"keep={self.save('odd.npy', bits[..., :-1])}",
                     says=("odd.npy", "u8", f"{bits.shape[-1]} bytes"))
        self.refused("run", "--mask", "expr:keep", "--tensor",
                     f"keep={self.save('one.npy', bits[0, 0, 0])}",
                     says=("one.npy", "4 bytes"))

    def test_packed_sequences(self):
        bias = self.normal(2, H, 30, 40)
        out = self.path("out")
        x = (self.normal(37, H, D), self.normal(53, HK, D),
             self.normal(53, HK, D))
        files = [f for n, a in zip("qkv", x)
                 for f in ("--" + n, self.save(n + ".npy", a))]
        report = self.object(
            "run", *files, "--cu-seqlens-q", "0,30,37", "--cu-seqlens-k",
            "0,13,53", "--bias", self.save("b.npy", bias), "--mask",
            "expr:k % 2 == b", "--check", "--out", out, env=BUILTIN)
        self.assertTrue(report["check"]["ok"])
        got = np.load(out + "/o.npy")
        for b, (q0, q1, k0, k1) in enumerate(((0, 30, 0, 13),
                                              (30, 37, 13, 53))):
            one = [a[None, lo:hi].transpose(0, 2, 1, 3).astype(float)
                   for a, lo, hi in zip(x, (q0, k0, k0), (q1, k1, k1))]
            o, _ = attention(*one, np.arange(k1 - k0) % 2 == b,
                             score=lambda s: s + bias[b, None, :, :q1 - q0,
                                                      :k1 - k0])
            self.assertLess(rel_err(got[q0:q1].transpose(1, 0, 2), o[0]),
                            LIMIT["f32"])

    def test_a_lua_file_says_the_same(self):
        doc = self.save("doc.npy", np.sort(self.rng.integers(0, 4, (B, NK)), 1))
        slope = self.save("slope.npy", self.normal(H))
        flags = ["--mask", "expr:doc[b,q] == doc[b,k] // here\n", "--score",
                 "s * slope[h]", "--tensor", f"doc={doc}", "--tensor",
                 f"slope={slope}", "--sparsity", "longformer:window=1",
                 "--sparsity-block", "16"]
        spec = self.write("a.lua", f"""
            return {{ score = "s * slope[h]",
                      mask = [[expr:
                          doc[b,q] == doc[b,k] // here
                          ]],
                      tensor = {{ doc = "{doc}", slope = "{slope}" }},
                      sparsity = "longformer:window=1",
                      sparsity_block = 16 }}""")
        one, other = (self.compute(x, *args, grad=False) for x in
                      (self.inputs(),) for args in (flags, ("--spec", spec)))
        self.assertEqual(one[0]["spec"], other[0]["spec"])
        np.testing.assert_array_equal(one[1]["o"], other[1]["o"])

    def test_what_nobody_sees_does_not_leak(self):
        x = self.inputs()
        for a, junk in ((x[1], np.nan), (x[2], np.inf)):
            a[:, :, 30:40] = junk
        clean = [a.copy() for a in x]
        clean[1][:, :, 30:40] = clean[2][:, :, 30:40] = 0
        for env in (BUILTIN, None):
            for args in (("--mask", "expr:k < 30 || k >= 40"),
                         ("--score", "k >= 30 && k < 40 ? -inf : s")):
                with self.subTest(args=args, env=env):
                    got, want = (self.compute(a, *args, env=env)[1]
                                 for a in (x, clean))
                    for name in ("o", "lse", "dq", "dk", "dv"):
                        np.testing.assert_allclose(got[name], want[name],
                                                   1e-4, 1e-5)
                    self.assertFalse(got["dk"][:, :, 30:40].any())

    def test_emit_lists_the_tensors(self):
        x = self.save("x.npy", self.normal(NK))
        j = self.object("emit", "-o", self.path("src"), "--score", "s + x[k]",
                        "--mask", "expr:i32 doc[:,:]; doc[b,q] == doc[b,k]",
                        "--tensor", f"x={x}", "--pass", "bwd")
        self.assertEqual(j["tensors"], [
            {"name": "doc", "dtype": "i32", "rank": 2, "grad": False},
            {"name": "x", "dtype": "f32", "rank": 1, "grad": True}])
        names = [p["name"] for s in j["steps"] for p in s["params"]]
        for name in ("tensor_doc", "tensor_doc_n1", "tensor_x_step0",
                     "dtensor_x"):
            self.assertIn(name, names)

    def test_json_has_the_fields(self):
        x = self.save("x.npy", self.normal(NK))
        j = self.object("explain", "--score", "s+x[k]*2.0", "--tensor",
                        f"x={x}", "--mask", "expr:q>=k", "--sparsity",
                        "butterfly:2", "--pass", "bwd")
        s = j["spec"]
        self.assertEqual((s["mask"], s["mask_program"], s["score_program"],
                          s["sparsity"], s["tensor_grads"]),
                         ("program", "k <= q", "f32 x[:]; s + x[k] * 2.0",
                          "butterfly:m=2,global=0,causal=0 block=64", 1))


# Arguments, and what the message has to say.
FAULTS = (
    (("--mask", "expr:k <= x"), ("column 6", "'x'", "nearest")),
    (("--mask", "expr:k <="), ("column 5", "the end")),
    (("--mask", "expr:k"), ("a mask takes bool, not int",)),
    (("--mask", "expr:"), ("--mask", "expected a value")),
    (("--mask", "expr"), ("--mask", "expected a value")),
    (("--score", "k < q"), ("a score is a number, not bool",)),
    (("--score", "s + doc[k]", "--tensor", "doc=I2"), ("doc", "2")),
    (("--score", "i32 doc[:]; s + doc[k]", "--tensor", "doc=I2"),
     ("doc is i32 of 2 dimensions, not i32 of 1",)),
    (("--score", "f32 doc[:,:]; s + doc[b,k]", "--tensor", "doc=I2"),
     ("doc is i32",)),
    (("--score", "s + doc[b,1.5]", "--tensor", "doc=I2"), ("int",)),
    (("--score", "s + sin(q)"), ("unknown function 'sin'", "nearest")),
)
LINES = (
    (("--score", "f32 x[:]; s + x[k]"), ("x", "--tensor x=FILE.npy")),
    (("--score", "s", "--tensor", "doc=I2"), ("no expression reads doc",)),
    (("--score", "s + dco[b,k]", "--tensor", "doc=I2", "--tensor", "dco=I2"),
     ("no expression reads doc", "nearest: dco")),
    (("--tensor", "doc"), ("NAME=FILE.npy",)),
    (("--tensor", "=I2"), ("NAME=FILE.npy",)),
    (("--tensor", "doc="), ("NAME=FILE.npy",)),
    (("--tensor", "d c=I2", "--score", "s"), ("d c", "letters")),
    (("--tensor", "q=I2", "--score", "s"), ("does not use",)),
    (("--tensor", "x=R5", "--score", "s"), ("at most 4",)),
    (("--tensor", "x=BIG", "--score", "s + x[k]"),
     ("element 1", "4294967296", "nearest accepted: 2147483647")),
    (("--bias", "I2"), ("i32", "f16 f32 f64")),
    (("--bias", "R5"), ("[B or 1, H or 1, Nq or 1, Nk or 1]",)),
    (("--bias", "F34", "--seqlen", "5"), ("seqlen_q", "3", "5")),
    (("--sparsity", "butterfl"), ("nearest: butterfly",)),
    (("--sparsity", "butterfly:m=99"), ("0..30", "nearest 30")),
    (("--sparsity", "butterfly:m=9"), ("16 blocks", "nearest m=4")),
    (("--sparsity", "butterfly:n=9"), ("'n'", "m")),
    (("--sparsity", "longformer", "--sparsity-block", "24"),
     ("multiple of 16", "nearest 32")),
    (("--sparsity", "strided", "--sparsity-block", "16"), ("element-wise",)),
    (("--sparsity-block", "16"), ("--sparsity",)),
    (("--sparsity", "bsr"), ("bsr:INDPTR.npy,INDICES.npy",)),
    (("--sparsity", "bsr:I2"), ("bsr:INDPTR.npy,INDICES.npy",)),
    (("--sparsity", "bsr:F34,I1"), ("f32 data", "i32 i64")),
    (("--sparsity", "bsr:I1,I2"), ("[blocks]",)),
    (("--sparsity", "bsr:I1,I1"), ("accepted: 17 numbers",)),
    (("--sparsity", "bsr:AT,TWICE", "--seqlen", "64"), ("twice",)),
    (("--sparsity", "bsr:AT,FAR", "--seqlen", "64"), ("7", "0..0")),
    (("--sparsity", "bsr:FALLS,FAR", "--seqlen", "64"), ("falls",)),
)


class Faults(Case):
    FILES = {"I2": np.zeros((2, 9), np.int32), "I1": np.zeros(9, np.int64),
             "R5": np.zeros((1, 1, 1, 1, 2), np.float32),
             "BIG": np.array([1, 2**32]), "F34": np.zeros((3, 4), np.float32),
             "AT": np.array([0, 2]), "TWICE": np.array([0, 0]),
             "FAR": np.array([0, 7]), "FALLS": np.array([2, 0])}

    def arguments(self, args):
        """With the names of files for what FILES calls them."""
        out = []
        for a in args:
            for name, data in self.FILES.items():
                for mark in ("=", ":", ","):
                    if a.endswith(mark + name) or mark + name + "," in a:
                        a = a.replace(mark + name,
                                      mark + self.save(name + ".npy", data))
                if a == name:
                    a = self.save(name + ".npy", data)
            out.append(a)
        return out

    def test_faults_of_texts_mark_the_place(self):
        for args, says in FAULTS:
            for verb in ("run", "explain"):
                with self.subTest(verb=verb, args=args):
                    p = _attnc.attnc(verb, *self.arguments(args))
                    self.assertEqual((p.returncode, p.stdout), (2, ""),
                                     p.stderr)
                    lines = p.stderr.split("\n")
                    self.assertEqual((len(lines), lines[3]), (4, ""), p.stderr)
                    self.assertRegex(lines[2], r"^ *\^$")
                    for word in ("line 1 column", *says):
                        self.assertIn(word, lines[0])

    def test_other_faults_are_one_line(self):
        for args, says in LINES:
            with self.subTest(args=args):
                self.refused("run", *self.arguments(args), says=says,
                             env=BUILTIN)

    def test_lua_names_the_file(self):
        for text, says in (
                ('return { score = "s +" }', ("a.lua", "score", "the end")),
                ("return { mask = [[expr:k <=\n q &&]] }", ("line 2",))):
            p = _attnc.attnc("explain", "--spec", self.write("a.lua", text))
            self.assertEqual((p.returncode, p.stdout), (2, ""))
            for word in says:
                self.assertIn(word, p.stderr.split("\n")[0])
        for text in ('return { tensor = { "x.npy" } }',
                     'return { tensor = { x = {} } }',
                     'return { tensor = { ["x=y"] = "x.npy" } }',
                     'return { sparsity = "a\\nb" }'):
            self.refused("explain", "--spec", self.write("a.lua", text),
                         says="a.lua")


if __name__ == "__main__":
    unittest.main()
