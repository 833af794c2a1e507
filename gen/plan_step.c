/* SPDX-License-Identifier: Apache-2.0
 * What follows from a step's role and tile: its entry, grid, parameters,
 * buffers, scratch and figures. */
#include <stdio.h>
#include <string.h>

#include "program.h"

/* ---- names ------------------------------------------------------------- */

const char *role_name(int role) {
#define X(name) #name,
    static const char *const names[] = {ROLE_LIST(X)};
#undef X
    return role >= 0 && role < ROLE_COUNT ? names[role] : "?";
}

typedef struct ParamRow {
    const char *name;
    int kind;
} ParamRow;

static const ParamRow params[] = {
#define PARAM(name, kind) {#name, kind},
#include "param.def"
#undef PARAM
};

const char *param_name(int id) {
    return id >= 0 && id < PARAM_COUNT ? params[id].name : "?";
}

int param_kind(int id) {
    return id >= 0 && id < PARAM_COUNT ? params[id].kind : -1;
}

/* attn_ROLE_DTYPE_dD[vDV]_MASK__ARCH_ROWSxKEYS: left what is computed, right
 * how; ROWS alone where no block of keys is loaded. */
static void name_entry(const Plan *p, Step *s) {
    const attnc_spec *q = &p->spec;
    const int32_t *v = s->tile.v;
    char dims[32], blocks[32];
    if (q->head_dim_v == q->head_dim)
        snprintf(dims, sizeof dims, "d%d", q->head_dim);
    else
        snprintf(dims, sizeof dims, "d%dv%d", q->head_dim, q->head_dim_v);
    int block_k = tile_field_index(s->tile.family, "block_k");
    if (cuda_is_bwd(s->tile.family) && s->tile.family != TILE_cuda_rows)
        snprintf(blocks, sizeof blocks, "%dx%d", v[0], v[1]);
    else if (block_k >= 0)
        snprintf(blocks, sizeof blocks, "%dx%d", v[0], v[block_k]);
    else
        snprintf(blocks, sizeof blocks, "%d", v[0]);
    /* The precisions only bound what is shorter anyway. */
    snprintf(s->entry, sizeof s->entry, "attn_%.9s_%.4s_%.9s_%.6s__%.10s_%.12s",
             role_name(s->role), spec_spelling(q, "dtype"), dims,
             spec_spelling(q, "mask"), p->device.arch, blocks);
}

void plan_name(const Plan *p, char out[64]) {
    const Step *s = p->step;
    while (p->spec.pass == ATTNC_PASS_BWD && s + 1 < p->step + p->nstep &&
           !plan_bwd_is_main(s->role))
        s++;
    if (p->spec.pass == ATTNC_PASS_FWD)
        snprintf(out, 64, "%s", s->entry);
    else
        snprintf(out, 64, "attn_bwd%s",
                 s->entry + strlen("attn_") + strlen(role_name(s->role)));
}

/* ---- parameters -------------------------------------------------------- */

/* Has a launch of the spec this parameter? Which kernels read it is said by
 * role. */
static bool spec_gives(const attnc_spec *s, int id) {
    switch (id) {
    case PARAM_lens_k:
        return s->lens_k;
    case PARAM_cu_seqlens_q:
    case PARAM_cu_seqlens_k:
        return s->varlen;
    case PARAM_mask_left:
    case PARAM_mask_right:
        return s->mask == ATTNC_MASK_WINDOW;
    case PARAM_mask_prefix:
        return s->mask == ATTNC_MASK_PREFIX;
    case PARAM_mask_offset:
    case PARAM_mask_offset_mode:
        return spec_has_mask(s) || s->alibi || spec_reads(s, OPERAND_off);
    case PARAM_softcap:
        return s->softcap;
    case PARAM_slopes:
        return s->alibi;
    case PARAM_sink:
        return s->sink;
    case PARAM_tensor_parts:
    case PARAM_part_tensor:
        return spec_grads_parted(s);
    case PARAM_dropout_threshold:
    case PARAM_dropout_scale:
    case PARAM_dropout_seed:
    case PARAM_dropout_offset:
    case PARAM_dropout_first:
    case PARAM_dropout_heads:
        return s->dropout;
    default:
        return true;
    }
}

/* Does a kernel of this role read this parameter? A combine only merges what
 * the splits left: no Q, K, V and no mask; the sink joins the sum there. */
