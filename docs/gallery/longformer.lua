-- SPDX-License-Identifier: Apache-2.0
-- Longformer by blocks: 5 around the diagonal, the first block global.
return { seqlen = 512, heads = 4, head_dim = 32,
         sparsity = "ds-longformer:window=5,global=1", sparsity_block = 32 }
