/* SPDX-License-Identifier: Apache-2.0
 * Lists, programs and pictures of patterns against the rule of every pair;
 * draws; lists given. */
#include "pattern_util.h"

/* ---- every pair -------------------------------------------------------- */

/* Verdict of a block by looking at all its pairs. */
static int brute(const Pattern *p, int64_t h, int64_t a, int64_t e) {
    int64_t seen = 0, all = 0;
    for (int64_t i = a * p->block; i < (a + 1) * p->block && i < p->nq; i++)
        for (int64_t j = e * p->block; j < (e + 1) * p->block && j < p->nk;
             j++) {
            seen += pattern_visible(p, h, i, j);
            all++;
        }
    assert_int_equal(pattern_pairs(p, h, a, e), seen);
    return !seen ? BLOCK_EMPTY : seen < all ? BLOCK_PARTIAL : BLOCK_FULL;
}

static bool listed(const int64_t *at, const int32_t *block, int64_t row,
                   int64_t column) {
    int n = 0;
    for (int64_t i = at[row]; i < at[row + 1]; i++) {
        n += block[i] == column;
        assert_true(i == at[row] || block[i - 1] < block[i]);
    }
    assert_true(n < 2);
    return n;
}

static void lists_hold_what_every_pair_says(void **state) {
    (void)state;
    uint64_t seed = 41;
    for (int i = 0; i < 220; i++) {
        Made m = random_pattern(&seed, i);
        Pattern p;
        Err e = {0};
        if (pattern_parse(m.text, 0, &p, &e))
            fail_msg("%s", e.text);
        p.block = m.block;
        if (pattern_size(&p, m.nq, m.nk, &e))
            fail_msg("%s: %s", m.text, e.text);
        int64_t h = below(&seed, 5);
        BlockList x = list(&p, h), t;
        assert_int_equal(blocks_transpose(&x, &t, &e), 0);
        for (int64_t a = 0; a < p.nbq; a++) {
            for (int64_t b = 0; b < p.nbk; b++) {
                int verdict = brute(&p, h, a, b);
                if (verdict != pattern_verdict(&p, h, a, b) ||
                    listed(x.full_at, x.full, a, b) !=
                        (verdict == BLOCK_FULL) ||
                    listed(x.part_at, x.part, a, b) !=
                        (verdict == BLOCK_PARTIAL) ||
                    listed(t.full_at, t.full, b, a) !=
                        (verdict == BLOCK_FULL) ||
                    listed(t.part_at, t.part, b, a) !=
                        (verdict == BLOCK_PARTIAL))
                    fail_msg("%s: block %d, %d x %d: %d, %d", m.text,
                             (int)p.block, (int)p.nq, (int)p.nk, (int)a,
                             (int)b);
            }
        }
        blocks_free(&x);
        blocks_free(&t);
    }
}

static void programs_say_what_patterns_say(void **state) {
    (void)state;
    uint64_t seed = 42;
    int compared = 0;
    for (int i = 0; i < 132; i++) {
        Made m = random_pattern(&seed, i);
        Pattern p;
        Err e = {0};
        Str text = {0};
        if (pattern_parse(m.text, 0, &p, &e))
            fail_msg("%s", e.text);
        p.block = m.block;
        assert_int_equal(pattern_size(&p, m.nq, m.nk, &e), 0);
        if (!pattern_program(&p, &text))
            continue;
        Program mask = program(text.text, PROGRAM_MASK);
        for (int n = 0; n < 2000; n++) {
            int h = below(&seed, 4);
            int q = below(&seed, (int)p.nq), k = below(&seed, (int)p.nk);
            if (n % 2) /* near the diagonal */
                k = q < p.nk ? q - below(&seed, q < 20 ? q + 1 : 20) : k;
            ProgramEnv env = {.operand = {[OPERAND_h] = h,
                                          [OPERAND_q] = q,
                                          [OPERAND_k] = k,
                                          [OPERAND_nq] = (double)p.nq,
                                          [OPERAND_nk] = (double)p.nk}};
            if (value_at(&mask, &env) != pattern_visible(&p, h, q, k))
                fail_msg("%s: %s: h %d q %d k %d", m.text, text.text, h, q, k);
        }
        compared++;
        program_free(&mask);
        str_free(&text);
    }
    assert_true(compared > 90);
}

