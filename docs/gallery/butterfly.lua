-- SPDX-License-Identifier: Apache-2.0
-- Butterfly: blocks whose numbers differ in one bit.
return { seqlen = 512, heads = 4, head_dim = 32,
         sparsity = "butterfly", sparsity_block = 32 }
