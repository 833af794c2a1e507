/* SPDX-License-Identifier: Apache-2.0
 * Between the two halves of the reference: reference.c computes groups of
 * rows, reference_check.c chooses and judges them. */
#ifndef ATTNC_REFERENCE_ROWS_H
#define ATTNC_REFERENCE_ROWS_H

#include "dropout.h"
#include "reference_program.h"

enum { REF_LANES = 8, REF_TILE = 64 };

/* One value per lane; vectors of 128 bits work on them piecewise. */
typedef double Lanes[REF_LANES];
typedef float Lanes32[REF_LANES];

/* What is asked; read only while workers run. */
typedef struct RefProblem {
    const attnc_spec *s;
    const attnc_args *a;
    bool unfused; /* compute that too */
    bool tf32;    /* its products round their operands */
    int d, dv;
    float scale;
    float *slopes; /* [H] */
    Dropout drop;  /* threshold 0: nothing is dropped */
    RefPrograms programs;
} RefProblem;

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
    Lanes *q, *s, *o, *terms; /* terms: squares of what o sums */
    Lanes32 *q32, *s32, *o32;
    float *tile; /* REF_TILE rows */
    double lse[REF_LANES];
    float lse32[REF_LANES];
    bool none[REF_LANES]; /* sees no key at all */
    RefEval eval;
    bool kept[REF_TILE][REF_LANES]; /* by the mask program; of a tile */
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

/* ---- reference_program.c ----------------------------------------------- */

/* Which pairs of keys [j, j + n) programs keep. false: none, and the scores say
 * so; s32: room for one where nothing is unfused. */
bool ref_tile_keep(RefWork *w, const RefGroup *g, int64_t j, int n, Lanes *s,
                   Lanes32 *s32);
/* What programs make of these pairs' scores. */
void ref_tile_bend(RefWork *w, const RefGroup *g, int64_t j, int n, Lanes *s,
                   Lanes32 *s32);

/* What a dot product of the inputs becomes: a score of f64, and one of unfused
 * attention. Query i of head h, key j, which it sees; *bend: the derivative of
 * the softcap there. */
double ref_score(const RefProblem *p, const RefSeq *q, int64_t h, int64_t i,
                 int64_t j, double dot, double *bend);
float ref_score32(const RefProblem *p, const RefSeq *q, int64_t h, int64_t i,
                  int64_t j, float dot, float *bend);
/* What dropout multiplies a weight by. */
double ref_kept(const RefProblem *p, int64_t b, int64_t h, int64_t i,
                int64_t j);
float ref_round(int dtype, float x);
float ref_tf32(float x);
/* An operand of an unfused product: tf32 where the spec asks for it. */
static inline float ref_operand(const RefProblem *p, float x) {
    return p->tf32 ? ref_tf32(x) : x;
}

/* ---- reference_judge.c ------------------------------------------------- */

enum { REF_THREADS = 16 };
static const double REF_FLOPS = 2e10; /* above, rows are sampled */

/* Sums of squares: error of the result, of unfused attention, reference; but
 * for LSE also its terms, which may cancel to much less. */
typedef struct RefSquares {
    double err, unfused, ref, terms;
} RefSquares;

/* Comparison of one output. */
typedef struct RefSums {
    RefSquares all;
    RefSquares row; /* the largest of any row, each by itself */
    double count;   /* finite entries */
    int64_t mismatches;
    RefPlace worst, mismatch; /* row with the largest error; first mismatch */
} RefSums;

void ref_mismatch(RefSums *s, RefPlace at, double got, double want);
/* One entry, into the sums of its row. */
void ref_compare(RefSums *s, RefSquares *row, RefPlace at, double got,
                 double unfused, double want);
void ref_row_end(RefSums *s, RefSquares row, RefPlace at);
void ref_sums_add(RefSums *to, const RefSums *s);
/* Row number t of n that are compared of nq: the corners, else one anywhere in
 * the t-th of n equal parts, so that no period of a tiling stays unseen. */
int64_t ref_row_chosen(int64_t t, int64_t n, int64_t nq, int64_t salt);
int ref_threads(int asked); /* 0: the CPUs this process may use */
double ref_eps(int dtype);
/* Judges one output; `why` keeps the first complaint. relative: to the norm of
 * the reference; else the root mean square. */
bool ref_judge(const char *name, const RefSums *s, double eps, bool relative,
               double *err, double *unfused, double *limit, char why[160]);

#endif
