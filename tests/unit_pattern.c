/* SPDX-License-Identifier: Apache-2.0
 * Block-sparse patterns: published layouts and identities; text, and what is
 * refused. */
#include "pattern_util.h"

/* ---- published layouts ------------------------------------------------- */

/* One byte a block row, bit e: block e is kept. */
static void expect_layout(const char *text, int nb, const char *bytes) {
    Pattern p = pattern(text, 16, 16 * nb, 16 * nb);
    Str found = {0};
    for (int a = 0; a < nb; a++) {
        unsigned row = 0;
        for (int e = 0; e < nb; e++)
            row |= (unsigned)pattern_keep(&p, 0, a, e) << e;
        str_addf(&found, a ? " %02x" : "%02x", row);
    }
    if (strcmp(found.text, bytes))
        fail_msg("%s: %s, not %s", text, found.text, bytes);
    str_free(&found);
}

static void layouts_are_the_published_ones(void **state) {
    (void)state;
    expect_layout("longformer", 8, "ff 07 0f 1d 39 71 e1 c1");
    expect_layout("ds-longformer:causal=1", 8, "01 03 07 0d 19 31 61 c1");
    expect_layout("orig-bigbird:random=0", 8, "ff 87 8f 9d b9 f1 e1 ff");
    expect_layout("fixed:stride=4", 8, "01 03 07 0f 18 38 78 f8");
    expect_layout("ds-fixed:causal=1", 8, "01 03 07 0f 18 38 78 f8");
    expect_layout("ds-fixed", 8, "8f 8f 8f 8f f8 f8 f8 f8");
    expect_layout("ds-fixed:stride=3", 8, "a7 a7 a7 bc bc bc e4 e4");
    expect_layout("butterfly:1", 8, "03 03 0c 0c 30 30 c0 c0");
    expect_layout("butterfly:m=2", 8, "07 0b 0d 0e 70 b0 d0 e0");
    expect_layout("butterfly", 8, "17 2b 4d 8e 71 b2 d4 e8");
    expect_layout("butterfly:3,causal=1", 8, "01 03 05 0e 11 32 54 e8");
    expect_layout("butterfly:2", 6, "1f 1f 27 3b 3b 3c");
    expect_layout("ds-bigbird:random=0", 8, "ff 07 0f 1d 39 71 e1 c1");
}

/* OpenAI's local blocks with windows of 2: a band of single elements. */
static void local_blocks_are_the_published_ones(void **state) {
    (void)state;
    Pattern p = pattern("local-lucid:w=1,back=32,causal=1", 0, 128, 128);
    static const unsigned rows[] = {0x01, 0x03, 0x07, 0x0e,
                                    0x1c, 0x38, 0x70, 0xe0};
    p.block = 16; /* their blocks */
    p.nbq = p.nbk = 8;
    for (int a = 0; a < 8; a++) {
        unsigned row = 0;
        for (int e = 0; e < 8; e++)
            row |= (unsigned)pattern_keep(&p, 0, a, e) << e;
        assert_int_equal(row, rows[a]);
    }
}

static void densities_are_known(void **state) {
    (void)state;
    static const struct {
        int nb;
        double density;
    } rows[] = {
        {8, .5}, {16, 5 / 16.}, {32, 6 / 32.}, {64, 7 / 64.}, {128, 8 / 128.}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        Pattern p = pattern("butterfly", 64, 64 * rows[i].nb, 64 * rows[i].nb);
        BlockList x = list(&p, 0);
        assert_true(blocks_density(&x) == rows[i].density);
        blocks_free(&x);
    }
    Pattern p = pattern("butterfly:3", 32, 1024, 1024); /* 1/8 of 32 blocks */
    BlockList x = list(&p, 0);
    assert_true(blocks_density(&x) == 1 / 8.);
    blocks_free(&x);
    /* l' + floor(nb / l') g minus the overlap g, where l' divides nb */
    p = pattern("ds-fixed:stride=4,global=2", 16, 16 * 32, 16 * 32);
    x = list(&p, 3);
    assert_int_equal(x.full_at[32], 32 * (4 + 8 * 2 - 2));
    blocks_free(&x);
}

/* local-ft: exactly c keys of a row inside, (c + 1) / 2 of row 0. */
static void local_rows_have_c_keys(void **state) {
    (void)state;
    for (int c = 1; c < 40; c += 3) {
        char text[32];
        snprintf(text, sizeof text, "local:%d", c);
        Pattern p = pattern(text, 0, 100, 100);
        for (int i = 0; i < 100; i += 50) {
            int n = 0;
            for (int j = 0; j < 100; j++)
                n += pattern_visible(&p, 0, i, j);
            assert_int_equal(n, i ? c : (c + 1) / 2);
        }
    }
}

/* Row sums, symmetry and diagonal of the butterfly. */
static void butterflies_are_symmetric(void **state) {
    (void)state;
    Pattern p = pattern("butterfly:3", 16, 256, 256);
    for (int a = 0; a < 16; a++) {
        int n = 0;
        for (int e = 0; e < 16; e++) {
            n += pattern_keep(&p, 0, a, e);
            assert_int_equal(pattern_keep(&p, 0, a, e),
                             pattern_keep(&p, 0, e, a));
        }
        assert_int_equal(n, 4);
        assert_true(pattern_keep(&p, 0, a, a));
    }
}

