/* SPDX-License-Identifier: Apache-2.0
 * Programs printed as C, compiled, give the bits of the evaluator: scalars and
 * lanes, forward and gradient. */
#include "program_load.h"

enum { LANES = 8 };

/* ---- text -------------------------------------------------------------- */

static void expect_c(const char *text, const ProgramC *c, int stage,
                     const char *expect) {
    Program p = program(text, PROGRAM_SCORE);
    Str out = {0};
    if (stage < STAGES)
        program_c_part(&p, &p.root, 1, c, stage, &out);
    else
        program_c_value(&p, &p.root, 1, c, p.root, &out);
    assert_string_equal(out.text ? out.text : "", expect);
    str_free(&out);
    program_free(&p);
}

static void parts_stand_where_they_change(void **state) {
    (void)state;
    const ProgramC c = {.rows = DEP_Q, .prefix = "t"};
    const char *text = "f32 slope[:]; i32 doc[:,:]; s + slope[h] * 2 - "
                       "doc[b, q] * (k / 64) + (doc[b, k] % 7 + off)";
    expect_c(text, &c, STAGE_ENTRY,
             "    const float t1 = read_f32_1(tensor_slope, h) * 2.0f;\n");
    expect_c(text, &c, STAGE_ROW,
             "    const int t2 = read_i32_2(tensor_doc, b, q);\n");
    expect_c(text, &c, STAGE_KEY,
             "    const int t3 = k / 64;\n"
             "    const float t4 = (float)((read_i32_2(tensor_doc, b, k) "
             "% 7) + off);\n");
    expect_c(text, &c, STAGE_PAIR, "");
    expect_c(text, &c, STAGES, "((s + t1) - (float)wrap_mul(t2, t3)) + t4");
}

static void heads_that_share_a_key_are_rows(void **state) {
    (void)state;
    const ProgramC c = {.rows = DEP_Q | DEP_H,
                        .lanes = DEP_Q | DEP_H | DEP_S,
                        .prefix = "x",
                        .operand = {[OPERAND_s] = "S", [OPERAND_k] = "key"}};
    const char *text = "f32 slope[:]; s + slope[h] * abs(q - k)";
    expect_c(text, &c, STAGE_ENTRY, "");
    expect_c(text, &c, STAGE_ROW,
             "    const vec x1 = read_f32_lanes_1(tensor_slope, h);\n");
    expect_c(text, &c, STAGES,
             "S + (x1 * to_f32_lanes(abs_lanes_i32(q - splat_i32(key))))");
    expect_c("q == k ? -inf : s", &c, STAGES,
             "select_lanes(q == splat_i32(key), splat_f32((-__builtin_inff())"
             "), S)");
}

static void elements_of_rows_come_from_strips(void **state) {
    (void)state;
    const ProgramC c = {.rows = DEP_Q | DEP_H,
                        .lanes = DEP_Q | DEP_H | DEP_S,
                        .strips = true,
                        .prefix = "x"};
    const char *text = "f32 bias[:,:,:]; s + bias[h, q, k] + bias[h, k, k]";
    expect_c(text, &c, STAGE_ROW,
             "    struct strip x1_strip;\n"
             "    open_strip_f32_3(&x1_strip, 2, tensor_bias, h, q, "
             "splat_i32(0));\n");
    expect_c(text, &c, STAGE_PAIR,
             "    if (j % LANES == 0)\n"
             "        fill_f32(&x1_strip, k);\n"
             "    const vec x1 = (vec)x1_strip.near[j % LANES];\n");
    expect_c(text, &c, STAGES,
             "(s + x1) + read_f32_lanes_3(tensor_bias, h, splat_i32(k), "
             "splat_i32(k))");
}

/* ---- compiled ---------------------------------------------------------- */

static void add_body(const Program *p, const int *root, int n,
                     const ProgramC *c, Str *out) {
    for (int stage = 0; stage < STAGES; stage++)
        program_c_part(p, root, n, c, stage, out);
}

/* void fI(..., int h, int q, int k, float s, float dout, double *out): values
 * of the roots; void gI: the same for eight lanes of h, q, s, dout. */
static void add_functions(const Program *p, const int *root, int n, int i,
                          Str *out) {
    const ProgramC scalar = {.rows = DEP_Q, .prefix = "t"};
    const ProgramC lanes = {.rows = DEP_Q | DEP_H,
                            .lanes = DEP_Q | DEP_H | DEP_S | DEP_D,
                            .prefix = "t"};
    str_addf(out,
             "void f%d(" OPERANDS_C "int h, int q, int k, float s,\n"
             "         float dout, double *out) {\n",
             i);
    add_body(p, root, n, &scalar, out);
    for (int r = 0; r < n; r++) {
        str_addf(out, "    out[%d] = ", r);
        program_c_value(p, root, n, &scalar, root[r], out);
        str_addf(out, ";\n");
    }
    str_addf(out,
             "}\nvoid g%d(" OPERANDS_C "const ivec *ph, const ivec *pq, "
             "int k,\n         const vec *ps, const vec *pd, "
             "double *out) {\n"
             "    ivec h = *ph, q = *pq;\n    vec s = *ps, dout = *pd;\n",
             i);
    add_body(p, root, n, &lanes, out);
    for (int r = 0; r < n; r++) {
        const Node *node = &p->node[root[r]];
        bool vector = node->deps & lanes.lanes;
        str_addf(out,
                 "    for (int l = 0; l < LANES; l++)\n"
                 "        out[%d * LANES + l] = %s(",
                 r, vector && node->type == TYPE_BOOL ? "-" : "");
        program_c_value(p, root, n, &lanes, root[r], out);
        str_addf(out, vector ? ")[l];\n" : ");\n");
    }
    str_addf(out, "}\n");
}

