/* SPDX-License-Identifier: Apache-2.0
 * What is proven of a program over a tile: every value lies in its range,
 * verdicts and loop bounds agree with looking at every pair. */
#include "program_box.h"

/* ---- ranges ------------------------------------------------------------ */

static void expect_inside(const Program *p, const ProgramEnv *env,
                          const Range *range, const char *text) {
    static double value[PROGRAM_NODES];
    program_eval(p, env, p->root, value);
    for (int i = 0; i <= p->root; i++) {
        bool inside = value[i] != value[i]
                          ? range[i].nan
                          : range[i].lo <= value[i] && value[i] <= range[i].hi;
        if (!inside)
            fail_msg("%s\nnode %d (%s): %g not in [%g, %g] at q %g k %g", text,
                     i, program_ops[p->node[i].op].spelling, value[i],
                     range[i].lo, range[i].hi, env->operand[OPERAND_q],
                     env->operand[OPERAND_k]);
    }
}

typedef struct Inside {
    const Program *p;
    const Range *range;
    const char *text;
    uint64_t *seed;
} Inside;

static void check_inside(void *user, ProgramEnv *env) {
    const Inside *x = user;
    env->operand[OPERAND_s] = below(x->seed, 49) / 8.0 - 3;
    env->narrow = below(x->seed, 2);
    expect_inside(x->p, env, x->range, x->text);
}

static void every_value_lies_in_its_range(void **state) {
    (void)state;
    static Data data;
    static Range range[PROGRAM_NODES];
    uint64_t seed = 11;
    data_fill(&data, &seed);
    for (int i = 0; i < 1500; i++) {
        char *text = random_text(&seed, i % 2, 1 + i % 5);
        Program p = program(text, i % 2);
        for (int j = 0; j < 4; j++) {
            Box box = random_box(&seed);
            ProgramTile tile = tile_of(&box, &data);
            if (j == 3)
                tile.read = NULL;
            program_ranges(&p, &tile, p.root, range);
            visit(&box, &data, check_inside, &(Inside){&p, range, text, &seed});
        }
        free(text);
        program_free(&p);
    }
}

/* Ranges of x[0] and x[1]: the first and the last two numbers. */
static bool read_pair(void *user, int tensor, int rank, const Range *index,
                      Range *out) {
    const int32_t *x = (const int32_t *)user + 2 * (index[0].lo > 0);
    (void)tensor;
    (void)rank;
    *out = (Range){x[0], x[1], false, false};
    return true;
}

/* Values of single operations at the ends of int32 and f32. */
static void operations_hold_at_the_ends(void **state) {
    (void)state;
    static const char *const ops[] = {"x[0] + x[1]",
                                      "x[0] - x[1]",
                                      "x[0] * x[1]",
                                      "x[0] / x[1]",
                                      "x[0] % x[1]",
                                      "x[0] << x[1]",
                                      "x[0] >> x[1]",
                                      "x[0] & x[1]",
                                      "x[0] | x[1]",
                                      "x[0] ^ x[1]",
                                      "-x[0]",
                                      "~x[0]",
                                      "abs(x[0])",
                                      "min(x[0], x[1])",
                                      "max(x[0], x[1])",
                                      "x[0] * x[0]",
                                      "float(x[0]) * x[1]",
                                      "int(exp(x[0] / 1e8))",
                                      "x[0] & 15",
                                      "x[0] % 16",
                                      "x[0] / 16",
                                      "x[0] % -3",
                                      "x[0] << 3",
                                      "x[0] >> 2"};
    static const int32_t ends[] = {
        INT32_MIN, INT32_MIN + 1, -65536,   -33, -1, 0, 1, 2, 15, 16, 31, 32,
        46341,     INT32_MAX - 1, INT32_MAX};
    enum { ENDS = sizeof ends / sizeof *ends };
    int32_t x[2];
    const ProgramArray array = {x, ARRAY_I32, {2}, {1}};
    ProgramEnv env = {.array = &array};
    for (size_t o = 0; o < sizeof ops / sizeof *ops; o++) {
        Str text = {0};
        str_addf(&text, "i32 x[:]; %s", ops[o]);
        Program p = program(text.text, PROGRAM_SCORE);
        static Range range[64];
        for (int i = 0; i < ENDS * ENDS * 2; i++) {
            /* a range of two neighbours in the list, a single other value */
            int a = i / 2 / ENDS, c = i / 2 % ENDS, wide = i % 2 && a;
            int32_t two[4] = {ends[a - wide], ends[a], ends[c], ends[c]};
            ProgramTile tile = program_everywhere();
            tile.read = read_pair;
            tile.user = two;
            program_ranges(&p, &tile, p.root, range);
            for (int which = 0; which <= wide; which++) {
                x[0] = two[1 - which];
                x[1] = two[2];
                expect_inside(&p, &env, range, ops[o]);
            }
        }
        str_free(&text);
        program_free(&p);
    }
}

