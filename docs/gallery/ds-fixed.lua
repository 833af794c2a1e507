-- SPDX-License-Identifier: Apache-2.0
-- DeepSpeed's fixed: both directions, global columns.
return { seqlen = 512, heads = 4, head_dim = 32,
         sparsity = "ds-fixed:stride=4,global=1", sparsity_block = 32 }
