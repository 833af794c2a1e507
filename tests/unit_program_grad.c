/* SPDX-License-Identifier: Apache-2.0
 * Gradients of score programs against differences of their values in f64;
 * which reads have one, and over what it is summed. */
#include "program_util.h"

static double node_at(const Program *p, const ProgramEnv *env, int node) {
    static double value[16 * PROGRAM_NODES];
    program_eval(p, env, node, value);
    return value[node];
}

/* ---- differences ------------------------------------------------------- */

typedef struct Slope {
    double value;
    bool smooth; /* two steps agree: no kink or jump between */
} Slope;

/* d value / d *x by central differences; *x may be float: steps are exact. */
static Slope difference(const Program *p, ProgramEnv *env, double *s,
                        float *element) {
    double d[2];
    for (int i = 0; i < 2; i++) {
        const double step = i ? 0x1p-13 : 0x1p-12;
        double at = s ? *s : *element, y[2];
        for (int side = 0; side < 2; side++) {
            double x = at + (side ? step : -step);
            if (s)
                *s = x;
            else
                *element = (float)x;
            y[side] = value_at(p, env);
        }
        if (s)
            *s = at;
        else
            *element = (float)at;
        d[i] = (y[1] - y[0]) / (2 * step);
    }
    double size = 1 + fabs(d[1]);
    return (Slope){d[1], fabs(d[1]) < 1e6 && fabs(d[0] - d[1]) < 1e-4 * size};
}

/* dout * d value is 3 times it: is it near the difference? -1: not to be said,
 * at a kink, or where the way
 * to the value is infinite. */
static int agrees(double grad, Slope slope) {
    if (!slope.smooth || !(fabs(grad) < 1e6))
        return -1;
    return fabs(grad - 3 * slope.value) < 1e-3 * (1 + fabs(grad));
}

/* The element that a read reads; NULL: outside. */
static float *element_of(const ProgramGrad *g, const ReadGrad *r,
                         const ProgramEnv *env) {
    const ProgramArray *a = &env->array[r->tensor];
    const Node *n = &g->p.node[r->read];
    int64_t at = 0;
    for (int i = 0; i < n->nargs; i++) {
        int64_t index = (int64_t)node_at(&g->p, env, n->arg[i]);
        if (index < 0 || index >= a->n[i])
            return NULL;
        at += index * a->stride[i];
    }
    return (float *)a->at + at;
}

typedef struct Tally {
    int right, unsaid, reads;
} Tally;

static void check_at(const Program *p, const ProgramGrad *g, ProgramEnv *env,
                     const char *text, Tally *tally) {
    env->operand[OPERAND_dout] = 3;
    if (!isfinite(value_at(p, env)))
        return;
    Slope slope = difference(p, env, &env->operand[OPERAND_s], NULL);
    double ds = g->ds < 0 ? 0 : node_at(&g->p, env, g->ds);
    int said = agrees(ds, slope);
    if (!said)
        fail_msg("%s: ds %g, not %g", text, ds, 3 * slope.value);
    tally->right += said > 0 && g->ds >= 0;
    tally->unsaid += said < 0;
    for (int i = 0; i < g->nread; i++) {
        float *element = element_of(g, &g->read[i], env);
        double sum = 0;
        for (int j = 0; element && j < g->nread; j++) {
            if (element_of(g, &g->read[j], env) == element)
                sum += node_at(&g->p, env, g->read[j].grad);
        }
        if (!element)
            continue;
        slope = difference(p, env, NULL, element);
        said = agrees(sum, slope);
        if (!said)
            fail_msg("%s: of %s %g, not %g", text,
                     p->tensor[g->read[i].tensor].name, sum, 3 * slope.value);
        tally->reads += said > 0;
    }
}

static void gradients_are_those_of_differences(void **state) {
    (void)state;
    static Data data;
    uint64_t seed = 21;
    Tally tally = {0};
    data_fill(&data, &seed);
    for (int i = 0; i < 1500; i++) {
        char *text = random_text(&seed, PROGRAM_SCORE, 2 + i % 4);
        Program p = program(text, PROGRAM_SCORE);
        ProgramGrad g;
        Err e = {0};
        if (program_grad(&p, 1 << SLOPE | 1 << BIAS, &g, &e))
            fail_msg("%s: %s", text, e.text);
        for (int j = 0; j < 6; j++) {
            ProgramEnv env =
                env_at(&data, below(&seed, MANY_B), below(&seed, MANY_H),
                       below(&seed, MANY_Q), below(&seed, MANY_K));
            env.operand[OPERAND_s] = below(&seed, 256) / 64.0 - 2 + 0x1p-9;
            check_at(&p, &g, &env, text, &tally);
        }
        free(text);
        program_free(&p);
        program_free(&g.p);
    }
    assert_true(tally.right > 1500 && tally.reads > 1500);
    assert_true(tally.unsaid < tally.right);
}

