/* SPDX-License-Identifier: Apache-2.0
 * Dropout: the definition against published vectors and the documented ones,
 * and the statistics of what it keeps. */
#include <math.h>

#include "case.h"
#include "dropout.h"

/* ---- the definition ---------------------------------------------------- */

/* Known answers of Random123, the authors' own library: kat_vectors there
 * holds philox4x32 at 7 and at 10 rounds. */
static void philox_gives_the_published_numbers(void **state) {
    (void)state;
    static const struct {
        int rounds;
        uint32_t in[4];
        uint64_t key;
        uint32_t out[4];
    } kat[] = {
        {7, {0}, 0, {0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48}},
        {7,
         {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         UINT64_MAX,
         {0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662}},
        {7,
         {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         0x299f31d0a4093822u,
         {0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a}},
        {10, {0}, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {10,
         {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         UINT64_MAX,
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {10,
         {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         0x299f31d0a4093822u,
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof kat / sizeof *kat; i++) {
        uint32_t x[4];
        memcpy(x, kat[i].in, sizeof x);
        philox(x, kat[i].key, kat[i].rounds);
        assert_memory_equal(x, kat[i].out, sizeof x);
    }
}

/* One number, straight from the sentence of docs/numerics.md. */
static uint32_t number_of(const Dropout *d, int64_t b, int64_t h, int64_t i,
                          int64_t j) {
    uint32_t g = i % 8, c = j % 8 / 2, t = 4 * g + c;
    uint32_t e = (uint32_t)(j % 2 + 2 * (i % 16 / 8) + 4 * (j % 16 / 8));
    uint32_t x[4] = {(uint32_t)(j / 16) * 32 + t, (uint32_t)(i / 16),
                     d->first + (uint32_t)b * d->heads + (uint32_t)h,
                     d->offset};
    philox(x, d->seed, 7);
    return x[e / 2] >> (e % 2 ? 16 : 0) & 0xffff;
}

static void a_row_of_numbers_is_the_sentence(void **state) {
    (void)state;
    for (int n = 0; n < 200; n++) {
        Dropout d = {.seed = random_bits(),
                     .offset = (uint32_t)random_bits(),
                     .first = (uint32_t)random_int(0, 1 << 20),
                     .heads = (uint32_t)random_int(1, 300)};
        int64_t b = random_int(0, 9), h = random_int(0, 9);
        int64_t i = random_int(0, 1 << 29), patch = random_int(0, 1 << 26);
        uint16_t row[DROPOUT_PATCH];
        dropout_numbers(&d, b, h, i, patch, row);
        for (int k = 0; k < DROPOUT_PATCH; k++)
            assert_int_equal(row[k], number_of(&d, b, h, i, 16 * patch + k));
    }
}

/* The table of docs/numerics.md: seed, offset, head, i, the numbers of keys
 * 0..3 and 8. */
static void the_documented_vectors_hold(void **state) {
    (void)state;
    static const struct {
        uint64_t seed;
        uint32_t offset, head;
        int64_t i, patch;
        uint16_t k0, k1, k2, k3, k8;
    } rows[] = {
        {0, 0, 0, 0, 0, 0xb709, 0x5f6f, 0x586e, 0x983a, 0x1f81},
        {0, 0, 0, 9, 0, 0xe254, 0xea73, 0x1556, 0x7aba, 0x6c8c},
        {1, 0, 0, 0, 0, 0xb57b, 0xf422, 0x57c3, 0x6b32, 0xd0f2},
        {0x123456789abcdef0, 42, 7, 100, 3, 0xa5c5, 0xc1d5, 0x7e24, 0x782f,
         0x6a6d},
        {UINT64_MAX, UINT32_MAX, UINT32_MAX, (1 << 30) - 1, (1 << 26) - 1,
         0x2b33, 0x9f8e, 0x1d10, 0x5835, 0x0ec9},
    };
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
        Dropout d = {.seed = rows[n].seed,
                     .offset = rows[n].offset,
                     .first = rows[n].head};
        uint16_t x[DROPOUT_PATCH];
        dropout_numbers(&d, 0, 0, rows[n].i, rows[n].patch, x);
        const uint16_t want[] = {rows[n].k0, rows[n].k1, rows[n].k2, rows[n].k3,
                                 rows[n].k8};
        assert_memory_equal(x, want, 8);
        assert_int_equal(x[8], want[4]);
    }
}

/* ---- what is kept ------------------------------------------------------ */

enum { SIDE = 1024 };

/* The kept set of SIDE x SIDE positions, one byte each. */
static uint8_t *kept_set(const Dropout *d, int64_t b, int64_t h) {
    uint8_t *kept = malloc((size_t)SIDE * SIDE);
    uint16_t x[DROPOUT_PATCH];
    assert_non_null(kept);
    for (int64_t i = 0; i < SIDE; i++)
        for (int64_t j = 0; j < SIDE; j++) {
            if (j % DROPOUT_PATCH == 0)
                dropout_numbers(d, b, h, i, j / DROPOUT_PATCH, x);
            kept[i * SIDE + j] = x[j % DROPOUT_PATCH] >= d->threshold;
        }
    return kept;
}

/* Of n draws, `hits` came out; each should with `chance`. 5 sigmas: one in
 * 1.7 million, and the seeds are fixed. */
static void expect_share(const char *what, double hits, double n,
                         double chance) {
    double sigma = sqrt(chance * (1 - chance) / n);
    if (fabs(hits / n - chance) > 5 * sigma)
        fail_msg("%s: %.6f, wanted %.6f +- %.6f", what, hits / n, chance,
                 5 * sigma);
}

static double count(const uint8_t *kept) {
    double n = 0;
    for (int64_t i = 0; i < (int64_t)SIDE * SIDE; i++)
        n += kept[i];
    return n;
}

/* Places where x and y, y moved by (di, dj), agree. */
static double agreements(const uint8_t *x, const uint8_t *y, int di, int dj) {
    double n = 0;
    for (int64_t i = 0; i + di < SIDE; i++)
        for (int64_t j = 0; j + dj < SIDE; j++)
            n += x[i * SIDE + j] == y[(i + di) * SIDE + j + dj];
    return n;
}

static const double rates[] = {0.1, 0.25, 0.5, 0.9};

static void the_kept_share_is_one_less_p(void **state) {
    (void)state;
    for (int n = 0; n < 4; n++) {
        Dropout d = {.seed = 1234567 + (uint64_t)n,
                     .heads = 8,
                     .threshold = dropout_threshold(rates[n])};
        uint8_t *kept = kept_set(&d, 0, 3);
        expect_share("kept", count(kept), (double)SIDE * SIDE,
                     1 - d.threshold / 65536.0);
        double grown = count(kept) * (double)dropout_scale(d.threshold);
        expect_share("mean weight", grown * (1 - d.threshold / 65536.0),
                     (double)SIDE * SIDE, 1 - d.threshold / 65536.0);
        free(kept);
    }
}

/* Neighbours within a patch, across patches and a period of it apart. */
static void positions_are_independent(void **state) {
    (void)state;
    static const int moves[][2] = {{0, 1}, {0, 2}, {0, 8},  {0, 16}, {1, 0},
                                   {8, 0}, {1, 1}, {16, 0}, {16, 16}};
    Dropout d = {.seed = 99, .heads = 4, .threshold = dropout_threshold(0.3)};
    double p = d.threshold / 65536.0, same = p * p + (1 - p) * (1 - p);
    uint8_t *kept = kept_set(&d, 0, 0);
    for (size_t n = 0; n < sizeof moves / sizeof *moves; n++) {
        int di = moves[n][0], dj = moves[n][1];
        expect_share("neighbours agree", agreements(kept, kept, di, dj),
                     (double)(SIDE - di) * (SIDE - dj), same);
    }
    free(kept);
}

static void heads_entries_seeds_and_offsets_are_independent(void **state) {
    (void)state;
    const Dropout d = {
        .seed = 5, .heads = 4, .threshold = dropout_threshold(0.3)};
    Dropout more = d, high = d, off = d;
    more.seed = 6;
    high.seed = d.seed | (uint64_t)1 << 40;
    off.offset = 1;
    const struct {
        const Dropout *d;
        int64_t b, h;
    } other[] = {
        {&d, 0, 1}, {&d, 1, 0}, {&more, 0, 0}, {&high, 0, 0}, {&off, 0, 0}};
    double p = d.threshold / 65536.0, same = p * p + (1 - p) * (1 - p);
    uint8_t *kept = kept_set(&d, 0, 0);
    for (size_t n = 0; n < sizeof other / sizeof *other; n++) {
        uint8_t *x = kept_set(other[n].d, other[n].b, other[n].h);
        expect_share("two draws agree", agreements(kept, x, 0, 0),
                     (double)SIDE * SIDE, same);
        free(x);
    }
    free(kept);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_published_numbers),
        cmocka_unit_test(a_row_of_numbers_is_the_sentence),
        cmocka_unit_test(the_documented_vectors_hold),
        cmocka_unit_test(the_kept_share_is_one_less_p),
        cmocka_unit_test(positions_are_independent),
        cmocka_unit_test(heads_entries_seeds_and_offsets_are_independent),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
