/* SPDX-License-Identifier: Apache-2.0
 * Loop bounds and verdicts printed as C, compiled, say what those computed in
 * place say. */
#include "program_box.h"
#include "program_load.h"

enum { MANY = 120 };

/* ---- loop bounds ------------------------------------------------------- */

typedef void (*BoundsOf)(const void *T, int b, int nq, int nk, int off, int h,
                         int64_t q0, int64_t q1, int64_t out[4]);

/* void bI(..., int h, i64 q0, i64 q1, i64 *out): lo, hi, all_lo, all_hi. */
static void add_bounds(const Program *p, const ProgramBounds *x, int i,
                       Str *out) {
    const ProgramC c = {
        .rows = DEP_Q, .prefix = "t", .operand = {[OPERAND_nk] = "keys"}};
    int root[AFFINE_WAYS * AFFINE_FACTS * AFFINE_TERMS];
    int n = bounds_terms(x, root, sizeof root / sizeof *root);
    str_addf(out,
             "void b%d(const struct tensor *T, int b, int nq, int keys, "
             "int off,\n         int h, i64 q0, i64 q1, i64 *out) {\n"
             "    const i64 nk = keys;\n",
             i);
    program_c_part(p, root, n, &c, STAGE_ENTRY, out);
    program_c_bounds(p, root, n, &c, x, out);
    str_addf(out, "    out[0] = lo, out[1] = hi, out[2] = all_lo, "
                  "out[3] = all_hi;\n}\n");
}

static void expect_keys(const Program *p, const ProgramBounds *x, int i,
                        void *library, const Data *data, uint64_t *seed) {
    static double value[PROGRAM_NODES];
    Tensor tensor[RANDOM_ARRAYS];
    char name[16];
    fill_tensors(tensor, data);
    snprintf(name, sizeof name, "b%d", i);
    BoundsOf f = (BoundsOf)dlsym(library, name);
    int b = below(seed, MANY_B), h = below(seed, MANY_H);
    int64_t q0 = below(seed, MANY_Q), q1 = q0 + below(seed, 5);
    int64_t out[4], want[4];
    ProgramEnv env = env_at(data, b, h, 0, 0);
    program_eval(p, &env, p->root, value);
    bounds_some(x, value, q0, q1, MANY_K, &want[0], &want[1]);
    bounds_all(x, value, q0, q1, MANY_K, &want[2], &want[3]);
    f(tensor, b, MANY_Q, MANY_K, MANY_K - MANY_Q, h, q0, q1, out);
    if (memcmp(out, want, sizeof out)) {
        char *text = canonical(p);
        fail_msg("%s: q %d..%d: %d..%d, %d..%d, not %d..%d, %d..%d", text,
                 (int)q0, (int)q1, (int)out[0], (int)out[1], (int)out[2],
                 (int)out[3], (int)want[0], (int)want[1], (int)want[2],
                 (int)want[3]);
    }
}

static void compiled_bounds_give_the_same_keys(void **state) {
    (void)state;
    static Program p[MANY];
    static ProgramBounds x[MANY];
    static Data data;
    uint64_t seed = 32;
    Str text = {0};
    data_fill(&data, &seed);
    data.len[0] = INT32_MAX - 3; /* where facts do not apply */
    for (int i = 0; i < MANY; i++) {
        Str mask = {0};
        str_addf(&mask, RANDOM_TENSORS);
        random_lines(&seed, i % 4, &mask);
        p[i] = program(mask.text, PROGRAM_MASK);
        assert_true(program_bounds(&p[i], &x[i]));
        add_bounds(&p[i], &x[i], i, &text);
        str_free(&mask);
    }
    void *library = load(&text);
    for (int i = 0; i < MANY; i++) {
        for (int j = 0; j < 10; j++)
            expect_keys(&p[i], &x[i], i, library, &data, &seed);
        program_free(&p[i]);
    }
    dlclose(library);
    str_free(&text);
}

