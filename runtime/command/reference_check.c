/* SPDX-License-Identifier: Apache-2.0
 * Chooses the rows to compare, shares them among threads, gathers the errors
 * of a result and of unfused attention, and judges (docs/numerics.md). */
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "reference_rows.h"

enum { THREADS_MAX = 16 };
static const double MAX_FLOPS = 2e10; /* above, rows are sampled */
static const double ROW_LIMIT = 4;    /* see row_guard */

typedef struct Place {
    int64_t b, h, i, c;
    double got, want;
} Place;

/* Sums of squares: error of the result, of unfused attention, reference. */
typedef struct Squares {
    double err, unfused, ref;
} Squares;

/* Comparison of one output. */
typedef struct Sums {
    Squares all;
    Squares row;  /* the largest of any row, each by itself */
    double count; /* finite entries */
    int64_t mismatches;
    Place worst, mismatch; /* row with the largest error; first mismatch */
} Sums;

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
    Sums o, lse;
    double rows;
    pthread_t thread;
} Worker;

/* ---- comparison -------------------------------------------------------- */

static void mismatch(Sums *s, Place at, double got, double want) {
    if (s->mismatches++ > 0)
        return;
    s->mismatch = at;
    s->mismatch.got = got;
    s->mismatch.want = want;
}

static void compare(Sums *s, Squares *row, Place at, double got, double unfused,
                    double want) {
    if (isfinite(want) && isfinite(got)) {
        row->err += (got - want) * (got - want);
        s->count++;
    } else if (got != want && !(isnan(got) && isnan(want))) {
        mismatch(s, at, got, want);
    }
    if (isfinite(want) && isfinite(unfused))
        row->unfused += (unfused - want) * (unfused - want);
    if (isfinite(want))
        row->ref += want * want;
}

static void row_end(Sums *s, Squares row, Place at) {
    if (row.err > s->row.err)
        s->worst = at;
    s->all.err += row.err;
    s->all.unfused += row.unfused;
    s->all.ref += row.ref;
    s->row.err = fmax(s->row.err, row.err);
    s->row.unfused = fmax(s->row.unfused, row.unfused);
    s->row.ref = fmax(s->row.ref, row.ref);
}

/* A row that sees no key owes exact zeros. */
static void compare_o(Worker *w, const RefGroup *g, int t) {
    RefWork *k = &w->work;
    const RefProblem *p = k->p;
    Place at = {.b = g->b, .h = g->h, .i = g->row[t]};
    Squares row = {0};
    ref_load_row(p->s->dtype,
                 ref_row_at(p, &p->a->o, g->b, g->h, g->seq.q0 + at.i), p->dv,
                 k->tile);
    for (at.c = 0; at.c < p->dv; at.c++) {
        compare(&w->o, &row, at, k->tile[at.c], k->o32[at.c][t], k->o[at.c][t]);
        if (g->lo[t] == g->hi[t] && isfinite(k->tile[at.c]) &&
            k->tile[at.c] != 0)
            mismatch(&w->o, at, k->tile[at.c], 0);
    }
    row_end(&w->o, row, at);
}

