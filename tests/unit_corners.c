/* SPDX-License-Identifier: Apache-2.0
 * Where attention kernels go wrong: rows that see nothing, NaN and infinity
 * where nobody looks, offsets of the diagonal. Held against masks written out
 * and summed here, so that the reference itself is under test. */
#include "case.h"

/* ---- attention written out --------------------------------------------- */

static bool visible(const Case *c, int64_t q, int64_t k, int64_t offset,
                    int64_t keys) {
    long double diagonal = (long double)q + (long double)offset;
    if (k >= keys)
        return false;
    switch (c->spec.mask) {
    case ATTNC_MASK_CAUSAL:
        return k <= diagonal;
    case ATTNC_MASK_WINDOW:
        return (c->left == INT64_MAX || k >= diagonal - c->left) &&
               (c->right == INT64_MAX || k <= diagonal + c->right);
    case ATTNC_MASK_PREFIX:
        return k < c->prefix || k <= diagonal;
    default:
        return true;
    }
}

static double product(const char *x, const char *y, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) {
        float a, b;
        memcpy(&a, x + 4 * i, 4);
        memcpy(&b, y + 4 * i, 4);
        sum += (double)a * b;
    }
    return sum;
}

/* One row in f32 against its definition. */
static void check_row(const Case *c, const Data *d, int64_t b, int64_t h,
                      int64_t i, int64_t offset, int64_t keys) {
    int64_t hk = h / (c->heads / c->kv_heads);
    double o[256] = {0}, sum = 0, scale = 1 / sqrt(c->spec.head_dim);
    for (int64_t j = 0; j < c->nk; j++) {
        if (!visible(c, i, j, offset, keys))
            continue;
        double p = exp(scale * product(element(c, &d->args.q, b, h, i),
                                       element(c, &d->args.k, b, hk, j),
                                       c->spec.head_dim));
        sum += p;
        for (int x = 0; x < case_dv(c); x++) {
            float v;
            memcpy(&v, element(c, &d->args.v, b, hk, j) + 4 * x, 4);
            o[x] += p * v;
        }
    }
    double lse =
        d->args.lse[b * d->args.lse_stride_b + h * d->args.lse_stride_h + i];
    if (sum == 0)
        assert_true(lse == -INFINITY);
    else
        assert_true(fabs(lse - log(sum)) < 1e-5);
    for (int x = 0; x < case_dv(c); x++) {
        float got;
        memcpy(&got, element(c, &d->args.o, b, h, i) + 4 * x, 4);
        assert_true(sum == 0 ? got == 0 : fabs(got - o[x] / sum) < 1e-5);
    }
}

static int64_t offset_of(const Case *c, const Data *d, int64_t b) {
    if (c->mode == ATTNC_OFFSET_BR)
        return c->nk - c->nq;
    return c->mode == ATTNC_OFFSET_LEN ? d->lens_k[b] - c->nq : c->offset;
}

static void check_by_definition(const Case *c, attnc_plan *plan) {
    Data d;
    data_make(c, &d);
    case_launch(c, plan, &d);
    for (int64_t b = 0; b < c->batch; b++)
        for (int64_t h = 0; h < c->heads; h++)
            for (int64_t i = 0; i < c->nq; i++)
                check_row(c, &d, b, h, i, offset_of(c, &d, b),
                          d.lens_k ? d.lens_k[b] : c->nk);
    check_results(c, &d);
    check_kept(c, &d);
    data_free(&d);
}

/* ---- offsets ----------------------------------------------------------- */

static const int64_t sizes[][2] = {{1, 1},   {1, 40},  {40, 1},
                                   {19, 70}, {70, 19}, {33, 33}};
enum { SIZES = sizeof(sizes) / sizeof(sizes[0]) };

static Case small_case(int mask) {
    Case c = CASE_INIT;
    c.spec.head_dim = 8;
    c.spec.mask = mask;
    c.heads = 2;
    return c;
}

static void mask_numbers(Case *c, int pick) {
    static const int64_t numbers[][2] = {{0, 0},
                                         {5, 0},
                                         {0, 7},
                                         {3, 2},
                                         {INT64_MAX, 4},
                                         {6, INT64_MAX},
                                         {INT64_MAX, INT64_MAX},
                                         {INT64_MAX - 1, INT64_MAX - 1}};
    if (c->spec.mask == ATTNC_MASK_WINDOW) {
        c->left = numbers[pick % 8][0];
        c->right = numbers[pick % 8][1];
    }
    if (c->spec.mask == ATTNC_MASK_PREFIX)
        c->prefix = pick % 8 == 7 ? INT64_MAX : pick % 8 * 3;
}

