/* SPDX-License-Identifier: Apache-2.0
 * Dropout in kernels: what they keep, read out of O and of dV; O's mean and
 * variance; the arguments of a launch. */
#include <math.h>

#include "case.h"
#include "dropout.h"
#include "runtime.h"

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

static bool keeps(const Dropout *d, int64_t b, int64_t h, int64_t i,
                  int64_t j) {
    uint16_t x[DROPOUT_PATCH];
    dropout_numbers(d, b, h, i, j / DROPOUT_PATCH, x);
    return x[j % DROPOUT_PATCH] >= d->threshold;
}

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
            bool kept = keeps(&d, n / a->seqlen_q / a->heads, h, i, j);
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

/* ---- what the backward drops -------------------------------------------- */

enum { NQ = 32, NK = 150 };

static void launch_with(attnc_context *ctx, const attnc_spec *spec,
                        const char *tile, attnc_args *a) {
    attnc_shape any = ATTNC_SHAPE_DEFAULT;
    attnc_prepare_options pin = {sizeof pin, tile};
    attnc_plan *plan;
    if (attnc_prepare_with(ctx, spec, &any, &pin, &plan) ||
        attnc_workspace(plan, a, &a->workspace_bytes))
        fail_msg("%s", attnc_last_error()->text);
    a->workspace = aligned_alloc(64, (a->workspace_bytes / 64 + 1) * 64);
    if (attnc_launch(plan, a, NULL))
        fail_msg("%s", attnc_last_error()->text);
    free(a->workspace);
    attnc_plan_release(plan);
}

/* With dO = 1 for row i of a group's head h in column NQ h + i alone, and all
 * weights alike, dV[j] shows which rows keep key j. */
static void check_dv(attnc_context *ctx, const char *tile, int kv_heads) {
    static float in[2 * NK * 8], v[2 * NK * DV], o[2 * NQ * DV];
    static float dout[2 * NQ * DV], dv[2 * NK * DV], lse[2 * NQ];
    static float dq[2 * NQ * 8], dk[2 * NK * 8];
    attnc_spec spec = spec_shown();
    attnc_args a = ATTNC_ARGS_INIT;
    spec.pass = ATTNC_PASS_BWD;
    a.batch = 1;
    a.heads = 2;
    a.kv_heads = kv_heads;
    a.seqlen_q = NQ;
    a.seqlen_k = NK;
    a.q = dense(in, 2, NQ, 8);
    a.k = dense(in, kv_heads, NK, 8);
    a.v = dense(v, kv_heads, NK, DV);
    a.o = dense(o, 2, NQ, DV);
    a.dout = dense(dout, 2, NQ, DV);
    a.dq = dense(dq, 2, NQ, 8);
    a.dk = dense(dk, kv_heads, NK, 8);
    a.dv = dense(dv, kv_heads, NK, DV);
    a.lse = lse;
    a.lse_stride_h = NQ;
    a.dropout_p = 0.4;
    a.dropout_seed = random_bits();
    for (int n = 0; n < 2 * NQ * DV; n++)
        dout[n] = n / DV == n % DV;
    for (int n = 0; n < 2 * NQ; n++)
        lse[n] = logf(NK);
    launch_with(ctx, &spec, tile, &a);
    const Dropout d = {.seed = a.dropout_seed,
                       .heads = 2,
                       .threshold = dropout_threshold(a.dropout_p)};
    for (int n = 0; n < 2 * NQ * NK; n++) {
        int h = n / NK / NQ, i = n / NK % NQ, j = n % NK;
        bool kept = keeps(&d, 0, h, i, j);
        const float *row = dv + ((kv_heads == 2 ? h : 0) * NK + j) * DV;
        float want = kept ? dropout_scale(d.threshold) : 0;
        assert_true(fabsf(row[h * NQ + i] * NK - want) < 1e-3f);
    }
}

/* Whatever the tile. */
static void gradients_drop_what_the_forward_drops(void **state) {
    static const char *const tiles[] = {
        NULL,
        "block_q=8,block_k=24,vecs=1,keys=8,dims=8,chunk_k=72,parts=2",
        "block_q=48,block_k=40,vecs=2,keys=5,dims=6,chunk_k=40,parts=0",
    };
    int kernel = *(int *)*state;
    attnc_context *ctx = context_make(kernel, NULL, 2);
    bool pinned = kernel == KERNEL_COMPILED && probe_runs("avx2");
    for (int i = 0; i < (pinned ? 6 : 2); i++)
        check_dv(ctx, tiles[i / 2], 1 + i % 2);
    attnc_context_destroy(ctx);
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
        cmocka_unit_test(numbers_out_of_range_are_refused),
        cmocka_unit_test(a_spec_without_dropout_takes_none_of_it),
        ON_BOTH(kernels_keep_what_the_definition_says),
        ON_BOTH(gradients_drop_what_the_forward_drops),
        ON_BOTH(the_mean_and_variance_of_o_are_kept),
        ON_BOTH(p_of_0_changes_no_bit),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
