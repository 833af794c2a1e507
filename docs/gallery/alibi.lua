-- SPDX-License-Identifier: Apache-2.0
-- ALiBi as a score, with slopes that can be trained.
return { seqlen = 512, heads = 4, head_dim = 32, mask = "causal",
         score = "s - slope[h] * abs(q + off - k)",
         tensor = { slope = "slope.npy" } }
