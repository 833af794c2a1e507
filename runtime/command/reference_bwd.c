/* SPDX-License-Identifier: Apache-2.0
 * The judge of gradients: chooses rows and keys, shares them among threads,
 * compares (docs/numerics.md). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "reference_grads.h"

/* ---- comparing --------------------------------------------------------- */

/* A row of a gradient: `none` when nothing is seen, which owes exact zeros. */
static void compare_row(RefGradWork *w, int grad, RefPlace at, const char *got,
                        int width, bool none) {
    bool values = grad == REF_dv;
    const double *want = values ? w->y : w->x;
    const double *terms = values ? w->terms_y : w->terms;
    const float *unfused = values ? w->y32 : w->x32;
    RefSquares row = {0};
    ref_load_row(w->g->p.s->dtype, got, width, w->tile);
    for (at.c = 0; at.c < width; at.c++) {
        ref_compare(&w->sums[grad], &row, at, w->tile[at.c], unfused[at.c],
                    want[at.c]);
        row.terms += isfinite(terms[at.c]) ? terms[at.c] : 0;
        if (none && isfinite(w->tile[at.c]) && w->tile[at.c] != 0)
            ref_mismatch(&w->sums[grad], at, w->tile[at.c], 0);
    }
    ref_row_end(&w->sums[grad], row, at);
}

static void store_row(const RefGrad *g, int grad, int64_t row, const double *x,
                      int width) {
    for (int c = 0; c < width && g->to[grad]; c++)
        g->to[grad][row * width + c] = x[c];
}

/* ---- workers ----------------------------------------------------------- */

static int64_t chosen(const RefGrad *g, int64_t n) {
    int64_t some = (int64_t)ceil(g->fraction * (double)n);
    some = some < 2 ? 2 : some;
    return some < n ? some : n;
}

static void do_row(RefGradWork *w, int64_t b, int64_t h, int64_t t) {
    const RefGrad *g = w->g;
    const RefProblem *p = &g->p;
    RefSeq seq = ref_seq_at(p, b);
    int64_t n = chosen(g, seq.nq);
    if (t >= n)
        return;
    RefPlace at = {.b = b, .h = h};
    at.i = ref_row_chosen(t, n, seq.nq, b * p->a->heads + h);
    RefRow r = ref_grad_row(g, b, h, at.i);
    int64_t lo = g->lo[b * g->nq + at.i], hi = g->hi[b * g->nq + at.i];
    ref_grad_query(w, &r, lo, hi);
    ref_tensors_add(w, &r, lo, hi - lo);
    w->rows++;
    if (g->store)
        store_row(g, REF_dq, (b * p->a->heads + h) * g->nq + at.i, w->x, p->d);
    else
        compare_row(w, REF_dq, at,
                    ref_row_at(p, &p->a->dq, b, h, seq.q0 + at.i), p->d,
                    w->none);
}

/* Keys of an entry, those behind lens_k too. */
static int64_t all_keys(const RefProblem *p, int64_t b) {
    const attnc_args *a = p->a;
    return p->s->varlen ? a->cu_seqlens_k[b + 1] - a->cu_seqlens_k[b]
                        : a->seqlen_k;
}

static void do_key(RefGradWork *w, int64_t b, int64_t hk, int64_t t) {
    const RefGrad *g = w->g;
    const RefProblem *p = &g->p;
    int64_t all = all_keys(p, b), n = chosen(g, all);
    if (t >= n)
        return;
    RefPlace at = {.b = b, .h = hk};
    at.i = ref_row_chosen(t, n, all, b * p->a->kv_heads + hk);
    ref_grad_key(w, b, hk, at.i);
    if (g->store) {
        int64_t row = (b * p->a->kv_heads + hk) * g->nk + at.i;
        store_row(g, REF_dk, row, w->x, p->d);
        store_row(g, REF_dv, row, w->y, p->dv);
        return;
    }
    int64_t k0 = ref_seq_at(p, b).k0 + at.i;
    compare_row(w, REF_dk, at, ref_row_at(p, &p->a->dk, b, hk, k0), p->d,
                w->none);
    compare_row(w, REF_dv, at, ref_row_at(p, &p->a->dv, b, hk, k0), p->dv,
                w->none);
}