/* strided is causal block-diagonal after i -> (i % l) (N / l) + i / l. */
static void strided_is_a_transposed_diagonal(void **state) {
    (void)state;
    enum { N = 96, L = 8 };
    Pattern p = pattern("strided:8", 0, N, N);
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < N; j++) {
            int x = i % L * (N / L) + i / L, y = j % L * (N / L) + j / L;
            bool diagonal = x / (N / L) == y / (N / L) && y <= x;
            assert_int_equal(pattern_visible(&p, 0, i, j), diagonal);
        }
    }
}

static void whole_patterns_are_dense(void **state) {
    (void)state;
    static const char *const texts[] = {
        "ds-longformer:window=15", "ds-bigbird:random=8", "ds-fixed:stride=8",
        "ds-bigbird:window=15",    "local-lucid:w=128",   "local-lucid:w=64",
        "ds-longformer:global=8",  "orig-longformer:127", "strided:1"};
    for (size_t t = 0; t < sizeof texts / sizeof *texts; t++) {
        Pattern p = pattern(texts[t], 0, 128, 128);
        bool causal = p.kind == PATTERN_STRIDED;
        p.block = 16;
        p.nbq = p.nbk = 8;
        for (int i = 0; i < 128; i++)
            for (int j = 0; j < 128; j++)
                if (pattern_visible(&p, 1, i, j) != (!causal || j <= i))
                    fail_msg("%s: %d %d", texts[t], i, j);
    }
}

/* ---- text -------------------------------------------------------------- */

static void expect_fault(const char *text, int64_t block, int64_t n,
                         const char *message) {
    Pattern p;
    Err e = {0};
    if (!pattern_parse(text, block, &p, &e))
        pattern_size(&p, n, n, &e);
    assert_int_equal(e.code, ERR_REQUEST);
    assert_string_equal(e.text, message);
}

static void faults_name_what_is_nearest(void **state) {
    (void)state;
    expect_fault("longfromer", 0, 64,
                 "sparsity: unknown pattern 'longfromer'; nearest: longformer");
    expect_fault("longformer:windw=3", 0, 64,
                 "sparsity: ds-longformer: unknown argument 'windw'; nearest: "
                 "window");
    expect_fault("longformer:window=0", 0, 64,
                 "sparsity: ds-longformer: window: 0 is out of range; accepted "
                 "1..16777216, nearest 1");
    expect_fault("butterfly:x", 0, 64,
                 "sparsity: butterfly: m: 'x' is not a number; accepted: "
                 "0..30");
    expect_fault("butterfly:5", 16, 256,
                 "sparsity: butterfly: m=5, but 16 blocks have 4 factors; "
                 "nearest m=4, or 0 for all");
    expect_fault("butterfly", 40, 256,
                 "sparsity: block: 40 is not a multiple of 16 from 16 to 256; "
                 "nearest 48");
    expect_fault("butterfly", 512, 256,
                 "sparsity: block: 512 is not a multiple of 16 from 16 to "
                 "256; nearest 256");
    expect_fault("strided", 64, 256,
                 "sparsity: strided: is element-wise and has no block size; "
                 "nearest: leave it out");
    expect_fault("fixed:stride=4,vert=2,verts=3", 0, 256,
                 "sparsity: fixed: 3 groups of 2 columns do not fit a window "
                 "of 4 blocks; nearest verts=2");
    expect_fault("bsr:3", 0, 64, "sparsity: bsr: takes no arguments");
    expect_fault("butterfly", 16, 16 * 50000,
                 "sparsity: butterfly: 50000 blocks; at most 46340; nearest: "
                 "larger blocks");
    Pattern p;
    Err e = {0};
    assert_int_equal(pattern_parse("orig-bigbird", 16, &p, &e), 0);
    assert_int_equal(pattern_size(&p, 64, 65, &e), ERR_REQUEST);
}

static void canonical_text_reads_back(void **state) {
    (void)state;
    Pattern p = pattern("butterfly:3", 32, 1024, 1024);
    Str text = {0};
    pattern_print(&p, &text);
    assert_string_equal(text.text, "butterfly:m=3,global=0,causal=0 block=32");
    str_free(&text);
    uint64_t seed = 43;
    for (int i = 0; i < PATTERNS * 4; i++) {
        Made m = random_pattern(&seed, i);
        Pattern one, two;
        Err e = {0};
        Str a = {0}, b = {0};
        assert_int_equal(pattern_parse(m.text, 0, &one, &e), 0);
        pattern_print(&one, &a);
        *strchrnul(a.text, ' ') = 0;
        assert_int_equal(pattern_parse(a.text, 0, &two, &e), 0);
        assert_memory_equal(&one.a, &two.a, sizeof one.a);
        pattern_print(&two, &b);
        *strchrnul(b.text, ' ') = 0;
        assert_string_equal(a.text, b.text);
        str_free(&a);
        str_free(&b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layouts_are_the_published_ones),
        cmocka_unit_test(local_blocks_are_the_published_ones),
        cmocka_unit_test(densities_are_known),
        cmocka_unit_test(local_rows_have_c_keys),
        cmocka_unit_test(butterflies_are_symmetric),
        cmocka_unit_test(strided_is_a_transposed_diagonal),
        cmocka_unit_test(whole_patterns_are_dense),
        cmocka_unit_test(faults_name_what_is_nearest),
        cmocka_unit_test(canonical_text_reads_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
