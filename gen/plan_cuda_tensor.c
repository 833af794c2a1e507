/* SPDX-License-Identifier: Apache-2.0
 * The step of a backward on a GPU that sums gradients of tensors: what its
 * blocks own, their tile, and shared memory for a tile's pairs. */
#include "program.h"

/* Of each pair which element it adds to, and what. */
int64_t cuda_tensor_smem(const attnc_spec *s, const Device *d, const Tile *t) {
    CudaBwdSmem m;
    CudaBwd b = cuda_bwd_of(t);
    cuda_bwd_smem(s, d, t, &m);
    return m.total + (int64_t)b.own * b.other * 8;
}

/* Tiles of 64 x 32 where there are so many queries and they fit; else the
 * smallest. */
void cuda_tensor_tile(const Plan *p, Tile *t) {
    const Device *d = &p->device;
    char why[TILE_WHY];
    bool mma = t->family == TILE_mma_dq;
    Tile large = {.family = t->family, .from = FROM_SAFE};
    *t = large;
    cuda_bwd_safe(t);
    large.v[T_mma_dq_dq_block_q] = mma ? 64 : 32;
    large.v[T_mma_dq_dq_block_k] = mma ? 32 : 16;
    large.v[T_mma_dq_dq_warps] = 4;
    large.v[T_mma_dq_dq_rows] = mma ? 16 : 8;
    large.v[T_mma_dq_dq_stages] = large.v[T_mma_dq_dq_blocks] = 1;
    bool fits =
        (double)cuda_tensor_smem(&p->spec, d, &large) + d->sram_reserved <=
        d->sram_bytes;
    if (p->shape.seqlen_q > 64 && fits &&
        tile_legal(&p->spec, &p->shape, d, &large, why))
        *t = large;
}
