-- SPDX-License-Identifier: Apache-2.0
-- NATTEN, one dimension: 33 neighbours, moved inwards at the ends.
return { seqlen = 512, heads = 4, head_dim = 32,
         mask = [[expr:
    let first = min(max(q - 16, 0), nk - 33);
    first <= k && k < first + 33 ]] }