/* A block that is whole, or empty, is proven so by its program. */
static void programs_decide_blocks(void **state) {
    (void)state;
    static const char *const texts[] = {"longformer",
                                        "fixed",
                                        "ds-fixed",
                                        "butterfly",
                                        "butterfly:2",
                                        "orig-bigbird:random=0",
                                        "ds-fixed:stride=3,horizontal=1"};
    static Range range[PROGRAM_NODES];
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        Pattern p = pattern(texts[i], 32, 1024, 1024);
        Str text = {0};
        assert_true(pattern_program(&p, &text));
        Program mask = program(text.text, PROGRAM_MASK);
        for (int a = 0; a < 32; a++) {
            for (int e = 0; e < 32; e++) {
                ProgramTile t = program_everywhere();
                t.operand[OPERAND_h] = (Range){0, 0, false, false};
                t.operand[OPERAND_nq] = t.operand[OPERAND_nk] =
                    (Range){1024, 1024, false, false};
                t.operand[OPERAND_q] = (Range){32 * a, 32 * a + 31};
                t.operand[OPERAND_k] = (Range){32 * e, 32 * e + 31};
                int verdict = program_verdict(&mask, &t, range);
                if (verdict != pattern_verdict(&p, 0, a, e))
                    fail_msg("%s: %d %d: %d", texts[i], a, e, verdict);
            }
        }
        program_free(&mask);
        str_free(&text);
    }
}

/* ---- draws ------------------------------------------------------------- */

static void draws_are_the_same_everywhere(void **state) {
    (void)state;
    Pattern p = pattern("ds-bigbird:random=5,seed=5", 16, 16 * 100, 16 * 100);
    static const int64_t expect[3][5] = {
        {62, 38, 72, 69, 33}, {84, 56, 23, 13, 31}, {19, 27, 26, 18, 39}};
    int64_t out[PATTERN_DRAWS];
    for (int i = 0; i < 3; i++) {
        assert_int_equal(pattern_draw(&p, i, 7 * i, out), 5);
        for (int n = 0; n < 5; n++)
            assert_int_equal(out[n], expect[i][n]);
    }
}

static void draws_are_distinct_and_allowed(void **state) {
    (void)state;
    int64_t out[PATTERN_DRAWS];
    for (int nb = 1; nb < 40; nb++) {
        Pattern p = pattern("orig-bigbird:random=3", 16, 16 * nb, 16 * nb);
        Pattern d =
            pattern("ds-bigbird:random=64,causal=1", 16, 16 * nb, 16 * nb);
        for (int a = 0; a < nb; a++) {
            int n = pattern_draw(&p, 2, a, out);
            assert_true(nb <= 11 || n == (a && a < nb - 1 ? 3 : 0));
            for (int i = 0; i < n; i++) {
                assert_true(out[i] > 0 && out[i] < nb - 1);
                assert_true(llabs(out[i] - a) > 1);
                for (int k = 0; k < i; k++)
                    assert_true(out[i] != out[k]);
            }
            assert_int_equal(pattern_draw(&d, 0, a, out), a + 1);
        }
    }
}

/* Every block comes up about as often: 4096 rows draw 2 of 16. */
static void draws_are_even(void **state) {
    (void)state;
    Pattern p = pattern("ds-bigbird:random=2,seed=9", 16, 256, 256);
    int64_t out[PATTERN_DRAWS];
    int count[16] = {0};
    for (int h = 0; h < 256; h++)
        for (int a = 0; a < 16; a++)
            for (int i = pattern_draw(&p, h, a, out); i-- > 0;)
                count[out[i]]++;
    for (int e = 0; e < 16; e++)
        assert_true(count[e] > 512 - 100 && count[e] < 512 + 100);
}

/* ---- lists given ------------------------------------------------------- */

static Err listed_fault(const int32_t *indptr, const int32_t *index,
                        int64_t indices, int64_t heads) {
    Pattern p;
    Err e = {0};
    assert_int_equal(pattern_parse("bsr", 16, &p, &e), 0);
    p.indptr = indptr;
    p.index = index;
    p.indices = indices;
    p.bsr_heads = heads;
    pattern_size(&p, 48, 64, &e); /* 3 x 4 blocks */
    return e;
}

