/* SPDX-License-Identifier: Apache-2.0
 * The feature cross product against f64: every pair of levels of every two
 * factors stands in some spec, each spec meets every shape, on the compiled
 * and on the built-in kernel. */
#include "case.h"

/* ---- factors ----------------------------------------------------------- */

enum factor {
    DTYPE,
    HEAD_DIM,
    HEAD_DIM_V,
    MASK,
    LENS,
    VARLEN,
    SOFTCAP,
    ALIBI,
    SINK,
    DROPOUT,
    GROUP,
    LAYOUT,
    MATH,
    INVARIANT,
    TARGET,
    HINTS,
    FACTORS
};

static const int head_dims[] = {64, 1, 3, 8, 20, 40, 72, 96, 128, 256};
static const int head_dims_v[] = {0, 1, 24, 65, 128};
static const int groups[] = {1, 2, 3, 8};

/* Kind of mask with where its numbers come from. */
static const struct {
    int32_t kind, mode;
    int64_t offset, left, right, prefix;
} masks[] = {
    {ATTNC_MASK_NONE, ATTNC_OFFSET_INT, 0, 0, 0, 0},
    {ATTNC_MASK_CAUSAL, ATTNC_OFFSET_INT, 0, 0, 0, 0},
    {ATTNC_MASK_CAUSAL, ATTNC_OFFSET_BR, 0, 0, 0, 0},
    {ATTNC_MASK_CAUSAL, ATTNC_OFFSET_LEN, 0, 0, 0, 0},
    {ATTNC_MASK_WINDOW, ATTNC_OFFSET_INT, -3, 20, 5, 0},
    {ATTNC_MASK_WINDOW, ATTNC_OFFSET_BR, 0, INT64_MAX, 2, 0},
    {ATTNC_MASK_WINDOW, ATTNC_OFFSET_INT, 7, 0, INT64_MAX, 0},
    {ATTNC_MASK_PREFIX, ATTNC_OFFSET_BR, 0, 0, 0, 17},
    {ATTNC_MASK_PREFIX, ATTNC_OFFSET_INT, -40, 0, 0, 3},
};

/* Where it runs; small caches make small tiles, so that short rows already
 * cross their borders. */
static const char *const targets[] = {"cpu", "portable",
                                      "cpu@sram_bytes=49152,l1_bytes=8192"};
enum { TARGETS = 3 };

/* What a plan is made for: the default, a decode step (keys are split), or
 * whatever attnc_run sees. */
enum { HINT_DEFAULT, HINT_DECODE, HINT_RUN, HINT_LEVELS };

#define COUNT(array) (int)(sizeof(array) / sizeof(array)[0])
static const int levels[FACTORS] = {
    [DTYPE] = 3,
    [HEAD_DIM] = COUNT(head_dims),
    [MASK] = COUNT(masks),
    [HEAD_DIM_V] = COUNT(head_dims_v),
    [LENS] = 2,
    [VARLEN] = 2,
    [SOFTCAP] = 2,
    [ALIBI] = 2,
    [SINK] = 2,
    [DROPOUT] = 2,
    [GROUP] = COUNT(groups),
    [LAYOUT] = LAYOUTS,
    [MATH] = 2,
    [INVARIANT] = 2,
    [TARGET] = TARGETS,
    [HINTS] = HINT_LEVELS,
};

/* ---- covering array ---------------------------------------------------- */

enum { ROWS_MAX = 160, LEVELS_MAX = 10 };
typedef struct Row {
    int level[FACTORS];
} Row;

static bool covered[FACTORS][LEVELS_MAX][FACTORS][LEVELS_MAX];

/* Pairs still missing that `value` of factor f makes with those chosen. */
static int gain(const Row *r, int f, int value) {
    int n = 0;
    for (int g = 0; g < FACTORS; g++)
        n += r->level[g] >= 0 && g != f && !covered[f][value][g][r->level[g]];
    return n;
}

/* Fills the factors in random order, each with the level that gains most. */
static Row row_make(void) {
    Row r;
    int order[FACTORS];
    for (int f = 0; f < FACTORS; f++) {
        r.level[f] = -1;
        int at = (int)random_int(0, f);
        order[f] = order[at];
        order[at] = f;
    }
    for (int i = 0; i < FACTORS; i++) {
        int f = order[i], best = -1, value = 0;
        int start = (int)random_int(0, levels[f] - 1);
        for (int v = 0; v < levels[f]; v++) {
            int level = (start + v) % levels[f], n = gain(&r, f, level);
            if (n > best) {
                best = n;
                value = level;
            }
        }
        r.level[f] = value;
    }
    return r;
}

static int row_gain(const Row *r) {
    int n = 0;
    for (int f = 0; f < FACTORS; f++)
        n += gain(r, f, r->level[f]);
    return n;
}

static void row_cover(const Row *r) {
    for (int f = 0; f < FACTORS; f++)
        for (int g = 0; g < FACTORS; g++)
            covered[f][r->level[f]][g][r->level[g]] = true;
}

