/* SPDX-License-Identifier: Apache-2.0
 * Attention with programs and its gradients in plain f64: every pair's program
 * evaluated by itself, nothing shared with what it is to judge but the graphs.
 */
#ifndef PROGRAM_TRUTH_H
#define PROGRAM_TRUTH_H

#include <math.h>

#include "dropout.h"
#include "program_case.h"

/* Dense, by batch entry or sequence: o [B, H, nq, dv], lse [B, H, nq], dk
 * [B, HK, nk, d] and so on; of the longest. */
typedef struct Truth {
    double *o, *lse, *dq, *dk, *dv, *dsink;
} Truth;

/* One query row. */
typedef struct Row {
    const Case *c;
    const GradData *g;
    const Arrays *arrays;
    int64_t b, h, i;           /* entry or sequence, head, position */
    int64_t q_at, k_at;        /* first rows, packed */
    int64_t nq, nk, keys, off; /* keys: without those lens_k hides */
} Row;

static inline double number(const Case *c, const attnc_tensor *t, int64_t b,
                            int64_t h, int64_t n, int64_t e) {
    const char *at = element(c, t, b, h, n) + e * dtype_bytes(c->spec.dtype);
    uint16_t half;
    float x;
    memcpy(&half, at, 2);
    if (c->spec.dtype == ATTNC_F32)
        memcpy(&x, at, 4);
    else
        x = c->spec.dtype == ATTNC_F16 ? f16_to_f32(half) : bf16_to_f32(half);
    return (double)x;
}

static inline double dot(const Row *r, const attnc_tensor *x, int64_t xh,
                         int64_t xn, const attnc_tensor *y, int64_t yh,
                         int64_t yn, int dim) {
    double sum = 0;
    for (int e = 0; e < dim; e++)
        sum +=
            number(r->c, x, r->b, xh, xn, e) * number(r->c, y, r->b, yh, yn, e);
    return sum;
}

/* ---- programs ---------------------------------------------------------- */

/* Arrays in the order of a program's own tensors. */
static inline const ProgramArray *own_arrays(const Arrays *a,
                                             const Program *p) {
    static ProgramArray own[PROGRAM_TENSORS];
    for (int t = 0; t < p->tensors; t++)
        for (int i = 0; i < a->n; i++)
            if (!strcmp(a->known[i].name, p->tensor[t].name))
                own[t] = a->host[i];
    return own;
}

static inline void evaluate(const Row *r, const Program *p, int64_t j, double s,
                            double dout, double *value) {
    const ProgramEnv env = {.operand = {[OPERAND_s] = s,
                                        [OPERAND_b] = (double)r->b,
                                        [OPERAND_h] = (double)r->h,
                                        [OPERAND_q] = (double)r->i,
                                        [OPERAND_k] = (double)j,
                                        [OPERAND_nq] = (double)r->nq,
                                        [OPERAND_nk] = (double)r->nk,
                                        [OPERAND_off] = (double)r->off,
                                        [OPERAND_dout] = dout},
                            .array = own_arrays(r->arrays, p),
                            .narrow = true};
    program_eval(p, &env, p->count - 1, value);
}

static double node_value[20 * PROGRAM_NODES];

static inline bool sees(const Row *r, int64_t j) {
    const Program *keep = spec_keep(&r->c->spec);
    int64_t d = r->i + r->off;
    const attnc_args *a = &r->g->d.args;
    bool seen = j < r->keys;
    switch (r->c->spec.mask) {
    case ATTNC_MASK_CAUSAL:
        seen = seen && j <= d;
        break;
    case ATTNC_MASK_WINDOW:
        seen = seen && (a->mask_left == INT64_MAX || j >= d - a->mask_left) &&
               (a->mask_right == INT64_MAX || j <= d + a->mask_right);
        break;
    case ATTNC_MASK_PREFIX:
        seen = seen && (j < a->mask_prefix || j <= d);
        break;
    }
    if (!seen || !keep)
        return seen;
    evaluate(r, keep, j, 0, 0, node_value);
    return node_value[keep->root] != 0;
}

/* ---- one row ----------------------------------------------------------- */

/* How far scores are off, of their size: what changes much with it is not to
 * be judged. */
static double nudge;

typedef struct Pair {
    double cap, s;  /* after the softcap, at last; -inf: left out */
    double slope;   /* of the softcap there */
    double p, kept; /* weight; what dropout makes of 1 */
} Pair;

static inline double slope_at(const Row *r) {
    const attnc_args *a = &r->g->d.args;
    int64_t heads = 1, h = r->h;
    if (a->slopes)
        return (double)a->slopes[h];
    while (2 * heads <= a->heads)
        heads *= 2;
    double at = (double)(h < heads ? 2 * (h + 1) : 2 * (h - heads) + 1);
    return exp2(-4 * at / (double)heads);
}

