/* SPDX-License-Identifier: Apache-2.0
 * What one CPU worker keeps between the stages of a work item, in bytes: the
 * emitted kernel takes its offsets from here, the model its footprint. */
#include <string.h>

#include "program.h"

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

static int64_t round_up(int64_t a, int64_t b) {
    return ceil_div(a, b) * b;
}

/* Reserves bytes at the next multiple of 64; returns where. */
static int64_t place(CpuScratch *c, int64_t bytes) {
    int64_t at = c->total;
    c->total += round_up(bytes, 64);
    return at;
}

/* Products of bf16 pairs in one instruction: Q, K and V are kept as pairs. */
static bool pairs(const attnc_spec *s, const Device *d) {
    return s->dtype == ATTNC_BF16 && !strcmp(d->arch, "avx512bf16");
}

/* Words of 32 keys for a block of them that starts in the middle of a patch
 * of 16, unless it is whole patches. */
static int64_t drop_words(int64_t keys) {
    int64_t patches = keys % 16 ? keys / 16 + 2 : keys / 16;
    return ceil_div(patches, 2);
}

static void forward(const attnc_spec *s, const Device *d, const Tile *t,
                    CpuScratch *c) {
    int64_t lanes = (int64_t)d->vector_bytes / 4;
    bool few = t->v[T_cpu_fwd_vecs] == 0;
    int64_t micro = few ? 1 : lanes * t->v[T_cpu_fwd_vecs];
    int64_t rows = t->v[T_cpu_fwd_block_q];
    int64_t keys = t->v[T_cpu_fwd_block_k];
    int64_t dim = few ? round_up(s->head_dim, lanes) : s->head_dim;
    int64_t dim_v = few ? round_up(s->head_dim_v, lanes) : s->head_dim_v;
    bool paired = pairs(s, d) && !few;
    if (paired)
        dim = ceil_div(dim, 2); /* one 32-bit word holds a pair */

    c->qt = place(c, rows * dim * 4);
    c->ot = place(c, rows * dim_v * 4);
    c->max = place(c, rows * 4);
    c->sum = place(c, rows * 4);
    c->pos = place(c, rows * 4);
    c->slope = place(c, s->alibi ? rows * 4 : 0);
    c->head = place(c, spec_has_programs(s) ? rows * 4 : 0);
    c->s = place(c, (keys + t->v[T_cpu_fwd_keys]) * micro * 4);
    c->seen = place(c, spec_has_programs(s) ? keys * micro * 4 : 0);
    bool copy = t->v[T_cpu_fwd_copy_kv];
    int64_t keys_v = paired ? ceil_div(keys, 2) : keys;
    c->k = place(c, copy ? keys * round_up(dim, lanes) * 4 : 0);
    c->v = place(c, copy ? keys_v * round_up(dim_v, lanes) * 4 : 0);
    c->drop = place(c, s->dropout ? drop_words(keys) * rows * 4 : 0);
}

/* Rows of scores that the register tiles of either kind may write beyond a
 * block of keys. */
static int64_t spare_keys(const Tile *t) {
    int keys = t->v[T_cpu_bwd_keys], kv_keys = t->v[T_cpu_bwd_kv_keys];
    return keys > kv_keys ? keys : kv_keys;
}

static void backward(const attnc_spec *s, const Device *d, const Tile *t,
                     CpuScratch *c) {
    int64_t lanes = (int64_t)d->vector_bytes / 4;
    int64_t micro = lanes * t->v[T_cpu_bwd_vecs];
    int64_t rows = t->v[T_cpu_bwd_block_q];
    int64_t keys = t->v[T_cpu_bwd_block_k];
    int64_t chunk = t->v[T_cpu_bwd_chunk_k] + t->v[T_cpu_bwd_kv_keys];
    int64_t dim = s->head_dim, dim_v = s->head_dim_v;
    int64_t subs = ceil_div(rows, micro);
    bool copy = t->v[T_cpu_bwd_copy_kv];

    c->qt = place(c, rows * dim * 4);
    c->dot = place(c, rows * dim_v * 4);
    c->q = place(c, rows * round_up(dim, lanes) * 4);
    c->dout = place(c, rows * round_up(dim_v, lanes) * 4);
    c->dqt = place(c, rows * dim * 4);
    c->top = place(c, rows * 4);
    c->rest = place(c, rows * 4);
    c->delta = place(c, rows * 4);
    c->pos = place(c, rows * 4);
    c->slope = place(c, s->alibi ? rows * 4 : 0);
    c->head = place(c, spec_has_programs(s) ? rows * 4 : 0);
    c->s = place(c, subs * (keys + spare_keys(t)) * micro * 4);
    c->ds = place(c, subs * (keys + spare_keys(t)) * micro * 4);
    int64_t scores = (keys + spare_keys(t)) * micro * 4;
    c->grad = place(c, s->tensor_grads ? scores : 0);
    c->index = place(c, s->tensor_grads ? scores : 0);
    c->bend = place(c, s->softcap ? (keys + spare_keys(t)) * micro * 4 : 0);
    c->k = place(c, copy ? keys * round_up(dim, lanes) * 4 : 0);
    c->v = place(c, copy ? keys * round_up(dim_v, lanes) * 4 : 0);
    c->drop = place(c, s->dropout ? drop_words(keys) * rows * 4 : 0);
    c->dk = place(c, chunk * round_up(dim, lanes) * 4);
    c->dv = place(c, chunk * round_up(dim_v, lanes) * 4);
}

void cpu_scratch(const attnc_spec *s, const Device *d, const Tile *t,
                 CpuScratch *out) {
    *out = (CpuScratch){0};
    if (t->family == TILE_cpu_bwd)
        backward(s, d, t, out);
    else
        forward(s, d, t, out);
}

int64_t cpu_bwd_footprint(const CpuScratch *c) {
    return c->dk;
}
