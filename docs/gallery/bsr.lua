-- SPDX-License-Identifier: Apache-2.0
-- Blocks that index arrays list, as scipy has them.
return { seqlen = 512, heads = 4, head_dim = 32, sparsity_block = 64,
         sparsity = "bsr:indptr.npy,indices.npy" }
