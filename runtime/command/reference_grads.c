/* SPDX-License-Identifier: Apache-2.0
 * Gradients of attention in f64, pair by pair, beside those of unfused
 * attention in the spec's dtype: every query row alone (softmax, delta, dQ),
 * then every key alone (dK, dV). */
#include <math.h>
#include <string.h>

#include "reference_grads.h"

/* ---- pairs ------------------------------------------------------------- */

/* Sums in a fixed order, in parts that fill vectors. */
static double dot(const float *x, const float *y, int n) {
    double part[4] = {0};
    for (int c = 0; c < n; c++)
        part[c % 4] += (double)x[c] * (double)y[c];
    return part[0] + part[1] + part[2] + part[3];
}

static float dot32(const RefProblem *p, const float *x, const float *y, int n) {
    float sum = 0;
    for (int c = 0; c < n; c++)
        sum += ref_operand(p, x[c]) * ref_operand(p, y[c]);
    return sum;
}

static float dlse_of(const RefProblem *p, const RefSeq *seq, int64_t b,
                     int64_t h, int64_t i) {
    int64_t at = h * p->a->lse_stride_h + seq->q0 + i;
    if (!p->s->varlen)
        at += b * p->a->lse_stride_b;
    return p->a->dlse ? p->a->dlse[at] : 0;
}

RefRow ref_grad_row(const RefGrad *g, int64_t b, int64_t h, int64_t i) {
    const RefProblem *p = &g->p;
    int64_t row = (b * p->a->heads + h) * g->nq + i;
    int64_t hk = h / (p->a->heads / p->a->kv_heads);
    int64_t key = (b * p->a->kv_heads + hk) * g->nk;
    RefRow r = {.b = b, .h = h, .i = i, .seq = ref_seq_at(p, b)};
    r.q = g->q + row * p->d;
    r.dout = g->dout + row * p->dv;
    r.k = g->k + key * p->d;
    r.v = g->v + key * p->dv;
    r.state = &g->state[row];
    r.dlse = dlse_of(p, &r.seq, b, h, i);
    return r;
}

/* A pair that programs exclude. */
static const RefCell excluded = {.s = -INFINITY, .s32 = -INFINITY, .out = true};

/* The scores of dot products; false: a program excludes the pair. */
static bool score_cell(RefGradWork *w, const RefRow *r, int64_t j, double x,
                       float x32, RefCell *c) {
    const RefProblem *p = &w->g->p;
    double slope;
    float slope32;
    c->raw = ref_score(p, &r->seq, r->h, r->i, j, x, &c->bend);
    c->s = ref_eval_score(&w->eval, j, c->raw, &slope);
    c->bend *= slope;
    if (p->programs.score.p && c->s == -INFINITY)
        return false;
    if (!p->unfused)
        return true;
    c->raw32 = ref_score32(p, &r->seq, r->h, r->i, j, x32, &c->bend32);
    c->s32 = ref_eval_score32(&w->eval, j, c->raw32, &slope32);
    c->bend32 *= slope32;
    return true;
}

/* Of the row that w->eval is at. */
static RefCell cell_of(RefGradWork *w, const RefRow *r, int64_t j) {
    const RefProblem *p = &w->g->p;
    const float *k = r->k + j * p->d, *v = r->v + j * p->dv;
    float x32 = 0;
    if (!ref_eval_keep(&w->eval, j))
        return excluded;
    RefCell c = {.z = ref_kept(p, r->b, r->h, r->i, j)};
    if (p->unfused)
        x32 = dot32(p, r->q, k, p->d);
    if (!score_cell(w, r, j, dot(r->q, k, p->d), x32, &c))
        return excluded;
    c.dp = c.z * dot(r->dout, v, p->dv);
    if (p->unfused)
        c.dp32 =
            (float)c.z * ref_round(p->s->dtype, dot32(p, r->dout, v, p->dv));
    return c;
}

/* Weight of a score of -inf is 0, whatever else is not finite. */
double ref_weight(double s, double lse) {
    return s == -INFINITY ? 0 : exp(s - lse);
}

static float weight32_of(const RefGrad *g, float s, const RefState *t) {
    if (!g->p.unfused || s == -INFINITY)
        return 0;
    return ref_round(g->p.s->dtype, expf(s - t->max) / t->sum);
}

/* What an error of LSE, 2^-25 of its own size, does to exp(s - LSE), against
 * the eps of a weight's own rounding. */
