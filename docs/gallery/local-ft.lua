-- SPDX-License-Identifier: Apache-2.0
-- Local attention: 128 keys around the query.
return { seqlen = 512, heads = 4, head_dim = 32,
         sparsity = "local-ft:c=128" }
