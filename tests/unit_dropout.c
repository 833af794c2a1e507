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

/* ---- what kernels keep -------------------------------------------------- */

/* Scores of 0 and V = 1 for one key of each of DV in turn: row i of O then
 * shows which of these keys query i keeps. */
enum { DV = 64 };

typedef struct Shown {
    attnc_plan *plan;
    attnc_args a;
    float *q, *k, *v, *o;
    void *workspace;
} Shown;

static float *zeros(int64_t n) {
    float *x = calloc((size_t)n + 1, sizeof *x);
    assert_non_null(x);
    return x;
}

static attnc_tensor dense(float *x, int64_t heads, int64_t rows, int64_t dim) {
    return (attnc_tensor){x, heads * rows * dim, rows * dim, dim};
}

static attnc_spec spec_shown(void) {
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    s.head_dim = 8;
    s.head_dim_v = DV;
    s.dropout = 1;
    return s;
}

static void show_make(Shown *s, attnc_context *ctx, const char *tile,
                      const int64_t size[5]) {
    attnc_spec spec = spec_shown();
    attnc_shape shape = ATTNC_SHAPE_DEFAULT;
    attnc_prepare_options pin = {sizeof pin, tile};
    attnc_args *a = &s->a;
    *a = (attnc_args)ATTNC_ARGS_INIT;
    shape.batch = a->batch = size[0];
    shape.heads = a->heads = size[1];
    shape.kv_heads = a->kv_heads = size[2];
    shape.seqlen_q = a->seqlen_q = size[3];
    shape.seqlen_k = a->seqlen_k = size[4];
    int64_t rows_q = size[0] * size[1] * size[3];
    int64_t rows_k = size[0] * size[2] * size[4];
    a->q = dense(s->q = zeros(rows_q * 8), size[1], size[3], 8);
    a->k = dense(s->k = zeros(rows_k * 8), size[2], size[4], 8);
    a->v = dense(s->v = zeros(rows_k * DV), size[2], size[4], DV);
    a->o = dense(s->o = zeros(rows_q * DV), size[1], size[3], DV);
    if (attnc_prepare_with(ctx, &spec, &shape, &pin, &s->plan) ||
        attnc_workspace(s->plan, a, &a->workspace_bytes))
        fail_msg("%s", attnc_last_error()->text);
    a->workspace = s->workspace =
        aligned_alloc(64, (a->workspace_bytes / 64 + 1) * 64);
}

static void show_free(Shown *s) {
    attnc_plan_release(s->plan);
    free(s->q);
    free(s->k);
    free(s->v);
    free(s->o);
    free(s->workspace);
}

/* Launches for the DV keys from `from` and compares with the definition. */
static void check_keys(Shown *s, int64_t from) {
    const attnc_args *a = &s->a;
    int64_t rows_k = a->batch * a->kv_heads * a->seqlen_k;
    const Dropout d = {
        .seed = a->dropout_seed,
        .offset = (uint32_t)a->dropout_offset,
        .threshold = dropout_threshold(a->dropout_p),
        .first = (uint32_t)(a->dropout_b0 * a->dropout_heads + a->dropout_h0),
        .heads = (uint32_t)a->dropout_heads};
    for (int64_t n = 0; n < rows_k * DV; n++)
        s->v[n] = n / DV % a->seqlen_k - from == n % DV;
    if (attnc_launch(s->plan, a, NULL))
        fail_msg("%s", attnc_last_error()->text);
    for (int64_t n = 0; n < a->batch * a->heads * a->seqlen_q; n++) {
        int64_t i = n % a->seqlen_q, h = n / a->seqlen_q % a->heads;
        for (int64_t j = from; j < from + DV && j < a->seqlen_k; j++) {
            uint16_t x[DROPOUT_PATCH];
            dropout_numbers(&d, n / a->seqlen_q / a->heads, h, i,
                            j / DROPOUT_PATCH, x);
            bool kept = x[j % DROPOUT_PATCH] >= d.threshold;
            float got = s->o[n * DV + j - from] * (float)a->seqlen_k;
            if (fabsf(got - (kept ? dropout_scale(d.threshold) : 0)) > 1e-3f)
                fail_msg("entry*head %lld query %lld key %lld: %g",
                         (long long)(n / a->seqlen_q), (long long)i,
                         (long long)j, (double)got);
        }
    }
}

