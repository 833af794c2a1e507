-- SPDX-License-Identifier: Apache-2.0
-- Sliding window: the last 128 keys.
return { seqlen = 512, heads = 4, head_dim = 32,
         mask = "expr:k <= q && q - k < 128" }
