-- SPDX-License-Identifier: Apache-2.0
-- Soft cap: no score beyond 30.
return { seqlen = 512, heads = 4, head_dim = 32, mask = "causal",
         score = "30.0 * tanh(s / 30.0)" }