/* Tiles, splits, groups and lanes of every kind; heads of a larger model. */
static void kernels_keep_what_the_definition_says(void **state) {
    static const struct {
        const char *target, *tile;
        int64_t size[5]; /* batch, heads, kv heads, queries, keys */
    } cases[] = {
        {"cpu", NULL, {2, 3, 3, 70, 130}},
        {"cpu", "block_q=24,block_k=8,vecs=3", {1, 3, 1, 50, 90}},
        {"cpu", "block_q=48,block_k=56,vecs=2", {2, 4, 2, 45, 200}},
        {"cpu", NULL, {1, 40, 1, 19, 70}},
        {"cpu", NULL, {1, 2, 1, 1, 1500}},
        {"portable", NULL, {1, 5, 1, 33, 130}},
        {"portable@vector_bytes=64,vector_regs=32", NULL, {1, 3, 3, 40, 70}},
        {"portable@vector_bytes=64,vector_regs=32", NULL, {1, 3, 1, 40, 70}},
    };
    int kernel = *(int *)*state;
    for (size_t n = 0; n < (kernel ? sizeof cases / sizeof *cases : 5); n++) {
        attnc_context *ctx = context_make(kernel, cases[n].target, 2);
        Shown s;
        show_make(&s, ctx, kernel ? cases[n].tile : NULL, cases[n].size);
        s.a.dropout_p = 0.4;
        s.a.dropout_seed = random_bits();
        s.a.dropout_offset = (uint32_t)random_bits();
        s.a.dropout_b0 = random_int(0, 9);
        s.a.dropout_h0 = random_int(0, 9);
        s.a.dropout_heads = s.a.heads + s.a.dropout_h0 + random_int(0, 9);
        for (int64_t j = 0; j < s.a.seqlen_k; j += j ? 7 * DV : DV)
            check_keys(&s, j);
        show_free(&s);
        attnc_context_destroy(ctx);
    }
}

/* ---- arguments --------------------------------------------------------- */

static void refused(const Shown *s, const char *field, const char *says) {
    assert_int_equal(attnc_launch(s->plan, &s->a, NULL), ATTNC_E_REQUEST);
    assert_string_equal(attnc_last_error()->field, field);
    if (!strstr(attnc_last_error()->text, says))
        fail_msg("'%s' does not say '%s'", attnc_last_error()->text, says);
}

static void numbers_out_of_range_are_refused(void **state) {
    (void)state;
    attnc_context *ctx = context_make(KERNEL_BUILTIN, NULL, 1);
    const double bad[] = {-0.1, 1, 0.999999, (double)NAN, (double)INFINITY};
    Shown s;
    show_make(&s, ctx, NULL, (int64_t[]){2, 3, 3, 5, 5});
    const attnc_args good = s.a;
    for (int i = 0; i < 5; i++) {
        s.a.dropout_p = bad[i];
        refused(&s, "dropout_p", "accepted: 0 <= dropout_p < 1");
    }
    s.a = good;
    s.a.dropout_offset = (uint64_t)1 << 32;
    refused(&s, "dropout_offset", "nearest accepted: 4294967295");
    s.a.dropout_offset--;
    s.a.dropout_heads = 5;
    s.a.dropout_h0 = 3;
    refused(&s, "dropout_heads", "dropout_h0 + heads = 6");
    s.a.dropout_h0 = -1;
    refused(&s, "dropout_h0", "0..");
    s.a.dropout_h0 = 2;
    s.a.dropout_b0 = (int64_t)1 << 31;
    refused(&s, "dropout_b0", "at most 4294967296");
    s.a.dropout_b0 = ((int64_t)1 << 32) / 5 - 2;
    assert_int_equal(attnc_launch(s.plan, &s.a, NULL), 0);
    show_free(&s);
    attnc_context_destroy(ctx);
}

