-- SPDX-License-Identifier: Apache-2.0
-- Swin: windows of 7 x 7 are batch entries; a table of relative positions is
-- their bias, and after a shift only the same region is seen.
return { batch = 4, seqlen = 49, heads = 4, head_dim = 32,
         tensor = { region = "region.npy", bias = "swin.npy" },
         mask = "expr:region[b, q] == region[b, k]",
         score = [[
    let dx = q % 7 - k % 7 + 6;
    let dy = q / 7 - k / 7 + 6;
    s + bias[dy * 13 + dx, h] ]] }