double ref_lse_factor(const RefGrad *g, const RefState *t) {
    if (!isfinite(t->lse))
        return 1;
    return fmax(1, fabs(t->lse) * 0x1p-25 / ref_eps(g->p.s->dtype));
}

RefPair ref_grad_pair(const RefGrad *g, const RefState *t, const RefCell *c) {
    double w = ref_weight(c->s, t->lse);
    float w32 = weight32_of(g, c->s32, t);
    int dtype = g->p.s->dtype;
    RefPair x = {.lse = ref_lse_factor(g, t),
                 .kept32 =
                     ref_operand(&g->p, ref_round(dtype, w32 * (float)c->z))};
    if (w32 != 0)
        x.ds32 = w32 * (c->dp32 - t->delta32);
    if (w == 0)
        return x;
    x.kept = w * c->z;
    x.ds = w * (c->dp - t->delta);
    x.size = x.lse * w * (fabs(c->dp) + fabs(t->delta) + t->noise);
    return x;
}

/* The same of the dot product that the score was made of. */
static RefPair pair_of(const RefGrad *g, const RefState *t, const RefCell *c) {
    RefPair x = ref_grad_pair(g, t, c);
    x.ds *= x.ds == 0 ? 0 : c->bend;
    x.size *= x.size == 0 ? 0 : fabs(c->bend);
    x.ds32 = ref_operand(
        &g->p, ref_round(g->p.s->dtype, x.ds32 == 0 ? 0 : x.ds32 * c->bend32));
    return x;
}

/* ---- a query row: softmax, delta, dQ ----------------------------------- */

/* Two passes over the keys it sees: the largest score, the sum. */
static void row_softmax(const RefGradWork *w, const RefRow *r, int64_t n) {
    const RefProblem *p = &w->g->p;
    double sink = p->s->sink ? p->a->sink[r->h] : -INFINITY, m = sink, sum;
    float m32 = (float)sink, sum32;
    for (int64_t j = 0; j < n; j++) {
        m = w->cell[j].s > m ? w->cell[j].s : m;
        m32 = w->cell[j].s32 > m32 ? w->cell[j].s32 : m32;
    }
    sum = sink == -INFINITY ? 0 : exp(sink - m);
    sum32 = sink == -INFINITY ? 0 : expf((float)sink - m32);
    for (int64_t j = 0; j < n; j++) {
        float s32 = w->cell[j].s32;
        sum += ref_weight(w->cell[j].s, m);
        sum32 += s32 == -INFINITY ? 0 : expf(s32 - m32);
    }
    r->state->lse = sum == 0 ? -INFINITY : m + log(sum);
    r->state->max = m32;
    r->state->sum = sum32;
}

/* delta = rowsum(P dP) - dLSE, which is rowsum(O dO) - dLSE. */
static void row_delta(RefGradWork *w, const RefRow *r, int64_t lo, int64_t n) {
    const RefProblem *p = &w->g->p;
    RefState *t = r->state;
    double noise = 0;
    memset(w->x, 0, sizeof(double) * (size_t)p->dv);
    t->delta = t->delta32 = 0;
    for (int64_t j = 0; j < n; j++) {
        const RefCell *c = &w->cell[j];
        double weight = ref_weight(c->s, t->lse), kept = weight * c->z;
        float w32 = weight32_of(w->g, c->s32, t);
        if (c->out)
            continue;
        const float *v = r->v + (lo + j) * p->dv;
        t->delta += weight == 0 ? 0 : weight * c->dp;
        t->delta32 += w32 == 0 ? 0 : w32 * c->dp32;
        for (int x = 0; x < p->dv && kept != 0; x++)
            w->x[x] += kept * v[x];
    }
    for (int x = 0; x < p->dv; x++)
        noise += pow(w->x[x] * r->dout[x], 2);
    t->noise = sqrt(noise) + fabs(r->dlse);
    t->delta -= r->dlse;
    t->delta32 -= r->dlse;
}

