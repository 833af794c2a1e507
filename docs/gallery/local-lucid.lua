-- SPDX-License-Identifier: Apache-2.0
-- Local attention by windows: its own, one before, one after.
return { seqlen = 512, heads = 4, head_dim = 32,
         sparsity = "local-lucid:w=64,back=1,forward=1" }
