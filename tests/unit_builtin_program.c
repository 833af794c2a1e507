/* SPDX-License-Identifier: Apache-2.0
 * Random programs by the built-in kernel, which interprets their graphs: the
 * results and all gradients, of tensors too, are those of f64. */
/* Of these names case.h has others. */
#define Data ProgramData
#define random_int program_int
#define random_float program_float
#include "program_util.h"
#undef Data
#undef random_int
#undef random_float
#include "array_case.h"
#include "grad_case.h"

enum { MASKS = 1000, SCORES = 1000 };

static uint64_t seed;

/* ---- scores that f32 can hold ------------------------------------------ */

static void tame(int depth, bool with_s, Str *out);

static void tame_call(const char *name, int depth, bool with_s, Str *out) {
    str_addf(out, "%s(", name);
    tame(depth - 1, with_s, out);
    str_addf(out, ")");
}

/* Sums, products and functions of what lies between -8 and 8. */
static void tame(int depth, bool with_s, Str *out) {
    static const char *const leaf[] = {"slope[h]", "bias[h, q, k]", "row[k]",
                                       "0.5", "-1.25"};
    static const char *const call[] = {"tanh", "0.5 * tanh", "exp(0.5) * tanh"};
    int pick = below(&seed, depth > 0 ? 6 : 1);
    if (pick == 0 && with_s && below(&seed, 2)) {
        str_addf(out, "s");
    } else if (pick == 0) {
        str_addf(out, "%s", leaf[below(&seed, 5)]);
    } else if (pick < 3) {
        str_addf(out, "(");
        tame(depth - 1, with_s, out);
        str_addf(out, below(&seed, 2) ? " + " : " - ");
        tame(depth - 1, with_s, out);
        str_addf(out, ") * 0.5");
    } else if (pick == 3) {
        tame_call(call[below(&seed, 3)], depth, with_s, out);
        str_addf(out, " * ");
        tame_call("tanh", depth, with_s, out);
    } else if (pick == 4) {
        tame_call(below(&seed, 2) ? "abs" : "tanh", depth, false, out);
    } else {
        str_addf(out, "(");
        random_expr(&seed, TYPE_BOOL, 2, false, out);
        str_addf(out, " ? ");
        tame(depth - 1, with_s, out);
        str_addf(out, " : ");
        tame(depth - 1, with_s, out);
        str_addf(out, ")");
    }
}

/* The caller frees it. */
static char *score_text(void) {
    Str s = {0};
    str_addf(&s, RANDOM_TENSORS "s * tanh(");
    tame(2, false, &s);
    str_addf(&s, ") + ");
    tame(3, true, &s);
    assert_false(s.bad);
    return s.text;
}

/* ---- one case ---------------------------------------------------------- */

static Case many_case(void) {
    Case c = CASE_INIT;
    c.batch = MANY_B;
    c.heads = c.kv_heads = MANY_H;
    c.nq = MANY_Q / 2;
    c.nk = MANY_K;
    c.spec.head_dim = c.spec.head_dim_v = 8;
    c.mode = ATTNC_OFFSET_BR;
    return c;
}

/* The random tensors that the spec reads, and room for their gradients. */
static int give_arrays(const attnc_spec *s, const ProgramData *d,
                       attnc_array out[SPEC_TENSORS]) {
    static const char *const names[] = {"doc", "len", "slope", "bias",
                                        "row", "on",  "lit"};
    ProgramTensor all[SPEC_TENSORS];
    int n = spec_tensors(s, all);
    for (int i = 0; i < n; i++) {
        int k = 0;
        while (strcmp(names[k], all[i].name))
            k++;
        const ProgramArray *a = &d->array[k];
        out[i] = (attnc_array){.name = names[k],
                               .data = a->at,
                               .dtype = a->dtype,
                               .rank = all[i].rank};
        memcpy(out[i].n, a->n, sizeof a->n);
        memcpy(out[i].stride, a->stride, sizeof a->stride);
        if (s->tensor_grads >> i & 1)
            out[i].grad =
                malloc(sizeof(float) * (size_t)array_elements(&out[i]));
    }
    return n;
}

