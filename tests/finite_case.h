/* SPDX-License-Identifier: Apache-2.0
 * Finite differences of the reference's f64 forward, for its gradients. */
#ifndef FINITE_CASE_H
#define FINITE_CASE_H

#include "grad_case.h"

/* Inputs are multiples of this, and so are what they are moved by: exact. */
static const float GRID = 0x1p-10f, STEP = 0x1p-8f;

static inline Case small_case(int mask) {
    Case c = CASE_INIT;
    c.spec.head_dim = 4;
    c.spec.head_dim_v = 3;
    c.spec.mask = mask;
    c.batch = 2;
    c.heads = 4;
    c.kv_heads = 2;
    c.nq = 5;
    c.nk = 7;
    c.left = mask == ATTNC_MASK_WINDOW ? 2 : 0;
    c.right = mask == ATTNC_MASK_WINDOW ? 1 : 0;
    return c;
}

/* sum(dO O) + sum(dLSE LSE) over rows that see a key. */
static inline double loss(const Case *c, const GradData *g) {
    const attnc_args *a = &g->d.args;
    size_t rows = (size_t)(c->batch * c->heads * c->nq);
    int dv = case_dv(c);
    double *o = malloc(sizeof(double) * rows * (size_t)dv), sum = 0;
    double *lse = malloc(sizeof(double) * rows);
    Err e = {0};
    assert_int_equal(reference_fwd(&c->spec, a, o, lse, &e), 0);
    for (size_t r = 0; r < rows; r++) {
        int64_t i = (int64_t)r % c->nq, h = (int64_t)r / c->nq % c->heads;
        int64_t b = (int64_t)r / c->nq / c->heads;
        const float *dout = (float *)element(c, &a->dout, b, h, i);
        if (lse[r] == -INFINITY)
            continue;
        for (int x = 0; x < dv; x++)
            sum += o[r * (size_t)dv + (size_t)x] * (double)dout[x];
        if (a->dlse)
            sum +=
                lse[r] *
                (double)a->dlse[b * a->lse_stride_b + h * a->lse_stride_h + i];
    }
    free(o);
    free(lse);
    return sum;
}

/* The derivative at *x, to the fourth power of STEP. */
static inline double slope(const Case *c, const GradData *g, float *x) {
    static const float at[] = {-2, -1, 1, 2}, by[] = {1, -8, 8, -1};
    float kept = *x;
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        *x = kept + at[i] * STEP;
        sum += (double)by[i] * loss(c, g);
    }
    *x = kept;
    return sum / (12 * (double)STEP);
}

static inline void to_grid(const Case *c, const attnc_tensor *t, int64_t heads,
                           int64_t rows, int dim) {
    for (int64_t n = 0; n < c->batch * heads * rows; n++) {
        int64_t i = n % rows, h = n / rows % heads, b = n / rows / heads;
        float *x = (float *)element(c, t, b, h, i);
        for (int e = 0; e < dim; e++)
            x[e] = roundf(x[e] / GRID) * GRID;
    }
}

static inline void check_tensor(const Case *c, const GradData *g,
                                const attnc_tensor *t, int64_t heads,
                                int64_t rows, int dim, const double *want) {
    for (int64_t n = 0; n < c->batch * heads * rows; n++) {
        int64_t i = n % rows, h = n / rows % heads, b = n / rows / heads;
        int e = (int)random_int(0, dim - 1);
        float *x = (float *)element(c, t, b, h, i) + e;
        double found = slope(c, g, x), owed = want[n * dim + e];
        if (fabs(found - owed) > 1e-6 * (1 + fabs(owed))) {
            case_print(c);
            fail_msg("row %lld dim %d: %.9g, finite differences %.9g",
                     (long long)n, e, owed, found);
        }
    }
}

#endif