/* The way not taken is infinitely steep; its 0 stays 0. */
static void ways_not_taken_do_not_count(void **state) {
    (void)state;
    static const struct {
        const char *text;
        double ds;
    } cases[] = {
        {"s > 0 ? log(s) : s * 2", 2},
        {"s > 0 ? log(s) : -inf", 0},
        {"min(log(max(s, 0.0)), 5.0) * 0 + s", 1},
        {"max(s, -2.0) + (q > 3 ? s / 0 : s)", 2},
        {"select(q > 3, exp(1000 * s * -1), s) + s", 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Program p = program(cases[i].text, PROGRAM_SCORE);
        ProgramGrad g;
        Err e = {0};
        ProgramEnv env = {.operand = {[OPERAND_s] = -1, [OPERAND_dout] = 1}};
        assert_int_equal(program_grad(&p, 0, &g, &e), 0);
        double ds = node_at(&g.p, &env, g.ds);
        if (ds != cases[i].ds)
            fail_msg("%s: %g", cases[i].text, ds);
        program_free(&p);
        program_free(&g.p);
    }
}

/* ---- forms ------------------------------------------------------------- */

static void expect_ds(const char *text, const char *ds) {
    Program p = program(text, PROGRAM_SCORE);
    ProgramGrad g;
    Err e = {0};
    assert_int_equal(program_grad(&p, 0, &g, &e), 0);
    char *found = canonical(&g.p);
    assert_string_equal(found, ds);
    Program again = program(found, PROGRAM_GRADIENT);
    char *twice = canonical(&again);
    assert_string_equal(found, twice);
    free(found);
    free(twice);
    program_free(&again);
    program_free(&p);
    program_free(&g.p);
}

static void gradients_are_short(void **state) {
    (void)state;
    expect_ds("s", "dout");
    expect_ds("s * 2 + q", "dout * 2.0");
    expect_ds("q < k ? s : -inf", "select(q < k, dout, 0.0)");
    expect_ds("30.0 * tanh(s / 30.0)",
              "let _1 = tanh(s / 30.0); dout * 30.0 * (1.0 - _1 * _1) / "
              "30.0");
    expect_ds("q < k ? s : s * 2", "select(q < k, dout, dout * 2.0)");
    expect_ds("max(s, 0.0)", "select(0.0 < s, dout, 0.0)");
    expect_ds("abs(s)", "select(s < 0.0, -dout, dout)");
    expect_ds("floor(s) + q", "0.0");
    expect_ds("exp(s)", "dout * exp(s)");
    expect_ds("s + s", "dout + dout");
    expect_ds("f32 slope[:]; s + slope[h] * abs(q - k)", "dout");
}

static ProgramGrad grad_of(const char *text, unsigned wanted, Err *e) {
    Program p = program(text, PROGRAM_SCORE);
    ProgramGrad g;
    program_grad(&p, wanted, &g, e);
    program_free(&p);
    return g;
}

static void reads_say_where_they_sum(void **state) {
    (void)state;
    Err e = {0};
    ProgramGrad g = grad_of("f32 bias[:,:,:]; f32 t5[:,:]; f32 g; "
                            "s * g + bias[0, q, k] + t5[h, q - k + nk]",
                            7, &e);
    assert_int_equal(e.code, 0);
    assert_int_equal(g.nread, 3);
    assert_true(g.read[0].tensor == 2 &&
                g.read[0].broadcast == (DEP_B | DEP_H | DEP_Q | DEP_K));
    assert_true(g.read[1].tensor == 0 && g.read[1].expr == -1 &&
                g.read[1].broadcast == (DEP_B | DEP_H));
    assert_int_equal(g.read[1].index[0], INDEX_CONST);
    assert_int_equal(g.read[1].index[1], INDEX_Q);
    assert_int_equal(g.read[1].index[2], INDEX_K);
    assert_true(g.read[2].tensor == 1 && g.read[2].expr == 1 &&
                g.read[2].broadcast == (DEP_B | DEP_Q | DEP_K));
    assert_int_equal(g.read[2].index[0], INDEX_H);
    assert_int_equal(g.read[2].index[1], INDEX_EXPR);
    program_free(&g.p);

    g = grad_of("f32 a[:]; f32 c[:]; s + a[q] * a[k] + c[h]", 1, &e);
    assert_int_equal(g.nread, 2); /* c is not asked for */
    program_free(&g.p);
    g = grad_of("f32 a[:]; s + floor(a[q]) + (a[k] < 1.0 ? 1 : 2)", 1, &e);
    assert_int_equal(g.nread, 0);
    program_free(&g.p);
    g = grad_of("f32 a[:]; a[q]", 1, &e);
    assert_true(g.nread == 1 && g.ds == -1);
    program_free(&g.p);
    assert_int_equal(e.code, 0);
}

static void expect_refused(const char *text, unsigned wanted,
                           const char *message) {
    Err e = {0};
    ProgramGrad g = grad_of(text, wanted, &e);
    assert_int_equal(e.code, ERR_REQUEST);
    if (!strstr(e.text, message))
        fail_msg("%s\nis not\n%s", e.text, message);
    program_free(&g.p);
}

static void what_has_no_gradient_is_refused(void **state) {
    (void)state;
    expect_refused("f32 t[:,:]; s + t[q - k + nk, q / 2]", 1,
                   "score: t: its gradient needs each index to be b, h, q, k, "
                   "a constant, or one computed index; dimensions 0 and 1 are "
                   "computed");
    expect_refused("i32 t[:]; s + t[q]", 1,
                   "score: t: i32 tensors have no gradient; nearest: f32");
    Str text = {0};
    str_addf(&text, "f32 t[:]; s");
    for (int i = 0; i < 17; i++)
        str_addf(&text, " + t[%d]", i);
    expect_refused(text.text, 1, "gradients of more than 16 reads");
    str_free(&text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_those_of_differences),
        cmocka_unit_test(ways_not_taken_do_not_count),
        cmocka_unit_test(gradients_are_short),
        cmocka_unit_test(reads_say_where_they_sum),
        cmocka_unit_test(what_has_no_gradient_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
