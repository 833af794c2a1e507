# SPDX-License-Identifier: Apache-2.0
"""Attention, plainly; the efficient back end refuses, for one must."""
import types

import numpy as np

chosen = [None]


def attend(q, k, v, is_causal):
    if chosen[0] == "efficient":
        raise RuntimeError("No available kernel. Aborting execution.")
    from torch import Tensor
    n = q.shape[2]
    s = q.x.astype(float) @ k.x.astype(float).swapaxes(2, 3)
    s /= np.sqrt(q.shape[3])
    s[..., np.triu(np.ones((n, n), bool), 1) & is_causal] = -np.inf
    p = np.exp(s - s.max(3, keepdims=True))
    return Tensor(p / p.sum(3, keepdims=True) @ v.x.astype(float))


functional = types.SimpleNamespace(scaled_dot_product_attention=attend)
