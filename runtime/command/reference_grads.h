/* SPDX-License-Identifier: Apache-2.0
 * Between the two halves of the gradients' reference: reference_grads.c
 * computes rows and keys, reference_bwd.c chooses and judges them. */
#ifndef ATTNC_REFERENCE_GRADS_H
#define ATTNC_REFERENCE_GRADS_H

#include <pthread.h>

#include "reference_rows.h"

/* Sums of a tensor's gradient, element by element: of f64, of squares of their
 * terms, of unfused attention. */
typedef struct RefTensor {
    double *sum, *terms; /* NULL: not asked for, or kept in another one */
    float *sum32;
} RefTensor;

/* What the first half leaves for the second, of each query row. */
typedef struct RefState {
    double lse, delta, noise; /* noise: what terms of delta may cancel to */
    float max, sum, delta32;  /* unfused: softmax, rowsum(P dP) - dLSE */
} RefState;

/* All workers read it; `state` and what is stored they write, each its own. */
typedef struct RefGrad {
    RefProblem p;
    double fraction;                /* of rows to compare */
    int64_t nq, nk;                 /* rows of an entry in dense arrays */
    float *q, *k, *v, *dout;        /* dense f32, [b][h][n][width] */
    int64_t *lo, *hi;               /* [b][nq]: keys a row sees */
    RefState *state;                /* [b][h][nq] */
    double *to[REF_GRADS];          /* store there instead of comparing */
    double **to_tensor;             /* by spec_tensors(), each may be NULL */
    RefTensor tensor[SPEC_TENSORS]; /* those whose rows have one owner each */
    ProgramTensor known[SPEC_TENSORS];
    bool skip_tensors; /* too many pairs */
    int tensors;       /* 0: none has its gradient summed */
    struct {
        int tensor;
        const attnc_array *array;
    } read[PROGRAM_READS]; /* of each read with a gradient */
    bool store;
    int workers;
    void (*progress)(void *user, double done);
    void *user;
} RefGrad;

/* One query row and what it multiplies. */
typedef struct RefRow {
    int64_t b, h, i;
    RefSeq seq;
    const float *q, *dout, *k, *v; /* k, v: of key 0 */
    RefState *state;
    float dlse;
} RefRow;

/* A pair: its score, that before programs and the derivative of the first by
 * what is scaled, dP, z of dropout within; the same of unfused attention. */
typedef struct RefCell {
    double s, raw, dp, bend, z;
    float s32, raw32, dp32, bend32;
    bool out; /* by a program */
} RefCell;

/* Its weight as dropped, and dS; `size` is that of the terms of dS. */
typedef struct RefPair {
    double kept, ds, size, lse; /* lse: what its rounding makes of a term */
    float kept32, ds32;
} RefPair;

typedef struct RefGradWork {
    const RefGrad *g;
    int id;
    RefSums sums[REF_GRADS];
    double rows;
    /* A row's sums: of f64, squares of their terms, of unfused attention. */
    double *x, *terms, *y, *terms_y;
    float *x32, *y32, *tile;
    RefCell *cell; /* [nk]: a query row's */
    bool none;     /* is no pair seen of the row or key? */
    RefEval eval;
    RefTensor tensor[SPEC_TENSORS]; /* its own sums */
    pthread_t thread;
} RefGradWork;

/* exp(s - lse); 0 for a score of -inf, whatever else is not finite. */
double ref_weight(double s, double lse);
double ref_lse_factor(const RefGrad *g, const RefState *t);
/* Of the score itself: before its derivative by what it is made of. */
RefPair ref_grad_pair(const RefGrad *g, const RefState *t, const RefCell *c);
RefRow ref_grad_row(const RefGrad *g, int64_t b, int64_t h, int64_t i);
/* Softmax, delta and dQ of a row that sees the keys [lo, hi): its state, and x
 * beside terms and x32. */
void ref_grad_query(RefGradWork *w, const RefRow *r, int64_t lo, int64_t hi);
/* The state as the launch's own O and LSE say it; o: room for a row. */
void ref_grad_taken(const RefGrad *g, const RefRow *r, float *o);
/* dK in x, dV in y of key j, from the states of all rows. */
void ref_grad_key(RefGradWork *w, int64_t b, int64_t hk, int64_t j);

/* ---- reference_tensors.c: gradients of the tensors that programs read --- */

/* Opens the sums if tensors are asked for; false: out of memory. */
bool ref_tensors_open(RefGrad *g);
bool ref_tensors_open_worker(RefGradWork *w);
void ref_tensors_close(RefTensor tensor[SPEC_TENSORS]);
/* Adds a row's pairs, whose cells and state are there. */
void ref_tensors_add(RefGradWork *w, const RefRow *r, int64_t lo, int64_t n);
/* All workers' sums to those of the problem, which are stored and, with `out`,
 * compared. */
void ref_tensors_finish(RefGrad *g, RefGradWork *w, RefCheck *out);

#endif