static void compare_lse(Worker *w, const RefGroup *g, int t) {
    const RefProblem *p = w->work.p;
    Place at = {.b = g->b, .h = g->h, .i = g->row[t]};
    Squares row = {0};
    int64_t n = g->h * p->a->lse_stride_h + g->seq.q0 + at.i;
    if (!p->s->varlen)
        n += g->b * p->a->lse_stride_b;
    compare(&w->lse, &row, at, p->a->lse[n], w->work.lse32[t], w->work.lse[t]);
    row_end(&w->lse, row, at);
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

/* Row number t of n: the corners, else one anywhere in the t-th of n equal
 * parts, so that no period of a tiling stays unseen. */
static int64_t row_chosen(int64_t t, int64_t n, int64_t nq, int64_t salt) {
    if (n == nq || t == 0)
        return t;
    if (t == n - 1)
        return nq - 1;
    int64_t from = (int64_t)((__int128)t * nq / n);
    int64_t to = (int64_t)((__int128)(t + 1) * nq / n);
    uint64_t x = (uint64_t)t + (uint64_t)n * (uint64_t)salt + 1;
    x *= 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 31)) * 0xbf58476d1ce4e5b9u;
    return from + (int64_t)((x >> 33) % (uint64_t)(to - from));
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
        g->row[t] = row_chosen(t0 + (t < g->n ? t : 0), n, g->seq.nq,
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

static int threads_of(int asked) {
    cpu_set_t set;
    int n = asked;
    if (n < 1)
        n = sched_getaffinity(0, sizeof(set), &set) ? 1 : CPU_COUNT(&set);
    return n < 1 ? 1 : n > THREADS_MAX ? THREADS_MAX : n;
}

/* Runs the workers; worker 0, and any whose thread cannot be had, run here. */
static int job_run(Job *j, Worker *w, Err *e) {
    bool started[THREADS_MAX] = {false}, memory = true;
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
    j->fraction = flops > MAX_FLOPS ? MAX_FLOPS / flops : 1;
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

/* ---- verdict ----------------------------------------------------------- */

static bool before(const Place *x, const Place *y) {
    if (x->b != y->b)
        return x->b < y->b;
    return x->h != y->h ? x->h < y->h : x->i < y->i;
}

static void sums_add(Sums *to, const Sums *s) {
    if (s->mismatches &&
        (!to->mismatches || before(&s->mismatch, &to->mismatch)))
        to->mismatch = s->mismatch;
    if (s->row.err > to->row.err)
        to->worst = s->worst;
    to->mismatches += s->mismatches;
    to->count += s->count;
    to->all.err += s->all.err;
    to->all.unfused += s->all.unfused;
    to->all.ref += s->all.ref;
    to->row.err = fmax(to->row.err, s->row.err);
    to->row.unfused = fmax(to->row.unfused, s->row.unfused);
    to->row.ref = fmax(to->row.ref, s->row.ref);
}

/* An absolute error cannot be held below what rounding the number costs. */
static double lse_eps(double eps, double size) {
    return fmax(eps, 0x1p-23 * size);
}

/* Rounding errors are spread: no row's may exceed by far what the worst row of
 * unfused attention shows. A row that is wrong does, even where millions of
 * right ones hide it from the norm. */
static bool row_guard(const Sums *s, double eps, bool relative) {
    double size = sqrt(s->row.ref);
    double least = relative ? eps * size : lse_eps(eps, size);
    double limit = 1.5 * sqrt(s->row.unfused) + 4 * least;
    return sqrt(s->row.err) <= ROW_LIMIT * limit;
}

static double norm(double squares, const Sums *s, bool relative) {
    double by = relative ? s->all.ref : s->count;
    return by > 0 ? sqrt(squares / by) : sqrt(squares);
}

/* Judges one output; `why` keeps the first complaint. */
static bool judge(const char *name, const Sums *s, double eps, bool relative,
                  double *err, double *unfused, double *limit, char why[160]) {
    const Place *m = &s->mismatch, *r = &s->worst;
    *err = norm(s->all.err, s, relative);
    *unfused = norm(s->all.unfused, s, relative);
    double least = relative ? eps : lse_eps(eps, norm(s->all.ref, s, false));
    *limit = 1.5 * *unfused + 4 * least;
    bool close = *err <= *limit, rows = row_guard(s, eps, relative);
    if (close && rows && !s->mismatches)
        return true;
    if (why[0])
        return false;
    if (s->mismatches)
        snprintf(why, 160,
                 "%s: %lld entries differ in kind, first at batch %lld head "
                 "%lld query %lld dim %lld: %g, must be %g",
                 name, (long long)s->mismatches, (long long)m->b,
                 (long long)m->h, (long long)m->i, (long long)m->c, m->got,
                 m->want);
    else
        snprintf(why, 160,
                 "%s: error %.3g, limit %.3g%s; worst row: batch %lld head "
                 "%lld query %lld",
                 name, *err, *limit,
                 close ? " kept, but one row is far off" : "", (long long)r->b,
                 (long long)r->h, (long long)r->i);
    return false;
}

static double eps_of(int dtype) {
    return dtype == ATTNC_F32 ? 0x1p-23 : dtype == ATTNC_F16 ? 0x1p-10 : 0x1p-7;
}

/* ---- the two calls ----------------------------------------------------- */

int reference_check(const attnc_spec *spec, const attnc_args *args, int threads,
                    void (*progress)(void *user, double done), void *user,
                    RefCheck *out, Err *e) {
    Job j = {.progress = progress, .user = user};
    Worker w[THREADS_MAX];
    Sums o = {0}, lse = {0};
    double rows = 0, done = 0, eps = eps_of(spec->dtype);
    *out = (RefCheck){0};
    j.workers = threads_of(threads);
    int rc = job_make(&j, spec, args, true, &rows, e);
    if (!rc)
        rc = job_run(&j, w, e);
    for (int i = 0; i < j.workers && !rc; i++) {
        sums_add(&o, &w[i].o);
        sums_add(&lse, &w[i].lse);
        done += w[i].rows;
    }
    job_free(&j);
    if (rc)
        return rc;
    out->coverage = rows > 0 ? done / rows : 1;
    bool ok_o = judge("o", &o, eps, true, &out->o, &out->unfused_o,
                      &out->limit_o, out->why);
    bool ok_lse = judge("lse", &lse, eps, false, &out->lse, &out->unfused_lse,
                        &out->limit_lse, out->why);
    out->ok = ok_o && ok_lse;
    return 0;
}

int reference_fwd(const attnc_spec *spec, const attnc_args *args, double *o,
                  double *lse, Err *e) {
    Job j = {.o = o, .lse = lse};
    Worker w[THREADS_MAX];
    double rows;
    j.workers = threads_of(0);
    int rc = job_make(&j, spec, args, false, &rows, e);
    if (!rc)
        rc = job_run(&j, w, e);
    job_free(&j);
    return rc;
}
