/* SPDX-License-Identifier: Apache-2.0
 * Plans as text: the identity, and the whole plan, printed and read back. */
#include "gen_util.h"

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
