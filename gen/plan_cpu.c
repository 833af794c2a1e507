/* SPDX-License-Identifier: Apache-2.0
 * What plans for CPUs decide before tiles: into how long pieces the keys may be
 * split. */
#include "order.h"

enum { SPLIT_LEAST = 256, SPLIT_INVARIANT = 1024, CHOICES = 16 };

/* So few query rows of one kv head that one block holds them. */
static bool few_rows(const attnc_shape *h, const Device *d) {
    int64_t rows = h->heads / h->kv_heads * h->seqlen_q;
    return rows <= 3 * (int64_t)d->vector_bytes; /* 12 vectors of f32 */
}

static int split_few(const attnc_spec *s, const attnc_shape *h,
                     const Device *d) {
    double items = (double)h->batch * (double)h->kv_heads;
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

/* Would the cores wait for an item that a pattern lets see far more keys than
 * others, however early it starts? */
static bool one_waits(const attnc_spec *s, const attnc_shape *h,
                      const Device *d) {
    const Loads *l = spec_loads(s, h->seqlen_q, h->seqlen_k);
    int64_t group = h->heads / h->kv_heads;
    Items x = {.group = group, .rows = group * h->seqlen_q, .splits = 1};
    x.block = 3 * (int64_t)d->vector_bytes;
    if (!l || s->varlen || s->batch_invariant)
        return false;
    double share = (double)h->batch * items_total(&x, l, h->kv_heads);
    return items_longest(&x, l, h->kv_heads) > share / d->cores;
}

bool split_fits(const attnc_spec *s, const attnc_shape *h, int64_t split_k) {
    int64_t splits = (h->seqlen_k + split_k - 1) / split_k;
    double rows = (double)h->batch * (double)h->heads * (double)h->seqlen_q;
    return (double)splits * rows * (s->head_dim_v + 1) * 4 <= SPLIT_BYTES;
}

int cpu_splits(const attnc_spec *s, const attnc_shape *h, const Device *d,
               int out[16]) {
    int n = 0;
    out[n++] = few_rows(h, d) ? split_few(s, h, d) : 0;
    if (out[0] || !one_waits(s, h, d))
        return n;
    for (int split = SPLIT_LEAST; 2 * (int64_t)split <= h->seqlen_k; split *= 2)
        if (n < CHOICES && split_fits(s, h, split))
            out[n++] = split;
    return n;
}
