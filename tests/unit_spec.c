/* SPDX-License-Identifier: Apache-2.0
 * The spec: text and structs in, checked; canonical text out. */
#include "gen_util.h"

static attnc_spec parsed(const char *text) {
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    Err e = {0};
    assert_int_equal(spec_parse(text, &s, &e), 0);
    return s;
}

/* The error of parsing, or of checking what was parsed. */
static Err fault(const char *text) {
    attnc_spec s = ATTNC_SPEC_DEFAULT, out;
    Err e = {0};
    if (!spec_parse(text, &s, &e))
        spec_check(&s, &out, &e);
    return e;
}

static void expect_fault(const char *text, const char *field,
                         const char *message) {
    Err e = fault(text);
    assert_int_equal(e.code, ERR_REQUEST);
    assert_string_equal(e.stage, "spec");
    assert_string_equal(e.field, field);
    assert_string_equal(e.text, message);
}

static void defaults_are_canonical_but_for_derived(void **state) {
    (void)state;
    attnc_spec out;
    Err e = {0};
    assert_int_equal(spec_check(&ATTNC_SPEC_DEFAULT, &out, &e), 0);
    assert_int_equal(out.head_dim, 64);
    assert_int_equal(out.head_dim_v, 64);
    assert_int_equal(out.deterministic, 1);
}

static void unnamed_fields_keep_their_value(void **state) {
    (void)state;
    attnc_spec s = parsed("head_dim=80\tmask=window\n sink=1");
    Err e = {0};
    assert_int_equal(spec_parse("dtype=bf16", &s, &e), 0);
    assert_int_equal(s.head_dim, 80);
    assert_int_equal(s.mask, ATTNC_MASK_WINDOW);
    assert_int_equal(s.sink, 1);
    assert_int_equal(s.dtype, ATTNC_BF16);
}

static void faults_name_what_is_nearest(void **state) {
    (void)state;
    expect_fault("headdim=64", "",
                 "spec: unknown field 'headdim'; nearest: head_dim");
    expect_fault("mask=causl", "mask",
                 "spec: mask: unknown value 'causl'; nearest: causal; "
                 "accepted: none causal window prefix program");
    expect_fault("head_dim=300", "head_dim",
                 "spec: head_dim: 300 is out of range; accepted 1..256, "
                 "nearest 256");
    expect_fault("head_dim=0", "head_dim",
                 "spec: head_dim: 0 is out of range; accepted 1..256, "
                 "nearest 1");
    expect_fault("softcap=2", "softcap",
                 "spec: softcap: 2 is out of range; accepted 0 1, nearest 1");
    expect_fault("head_dim=64x", "head_dim",
                 "spec: head_dim: '64x' is not a number; accepted: 1..256, "
                 "default 64");
    expect_fault("head_dim", "head_dim",
                 "spec: head_dim: no value; write head_dim=VALUE");
    expect_fault("head_dim= dtype=f32", "head_dim",
                 "spec: head_dim: no value; write head_dim=VALUE");
}

static void numbers_that_overflow_are_out_of_range(void **state) {
    (void)state;
    expect_fault("head_dim=4294967360", "head_dim",
                 "spec: head_dim: 4294967360 is out of range; accepted "
                 "1..256, nearest 256");
    Err e = fault("head_dim=99999999999999999999999");
    assert_non_null(strstr(e.text, "nearest 256"));
    e = fault("head_dim=-99999999999999999999999");
    assert_non_null(strstr(e.text, "nearest 1"));
}

static void tf32_needs_f32(void **state) {
    (void)state;
    assert_int_equal(fault("f32_math=tf32").code, 0);
    expect_fault("f32_math=tf32 dtype=bf16", "f32_math",
                 "spec: f32_math: tf32 needs dtype=f32, not bf16; nearest: "
                 "ieee");
}

static void struct_fields_are_checked_too(void **state) {
    (void)state;
    attnc_spec s = ATTNC_SPEC_DEFAULT, out;
    Err e = {0};
    s.mask = 17;
    assert_int_equal(spec_check(&s, &out, &e), ERR_REQUEST);
    assert_string_equal(e.field, "mask");
    s = ATTNC_SPEC_DEFAULT;
    s.mask = -1;
    e = (Err){0};
    assert_int_equal(spec_check(&s, &out, &e), ERR_REQUEST);
    s = ATTNC_SPEC_DEFAULT;
    s.varlen = -7;
    e = (Err){0};
    assert_int_equal(spec_check(&s, &out, &e), ERR_REQUEST);
    assert_string_equal(e.field, "varlen");
}

static void an_older_struct_takes_defaults(void **state) {
    (void)state;
    attnc_spec s, out;
    Err e = {0};
    memset(&s, 0x5a, sizeof s);
    s.struct_size = offsetof(attnc_spec, mask);
    s.pass = 0;
    s.dtype = ATTNC_F16;
    s.f32_math = 0;
    s.head_dim = 96;
    s.head_dim_v = 0;
    assert_int_equal(spec_check(&s, &out, &e), 0);
    assert_int_equal(out.head_dim_v, 96);
    assert_int_equal(out.mask, ATTNC_MASK_NONE);
    assert_int_equal(out.deterministic, 1);
    assert_int_equal(out.struct_size, sizeof out);
}

static void a_newer_struct_must_not_ask_for_the_unknown(void **state) {
    (void)state;
    struct {
        attnc_spec s;
        int64_t more;
    } newer = {ATTNC_SPEC_DEFAULT, 0};
    attnc_spec out;
    Err e = {0};
    newer.s.struct_size = sizeof newer;
    assert_int_equal(spec_check(&newer.s, &out, &e), 0);
    newer.more = 1;
    assert_int_equal(spec_check(&newer.s, &out, &e), ERR_REQUEST);
    assert_string_equal(e.field, "struct_size");
    e = (Err){0};
    newer.s.struct_size = 0;
    assert_int_equal(spec_check(&newer.s, &out, &e), ERR_REQUEST);
}

