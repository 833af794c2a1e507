/* SPDX-License-Identifier: Apache-2.0
 * The programs of a spec, for the reference: values of a pair. */
#ifndef ATTNC_REFERENCE_PROGRAM_H
#define ATTNC_REFERENCE_PROGRAM_H

#include "program.h"
#include "reference.h"

/* One batch entry or sequence. */
typedef struct RefSeq {
    int64_t q0, k0; /* its first row in packed tensors, else 0 */
    int64_t nq, nk; /* rows, and keys by length */
    int64_t all;    /* keys, lens_k aside */
    int64_t offset; /* of the diagonal */
} RefSeq;

/* A place in a result; of a tensor that programs read the index b, h, i, c. */
typedef struct RefPlace {
    int64_t b, h, i, c;
    double got, want;
} RefPlace;

/* A graph, and the launch's tensors in its own order. p NULL: none. */
typedef struct RefGraph {
    const Program *p;
    ProgramArray array[PROGRAM_TENSORS];
} RefGraph;

typedef struct RefPrograms {
    RefGraph keep, score, grad;
    const ProgramGrad *grads; /* of a backward with a score; else NULL */
} RefPrograms;

void ref_programs_make(RefPrograms *x, const attnc_spec *s,
                       const attnc_args *a);

/* Values of one graph at one row. */
typedef struct RefValues {
    const Program *p;
    int last;
    double *value;
    ProgramEnv env;
} RefValues;

/* A worker's: whether a pair is kept; its score in f64 and in f32. */
typedef struct RefEval {
    const RefPrograms *x;
    RefValues keep, wide, f32;
} RefEval;

/* false: out of memory; free all the same. */
bool ref_eval_alloc(RefEval *v, const RefPrograms *x);
void ref_eval_free(RefEval *v);
/* From here on pairs are those of this query row. */
void ref_eval_row(RefEval *v, const RefSeq *q, int64_t b, int64_t h, int64_t i);
bool ref_eval_keep(RefEval *v, int64_t j);
/* What becomes of score s of key j; *slope: its derivative, in a backward. */
double ref_eval_score(RefEval *v, int64_t j, double s, double *slope);
float ref_eval_score32(RefEval *v, int64_t j, float s, float *slope);
/* Every value of a pair. */
const double *ref_eval_values(RefValues *v, int64_t j, double s);

#endif
