/* SPDX-License-Identifier: Apache-2.0
 * The judge itself: right results pass, each kind of wrong one fails and is
 * told where; sampling says its coverage and never misses a corner. */
#include "case.h"

static Case judged_case(int dtype) {
    Case c = case_of(dtype, 32, 32, ATTNC_MASK_CAUSAL);
    c.batch = 2;
    c.heads = 4;
    c.kv_heads = 2;
    c.nq = 300;
    c.nk = 280;
    c.offset = -7; /* rows 0..6 see nothing */
    return c;
}

/* Fresh data, and the f64 results, rounded to the type, as a launch's. */
static void answer(const Case *c, Data *d) {
    data_make(c, d);
    size_t n = (size_t)(c->batch * c->heads * c->nq);
    int dv = case_dv(c), size = dtype_bytes(c->spec.dtype);
    double *o = malloc(sizeof(double) * n * (size_t)dv);
    double *lse = malloc(sizeof(double) * n);
    Err e = {0};
    assert_int_equal(reference_fwd(&c->spec, &d->args, o, lse, &e), 0);
    for (size_t r = 0; r < n; r++) {
        int64_t i = (int64_t)r % c->nq, h = (int64_t)r / c->nq % c->heads;
        int64_t b = (int64_t)r / c->nq / c->heads;
        char *to = element(c, &d->args.o, b, h, i);
        for (int x = 0; x < dv; x++)
            put(c->spec.dtype, to + x * size, (float)o[r * (size_t)dv + x]);
        d->args.lse[b * d->args.lse_stride_b + h * d->args.lse_stride_h + i] =
            (float)lse[r];
    }
    free(o);
    free(lse);
}

static RefCheck judge(const Case *c, const Data *d) {
    RefCheck r;
    Err e = {0};
    assert_int_equal(reference_check(&c->spec, &d->args, 2, NULL, NULL, &r, &e),
                     0);
    return r;
}

static void right_results_pass(void **state) {
    (void)state;
    for (int dtype = 0; dtype < 3; dtype++) {
        Case c = judged_case(dtype);
        Data d;
        answer(&c, &d);
        RefCheck r = judge(&c, &d);
        assert_true(r.ok && r.coverage == 1 && !r.why[0]);
        assert_true(r.o <= r.unfused_o && r.lse <= r.unfused_lse);
        data_free(&d);
    }
}

/* Spoils one element after the other; each must be seen and named. */
static void check_spoilt(const Case *c, Data *d, int64_t row, float x) {
    char *at = element(c, &d->args.o, 1, 3, row), kept[4];
    int size = dtype_bytes(c->spec.dtype);
    memcpy(kept, at, 4);
    put(c->spec.dtype, at, x);
    RefCheck r = judge(c, d);
    assert_false(r.ok);
    assert_non_null(strstr(r.why, "batch 1 head 3 query "));
    memcpy(at, kept, (size_t)size);
}

static void wrong_results_fail(void **state) {
    (void)state;
    for (int dtype = 0; dtype < 3; dtype++) {
        Case c = judged_case(dtype);
        Data d;
        answer(&c, &d);
        check_spoilt(&c, &d, 150, NAN);
        check_spoilt(&c, &d, 299, INFINITY);
        check_spoilt(&c, &d, 3, 1e-6f); /* sees nothing, owes exact 0 */
        check_spoilt(&c, &d, 200, 9);   /* one entry of 76800 */
        d.args.lse[d.args.lse_stride_b + 50] += 1;
        RefCheck r = judge(&c, &d);
        assert_true(!r.ok && strncmp(r.why, "lse: ", 5) == 0);
        data_free(&d);
    }
}

/* A row forgotten among many is nothing to a norm, but to the judge. */
static void one_wrong_row_among_many_fails(void **state) {
    (void)state;
    for (int dtype = 0; dtype < 3; dtype++) {
        Case c = judged_case(dtype);
        Data d;
        c.spec.mask = ATTNC_MASK_NONE;
        c.offset = 0;
        c.batch = 16;
        c.nk = 4;
        answer(&c, &d);
        memset(element(&c, &d.args.o, 7, 2, 123), 0,
               (size_t)(32 * dtype_bytes(dtype)));
        RefCheck r = judge(&c, &d);
        assert_false(r.ok);
        assert_non_null(strstr(r.why, "batch 7 head 2 query 123"));
        data_free(&d);
    }
}

/* Too much for the judge: it draws rows, corners among them. */
static void sampling_covers_the_corners(void **state) {
    (void)state;
    const char *sanitize = getenv("SANITIZE");
    if (sanitize && *sanitize) {
        print_message("4e10 flops take minutes when instrumented\n");
        skip();
    }
    attnc_context *ctx = context_make(KERNEL_BUILTIN, NULL, 2);
    Case c = CASE_INIT;
    Data d;
    c.spec.head_dim = 256;
    c.nq = 2000;
    c.nk = 12000;
    attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
    data_make(&c, &d);
    case_launch(&c, plan, &d);
    *(float *)element(&c, &d.args.o, 0, 0, c.nq - 1) += 1;
    RefCheck r = judge(&c, &d);
    double flops = 2.0 * (256 + 256) * 2000 * 12000;
    assert_true(fabs(r.coverage - 2e10 / flops) < 0.01);
    assert_false(r.ok);
    assert_non_null(strstr(r.why, "query 1999"));
    data_free(&d);
    attnc_plan_release(plan);
    attnc_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(right_results_pass),
        cmocka_unit_test(wrong_results_fail),
        cmocka_unit_test(one_wrong_row_among_many_fails),
        cmocka_unit_test(sampling_covers_the_corners),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