/* Fixed shares, so that sums do not depend on who was faster; the same row of
 * every head belongs to one worker (reference_tensors.c). */
static void *run_rows(void *arg) {
    RefGradWork *w = arg;
    const RefGrad *g = w->g;
    int64_t heads = g->p.a->heads, n = chosen(g, g->nq);
    for (int64_t t = w->id; t < n; t += g->workers) {
        for (int64_t x = 0; x < g->p.a->batch * heads; x++)
            do_row(w, x / heads, x % heads, t);
        if (w->id == 0 && g->progress)
            g->progress(g->user, 0.5 * (double)(t + 1) / (double)n);
    }
    return NULL;
}

static void *run_keys(void *arg) {
    RefGradWork *w = arg;
    const RefGrad *g = w->g;
    int64_t heads = g->p.a->kv_heads, n = chosen(g, g->nk);
    int64_t total = g->p.a->batch * heads * n;
    for (int64_t x = w->id; x < total; x += g->workers) {
        do_key(w, x / n / heads, x / n % heads, x % n);
        if (w->id == 0 && g->progress)
            g->progress(g->user, 0.5 + 0.5 * (double)(x + 1) / (double)total);
    }
    return NULL;
}

/* RefGradWork 0, and any whose thread cannot be had, run here. */
static void run_all(RefGradWork *w, int n, void *(*fn)(void *)) {
    bool started[REF_THREADS] = {false};
    for (int i = 1; i < n; i++)
        started[i] = pthread_create(&w[i].thread, NULL, fn, &w[i]) == 0;
    for (int i = 0; i < n; i++)
        if (!started[i])
            fn(&w[i]);
    for (int i = 0; i < n; i++)
        if (started[i])
            pthread_join(w[i].thread, NULL);
}

/* ---- the problem ------------------------------------------------------- */

/* A dense f32 copy; rows behind a sequence's end stay 0. */
static float *dense(const RefGrad *g, const attnc_tensor *t, bool keys,
                    int64_t heads, int width) {
    const RefProblem *p = &g->p;
    int64_t n = keys ? g->nk : g->nq;
    float *out =
        calloc((size_t)(p->a->batch * heads * n * width + 1), sizeof(float));
    for (int64_t x = 0; x < p->a->batch * heads && out; x++) {
        RefSeq q = ref_seq_at(p, x / heads);
        int64_t rows = keys ? q.nk : q.nq, first = keys ? q.k0 : q.q0;
        for (int64_t i = 0; i < rows; i++)
            ref_load_row(p->s->dtype,
                         ref_row_at(p, t, x / heads, x % heads, first + i),
                         width, out + (x * n + i) * width);
    }
    return out;
}

static bool copy_inputs(RefGrad *g) {
    const RefProblem *p = &g->p;
    const attnc_args *a = p->a;
    size_t rows = (size_t)(a->batch * g->nq) + 1;
    g->q = dense(g, &a->q, false, a->heads, p->d);
    g->k = dense(g, &a->k, true, a->kv_heads, p->d);
    g->v = dense(g, &a->v, true, a->kv_heads, p->dv);
    g->dout = dense(g, &a->dout, false, a->heads, p->dv);
    g->lo = calloc(rows, sizeof(int64_t));
    g->hi = calloc(rows, sizeof(int64_t));
    g->state = calloc(rows * (size_t)a->heads, sizeof(RefState));
    return g->q && g->k && g->v && g->dout && g->lo && g->hi && g->state;
}

/* Keys of every row; returns the visible pairs of a head. */
static double find_keys(RefGrad *g) {
    double pairs = 0;
    for (int64_t b = 0; b < g->p.a->batch; b++) {
        RefSeq q = ref_seq_at(&g->p, b);
        for (int64_t i = 0; i < q.nq; i++) {
            int64_t at = b * g->nq + i;
            ref_row_keys(&g->p, &q, i, &g->lo[at], &g->hi[at]);
            pairs += (double)(g->hi[at] - g->lo[at]);
        }
    }
    return pairs;
}

