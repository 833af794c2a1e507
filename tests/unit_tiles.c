/* SPDX-License-Identifier: Apache-2.0
 * Any tile: one that is legal gives right results, one that is not is refused
 * with its reason. Tiles are drawn far beyond those the search considers. */
#include "case.h"

static const struct {
    int dtype, d, dv, mask, lens, varlen, alibi;
} specs[] = {
    {ATTNC_F32, 64, 64, ATTNC_MASK_CAUSAL, 0, 0, 0},
    {ATTNC_F16, 20, 33, ATTNC_MASK_WINDOW, 1, 0, 1},
    {ATTNC_BF16, 40, 40, ATTNC_MASK_PREFIX, 0, 1, 0},
    {ATTNC_F32, 7, 130, ATTNC_MASK_NONE, 1, 1, 0},
};
enum { SPECS = sizeof(specs) / sizeof(specs[0]), TILES = 9 };

static Case case_at(int i) {
    Case c = case_of(specs[i].dtype, specs[i].d, specs[i].dv, specs[i].mask);
    c.spec.lens_k = specs[i].lens;
    c.spec.varlen = specs[i].varlen;
    c.spec.alibi = specs[i].alibi;
    c.left = specs[i].mask == ATTNC_MASK_WINDOW ? 30 : 0;
    c.right = c.left / 2;
    c.prefix = specs[i].mask == ATTNC_MASK_PREFIX ? 20 : 0;
    c.mode = ATTNC_OFFSET_BR;
    return c;
}

static int64_t one_of(const int64_t *list, int n) {
    return list[random_int(0, n - 1)];
}

/* Vectors of dims, and rows no block of vectors would hold. */
static void few_draw(char text[128]) {
    int64_t block_k = 8 * random_int(1, 9);
    snprintf(text, 128,
             "block_q=%d,block_k=%d,vecs=0,keys=%d,dims=%d,copy_kv=%d,"
             "split_k=%d",
             (int)random_int(1, 9), (int)block_k, (int)random_int(1, 2) * 8,
             (int)random_int(1, 9), (int)random_int(0, 3) > 0,
             (int)(random_int(0, 1) * block_k * random_int(1, 3)));
}

/* A tile of sizes odd and even; split or not. */
static void tile_draw(char text[128]) {
    static const int64_t lanes[] = {8, 8, 8, 16}, blocks[] = {1, 2, 3, 5, 16};
    static const int64_t keys[] = {1, 3, 16, 24, 64, 100, 192};
    int64_t vecs = random_int(0, 4);
    if (!vecs) {
        few_draw(text);
        return;
    }
    int64_t block_k = one_of(keys, 7);
    int64_t split = random_int(0, 2) ? 0 : block_k * random_int(1, 3);
    snprintf(text, 128,
             "block_q=%d,block_k=%d,vecs=%d,keys=%d,dims=%d,copy_kv=%d,"
             "split_k=%d",
             (int)(one_of(lanes, 4) * vecs * one_of(blocks, 5)), (int)block_k,
             (int)vecs, (int)random_int(1, 6), (int)random_int(1, 6),
             (int)random_int(0, 1), (int)split);
}

/* NULL: refused as a request, with a sentence. */
static attnc_plan *plan_pinned(attnc_context *ctx, const Case *c,
                               const char *tile) {
    attnc_prepare_options o = {.struct_size = sizeof(o), .tile = tile};
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    attnc_plan *plan = NULL;
    if (attnc_prepare_with(ctx, &c->spec, &h, &o, &plan) == 0)
        return plan;
    const attnc_error *e = attnc_last_error();
    if (e->status != ATTNC_E_REQUEST || strlen(e->text) < 20)
        fail_msg("%s: %s: %s\n%s", tile, e->stage, e->text, e->log);
    return NULL;
}

static void check_tile(Case *c, attnc_plan *plan, const char *tile) {
    static const int64_t shapes[][4] = {
        {2, 1, 1, 200}, {1, 2, 37, 101}, {1, 1, 150, 70}, {1, 1, 5, 0}};
    print_message("%s\n", tile);
    for (int i = 0; i < 4; i++) {
        c->batch = shapes[i][0];
        c->kv_heads = shapes[i][1];
        c->heads = c->kv_heads * random_int(1, 3);
        c->nq = shapes[i][2];
        c->nk = shapes[i][3];
        c->layout = (int)random_int(0, LAYOUTS - 1);
        case_check(c, plan);
    }
}

static bool has_compiler(attnc_context *ctx) {
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    attnc_plan_info info = {.struct_size = sizeof(info)};
    attnc_plan *plan = plan_make(ctx, &s, NULL);
    assert_int_equal(attnc_plan_get_info(plan, &info), 0);
    bool found = strcmp(info.compiler, "builtin") != 0;
    attnc_plan_release(plan);
    return found;
}

static void any_legal_tile_agrees_with_f64(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    if (!has_compiler(ctx)) {
        attnc_context_destroy(ctx);
        skip();
    }
    for (int i = 0; i < SPECS; i++) {
        Case c = case_at(i);
        int legal = 0;
        for (int n = 0; n < 400 && legal < TILES; n++) {
            char tile[128];
            tile_draw(tile);
            attnc_plan *plan = plan_pinned(ctx, &c, tile);
            if (!plan)
                continue;
            check_tile(&c, plan, tile);
            attnc_plan_release(plan);
            legal++;
        }
        assert_int_equal(legal, TILES);
    }
    attnc_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_COMPILED(any_legal_tile_agrees_with_f64),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
