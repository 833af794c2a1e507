-- SPDX-License-Identifier: Apache-2.0
-- A gate for each head.
return { seqlen = 512, heads = 4, head_dim = 32, mask = "causal",
         score = "s * tanh(gate[h])", tensor = { gate = "gate.npy" } }
