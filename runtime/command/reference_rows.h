/* SPDX-License-Identifier: Apache-2.0
 * Between the two halves of the reference: reference.c computes groups of
 * rows, reference_check.c chooses and judges them. */
#ifndef ATTNC_REFERENCE_ROWS_H
#define ATTNC_REFERENCE_ROWS_H

#include "dropout.h"
#include "reference.h"

enum { REF_LANES = 8, REF_TILE = 64 };

/* One value per lane; vectors of 128 bits work on them piecewise. */
typedef double Lanes[REF_LANES];
typedef float Lanes32[REF_LANES];

/* What is asked; read only while workers run. */
typedef struct RefProblem {
    const attnc_spec *s;
    const attnc_args *a;
    bool unfused; /* compute that too */
    int d, dv;
    float scale;
    float *slopes; /* [H] */
    Dropout drop;  /* threshold 0: nothing is dropped */
} RefProblem;

/* One batch entry or sequence. */
typedef struct RefSeq {
    int64_t q0, k0; /* its first row in packed tensors, else 0 */
    int64_t nq, nk; /* rows, and keys by length */
    int64_t offset; /* of the diagonal */
} RefSeq;

/* Up to REF_LANES query rows of one head; each sees the keys [lo, hi). */
typedef struct RefGroup {
    RefSeq seq;
    int64_t b, h, hk;
    int n;
    int64_t row[REF_LANES], lo[REF_LANES], hi[REF_LANES];
    int64_t begin, end; /* keys any of them sees */
} RefGroup;

/* One worker's memory and, after ref_group_run, a group's results: o[c][lane],
 * lse[lane] in f64; o32, lse32 those of unfused attention, o32 rounded. */
typedef struct RefWork {
    const RefProblem *p;
    Lanes *q, *s, *o;
    Lanes32 *q32, *s32, *o32;
    float *tile; /* REF_TILE rows */
    double lse[REF_LANES];
    float lse32[REF_LANES];
} RefWork;

int ref_problem_make(const attnc_spec *s, const attnc_args *a, bool unfused,
                     RefProblem *p, Err *e);
void ref_problem_free(RefProblem *p);
RefSeq ref_seq_at(const RefProblem *p, int64_t b);
/* The keys [*lo, *hi) that row i of *q sees. */
void ref_row_keys(const RefProblem *p, const RefSeq *q, int64_t i, int64_t *lo,
                  int64_t *hi);
/* Row n (varlen: of the packed tensor) of head h of a tensor. */
const char *ref_row_at(const RefProblem *p, const attnc_tensor *t, int64_t b,
                       int64_t h, int64_t n);
void ref_load_row(int dtype, const char *from, int n, float *to);

/* false: out of memory; free all the same. */
bool ref_work_alloc(RefWork *w, const RefProblem *p);
void ref_work_free(RefWork *w);
void ref_group_run(RefWork *w, const RefGroup *g);

#endif
