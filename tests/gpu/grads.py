# SPDX-License-Identifier: Apache-2.0
"""Gradients in f64, written out, with what their terms amount to before they
cancel: a row that sees one key has none, but for rounding."""
import numpy as np

from _cli import attention


def gradients(q, k, v, do, visible, scale, change, sink, keep, softcap):
    """{"dq": (value, size of terms), ..} of one entry, and its O and LSE.
    q [1,H,n,d], k and v [1,HK,m,..], do as O; keep multiplies weights."""
    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    keep = 1.0 if keep is None else keep
    o, lse = attention(q, k, v, visible, scale, change, sink, keep)
    s = scale * np.einsum("bhqd,bhkd->bhqk", q, wide_k)
    bend = 1 - np.tanh(s / softcap) ** 2 if softcap else 1.0
    seen = np.isfinite(lse)[..., None]
    p = np.exp(change(s) - np.where(seen, lse[..., None], 0))
    p = np.where(seen & visible, p, 0)
    dp = np.einsum("bhqd,bhkd->bhqk", do, wide_v) * keep
    delta = (do * o).sum(3)[..., None]

    def products(ds, q, k, p, do):
        def heads(x):
            return x.reshape(1, x.shape[1] // group, group,
                             *x.shape[2:]).sum(2)
        return {"dq": np.einsum("bhqk,bhkd->bhqd", ds, k),
                "dk": heads(np.einsum("bhqk,bhqd->bhkd", ds, q)),
                "dv": heads(np.einsum("bhqk,bhqd->bhkd", p * keep, do))}
    value = products(scale * p * (dp - delta) * bend, q, wide_k, p, do)
    size = products(scale * p * (abs(dp) + abs(delta)) * bend, abs(q),
                    abs(wide_k), p, abs(do))
    out = {n: (value[n], size[n]) for n in value}
    if sink is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            weight = np.exp(sink[None, :, None] - lse)
        out["dsink"] = (-(weight * delta[..., 0]).sum((0, 2)),
                        (weight * abs(delta[..., 0])).sum((0, 2)))
    return out, o, lse


FLOOR = 0.05 # of the terms' size counts where they cancel


def error(got, want, size):
    """Of all entries together; inf where something is not finite."""
    got, want, size = (np.concatenate([x.ravel() for x in y] + [np.zeros(1)])
                       for y in (got, want, size))
    if not np.isfinite(got).all():
        return np.inf
    scale = max(np.linalg.norm(want), FLOOR * np.linalg.norm(size), 1e-30)
    return float(np.linalg.norm(got - want) / scale)