static void canonical_text_reads_back(void **state) {
    (void)state;
    static const char *const texts[] = {
        "", "dtype=bf16 head_dim=128 head_dim_v=256 mask=prefix",
        "lens_k=1 varlen=1 softcap=1 alibi=1 sink=1 deterministic=0",
        "f32_math=tf32 head_dim=1 batch_invariant=1 mask=window"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        attnc_spec s = parsed(texts[i]), canonical, again;
        Err e = {0};
        Str one = {0}, two = {0};
        assert_int_equal(spec_check(&s, &canonical, &e), 0);
        spec_print(&canonical, &one);
        again = parsed(one.text);
        assert_memory_equal(&again, &canonical,
                            offsetof(attnc_spec, batch_invariant) + 4);
        spec_print(&again, &two);
        assert_string_equal(one.text, two.text);
        str_free(&one);
        str_free(&two);
    }
}

static void spellings_are_those_of_enum_fields(void **state) {
    (void)state;
    attnc_spec s = parsed("dtype=f16");
    assert_string_equal(spec_spelling(&s, "dtype"), "f16");
    assert_null(spec_spelling(&s, "head_dim"));
    assert_null(spec_spelling(&s, "nothing"));
    assert_int_equal(dtype_bytes(ATTNC_F32), 4);
    assert_int_equal(dtype_bytes(ATTNC_F16), 2);
    assert_int_equal(dtype_bytes(ATTNC_BF16), 2);
}

/* ---- docs/spec.md ------------------------------------------------------ */

/* A bar inside a table's cell is written with a backslash. */
static void look_up(void *user, const char *name, const char *def,
                    const char *accepted, const char *doc) {
    Str row = {0};
    str_addf(&row, "| `%s` | %s | %s | ", name, accepted, def);
    for (; *doc; doc++)
        str_addf(&row, *doc == '|' ? "\\|" : "%c", *doc);
    str_addf(&row, " |\n");
    if (!strstr(user, row.text))
        fail_msg("docs/spec.md has no row: %s", row.text);
    str_free(&row);
}

static void the_docs_list_every_field(void **state) {
    (void)state;
    spec_fields(look_up, (void *)source_text("docs/spec.md"));
}

/* ---- util.c ------------------------------------------------------------ */

static void text_grows_and_the_first_error_wins(void **state) {
    (void)state;
    Str s = {0};
    Err e = {0};
    for (int i = 0; i < 5000; i++)
        str_addf(&s, "%d,", i);
    assert_false(s.bad);
    assert_int_equal(s.len, 10 * 2 + 90 * 3 + 900 * 4 + 4000 * 5);
    assert_int_equal(strlen(s.text), s.len);
    str_free(&s);
    assert_null(s.text);
    err_set(&e, ERR_REQUEST, "a", "b", "%d", 1);
    err_set(&e, ERR_MEMORY, "c", NULL, "%d", 2);
    assert_int_equal(e.code, ERR_REQUEST);
    assert_string_equal(e.text, "a: b: 1");
}

static Slice slice(const char *text) {
    return (Slice){text, strlen(text)};
}

static void numbers_are_read_strictly(void **state) {
    (void)state;
    int64_t i;
    double d;
    static const char *const bad[] = {
        "",    " 1",   "1 ", "0x10", "1e", "--1", "9223372036854775808",
        "nan", "1.5.2"};
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++)
        assert_false(slice_int(slice(bad[k]), &i));
    assert_false(slice_double(slice("inf"), &d));
    assert_false(slice_double(slice("1e999"), &d));
    assert_false(slice_double(slice("0x1p3"), &d));
    assert_false(slice_double(slice(" 1"), &d));
    assert_true(slice_int(slice("-9223372036854775808"), &i));
    assert_true(i == INT64_MIN);
    assert_true(slice_double(slice("1.5e3"), &d));
    assert_true(d == 1500);
}

static void pairs_are_walked(void **state) {
    (void)state;
    const char *text = ",, a=1,b,c=d=e ,";
    Slice k, v;
    assert_true(next_pair(&text, ", ", &k, &v));
    assert_true(slice_is(k, "a") && slice_is(v, "1"));
    assert_true(next_pair(&text, ", ", &k, &v));
    assert_true(slice_is(k, "b") && slice_is(v, ""));
    assert_true(next_pair(&text, ", ", &k, &v));
    assert_true(slice_is(k, "c") && slice_is(v, "d=e"));
    assert_false(next_pair(&text, ", ", &k, &v));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_canonical_but_for_derived),
        cmocka_unit_test(unnamed_fields_keep_their_value),
        cmocka_unit_test(faults_name_what_is_nearest),
        cmocka_unit_test(numbers_that_overflow_are_out_of_range),
        cmocka_unit_test(tf32_needs_f32),
        cmocka_unit_test(struct_fields_are_checked_too),
        cmocka_unit_test(an_older_struct_takes_defaults),
        cmocka_unit_test(a_newer_struct_must_not_ask_for_the_unknown),
        cmocka_unit_test(canonical_text_reads_back),
        cmocka_unit_test(spellings_are_those_of_enum_fields),
        cmocka_unit_test(the_docs_list_every_field),
        cmocka_unit_test(text_grows_and_the_first_error_wins),
        cmocka_unit_test(numbers_are_read_strictly),
        cmocka_unit_test(pairs_are_walked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
