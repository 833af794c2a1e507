-- SPDX-License-Identifier: Apache-2.0
-- Sparse Transformer, strided: every 32nd key before the query.
return { seqlen = 512, heads = 4, head_dim = 32,
         sparsity = "strided:stride=32" }
