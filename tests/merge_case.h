/* SPDX-License-Identifier: Apache-2.0
 * Attention over keys that lie in several segments: a launch for each, then a
 * merge, held against f64 attention over all keys, forward and backward. */
#ifndef MERGE_CASE_H
#define MERGE_CASE_H

#include "grad_case.h"

/* ---- targets ------------------------------------------------------------- */

typedef struct Target {
    const char *name;
    int kernel, cases; /* cases: kernels to compile for */
    attnc_context *ctx;
} Target;

static Target targets[] = {{"cpu", KERNEL_BUILTIN, 8, NULL},
                           {"cpu", KERNEL_COMPILED, 3, NULL},
                           {"emu:sm_80", KERNEL_COMPILED, 1, NULL},
                           {"emu:sm_75", KERNEL_COMPILED, 1, NULL}};
enum { TARGETS = sizeof targets / sizeof *targets };

static inline int open_contexts(void **state) {
    (void)state;
    random_start();
    for (int i = 0; i < TARGETS; i++)
        targets[i].ctx = context_make(targets[i].kernel, targets[i].name, 2);
    return 0;
}

static inline int close_contexts(void **state) {
    (void)state;
    for (int i = 0; i < TARGETS; i++)
        attnc_context_destroy(targets[i].ctx);
    return 0;
}

/* ---- pieces -------------------------------------------------------------- */

enum { PIECES = 4 };

/* One segment of the case's keys and what its launches left. */
typedef struct Piece {
    int64_t first, count; /* keys */
    attnc_args args;
    Block o, lse, dq, wide;
    int32_t *lens_k;
} Piece;

static inline void run_or_fail(attnc_context *ctx, const attnc_spec *s,
                               const attnc_args *a) {
    if (attnc_run(ctx, s, a, NULL)) {
        const attnc_error *e = attnc_last_error();
        fail_msg("%s: %s: %s\n%s", e->stage, e->field, e->text, e->log);
    }
}

static inline void *key_at(const Case *c, const attnc_tensor *t, int64_t j) {
    return (char *)t->data + j * t->stride_n * dtype_bytes(c->spec.dtype);
}

/* Keys before `first` are gone: what counts keys moves by as many. */
static inline void shift_mask(const Case *c, Piece *p) {
    attnc_args *a = &p->args;
    if (a->mask_offset_mode == ATTNC_OFFSET_BR)
        a->mask_offset = c->nk - c->nq;
    a->mask_offset_mode = ATTNC_OFFSET_INT;
    a->mask_offset -= p->first;
    if (c->spec.mask == ATTNC_MASK_PREFIX)
        a->mask_prefix = c->prefix > p->first ? c->prefix - p->first : 0;
    for (int64_t b = 0; c->spec.lens_k && b < c->batch; b++) {
        int64_t n = a->lens_k[b] - p->first;
        p->lens_k[b] = (int32_t)(n < 0 ? 0 : n < p->count ? n : p->count);
    }
    a->lens_k = c->spec.lens_k ? p->lens_k : NULL;
}

static inline void piece_make(const Case *c, const Data *d, Piece *p) {
    attnc_args *a = &p->args;
    int64_t rows = c->nq;
    *a = d->args;
    p->lens_k = malloc(sizeof(int32_t) * (size_t)(c->batch + 1));
    shift_mask(c, p);
    a->seqlen_k = p->count;
    a->k.data = key_at(c, &a->k, p->first);
    a->v.data = key_at(c, &a->v, p->first);
    if (c->spec.dropout)
        a->dropout_offset += (uint64_t)p->first; /* masks of their own */
    tensor_make(c, &p->o, &a->o, random_int(0, 1) ? FUZZ : BHND, c->heads, rows,
                case_dv(c), GUARD);
    a->lse_stride_h = rows + random_int(0, 2);
    a->lse_stride_b = c->heads * a->lse_stride_h;
    block_make(&p->lse, (size_t)(c->batch * a->lse_stride_b) * 4, GUARD);
    a->lse = (float *)(p->lse.base + GUARD);
    a->sink = NULL; /* once, in the merge */
}

static inline void piece_free(Piece *p) {
    Block *blocks[] = {&p->o, &p->lse, &p->dq, &p->wide};
    for (int i = 0; i < 4; i++)
        block_free(blocks[i]);
    free(p->lens_k);
}

static inline float number_at(const Case *c, const char *at) {
    uint16_t h;
    float x;
    memcpy(&h, at, 2);
    memcpy(&x, at, c->spec.dtype == ATTNC_F32 ? 4 : 2);
    return c->spec.dtype == ATTNC_F32   ? x
           : c->spec.dtype == ATTNC_F16 ? f16_to_f32(h)
                                        : bf16_to_f32(h);
}

