/* SPDX-License-Identifier: Apache-2.0
 * The judge of gradients: its f64 gradients are those that finite differences
 * of its f64 forward show, right results pass, wrong ones are named. */
#include "grad_case.h"

/* ---- finite differences ------------------------------------------------ */

/* Inputs are multiples of this, and so are what they are moved by: exact. */
static const float GRID = 0x1p-10f, STEP = 0x1p-8f;

static Case small_case(int mask) {
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
static double loss(const Case *c, const GradData *g) {
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
static double slope(const Case *c, const GradData *g, float *x) {
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

static void to_grid(const Case *c, const attnc_tensor *t, int64_t heads,
                    int64_t rows, int dim) {
    for (int64_t n = 0; n < c->batch * heads * rows; n++) {
        int64_t i = n % rows, h = n / rows % heads, b = n / rows / heads;
        float *x = (float *)element(c, t, b, h, i);
        for (int e = 0; e < dim; e++)
            x[e] = roundf(x[e] / GRID) * GRID;
    }
}

static void check_tensor(const Case *c, const GradData *g,
                         const attnc_tensor *t, int64_t heads, int64_t rows,
                         int dim, const double *want) {
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

static void check_gradients(const Case *c) {
    attnc_spec bwd = grad_spec(c);
    double dq[4 * 2 * 5 * 4], dk[2 * 2 * 7 * 4], dv[2 * 2 * 7 * 3], dsink[4];
    GradData g;
    Err e = {0};
    grad_make(c, &g);
    attnc_args *a = &g.d.args;
    to_grid(c, &a->q, c->heads, c->nq, 4);
    to_grid(c, &a->k, c->kv_heads, c->nk, 4);
    to_grid(c, &a->v, c->kv_heads, c->nk, 3);
    assert_int_equal(reference_bwd(&bwd, a, dq, dk, dv, dsink, &e), 0);
    check_tensor(c, &g, &a->q, c->heads, c->nq, 4, dq);
    check_tensor(c, &g, &a->k, c->kv_heads, c->nk, 4, dk);
    check_tensor(c, &g, &a->v, c->kv_heads, c->nk, 3, dv);
    for (int h = 0; h < 4 && c->spec.sink; h++) {
        g.d.sink[h] = roundf(g.d.sink[h] / GRID) * GRID;
        assert_int_equal(reference_bwd(&bwd, a, dq, dk, dv, dsink, &e), 0);
        assert_true(fabs(slope(c, &g, &g.d.sink[h]) - dsink[h]) <
                    1e-6 * (1 + fabs(dsink[h])));
    }
    grad_free(&g);
}

static void gradients_are_finite_differences(void **state) {
    (void)state;
    for (int mask = 0; mask < 4; mask++) {
        for (int features = 0; features < 16; features++) {
            Case c = small_case(mask);
            c.spec.softcap = features & 1;
            c.spec.alibi = features >> 1 & 1;
            c.spec.sink = features >> 2 & 1;
            c.spec.dropout = features >> 3 & 1;
            check_gradients(&c);
        }
    }
}

/* ---- the verdict ------------------------------------------------------- */

/* The f64 gradients, rounded to the type, as those of a launch. */
static void answer(const Case *c, GradData *g) {
    const attnc_args *a = &g->d.args;
    attnc_spec bwd = grad_spec(c);
    const attnc_tensor *t[] = {&a->dq, &a->dk, &a->dv};
    const int64_t heads[] = {c->heads, c->kv_heads, c->kv_heads};
    const int64_t rows[] = {c->nq, c->nk, c->nk};
    const int dim[] = {c->spec.head_dim, c->spec.head_dim, case_dv(c)};
    double *x[3];
    Err e = {0};
    for (int k = 0; k < 3; k++)
        x[k] = malloc(sizeof(double) *
                      (size_t)(c->batch * heads[k] * rows[k] * dim[k]));
    assert_int_equal(reference_bwd(&bwd, a, x[0], x[1], x[2], NULL, &e), 0);
    for (int k = 0; k < 3; k++) {
        for (int64_t n = 0; n < c->batch * heads[k] * rows[k]; n++) {
            int64_t b = n / rows[k] / heads[k], h = n / rows[k] % heads[k];
            char *to = element(c, t[k], b, h, n % rows[k]);
            for (int i = 0; i < dim[k]; i++)
                put(c->spec.dtype, to + i * dtype_bytes(c->spec.dtype),
                    (float)x[k][n * dim[k] + i]);
        }
        free(x[k]);
    }
}

static RefCheck judge(const Case *c, const GradData *g) {
    attnc_spec bwd = grad_spec(c);
    RefCheck r;
    Err e = {0};
    assert_int_equal(
        reference_check_bwd(&bwd, &g->d.args, 2, NULL, NULL, &r, &e), 0);
    return r;
}

static void expect_named(const Case *c, const GradData *g, char *at, float x,
                         const char *name) {
    char kept[4];
    size_t size = (size_t)dtype_bytes(c->spec.dtype);
    memcpy(kept, at, size);
    put(c->spec.dtype, at, x);
    RefCheck r = judge(c, g);
    assert_false(r.ok);
    assert_memory_equal(r.why, name, strlen(name));
    memcpy(at, kept, size);
}

static void wrong_gradients_are_named(void **state) {
    (void)state;
    for (int dtype = 0; dtype < 3; dtype++) {
        Case c = CASE_INIT;
        GradData g;
        c.spec.dtype = dtype;
        c.spec.head_dim = 16;
        c.spec.mask = ATTNC_MASK_CAUSAL;
        c.offset = -3; /* rows 0..2 see nothing */
        c.heads = 4;
        c.kv_heads = 2;
        c.nq = c.nk = 70;
        grad_make(&c, &g);
        answer(&c, &g);
        RefCheck r = judge(&c, &g);
        assert_true(r.ok && r.coverage == 1 && !r.why[0]);
        const attnc_args *a = &g.d.args;
        expect_named(&c, &g, element(&c, &a->dq, 0, 3, 60), NAN, "dq: ");
        expect_named(&c, &g, element(&c, &a->dq, 0, 3, 1), 1e-6f, "dq: ");
        expect_named(&c, &g, element(&c, &a->dk, 0, 1, 9), 50, "dk: ");
        expect_named(&c, &g, element(&c, &a->dv, 0, 1, 69), 1e-6f, "dv: ");
        grad_free(&g);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_finite_differences),
        cmocka_unit_test(wrong_gradients_are_named),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