/* When rows are sampled, the states of the others come from the launch. */
static void take_states(RefGrad *g) {
    const RefProblem *p = &g->p;
    float o[256];
    for (int64_t x = 0; x < p->a->batch * p->a->heads; x++) {
        int64_t b = x / p->a->heads, n = ref_seq_at(p, b).nq;
        for (int64_t i = 0; i < n; i++) {
            RefRow r = ref_grad_row(g, b, x % p->a->heads, i);
            ref_grad_taken(g, &r, o);
        }
    }
}

static bool worker_make(RefGradWork *w, const RefGrad *g, int id) {
    size_t d = (size_t)g->p.d, dv = (size_t)g->p.dv, most = d > dv ? d : dv;
    *w = (RefGradWork){.g = g, .id = id};
    w->x = calloc(most, sizeof(double));
    w->y = calloc(most, sizeof(double));
    w->terms = calloc(most, sizeof(double));
    w->terms_y = calloc(most, sizeof(double));
    w->x32 = calloc(most, sizeof(float));
    w->y32 = calloc(most, sizeof(float));
    w->tile = calloc(most, sizeof(float));
    w->cell = calloc((size_t)g->nk + 1, sizeof(RefCell));
    bool values = ref_eval_alloc(&w->eval, &g->p.programs);
    if (!ref_tensors_open_worker(w) || !values)
        return false;
    return w->x && w->y && w->terms && w->terms_y && w->x32 && w->y32 &&
           w->tile && w->cell;
}

static void worker_free(RefGradWork *w) {
    free(w->x);
    free(w->y);
    free(w->terms);
    free(w->terms_y);
    free(w->x32);
    free(w->y32);
    free(w->tile);
    free(w->cell);
    ref_eval_free(&w->eval);
    ref_tensors_close(w->tensor);
}

static void grad_free(RefGrad *g) {
    free(g->q);
    free(g->k);
    free(g->v);
    free(g->dout);
    free(g->lo);
    free(g->hi);
    free(g->state);
    ref_tensors_close(g->tensor);
    ref_problem_free(&g->p);
}

/* dsink = -sum over batch and queries of exp(sink - LSE) delta. */
static void do_sinks(RefGradWork *w) {
    const RefGrad *g = w->g;
    const attnc_args *a = g->p.a;
    RefSquares row = {0};
    RefPlace at = {0};
    for (at.h = 0; at.h < a->heads && g->p.s->sink; at.h++) {
        double sum = 0, terms = 0;
        float sum32 = 0, sink = a->sink[at.h];
        for (int64_t b = 0; b < a->batch; b++) {
            const RefState *t = &g->state[(b * a->heads + at.h) * g->nq];
            int64_t n = ref_seq_at(&g->p, b).nq;
            for (int64_t i = 0; i < n; i++) {
                double p = ref_weight(sink, t[i].lse);
                sum -= p == 0 ? 0 : p * t[i].delta;
                double size = ref_lse_factor(g, &t[i]) * p;
                terms += pow(size * (fabs(t[i].delta) + t[i].noise), 2);
                if (g->p.unfused && sink != -INFINITY)
                    sum32 -= expf(sink - t[i].max) / t[i].sum * t[i].delta32;
            }
        }
        if (g->to[REF_dsink])
            g->to[REF_dsink][at.h] = sum;
        row.terms += isfinite(terms) ? terms : 0;
        if (!g->store)
            ref_compare(&w->sums[REF_dsink], &row, at, a->dsink[at.h], sum32,
                        sum);
    }
    ref_row_end(&w->sums[REF_dsink], row, at);
}

/* Inputs of the spec, all of it; *pairs: visible ones over all heads. */
static int grad_make(RefGrad *g, const attnc_spec *s, const attnc_args *a,
                     double *pairs, Err *e) {
    int rc = ref_problem_make(s, a, !g->store, &g->p, e);
    if (rc)
        return rc;
    g->nq = a->seqlen_q;
    g->nk = a->seqlen_k;
    if (!copy_inputs(g))
        return err_set(e, ERR_MEMORY, "check", "", "out of memory");
    *pairs = find_keys(g) * (double)a->heads;
    return 0;
}

