/* SPDX-License-Identifier: Apache-2.0
 * Programs, bias and patterns of a spec: texts, what they come to, and what is
 * refused. */
#include "gen_util.h"
#include "pattern.h"
#include "program.h"

static attnc_spec parsed(const char *text) {
    attnc_spec s = ATTNC_SPEC_DEFAULT, out;
    Err e = {0};
    spec_parse(text, &s, &e);
    assert_string_equal(e.text, "");
    assert_int_equal(spec_check(&s, &out, &e), 0);
    return out;
}

static void expect_fault(const char *text, const char *message) {
    attnc_spec s = ATTNC_SPEC_DEFAULT, out;
    Err e = {0};
    if (!spec_parse(text, &s, &e))
        spec_check(&s, &out, &e);
    assert_int_equal(e.code, ERR_REQUEST);
    assert_string_equal(e.text, message);
}

static void expect_program(const Program *p, const char *text) {
    Str out = {0};
    assert_non_null(p);
    program_print(p, &out);
    assert_string_equal(out.text, text);
    str_free(&out);
}

static void equal_texts_are_one_program(void **state) {
    (void)state;
    attnc_spec a = parsed("mask=program mask_program=\"k<=q\"");
    attnc_spec b = parsed("mask=program mask_program=\"q >= k  // causal\"");
    attnc_spec c = parsed("mask=program mask_program=\"k < q\"");
    assert_ptr_equal(a.mask_program, b.mask_program);
    assert_ptr_not_equal(a.mask_program, c.mask_program);
    assert_ptr_equal(spec_keep(&a), spec_keep(&b));
}

static void a_spec_prints_and_parses_back(void **state) {
    (void)state;
    attnc_spec a = parsed(
        "mask=program mask_program=\"i32 doc[:,:]; doc[b, q] == doc[b, k]\" "
        "score_program=\"s + 1.5\" sparsity=\"butterfly:m=2 block=32\" "
        "bias=hqk dtype=f16");
    Str text = {0}, again = {0};
    spec_print(&a, &text);
    attnc_spec b = parsed(text.text);
    spec_print(&b, &again);
    assert_string_equal(text.text, again.text);
    assert_ptr_equal(a.mask_program, b.mask_program);
    assert_ptr_equal(a.score_program, b.score_program);
    assert_ptr_equal(a.sparsity, b.sparsity);
    str_free(&text);
    str_free(&again);
}

static void a_spec_without_programs_has_none(void **state) {
    (void)state;
    attnc_spec s = parsed("mask=causal");
    ProgramTensor t[SPEC_TENSORS];
    assert_null(spec_keep(&s));
    assert_null(spec_score(&s));
    assert_null(spec_score_grad(&s));
    assert_int_equal(spec_tensors(&s, t), 0);
    assert_false(spec_has_programs(&s));
}

static void mask_and_pattern_both_hold(void **state) {
    (void)state;
    attnc_spec s = parsed("mask=program mask_program=\"q < 7\" "
                          "sparsity=\"local-ft:c=4\"");
    expect_program(spec_keep(&s), "q < 7 && (q - k <= 2 && k - q < 2)");
    attnc_spec listed = parsed("sparsity=\"bsr block=16\"");
    expect_program(spec_keep(&listed), "bits pattern_blocks[:,:,:,:]; "
                                       "pattern_blocks[b, h, q / 16, k / 16]");
}

static void the_bias_comes_before_the_score_program(void **state) {
    (void)state;
    attnc_spec s = parsed("bias=hqk score_program=\"tanh(s)\"");
    expect_program(spec_score(&s), "f32 bias[:,:,:]; tanh(s + bias[h, q, k])");
    attnc_spec one = parsed("bias=1");
    expect_program(spec_score(&one), "f32 bias; s + bias");
}

static void tensors_are_those_of_mask_then_score(void **state) {
    (void)state;
    attnc_spec s = parsed(
        "pass=bwd mask=program "
        "mask_program=\"i32 doc[:]; f32 x[:]; doc[k] == doc[q] && x[k] > 0.\" "
        "score_program=\"f32 x[:]; f32 y[:]; i32 doc[:]; s * x[k] + "
        "y[doc[q]]\" "
        "tensor_grads=6");
    ProgramTensor t[SPEC_TENSORS];
    assert_int_equal(spec_tensors(&s, t), 3);
    assert_string_equal(t[0].name, "doc");
    assert_string_equal(t[1].name, "x");
    assert_string_equal(t[2].name, "y");
    assert_int_equal(spec_grads_possible(&s), 6);
    const ProgramGrad *g = spec_score_grad(&s);
    assert_int_equal(g->nread, 2);
}

static void what_does_not_fit_together_is_refused(void **state) {
    (void)state;
    expect_fault("mask=program",
                 "spec: mask_program: none, but the spec says mask=program");
    expect_fault("mask_program=\"k <= q\"",
                 "spec: mask_program: given, but mask is not program");
    expect_fault("score_program=\"s",
                 "spec: score_program: no closing \"; write "
                 "score_program=\"TEXT\"");
    expect_fault("sparsity=\"butterfli\"",
                 "sparsity: unknown pattern 'butterfli'; nearest: butterfly");
    expect_fault("sparsity=\"fixed grain=3\"",
                 "sparsity: 'grain=3' after the pattern; accepted: block=N");
    expect_fault("mask=program mask_program=\"i32 x[:]; x[k] == q\" "
                 "score_program=\"f32 x[:]; s + x[k]\"",
                 "spec: x: is i32 of rank 1 in the mask and f32 of rank 1 in "
                 "the score; accepted: the same");
    expect_fault("score_program=\"f32 x[:]; s + x[k]\" tensor_grads=1",
                 "spec: tensor_grads: 1, but pass=fwd gives none; nearest: 0");
    expect_fault("pass=bwd score_program=\"f32 x[:]; s + x[k]\" tensor_grads=2",
                 "spec: tensor_grads: bit 1 is no tensor that the score reads; "
                 "nearest: 1");
    expect_fault("bias=qh", "spec: bias: unknown value 'qh'; nearest: h; "
                            "accepted: none 1 b h bh q bq hq bhq k bk hk bhk "
                            "qk bqk hqk bhqk");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_texts_are_one_program),
        cmocka_unit_test(a_spec_prints_and_parses_back),
        cmocka_unit_test(a_spec_without_programs_has_none),
        cmocka_unit_test(mask_and_pattern_both_hold),
        cmocka_unit_test(the_bias_comes_before_the_score_program),
        cmocka_unit_test(tensors_are_those_of_mask_then_score),
        cmocka_unit_test(what_does_not_fit_together_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
