/* SPDX-License-Identifier: Apache-2.0
 * The steps of a backward on a GPU, with their grids and buffer:
 *   delta     rowsum(dO O) - dLSE of every query row, and its LSE in log2 units
 *   bwd_dkdv  dK and dV: a block of keys against all queries that see them
 *   bwd_dq    dQ: a block of queries against all keys they see
 *   dsink     the gradient of the sinks
 * Nobody else writes what a block writes, so the order of sums is fixed. Or:
 *   bwd       dK and dV, and what the block's keys give to dQ: all of it where
 *             they are all keys, else added to f32 sums, in order or in any
 *   dq_sum    these sums to the type of dQ
 * And the steps of plan_tensor.c. */
#include <stdio.h>

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

int cuda_bwd_roles(const attnc_spec *s, const Tile *t, int role[PLAN_STEPS]) {
    int n = 0, dq = cuda_bwd_of(t).dq;
    role[n++] = ROLE_delta;
    role[n++] = dq == DQ_APART ? ROLE_bwd_dkdv : ROLE_bwd;
    if (dq == DQ_APART)
        role[n++] = ROLE_bwd_dq;
    else if (dq != DQ_BLOCK)
        role[n++] = ROLE_dq_sum;
    if (s->sink)
        role[n++] = ROLE_dsink;
    return plan_tensor_roles(s, role, n);
}

int cuda_bwd_family(int role) {
    return role == ROLE_bwd_dkdv || role == ROLE_bwd     ? 0
           : role == ROLE_bwd_dq || role == ROLE_dtensor ? 1
                                                         : 2;
}

bool cuda_bwd_plan(const Plan *p) {
    int families[4], role[PLAN_STEPS];
    if (p->spec.pass != ATTNC_PASS_BWD || p->device.kind == DEVICE_CPU)
        return false;
    cuda_bwd_families(&p->spec, &p->device, families);
    if (p->nstep < 2 || p->step[1].tile.family != families[0])
        return false;
    int n = cuda_bwd_roles(&p->spec, &p->step[1].tile, role);
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

Extent cuda_bwd_grid(const Plan *p, const Step *s) {
    if (plan_tensor_is(s->role))
        return plan_tensor_grid(p, s);
    if (s->role == ROLE_dsink)
        return (Extent){{{DIM_HEADS, 1}, {DIM_ONE, 1}}};
    if (s->role == ROLE_bwd && cuda_bwd_of(&s->tile).dq == DQ_BLOCK)
        return rows(DIM_ONE, 1); /* also where there are no keys */
    return rows(cuda_bwd_family(s->role) == 0 ? DIM_SEQLEN_K : DIM_ROWS,
                s->tile.v[0]);
}

bool cuda_bwd_uses(const Step *s, int id) {
    int dq = s->role == ROLE_bwd ? cuda_bwd_of(&s->tile).dq : DQ_APART;
    switch (id) {
    case PARAM_turns:
    case PARAM_ticket:
        return dq == DQ_ORDERED;
    case PARAM_part_dq:
        return dq == DQ_ORDERED || dq == DQ_ATOMIC || s->role == ROLE_dq_sum;
    default:
        return plan_bwd_uses(dq == DQ_BLOCK ? ROLE_bwd_dkdv : s->role, id);
    }
}

static void add_zeroed(Plan *p, const char *name, Extent x, int64_t fixed) {
    Buf *b = &p->buf[p->nbuf++];
    *b = (Buf){
        .elem_bytes = 4, .zero = ZERO_EACH_LAUNCH, .extent = x, .fixed = fixed};
    snprintf(b->name, sizeof b->name, "%s", name);
}

/* Two numbers a row; row r of a kv head is query r / group of head
 * r % group. Sums of dQ in f32, in pairs; turns count who has added to each
 * step's rows, the ticket who has started. */
void cuda_bwd_bufs(Plan *p) {
    p->buf[p->nbuf++] = (Buf){.name = "delta",
                              .elem_bytes = 4,
                              .zero = ZERO_NEVER,
                              .extent = rows(DIM_ROWS, 1),
                              .fixed = 2};
    CudaBwd b = cuda_bwd_of(&p->step[1].tile);
    if (b.dq == DQ_ORDERED || b.dq == DQ_ATOMIC)
        add_zeroed(p, "part_dq", rows(DIM_ROWS, 1),
                   (p->spec.head_dim + 1) / 2 * 2);
    if (b.dq == DQ_ORDERED) {
        add_zeroed(p, "turns", rows(DIM_ROWS, b.other), 1);
        add_zeroed(p, "ticket", (Extent){{{DIM_ONE, 1}}}, 1);
    }
}
