/* SPDX-License-Identifier: Apache-2.0
 * Packed sequences: lengths of 0 on either side or both, longest much longer
 * than the rest, nothing read or written beyond. */
#include "case.h"

static Case varlen_case(int dtype, int mask) {
    Case c = case_of(dtype, 16, 16, mask);
    c.spec.varlen = 1;
    if (mask == ATTNC_MASK_WINDOW)
        c.left = c.right = 9;
    if (mask == ATTNC_MASK_PREFIX)
        c.prefix = 4;
    return c;
}

static void random_lengths_agree_with_f64(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    for (int dtype = 0; dtype < 3; dtype++)
        for (int mask = 0; mask <= ATTNC_MASK_PREFIX; mask++) {
            Case c = varlen_case(dtype, mask);
            attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
            for (int i = 0; i < 25; i++) {
                c.batch = random_int(1, 12);
                c.kv_heads = random_int(1, 2);
                c.heads = c.kv_heads * random_int(1, 3);
                c.nq = random_int(0, 90);
                c.nk = random_int(0, 150);
                c.mode = (int)random_int(0, 1);
                c.layout = (int)random_int(0, LAYOUTS - 1);
                c.no_lse = i == 7;
                case_check(&c, plan);
            }
            attnc_plan_release(plan);
        }
    attnc_context_destroy(ctx);
}

static void empty_sequences_anywhere_are_fine(void **state) {
    static const int32_t lengths[][2][4] = {
        {{0, 0, 0, 0}, {0, 0, 0, 0}}, {{0, 5, 0, 5}, {5, 0, 0, 5}},
        {{3, 3, 3, 1}, {0, 0, 0, 0}}, {{0, 0, 0, 0}, {4, 4, 4, 1}},
        {{9, 0, 0, 0}, {0, 0, 0, 9}}, {{0, 0, 0, 9}, {0, 0, 0, 9}},
        {{1, 1, 1, 1}, {1, 1, 1, 1}},
    };
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    Case c = varlen_case(ATTNC_F32, ATTNC_MASK_CAUSAL);
    c.heads = 2;
    c.batch = 4;
    c.nq = c.nk = 9;
    attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        c.rows_q = lengths[i][0];
        c.rows_k = lengths[i][1];
        case_check(&c, plan);
    }
    attnc_plan_release(plan);
    attnc_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_BOTH(random_lengths_agree_with_f64),
        ON_BOTH(empty_sequences_anywhere_are_fine),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