static void given_lists_are_sorted_or_refused(void **state) {
    (void)state;
    const int32_t good[] = {0, 2, 2, 3, 3, 4, 5, 5};
    const int32_t blocks[] = {3, 0, 1, 2, 0};
    Pattern p;
    Err e = {0};
    assert_int_equal(listed_fault(good, blocks, 5, 1).code, 0);
    assert_int_equal(listed_fault(good, blocks, 5, 2).code, 0);
    assert_int_equal(pattern_parse("bsr", 16, &p, &e), 0);
    p.indptr = good;
    p.index = blocks;
    p.indices = 5;
    p.bsr_heads = 2;
    assert_int_equal(pattern_size(&p, 48, 64, &e), 0);
    BlockList x = list(&p, 2), y = list(&p, 1);
    Str text = {0};
    pattern_text(&x, "011", &text);
    assert_string_equal(text.text, "1001\n0000\n0100\n");
    str_free(&text);
    pattern_text(&y, "011", &text);
    assert_string_equal(text.text, "0010\n1000\n0000\n");
    str_free(&text);
    blocks_free(&x);
    blocks_free(&y);
    const int32_t twice[] = {1, 1, 0, 0}, far[] = {0, 4, 0},
                  fall[] = {0, 2, 1, 1};
    e = listed_fault((int32_t[]){0, 2, 2, 2}, twice, 4, 1);
    assert_string_equal(e.text, "sparsity: bsr: row 0 names block 1 twice; "
                                "nearest: once");
    e = listed_fault((int32_t[]){0, 1, 2, 2}, far, 3, 1);
    assert_string_equal(e.text, "sparsity: bsr: indices[1] is 4; accepted "
                                "0..3");
    e = listed_fault(fall, far, 3, 1);
    assert_string_equal(e.text, "sparsity: bsr: indptr falls at 1; it must "
                                "rise from row to row");
    e = listed_fault((int32_t[]){0, 1, 2, 9}, far, 3, 1);
    assert_string_equal(e.text, "sparsity: bsr: indptr ends at 9, but there "
                                "are 3 indices");
    assert_string_equal(listed_fault(NULL, NULL, 0, 1).text,
                        "sparsity: bsr: no lists given");
}

/* ---- pictures ---------------------------------------------------------- */

static void pictures_show_the_blocks(void **state) {
    (void)state;
    Pattern p = pattern("fixed:stride=2", 16, 80, 80);
    BlockList x = list(&p, 0);
    Str text = {0};
    pattern_text(&x, ".+#", &text);
    assert_string_equal(text.text, "+....\n"
                                   "#+...\n"
                                   ".#+..\n"
                                   ".##+.\n"
                                   ".#.#+\n");
    str_free(&text);
    pattern_svg(&x, 320, &text);
    assert_non_null(strstr(text.text, "viewBox=\"0 0 5 5\""));
    assert_non_null(strstr(text.text, "M1 3h2v1h-2z"));
    assert_non_null(strstr(text.text, "44.00 %"));
    str_free(&text);
    blocks_free(&x);
}

/* 64k tokens in blocks of 16 are 4096 x 4096 blocks; a list is not. */
static void long_lists_stay_short(void **state) {
    (void)state;
    Pattern p = pattern("longformer", 16, 65536, 65536);
    BlockList x = list(&p, 0);
    assert_int_equal(x.full_at[4096] + x.part_at[4096],
                     4096 * 4 - 2 - 1 + 4096 - 3);
    blocks_free(&x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_hold_what_every_pair_says),
        cmocka_unit_test(programs_say_what_patterns_say),
        cmocka_unit_test(programs_decide_blocks),
        cmocka_unit_test(draws_are_the_same_everywhere),
        cmocka_unit_test(draws_are_distinct_and_allowed),
        cmocka_unit_test(draws_are_even),
        cmocka_unit_test(given_lists_are_sorted_or_refused),
        cmocka_unit_test(pictures_show_the_blocks),
        cmocka_unit_test(long_lists_stay_short),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
