/* SPDX-License-Identifier: Apache-2.0
 * Chooses the rows to compare, shares them among threads, gathers the errors
 * of a result and of unfused attention, and judges (docs/numerics.md). */
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "reference_rows.h"

/* All workers read it. */
typedef struct Job {
    RefProblem p;
    int64_t *first;  /* [B + 1] running number of an entry's first group */
    double fraction; /* share of the rows to compare */
    int workers;
    double *o, *lse; /* store there instead of comparing, or NULL */
    void (*progress)(void *user, double done);
    void *user;
} Job;

typedef struct Worker {
    const Job *job;
    int id;
    RefWork work;
    RefSums o, lse;
    double rows;
    pthread_t thread;
} Worker;

/* ---- comparison -------------------------------------------------------- */

/* A row that sees no key owes exact zeros. */
static void compare_o(Worker *w, const RefGroup *g, int t) {
    RefWork *k = &w->work;
    const RefProblem *p = k->p;
    RefPlace at = {.b = g->b, .h = g->h, .i = g->row[t]};
    RefSquares row = {0};
    ref_load_row(p->s->dtype,
                 ref_row_at(p, &p->a->o, g->b, g->h, g->seq.q0 + at.i), p->dv,
                 k->tile);
    for (at.c = 0; at.c < p->dv; at.c++) {
        ref_compare(&w->o, &row, at, k->tile[at.c], k->o32[at.c][t],
                    k->o[at.c][t]);
        row.terms += isfinite(k->terms[at.c][t]) ? k->terms[at.c][t] : 0;
        if (k->none[t] && isfinite(k->tile[at.c]) && k->tile[at.c] != 0)
            ref_mismatch(&w->o, at, k->tile[at.c], 0);
    }
    ref_row_end(&w->o, row, at);
}

static void compare_lse(Worker *w, const RefGroup *g, int t) {
    const RefProblem *p = w->work.p;
    RefPlace at = {.b = g->b, .h = g->h, .i = g->row[t]};
    RefSquares row = {0};
    int64_t n = g->h * p->a->lse_stride_h + g->seq.q0 + at.i;
    if (!p->s->varlen)
        n += g->b * p->a->lse_stride_b;
    ref_compare(&w->lse, &row, at, p->a->lse[n], w->work.lse32[t],
                w->work.lse[t]);
    ref_row_end(&w->lse, row, at);
}

static void store(Worker *w, const RefGroup *g, int t) {
    const RefProblem *p = w->work.p;
    const attnc_args *a = p->a;
    int64_t n = (g->b * a->heads + g->h) * a->seqlen_q + g->row[t];
    if (p->s->varlen)
        n = g->h * a->cu_seqlens_q[a->batch] + g->seq.q0 + g->row[t];
    for (int c = 0; c < p->dv; c++)
        w->job->o[n * p->dv + c] = w->work.o[c][t];
    if (w->job->lse)
        w->job->lse[n] = w->work.lse[t];
}

/* ---- which rows -------------------------------------------------------- */

/* Rows of an entry to compare: a share of them, at least first and last. */
static int64_t rows_chosen(const Job *j, int64_t nq) {
    int64_t n = (int64_t)ceil(j->fraction * (double)nq);
    n = n < 2 ? 2 : n;
    return n < nq ? n : nq;
}

/* The entry to which group number `item` belongs. */
static int64_t entry_of(const Job *j, int64_t item) {
    int64_t lo = 0, hi = j->p.a->batch - 1;
    while (lo < hi) {
        int64_t mid = (lo + hi + 1) / 2;
        if (j->first[mid] <= item)
            lo = mid;
        else
            hi = mid - 1;
    }
    return lo;
}

/* Idle lanes repeat the group's first row. */
static void group_make(const Job *j, int64_t item, RefGroup *g) {
    const attnc_args *a = j->p.a;
    g->b = entry_of(j, item);
    g->seq = ref_seq_at(&j->p, g->b);
    int64_t n = rows_chosen(j, g->seq.nq);
    int64_t per_head = (n + REF_LANES - 1) / REF_LANES;
    int64_t at = item - j->first[g->b], t0 = at % per_head * REF_LANES;
    g->h = at / per_head;
    g->hk = g->h / (a->heads / a->kv_heads);
    g->n = (int)(n - t0 < REF_LANES ? n - t0 : REF_LANES);
    g->begin = g->seq.nk;
    g->end = 0;
    for (int t = 0; t < REF_LANES; t++) {
        g->row[t] = ref_row_chosen(t0 + (t < g->n ? t : 0), n, g->seq.nq,
                                   g->b * a->heads + g->h);
        ref_row_keys(&j->p, &g->seq, g->row[t], &g->lo[t], &g->hi[t]);
        g->begin = g->lo[t] < g->begin ? g->lo[t] : g->begin;
        g->end = g->hi[t] > g->end ? g->hi[t] : g->end;
    }
    g->end = g->end > g->begin ? g->end : g->begin;
}

/* ---- workers ----------------------------------------------------------- */

