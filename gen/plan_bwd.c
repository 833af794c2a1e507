/* SPDX-License-Identifier: Apache-2.0
 * The steps of a backward on a CPU, and what follows from their main tile:
 * grids, parameters, buffers.
 *   delta     rowsum(dO O) - dLSE of every query row
 *   bwd       dK, dV and `parts` partial sums of dQ; then dq_sum adds these
 *   bwd_dkdv, bwd_dq   the same in two passes, each alone in what it writes
 *   dsink     the gradient of the sinks
 * and those of plan_tensor.c */
#include <stdio.h>
#include <string.h>

#include "program.h"

int plan_bwd_roles(const attnc_spec *s, const Tile *t, int role[PLAN_STEPS]) {
    int n = 0;
    if (t->family == TILE_builtin) { /* which recomputes delta */
        role[n++] = ROLE_bwd_dkdv;
        role[n++] = ROLE_bwd_dq;
        if (s->sink)
            role[n++] = ROLE_dsink;
        if (s->tensor_grads)
            role[n++] = ROLE_dtensor;
        return n;
    }
    role[n++] = ROLE_delta;
    if (t->v[T_cpu_bwd_parts]) {
        role[n++] = ROLE_bwd;
        role[n++] = ROLE_dq_sum;
    } else {
        role[n++] = ROLE_bwd_dkdv;
        role[n++] = ROLE_bwd_dq;
    }
    if (s->sink)
        role[n++] = ROLE_dsink;
    return plan_tensor_roles(s, role, n);
}

bool plan_bwd_cpu(const attnc_spec *s, int family) {
    return family == TILE_cpu_bwd ||
           (family == TILE_builtin && s->pass == ATTNC_PASS_BWD);
}

bool plan_bwd_is_main(int role) {
    return role == ROLE_bwd || role == ROLE_bwd_dkdv || role == ROLE_bwd_dq ||
           role == ROLE_dtensor;
}

const Step *plan_bwd_main(const Plan *p) {
    for (int i = 0; i < p->nstep; i++)
        if (p->step[i].tile.family == TILE_cpu_bwd)
            return &p->step[i];
    return NULL;
}

/* ---- grids ------------------------------------------------------------- */

static Extent extent(int dim, int64_t div) {
    return (Extent){
        {{DIM_BATCH, 1}, {DIM_KV_HEADS, 1}, {dim, div}, {DIM_ONE, 1}}};
}

Extent plan_bwd_grid(const Plan *p, const Step *s) {
    const int32_t *v = s->tile.v;
    bool builtin = s->tile.family == TILE_builtin;
    int chunk_k = builtin ? BUILTIN_KEYS : v[T_cpu_bwd_chunk_k];
    int heads = builtin ? 1 : v[T_cpu_rows_rows];
    switch (s->role) {
    case ROLE_bwd:
        return extent(DIM_PARTS, MOST_PARTS / v[T_cpu_bwd_parts]);
    case ROLE_bwd_dkdv:
        return extent(DIM_SEQLEN_K, chunk_k);
    case ROLE_bwd_dq:
        return extent(DIM_ROWS, v[T_cpu_bwd_block_q]);
    case ROLE_dsink:
        return (Extent){{{DIM_HEADS, heads}, {DIM_ONE, 1}}};
    case ROLE_dtensor_zero:
    case ROLE_dtensor:
    case ROLE_dtensor_sum:
        return builtin ? (Extent){{{DIM_ONE, 1}}} : plan_tensor_grid(p, s);
    default:
        return extent(DIM_ROWS, v[T_cpu_rows_rows]);
    }
}

/* ---- buffers ----------------------------------------------------------- */

static void add_buf(Plan *p, const char *name, int64_t fixed, Extent x) {
    Buf *b = &p->buf[p->nbuf++];
    *b =
        (Buf){.elem_bytes = 4, .zero = ZERO_NEVER, .extent = x, .fixed = fixed};
    snprintf(b->name, sizeof b->name, "%s", name);
}

