/* SPDX-License-Identifier: Apache-2.0
 * The judge on programs: scores and masks are those of the definition, and the
 * f64 gradients, those of tensors too, are finite differences. */
#include "array_case.h"
#include "finite_case.h"

/* ---- gradients --------------------------------------------------------- */

static void check_array(const Case *c, GradData *g, attnc_array *x,
                        const double *want) {
    int64_t n = x->dtype == ARRAY_F32 ? array_elements(x) : 0;
    for (int64_t i = 0; i < n; i++) {
        double found = slope(c, g, (float *)x->data + i), owed = want[i];
        if (fabs(found - owed) > 1e-6 * (1 + fabs(owed))) {
            case_print(c);
            fail_msg("d%s[%lld]: %.9g, finite differences %.9g", x->name,
                     (long long)i, owed, found);
        }
    }
}

static void check_gradients(const Case *given) {
    enum { QS = 2 * 4 * 5 * 4, KS = 2 * 2 * 7 * 4, MOST = 6 * 6 * 6 * 6 };
    Case c = *given;
    double dq[QS], dk[KS], dv[KS], *tensor[SPEC_TENSORS] = {0};
    Arrays x;
    GradData g;
    Err e = {0};
    c.spec.tensor_grads = (int32_t)spec_grads_possible(&c.spec);
    attnc_spec bwd = grad_spec(&c);
    if (spec_check(&bwd, &bwd, &e))
        fail_msg("%s", e.text);
    grad_make(&c, &g);
    attnc_args *a = &g.d.args;
    to_grid(&c, &a->q, c.heads, c.nq, 4);
    to_grid(&c, &a->k, c.kv_heads, c.nk, 4);
    to_grid(&c, &a->v, c.kv_heads, c.nk, 3);
    arrays_make(&c, a, &x);
    for (int i = 0; i < x.count; i++)
        tensor[i] = malloc(MOST * sizeof(double));
    assert_int_equal(
        reference_bwd_tensors(&bwd, a, dq, dk, dv, NULL, tensor, &e), 0);
    check_tensor(&c, &g, &a->q, c.heads, c.nq, 4, dq);
    check_tensor(&c, &g, &a->k, c.kv_heads, c.nk, 4, dk);
    check_tensor(&c, &g, &a->v, c.kv_heads, c.nk, 3, dv);
    for (int i = 0; i < x.count; i++) {
        if (c.spec.tensor_grads >> i & 1)
            check_array(&c, &g, &x.of[i], tensor[i]);
        free(tensor[i]);
    }
    arrays_free(&x);
    grad_free(&g);
}

static Case program_case(const char *mask, const char *score) {
    Case c = small_case(mask ? ATTNC_MASK_PROGRAM : ATTNC_MASK_NONE);
    c.spec.mask_program = program_of(mask, ATTNC_MASK);
    c.spec.score_program = program_of(score, ATTNC_SCORE);
    return c;
}

static void gradients_of_scores_are_finite_differences(void **state) {
    (void)state;
    static const char *const scores[] = {
        "30.0 * tanh(s / 30.0)",
        "f32 slope[:]; s - slope[h] * abs(q + off - k)",
        "f32 gate[:]; s * tanh(gate[h])",
        "f32 table[:,:]; s + table[(q * 3 + k) % 5, h]",
        "f32 t[:]; s * t[q] + exp(t[k] * 0.25)",
        "f32 b2[:,:,:]; bool keep[:,:]; keep[q, k] ? s + b2[b, k, q] : -inf",
        "f32 one; s * one + log(2.0 + one * one)",
        "f16 half[:,:]; f32 x[:]; max(s, x[k] - 20.0) + half[b, q] * s",
        "k % 2 == 0 ? -inf : s * s * 0.25"};
    for (size_t i = 0; i < sizeof scores / sizeof *scores; i++) {
        for (int features = 0; features < 8; features += 3) {
            Case c = program_case(NULL, scores[i]);
            c.spec.softcap = features & 1;
            c.spec.alibi = features >> 1 & 1;
            c.spec.dropout = features >> 2 & 1;
            check_gradients(&c);
        }
    }
}

static void gradients_of_biases_are_finite_differences(void **state) {
    (void)state;
    for (int bias = ATTNC_BIAS_1; bias <= ATTNC_BIAS_BHQK; bias++) {
        Case c = small_case(bias % 4);
        c.spec.bias = bias;
        c.spec.score_program =
            bias % 2 ? program_of("s * 0.5 + tanh(s)", ATTNC_SCORE) : NULL;
        check_gradients(&c);
    }
}