/* out: NULL when nothing is compared. */
static int grad_run(RefGrad *g, RefGradWork *w, RefCheck *out, Err *e) {
    bool memory = ref_tensors_open(g);
    for (int i = 0; i < g->workers; i++)
        memory = worker_make(&w[i], g, i) && memory;
    if (memory) {
        if (g->fraction < 1)
            take_states(g);
        run_all(w, g->workers, run_rows);
        run_all(w, g->workers, run_keys);
        do_sinks(&w[0]);
        ref_tensors_finish(g, w, out);
    }
    for (int i = 0; i < g->workers; i++)
        worker_free(&w[i]);
    return memory ? 0 : err_set(e, ERR_MEMORY, "check", "", "out of memory");
}

/* ---- the two calls ----------------------------------------------------- */

const char *reference_grad_name(int grad) {
    static const char *const names[] = {"dq", "dk", "dv", "dsink"};
    return names[grad];
}

static void verdict(const RefGrad *g, const RefGradWork *w, double rows,
                    RefCheck *out) {
    double eps = ref_eps(g->p.s->dtype), done = 0;
    out->backward = true;
    out->sink = g->p.s->sink;
    for (int k = 0; k < REF_GRADS; k++) {
        RefSums all = {0};
        for (int i = 0; i < g->workers; i++)
            ref_sums_add(&all, &w[i].sums[k]);
        bool ok = ref_judge(reference_grad_name(k), &all, eps, true,
                            &out->grad[k].err, &out->grad[k].unfused,
                            &out->grad[k].limit, out->why);
        out->ok = out->ok && ok;
    }
    for (int i = 0; i < g->workers; i++)
        done += w[i].rows;
    out->coverage = rows > 0 ? done / rows : 1;
}

/* Gradients of tensors need every row. */
static double fraction_of(RefGrad *g, double pairs, RefCheck *out) {
    double flops = 2.0 * (3 * g->p.d + 2 * g->p.dv) * pairs;
    bool tensors = g->p.s->tensor_grads != 0;
    out->tensors_left = tensors && pairs > 0x1p28;
    g->skip_tensors = out->tensors_left;
    if (flops <= REF_FLOPS || (tensors && !out->tensors_left))
        return 1;
    return REF_FLOPS / flops;
}

int reference_check_bwd(const attnc_spec *spec, const attnc_args *args,
                        int threads, void (*progress)(void *user, double done),
                        void *user, RefCheck *out, Err *e) {
    RefGrad g = {.progress = progress, .user = user};
    RefGradWork w[REF_THREADS];
    double pairs = 0, rows = 0;
    *out = (RefCheck){0};
    g.workers = ref_threads(threads);
    int rc = grad_make(&g, spec, args, &pairs, e);
    if (!rc) {
        g.fraction = fraction_of(&g, pairs, out);
        for (int64_t b = 0; b < args->batch; b++)
            rows += (double)ref_seq_at(&g.p, b).nq * (double)args->heads;
        out->ok = true;
        rc = grad_run(&g, w, out, e);
    }
    if (!rc)
        verdict(&g, w, rows, out);
    grad_free(&g);
    return rc;
}

int reference_bwd_tensors(const attnc_spec *spec, const attnc_args *args,
                          double *dq, double *dk, double *dv, double *dsink,
                          double **tensor, Err *e) {
    RefGrad g = {.store = true,
                 .fraction = 1,
                 .to = {dq, dk, dv, dsink},
                 .to_tensor = tensor};
    RefGradWork w[REF_THREADS];
    double pairs;
    g.workers = ref_threads(0);
    int rc = grad_make(&g, spec, args, &pairs, e);
    rc = rc ? rc : grad_run(&g, w, NULL, e);
    grad_free(&g);
    return rc;
}

int reference_bwd(const attnc_spec *spec, const attnc_args *args, double *dq,
                  double *dk, double *dv, double *dsink, Err *e) {
    return reference_bwd_tensors(spec, args, dq, dk, dv, dsink, NULL, e);
}

void reference_join(RefCheck *to, const RefCheck *grads) {
    if (!grads->backward)
        return;
    if (to->ok)
        memcpy(to->why, grads->why, sizeof to->why);
    to->ok = to->ok && grads->ok;
    to->coverage = fmin(to->coverage, grads->coverage);
    to->backward = true;
    to->sink = grads->sink;
    memcpy(to->grad, grads->grad, sizeof to->grad);
    to->tensors = grads->tensors;
    to->tensors_left = grads->tensors_left;
    memcpy(to->tensor, grads->tensor, sizeof to->tensor);
}
