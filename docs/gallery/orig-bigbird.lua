-- SPDX-License-Identifier: Apache-2.0
-- BigBird: both ends global, three drawn blocks a row.
return { seqlen = 512, heads = 4, head_dim = 32,
         sparsity = "orig-bigbird:random=3", sparsity_block = 32 }