/* ---- verdicts ---------------------------------------------------------- */

static void verdicts_are_never_wrong(void **state) {
    (void)state;
    static Data data;
    static Range range[PROGRAM_NODES];
    uint64_t seed = 12;
    int decided = 0;
    data_fill(&data, &seed);
    for (int i = 0; i < 1500; i++) {
        char *text = random_text(&seed, PROGRAM_MASK, 1 + i % 4);
        Program p = program(text, PROGRAM_MASK);
        for (int j = 0; j < 4; j++) {
            Box box = random_box(&seed);
            ProgramTile tile = tile_of(&box, &data);
            int verdict = program_verdict(&p, &tile, range);
            Count c = {&p, 0, 0};
            visit(&box, &data, count, &c);
            if ((verdict == VERDICT_FULL && c.seen < c.all) ||
                (verdict == VERDICT_EMPTY && c.seen))
                fail_msg("%s: verdict %d, %d of %d", text, verdict, c.seen,
                         c.all);
            decided += verdict != VERDICT_PARTIAL;
        }
        free(text);
        program_free(&p);
    }
    assert_true(decided > 2000); /* of 6000 */
}

/* Every 4 x 4 tile of a 16 x 16 head gets the verdict that looking at all its
 * pairs gives; so many are full and partial. */
static void expect_sharp(const char *text, int full, int partial) {
    static Data data;
    static Range range[PROGRAM_NODES];
    uint64_t seed = 1;
    data_fill(&data, &seed);
    for (int i = 0; i < MANY_K; i++) /* documents of 5 tokens */
        data.doc[i] = i / 5;
    char whole[256];
    snprintf(whole, sizeof whole, "i32 doc[:,:]; %s", text);
    Program p = program(whole, PROGRAM_MASK);
    int found[3] = {0};
    for (int tile = 0; tile < 16; tile++) {
        int q = tile / 4 * 4, k = tile % 4 * 4;
        Box box = {{0, 0}, {1, 1}, {q, q + 3}, {k, k + 3}};
        ProgramTile t = tile_of(&box, &data);
        Count c = {&p, 0, 0};
        int verdict = program_verdict(&p, &t, range);
        visit(&box, &data, count, &c);
        if (verdict != (c.seen == c.all ? VERDICT_FULL
                        : c.seen        ? VERDICT_PARTIAL
                                        : VERDICT_EMPTY))
            fail_msg("%s: q %d k %d: verdict %d, %d of %d", text, q, k, verdict,
                     c.seen, c.all);
        found[verdict]++;
    }
    if (found[VERDICT_FULL] != full || found[VERDICT_PARTIAL] != partial)
        fail_msg("%s: %d full, %d partial", text, found[VERDICT_FULL],
                 found[VERDICT_PARTIAL]);
    program_free(&p);
}

static void masks_people_write_are_decided_sharply(void **state) {
    (void)state;
    expect_sharp("k <= q", 6, 4);
    expect_sharp("k <= q && q - k < 8", 3, 6);
    expect_sharp("abs(q - k) <= 7", 10, 4);
    expect_sharp("q / 4 == k / 4", 4, 0);
    expect_sharp("q / 8 == k / 8 && k <= q", 2, 4);
    expect_sharp("k % 8 < 4", 8, 0);
    expect_sharp("(k & 7) < 4 || k <= q", 10, 2);
    expect_sharp("k < 4 || k <= q", 7, 3);
    expect_sharp("doc[b, q] == doc[b, k]", 1, 9);
    expect_sharp("float(k) <= 0.5 * q", 2, 4);
    expect_sharp("select(k < 8, true, k <= q)", 9, 2);
    expect_sharp("(q - 3) * (q - 3) < 26 && k >= 0", 8, 4);
    expect_sharp("true", 16, 0);
    expect_sharp("q < 0", 0, 0);
}

