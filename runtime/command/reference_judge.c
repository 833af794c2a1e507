/* SPDX-License-Identifier: Apache-2.0
 * The judge's sums: errors of a result and of unfused attention, row by row,
 * and the verdict on them (docs/numerics.md). */
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "reference_rows.h"

static const double ROW_LIMIT = 4; /* see row_guard */

/* ---- comparison -------------------------------------------------------- */

void ref_mismatch(RefSums *s, RefPlace at, double got, double want) {
    if (s->mismatches++ > 0)
        return;
    s->mismatch = at;
    s->mismatch.got = got;
    s->mismatch.want = want;
}

void ref_compare(RefSums *s, RefSquares *row, RefPlace at, double got,
                 double unfused, double want) {
    if (isfinite(want) && isfinite(got)) {
        row->err += (got - want) * (got - want);
        s->count++;
    } else if (got != want && !(isnan(got) && isnan(want))) {
        ref_mismatch(s, at, got, want);
    }
    if (isfinite(want) && isfinite(unfused))
        row->unfused += (unfused - want) * (unfused - want);
    if (isfinite(want))
        row->ref += want * want;
}

void ref_row_end(RefSums *s, RefSquares row, RefPlace at) {
    if (row.err > s->row.err)
        s->worst = at;
    s->all.err += row.err;
    s->all.unfused += row.unfused;
    s->all.ref += row.ref;
    s->all.terms += row.terms;
    s->row.err = fmax(s->row.err, row.err);
    s->row.unfused = fmax(s->row.unfused, row.unfused);
    s->row.ref = fmax(s->row.ref, row.ref);
    s->row.terms = fmax(s->row.terms, row.terms);
}

/* Row number t of n: the corners, else one anywhere in the t-th of n equal
 * parts, so that no period of a tiling stays unseen. */
int64_t ref_row_chosen(int64_t t, int64_t n, int64_t nq, int64_t salt) {
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

int ref_threads(int asked) {
    cpu_set_t set;
    int n = asked;
    if (n < 1)
        n = sched_getaffinity(0, sizeof(set), &set) ? 1 : CPU_COUNT(&set);
    return n < 1 ? 1 : n > REF_THREADS ? REF_THREADS : n;
}

/* ---- verdict ----------------------------------------------------------- */

static bool before(const RefPlace *x, const RefPlace *y) {
    if (x->b != y->b)
        return x->b < y->b;
    return x->h != y->h ? x->h < y->h : x->i < y->i;
}

void ref_sums_add(RefSums *to, const RefSums *s) {
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
    to->all.terms += s->all.terms;
    to->row.err = fmax(to->row.err, s->row.err);
    to->row.unfused = fmax(to->row.unfused, s->row.unfused);
    to->row.ref = fmax(to->row.ref, s->row.ref);
    to->row.terms = fmax(to->row.terms, s->row.terms);
}

/* An absolute error cannot be held below what rounding the number costs. */
static double lse_eps(double eps, double size) {
    return fmax(eps, 0x1p-23 * size);
}

/* Rounding errors are spread: no row's may exceed by far what the worst row of
 * unfused attention shows. A row that is wrong does, even where millions of
 * right ones hide it from the norm. */
static bool row_guard(const RefSums *s, double eps, bool relative) {
    double size = sqrt(fmax(s->row.ref, s->row.terms));
    double least = relative ? eps * size : lse_eps(eps, size);
    double limit = 1.5 * sqrt(s->row.unfused) + 4 * least;
    return sqrt(s->row.err) <= ROW_LIMIT * limit;
}

static double norm(double squares, const RefSums *s, bool relative) {
    double by = relative ? s->all.ref : s->count;
    return by > 0 ? sqrt(squares / by) : sqrt(squares);
}

/* Is it indexed as Q or K are? Others are tensors of a program. */
static void say_place(const char *name, const RefPlace *at, char out[80]) {
    static const char *const rows[] = {"o", "lse", "dq", "dsink", "dk", "dv"};
    int i = 0;
    while (i < 6 && strcmp(rows[i], name))
        i++;
    if (i < 6)
        snprintf(out, 80, "batch %lld head %lld %s %lld", (long long)at->b,
                 (long long)at->h, i < 4 ? "query" : "key", (long long)at->i);
    else
        snprintf(out, 80, "[%lld, %lld, %lld, %lld]", (long long)at->b,
                 (long long)at->h, (long long)at->i, (long long)at->c);
}

/* Judges one output; `why` keeps the first complaint. */
bool ref_judge(const char *name, const RefSums *s, double eps, bool relative,
               double *err, double *unfused, double *limit, char why[160]) {
    const RefPlace *m = &s->mismatch, *r = &s->worst;
    char place[80];
    *err = norm(s->all.err, s, relative);
    *unfused = norm(s->all.unfused, s, relative);
    double least = relative ? eps : lse_eps(eps, norm(s->all.ref, s, false));
    if (relative && s->all.terms > s->all.ref)
        least *= norm(s->all.terms, s, true);
    *limit = 1.5 * *unfused + 4 * least;
    bool close = *err <= *limit, rows = row_guard(s, eps, relative);
    if (close && rows && !s->mismatches)
        return true;
    if (why[0])
        return false;
    say_place(name, s->mismatches ? m : r, place);
    if (s->mismatches)
        snprintf(why, 160,
                 "%s: %lld entries differ in kind, first at %s dim %lld: %g, "
                 "must be %g",
                 name, (long long)s->mismatches, place, (long long)m->c, m->got,
                 m->want);
    else
        snprintf(why, 160, "%s: error %.3g, limit %.3g%s; worst row: %s", name,
                 *err, *limit, close ? " kept, but one row is far off" : "",
                 place);
    return false;
}

double ref_eps(int dtype) {
    return dtype == ATTNC_F32 ? 0x1p-23 : dtype == ATTNC_F16 ? 0x1p-10 : 0x1p-7;
}
