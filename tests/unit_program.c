/* SPDX-License-Identifier: Apache-2.0
 * Mask and score programs: text in, graph, canonical text and values out; and
 * what is refused, with its place. */
#include "program_util.h"

/* Some of the texts below are C as well, written as nobody should. */
#pragma GCC diagnostic ignored "-Wparentheses"

/* ---- meaning ----------------------------------------------------------- */

/* The value of a score text at q = 7, k = 3 of the random tensors' sizes. */
static double score_of(const char *text) {
    static Data data;
    uint64_t seed = 1;
    data_fill(&data, &seed);
    Program p = program(text, PROGRAM_SCORE);
    ProgramEnv env = env_at(&data, 1, 2, 7, 3);
    env.operand[OPERAND_s] = 0.25;
    double value = value_at(&p, &env);
    program_free(&p);
    return value;
}

static void precedence_is_that_of_c(void **state) {
    (void)state;
    const int q = 7, k = 3;
    static const struct {
        const char *text;
        int value;
    } cases[] = {
#define CASE(expr) {#expr, expr}
        CASE(q + k * 2),
        CASE((q + k) * 2),
        CASE(q - k - 1),
        CASE(q << 1 + 1),
        CASE(q & 6 ^ k | 8),
        CASE(-q % 4 * 2),
        CASE(~q + 1),
        CASE(!(q < k) && k < 5 ? q : k),
        CASE(q == 7 || q / 0x2 > 100 ? 1 : 0),
        CASE(q > k ? k > 9 ? 1 : 2 : 3),
        CASE(q / k * k + q % k),
        CASE(- -q),
        CASE(-q / 2),
        CASE(-q >> 1),
        CASE(q >= k != k <= q ? 1 : 0),
        CASE(q ^ k ^ 1)};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (score_of(cases[i].text) != cases[i].value)
            fail_msg("%s is %g, not %d", cases[i].text, score_of(cases[i].text),
                     cases[i].value);
    }
}

static void integers_wrap_and_division_is_total(void **state) {
    (void)state;
    assert_true(score_of("2147483647 + (q - 6)") == -2147483648.0);
    assert_true(score_of("-2147483648 - (q - 6)") == 2147483647.0);
    assert_true(score_of("abs(-2147483648 + q - q)") == -2147483648.0);
    assert_true(score_of("-2147483648 / (k - 4)") == -2147483648.0);
    assert_true(score_of("-2147483648 % (k - 4)") == 0);
    assert_true(score_of("q / (k - 3)") == 0 && score_of("q % 0") == 0);
    assert_true(score_of("(q - 14) / 2") == -3);
    assert_true(score_of("(q - 14) % 2") == -1);
    assert_true(score_of("65536 * (q + 65529)") == 0);
    assert_true(score_of("1 << q + 28") == 8);
    assert_true(score_of("(0 - q) >> 1") == -4);
    assert_true(score_of("0x7fffffff * 2 + q") == 5);
}

static void floats_are_f32_and_meet_ints(void **state) {
    (void)state;
    assert_true(score_of("q / 2") == 3 && score_of("q / 2.0") == 3.5);
    assert_true(score_of("s + q") == 7.25);
    assert_true(score_of("0.1") == (double)0.1f);
    assert_true(score_of("q > 6.5 ? 1 : 2.5") == 1);
    assert_true(score_of("-inf") == -INFINITY);
    assert_true(score_of("int(-2.9)") == -2 && score_of("floor(-2.1)") == -3);
    assert_true(score_of("int(1e20)") == 2147483647.0);
    assert_true(score_of("int(-1e20 * s)") == -2147483648.0);
    assert_true(score_of("int(0 * (inf * s))") == 0);
    assert_true(score_of("int(0.0 * (inf * s))") == 0); /* NaN gives 0 */
    assert_true(score_of("min(2.0, s)") == 0.25 && score_of("max(q, k)") == 7);
    assert_true(score_of("float(q) / 2") == 3.5);
    assert_true(score_of("0.0 * (inf * s) < 1 ? 1 : 2") == 2);
    assert_true(score_of("min(0.0 * (inf * s), 5.0)") == 5);
    assert_true(fabs(score_of("log(exp(s))") - 0.25) < 1e-15);
    assert_true(fabs(score_of("tanh(s)") - tanh(0.25)) < 1e-15);
}