static void a_spec_without_dropout_takes_none_of_it(void **state) {
    (void)state;
    attnc_context *ctx = context_make(KERNEL_BUILTIN, NULL, 1);
    Shown s;
    show_make(&s, ctx, NULL, (int64_t[]){1, 1, 1, 5, 5});
    attnc_plan_release(s.plan);
    attnc_spec plain = spec_shown();
    plain.dropout = 0;
    s.plan = plan_make(ctx, &plain, NULL);
    s.a.dropout_p = 0.1;
    refused(&s, "dropout_p", "the spec says dropout=0");
    s.a.dropout_p = 0;
    s.a.dropout_seed = 1;
    refused(&s, "dropout_seed", "the spec says dropout=0");
    show_free(&s);
    attnc_context_destroy(ctx);
}

/* ---- statistics of O ---------------------------------------------------- */

/* T10: O of all ones is how much is kept of n, grown. Mean 1, and of a row
 * variance p / ((1 - p) n). */
static void the_mean_and_variance_of_o_are_kept(void **state) {
    enum { NK = 256, ROWS = 4 * 500 };
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    const double p = 0.25, variance = p / (1 - p) / NK;
    double sum = 0, square = 0;
    Shown s;
    show_make(&s, ctx, NULL, (int64_t[]){1, 4, 4, ROWS / 4, NK});
    s.a.dropout_p = p;
    s.a.dropout_seed = 2026;
    for (int64_t n = 0; n < 4 * NK * DV; n++)
        s.v[n] = 1;
    assert_int_equal(attnc_launch(s.plan, &s.a, NULL), 0);
    for (int64_t n = 0; n < ROWS; n++) {
        double x = (double)s.o[n * DV] - 1;
        sum += x / ROWS;
        square += x * x / ROWS;
    }
    assert_true(fabs(sum) < 5 * sqrt(variance / ROWS));
    /* The variance's own: 2 variance^2 / ROWS, near enough to normal. */
    assert_true(fabs(square - variance) < 5 * variance * sqrt(2.0 / ROWS));
    show_free(&s);
    attnc_context_destroy(ctx);
}

/* The same tile with and without: the same bits. */
static void p_of_0_changes_no_bit(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    const char *tile = *(int *)*state ? "block_q=96,block_k=64" : NULL;
    attnc_prepare_options pin = {sizeof pin, tile};
    const attnc_shape any = ATTNC_SHAPE_DEFAULT;
    Case c = case_of(ATTNC_F32, 24, 0, ATTNC_MASK_CAUSAL);
    attnc_plan *plan[2];
    Data d;
    c.heads = 2;
    c.kv_heads = 1;
    c.nq = c.nk = 150;
    c.spec.sink = 1;
    data_make(&c, &d);
    char *first = malloc(d.o.bytes);
    for (int i = 0; i < 2; i++) {
        c.spec.dropout = i;
        if (attnc_prepare_with(ctx, &c.spec, &any, &pin, &plan[i]))
            fail_msg("%s", attnc_last_error()->text);
        d.args.dropout_seed = i ? 99 : 0;
        case_launch(&c, plan[i], &d);
        if (i)
            assert_memory_equal(first, d.o.base, d.o.bytes);
        memcpy(first, d.o.base, d.o.bytes);
        attnc_plan_release(plan[i]);
    }
    free(first);
    data_free(&d);
    attnc_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_published_numbers),
        cmocka_unit_test(a_row_of_numbers_is_the_sentence),
        cmocka_unit_test(the_documented_vectors_hold),
        cmocka_unit_test(the_kept_share_is_one_less_p),
        cmocka_unit_test(positions_are_independent),
        cmocka_unit_test(heads_entries_seeds_and_offsets_are_independent),
        cmocka_unit_test(numbers_out_of_range_are_refused),
        cmocka_unit_test(a_spec_without_dropout_takes_none_of_it),
        ON_BOTH(kernels_keep_what_the_definition_says),
        ON_BOTH(the_mean_and_variance_of_o_are_kept),
        ON_BOTH(p_of_0_changes_no_bit),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