static void gradients_under_masks_are_finite_differences(void **state) {
    (void)state;
    static const char *const masks[] = {
        "i32 doc[:,:]; doc[b, q] == doc[b, k] && k <= q + off",
        "bool on[:,:,:,:]; on[b, h, q, k]", "bits on[:,:,:,:]; on[b, h, q, k]",
        "f32 at[:]; at[h] * 0.5 < at[k]", "false"};
    for (size_t i = 0; i < sizeof masks / sizeof *masks; i++) {
        Case c = program_case(masks[i], i ? "f32 x[:,:]; s + x[q, h]" : NULL);
        check_gradients(&c);
    }
    Case c = small_case(ATTNC_MASK_CAUSAL);
    c.spec.sparsity = program_of("local-ft:c=3", ATTNC_PATTERN);
    c.spec.bias = ATTNC_BIAS_HQK;
    check_gradients(&c);
}

/* ---- meaning ----------------------------------------------------------- */

/* O of one pair of heads by the definition, key by key. */
static void masks_and_scores_are_those_of_the_definition(void **state) {
    (void)state;
    Case c = program_case("i32 doc[:,:]; doc[b, q] == doc[b, k] || k == h",
                          "f32 x[:]; s + x[k] * float(q)");
    const int64_t rows = c.batch * c.heads * c.nq;
    double *o = malloc(sizeof(double) * (size_t)rows * 3);
    Data d;
    Arrays x;
    Err e = {0};
    data_make(&c, &d);
    arrays_make(&c, &d.args, &x);
    const int32_t *doc = x.of[0].data;
    const float *add = x.of[1].data;
    assert_int_equal(reference_fwd(&c.spec, &d.args, o, NULL, &e), 0);
    for (int64_t r = 0; r < rows; r++) {
        int64_t i = r % c.nq, h = r / c.nq % c.heads, b = r / c.nq / c.heads;
        const float *q = (float *)element(&c, &d.args.q, b, h, i);
        double sum = 0, out[3] = {0};
        for (int64_t j = 0; j < c.nk; j++) {
            const float *k = (float *)element(&c, &d.args.k, b, h / 2, j);
            const float *v = (float *)element(&c, &d.args.v, b, h / 2, j);
            int mine = doc[b * 6 + i], other = j < 6 ? doc[b * 6 + j] : 0;
            double s = j < 6 ? (double)add[j] * (double)i : 0;
            for (int t = 0; t < 4; t++)
                s += (double)q[t] * k[t] / 2;
            double p = mine == other || j == h ? exp(s) : 0;
            sum += p;
            for (int t = 0; t < 3 && p > 0; t++)
                out[t] += p * v[t];
        }
        for (int t = 0; t < 3; t++)
            assert_true(fabs(o[r * 3 + t] - (sum > 0 ? out[t] / sum : 0)) <
                        1e-7);
    }
    arrays_free(&x);
    data_free(&d);
    free(o);
}

/* ---- the verdict ------------------------------------------------------- */

static RefCheck judged(const attnc_spec *bwd, const attnc_args *a) {
    RefCheck r;
    Err e = {0};
    assert_int_equal(reference_check_bwd(bwd, a, 2, NULL, NULL, &r, &e), 0);
    return r;
}

/* One element among many, and one that owes an exact zero. */
static void a_wrong_gradient_of_a_tensor_is_named(void **state) {
    (void)state;
    Case c = program_case("k <= q", NULL);
    c.nq = c.nk = 40;
    c.spec.bias = ATTNC_BIAS_HQK;
    c.spec.tensor_grads = 1;
    attnc_spec bwd = grad_spec(&c);
    double *want = malloc(sizeof(double) * 4 * 40 * 40), *tensor[] = {want};
    GradData g;
    Arrays x;
    Err e = {0};
    grad_make(&c, &g);
    arrays_make(&c, &g.d.args, &x);
    assert_int_equal(reference_bwd_tensors(&bwd, &g.d.args, NULL, NULL, NULL,
                                           NULL, tensor, &e),
                     0);
    float *grad = x.of[0].grad;
    for (int i = 0; i < 4 * 40 * 40; i++)
        grad[i] = (float)want[i];
    RefCheck r = judged(&bwd, &g.d.args);
    assert_int_equal(r.tensors, 1);
    assert_string_equal(r.tensor[0].name, "dbias");
    assert_true(r.tensor[0].err <= r.tensor[0].limit);
    grad[3 * 1600 + 7 * 40 + 8] = 1e-9f; /* above the diagonal */
    r = judged(&bwd, &g.d.args);
    assert_true(!r.ok && r.tensor[0].err < r.tensor[0].limit);
    grad[3 * 1600 + 7 * 40 + 8] = 0;
    grad[1 * 1600 + 9 * 40 + 3] += 1;
    r = judged(&bwd, &g.d.args);
    assert_true(!r.ok && r.tensor[0].err > r.tensor[0].limit);
    arrays_free(&x);
    grad_free(&g);
    free(want);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_of_scores_are_finite_differences),
        cmocka_unit_test(gradients_of_biases_are_finite_differences),
        cmocka_unit_test(gradients_under_masks_are_finite_differences),
        cmocka_unit_test(masks_and_scores_are_those_of_the_definition),
        cmocka_unit_test(a_wrong_gradient_of_a_tensor_is_named),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
