-- SPDX-License-Identifier: Apache-2.0
-- Longformer by tokens: 64 to each side, 8 global tokens.
return { seqlen = 512, heads = 4, head_dim = 32,
         sparsity = "orig-longformer:w=64,global=8" }