/* Every offset at which anything changes, and those at the end of the type. */
static void offsets_move_the_diagonal(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    const int64_t far[] = {INT64_MIN, INT64_MIN + 1, -(1ll << 40),
                           1ll << 40, INT64_MAX - 1, INT64_MAX};
    for (int mask = ATTNC_MASK_CAUSAL; mask <= ATTNC_MASK_PREFIX; mask++) {
        Case c = small_case(mask);
        attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
        for (int s = 0; s < SIZES; s++) {
            c.nq = sizes[s][0];
            c.nk = sizes[s][1];
            for (int i = 0; i < 40; i++) {
                c.offset = i < 6 ? far[i] : random_int(-c.nq - 3, c.nk + 3);
                mask_numbers(&c, i);
                check_by_definition(&c, plan);
            }
        }
        attnc_plan_release(plan);
    }
    attnc_context_destroy(ctx);
}

/* To the last distance it counts, with slopes that leave something of it; the
 * offset after that is refused. */
static void alibi_reaches_as_far_as_it_says(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    Case c = small_case(ATTNC_MASK_NONE);
    c.spec.alibi = 1;
    c.nq = 19;
    c.nk = 170;
    const int64_t far = 1 << 30, edges[] = {far - c.nq, c.nk - far};
    const float slopes[] = {1e-9f, 3e-8f};
    attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
    for (int i = 0; i < 2; i++) {
        Data d;
        c.offset = edges[i];
        data_make(&c, &d);
        d.args.slopes = slopes;
        case_launch(&c, plan, &d);
        check_results(&c, &d);
        d.args.mask_offset += i ? -1 : 1;
        assert_int_equal(attnc_launch(plan, &d.args, NULL), ATTNC_E_REQUEST);
        assert_string_equal(attnc_last_error()->field, "mask_offset");
        char nearest[32];
        snprintf(nearest, sizeof nearest, ": %lld", (long long)edges[i]);
        assert_non_null(strstr(attnc_last_error()->text, nearest));
        data_free(&d);
    }
    attnc_plan_release(plan);
    attnc_context_destroy(ctx);
}

/* Top left, bottom right, and by each entry's own key length. */
static void corner_conventions_hold(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    for (int lens = 0; lens < 2; lens++)
        for (int mask = ATTNC_MASK_NONE; mask <= ATTNC_MASK_PREFIX; mask++) {
            Case c = small_case(mask);
            c.spec.lens_k = lens;
            c.batch = 3;
            attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
            for (int s = 0; s < SIZES * 8; s++) {
                c.nq = sizes[s % SIZES][0];
                c.nk = sizes[s % SIZES][1];
                c.mode = s % (2 + lens);
                mask_numbers(&c, s / SIZES);
                check_by_definition(&c, plan);
            }
            attnc_plan_release(plan);
        }
    attnc_context_destroy(ctx);
}

/* ---- nothing to see ---------------------------------------------------- */

/* O = 0 and LSE = -inf exactly; or the sink, but for its rounding. */
static void check_dead_rows(const Case *c, const Data *d, int64_t rows) {
    static const float zeros[256];
    size_t bytes = (size_t)(case_dv(c) * dtype_bytes(c->spec.dtype));
    for (int64_t h = 0; h < c->heads; h++)
        for (int64_t i = 0; i < rows; i++) {
            float lse = d->args.lse[h * d->args.lse_stride_h + i];
            assert_memory_equal(element(c, &d->args.o, 0, h, i), zeros, bytes);
            if (d->sink)
                assert_true(fabsf(lse - d->sink[h]) < 1e-6f);
            else
                assert_true(lse == -INFINITY);
        }
}

static void rows_without_keys_are_zero(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    for (int dtype = 0; dtype < 3; dtype++)
        for (int sink = 0; sink < 2; sink++) {
            Case c = small_case(ATTNC_MASK_CAUSAL);
            Data d;
            c.spec.dtype = dtype;
            c.spec.sink = sink;
            c.nq = c.nk = 50;
            c.offset = -21; /* rows 0..20 see nothing */
            attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
            data_make(&c, &d);
            case_launch(&c, plan, &d);
            check_dead_rows(&c, &d, 21);
            check_results(&c, &d);
            data_free(&d);
            attnc_plan_release(plan);
        }
    attnc_context_destroy(ctx);
}

