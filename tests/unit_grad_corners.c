/* SPDX-License-Identifier: Apache-2.0
 * Gradients at the corners: nothing to see, padding and masked keys full of
 * NaN, gradients of O that are not finite; the workspace is what the formula
 * says. */
#include "grad_case.h"
#include "runtime.h"

static Case corner_case(int mask) {
    Case c = CASE_INIT;
    c.spec.head_dim = 40;
    c.spec.head_dim_v = 24;
    c.spec.mask = mask;
    c.batch = 2;
    c.heads = 4;
    c.kv_heads = 2;
    c.nq = 150;
    c.nk = 170;
    return c;
}

/* Runs fn for both strategies on the compiled kernel, or on the built-in. */
static void each_plan(int kernel, Case *c,
                      void (*fn)(Case *c, attnc_plan *fwd, attnc_plan *bwd)) {
    attnc_context *ctx =
        context_make(kernel, kernel == KERNEL_BUILTIN ? NULL : "cpu", 2);
    attnc_spec s = grad_spec(c);
    attnc_plan *fwd = plan_make(ctx, &c->spec, NULL);
    bool avx2 = kernel == KERNEL_COMPILED && probe_runs("avx2");
    int n = !avx2 ? 1 : s.dtype == ATTNC_F32 ? GRAD_TILES : 1;
    for (int i = 0; i < n; i++) {
        attnc_plan *bwd = plan_with(ctx, &s, avx2 ? grad_tiles[i] : NULL);
        fn(c, fwd, bwd);
        attnc_plan_release(bwd);
    }
    attnc_plan_release(fwd);
    attnc_context_destroy(ctx);
}

/* ---- nothing to see ---------------------------------------------------- */

static void check_fresh(Case *c, attnc_plan *fwd, attnc_plan *bwd) {
    grad_check(c, fwd, bwd);
}

static void rows_that_see_nothing_give_zeros(void **state) {
    Case c = corner_case(ATTNC_MASK_CAUSAL);
    c.spec.dtype = (int32_t)random_int(0, 2);
    for (int i = 0; i < 3; i++) {
        c.offset = (int64_t[]){-60, -1000, 400}[i];
        each_plan(*(int *)*state, &c, check_fresh);
    }
    c.offset = 0;
    c.nk = 0;
    each_plan(*(int *)*state, &c, check_fresh);
    c.nk = 170;
    c.nq = 0;
    each_plan(*(int *)*state, &c, check_fresh);
}

static void empty_sequences_among_others(void **state) {
    static const int32_t rows_q[] = {0, 30, 0, 1, 70},
                         rows_k[] = {9, 0, 0, 1, 60};
    Case c = corner_case(ATTNC_MASK_CAUSAL);
    c.spec.varlen = 1;
    c.spec.sink = 1;
    c.batch = 5;
    c.nq = c.nk = 70;
    c.rows_q = rows_q;
    c.rows_k = rows_k;
    c.mode = ATTNC_OFFSET_BR;
    each_plan(*(int *)*state, &c, check_fresh);
}

/* ---- what is not finite ------------------------------------------------ */

static void spoil(const Case *c, Block *b, const attnc_tensor *t, int64_t h,
                  int64_t n, int dim, float x) {
    put_row(c->spec.dtype, element(c, t, 0, h, n), dim, x, true);
    memcpy(b->kept, b->base, b->bytes);
}

/* Key 100 is hidden from queries below 100; of query 20 dO is NaN, which keys
 * above 20 never meet. */
static void check_spoilt(Case *c, attnc_plan *fwd, attnc_plan *bwd) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        GradData g;
        grad_make(c, &g);
        attnc_args *a = &g.d.args;
        spoil(c, &g.d.k, &a->k, 0, 100, 40, bad[i]);
        spoil(c, &g.d.v, &a->v, 1, 90, 24, bad[(i + 1) % 3]);
        spoil(c, &g.dout, &a->dout, 1, 20, 24, NAN);
        grad_launch(c, fwd, bwd, &g);
        for (int64_t h = 0; h < c->heads; h++) {
            int64_t seen = h / 2 == 0 ? 100 : 90;
            for (int64_t n = 0; n < seen; n++) {
                float x = *(float *)element(c, &a->dq, 0, h, n);
                assert_true(isfinite(x) || (h == 1 && n == 20));
            }
        }
        for (int64_t n = 150; n < c->nk; n++) /* beyond every query */
            assert_true(*(float *)element(c, &a->dk, 0, 0, n) == 0 &&
                        *(float *)element(c, &a->dv, 0, 1, n) == 0);
        grad_check_kept(c, &g);
        grad_free(&g);
    }
}

static void what_is_hidden_may_hold_anything(void **state) {
    Case c = corner_case(ATTNC_MASK_CAUSAL);
    c.batch = 1;
    each_plan(*(int *)*state, &c, check_spoilt);
}

/* Rows behind the key length hold NaN (grad_check leaves them so); their
 * gradients are exact zeros. */
static void padding_gets_exact_zeros(void **state) {
    for (int mask = 0; mask < 4; mask++) {
        Case c = corner_case(mask);
        c.spec.lens_k = 1;
        c.batch = 6;
        c.mode = ATTNC_OFFSET_LEN;
        c.left = mask == ATTNC_MASK_WINDOW ? 30 : 0;
        c.right = mask == ATTNC_MASK_WINDOW ? 4 : 0;
        c.prefix = mask == ATTNC_MASK_PREFIX ? 20 : 0;
        each_plan(*(int *)*state, &c, check_fresh);
    }
}

/* ---- memory ------------------------------------------------------------ */

/* B H N (4 d + 8) bytes, and for each further partial sum of dQ 4 d more;
 * workers' scratch does not grow with any length. */
static void the_workspace_is_linear(void **state) {
    (void)state;
    attnc_context *ctx = context_make(KERNEL_COMPILED, "avx2", 2);
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    s.pass = ATTNC_PASS_BWD;
    for (int parts = 1; parts <= 8; parts *= 2) {
        char tile[32];
        size_t bytes[2];
        snprintf(tile, sizeof tile, "parts=%d", parts);
        attnc_plan *plan = plan_with(ctx, &s, tile);
        for (int i = 0; i < 2; i++) {
            attnc_args a = ATTNC_ARGS_INIT;
            a.batch = 3;
            a.heads = a.kv_heads = 4;
            a.seqlen_q = a.seqlen_k = i ? 2048 : 1024;
            assert_int_equal(attnc_workspace(plan, &a, &bytes[i]), 0);
        }
        int64_t rows = 3 * 4 * 1024;
        assert_int_equal(bytes[1] - bytes[0],
                         rows * (4 * 64 + 8) + (parts - 1) * 4 * 64 * rows);
        attnc_plan_release(plan);
    }
    attnc_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_BOTH(rows_that_see_nothing_give_zeros),
        ON_BOTH(empty_sequences_among_others),
        ON_BOTH(what_is_hidden_may_hold_anything),
        ON_BOTH(padding_gets_exact_zeros),
        cmocka_unit_test(the_workspace_is_linear),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