/* Fixed shares, so that sums do not depend on who was faster. */
static void *worker_run(void *arg) {
    Worker *w = arg;
    const Job *j = w->job;
    int64_t total = j->first[j->p.a->batch];
    for (int64_t item = w->id; item < total; item += j->workers) {
        RefGroup g;
        group_make(j, item, &g);
        ref_group_run(&w->work, &g);
        for (int t = 0; t < g.n; t++) {
            if (j->o)
                store(w, &g, t);
            else
                compare_o(w, &g, t);
            if (!j->o && j->p.a->lse)
                compare_lse(w, &g, t);
        }
        w->rows += g.n;
        if (w->id == 0 && j->progress)
            j->progress(j->user, (double)(item + 1) / (double)total);
    }
    return NULL;
}

/* Runs the workers; worker 0, and any whose thread cannot be had, run here. */
static int job_run(Job *j, Worker *w, Err *e) {
    bool started[REF_THREADS] = {false}, memory = true;
    for (int i = 0; i < j->workers; i++) {
        w[i] = (Worker){.job = j, .id = i};
        memory = ref_work_alloc(&w[i].work, &j->p) && memory;
    }
    for (int i = 1; i < j->workers && memory; i++)
        started[i] = pthread_create(&w[i].thread, NULL, worker_run, &w[i]) == 0;
    for (int i = 0; i < j->workers && memory; i++)
        if (!started[i])
            worker_run(&w[i]);
    for (int i = 0; i < j->workers; i++) {
        if (started[i])
            pthread_join(w[i].thread, NULL);
        ref_work_free(&w[i].work);
    }
    return memory ? 0 : err_set(e, ERR_MEMORY, "check", "", "out of memory");
}

static double flops_of(const RefProblem *p) {
    double pairs = 0;
    for (int64_t b = 0; b < p->a->batch; b++) {
        RefSeq q = ref_seq_at(p, b);
        for (int64_t i = 0; i < q.nq; i++) {
            int64_t lo, hi;
            ref_row_keys(p, &q, i, &lo, &hi);
            pairs += (double)(hi - lo);
        }
    }
    return 2.0 * (p->d + p->dv) * pairs * (double)p->a->heads;
}

/* Counts the groups of every entry; *rows: all query rows of the launch. */
static int job_make(Job *j, const attnc_spec *s, const attnc_args *a,
                    bool sample, double *rows, Err *e) {
    int rc = ref_problem_make(s, a, sample, &j->p, e);
    if (rc)
        return rc;
    double flops = sample ? flops_of(&j->p) : 0;
    j->fraction = flops > REF_FLOPS ? REF_FLOPS / flops : 1;
    j->first = calloc((size_t)a->batch + 1, sizeof(int64_t));
    if (!j->first)
        return err_set(e, ERR_MEMORY, "check", "", "out of memory");
    *rows = 0;
    for (int64_t b = 0; b < a->batch; b++) {
        int64_t nq = ref_seq_at(&j->p, b).nq, n = rows_chosen(j, nq);
        j->first[b + 1] =
            j->first[b] + (n + REF_LANES - 1) / REF_LANES * a->heads;
        *rows += (double)nq * (double)a->heads;
    }
    return 0;
}

static void job_free(Job *j) {
    free(j->first);
    ref_problem_free(&j->p);
}

/* ---- the two calls ----------------------------------------------------- */

int reference_check(const attnc_spec *spec, const attnc_args *args, int threads,
                    void (*progress)(void *user, double done), void *user,
                    RefCheck *out, Err *e) {
    Job j = {.progress = progress, .user = user};
    Worker w[REF_THREADS];
    RefSums o = {0}, lse = {0};
    double rows = 0, done = 0, eps = ref_eps(spec->dtype);
    *out = (RefCheck){0};
    j.workers = ref_threads(threads);
    int rc = job_make(&j, spec, args, true, &rows, e);
    if (!rc)
        rc = job_run(&j, w, e);
    for (int i = 0; i < j.workers && !rc; i++) {
        ref_sums_add(&o, &w[i].o);
        ref_sums_add(&lse, &w[i].lse);
        done += w[i].rows;
    }
    job_free(&j);
    if (rc)
        return rc;
    out->coverage = rows > 0 ? done / rows : 1;
    bool ok_o = ref_judge("o", &o, eps, true, &out->o, &out->unfused_o,
                          &out->limit_o, out->why);
    bool ok_lse = ref_judge("lse", &lse, eps, false, &out->lse,
                            &out->unfused_lse, &out->limit_lse, out->why);
    out->ok = ok_o && ok_lse;
    return 0;
}

int reference_fwd(const attnc_spec *spec, const attnc_args *args, double *o,
                  double *lse, Err *e) {
    Job j = {.o = o, .lse = lse};
    Worker w[REF_THREADS];
    double rows;
    j.workers = ref_threads(0);
    int rc = job_make(&j, spec, args, false, &rows, e);
    if (!rc)
        rc = job_run(&j, w, e);
    job_free(&j);
    return rc;
}