static int pairs_missing(void) {
    int n = 0;
    for (int f = 0; f < FACTORS; f++)
        for (int g = 0; g < f; g++)
            for (int v = 0; v < levels[f]; v++)
                for (int w = 0; w < levels[g]; w++)
                    n += !covered[f][v][g][w];
    return n;
}

/* The same array every time, so that its kernels may lie in a cache. */
static int rows_make(Row rows[ROWS_MAX]) {
    uint64_t kept = random_state;
    int n = 0;
    random_state = 20;
    memset(covered, 0, sizeof(covered));
    while (n < ROWS_MAX && pairs_missing()) {
        Row best = row_make();
        for (int i = 0; i < 20; i++) {
            Row r = row_make();
            best = row_gain(&r) > row_gain(&best) ? r : best;
        }
        row_cover(&best);
        rows[n++] = best;
    }
    random_state = kept;
    assert_int_equal(pairs_missing(), 0);
    return n;
}

/* ---- rows to cases ----------------------------------------------------- */

static void row_case(const Row *r, Case *c) {
    const int *v = r->level;
    *c = case_of(v[DTYPE], head_dims[v[HEAD_DIM]], head_dims_v[v[HEAD_DIM_V]],
                 masks[v[MASK]].kind);
    c->mode = masks[v[MASK]].mode;
    c->offset = masks[v[MASK]].offset;
    c->left = masks[v[MASK]].left;
    c->right = masks[v[MASK]].right;
    c->prefix = masks[v[MASK]].prefix;
    c->spec.lens_k = v[LENS] || c->mode == ATTNC_OFFSET_LEN;
    c->spec.varlen = v[VARLEN];
    c->spec.softcap = v[SOFTCAP];
    c->spec.alibi = v[ALIBI];
    c->spec.sink = v[SINK];
    c->spec.dropout = v[DROPOUT];
    c->spec.f32_math = c->spec.dtype == ATTNC_F32 ? v[MATH] : 0;
    c->spec.batch_invariant = v[INVARIANT];
    c->layout = v[LAYOUT];
}

/* {batch, kv heads, Nq, Nk}: none, one, odd, tails, more queries, more keys */
static const int64_t shapes[][4] = {
    {1, 1, 1, 1},   {2, 2, 0, 5},     {1, 2, 7, 0},
    {3, 1, 33, 70}, {2, 1, 65, 5},    {1, 2, 128, 64},
    {2, 1, 1, 511}, {1, 1, 130, 257}, {1, 1, 301, 190},
};

/* Shapes differ from what the plan was hinted at: hints never bind. */
static void shape_of(const Row *r, Case *c, const int64_t shape[4]) {
    c->batch = shape[0];
    c->kv_heads = shape[1];
    c->heads = c->kv_heads * groups[r->level[GROUP]];
    c->nq = shape[2];
    c->nk = shape[3];
    c->no_lse = random_int(0, 7) == 0;
    c->scale = random_int(0, 3) ? NAN : 0.3f;
}

static attnc_plan *plan_of(attnc_context *ctx, const Row *r, const Case *c) {
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    int group = groups[r->level[GROUP]];
    h.heads = h.kv_heads * group;
    if (r->level[HINTS] == HINT_DECODE) {
        h.kv_heads = 1;
        h.heads = group;
        h.seqlen_q = 1;
        h.seqlen_k = 2000;
    }
    return plan_make(ctx, &c->spec, &h);
}

/* Promises as the arguments keep them, workspace from the library. */
static void run_once(attnc_context *ctx, const Case *c) {
    Data d;
    data_make(c, &d);
    if (attnc_run(ctx, &c->spec, &d.args, NULL)) {
        case_print(c);
        fail_msg("run: %s", attnc_last_error()->text);
    }
    check_results(c, &d);
    check_kept(c, &d);
    data_free(&d);
}

static void run_row(attnc_context *ctx, const Row *r) {
    Case c;
    row_case(r, &c);
    if (r->level[HINTS] == HINT_RUN) {
        shape_of(r, &c, (const int64_t[]){2, 1, 64, 128});
        run_once(ctx, &c);
        return;
    }
    attnc_plan *plan = plan_of(ctx, r, &c);
    for (int i = 0; i < COUNT(shapes); i++) {
        shape_of(r, &c, shapes[i]);
        case_check(&c, plan);
    }
    attnc_plan_release(plan);
}

/* ---- tests ------------------------------------------------------------- */

static void cross_product(int kernel, bool by_target) {
    Row rows[ROWS_MAX];
    attnc_context *ctx[TARGETS] = {NULL};
    int n = rows_make(rows);
    for (int t = 0; t < (by_target ? TARGETS : 1); t++)
        ctx[t] = context_make(kernel, targets[t], 2);
    for (int i = 0; i < n; i++)
        run_row(ctx[by_target ? rows[i].level[TARGET] : 0], &rows[i]);
    print_message("%d specs\n", n);
    for (int t = 0; t < TARGETS; t++)
        attnc_context_destroy(ctx[t]);
}

static void every_pair_of_features_agrees_with_f64(void **state) {
    int kernel = *(int *)*state;
    cross_product(kernel, kernel == KERNEL_COMPILED);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_BOTH(every_pair_of_features_agrees_with_f64),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
