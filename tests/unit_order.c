/* SPDX-License-Identifier: Apache-2.0
 * Which work items of a pattern start first: counts against the pattern's
 * definition, orders that are permutations, and what waits for the last one. */
#include <stdlib.h>

#include "order.h"
#include "pattern_util.h"
#include "program_intern.h"

/* ---- counts ------------------------------------------------------------- */

static void counts_are_those_of_the_definition(void **state) {
    uint64_t *seed = *state;
    for (int i = 0; i < 300; i++) {
        Made m = random_pattern(seed, i);
        Pattern p;
        Err e = {0};
        if (pattern_parse(m.text, 0, &p, &e) || p.kind == PATTERN_BSR)
            continue;
        p.block = m.block;
        if (pattern_size(&p, m.nq, m.nk, &e))
            continue;
        Loads *l = loads_make(&p, ATTNC_MASK_NONE, 2);
        assert_non_null(l);
        for (int64_t h = 0; h < 2; h++) {
            const int32_t *row = l->count + h * (l->rows + l->columns);
            int64_t sum = 0;
            for (int64_t a = 0; a < p.nbq; a++)
                for (int64_t e2 = 0; e2 < p.nbk; e2++)
                    sum += pattern_keep(&p, h, a, e2);
            for (int64_t a = 0; a < p.nbq; a++) {
                int64_t mine = 0;
                for (int64_t e2 = 0; e2 < p.nbk; e2++)
                    mine += pattern_keep(&p, h, a, e2);
                assert_int_equal(row[a], mine);
            }
            for (int64_t c = 0; c < l->columns; c++)
                sum -= row[l->rows + c];
            assert_int_equal(sum, 0);
        }
        free(l);
    }
}

static void lengths_seen_before_are_not_counted_again(void **state) {
    (void)state;
    attnc_spec s = spec("sparsity=\"longformer:window=5 block=32\"");
    const Loads *l = spec_loads(&s, 640, 320);
    assert_non_null(l);
    assert_ptr_not_equal(spec_loads(&s, 320, 640), l);
    assert_ptr_equal(spec_loads(&s, 640, 320), l);
    attnc_spec causal = spec("mask=causal "
                             "sparsity=\"longformer:window=5 block=32\"");
    assert_ptr_not_equal(spec_loads(&causal, 640, 320), l);
    attnc_spec listed = spec("sparsity=\"bsr block=32\"");
    assert_null(spec_loads(&listed, 640, 320));
}

/* ---- launches ------------------------------------------------------------ */

/* A step of a plan at its hinted lengths. */
typedef struct Launch {
    Plan plan;
    const Step *step;
    int64_t dims[DIM_COUNT], count;
    Items items;
    const Loads *loads;
    Order order;
} Launch;

static void set_dims(const attnc_shape *h, int64_t dims[DIM_COUNT]) {
    dims[DIM_ONE] = 1;
    dims[DIM_BATCH] = h->batch;
    dims[DIM_HEADS] = h->heads;
    dims[DIM_KV_HEADS] = h->kv_heads;
    dims[DIM_GROUP] = h->heads / h->kv_heads;
    dims[DIM_SEQLEN_Q] = h->seqlen_q;
    dims[DIM_SEQLEN_K] = h->seqlen_k;
    dims[DIM_ROWS] = dims[DIM_GROUP] * h->seqlen_q;
    dims[DIM_TOTAL_Q] = h->batch * h->seqlen_q;
    dims[DIM_PARTS] = MOST_PARTS;
}

/* False: the step's items are alike. */
static bool open_step(Launch *l, int step) {
    const attnc_shape *h = &l->plan.shape;
    l->step = &l->plan.step[step];
    set_dims(h, l->dims);
    l->count = extent_size(&l->step->grid, l->dims);
    l->loads = spec_loads(&l->plan.spec, h->seqlen_q, h->seqlen_k);
    const Lengths n = {l->dims[DIM_GROUP], h->seqlen_q, h->seqlen_k};
    if (!l->loads || !items_of(&l->plan.device, l->step->role, &l->step->tile,
                               &n, &l->items))
        return false;
    order_make(&l->items, l->loads, h->kv_heads, l->count, &l->order);
    return true;
}

static void make_plan(Launch *l, const char *arch, int cores, const char *spec_,
                      const char *shape_) {
    Device d = device(arch);
    d.f32_tflops *= cores / d.cores;
    d.cores = cores;
    l->plan = plan_on(&d, spec_, shape_, NULL);
}

static double load_of(const Launch *l, int64_t item) {
    int64_t blocks = items_blocks(&l->items), at = item / l->items.splits;
    return items_load(&l->items, l->loads, at / blocks % l->dims[DIM_KV_HEADS],
                      at % blocks);
}

/* Each item once, those that go first by falling load; none of twice the mean
 * comes later. */
