-- SPDX-License-Identifier: Apache-2.0
-- T5's relative positions: 32 buckets, exact up to 8, then by powers; the
-- 0.001 keeps a logarithm that is a whole number on its side.
return { seqlen = 512, heads = 4, head_dim = 32, scale = 1,
         tensor = { table = "table.npy" },
         score = [[
    let d = k - q;
    let n = abs(d);
    let far = 8 + int(log(max(n, 1) / 8.0) * 2.88539 + 0.001);
    let bucket = (d > 0 ? 16 : 0) + (n < 8 ? n : min(far, 15));
    s + table[bucket, h] ]] }