/* The part's O as f32: what other kernels may leave. */
static inline attnc_tensor widen_o(const Case *c, Piece *p) {
    Case wide = *c;
    attnc_tensor t;
    wide.spec.dtype = ATTNC_F32;
    tensor_make(&wide, &p->wide, &t, GAPS, c->heads, c->nq, case_dv(c), 0);
    for (int64_t b = 0; b < c->batch; b++)
        for (int64_t h = 0; h < c->heads; h++)
            for (int64_t i = 0; i < c->nq; i++)
                for (int e = 0; e < case_dv(c); e++) {
                    int bytes = dtype_bytes(c->spec.dtype);
                    char *from = element(c, &p->args.o, b, h, i) + e * bytes;
                    char *to = element(&wide, &t, b, h, i) + e * 4;
                    put(ATTNC_F32, to, number_at(c, from));
                }
    return t;
}

static inline attnc_part part_of(const Case *c, Piece *p) {
    const attnc_args *a = &p->args;
    attnc_part x = {a->o, a->lse, a->lse_stride_b, a->lse_stride_h, 0};
    if (random_int(0, 2) == 0) {
        x.o = widen_o(c, p);
        x.f32 = 1;
    }
    return x;
}

/* Cuts the keys into n pieces, some of them without any. */
static inline void cut(const Case *c, Piece *p, int n) {
    int64_t at = 0;
    for (int i = 0; i < n; i++) {
        int64_t left = c->nk - at, take = i == n - 1 ? left : left / (n - i);
        if (i < n - 1 && random_int(0, 3) == 0)
            take = 0;
        p[i] = (Piece){.first = at, .count = take};
        at += take;
    }
}

static inline void pieces_forward(attnc_context *ctx, const Case *c, Data *d,
                                  Piece *p, int n) {
    attnc_part parts[PIECES];
    attnc_spec s = c->spec;
    s.sink = 0;
    for (int i = 0; i < n; i++) {
        piece_make(c, d, &p[i]);
        run_or_fail(ctx, &s, &p[i].args);
        parts[i] = part_of(c, &p[i]);
    }
    if (attnc_merge(ctx, &c->spec, &d->args, parts, n, NULL))
        fail_msg("merge: %s: %s\n%s", attnc_last_error()->field,
                 attnc_last_error()->text, attnc_last_error()->log);
}

/* Every part's backward takes the merged O and LSE; the sink's gradient comes
 * from one of them. */
static inline void piece_backward(attnc_context *ctx, const Case *c,
                                  GradData *g, Piece *p, bool sink) {
    attnc_args *a = &p->args, *all = &g->d.args;
    attnc_spec s = grad_spec(c);
    s.sink = c->spec.sink && sink;
    a->o = all->o;
    a->lse = all->lse;
    a->lse_stride_b = all->lse_stride_b;
    a->lse_stride_h = all->lse_stride_h;
    a->sink = s.sink ? all->sink : NULL;
    a->dsink = s.sink ? all->dsink : NULL;
    a->dk.data = key_at(c, &all->dk, p->first);
    a->dv.data = key_at(c, &all->dv, p->first);
    tensor_make(c, &p->dq, &a->dq, BHND, c->heads, c->nq, c->spec.head_dim,
                GUARD);
    run_or_fail(ctx, &s, a);
}

/* dQ is the sum of the parts'. */
static inline void add_dq(const Case *c, GradData *g, const Piece *p, int n) {
    int bytes = dtype_bytes(c->spec.dtype);
    for (int64_t b = 0; b < c->batch; b++)
        for (int64_t h = 0; h < c->heads; h++)
            for (int64_t i = 0; i < c->nq; i++)
                for (int e = 0; e < c->spec.head_dim; e++) {
                    float sum = 0;
                    for (int k = 0; k < n; k++)
                        sum += number_at(c, element(c, &p[k].args.dq, b, h, i) +
                                                e * bytes);
                    char *to = element(c, &g->d.args.dq, b, h, i) + e * bytes;
                    put(c->spec.dtype, to, sum);
                }
}

static inline void pieces_backward(attnc_context *ctx, const Case *c,
                                   GradData *g, Piece *p, int n) {
    memcpy(g->d.o.kept, g->d.o.base, g->d.o.bytes);
    memcpy(g->d.lse.kept, g->d.lse.base, g->d.lse.bytes);
    for (int i = 0; i < n; i++)
        piece_backward(ctx, c, g, &p[i], i == 0);
    add_dq(c, g, p, n);
}

/* Fresh data; the keys in n segments; O, LSE and all gradients. */
static inline void segments_check(attnc_context *ctx, const Case *c, int n) {
    GradData g;
    Piece p[PIECES];
    grad_make(c, &g);
    cut(c, p, n);
    pieces_forward(ctx, c, &g.d, p, n);
    check_results(c, &g.d);
    pieces_backward(ctx, c, &g, p, n);
    grad_check_results(c, &g);
    grad_check_kept(c, &g);
    for (int i = 0; i < n; i++)
        piece_free(&p[i]);
    grad_free(&g);
}

#endif