static void reads_outside_give_0(void **state) {
    (void)state;
    static const char *const zeros[] = {"slope[h + 1]", "slope[-1]", "slope[q]",
                                        "slope[nk * 1000000]"};
    for (size_t i = 0; i < sizeof zeros / sizeof *zeros; i++) {
        Str text = {0};
        str_addf(&text, RANDOM_TENSORS "1 + %s", zeros[i]);
        assert_true(score_of(text.text) == 1);
        str_free(&text);
    }
    assert_true(score_of(RANDOM_TENSORS "row[k]") >= 0.5);
    assert_true(score_of(RANDOM_TENSORS "doc[b, k]") ==
                score_of(RANDOM_TENSORS "doc[1, 3]"));
}

/* ---- graph ------------------------------------------------------------- */

static void expect_canonical(int kind, const char *text, const char *expect) {
    Program p = program(text, kind);
    char *s = canonical(&p);
    assert_string_equal(s, expect);
    free(s);
    program_free(&p);
}

static void common_parts_stand_once(void **state) {
    (void)state;
    expect_canonical(PROGRAM_SCORE, "s * (q - k) + (q-k)*2 // comment\n",
                     "let _1 = q - k; s * float(_1) + float(_1 * 2)");
    expect_canonical(PROGRAM_SCORE,
                     "let d = k - q; let unused = d * d;\n"
                     "s + d + d + (k-q);",
                     "let _1 = float(k - q); s + _1 + _1 + _1");
    expect_canonical(PROGRAM_MASK,
                     "i32 doc[:,:]; f32 unused; "
                     "doc[b,q] == doc[b,k] && k <= q",
                     "i32 doc[:,:]; doc[b, q] == doc[b, k] && k <= q");
    expect_canonical(PROGRAM_MASK, "q + k < 5 || k + q < 5", "q + k < 5");
    expect_canonical(PROGRAM_MASK, "q > k ? k >= 2 : !(q < k || k == 1)",
                     "select(k < q, 2 <= k, !(q < k || k == 1))");
    expect_canonical(PROGRAM_SCORE, "f16 t; s + t", "f16 t; s + t");
    expect_canonical(PROGRAM_SCORE, "s - (q - (k - 1))",
                     "s - float(q - (k - 1))");
}

static void folding_changes_no_result(void **state) {
    (void)state;
    expect_canonical(PROGRAM_SCORE, "s * 1 + (3 * 4 - 12)", "s + 0.0");
    expect_canonical(PROGRAM_SCORE, "s + 1.0 / 3", "s + 1.0 / 3.0");
    expect_canonical(PROGRAM_SCORE, "s + 3.0 / 8", "s + 0.375");
    expect_canonical(PROGRAM_SCORE, "s + (16777216.0 + 1)",
                     "s + (16777216.0 + 1.0)");
    expect_canonical(PROGRAM_SCORE, "s * 0", "s * 0.0");
    expect_canonical(PROGRAM_SCORE, "s - -0.0", "s - -0.0");
    expect_canonical(PROGRAM_SCORE, "inf - inf", "inf - inf");
    expect_canonical(PROGRAM_SCORE, "(q - q) * k + s / 1", "0.0 + s");
    expect_canonical(PROGRAM_MASK, "!(q < k)", "k <= q");
    expect_canonical(PROGRAM_MASK, "f32 x[:]; !(x[q] < x[k])",
                     "f32 x[:]; !(x[q] < x[k])");
    expect_canonical(PROGRAM_MASK, "f32 x[:]; !(x[q] <= x[k])",
                     "f32 x[:]; !(x[q] <= x[k])");
    expect_canonical(PROGRAM_MASK, "f32 x; !(x == 1) && x <= x",
                     "f32 x; x != 1.0 && x <= x");
    expect_canonical(PROGRAM_MASK, "q < 5 && true || false", "q < 5");
    expect_canonical(PROGRAM_MASK, "select(q < k, false, true)", "k <= q");
    expect_canonical(PROGRAM_MASK, "1 < 2", "true");
    expect_canonical(PROGRAM_SCORE, "q - -2147483648",
                     "float(q - -2147483648)");
    expect_canonical(PROGRAM_SCORE, "1e-45 + 0.1 + 1e10 + 3e38 * s",
                     "1.4013e-45 + 0.1 + 1e+10 + 3e+38 * s");
}