/* Per row: delta two numbers, part_dq head_dim numbers in each part; row r of
 * a kv head is query r / group of head r % group. */
void plan_bwd_bufs(Plan *p) {
    int parts = plan_bwd_main(p)->tile.v[T_cpu_bwd_parts];
    Extent x = extent(DIM_ROWS, 1);
    add_buf(p, "delta", 2, x);
    if (!parts)
        return;
    x.f[3] = (Factor){DIM_PARTS, MOST_PARTS / parts};
    x.f[4] = (Factor){DIM_ONE, 1};
    add_buf(p, "part_dq", p->spec.head_dim, x);
}

/* ---- parameters -------------------------------------------------------- */

/* id: the address of a tensor; are this and its three strides meant? */
static bool is_tensor(int id, int tensor, int first_stride) {
    return id == tensor || (id >= first_stride && id < first_stride + 3);
}

/* The two passes share their arguments, and so all of their code. */
static bool passes(int role) {
    return role == ROLE_bwd_dkdv || role == ROLE_bwd_dq;
}

static bool reads_tensor(int role, int id) {
    bool main = plan_bwd_is_main(role);
    if (is_tensor(id, PARAM_q, PARAM_q_stride_b) ||
        is_tensor(id, PARAM_k, PARAM_k_stride_b) ||
        is_tensor(id, PARAM_v, PARAM_v_stride_b))
        return main;
    if (is_tensor(id, PARAM_o, PARAM_o_stride_b))
        return role == ROLE_delta;
    if (is_tensor(id, PARAM_dout, PARAM_dout_stride_b))
        return main || role == ROLE_delta;
    if (is_tensor(id, PARAM_dq, PARAM_dq_stride_b))
        return role == ROLE_dq_sum || passes(role);
    if (is_tensor(id, PARAM_dk, PARAM_dk_stride_b) ||
        is_tensor(id, PARAM_dv, PARAM_dv_stride_b))
        return main;
    return false;
}

bool plan_bwd_uses(int role, int id) {
    bool main = plan_bwd_is_main(role), keys = main || role == ROLE_dq_sum;
    if (plan_tensor_is(role) && !main)
        return plan_tensor_uses(role, id);
    switch (id) {
    case PARAM_lse:
    case PARAM_lse_stride_b:
    case PARAM_lse_stride_h:
        return role != ROLE_dq_sum;
    case PARAM_dlse:
        return role == ROLE_delta;
    case PARAM_dsink:
    case PARAM_sink:
        return role == ROLE_dsink;
    case PARAM_batch:
    case PARAM_heads:
    case PARAM_kv_heads:
    case PARAM_seqlen_q:
    case PARAM_cu_seqlens_q:
        return true;
    case PARAM_delta:
        return role != ROLE_dq_sum;
    case PARAM_seqlen_k:
    case PARAM_lens_k:
    case PARAM_cu_seqlens_k:
    case PARAM_scale:
        return keys;
    case PARAM_part_dq:
        return role == ROLE_bwd || role == ROLE_dq_sum;
    case PARAM_mask_left:
    case PARAM_mask_right:
    case PARAM_mask_prefix:
    case PARAM_mask_offset:
    case PARAM_mask_offset_mode:
    case PARAM_softcap:
    case PARAM_slopes:
    case PARAM_dropout_threshold:
    case PARAM_dropout_scale:
    case PARAM_dropout_seed:
    case PARAM_dropout_offset:
    case PARAM_dropout_first:
    case PARAM_dropout_heads:
    case PARAM_tensor:
    case PARAM_tensor_n:
    case PARAM_tensor_step:
    case PARAM_dtensor:
    case PARAM_part_tensor:
    case PARAM_tensor_parts:
        return main;
    default:
        return reads_tensor(role, id);
    }
}
