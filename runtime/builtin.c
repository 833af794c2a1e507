/* SPDX-License-Identifier: Apache-2.0
 * The precompiled generic kernel: run-time head dims and every feature of the
 * spec, for machines without a compiler. The emitted kernels' scheme: scores
 * transposed, BUILTIN_LANES query rows in the vector lanes; per item, key
 * blocks outside, sub-blocks of rows inside, online softmax in f32. */
#include "builtin_item.h"

/* Scores to weights under the new running maximum; O is rescaled when any
 * maximum moved. NaN never becomes a maximum but stays in weight and sum. */
static void softmax(Item *t, int u, int n, float *ot) {
    for (int half = 0; half < LANES; half += HALF) {
        f4 *max = (f4 *)(t->max + u * LANES + half), m = *max;
        f4 *sum = (f4 *)(t->sum + u * LANES + half), l = {0};
        f4 *s = (f4 *)(t->s + half);
        for (int r = 0; r < n; r++)
            m = pick(s[r * 2] > m, s[r * 2], m);
        for (int r = 0; r < n; r++) {
            f4 p = exp4(s[r * 2] - m);
            s[r * 2] = p;
            l += p;
        }
        f4 fix = exp4(*max - m);
        *sum = *sum * fix + l;
        i4 moved = *max != m;
        *max = m;
        if (moved[0] | moved[1] | moved[2] | moved[3])
            for (int c = 0; c < t->dv4; c++)
                *(f4 *)(ot + c * LANES + half) *= fix;
    }
}

/* Dropped weights become 0; the sums were formed of all. */
static void drop(Item *t, int u, int64_t j, int n) {
    uint16_t numbers[DROPOUT_PATCH];
    for (int x = 0; x < LANES; x++) {
        int64_t row = t->row[u * LANES + x], i = row / t->group;
        int64_t h = t->hk * t->group + row % t->group;
        for (int r = 0; r < n; r++) {
            int64_t at = j + r;
            if (r == 0 || at % DROPOUT_PATCH == 0)
                dropout_numbers(&t->drop, t->b, h, i, at / DROPOUT_PATCH,
                                numbers);
            if (numbers[at % DROPOUT_PATCH] < t->drop.threshold)
                t->s[r * LANES + x] = 0;
        }
    }
}

/* O^T += V^T P^T, 4 dims at a time. */
static void weigh(Item *t, int n, float *ot) {
    for (int c = 0; c < t->dv4; c += 4) {
        const float *v = t->v + c;
        f4 a[4][2];
        memcpy(a, ot + c * LANES, sizeof(a));
        for (int r = 0; r < n; r++) {
            f4 p0 = *(const f4 *)(t->s + r * LANES);
            f4 p1 = *(const f4 *)(t->s + r * LANES + HALF);
            for (int x = 0; x < 4; x++) {
                a[x][0] += v[r * t->dv4 + x] * p0;
                a[x][1] += v[r * t->dv4 + x] * p1;
            }
        }
        memcpy(ot + c * LANES, a, sizeof(a));
    }
}

/* The same where V holds NaN or infinity: excluded keys take no part at all,
 * not even as 0 times that. */
static void weigh_seen(Item *t, int n, float *ot) {
    for (int r = 0; r < n; r++)
        for (int x = 0; x < LANES; x++) {
            if (t->seen[r * LANES + x] == -INFINITY)
                continue;
            for (int c = 0; c < t->dv; c++)
                ot[c * LANES + x] += t->s[r * LANES + x] * t->v[r * t->dv4 + c];
        }
}

static void sub_block(Item *t, int u, int64_t j, int n, bool finite) {
    float *ot = t->ot + u * t->dv4 * LANES;
    bool any = false, all = true;
    for (int x = u * LANES; x < (u + 1) * LANES; x++) {
        any |= t->lo[x] < j + n && t->hi[x] > j;
        all &= t->lo[x] <= j && t->hi[x] >= j + n;
    }
    if (!any)
        return;
    dots(t->k, t->d, t->d, t->qt + u * t->d * LANES, n, t->s);
    score(t, u, j, n);
    if (!all)
        mask(t, u, j, n);
    if (t->has_programs)
        bend_scores(t, u, j, n);
    if (!finite)
        memcpy(t->seen, t->s, (size_t)n * LANES * 4);
    softmax(t, u, n, ot);
    if (t->drop.threshold)
        drop(t, u, j, n);
    if (finite)
        weigh(t, n, ot);
    else
        weigh_seen(t, n, ot);
}

/* ---- end --------------------------------------------------------------- */

/* No key and no sink: sum 0, O = 0, LSE = -inf. */
static void store_row(const Item *t, int r) {
    int64_t h = t->hk * t->group + t->row[r] % t->group;
    int64_t n = t->q0 + t->row[r] / t->group;
    const float *ot = t->ot + (r / LANES * t->dv4) * LANES + r % LANES;
    float sum = t->sum[r], by = sum == 0 ? 0 : t->grow / sum;
    char *o = row_ptr(t, AT_o, AT_o_stride_b, h, n);
    int size = dtype_bytes(t->spec->dtype);
    for (int c = 0; c < t->dv; c++)
        store(t->spec->dtype, ot[c * LANES] * by, o + c * size);
    if (!pointer(t, AT_lse))
        return;
    float lse = sum == 0 ? -INFINITY : t->max[r] + logf(sum);
    int64_t at = h * length(t, AT_lse_stride_h) + n;
    if (!t->spec->varlen)
        at += t->b * length(t, AT_lse_stride_b);
    memcpy((char *)(uintptr_t)t->slot[AT_lse] + 4 * at, &lse, 4);
}

static void carve(Item *t, char *scratch) {
    t->qt = (float *)open_programs(t, scratch);
    t->ot = t->qt + ROWS * t->d;
    t->v = t->ot + ROWS * t->dv4;
    t->k = t->v + KEYS * t->dv4;
    t->s = t->k + KEYS * t->d;
    t->seen = t->s + KEYS * LANES;
}

/* Items count the row blocks of a head downwards: under a causal mask the
 * longest come first. */
void builtin_fwd(const uint64_t *args, char *scratch, int64_t item) {
    Item t;
    int64_t blocks = row_blocks(args), block;
    int64_t offset = open_item(&t, args, item, blocks, &block);
    if (!open_rows(&t, (blocks - 1 - block) * ROWS, offset))
        return;
    carve(&t, scratch);
    load_queries(&t);
    memset(t.ot, 0, (size_t)ROWS * t.dv4 * 4);
    for (int64_t j = t.begin; j < t.end; j += KEYS) {
        int n = (int)(t.end - j < KEYS ? t.end - j : KEYS);
        bool finite = load_block(&t, j, n);
        for (int u = 0; u * LANES < t.rows; u++)
            sub_block(&t, u, j, n, finite);
    }
    for (int r = 0; r < t.rows; r++)
        store_row(&t, r);
}
