-- SPDX-License-Identifier: Apache-2.0
-- Sparse Transformer, fixed: its window and the last column of each.
return { seqlen = 512, heads = 4, head_dim = 32,
         sparsity = "fixed:stride=4,vert=1", sparsity_block = 32 }