/* What the launch says of a row that is not among those compared. */
void ref_grad_taken(const RefGrad *g, const RefRow *r, float *o) {
    const RefProblem *p = &g->p;
    int64_t at = r->h * p->a->lse_stride_h + r->seq.q0 + r->i;
    double noise = 0;
    if (!p->s->varlen)
        at += r->b * p->a->lse_stride_b;
    ref_load_row(p->s->dtype,
                 ref_row_at(p, &p->a->o, r->b, r->h, r->seq.q0 + r->i), p->dv,
                 o);
    for (int c = 0; c < p->dv; c++)
        noise += (double)o[c] * r->dout[c] * o[c] * r->dout[c];
    double delta = dot(o, r->dout, p->dv) - r->dlse;
    *r->state = (RefState){.lse = p->a->lse[at],
                           .delta = delta,
                           .noise = sqrt(noise) + fabs(r->dlse),
                           .max = p->a->lse[at],
                           .sum = 1,
                           .delta32 = (float)delta};
}

static void row_dq(RefGradWork *w, const RefRow *r, int64_t lo, int64_t n) {
    const RefGrad *g = w->g;
    int d = g->p.d;
    memset(w->x, 0, sizeof(double) * (size_t)d);
    memset(w->terms, 0, sizeof(double) * (size_t)d);
    memset(w->x32, 0, sizeof(float) * (size_t)d);
    for (int64_t j = 0; j < n; j++) {
        RefPair one = pair_of(g, r->state, &w->cell[j]);
        const float *k = r->k + (lo + j) * d;
        double size = one.size * g->p.scale, ds = one.ds * g->p.scale;
        for (int c = 0; c < d && one.size != 0; c++) {
            w->x[c] += ds * k[c];
            w->terms[c] += size * size * k[c] * k[c];
            w->x32[c] += one.ds32 * ref_operand(&g->p, k[c]);
        }
    }
    for (int c = 0; c < d; c++)
        w->x32[c] = ref_round(g->p.s->dtype, w->x32[c] * g->p.scale);
}

/* ---- a key: dK, dV ----------------------------------------------------- */

void ref_grad_key(RefGradWork *w, int64_t b, int64_t hk, int64_t j) {
    const RefGrad *g = w->g;
    const RefProblem *p = &g->p;
    int64_t group = p->a->heads / p->a->kv_heads;
    int64_t nq = ref_seq_at(p, b).nq;
    memset(w->x, 0, sizeof(double) * (size_t)p->d);
    memset(w->terms, 0, sizeof(double) * (size_t)p->d);
    memset(w->x32, 0, sizeof(float) * (size_t)p->d);
    memset(w->y, 0, sizeof(double) * (size_t)p->dv);
    memset(w->terms_y, 0, sizeof(double) * (size_t)p->dv);
    memset(w->y32, 0, sizeof(float) * (size_t)p->dv);
    w->none = true;
    for (int64_t n = 0; n < nq * group; n++) {
        int64_t i = n / group, h = hk * group + n % group;
        if (j < g->lo[b * g->nq + i] || j >= g->hi[b * g->nq + i])
            continue;
        RefRow r = ref_grad_row(g, b, h, i);
        ref_eval_row(&w->eval, &r.seq, b, h, i);
        RefCell cell = cell_of(w, &r, j);
        if (cell.out)
            continue;
        w->none = false;
        RefPair one = pair_of(g, r.state, &cell);
        double size = one.size * p->scale, ds = one.ds * p->scale;
        for (int c = 0; c < p->d && one.size != 0; c++) {
            w->x[c] += ds * r.q[c];
            w->terms[c] += size * size * r.q[c] * r.q[c];
            w->x32[c] += one.ds32 * ref_operand(p, r.q[c]);
        }
        for (int c = 0; c < p->dv && one.kept != 0; c++) {
            w->y[c] += one.kept * r.dout[c];
            w->terms_y[c] += pow(one.lse * one.kept * r.dout[c], 2);
            w->y32[c] += one.kept32 * ref_operand(p, r.dout[c]);
        }
    }
    for (int c = 0; c < p->d; c++)
        w->x32[c] = ref_round(p->s->dtype, w->x32[c] * p->scale);
    for (int c = 0; c < p->dv; c++)
        w->y32[c] = ref_round(p->s->dtype, w->y32[c]);
}

void ref_grad_query(RefGradWork *w, const RefRow *r, int64_t lo, int64_t hi) {
    w->none = true;
    ref_eval_row(&w->eval, &r->seq, r->b, r->h, r->i);
    for (int64_t j = lo; j < hi; j++) {
        w->cell[j - lo] = cell_of(w, r, j);
        w->none = w->none && w->cell[j - lo].out;
    }
    row_softmax(w, r, hi - lo);
    row_delta(w, r, lo, hi - lo);
    row_dq(w, r, lo, hi - lo);
}
