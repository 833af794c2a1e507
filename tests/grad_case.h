/* SPDX-License-Identifier: Apache-2.0
 * A case with its gradients: the forward runs first, its O and LSE become
 * inputs of the backward, whose outputs lie in poison. */
#ifndef GRAD_CASE_H
#define GRAD_CASE_H

#include "case.h"

typedef struct GradData {
    Data d;
    Block dout, dq, dk, dv, dlse;
    float *dsink;
} GradData;

/* For AVX2 and f32: one pass, and two. */
static const char *const grad_tiles[] = {
    "block_q=48,block_k=32,vecs=3,keys=4,dims=4,kv_keys=6,kv_vecs=2,"
    "chunk_k=64,parts=2,copy_kv=1",
    "block_q=48,block_k=32,vecs=3,keys=4,dims=4,kv_keys=4,kv_vecs=3,"
    "chunk_k=64,parts=0,copy_kv=0"};
enum { GRAD_TILES = sizeof grad_tiles / sizeof *grad_tiles };

static inline attnc_plan *plan_with(attnc_context *ctx, const attnc_spec *s,
                                    const char *tile) {
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    attnc_prepare_options o = {sizeof o, tile};
    attnc_plan *plan = NULL;
    if (attnc_prepare_with(ctx, s, &h, &o, &plan))
        fail_msg("prepare: %s", attnc_last_error()->text);
    return plan;
}

static inline attnc_spec grad_spec(const Case *c) {
    attnc_spec s = c->spec;
    s.pass = ATTNC_PASS_BWD;
    return s;
}

static inline void grad_poison(GradData *g) {
    Block *blocks[] = {&g->dq, &g->dk, &g->dv};
    for (int i = 0; i < 3; i++) {
        memset(blocks[i]->base, 0x5a, blocks[i]->bytes);
        memset(blocks[i]->kept, 0x5a, blocks[i]->bytes);
    }
    for (int64_t h = 0; h < g->d.args.heads; h++)
        g->dsink[h] = NAN;
}

/* dLSE in three cases of four, laid out as LSE. */
static inline void dlse_make(const Case *c, GradData *g) {
    attnc_args *a = &g->d.args;
    block_make(&g->dlse, g->d.lse.bytes, 0);
    int64_t n = c->spec.varlen ? 1 : c->batch;
    for (int64_t i = 0; i < n * a->lse_stride_b; i++)
        ((float *)(g->dlse.base + GUARD))[i] = random_float();
    memcpy(g->dlse.kept, g->dlse.base, g->dlse.bytes);
    if (random_int(0, 3))
        a->dlse = (const float *)(g->dlse.base + GUARD);
}

static inline void grad_make(const Case *c, GradData *g) {
    *g = (GradData){0};
    data_make(c, &g->d);
    attnc_args *a = &g->d.args;
    int64_t nq = g->d.cu_q ? g->d.cu_q[c->batch] : c->nq;
    int64_t nk = g->d.cu_k ? g->d.cu_k[c->batch] : c->nk;
    int own = c->layout == SHARED ? BNHD : c->layout;
    int other = c->layout == SHARED ? GAPS : c->layout;
    int d = c->spec.head_dim, dv = case_dv(c);
    tensor_make(c, &g->dout, &a->dout, other, c->heads, nq, dv, 0);
    tensor_make(c, &g->dq, &a->dq, own, c->heads, nq, d, GUARD);
    tensor_make(c, &g->dk, &a->dk, own, c->kv_heads, nk, d, GUARD);
    tensor_make(c, &g->dv, &a->dv, own, c->kv_heads, nk, dv, GUARD);
    fill(c, &g->dout, &a->dout, c->heads, g->d.cu_q, nq, dv, NULL);
    g->dsink = malloc(sizeof(float) * (size_t)c->heads);
    a->dsink = c->spec.sink ? g->dsink : NULL;
    dlse_make(c, g);
    grad_poison(g);
}

static inline void grad_free(GradData *g) {
    Block *blocks[] = {&g->dout, &g->dq, &g->dk, &g->dv, &g->dlse};
    for (int i = 0; i < 5; i++)
        block_free(blocks[i]);
    free(g->dsink);
    data_free(&g->d);
}

/* O and LSE of the forward become inputs that nobody may touch. */
static inline void grad_launch(const Case *c, attnc_plan *fwd, attnc_plan *bwd,
                               GradData *g) {
    Data *d = &g->d;
    case_launch(c, fwd, d);
    memcpy(d->o.kept, d->o.base, d->o.bytes);
    memcpy(d->lse.kept, d->lse.base, d->lse.bytes);
    case_launch(c, bwd, d);
}

/* Takes a result out of the comparison of what must be kept. */
static inline void grad_forgive(const Case *c, const attnc_tensor *t, Block *b,
                                int64_t heads, const int32_t *cu, int64_t n,
                                int dim) {
    for (int64_t e = 0; e < c->batch; e++) {
        int64_t from, to;
        rows_of(c, cu, n, e, &from, &to);
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = from; i < to; i++) {
                char *at = element(c, t, e, h, i);
                memcpy(b->kept + (at - b->base), at,
                       (size_t)(dim * dtype_bytes(c->spec.dtype)));
            }
    }
}

static inline void grad_check_kept(const Case *c, GradData *g) {
    Data *d = &g->d;
    const attnc_args *a = &d->args;
    grad_forgive(c, &a->dq, &g->dq, c->heads, d->cu_q, c->nq, c->spec.head_dim);
    grad_forgive(c, &a->dk, &g->dk, c->kv_heads, d->cu_k, c->nk,
                 c->spec.head_dim);
    grad_forgive(c, &a->dv, &g->dv, c->kv_heads, d->cu_k, c->nk, case_dv(c));
    const Block *blocks[] = {&d->q,    &d->k,    &d->v,  &d->o,  &d->lse,
                             &g->dout, &g->dlse, &g->dq, &g->dk, &g->dv};
    const char *names[] = {"q",    "k",    "v",  "o",  "lse",
                           "dout", "dlse", "dq", "dk", "dv"};
    blocks_kept(c, blocks, names, 10, &d->workspace);
}

static inline void grad_check_results(const Case *c, const GradData *g) {
    attnc_spec s = grad_spec(c);
    RefCheck r;
    Err e = {0};
    if (reference_check_bwd(&s, &g->d.args, 1, NULL, NULL, &r, &e))
        fail_msg("reference: %s", e.text);
    if (r.ok)
        return;
    case_print(c);
    for (int i = 0; i < REF_GRADS; i++)
        print_error("%s %.3g, unfused %.3g, limit %.3g\n",
                    reference_grad_name(i), r.grad[i].err, r.grad[i].unfused,
                    r.grad[i].limit);
    for (int i = 0; i < r.tensors; i++)
        print_error("%s %.3g, unfused %.3g, limit %.3g\n", r.tensor[i].name,
                    r.tensor[i].err, r.tensor[i].unfused, r.tensor[i].limit);
    fail_msg("%s", r.why);
}

/* Fresh data, forward, backward, all checks. */
static inline void grad_check(const Case *c, attnc_plan *fwd, attnc_plan *bwd) {
    GradData g;
    grad_make(c, &g);
    grad_launch(c, fwd, bwd, &g);
    grad_check_results(c, &g);
    grad_check_kept(c, &g);
    grad_free(&g);
}

#endif