static void canonical_text_is_its_own(void **state) {
    (void)state;
    uint64_t seed = 7;
    for (int i = 0; i < 1500; i++) {
        int kind = i % 2;
        char *text = random_text(&seed, kind, 1 + i % 6);
        Program p = program(text, kind);
        char *one = canonical(&p);
        Program again = program(one, kind);
        char *two = canonical(&again);
        assert_string_equal(one, two);
        free(one);
        free(two);
        free(text);
        program_free(&p);
        program_free(&again);
    }
}

/* A chain of lets nests deeper than text may; it is named in between. */
static void deep_graphs_print_and_read_back(void **state) {
    (void)state;
    Str text = {0};
    str_addf(&text, "let x0 = s;");
    for (int i = 0; i < 200; i++)
        str_addf(&text, "let x%d = 1 - exp(x%d);", i + 1, i);
    str_addf(&text, "x200");
    Program p = program(text.text, PROGRAM_SCORE);
    char *one = canonical(&p);
    Program again = program(one, PROGRAM_SCORE);
    char *two = canonical(&again);
    assert_string_equal(one, two);
    free(one);
    free(two);
    str_free(&text);
    program_free(&p);
    program_free(&again);
}

static void values_know_what_they_change_with(void **state) {
    (void)state;
    static const struct {
        const char *text;
        unsigned deps;
    } cases[] = {
        {"q + 1", DEP_Q}, {"k - h", DEP_K | DEP_H},
        {"3", 0},         {"nk", DEP_B},
        {"s", DEP_S},     {"i32 d[:,:]; d[b, k]", DEP_B | DEP_K},
        {"off", DEP_B},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Program p = program(cases[i].text, PROGRAM_SCORE);
        assert_int_equal(p.node[p.root].deps, cases[i].deps);
        program_free(&p);
    }
}

/* ---- refusals ---------------------------------------------------------- */

static void expect_fault(int kind, const char *text, const char *message) {
    static const ProgramTensor known[] = {{"doc", ARRAY_I32, 2},
                                          {"slope", ARRAY_F32, 1}};
    Program p;
    Err e = {0};
    assert_int_equal(program_parse(text, kind, known, 2, &p, &e), ERR_REQUEST);
    if (!strstr(e.text, message))
        fail_msg("%s\nis not\n%s", e.text, message);
    program_free(&p);
}

static void faults_mark_their_place(void **state) {
    (void)state;
    expect_fault(PROGRAM_MASK, "k <= q &&\n  dco[b,q] == 1",
                 "mask: line 2 column 3: unknown name 'dco'; nearest: doc\n"
                 "    dco[b,q] == 1\n"
                 "    ^");
    expect_fault(PROGRAM_SCORE, "s + maxx(q, k)",
                 "score: line 1 column 5: unknown function 'maxx'; nearest: "
                 "max\n  s + maxx(q, k)\n      ^");
    expect_fault(PROGRAM_SCORE, "s + ",
                 "column 5: expected a value, found the end\n  s + \n      ^");
    expect_fault(PROGRAM_SCORE, "(s + 1",
                 "column 7: expected ')', found the end");
    expect_fault(PROGRAM_SCORE, "s @ 1",
                 "column 3: expected the end, found '@'");
    expect_fault(PROGRAM_SCORE, "s = 1",
                 "column 3: expected the end, found '='");
    expect_fault(PROGRAM_SCORE, "s s", "found 's'");
    expect_fault(PROGRAM_SCORE, "", "expected a value, found the end");
    expect_fault(PROGRAM_SCORE, "min + 1", "expected '(', found '+'");
    expect_fault(PROGRAM_SCORE, "let x = 3 x + 1", "expected ';', found 'x'");
}