static bool uses(const attnc_spec *s, int role, int id) {
    if (!spec_gives(s, id))
        return false;
    if (s->pass == ATTNC_PASS_BWD)
        return plan_bwd_uses(role, id);
    bool keys = role == ROLE_fwd || role == ROLE_fwd_split;
    bool out = role != ROLE_fwd_split;
    switch (id) {
    case PARAM_q:
    case PARAM_k:
    case PARAM_v:
    case PARAM_q_stride_b:
    case PARAM_q_stride_h:
    case PARAM_q_stride_n:
    case PARAM_k_stride_b:
    case PARAM_k_stride_h:
    case PARAM_k_stride_n:
    case PARAM_v_stride_b:
    case PARAM_v_stride_h:
    case PARAM_v_stride_n:
    case PARAM_scale:
    case PARAM_lens_k:
    case PARAM_cu_seqlens_k:
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
        return keys;
    case PARAM_o:
    case PARAM_lse:
    case PARAM_o_stride_b:
    case PARAM_o_stride_h:
    case PARAM_o_stride_n:
    case PARAM_lse_stride_b:
    case PARAM_lse_stride_h:
    case PARAM_sink:
        return out;
    case PARAM_tensor:
    case PARAM_tensor_n:
    case PARAM_tensor_step:
        return keys;
    case PARAM_part_o:
    case PARAM_part_lse:
        return role == ROLE_fwd_split || role == ROLE_combine;
    case PARAM_parts:
    case PARAM_part_count:
        return role == ROLE_merge;
    case PARAM_seqlen_k:
        return role != ROLE_merge;
    case PARAM_batch:
    case PARAM_heads:
    case PARAM_kv_heads:
    case PARAM_seqlen_q:
    case PARAM_cu_seqlens_q:
        return true;
    default: /* the built-in kernel's, and those of the backward */
        return false;
    }
}

static bool reads(const Plan *p, const Step *s, int id) {
    if (cuda_is_bwd(s->tile.family)) {
        const Step *of = s->role == ROLE_dtensor ? &p->step[1] : s;
        return spec_gives(&p->spec, id) && cuda_bwd_uses(of, id);
    }
    if (s->role == ROLE_dtensor && plan_bwd_main(p))
        return uses(&p->spec, plan_bwd_main(p)->role, id); /* shares its code */
    return uses(&p->spec, s->role, id);
}

static int buf_named(const Plan *p, const char *name) {
    for (int i = 0; i < p->nbuf; i++) {
        if (!strcmp(p->buf[i].name, name))
            return i;
    }
    return -1;
}

static bool per_tensor(int id) {
    return id >= PARAM_tensor && id <= PARAM_dtensor;
}

/* One for each tensor, not for each of its dims? */
static bool is_whole(int id) {
    return id == PARAM_tensor || id == PARAM_dtensor;
}

void param_text(const Plan *p, const Param *param, char out[PARAM_TEXT]) {
    const char *name = param_name(param->id);
    bool one = per_tensor(param->id) && param->tensor >= 0;
    const char *tensor = one ? p->tensor[param->tensor].name : "";
    if (!one)
        snprintf(out, PARAM_TEXT, "%s", name);
    else if (is_whole(param->id))
        snprintf(out, PARAM_TEXT, "%s_%s", name, tensor);
    else
        snprintf(out, PARAM_TEXT, "tensor_%s_%s%d", tensor,
                 param->id == PARAM_tensor_n ? "n" : "step", param->dim);
}

/* Slots of one kind of parameter for every tensor of the programs. */
static void list_tensors(const Plan *p, Step *s, int id) {
    for (int i = 0; i < p->ntensor; i++) {
        if (id == PARAM_dtensor && !(p->spec.tensor_grads >> i & 1))
            continue;
        for (int dim = 0; dim < (is_whole(id) ? 1 : p->tensor[i].rank); dim++)
            s->param[s->nparam++] = (Param){id, -1, i, dim};
    }
}

/* The built-in kernel serves every spec: it takes all there is, each once (and
 * looks for tensors in the launch's arguments). */
static void list_params(const Plan *p, Step *s) {
    bool all = s->tile.family == TILE_builtin;
    s->nparam = 0;
    for (int id = 0; id < PARAM_COUNT; id++) {
        bool work = params[id].kind == WORK;
        if (all ? work : !reads(p, s, id))
            continue;
        if (per_tensor(id) && !all)
            list_tensors(p, s, id);
        else
            s->param[s->nparam++] =
                (Param){id, work ? buf_named(p, params[id].name) : -1, -1, 0};
    }
}

