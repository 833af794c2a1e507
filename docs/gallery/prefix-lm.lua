-- SPDX-License-Identifier: Apache-2.0
-- Prefix LM: a prefix of each sequence sees all of itself, the rest is causal.
return { batch = 2, seqlen = 512, heads = 4, head_dim = 32,
         mask = "expr:k < prefix[b] || k <= q",
         tensor = { prefix = "prefix.npy" } }
