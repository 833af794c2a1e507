/* SPDX-License-Identifier: Apache-2.0
 * Shared memory of one CUDA block of the backward, in bytes: the emitted
 * kernel takes its offsets from here, the model its footprint. */
#include "gen.h"

enum { TILE_ALIGN = 1024, CHUNK = 16 }; /* as in smem.c */

/* Of each of the other rows: delta, LSE, ends of its keys, slope, diagonal. */
enum { TABLE_BYTES = 24 };

/* dS for dQ is in f16 or bf16. */
enum { DS_BYTES = 2 };

static int64_t up(int64_t a, int64_t unit) {
    return (a + unit - 1) / unit * unit;
}

/* Lays out tiles of such rows one after the other, then the stages, which lie
 * over own rows that are in registers by then: dQ reads K where it lies. */
static void lay(CudaBwdSmem *c, const CudaBwd *b, int64_t row1, int64_t row2,
                int64_t align) {
    c->x2 = up(b->own * row1, align);
    int64_t own = c->x2 + up(b->own * row2, align);
    c->y1 = b->regs == 0 ? own : b->regs == 2 && b->dq == DQ_APART ? 0 : c->x2;
    c->y2 = c->y1 + up(b->other * row1, align);
    c->table = c->y2 + up(b->other * row2, align);
    int64_t end = c->table + (b->by_keys ? b->other * TABLE_BYTES : 0);
    c->stage_bytes = up(end - c->y1, align);
    c->total = c->y1 + b->stages * c->stage_bytes;
    c->ds = c->total;
    c->total += b->dq == DQ_APART ? 0 : b->own * b->other * DS_BYTES;
    c->total = c->total > own ? c->total : own;
}

/* Both dims are summed over in one product and run over in another: whole
 * steps of the instruction. */
static void mma_layout(const attnc_spec *s, const Device *d, const CudaBwd *b,
                       CudaBwdSmem *c) {
    int64_t elem = dtype_bytes(s->dtype);
    int64_t unit = s->dtype == ATTNC_F32 ? 8 : (int64_t)d->mma_k;
    c->dim = up(s->head_dim, unit);
    c->dim_v = up(s->head_dim_v, unit);
    lay(c, b, c->dim * elem, c->dim_v * elem, TILE_ALIGN);
}

/* f32 at an odd number of chunks between rows; see fma_layout in smem.c. */
static void fma_layout(const attnc_spec *s, const CudaBwd *b, CudaBwdSmem *c) {
    c->dim = up(s->head_dim, 4);
    c->dim_v = up(s->head_dim_v, 4);
    c->pitch1 = (c->dim / 4 | 1) * CHUNK;
    c->pitch2 = (c->dim_v / 4 | 1) * CHUNK;
    c->p_pitch = up(b->other, 32) * 4 + 2 * CHUNK;
    lay(c, b, c->pitch1, c->pitch2, CHUNK);
    c->p = c->total;
    c->total += b->own * c->p_pitch;
}

void cuda_bwd_smem(const attnc_spec *s, const Device *d, const Tile *t,
                   CudaBwdSmem *out) {
    CudaBwd b = cuda_bwd_of(t);
    *out = (CudaBwdSmem){0};
    if (t->family == TILE_cuda_rows) {
        out->total = CUDA_ROWS_THREADS * 8; /* sums of dsink */
        return;
    }
    if (b.mma)
        mma_layout(s, d, &b, out);
    else
        fma_layout(s, &b, out);
}