static void check_order(const Launch *l) {
    int64_t early =
        l->order.period ? l->count / l->order.period * l->order.n : 0;
    char *seen = calloc((size_t)l->count, 1);
    double sum = 0, last = HUGE_VAL;
    for (int64_t i = 0; i < l->count; i++)
        sum += load_of(l, i);
    for (int64_t i = 0; i < l->count; i++) {
        int64_t item = order_item(&l->order, i);
        double load = load_of(l, item);
        assert_in_range(item, 0, l->count - 1);
        assert_false(seen[item]++);
        if (i < early)
            assert_true(load <= last && load > 1.99 * sum / (double)l->count);
        else if (l->order.n < ORDER_FIRST)
            assert_true(load < 2.01 * sum / (double)l->count + 1e-9);
        last = load;
    }
    free(seen);
}

static void orders_are_permutations(void **state) {
    uint64_t *seed = *state;
    static const char *const passes[] = {"fwd", "bwd"};
    for (int i = 0; i < 60; i++) {
        Made m = random_pattern(seed, i);
        char text[256], sizes[160];
        Pattern p;
        Err e = {0};
        int kv = 1 + below(seed, 3), group = 1 + below(seed, 3);
        bool element =
            pattern_parse(m.text, 0, &p, &e) || pattern_is_element(p.kind);
        if (e.code || p.kind == PATTERN_BSR)
            continue;
        if (element)
            sprintf(text, "pass=%s sparsity=\"%s\"", passes[i % 2], m.text);
        else
            sprintf(text, "pass=%s sparsity=\"%s block=%d\"", passes[i % 2],
                    m.text, (int)m.block);
        sprintf(sizes, "batch=%d heads=%d kv_heads=%d seqlen_q=%d seqlen_k=%d",
                1 + below(seed, 3), kv * group, kv, (int)m.nq * 4,
                (int)m.nk * 4);
        Launch l = {0};
        make_plan(&l, "avx2", 4, text, sizes);
        for (int s = 0; s < l.plan.nstep; s++)
            if (open_step(&l, s))
                check_order(&l);
    }
}

/* ---- many cores ---------------------------------------------------------- */

enum { SIDE = 64, MOST_SIDES = 256 };

/* Blocks of head 0, by the definition. */
static void draw_map(const Launch *l, bool map[MOST_SIDES][MOST_SIDES]) {
    Pattern p = l->plan.spec.sparsity->pattern;
    Err e = {0};
    assert_int_equal(p.block, SIDE);
    assert_int_equal(
        pattern_size(&p, l->dims[DIM_SEQLEN_Q], l->dims[DIM_SEQLEN_K], &e), 0);
    for (int64_t a = 0; a < p.nbq; a++)
        for (int64_t b = 0; b < p.nbk; b++)
            map[a][b] = pattern_keep(&p, 0, a, b);
}

/* Keys between lo and hi, in tiles, that some row of q0 .. q1 - 1 sees. */
static double keys_met(bool map[MOST_SIDES][MOST_SIDES], int64_t q0, int64_t q1,
                       int64_t lo, int64_t hi, int64_t tile) {
    double keys = 0;
    for (int64_t k = lo; k < hi; k += tile) {
        bool met = false;
        for (int64_t a = q0 / SIDE; a * SIDE < q1; a++)
            for (int64_t b = k / SIDE; b * SIDE < k + tile; b++)
                met = met || map[a][b];
        keys += met ? (double)tile : 0;
    }
    return keys;
}

/* What the kernel computes for item `item` of a forward: whole register tiles
 * of rows against whole tiles of keys. */
static double cost_of(const Launch *l, bool map[MOST_SIDES][MOST_SIDES],
                      int64_t item) {
    const int32_t *v = l->step->tile.v;
    int64_t blocks = items_blocks(&l->items), unit = l->items.unit;
    int64_t nk = l->dims[DIM_SEQLEN_K], split = v[T_cpu_fwd_split_k];
    int64_t lo = split ? item % l->items.splits * split : 0;
    int64_t hi = split && lo + split < nk ? lo + split : nk;
    int64_t b = blocks - 1 - item / l->items.splits % blocks;
    int64_t units = (l->items.rows + unit - 1) / unit;
    double cost = 0;
    for (int64_t u = units * b / blocks; u < units * (b + 1) / blocks; u++) {
        int64_t end = (u + 1) * unit;
        end = end < l->items.rows ? end : l->items.rows;
        cost += (double)unit *
                keys_met(map, u * unit, end, lo, hi, v[T_cpu_fwd_block_k]);
    }
    return cost;
}

/* The first core that is free takes the next item; when is the last done? */
static double last_done(const Launch *l, const double *cost, int cores) {
    double at[64] = {0}, last = 0;
    for (int64_t i = 0; i < l->count; i++) {
        int first = 0;
        for (int c = 1; c < cores; c++)
            first = at[c] < at[first] ? c : first;
        at[first] += cost[order_item(&l->order, i)];
        last = at[first] > last ? at[first] : last;
    }
    return last;
}

