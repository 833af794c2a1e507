-- SPDX-License-Identifier: Apache-2.0
-- BigBird by blocks: window, global and drawn ones.
return { seqlen = 512, heads = 4, head_dim = 32,
         sparsity = "ds-bigbird:random=2,window=3,global=1",
         sparsity_block = 32 }