static void an_entry_of_padding_is_zero(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    Case c = small_case(ATTNC_MASK_NONE);
    Data d;
    c.spec.lens_k = 1;
    c.batch = 2;
    c.nq = 9;
    c.nk = 130;
    attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
    data_make(&c, &d);
    d.lens_k[0] = 0;
    case_launch(&c, plan, &d);
    check_dead_rows(&c, &d, c.nq);
    check_results(&c, &d);
    data_free(&d);
    attnc_plan_release(plan);
    attnc_context_destroy(ctx);
}

/* ---- NaN and infinity -------------------------------------------------- */

static void plant(const Case *c, const attnc_tensor *t, int64_t n, int dim,
                  float x) {
    for (int64_t h = 0; h < c->kv_heads; h++)
        put_row(c->spec.dtype, element(c, t, 0, h, n), dim, x, true);
}

/* Keys n.. of a causal attention hold x in K, in V or in both: rows that do
 * not see them stay finite, the others show it as f64 does. */
static void check_planted(attnc_plan *plan, Case *c, float x, int where) {
    Data d;
    data_make(c, &d);
    for (int64_t n = c->nk * 2 / 3; n < c->nk; n++) {
        if (where & 1)
            plant(c, &d.args.k, n, c->spec.head_dim, x);
        if (where & 2)
            plant(c, &d.args.v, n, case_dv(c), x);
    }
    case_launch(c, plan, &d);
    check_results(c, &d);
    data_free(&d);
}

static void nonfinite_keys_stay_where_they_are_seen(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    for (int dtype = 0; dtype < 3; dtype++)
        for (int cap = 0; cap < 2; cap++) {
            Case c = small_case(ATTNC_MASK_CAUSAL);
            c.spec.dtype = dtype;
            c.spec.softcap = cap;
            c.spec.head_dim_v = 24;
            attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
            for (int i = 0; i < 24; i++) {
                c.nq = c.nk = random_int(5, 300);
                c.mode = ATTNC_OFFSET_BR;
                float x = i % 4 == 0 ? NAN : i & 4 ? INFINITY : -INFINITY;
                /* Infinity in K makes scores of both signs, or NaN. */
                check_planted(plan, &c, x, i % 4 == 0 ? 3 : 1 + i % 2);
            }
            attnc_plan_release(plan);
        }
    attnc_context_destroy(ctx);
}

/* Padding may hold anything: here infinities, elsewhere NaN. */
static void infinite_padding_leaks_nowhere(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    Case c = small_case(ATTNC_MASK_NONE);
    c.spec.lens_k = 1;
    c.nq = 40;
    c.nk = 200;
    attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
    for (int i = 0; i < 20; i++) {
        Data d;
        data_make(&c, &d);
        for (int64_t n = d.lens_k[0]; n < c.nk; n++) {
            plant(&c, &d.args.k, n, c.spec.head_dim, INFINITY);
            plant(&c, &d.args.v, n, case_dv(&c), -INFINITY);
        }
        case_launch(&c, plan, &d);
        check_results(&c, &d);
        data_free(&d);
    }
    attnc_plan_release(plan);
    attnc_context_destroy(ctx);
}

/* A query row of NaN or infinity is its own affair. */
static void nonfinite_queries_stay_in_their_rows(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    Case c = small_case(ATTNC_MASK_CAUSAL);
    c.nq = c.nk = 100;
    attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
    for (int i = 0; i < 8; i++) {
        Data d;
        data_make(&c, &d);
        for (int64_t h = 0; h < c.heads; h++)
            put_row(c.spec.dtype,
                    element(&c, &d.args.q, 0, h, random_int(0, 99)),
                    c.spec.head_dim, i % 2 ? NAN : INFINITY, true);
        case_launch(&c, plan, &d);
        check_results(&c, &d);
        data_free(&d);
    }
    attnc_plan_release(plan);
    attnc_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_BOTH(offsets_move_the_diagonal),
        ON_BOTH(alibi_reaches_as_far_as_it_says),
        ON_BOTH(corner_conventions_hold),
        ON_BOTH(rows_without_keys_are_zero),
        ON_BOTH(an_entry_of_padding_is_zero),
        ON_BOTH(nonfinite_keys_stay_where_they_are_seen),
        ON_BOTH(infinite_padding_leaks_nowhere),
        ON_BOTH(nonfinite_queries_stay_in_their_rows),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