typedef void (*Scalar)(const void *T, int b, int nq, int nk, int off, int h,
                       int q, int k, float s, float dout, double *out);
typedef void (*Lanes)(const void *T, int b, int nq, int nk, int off,
                      const int *h, const int *q, int k, const float *s,
                      const float *dout, double *out);

static bool same(double a, double b) {
    return a == b || (a != a && b != b);
}

static void expect_values(const Program *p, const int *root, int n, int i,
                          void *library, const Data *data, uint64_t *seed) {
    static double value[16 * PROGRAM_NODES];
    Tensor tensor[RANDOM_ARRAYS];
    fill_tensors(tensor, data);
    char name[16];
    snprintf(name, sizeof name, "f%d", i);
    Scalar f = (Scalar)dlsym(library, name);
    name[0] = 'g';
    Lanes g = (Lanes)dlsym(library, name);
    __attribute__((aligned(32))) int h[LANES], q[LANES];
    __attribute__((aligned(32))) float s[LANES], d[LANES];
    double out[8], lanes[8 * LANES];
    int b = below(seed, MANY_B), k = below(seed, MANY_K);
    for (int l = 0; l < LANES; l++) {
        h[l] = below(seed, MANY_H);
        q[l] = below(seed, MANY_Q);
        s[l] = (float)below(seed, 1024) / 128 - 4;
        d[l] = (float)below(seed, 1024) / 128 - 4;
    }
    g(tensor, b, MANY_Q, MANY_K, MANY_K - MANY_Q, h, q, k, s, d, lanes);
    for (int l = 0; l < LANES; l++) {
        ProgramEnv env = env_at(data, b, h[l], q[l], k);
        env.narrow = true;
        env.operand[OPERAND_s] = (double)s[l];
        env.operand[OPERAND_dout] = (double)d[l];
        f(tensor, b, MANY_Q, MANY_K, MANY_K - MANY_Q, h[l], q[l], k, s[l], d[l],
          out);
        program_eval(p, &env, p->count - 1, value);
        for (int r = 0; r < n; r++) {
            double x = value[root[r]];
            if (!same(x, out[r]) || !same(x, lanes[r * LANES + l])) {
                char *text = canonical(p);
                fail_msg("%s\nroot %d: %.9g, scalar %.9g, lane %.9g", text, r,
                         x, out[r], lanes[r * LANES + l]);
            }
        }
    }
}

enum { MANY = 120 };

typedef struct Case {
    Program p;
    int root[8], n;
} Case;

static Case random_case(uint64_t *seed, int i) {
    Case x = {.n = 1};
    Err e = {0};
    char *text = random_text(seed, i % 2, 2 + i % 5);
    x.p = program(text, i % 2);
    x.root[0] = x.p.root;
    if (i % 4 == 1) { /* of a score also its gradients */
        ProgramGrad g;
        int value = x.p.root;
        if (program_grad(&x.p, 1 << SLOPE | 1 << BIAS, &g, &e))
            fail_msg("%s", e.text);
        program_free(&x.p);
        x.p = g.p;
        x.root[0] = value;
        if (g.ds >= 0)
            x.root[x.n++] = g.ds;
        for (int r = 0; r < g.nread && x.n < 8; r++)
            x.root[x.n++] = g.read[r].grad;
    }
    free(text);
    return x;
}

static void compiled_programs_give_the_same_bits(void **state) {
    (void)state;
    static Case cases[MANY];
    static Data data;
    uint64_t seed = 31;
    Str text = {0};
    data_fill(&data, &seed);
    for (int i = 0; i < MANY; i++) {
        cases[i] = random_case(&seed, i);
        add_functions(&cases[i].p, cases[i].root, cases[i].n, i, &text);
    }
    assert_false(text.bad);
    void *library = load(&text);
    for (int i = 0; i < MANY; i++) {
        for (int j = 0; j < 6; j++)
            expect_values(&cases[i].p, cases[i].root, cases[i].n, i, library,
                          &data, &seed);
        program_free(&cases[i].p);
    }
    dlclose(library);
    str_free(&text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_stand_where_they_change),
        cmocka_unit_test(heads_that_share_a_key_are_rows),
        cmocka_unit_test(elements_of_rows_come_from_strips),
        cmocka_unit_test(compiled_programs_give_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