static inline void score_pair(const Row *r, int64_t j, Pair *x) {
    const Case *c = r->c;
    const attnc_args *a = &r->g->d.args;
    const Program *score = spec_score(&c->spec);
    int64_t hk = r->h / (c->heads / c->kv_heads);
    double scale =
        isnan(c->scale) ? 1 / sqrt(c->spec.head_dim) : (double)c->scale;
    *x = (Pair){.s = -INFINITY, .slope = 1};
    if (!sees(r, j))
        return;
    double s = scale * dot(r, &a->q, r->h, r->q_at + r->i, &a->k, hk,
                           r->k_at + j, c->spec.head_dim);
    if (c->spec.softcap) {
        double bent = tanh(s / (double)a->softcap);
        s = (double)a->softcap * bent;
        x->slope = 1 - bent * bent;
    }
    if (c->spec.alibi)
        s -= slope_at(r) * fabs((double)(r->i + r->off - j));
    s += nudge * (1 + fabs(s));
    x->cap = x->s = s;
    if (score) {
        evaluate(r, score, j, s, 0, node_value);
        x->s = node_value[score->root];
        x->s += isfinite(x->s) ? nudge / 8 * fabs(x->s) : 0;
    }
}

static inline double kept_by(const Row *r, int64_t j) {
    const attnc_args *a = &r->g->d.args;
    int64_t all = a->dropout_heads ? a->dropout_heads : a->heads;
    const Dropout d = {a->dropout_seed, (uint32_t)a->dropout_offset,
                       dropout_threshold(a->dropout_p),
                       (uint32_t)(a->dropout_b0 * all + a->dropout_h0),
                       (uint32_t)all};
    uint16_t x[DROPOUT_PATCH];
    if (!r->c->spec.dropout)
        return 1;
    dropout_numbers(&d, r->b, r->h, r->i, j / DROPOUT_PATCH, x);
    return x[j % DROPOUT_PATCH] < d.threshold
               ? 0
               : (double)dropout_scale(d.threshold);
}

/* For dV what dropout takes is 0, NaN or not; O of a NaN row is NaN. */
static inline double weight_of(const Pair *x) {
    return x->kept > 0 ? x->p * x->kept : 0;
}

/* Weights of a row; returns its LSE. */
static inline double weigh(const Row *r, Pair *x) {
    double top = -INFINITY, sum = 0;
    const attnc_args *a = &r->g->d.args;
    double sink = r->c->spec.sink ? (double)a->sink[r->h] : -INFINITY;
    for (int64_t j = 0; j < r->nk; j++) {
        score_pair(r, j, &x[j]);
        top = x[j].s <= top || isnan(top) ? top : x[j].s; /* NaN goes on */
    }
    top = sink > top ? sink : top;
    if (top == -INFINITY)
        return top;
    for (int64_t j = 0; j < r->nk; j++)
        sum += x[j].s == -INFINITY ? 0 : exp(x[j].s - top);
    double lse = top + log(sum + exp(sink - top));
    double off = isfinite(lse) ? nudge / 8 * fabs(lse) : 0; /* kept as f32 */
    for (int64_t j = 0; j < r->nk; j++) {
        x[j].p = x[j].s == -INFINITY ? 0 : exp(x[j].s - lse - off);
        x[j].kept = kept_by(r, j);
    }
    return lse;
}

/* ---- gradients of one row ---------------------------------------------- */

/* Adds the gradients of the elements that a pair reads. */
static inline void add_reads(const Row *r, const ProgramGrad *pg) {
    Arrays *a = (Arrays *)r->arrays;
    for (int i = 0; i < pg->nread; i++) {
        const ReadGrad *read = &pg->read[i];
        const Node *n = &pg->p.node[read->read];
        int t = 0;
        while (strcmp(a->known[t].name, pg->p.tensor[read->tensor].name))
            t++;
        int64_t at = 0;
        bool inside = true;
        for (int d = 0; d < n->nargs; d++) {
            double index = node_value[n->arg[d]];
            inside = inside && index >= 0 && index < (double)a->array[t].n[d];
            at = at * a->array[t].n[d] + (int64_t)index;
        }
        if (inside)
            a->expect[t][at] += node_value[read->grad];
    }
}

static inline double bend(const Row *r, int64_t j, const Pair *x, double dout) {
    attnc_spec s = grad_spec(r->c);
    const ProgramGrad *pg = spec_score_grad(&s);
    if (!pg)
        return dout;
    evaluate(r, &pg->p, j, x->cap, dout, node_value);
    add_reads(r, pg);
    evaluate(r, &pg->p, j, x->cap, dout, node_value);
    return pg->ds < 0 ? 0 : node_value[pg->ds];
}