static void types_are_checked(void **state) {
    (void)state;
    expect_fault(PROGRAM_SCORE, "s % 2",
                 "column 3: '%' takes int, not float; nearest: int(x)");
    expect_fault(PROGRAM_SCORE, "s + (q < k)",
                 "'+' takes numbers, not bool; nearest: select(x, 1, 0)");
    expect_fault(PROGRAM_MASK, "q && k < 3",
                 "'&&' takes bool, not int; nearest: x != 0");
    expect_fault(PROGRAM_MASK, "0 <= q < 5", "'<' takes numbers, not bool");
    expect_fault(PROGRAM_MASK, "!q", "'!' takes bool, not int");
    expect_fault(PROGRAM_MASK, "slope[h]", "a mask takes bool, not float");
    expect_fault(PROGRAM_MASK, "q - k", "a mask takes bool, not int");
    expect_fault(PROGRAM_SCORE, "q < k", "a score is a number, not bool");
    expect_fault(PROGRAM_MASK, "s > 0", "a mask does not know s");
    expect_fault(PROGRAM_SCORE, "slope[s]", "an index takes int, not float");
    expect_fault(PROGRAM_SCORE, "doc[q]", "tensor doc has 2 dimensions, not 1");
    expect_fault(PROGRAM_SCORE, "slope", "tensor slope has 1 dimension, not 0");
    expect_fault(PROGRAM_SCORE, "slope[q, k, b, h, 1]", "1 dimension, not 5");
    expect_fault(PROGRAM_SCORE, "min(q)", "min takes 2 arguments, not 1");
    expect_fault(PROGRAM_SCORE, "exp(q, k, h, b)",
                 "exp takes 1 argument, not 4");
    expect_fault(PROGRAM_SCORE, "q ? 1 : 2", "a choice takes bool, not int");
    expect_fault(PROGRAM_SCORE, "select(q < k, 1, k < q)",
                 "a choice between int and bool");
    expect_fault(PROGRAM_SCORE, "exp(q < k)", "'exp' takes numbers, not bool");
    expect_fault(PROGRAM_SCORE, "dout", "unknown name 'dout'");
}

static void names_are_used_once(void **state) {
    (void)state;
    expect_fault(PROGRAM_SCORE, "let q = 1; q", "'q' is taken");
    expect_fault(PROGRAM_SCORE, "let x = 1; let x = 2; x", "'x' is taken");
    expect_fault(PROGRAM_SCORE, "let doc = 1; doc", "'doc' is taken");
    expect_fault(PROGRAM_SCORE, "let min = 1; s", "'min' is taken");
    expect_fault(PROGRAM_SCORE, "f32 let; s", "'let' is taken");
    expect_fault(PROGRAM_SCORE, "let 1 = 2; s", "expected a name, found '1'");
    expect_fault(PROGRAM_SCORE, "f32 slope[:,:]; s",
                 "tensor slope is f32 of 1 dimensions, not f32 of 2");
    expect_fault(PROGRAM_SCORE, "f32 a[:,:,:,:,:]; s",
                 "a tensor has at most 4 dimensions");
    expect_fault(PROGRAM_MASK, "bits keep; keep",
                 "bits have a dimension, which is packed; nearest: bits "
                 "keep[:]");
    expect_fault(PROGRAM_SCORE, "let abcdefghijklmnopqrstuvwxyzabcdefgh = 1; s",
                 "a name has at most 31 characters");
}