/* Planned for so many cores, none is left waiting for a global row: they end
 * within a tenth of what is possible, and an item of the usual length. */
static void cores_do_not_wait_for_global_rows(void **state) {
    static bool map[MOST_SIDES][MOST_SIDES];
    static const char *const texts[] = {"longformer", "orig-bigbird:random=0",
                                        "butterfly:m=3,global=1"};
    (void)state;
    for (int i = 0; i < 12; i++) {
        int cores = i % 2 ? 16 : 64;
        char text[96], sizes[96];
        Launch l = {0};
        sprintf(text, "sparsity=\"%s block=64\"", texts[i % 3]);
        sprintf(sizes, "heads=%d kv_heads=%d seqlen_q=16384 seqlen_k=16384",
                i < 6 ? 1 : 4, i < 6 ? 1 : 4);
        make_plan(&l, "avx512", cores, text, sizes);
        assert_true(open_step(&l, 0));
        draw_map(&l, map);
        double *cost = malloc((size_t)l.count * sizeof *cost);
        double sum = 0, longest = 0;
        int64_t some = 0;
        for (int64_t n = 0; n < l.count; n++) {
            cost[n] = cost_of(&l, map, n);
            sum += cost[n];
            some += cost[n] > 0;
            longest = cost[n] > longest ? cost[n] : longest;
        }
        double least = sum / cores > longest ? sum / cores : longest;
        double last = last_done(&l, cost, cores), mean = sum / (double)some;
        assert_true(last <= 1.1 * least + mean);
        free(cost);
    }
}

/* Not where enough items keep the cores at work, nor for parts of O larger
 * than they are worth. */
static void keys_are_split_where_cores_would_wait(void **state) {
    (void)state;
    static const struct {
        const char *more, *sizes;
        int cores, role;
    } cases[] = {
        {"", "heads=1 kv_heads=1 seqlen_q=16384 seqlen_k=16384", 64,
         ROLE_fwd_split},
        {"", "heads=1 kv_heads=1 seqlen_q=16384 seqlen_k=16384", 2, ROLE_fwd},
        {"", "heads=64 kv_heads=64 seqlen_q=4096 seqlen_k=4096", 64, ROLE_fwd},
        {"", "batch=64 seqlen_q=65536 seqlen_k=65536", 1024, ROLE_fwd},
        {"batch_invariant=1 ", "heads=1 kv_heads=1 seqlen_q=16384", 64,
         ROLE_fwd},
        {"varlen=1 ", "heads=1 kv_heads=1 seqlen_q=16384", 64, ROLE_fwd},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Launch l = {0};
        char text[96];
        sprintf(text, "%ssparsity=\"longformer block=64\"", cases[i].more);
        make_plan(&l, "avx512", cases[i].cores, text, cases[i].sizes);
        assert_int_equal(l.plan.step[0].role, cases[i].role);
    }
}

/* ---- ends ---------------------------------------------------------------- */

static void ends_are_the_global_rows_and_columns(void **state) {
    (void)state;
    static const struct {
        const char *spec;
        int64_t rows[2], keys[2];
    } cases[] = {
        {"sparsity=\"longformer block=32\"", {32, 0}, {32, 0}},
        {"sparsity=\"longformer:global=2 block=64\"", {128, 0}, {128, 0}},
        {"sparsity=\"orig-longformer:w=64,global=5\"", {16, 0}, {16, 0}},
        {"sparsity=\"orig-bigbird:random=0 block=64\"", {64, 64}, {64, 64}},
        {"sparsity=\"butterfly:m=2,global=1 block=64\"", {64, 0}, {64, 0}},
        {"sparsity=\"butterfly:m=2 block=64\"", {0, 0}, {0, 0}},
        {"sparsity=\"local:c=256\"", {0, 0}, {0, 0}},
        {"mask=causal sparsity=\"longformer block=64\"", {0, 0}, {64, 0}},
        {"varlen=1 sparsity=\"longformer block=64\"", {0, 0}, {0, 0}},
        {"sparsity=\"bsr block=64\"", {0, 0}, {0, 0}},
        {"", {0, 0}, {0, 0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        attnc_spec s = spec(cases[i].spec);
        int64_t low, high;
        order_ends(&s, false, &low, &high);
        assert_int_equal(low, cases[i].rows[0]);
        assert_int_equal(high, cases[i].rows[1]);
        order_ends(&s, true, &low, &high);
        assert_int_equal(low, cases[i].keys[0]);
        assert_int_equal(high, cases[i].keys[1]);
    }
}

int main(void) {
    uint64_t seed = 5;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(counts_are_those_of_the_definition, &seed),
        cmocka_unit_test(lengths_seen_before_are_not_counted_again),
        cmocka_unit_test_prestate(orders_are_permutations, &seed),
        cmocka_unit_test(cores_do_not_wait_for_global_rows),
        cmocka_unit_test(ends_are_the_global_rows_and_columns),
        cmocka_unit_test(keys_are_split_where_cores_would_wait),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
