-- SPDX-License-Identifier: Apache-2.0
-- Causal: no key after the query.
return { seqlen = 512, heads = 4, head_dim = 32, mask = "expr:k <= q" }
