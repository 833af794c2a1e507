-- SPDX-License-Identifier: Apache-2.0
-- Documents packed into one row: causal inside each.
return { batch = 2, seqlen = 512, heads = 4, head_dim = 32,
         mask = "expr:doc[b, q] == doc[b, k] && k <= q",
         tensor = { doc = "doc.npy" } }
