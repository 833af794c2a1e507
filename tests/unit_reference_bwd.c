/* SPDX-License-Identifier: Apache-2.0
 * The judge of gradients: its f64 gradients are those that finite differences
 * of its f64 forward show, right results pass, wrong ones are named. */
#include "finite_case.h"

/* ---- finite differences ------------------------------------------------ */

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

/* ---- packed sequences, key lengths ------------------------------------- */

/* Rows of one head: the packed result's, and those of the sequence alone. */
static void check_rows(const double *all, const double *one, int64_t heads,
                       int64_t longest, int64_t rows, int dim) {
    for (int64_t h = 0; h < heads; h++)
        for (int64_t n = 0; n < rows * dim; n++)
            assert_true(all[h * longest * dim + n] == one[h * rows * dim + n]);
}

/* Sequence b of *all as an entry of its own, of its visible keys alone. */
static attnc_args alone(const Case *c, const GradData *all, int64_t b,
                        int64_t keys) {
    const Data *d = &all->d;
    attnc_args a = d->args;
    attnc_tensor *t[] = {&a.q, &a.o, &a.dout, &a.k, &a.v};
    for (int i = 0; i < 5; i++)
        t[i]->data = element(c, t[i], b, 0, (i < 3 ? d->cu_q : d->cu_k)[b]);
    a.cu_seqlens_q = a.cu_seqlens_k = a.lens_k = NULL;
    a.batch = 1;
    a.seqlen_q = d->cu_q[b + 1] - d->cu_q[b];
    a.seqlen_k = keys;
    a.dropout_b0 += c->spec.dropout ? b : 0;
    a.lse += d->cu_q[b];
    a.dlse = a.dlse ? a.dlse + d->cu_q[b] : NULL;
    return a;
}

/* To the last bit. With finite differences of dense ones, this is all. */
static void packed_sequences_have_the_gradients_of_each_alone(void **state) {
    (void)state;
    for (int i = 0; i < 8; i++) {
        Case c = small_case(i % 4);
        GradData g;
        Err e = {0};
        double x[3][4 * 4 * 5 * 4], y[3][4 * 7 * 4];
        c.spec.varlen = c.spec.lens_k = 1;
        c.spec.dropout = i / 4;
        c.batch = 4;
        grad_make(&c, &g);
        attnc_spec bwd = grad_spec(&c), dense = bwd;
        const attnc_args *a = &g.d.args;
        dense.varlen = dense.lens_k = 0;
        assert_int_equal(reference_bwd(&bwd, a, x[0], x[1], x[2], NULL, &e), 0);
        for (int64_t b = 0; b < c.batch; b++) {
            int64_t n = g.d.cu_k[b + 1] - g.d.cu_k[b], len = g.d.lens_k[b];
            int64_t keys = len < n ? len : n;
            attnc_args o = alone(&c, &g, b, keys);
            assert_int_equal(
                reference_bwd(&dense, &o, y[0], y[1], y[2], NULL, &e), 0);
            check_rows(x[0] + b * 4 * c.nq * 4, y[0], 4, c.nq, o.seqlen_q, 4);
            check_rows(x[1] + b * 2 * c.nk * 4, y[1], 2, c.nk, keys, 4);
            check_rows(x[2] + b * 2 * c.nk * 3, y[2], 2, c.nk, keys, 3);
        }
        grad_free(&g);
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

/* Every score and the sink are 4000, so is LSE, but for some units: rounding it
 * to f32 alone moves dsink by up to 4000 * 2^-24 of itself. */
static void dsink_may_be_off_by_what_rounding_lse_costs(void **state) {
    (void)state;
    Case c = CASE_INIT;
    GradData g;
    double want[2];
    Err e = {0};
    c.spec.head_dim = 16;
    c.spec.sink = 1;
    c.heads = c.kv_heads = 2;
    c.nq = c.nk = 9;
    c.scale = 250;
    grad_make(&c, &g);
    const attnc_args *a = &g.d.args;
    for (int64_t n = 0; n < c.heads * c.nq * c.spec.head_dim; n++) {
        int64_t h = n / c.spec.head_dim / c.nq, i = n / c.spec.head_dim % c.nq;
        ((float *)element(&c, &a->q, 0, h, i))[n % c.spec.head_dim] = 1;
        ((float *)element(&c, &a->k, 0, h, i))[n % c.spec.head_dim] = 1;
    }
    g.d.sink[0] = g.d.sink[1] = 4000;
    answer(&c, &g);
    attnc_spec bwd = grad_spec(&c);
    assert_int_equal(reference_bwd(&bwd, a, NULL, NULL, NULL, want, &e), 0);
    for (double off = 0x1p-26; off < 1; off *= 0x1p14) {
        g.dsink[0] = (float)(want[0] * (1 + 4000 * off));
        g.dsink[1] = (float)(want[1] * (1 + 4000 * off));
        assert_true(judge(&c, &g).ok == (off == 0x1p-26));
    }
    grad_free(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_finite_differences),
        cmocka_unit_test(packed_sequences_have_the_gradients_of_each_alone),
        cmocka_unit_test(wrong_gradients_are_named),
        cmocka_unit_test(dsink_may_be_off_by_what_rounding_lse_costs),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
