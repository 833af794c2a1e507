/* SPDX-License-Identifier: Apache-2.0
 * The shape: hints and promises, checked and printed. */
#include "gen_util.h"

static Err fault(const char *text) {
    attnc_shape h = ATTNC_SHAPE_DEFAULT, out;
    Err e = {0};
    if (!shape_parse(text, &h, &e))
        shape_check(&h, &out, &e);
    return e;
}

static void expect_fault(const char *text, const char *message) {
    Err e = fault(text);
    assert_int_equal(e.code, ERR_REQUEST);
    assert_string_equal(e.stage, "shape");
    assert_string_equal(e.text, message);
}

static void good_shapes_pass(void **state) {
    (void)state;
    static const char *const good[] = {
        "", "batch=70000 heads=1 kv_heads=1 seqlen_q=4 seqlen_k=4",
        "heads=32 kv_heads=4 mult_q=128 mult_k=16 align_q=16 align_v=4",
        "seqlen_q=1 seqlen_k=2147483647", "max_seqlen=100 seqlen_q=200"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_int_equal(fault(good[i]).code, 0);
}

static void faults_name_what_is_nearest(void **state) {
    (void)state;
    expect_fault("seqlenq=5",
                 "shape: unknown field 'seqlenq'; nearest: seqlen_q");
    expect_fault("batch=0", "shape: batch: 0 is out of range; accepted "
                            "1..2147483647, nearest 1");
    expect_fault("seqlen_k=-3", "shape: seqlen_k: -3 is out of range; "
                                "accepted 1..2147483647, nearest 1");
    expect_fault("seqlen_q=2147483648",
                 "shape: seqlen_q: 2147483648 is out of range; accepted "
                 "1..2147483647, nearest 2147483647");
    expect_fault("seqlen_q=99999999999999999999",
                 "shape: seqlen_q: '99999999999999999999' is not a whole "
                 "number of 64 bits; accepted: 1 and up");
    expect_fault("heads=6 kv_heads=4", "shape: kv_heads: heads 6 is not a "
                                       "multiple of 4; nearest 3");
    expect_fault("heads=4 kv_heads=8", "shape: kv_heads: heads 4 is not a "
                                       "multiple of 8; nearest 4");
    expect_fault("mult_q=32", "shape: mult_q: 32 is not accepted; accepted: "
                              "1 16 64 128; nearest: 16");
    expect_fault("align_o=1", "shape: align_o: 1 is not accepted; accepted: "
                              "2 4 8 16; nearest: 2");
    expect_fault("max_seqlen=-1", "shape: max_seqlen: -1 is out of range; "
                                  "accepted 0..2147483647, nearest 0");
}

static void sizes_that_overflow_together_are_refused(void **state) {
    (void)state;
    Err e = fault("batch=2147483647 heads=2147483647 kv_heads=1 "
                  "seqlen_q=2147483647");
    assert_int_equal(e.code, ERR_REQUEST);
    assert_non_null(strstr(e.text, "overflows"));
}

static void a_prime_number_of_heads_is_answered_at_once(void **state) {
    (void)state;
    Err e = fault("heads=2147483647 kv_heads=1073741824 seqlen_q=1 "
                  "seqlen_k=1");
    assert_non_null(strstr(e.text, "nearest 1"));
}

static void an_older_struct_takes_defaults(void **state) {
    (void)state;
    attnc_shape h, out;
    Err e = {0};
    memset(&h, 0x5a, sizeof h);
    h.struct_size = offsetof(attnc_shape, heads);
    h.batch = 3;
    assert_int_equal(shape_check(&h, &out, &e), 0);
    assert_int_equal(out.batch, 3);
    assert_int_equal(out.heads, ATTNC_SHAPE_DEFAULT.heads);
    assert_int_equal(out.struct_size, sizeof out);
}

static void text_reads_back_and_promises_stand_alone(void **state) {
    (void)state;
    attnc_shape h = ATTNC_SHAPE_DEFAULT, again = ATTNC_SHAPE_DEFAULT;
    Err e = {0};
    Str all = {0}, promises = {0};
    assert_int_equal(shape_parse("batch=5 seqlen_k=77 mult_k=16", &h, &e), 0);
    shape_print(&h, &all);
    assert_int_equal(shape_parse(all.text, &again, &e), 0);
    assert_memory_equal(&h, &again, sizeof h);
    shape_print_promises(&h, &promises);
    assert_string_equal(promises.text,
                        "mult_q=1 mult_k=16 align_q=2 align_k=2 align_v=2 "
                        "align_o=2 max_seqlen=0");
    str_free(&all);
    str_free(&promises);
}

static void the_docs_list_every_field(void **state) {
    (void)state;
    char row[80];
    const char *text = source_text("docs/spec.md");
    Str all = {0};
    shape_print(&ATTNC_SHAPE_DEFAULT, &all);
    const char *at = all.text;
    Slice k, v;
    while (next_pair(&at, " ", &k, &v)) {
        snprintf(row, sizeof row, "\n| `%.*s` | ", (int)k.len, k.p);
        if (!strstr(text, row))
            fail_msg("docs/spec.md has no row: %s", row);
    }
    str_free(&all);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_shapes_pass),
        cmocka_unit_test(faults_name_what_is_nearest),
        cmocka_unit_test(sizes_that_overflow_together_are_refused),
        cmocka_unit_test(a_prime_number_of_heads_is_answered_at_once),
        cmocka_unit_test(an_older_struct_takes_defaults),
        cmocka_unit_test(text_reads_back_and_promises_stand_alone),
        cmocka_unit_test(the_docs_list_every_field),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
