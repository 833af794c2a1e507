-- SPDX-License-Identifier: Apache-2.0
-- Attention sinks: the first 4 keys stay visible beside a window, and a logit
-- of each head takes part in the softmax.
return { seqlen = 512, heads = 4, head_dim = 32, sink = "sink.npy",
         mask = "expr:k <= q && (q - k < 128 || k < 4)" }