/* ---- grids and buffers ------------------------------------------------- */

static Extent extent4(int dim, int64_t div, int more, int64_t more_div) {
    return (Extent){{{DIM_BATCH, 1},
                     {DIM_KV_HEADS, 1},
                     {dim, div},
                     {more, more_div},
                     {DIM_ONE, 1}}};
}

static int split_of(const Tile *t) {
    return t->v[tile_field_index(t->family, "split_k")];
}

/* Heads that share a block: 1, unless the tile says more. */
static int heads_of(const Tile *t) {
    int i = tile_field_index(t->family, "heads");
    return i >= 0 && t->v[i] ? t->v[i] : 1;
}

/* Items of fwd_split count splits fastest, then blocks of rows. */
static Extent grid_of(const Plan *p, const Step *s) {
    int rows = s->tile.v[0], family = s->tile.family;
    if (family == TILE_cpu_bwd || family == TILE_cpu_rows ||
        (family == TILE_builtin && s->role != ROLE_fwd &&
         s->role != ROLE_merge))
        return plan_bwd_grid(p, s);
    if (cuda_is_bwd(family))
        return cuda_bwd_grid(p, s);
    if (s->role == ROLE_fwd_split)
        return extent4(DIM_ROWS, rows, DIM_SEQLEN_K, split_of(&s->tile));
    Extent x = extent4(DIM_ROWS, rows, DIM_ONE, 1);
    x.f[1].div = heads_of(&s->tile);
    return x;
}

static void add_buf(Plan *p, const char *name, int64_t fixed, int split_k) {
    Buf *b = &p->buf[p->nbuf++];
    *b = (Buf){.elem_bytes = 4, .zero = ZERO_NEVER, .fixed = fixed};
    snprintf(b->name, sizeof b->name, "%s", name);
    b->extent = extent4(DIM_SEQLEN_K, split_k, DIM_ROWS, 1);
}

int64_t extent_size(const Extent *x, const int64_t dims[DIM_COUNT]) {
    int64_t size = 1;
    for (int i = 0; i < 5 && x->f[i].dim != DIM_ONE; i++) {
        int64_t n = dims[x->f[i].dim], div = x->f[i].div;
        if (n < 0 || div < 1)
            return -1;
        n = n / div + (n % div != 0);
        if (__builtin_mul_overflow(size, n, &size))
            return -1;
    }
    return size;
}

/* ---- all of it --------------------------------------------------------- */

void plan_complete(Plan *p) {
    p->nbuf = 0;
    p->ntensor = spec_tensors(&p->spec, p->tensor);
    if (p->step[0].role == ROLE_fwd_split) {
        int split_k = split_of(&p->step[0].tile);
        add_buf(p, "part_o", p->spec.head_dim_v, split_k);
        add_buf(p, "part_lse", 1, split_k);
    }
    if (plan_bwd_main(p))
        plan_bwd_bufs(p);
    else if (cuda_bwd_plan(p))
        cuda_bwd_bufs(p);
    p->parted = plan_tensor_step(p) ? spec_grads_parted(&p->spec) : 0;
    p->tensor_parts = plan_tensor_parts(p);
    plan_tensor_bufs(p);
    for (int i = 0; i < p->nstep; i++) {
        Step *s = &p->step[i];
        name_entry(p, s);
        list_params(p, s);
        s->grid = grid_of(p, s);
        int64_t bytes = model_scratch_bytes(&p->spec, &p->device, &s->tile);
        s->scratch_bytes = (bytes + 63) / 64 * 64;
        if (tile_is_cuda(s->tile.family))
            cuda_launch(&p->spec, &p->device, s);
        model_figures(&p->spec, &p->shape, &p->device, &s->tile, &s->fig);
        if (plan_tensor_is(s->role) && plan_tensor_step(p))
            plan_tensor_figures(p, s, &s->fig);
        else if (s->tile.family == TILE_cpu_bwd)
            model_bwd_share(&p->spec, s->role, &s->fig);
        if (s->role == ROLE_dq_sum && tile_is_cuda(s->tile.family))
            model_cuda_dq_sum(&p->spec, &p->shape, &p->device, &s->fig);
    }
}