static void causal_bounds_are_two_cuts(void **state) {
    (void)state;
    const ProgramC c = {.rows = DEP_Q, .prefix = "t"};
    Program p = program("k <= q + off", PROGRAM_MASK);
    ProgramBounds x;
    int root[4];
    Str out = {0};
    assert_true(program_bounds(&p, &x));
    program_c_bounds(&p, root, bounds_terms(&x, root, 4), &c, &x, &out);
    assert_string_equal(
        out.text,
        "    i64 lo = 0, hi = 0, all_lo = 0, all_hi = nk;\n"
        "    {\n"
        "        i64 begin = 0, end = nk;\n"
        "        cut_keys(1, 0 - q1 - (i64)(off), &begin, &end);\n"
        "        join_keys(begin, end, &lo, &hi);\n"
        "    }\n"
        "    {\n"
        "        cut_keys(1, 0 - q0 - (i64)(off), &all_lo, &all_hi);\n"
        "    }\n"
        "    all_lo = all_lo < all_hi ? all_lo : all_hi;\n");
    str_free(&out);
    program_free(&p);
}

/* ---- verdicts ---------------------------------------------------------- */

typedef int (*VerdictOf)(const void *T, int b, int nq, int nk, int off, int h,
                         int q0, int q1, int k0, int k1);

/* int vI(..., int h, int q0, int q1, int k0, int k1). */
static void add_verdict(const Program *p, int i, Str *out) {
    const ProgramC c = {.rows = DEP_Q, .prefix = "t"};
    static int root[PROGRAM_NODES];
    int n = verdict_roots(p, &c, root, PROGRAM_NODES);
    str_addf(out,
             "int v%d(" OPERANDS_C "int h, int q0, int q1,\n"
             "       int k0, int k1) {\n",
             i);
    program_c_part(p, root, n, &c, STAGE_ENTRY, out);
    program_c_verdict(p, root, n, &c, out);
    str_addf(out, "    return verdict;\n}\n");
}

static bool has_floats(const Program *p) {
    for (int i = 0; i <= p->root; i++) {
        if (p->node[i].type == TYPE_FLOAT)
            return true;
    }
    return false;
}

/* Never wrong; returns whether it is also the verdict computed in place. */
static bool check_verdict(const Program *p, VerdictOf f, Data *data,
                          const Box *box) {
    static Range range[PROGRAM_NODES];
    Tensor tensor[RANDOM_ARRAYS];
    ProgramTile tile = tile_of(box, data);
    Count c = {p, 0, 0};
    fill_tensors(tensor, data);
    int found = f(tensor, box->b[0], MANY_Q, MANY_K, MANY_K - MANY_Q, box->h[0],
                  box->q[0], box->q[1], box->k[0], box->k[1]);
    visit(box, data, count, &c);
    if ((found == VERDICT_FULL && c.seen < c.all) ||
        (found == VERDICT_EMPTY && c.seen))
        fail_msg("%s: verdict %d, %d of %d", canonical(p), found, c.seen,
                 c.all);
    return found == program_verdict(p, &tile, range);
}

static void compiled_verdicts_are_never_wrong(void **state) {
    (void)state;
    static Program p[MANY];
    static Data data;
    uint64_t seed = 33;
    int same = 0, whole = 0;
    Str text = {0};
    data_fill(&data, &seed);
    for (int i = 0; i < MANY; i++) {
        char *mask = random_text(&seed, PROGRAM_MASK, 1 + i % 4);
        p[i] = program(mask, PROGRAM_MASK);
        add_verdict(&p[i], i, &text);
        free(mask);
    }
    assert_false(text.bad);
    void *library = load(&text);
    for (int i = 0; i < MANY; i++) {
        char name[16];
        snprintf(name, sizeof name, "v%d", i);
        VerdictOf f = (VerdictOf)dlsym(library, name);
        for (int j = 0; j < 20; j++) {
            Box box = random_box(&seed);
            box.b[1] = box.b[0];
            box.h[1] = box.h[0];
            bool equal = check_verdict(&p[i], f, &data, &box);
            whole += !has_floats(&p[i]);
            same += !has_floats(&p[i]) && equal;
        }
        program_free(&p[i]);
    }
    assert_true(whole > 800 && same > whole - whole / 50);
    dlclose(library);
    str_free(&text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(causal_bounds_are_two_cuts),
        cmocka_unit_test(compiled_bounds_give_the_same_keys),
        cmocka_unit_test(compiled_verdicts_are_never_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
