# SPDX-License-Identifier: Apache-2.0
"""What the tests of the command share: running it, arrays, a plain f64
attention of the few lines that anybody can check."""
import json
import os
import shutil
import tempfile
import unittest

import numpy as np

import _attnc

DTYPES = ("f32", "f16", "bf16")
# Relative error of O against f64 that unfused attention stays well within.
LIMIT = {"f32": 4e-6, "f16": 2e-3, "bf16": 1.6e-2}


class Case(unittest.TestCase):
    """A test in a directory of its own."""

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="attnc-cli-")
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.dir, name)

    def save(self, name, array):
        np.save(self.path(name), array)
        return self.path(name)

    def write(self, name, data):
        mode = "wb" if isinstance(data, bytes) else "w"
        with open(self.path(name), mode) as f:
            f.write(data)
        return self.path(name)

    def read(self, path):
        with open(path, "rb") as f:
            return f.read()

    def good(self, *args, rc=0, **kw):
        """Runs the command, which succeeds; what it printed."""
        p = _attnc.attnc(*args, **kw)
        self.assertEqual(p.returncode, rc, f"{args}\n{p.stdout}{p.stderr}")
        return p.stdout

    def object(self, *args, **kw):
        """The one JSON object it prints."""
        text = self.good(*args, "--json", **kw)
        self.assertEqual(text.count("\n"), 1, text)
        return json.loads(text)

    def refused(self, *args, rc=2, says=(), **kw):
        """Runs the command, which fails: stdout empty, one line on stderr."""
        p = _attnc.attnc(*args, **kw)
        what = f"{args}\n{p.stdout}{p.stderr}"
        self.assertEqual(p.returncode, rc, what)
        self.assertEqual(p.stdout, "", what)
        self.assertEqual(p.stderr.count("\n"), 1, what)
        self.assertTrue(p.stderr.startswith("attnc: "), what)
        for word in (says,) if isinstance(says, str) else says:
            self.assertIn(word, p.stderr)
        return p.stderr


def round_to(x, dtype):
    """x as the elements of dtype hold it, in f64."""
    x = np.asarray(x, np.float64)
    if dtype == "f32":
        return x.astype(np.float32).astype(np.float64)
    if dtype == "f16":
        return x.astype(np.float16).astype(np.float64)
    bits = x.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def attention(q, k, v, visible=None, scale=None, score=None, sink=None,
              keep=None):
    """O and LSE in f64; q [B,H,Nq,d], k [B,HK,Nk,d], v [B,HK,Nk,dv]; visible
    broadcasts to [B,H,Nq,Nk]; score maps s to s; keep multiplies weights."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    s = np.einsum("bhqd,bhkd->bhqk", q, k)
    s *= 1 / np.sqrt(q.shape[3]) if scale is None else scale
    s = score(s) if score else s
    if visible is not None:
        s = np.where(visible, s, -np.inf)
    m = s.max(3, initial=-np.inf)
    if sink is not None:
        m = np.maximum(m, sink[None, :, None])
    m = np.where(np.isfinite(m), m, 0)
    p = np.exp(s - m[..., None])
    total = p.sum(3)
    if sink is not None:
        total = total + np.exp(sink[None, :, None] - m)
    with np.errstate(divide="ignore", invalid="ignore"):
        lse = np.log(total) + m
        p = np.where(total[..., None] > 0, p / total[..., None], 0)
    p = p if keep is None else p * keep
    return np.einsum("bhqk,bhkd->bhqd", p, v), lse


def mask(nq, nk, kind, *numbers, off=None):
    """Which keys a query sees, [nq, nk]."""
    q, k = np.arange(nq)[:, None], np.arange(nk)[None, :]
    off = nk - nq if off is None else off
    if kind == "causal":
        return k <= q + off
    if kind == "window":
        return (q + off - numbers[0] <= k) & (k <= q + off + numbers[1])
    if kind == "prefix":
        return (k < numbers[0]) | (k <= q + off)
    return np.ones((nq, nk), bool)


def rel_err(x, ref):
    return np.linalg.norm(x - ref) / max(np.linalg.norm(ref), 1e-30)
