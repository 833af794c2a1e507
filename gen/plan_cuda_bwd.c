/* SPDX-License-Identifier: Apache-2.0
 * The steps of a backward on a GPU, with their grids and buffer:
 *   delta     rowsum(dO O) - dLSE of every query row, and its LSE in log2 units
 *   bwd_dkdv  dK and dV: a block of keys against all queries that see them
 *   bwd_dq    dQ: a block of queries against all keys they see
 *   dsink     the gradient of the sinks
 * Nobody else writes what a block writes, so the order of sums is fixed. */
#include <string.h>

#include "gen.h"

void cuda_bwd_families(const attnc_spec *s, const Device *d, int out[4]) {
    Tile t = {.family = TILE_mma_dkdv, .from = FROM_SAFE};
    char why[TILE_WHY];
    cuda_bwd_safe(&t);
    bool mma = cuda_bwd_legal(s, d, &t, why);
    out[0] = mma ? TILE_mma_dkdv : TILE_fma_dkdv;
    out[1] = mma ? TILE_mma_dq : TILE_fma_dq;
    out[2] = TILE_cuda_rows;
    out[3] = -1;
}

int cuda_bwd_roles(const attnc_spec *s, int role[PLAN_STEPS]) {
    static const int roles[] = {ROLE_delta, ROLE_bwd_dkdv, ROLE_bwd_dq,
                                ROLE_dsink};
    int n = s->sink ? 4 : 3;
    for (int i = 0; i < n; i++)
        role[i] = roles[i];
    return n;
}

int cuda_bwd_family(int role) {
    return role == ROLE_bwd_dkdv ? 0 : role == ROLE_bwd_dq ? 1 : 2;
}

bool cuda_bwd_plan(const Plan *p) {
    int families[4], role[PLAN_STEPS];
    if (p->spec.pass != ATTNC_PASS_BWD || p->device.kind == DEVICE_CPU)
        return false;
    cuda_bwd_families(&p->spec, &p->device, families);
    int n = cuda_bwd_roles(&p->spec, role);
    bool same = p->nstep == n;
    for (int i = 0; same && i < n; i++)
        same = p->step[i].role == role[i] &&
               p->step[i].tile.family == families[cuda_bwd_family(role[i])];
    return same;
}

static Extent rows(int dim, int64_t div) {
    return (Extent){
        {{DIM_BATCH, 1}, {DIM_KV_HEADS, 1}, {dim, div}, {DIM_ONE, 1}}};
}

Extent cuda_bwd_grid(const Step *s) {
    if (s->role == ROLE_dsink)
        return (Extent){{{DIM_HEADS, 1}, {DIM_ONE, 1}}};
    return rows(s->role == ROLE_bwd_dkdv ? DIM_SEQLEN_K : DIM_ROWS,
                s->tile.v[0]);
}

/* Two numbers a row; row r of a kv head is query r / group of head
 * r % group. */
void cuda_bwd_bufs(Plan *p) {
    p->buf[p->nbuf++] = (Buf){.name = "delta",
                              .elem_bytes = 4,
                              .zero = ZERO_NEVER,
                              .extent = rows(DIM_ROWS, 1),
                              .fixed = 2};
}