static inline void row_grads(const Row *r, const Pair *x, double lse,
                             Truth *t) {
    const Case *c = r->c;
    const attnc_args *a = &r->g->d.args;
    int d = c->spec.head_dim, dv = case_dv(c);
    int64_t hk = r->h / (c->heads / c->kv_heads), at = r->q_at + r->i;
    double scale = isnan(c->scale) ? 1 / sqrt(d) : (double)c->scale, delta = 0;
    double about = 0; /* the size of what delta is made of */
    double *dp = calloc((size_t)r->nk + 1, sizeof *dp);
    for (int64_t j = 0; j < r->nk; j++) {
        if (x[j].s == -INFINITY)
            continue;
        dp[j] =
            x[j].kept * dot(r, &a->dout, r->h, at, &a->v, hk, r->k_at + j, dv);
        delta += x[j].p * dp[j];
        about += x[j].p * fabs(dp[j]);
    }
    delta += nudge * about;
    if (a->dlse)
        delta -= (double)a->dlse[r->h * a->lse_stride_h + at +
                                 (c->spec.varlen ? 0 : r->b * a->lse_stride_b)];
    if (c->spec.sink && lse > -INFINITY)
        t->dsink[r->h] -= exp((double)a->sink[r->h] - lse) * delta;
    double *dq = t->dq + ((r->b * c->heads + r->h) * c->nq + r->i) * d;
    for (int64_t j = 0; j < r->nk; j++) {
        if (x[j].s == -INFINITY)
            continue;
        double ds = bend(r, j, &x[j], x[j].p * (dp[j] - delta)) * x[j].slope;
        double *dk = t->dk + ((r->b * c->kv_heads + hk) * c->nk + j) * d;
        double *dvj = t->dv + ((r->b * c->kv_heads + hk) * c->nk + j) * dv;
        for (int e = 0; e < d; e++) {
            dq[e] += scale * ds * number(c, &a->k, r->b, hk, r->k_at + j, e);
            dk[e] += scale * ds * number(c, &a->q, r->b, r->h, at, e);
        }
        for (int e = 0; e < dv; e++)
            dvj[e] += weight_of(&x[j]) * number(c, &a->dout, r->b, r->h, at, e);
    }
    free(dp);
}

/* ---- all rows ---------------------------------------------------------- */

static inline void truth_row(const Row *r, bool grads, Pair *x, Truth *t) {
    const Case *c = r->c;
    int dv = case_dv(c);
    int64_t hk = r->h / (c->heads / c->kv_heads);
    int64_t row = (r->b * c->heads + r->h) * c->nq + r->i;
    double lse = weigh(r, x);
    t->lse[row] = lse;
    for (int64_t j = 0; j < r->nk; j++)
        for (int e = 0; e < dv && x[j].s != -INFINITY; e++)
            t->o[row * dv + e] +=
                x[j].p * x[j].kept *
                number(c, &r->g->d.args.v, r->b, hk, r->k_at + j, e);
    if (grads)
        row_grads(r, x, lse, t);
}

static inline Row row_of(const Case *c, const GradData *g, const Arrays *arrays,
                         int64_t b, int64_t h) {
    const Data *d = &g->d;
    Row r = {.c = c, .g = g, .arrays = arrays, .b = b, .h = h};
    r.q_at = d->cu_q ? d->cu_q[b] : 0;
    r.k_at = d->cu_k ? d->cu_k[b] : 0;
    r.nq = d->cu_q ? d->cu_q[b + 1] - r.q_at : c->nq;
    r.nk = d->cu_k ? d->cu_k[b + 1] - r.k_at : c->nk;
    r.keys = r.nk;
    if (d->lens_k && d->lens_k[b] < r.keys)
        r.keys = d->lens_k[b];
    r.off = c->mode == ATTNC_OFFSET_INT   ? c->offset
            : c->mode == ATTNC_OFFSET_LEN ? r.keys - r.nq
                                          : r.nk - r.nq;
    return r;
}

static inline double *zeros(int64_t n) {
    double *x = calloc((size_t)n + 1, sizeof *x);
    assert_non_null(x);
    return x;
}

static inline void truth_make(const Case *c, const GradData *g,
                              const Arrays *arrays, bool grads, Truth *t) {
    int64_t q = c->batch * c->heads * c->nq, k = c->batch * c->kv_heads * c->nk;
    Pair *x = calloc((size_t)c->nk + 1, sizeof *x);
    *t = (Truth){zeros(q * case_dv(c)),       zeros(q),
                 zeros(q * c->spec.head_dim), zeros(k * c->spec.head_dim),
                 zeros(k * case_dv(c)),       zeros(c->heads)};
    for (int64_t b = 0; b < c->batch; b++)
        for (int64_t h = 0; h < c->heads; h++) {
            Row r = row_of(c, g, arrays, b, h);
            for (r.i = 0; r.i < r.nq; r.i++)
                truth_row(&r, grads, x, t);
        }
    free(x);
}

static inline void truth_free(Truth *t) {
    double *all[] = {t->o, t->lse, t->dq, t->dk, t->dv, t->dsink};
    for (int i = 0; i < 6; i++)
        free(all[i]);
}

#endif
