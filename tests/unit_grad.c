/* SPDX-License-Identifier: Apache-2.0
 * Gradients of any mix of features agree with f64, on every shape, with fresh
 * data amid NaN and outputs in poison; the same specs each time, so that their
 * kernels may lie in a cache. */
#include "grad_case.h"

enum { SPECS = 24 };

static int64_t pick(const int64_t *list, int n) {
    return list[random_int(0, n - 1)];
}

#define PICK(...)                                                              \
    pick((const int64_t[]){__VA_ARGS__},                                       \
         sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t))

static attnc_spec spec_make(void) {
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    s.dtype = (int32_t)random_int(0, 2);
    s.head_dim = (int32_t)PICK(1, 5, 8, 16, 33, 40, 64, 80, 128);
    s.head_dim_v = (int32_t)PICK(0, 0, 0, 3, 24, 64);
    s.mask = (int32_t)random_int(0, 3);
    s.lens_k = (int32_t)random_int(0, 1);
    s.varlen = random_int(0, 2) == 0;
    s.softcap = random_int(0, 3) == 0;
    s.alibi = random_int(0, 3) == 0;
    s.sink = random_int(0, 2) == 0;
    s.batch_invariant = random_int(0, 3) == 0;
    s.dropout = random_int(0, 3) == 0;
    return s;
}

/* {batch, kv heads, Nq, Nk}: none, one, odd, tails, more queries, more keys */
static const int64_t shapes[][4] = {
    {1, 1, 1, 1},   {2, 2, 0, 5},     {1, 2, 7, 0},
    {3, 1, 33, 70}, {2, 1, 65, 5},    {1, 2, 128, 64},
    {2, 1, 1, 511}, {1, 1, 130, 257}, {1, 1, 301, 190},
};

static void numbers_of(Case *c) {
    c->layout = (int)random_int(0, LAYOUTS - 1);
    c->mode = (int32_t)random_int(0, c->spec.lens_k ? 2 : 1);
    c->offset = PICK(0, 0, 3, -5, 40);
    c->left = c->spec.mask == ATTNC_MASK_WINDOW ? PICK(0, 9, 70, INT64_MAX) : 0;
    c->right = c->spec.mask == ATTNC_MASK_WINDOW ? PICK(0, 4, INT64_MAX) : 0;
    c->prefix = c->spec.mask == ATTNC_MASK_PREFIX ? PICK(0, 3, 90) : 0;
    c->scale = random_int(0, 3) ? NAN : 0.3f;
}

static void run_spec(attnc_context *ctx, const attnc_spec *spec, int group) {
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    Case c = CASE_INIT;
    c.spec = *spec;
    attnc_spec bwd = grad_spec(&c);
    h.heads = h.kv_heads * group;
    attnc_plan *first = plan_make(ctx, &c.spec, &h);
    attnc_plan *second = plan_make(ctx, &bwd, &h);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        c.batch = shapes[i][0];
        c.kv_heads = shapes[i][1];
        c.heads = c.kv_heads * group;
        c.nq = shapes[i][2];
        c.nk = shapes[i][3];
        numbers_of(&c);
        grad_check(&c, first, second);
    }
    attnc_plan_release(first);
    attnc_plan_release(second);
}

static void any_mix_of_features_agrees_with_f64(void **state) {
    int kernel = *(int *)*state;
    attnc_context *ctx = context_make(kernel, NULL, 2);
    uint64_t specs = 77, fresh = random_state;
    for (int i = 0; i < SPECS; i++) {
        random_state = specs;
        attnc_spec s = spec_make();
        int group = (int)PICK(1, 1, 2, 3);
        specs = random_state;
        random_state = fresh;
        run_spec(ctx, &s, group);
        fresh = random_state;
    }
    attnc_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_BOTH(any_mix_of_features_agrees_with_f64),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
