-- SPDX-License-Identifier: Apache-2.0
-- Random blocks of 32 by a hash of their place, another draw for each head.
return { seqlen = 512, heads = 4, head_dim = 32,
         mask = [[expr:
    let a = q / 32; let e = k / 32;
    let x = (a * 73856093) ^ (e * 19349663) ^ (h * 83492791);
    let y = x * 1274126177;
    a == e || (y >> 13 & 7) == 0 ]] }
