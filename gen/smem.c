/* SPDX-License-Identifier: Apache-2.0
 * Shared memory of one CUDA block, in bytes: the emitted kernel takes its
 * offsets from here, the model its footprint. */
#include "gen.h"

/* Tiles start where a swizzle's pattern of 8 rows of 128 bytes does. */
enum { TILE_ALIGN = 1024, CHUNK = 16 };

static int64_t up(int64_t a, int64_t unit) {
    return (a + unit - 1) / unit * unit;
}

static int64_t most(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* stages: tiles of K and V together; K gets the odd one, for it is needed
 * first. */
static void set_stages(CudaSmem *c, int stages) {
    c->k_stages = (stages + 1) / 2;
    c->v_stages = stages / 2;
}

/* Q over V, which comes last; but beyond the first K, which comes with it. */
static int64_t place_q(const CudaSmem *c, int64_t kv, int64_t q_bytes) {
    return most(c->k_bytes, (kv - q_bytes) / TILE_ALIGN * TILE_ALIGN);
}

static void mma_layout(const attnc_spec *s, const Device *d, const Tile *t,
                       CudaSmem *c) {
    int64_t elem = dtype_bytes(s->dtype);
    int64_t rows = t->v[T_mma_fwd_block_q], keys = t->v[T_mma_fwd_block_k];
    bool tf32 = s->dtype == ATTNC_F32;
    c->dim = up(s->head_dim, tf32 ? 8 : (int64_t)d->mma_k);
    c->dim_v = up(s->head_dim_v, 8);
    set_stages(c, t->v[T_mma_fwd_stages]);
    c->k_bytes = up(keys * c->dim * elem, TILE_ALIGN);
    c->v_bytes = up(keys * c->dim_v * elem, TILE_ALIGN);
    int64_t q_bytes = up(rows * c->dim * elem, TILE_ALIGN);
    int64_t kv = c->k_stages * c->k_bytes + c->v_stages * c->v_bytes;
    bool q_regs = t->v[T_mma_fwd_q_regs];
    c->k = q_regs ? 0 : q_bytes;
    c->v = c->k + c->k_stages * c->k_bytes;
    c->q = q_regs ? place_q(c, kv, q_bytes) : 0;
    c->total = most(c->k + kv, c->q + q_bytes);
    c->total = most(c->total, c->o + rows * c->dim_v * elem);
}

/* A phase of 8 threads reads 16 bytes of 8 keys: an odd number of chunks
 * between rows keeps them in different banks. P is written by 4 rows of 8
 * keys at once: rows 8 words apart, modulo 32. */
static void fma_layout(const attnc_spec *s, const Tile *t, CudaSmem *c) {
    int64_t rows = t->v[T_fma_fwd_block_q], keys = t->v[T_fma_fwd_block_k];
    c->dim = up(s->head_dim, 4);
    c->dim_v = up(s->head_dim_v, 4);
    set_stages(c, t->v[T_fma_fwd_stages]);
    c->q_pitch = (c->dim / 4 | 1) * CHUNK;
    c->v_pitch = c->dim_v / 4 * CHUNK;
    c->p_pitch = up(keys, 32) * 4 + 2 * CHUNK;
    c->k_bytes = keys * c->q_pitch;
    c->v_bytes = keys * c->v_pitch;
    c->k = rows * c->q_pitch;
    c->v = c->k + c->k_stages * c->k_bytes;
    c->p = c->v + c->v_stages * c->v_bytes;
    c->total = c->p + rows * c->p_pitch;
    c->total = most(c->total, c->o + rows * c->v_pitch);
}

void cuda_smem(const attnc_spec *s, const Device *d, const Tile *t,
               CudaSmem *out) {
    *out = (CudaSmem){0};
    if (t->family == TILE_mma_fwd)
        mma_layout(s, d, t, out);
    else if (t->family == TILE_fma_fwd)
        fma_layout(s, t, out);
    else
        return;
    bool mma = t->family == TILE_mma_fwd;
    int heads = t->v[mma ? T_mma_fwd_heads : T_fma_fwd_heads];
    out->team = heads ? up(out->total, TILE_ALIGN) : out->total;
    out->total = heads ? heads * out->team : out->total;
}