/* ---- loop bounds ------------------------------------------------------- */

/* First and last + 1 of the keys that some, and that all, of the queries see;
 * whether they are without a gap. */
typedef struct Keys {
    int64_t some[2], all[2];
    bool some_whole;
} Keys;

static Keys keys_of(const Program *p, const Data *data, const Box *box) {
    Keys x = {{0, 0}, {0, 0}, true};
    int nsome = 0;
    for (int k = 0; k < MANY_K; k++) {
        int seen = 0;
        for (int q = box->q[0]; q <= box->q[1]; q++) {
            ProgramEnv env = env_at(data, box->b[0], box->h[0], q, k);
            seen += value_at(p, &env) != 0;
        }
        if (seen) {
            x.some[0] = nsome ? x.some[0] : k;
            x.some[1] = k + 1;
            nsome++;
        }
        if (seen == box->q[1] - box->q[0] + 1) {
            x.all[0] = x.all[1] ? x.all[0] : k;
            x.all[1] = k + 1;
        }
    }
    return x;
}

static void expect_bounds(const Program *p, const Data *data, const Box *box,
                          const char *text, int *exact) {
    static double value[PROGRAM_NODES];
    ProgramBounds x;
    int64_t some[2], all[2];
    assert_true(program_bounds(p, &x));
    ProgramEnv env = env_at(data, box->b[0], box->h[0], 0, 0);
    program_eval(p, &env, p->root, value);
    bounds_some(&x, value, box->q[0], box->q[1], MANY_K, &some[0], &some[1]);
    bounds_all(&x, value, box->q[0], box->q[1], MANY_K, &all[0], &all[1]);
    Keys keys = keys_of(p, data, box);
    bool one = x.exact && box->q[0] == box->q[1];
    bool same = one ? keys.some[0] == some[0] && keys.some[1] == some[1]
                    : keys.some[0] == keys.some[1] ||
                          (some[0] <= keys.some[0] && keys.some[1] <= some[1]);
    if (one && keys.some[0] == keys.some[1])
        same = some[0] == some[1];
    if (!same)
        fail_msg("%s: q %d..%d some keys %d..%d not in %d..%d", text, box->q[0],
                 box->q[1], (int)keys.some[0], (int)keys.some[1], (int)some[0],
                 (int)some[1]);
    if (x.exact && x.nway == 1) {
        *exact += 1;
        if (all[1] - all[0] != keys.all[1] - keys.all[0] ||
            (all[0] != all[1] && all[0] != keys.all[0]))
            fail_msg("%s: q %d..%d all keys %d..%d not %d..%d", text, box->q[0],
                     box->q[1], (int)keys.all[0], (int)keys.all[1], (int)all[0],
                     (int)all[1]);
    }
}

static void loop_bounds_agree_with_every_pair(void **state) {
    (void)state;
    static Data data;
    uint64_t seed = 13;
    int exact = 0;
    data_fill(&data, &seed);
    for (int i = 0; i < 2000; i++) {
        Str text = {0};
        str_addf(&text, "i32 doc[:,:]; i32 len[:]; ");
        random_lines(&seed, i % 4, &text);
        Program p = program(text.text, PROGRAM_MASK);
        for (int j = 0; j < 4; j++) {
            Box box = random_box(&seed);
            if (j % 2)
                box.q[1] = box.q[0];
            expect_bounds(&p, &data, &box, text.text, &exact);
        }
        str_free(&text);
        program_free(&p);
    }
    assert_true(exact > 2500); /* of 8000 */
}

