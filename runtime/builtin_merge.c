/* SPDX-License-Identifier: Apache-2.0
 * The precompiled kernel of pass=merge: a row of O and LSE from those of the
 * caller's parts. */
#include "builtin_item.h"

static float part_lse(const Item *t, const attnc_part *p, int64_t h,
                      int64_t n) {
    int64_t at = h * p->lse_stride_h + n;
    return p->lse[t->spec->varlen ? at : at + t->b * p->lse_stride_b];
}

static void part_row(const Item *t, const attnc_part *p, int64_t h, int64_t n,
                     float *to) {
    int dtype = p->f32 ? ATTNC_F32 : t->spec->dtype;
    int64_t at = h * p->o.stride_h + n * p->o.stride_n;
    at += t->spec->varlen ? 0 : t->b * p->o.stride_b;
    load(dtype, (const char *)p->o.data + at * dtype_bytes(dtype), t->dv, to);
}

static void store_lse(const Item *t, int64_t h, int64_t n, float lse) {
    int64_t at = h * length(t, AT_lse_stride_h) + n;
    at += t->spec->varlen ? 0 : t->b * length(t, AT_lse_stride_b);
    if (pointer(t, AT_lse))
        memcpy((char *)(uintptr_t)t->slot[AT_lse] + 4 * at, &lse, 4);
}

/* The mean of the parts' rows by e^lse; row n of head h. */
static void merge_row(const Item *t, int64_t h, int64_t n) {
    const attnc_part *parts = pointer(t, AT_parts);
    int64_t count = length(t, AT_part_count);
    float o[256] = {0}, row[256], top = -FLT_MAX, sum = 0;
    float sink = t->spec->sink ? float_at(t, AT_sink, h) : -INFINITY;
    for (int64_t i = 0; i < count; i++) {
        float lse = part_lse(t, &parts[i], h, n);
        top = lse <= top ? top : lse; /* NaN goes on */
    }
    top = sink <= top ? top : sink;
    sum = expf(sink - top);
    for (int64_t i = 0; i < count; i++) {
        float lse = part_lse(t, &parts[i], h, n), weight = expf(lse - top);
        if (lse == -INFINITY)
            continue;
        part_row(t, &parts[i], h, n, row);
        for (int c = 0; c < t->dv; c++)
            o[c] += weight * row[c];
        sum += weight;
    }
    int size = dtype_bytes(t->spec->dtype);
    char *to = row_ptr(t, AT_o, AT_o_stride_b, h, n);
    for (int c = 0; c < t->dv; c++)
        store(t->spec->dtype, sum == 0 ? 0 : o[c] / sum, to + c * size);
    store_lse(t, h, n, sum == 0 ? -INFINITY : top + logf(sum));
}

/* Items as those of builtin_fwd, counted upwards. */
void builtin_merge(const uint64_t *args, char *scratch, int64_t item) {
    Item t = {.slot = args};
    int64_t blocks = row_blocks(args), kv_heads = length(&t, AT_kv_heads);
    t.spec = pointer(&t, AT_spec);
    t.dv = t.spec->head_dim_v;
    t.group = length(&t, AT_heads) / kv_heads;
    t.hk = item / blocks % kv_heads;
    t.b = item / blocks / kv_heads;
    t.nq = length(&t, AT_seqlen_q);
    if (t.spec->varlen) {
        t.q0 = int_at(&t, AT_cu_seqlens_q, t.b);
        t.nq = int_at(&t, AT_cu_seqlens_q, t.b + 1) - t.q0;
    }
    int64_t r = item % blocks * ROWS, end = t.group * t.nq;
    end = end < r + ROWS ? end : r + ROWS;
    for (; r < end; r++)
        merge_row(&t, t.hk * t.group + r % t.group, t.q0 + r / t.group);
    (void)scratch;
}
