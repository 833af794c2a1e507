# SPDX-License-Identifier: Apache-2.0
"""Writes the tensors that the specs of this directory read to the current
directory: python3 tensors.py [SEED]"""
import sys

import numpy as np

rng = np.random.default_rng(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
BATCH, HEADS, N = 2, 4, 512


def save(name, array):
    np.save(name + ".npy", array)


save("prefix", np.array([96, 224], np.int32))
save("doc", np.searchsorted([130, 200, 370], np.arange(N), "right")[None]
     .repeat(BATCH, 0).astype(np.int32))
save("slope", 2.0 ** -np.arange(2, 2 + 2 * HEADS, 2))
save("table", rng.standard_normal((32, HEADS)))
save("swin", rng.standard_normal((169, HEADS)))
y, x = np.divmod(np.arange(49), 7)
save("region", np.stack([(y >= 4) * (w // 2) * 2 + (x >= 4) * (w % 2)
                         for w in (3, 2, 1, 0)]).astype(np.int32))
save("gate", rng.standard_normal(HEADS))
save("sink", rng.standard_normal(HEADS))
save("indptr", np.array([0, 1, 3, 4, 6, 8, 9, 11, 14]))
save("indices", np.array([0, 0, 1, 2, 0, 3, 3, 4, 5, 2, 6, 0, 4, 7]))
