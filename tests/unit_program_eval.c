/* SPDX-License-Identifier: Apache-2.0
 * Values of programs by stages, and with the decisions that f32 takes. */
#include "program_util.h"

enum { LATE = DEP_K | DEP_S | DEP_D };

static bool same(double a, double b) {
    return a == b || (isnan(a) && isnan(b));
}

/* What a row's pairs share is computed once a row; the rest for each pair. */
static void stages_give_the_values_of_the_whole(void **state) {
    (void)state;
    static Data data;
    static double value[PROGRAM_NODES];
    uint64_t seed = 8;
    data_fill(&data, &seed);
    for (int i = 0; i < 300; i++) {
        char *text = random_text(&seed, PROGRAM_SCORE, 4);
        Program p = program(text, PROGRAM_SCORE);
        int q = below(&seed, MANY_Q);
        ProgramEnv env = env_at(&data, 1, 2, q, -1);
        env.narrow = below(&seed, 2);
        program_eval_stage(&p, &env, p.root, 0, LATE, value);
        for (int k = 0; k < MANY_K; k++) {
            env.operand[OPERAND_k] = k;
            env.operand[OPERAND_s] = k * 0.37 - 3;
            program_eval_stage(&p, &env, p.root, LATE, 0, value);
            if (!same(value[p.root], value_at(&p, &env)))
                fail_msg("%s: %g by stages, %g", text, value[p.root],
                         value_at(&p, &env));
        }
        program_free(&p);
        free(text);
    }
}

static double decided(const char *text, double s) {
    static double value[PROGRAM_NODES], f32[PROGRAM_NODES];
    Program p = program(text, PROGRAM_SCORE);
    ProgramEnv env = {.f32 = f32};
    env.operand[OPERAND_s] = s;
    assert_true(program_decides(&p, p.root));
    program_eval(&p, &env, p.root, value);
    double x = value[p.root];
    program_free(&p);
    return x;
}

/* f32 says what becomes of a choice, a whole number; the rest stays f64. */
static void decisions_are_those_of_f32(void **state) {
    (void)state;
    const double third = 1.0 / 3;
    assert_true(decided("s * 3.0 < 1.0 ? 7.0 : s", third) == third);
    assert_true(decided("int(s * 3.0) + s", third) == 1 + third);
    assert_true(decided("floor(s * 3.0) + s", 1 - 1e-12) == 3 + 1 - 1e-12);
    assert_true(decided("s > 0.0 ? exp(s) : 0.0", third) == exp(third));
    static const char *const none[] = {"s * exp(s) + float(q)",
                                       "k < q ? s : 2.0", "min(s, 1.0)"};
    for (int i = 0; i < 3; i++) {
        Program p = program(none[i], PROGRAM_SCORE);
        assert_false(program_decides(&p, p.root));
        program_free(&p);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stages_give_the_values_of_the_whole),
        cmocka_unit_test(decisions_are_those_of_f32),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
