# SPDX-License-Identifier: Apache-2.0
"""Dropout by its sentence in docs/numerics.md, in NumPy: a definition that
shares no line with the project's own."""
import numpy as np

M0, M1 = np.uint64(0xd2511f53), np.uint64(0xcd9e8d57)
W0, W1 = 0x9e3779b9, 0xbb67ae85
LOW, HALF = np.uint64(0xffffffff), np.uint64(32)


def philox(counter, seed, rounds=7):
    """Four words for each counter, all of them arrays of one shape."""
    c = [np.asarray(x, np.uint64) for x in counter]
    key = [seed & 0xffffffff, seed >> 32]
    for _ in range(rounds):
        p0, p1 = M0 * c[0], M1 * c[2]
        c = [(p1 >> HALF) ^ c[1] ^ np.uint64(key[0]), p1 & LOW,
             (p0 >> HALF) ^ c[3] ^ np.uint64(key[1]), p0 & LOW]
        key = [(key[0] + W0) % 2 ** 32, (key[1] + W1) % 2 ** 32]
    return np.stack(c)


def kept(p, seed, offset, batch, heads, nq, nk, b0=0, h0=0, total=None):
    """Which weights are kept: bool [batch, heads, nq, nk]."""
    b, h, i, j = np.ogrid[:batch, :heads, :nq, :nk]
    head = (b0 + b) * (total or heads) + h0 + h
    t = 4 * (i % 8) + j % 8 // 2
    counter = np.broadcast_arrays(j // 16 * 32 + t, i // 16, head, offset)
    words = philox(counter, seed)
    e = j % 2 + 2 * (i // 8 % 2) + 4 * (j // 8 % 2)
    e = np.broadcast_to(e, words.shape[1:])
    word = np.take_along_axis(words, e[None] // 2, 0)[0]
    number = word >> (16 * (e % 2)).astype(np.uint64) & np.uint64(0xffff)
    return number >= threshold(p)


def threshold(p):
    return int(65536 * p + 0.5)


def grow(p):
    return 1 / (1 - threshold(p) / 65536)
