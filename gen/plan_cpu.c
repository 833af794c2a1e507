/* SPDX-License-Identifier: Apache-2.0
 * What plans for CPUs decide before tiles: whether the keys are split. */
#include "gen.h"

enum { SPLIT_LEAST = 256, SPLIT_INVARIANT = 1024 };

/* So few query rows of one kv head that one block holds them. */
static bool few_rows(const attnc_shape *h, const Device *d) {
    int64_t rows = h->heads / h->kv_heads * h->seqlen_q;
    return rows <= 3 * (int64_t)d->vector_bytes; /* 12 vectors of f32 */
}

int cpu_split(const attnc_spec *s, const attnc_shape *h, const Device *d) {
    double items = (double)h->batch * (double)h->kv_heads;
    if (!few_rows(h, d))
        return 0;
    if (s->batch_invariant)
        return s->varlen ? 0 : SPLIT_INVARIANT;
    if (items >= 2 * d->cores || h->seqlen_k < 2 * SPLIT_LEAST)
        return 0;
    double wanted = (double)h->seqlen_k * items / (4 * d->cores);
    int split = SPLIT_LEAST;
    while (split * 2.0 <= wanted)
        split *= 2;
    return split;
}
