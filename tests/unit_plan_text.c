/* SPDX-License-Identifier: Apache-2.0
 * Plans as text: the identity, and the whole plan, printed and read back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gen.h"

static Device device(const char *name) {
    Device d;
    Err e = {0};
    assert_int_equal(device_find(name, &d, &e), 0);
    return d;
}

/* Plans from text; the error when there is one. */
static Err try_plan(const char *spec, const char *shape, const Device *d,
                    const Pins *pins, Plan *p) {
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    Err e = {0};
    assert_int_equal(spec_parse(spec, &s, &e), 0);
    assert_int_equal(shape_parse(shape, &h, &e), 0);
    plan_choose(&s, &h, d, pins, p, &e);
    return e;
}

static Plan plan(const char *spec, const char *shape, const char *name,
                 const Pins *pins) {
    Device d = device(name);
    Plan p;
    Err e = try_plan(spec, shape, &d, pins, &p);
    if (e.code)
        fail_msg("%s", e.text);
    return p;
}

static char *identity(const Plan *p) {
    Str s = {0};
    plan_identity(p, &s);
    return s.text;
}

static bool same_identity(const Plan *a, const Plan *b) {
    char *x = identity(a), *y = identity(b);
    bool same = !strcmp(x, y);
    free(x);
    free(y);
    return same;
}

/* ---- identity and text ------------------------------------------------- */

static void identity_is_code_and_nothing_else(void **state) {
    (void)state;
    Pins pins = {.tile = "block_q=96,block_k=64,vecs=3,keys=4,dims=4,"
                         "copy_kv=0"};
    Device d = device("avx2"), other = d;
    Plan p, q;
    other.cores = 3;
    other.dram_gbs = 9;
    strcpy(other.name, "another chip");
    try_plan("", "", &d, &pins, &p);
    try_plan("head_dim_v=64", "batch=3 seqlen_q=999 mult_q=16 align_k=16",
             &other, &pins, &q);
    assert_true(same_identity(&p, &q));
    q = plan("mask=causal", "", "avx2", &pins);
    assert_false(same_identity(&p, &q));
    pins.tile = "block_q=96,block_k=32,vecs=3,keys=4,dims=4,copy_kv=0";
    q = plan("", "", "avx2", &pins);
    assert_false(same_identity(&p, &q));
}

static void plans_read_back(void **state) {
    (void)state;
    static const char *const specs[] = {"", "dtype=bf16 mask=window sink=1",
                                        "alibi=1 softcap=1 head_dim=200"};
    static const char *const shapes[] = {
        "", "seqlen_q=1 seqlen_k=100000 mult_k=16", "heads=8 kv_heads=1"};
    const Pins pins[] = {{0},
                         {.tile = "split_k=1024"},
                         {.builtin = true},
                         {.table = "block_q=5"}};
    for (int i = 0; i < 3 * 3 * 4; i++) {
        Plan p = plan(specs[i % 3], shapes[i / 3 % 3], "avx512", &pins[i / 9]);
        Plan q;
        Err e = {0};
        Str one = {0}, two = {0};
        plan_print(&p, &one);
        if (plan_parse(one.text, &q, &e))
            fail_msg("%s\n%s", e.text, one.text);
        plan_print(&q, &two);
        assert_string_equal(one.text, two.text);
        assert_true(same_identity(&p, &q));
        assert_int_equal(p.step[0].tile.from, q.step[0].tile.from);
        str_free(&one);
        str_free(&two);
    }
}

/* Any character changed: the same plan or an error, never a fault. */
static void damaged_text_is_refused(void **state) {
    (void)state;
    Plan p = plan("mask=causal", "seqlen_q=1 seqlen_k=9999", "avx2", NULL), q;
    Str s = {0};
    plan_print(&p, &s);
    unsigned random = 1;
    for (size_t i = 0; i < s.len; i++) {
        char before = s.text[i];
        Err e = {0};
        random = random * 1103515245 + 12345;
        s.text[i] = (char)(32 + (random >> 16) % 95);
        if (s.text[i] != before && !plan_parse(s.text, &q, &e)) {
            Str again = {0};
            plan_print(&q, &again);
            assert_string_equal(again.text, s.text);
            str_free(&again);
        }
        s.text[i] = before;
    }
    for (size_t len = 0; len < s.len; len += 7) {
        Err e = {0};
        char *cut = strndup(s.text, len);
        assert_int_not_equal(plan_parse(cut, &q, &e), 0);
        free(cut);
    }
    str_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(identity_is_code_and_nothing_else),
        cmocka_unit_test(plans_read_back),
        cmocka_unit_test(damaged_text_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
