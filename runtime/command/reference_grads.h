/* SPDX-License-Identifier: Apache-2.0
 * Between the two halves of the gradients' reference: reference_grads.c
 * computes rows and keys, reference_bwd.c chooses and judges them. */
#ifndef ATTNC_REFERENCE_GRADS_H
#define ATTNC_REFERENCE_GRADS_H

#include <pthread.h>

#include "reference_rows.h"

/* What the first half leaves for the second, of each query row. */
typedef struct RefState {
    double lse, delta, noise; /* noise: what terms of delta may cancel to */
    float max, sum, delta32;  /* unfused: softmax, rowsum(P dP) - dLSE */
} RefState;

/* All workers read it; `state` and what is stored they write, each its own. */
typedef struct RefGrad {
    RefProblem p;
    double fraction;         /* of rows to compare */
    int64_t nq, nk;          /* rows of an entry in dense arrays */
    float *q, *k, *v, *dout; /* dense f32, [b][h][n][width] */
    int64_t *lo, *hi;        /* [b][nq]: keys a row sees */
    RefState *state;         /* [b][h][nq] */
    double *to[REF_GRADS];   /* store there instead of comparing */
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

/* A pair that sees each other: its score and dP, z of dropout within, and the
 * derivative of the softcap; the same of unfused attention. */
typedef struct RefCell {
    double s, dp, bend, z;
    float s32, dp32, bend32;
} RefCell;

typedef struct RefGradWork {
    const RefGrad *g;
    int id;
    RefSums sums[REF_GRADS];
    double rows;
    /* A row's sums: of f64, squares of their terms, of unfused attention. */
    double *x, *terms, *y, *terms_y;
    float *x32, *y32, *tile;
    RefCell *cell; /* [nk]: a query row's */
    pthread_t thread;
} RefGradWork;

/* exp(s - lse); 0 for a score of -inf, whatever else is not finite. */
double ref_weight(double s, double lse);
RefRow ref_grad_row(const RefGrad *g, int64_t b, int64_t h, int64_t i);
/* Softmax, delta and dQ of a row that sees the keys [lo, hi): its state, and x
 * beside terms and x32. */
void ref_grad_query(RefGradWork *w, const RefRow *r, int64_t lo, int64_t hi);
/* The state as the launch's own O and LSE say it; o: room for a row. */
void ref_grad_taken(const RefGrad *g, const RefRow *r, float *o);
/* dK in x, dV in y of key j, from the states of all rows. */
void ref_grad_key(RefGradWork *w, int64_t b, int64_t hk, int64_t j);

#endif