static void sizes_are_limited(void **state) {
    (void)state;
    Str deep = {0}, wide = {0}, lets = {0}, tensors = {0};
    for (int i = 0; i < 5000; i++)
        str_addf(&deep, "(");
    expect_fault(PROGRAM_SCORE, deep.text, "nested deeper than 64");
    for (int i = 0; i < 20000; i++)
        str_addf(&wide, "-");
    expect_fault(PROGRAM_SCORE, wide.text, "longer than 16384 characters");
    for (int i = 0; i < 700; i++)
        str_addf(&lets, "s*%d+", i);
    str_addf(&lets, "s");
    expect_fault(PROGRAM_SCORE, lets.text, "more than 1024 operations");
    for (int i = 0; i < 9; i++)
        str_addf(&tensors, "f32 x%d;", i);
    str_addf(&tensors, "s");
    expect_fault(PROGRAM_SCORE, tensors.text, "more than 8 tensors");
    expect_fault(PROGRAM_SCORE, "2147483648",
                 "'2147483648' does not fit int32; nearest: 2147483647");
    expect_fault(PROGRAM_SCORE, "99999999999999999999", "does not fit int32");
    expect_fault(PROGRAM_SCORE, "1e39", "a number beyond f32; nearest: inf");
    expect_fault(PROGRAM_SCORE, "0x", "'0x' has no digits");
    str_free(&deep);
    str_free(&wide);
    str_free(&lets);
    str_free(&tensors);
}

/* A long line is shown around its fault. */
static void long_lines_are_cut(void **state) {
    (void)state;
    Str text = {0};
    for (int i = 0; i < 100; i++)
        str_addf(&text, "s + ");
    str_addf(&text, "x\x01y");
    Program p;
    Err e = {0};
    program_parse(text.text, PROGRAM_SCORE, NULL, 0, &p, &e);
    char *caret = strrchr(e.text, '\n');
    assert_non_null(caret);
    assert_true(strlen(caret) < 80 && strlen(e.text) < 300);
    program_free(&p);
    str_free(&text);
}

static void bad_tensors_are_refused(void **state) {
    (void)state;
    static const ProgramTensor bad[] = {
        {"q", ARRAY_F32, 1}, {"a b", ARRAY_F32, 1}, {"", ARRAY_F32, 1},
        {"x", 7, 1},         {"x", ARRAY_F32, 5},   {"3x", ARRAY_F32, 0}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Program p;
        Err e = {0};
        assert_int_equal(program_parse("s", PROGRAM_SCORE, &bad[i], 1, &p, &e),
                         ERR_REQUEST);
        program_free(&p);
    }
}

/* No text crashes: random programs with characters lost, doubled, changed. */
static void damaged_text_is_refused_or_read(void **state) {
    (void)state;
    uint64_t seed = 3;
    for (int i = 0; i < 3000; i++) {
        char *text = random_text(&seed, PROGRAM_SCORE, 3);
        size_t len = strlen(text), at = (size_t)below(&seed, (int)len);
        if (i % 3 == 0)
            memmove(text + at, text + at + 1, len - at);
        else if (i % 3 == 1)
            text[at] = " ()[],;:+-*/%<>=!&|^~?x1.0\x80"[below(&seed, 28)];
        else
            text[at] = 0;
        Program p;
        Err e = {0};
        int status = program_parse(text, PROGRAM_SCORE, NULL, 0, &p, &e);
        assert_true(status == e.code);
        program_free(&p);
        free(text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(precedence_is_that_of_c),
        cmocka_unit_test(integers_wrap_and_division_is_total),
        cmocka_unit_test(floats_are_f32_and_meet_ints),
        cmocka_unit_test(reads_outside_give_0),
        cmocka_unit_test(common_parts_stand_once),
        cmocka_unit_test(folding_changes_no_result),
        cmocka_unit_test(canonical_text_is_its_own),
        cmocka_unit_test(deep_graphs_print_and_read_back),
        cmocka_unit_test(values_know_what_they_change_with),
        cmocka_unit_test(faults_mark_their_place),
        cmocka_unit_test(types_are_checked),
        cmocka_unit_test(names_are_used_once),
        cmocka_unit_test(sizes_are_limited),
        cmocka_unit_test(long_lines_are_cut),
        cmocka_unit_test(bad_tensors_are_refused),
        cmocka_unit_test(damaged_text_is_refused_or_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