static void judge(const Case *c, const attnc_spec *bwd, const GradData *g,
                  const char *text) {
    RefCheck forward, backward;
    Err e = {0};
    reference_check(&c->spec, &g->d.args, 1, NULL, NULL, &forward, &e);
    reference_check_bwd(bwd, &g->d.args, 1, NULL, NULL, &backward, &e);
    assert_int_equal(e.code, 0);
    if (!forward.ok || !backward.ok)
        fail_msg("%s\n%s%s", text, forward.why, backward.why);
}

static void run_case(attnc_context *ctx, const char *mask, const char *score,
                     const ProgramData *data) {
    Case c = many_case();
    attnc_array arrays[SPEC_TENSORS], plain[SPEC_TENSORS];
    GradData g;
    c.spec.mask = mask ? ATTNC_MASK_PROGRAM : ATTNC_MASK_NONE;
    c.spec.mask_program = program_of(mask, ATTNC_MASK);
    c.spec.score_program = program_of(score, ATTNC_SCORE);
    attnc_spec bwd = grad_spec(&c);
    bwd.tensor_grads = (int32_t)spec_grads_possible(&c.spec);
    attnc_plan *first = plan_make(ctx, &c.spec, NULL);
    attnc_plan *second = plan_make(ctx, &bwd, NULL);
    grad_make(&c, &g);
    int n = give_arrays(&bwd, data, arrays);
    for (int i = 0; i < n; i++) {
        plain[i] = arrays[i];
        plain[i].grad = NULL;
    }
    g.d.args.tensors = plain;
    g.d.args.tensor_count = n;
    case_launch(&c, first, &g.d);
    g.d.args.tensors = arrays;
    case_launch(&c, second, &g.d);
    judge(&c, &bwd, &g, mask ? mask : score);
    for (int i = 0; i < n; i++)
        free(arrays[i].grad);
    grad_free(&g);
    attnc_plan_release(first);
    attnc_plan_release(second);
}

static void run_many(int kind, int count) {
    attnc_context *ctx = context_make(KERNEL_BUILTIN, NULL, 1);
    ProgramData data;
    seed = random_bits();
    for (int i = 0; i < count; i++) {
        data_fill(&data, &seed);
        char *text =
            kind == PROGRAM_MASK ? random_text(&seed, kind, 4) : score_text();
        run_case(ctx, kind == PROGRAM_MASK ? text : NULL,
                 kind == PROGRAM_MASK ? NULL : text, &data);
        free(text);
    }
    attnc_context_destroy(ctx);
}

static void random_masks(void **state) {
    (void)state;
    run_many(PROGRAM_MASK, MASKS);
}

static void random_scores(void **state) {
    (void)state;
    run_many(PROGRAM_SCORE, SCORES);
}

/* ---- bits -------------------------------------------------------------- */

static void rows_of_bits_are_whole_words(void **state) {
    (void)state;
    attnc_context *ctx = context_make(KERNEL_BUILTIN, NULL, 1);
    Case c = many_case();
    Data d;
    static uint32_t words[2 * MANY_Q + 1];
    const attnc_array good = {.name = "lit",
                              .data = words,
                              .dtype = ATTNC_ARRAY_BITS,
                              .rank = 2,
                              .n = {MANY_Q, MANY_K},
                              .stride = {64, 1}};
    c.spec.mask = ATTNC_MASK_PROGRAM;
    c.spec.mask_program = program_of("bits lit[:,:]; lit[q, k]", ATTNC_MASK);
    attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
    data_make(&c, &d);
    workspace_make(plan, &d);
    for (int i = 0; i < 4; i++) {
        static const char *const says[] = {"", "stride[0] is 63",
                                           "stride[1] is 2",
                                           "accepted: a multiple of 4"};
        attnc_array x = good;
        x.stride[0] -= i == 1;
        x.stride[1] += i == 2;
        x.data = (const char *)x.data + (i == 3);
        d.args.tensors = &x;
        d.args.tensor_count = 1;
        assert_int_equal(attnc_launch(plan, &d.args, NULL),
                         i ? ATTNC_E_REQUEST : 0);
        assert_true(!i || strstr(attnc_last_error()->text, says[i]));
    }
    data_free(&d);
    attnc_plan_release(plan);
    attnc_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_masks),
        cmocka_unit_test(random_scores),
        cmocka_unit_test(rows_of_bits_are_whole_words),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
