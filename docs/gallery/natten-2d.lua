-- SPDX-License-Identifier: Apache-2.0
-- NATTEN, two dimensions: 7 x 7 neighbours in a picture of 32 columns, moved
-- inwards at its borders.
return { seqlen = 512, heads = 4, head_dim = 32,
         mask = [[expr:
    let x = min(max(q % 32 - 3, 0), 32 - 7);
    let y = min(max(q / 32 - 3, 0), nk / 32 - 7);
    x <= k % 32 && k % 32 < x + 7 && y <= k / 32 && k / 32 < y + 7 ]] }
