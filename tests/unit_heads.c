/* SPDX-License-Identifier: Apache-2.0
 * Every head dim, head_dim_v unlike it, every type: exact to the contract; a
 * dim beyond the limit is refused by name. */
#include "case.h"

static const int dims[] = {1,  8,  20,  40,  56,  64,  72, 80,
                           88, 96, 112, 128, 192, 255, 256};
enum { DIMS = sizeof(dims) / sizeof(dims[0]) };

static void check_dims(attnc_context *ctx, int dtype, int d, int dv) {
    Case c = case_of(dtype, d, dv, ATTNC_MASK_CAUSAL);
    c.batch = 2;
    c.heads = c.kv_heads = 2;
    c.nq = 37;
    c.nk = 67;
    c.mode = ATTNC_OFFSET_BR;
    c.layout = (int)random_int(0, LAYOUTS - 1);
    attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
    case_check(&c, plan);
    attnc_plan_release(plan);
}

/* The compiled kernel costs a compiler run for each: there every dim meets
 * itself in one type and a few others; all with FULL=1. */
static bool chosen(int kernel, int i, int j, int dtype) {
    if (kernel == KERNEL_BUILTIN || getenv("FULL"))
        return true;
    if (i == j)
        return dtype == i % 3 || dims[i] == 64 || dims[i] == 128;
    return (i * 7 + j * 3) % 11 == 0 && dtype == (i + j) % 3;
}

static void head_dims_agree_with_f64(void **state) {
    int kernel = *(int *)*state, specs = 0;
    attnc_context *ctx = context_make(kernel, NULL, 2);
    for (int dtype = 0; dtype < 3; dtype++)
        for (int i = 0; i < DIMS; i++)
            for (int j = 0; j < DIMS; j++)
                if (chosen(kernel, i, j, dtype)) {
                    check_dims(ctx, dtype, dims[i], dims[j]);
                    specs++;
                }
    print_message("%d specs\n", specs);
    attnc_context_destroy(ctx);
}

static void dims_beyond_the_limit_are_refused(void **state) {
    static const int beyond[] = {0, -1, 257, 512, 576};
    attnc_context *ctx = context_make(*(int *)*state, NULL, 1);
    for (int i = 0; i < 5; i++) {
        attnc_spec s = ATTNC_SPEC_DEFAULT;
        attnc_shape h = ATTNC_SHAPE_DEFAULT;
        attnc_plan *plan = NULL;
        s.head_dim = beyond[i];
        assert_int_equal(attnc_prepare(ctx, &s, &h, &plan), ATTNC_E_REQUEST);
        assert_string_equal(attnc_last_error()->field, "head_dim");
        assert_null(plan);
    }
    attnc_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_BOTH(head_dims_agree_with_f64),
        ON_BUILTIN(dims_beyond_the_limit_are_refused),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