static void any_mask_has_sound_bounds(void **state) {
    (void)state;
    static Data data;
    uint64_t seed = 14;
    int exact = 0;
    data_fill(&data, &seed);
    for (int i = 0; i < 800; i++) {
        char *text = random_text(&seed, PROGRAM_MASK, 1 + i % 4);
        Program p = program(text, PROGRAM_MASK);
        Box box = random_box(&seed);
        expect_bounds(&p, &data, &box, text, &exact);
        free(text);
        program_free(&p);
    }
}

static bool is_exact(const char *text, int ways, int facts) {
    Program p = program(text, PROGRAM_MASK);
    ProgramBounds x;
    assert_true(program_bounds(&p, &x));
    program_free(&p);
    return x.exact && x.nway == ways && x.nfact[0] == facts;
}

static void built_in_masks_are_bounds_alone(void **state) {
    (void)state;
    assert_true(is_exact("k <= q + off", 1, 1));
    assert_true(is_exact("i32 w; q + off - w <= k && k <= q + off + 5", 1, 2));
    assert_true(is_exact("i32 w; q + off - k <= w", 1, 1));
    assert_true(is_exact("i32 n; k < n || k <= q + off", 2, 1));
    assert_true(is_exact("i32 len[:]; k < len[b] && k <= q", 1, 2));
    assert_true(is_exact("abs(q - k) <= 64", 1, 2));
    assert_true(is_exact("k < min(nk, q + 1)", 1, 2));
    assert_true(is_exact("true", 1, 0));
    assert_false(is_exact("k % 2 == 0 && k <= q", 1, 1));
    assert_false(is_exact("q != k", 1, 0));
    /* 16 * 2^28 leaves int32: what wraps is no line. */
    assert_false(is_exact("16 * k <= q", 1, 1));
}

/* q + w wraps if w is far off; then the fact is not used. */
static void facts_apply_to_near_numbers_alone(void **state) {
    (void)state;
    int32_t w = 3;
    const ProgramArray array = {&w, ARRAY_I32, {1}, {1}};
    ProgramEnv env = {.array = &array};
    Program p = program("i32 w; k <= q + w", PROGRAM_MASK);
    ProgramBounds x;
    static double value[64];
    int64_t lo, hi;
    assert_true(program_bounds(&p, &x) && x.exact);
    program_eval(&p, &env, p.root, value);
    bounds_some(&x, value, 10, 20, 100, &lo, &hi);
    assert_true(lo == 0 && hi == 24);
    bounds_all(&x, value, 10, 20, 100, &lo, &hi);
    assert_true(lo == 0 && hi == 14);
    w = INT32_MAX - 5;
    program_eval(&p, &env, p.root, value);
    bounds_some(&x, value, 10, 20, 100, &lo, &hi);
    assert_true(lo == 0 && hi == 100);
    bounds_all(&x, value, 10, 20, 100, &lo, &hi);
    assert_true(lo == hi);
    program_free(&p);
}

/* A long chain neither overflows the stack nor loses what it says first. */
static void long_chains_keep_what_fits(void **state) {
    (void)state;
    Str ands = {0}, ors = {0};
    for (int i = 0; i < 120; i++) {
        str_addf(&ands, "%sk <= q + %d", i ? " && " : "", i);
        str_addf(&ors, "%sk == q + %d", i ? " || " : "", i);
    }
    Program p = program(ands.text, PROGRAM_MASK);
    Program r = program(ors.text, PROGRAM_MASK);
    ProgramBounds x;
    assert_true(program_bounds(&p, &x));
    assert_int_equal(x.nfact[0], AFFINE_FACTS);
    assert_false(x.exact);
    assert_true(program_bounds(&r, &x));
    assert_false(x.exact);
    str_free(&ands);
    str_free(&ors);
    program_free(&p);
    program_free(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_value_lies_in_its_range),
        cmocka_unit_test(operations_hold_at_the_ends),
        cmocka_unit_test(verdicts_are_never_wrong),
        cmocka_unit_test(masks_people_write_are_decided_sharply),
        cmocka_unit_test(loop_bounds_agree_with_every_pair),
        cmocka_unit_test(any_mask_has_sound_bounds),
        cmocka_unit_test(built_in_masks_are_bounds_alone),
        cmocka_unit_test(facts_apply_to_near_numbers_alone),
        cmocka_unit_test(long_chains_keep_what_fits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
