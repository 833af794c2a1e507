/* SPDX-License-Identifier: Apache-2.0
 * Short sequences on GPUs: several heads share a block, a warp for each, and
 * where a promise makes all keys one tile there is no loop. On emulated
 * devices against f64. */
#include "emu/forward.h"

/* What a short kernel may meet; a promise of max_seqlen where `most` is set. */
static const struct Short {
    int target, dtype, dim, batch, heads, kv_heads, mask;
    int64_t nq, nk, most;
    const char *tile;
} shorts[] = {
    {1, ATTNC_F16, 64, 3, 6, 6, ATTNC_MASK_NONE, 16, 16, 16,
     "block_q=16,block_k=16,warps=4,rows=16,stages=2,heads=4"},
    {1, ATTNC_F16, 40, 2, 6, 3, ATTNC_MASK_CAUSAL, 13, 31, 0,
     "block_q=32,block_k=32,warps=2,rows=32,stages=3,heads=2"},
    {0, ATTNC_F16, 32, 2, 5, 5, ATTNC_MASK_WINDOW, 70, 70, 70,
     "block_q=16,block_k=80,warps=2,rows=16,q_regs=1,heads=2"},
    {2, ATTNC_BF16, 80, 2, 4, 4, ATTNC_MASK_PREFIX, 30, 33, 48,
     "block_q=32,block_k=48,warps=2,rows=32,stages=4,heads=2"},
    {0, ATTNC_BF16, 24, 2, 3, 3, ATTNC_MASK_CAUSAL, 9, 20, 32,
     "block_q=16,block_k=32,warps=2,rows=16,heads=2"},
    {3, ATTNC_F32, 16, 2, 4, 2, ATTNC_MASK_CAUSAL, 50, 50, 0,
     "block_q=8,block_k=16,warps=2,rows=8,heads=2,peel=1"},
};
enum { SHORTS = sizeof shorts / sizeof *shorts };

static Case case_at(int i) {
    Case c = simple(shorts[i].dtype, shorts[i].dim, shorts[i].nq, shorts[i].nk);
    c.batch = shorts[i].batch;
    c.heads = shorts[i].heads;
    c.kv_heads = shorts[i].kv_heads;
    c.spec.mask = shorts[i].mask;
    c.mode = c.spec.mask == ATTNC_MASK_CAUSAL ? ATTNC_OFFSET_BR : 0;
    c.left = c.spec.mask == ATTNC_MASK_WINDOW ? 20 : 0;
    c.prefix = c.spec.mask == ATTNC_MASK_PREFIX ? 11 : 0;
    return c;
}

static void several_heads_share_a_block(void **state) {
    (void)state;
    for (int i = 0; i < SHORTS; i++)
        for (int lens = 0; lens < 2; lens++) {
            Case c = case_at(i);
            attnc_shape h = shape_of(&c);
            c.spec.lens_k = lens;
            h.max_seqlen = shorts[i].most;
            attnc_plan *plan =
                prepare(&c, shorts[i].target, shorts[i].tile, &h);
            const Step *s = &plan->plan.step[0];
            int heads = tile_field_index(s->tile.family, "heads");
            assert_true(s->tile.v[heads] >= 2); /* as pinned */
            for (int n = 0; n < 3; n++)
                case_check(&c, plan);
            attnc_plan_release(plan);
        }
}

/* The model's own choice, with other sizes than it was made for. */
static void the_untuned_pick_is_right(void **state) {
    (void)state;
    Case c = simple(ATTNC_F16, 64, 20, 25);
    c.heads = c.kv_heads = 4;
    attnc_shape h = shape_of(&c);
    h.batch = 5000;
    check(&c, 1, NULL, &h, 2);
    c.nq = 77;
    check(&c, 1, NULL, &h, 2);
}

static void one_tile_of_keys_needs_no_loop(void **state) {
    (void)state;
    for (int most = 0; most < 2; most++) {
        Case c = case_at(0);
        attnc_shape h = shape_of(&c);
        Source source = {0};
        Err e = {0};
        h.max_seqlen = most ? 16 : 0;
        attnc_plan *plan = prepare(&c, 1, shorts[0].tile, &h);
        const struct LuaApi *lua = lua_find(&e);
        if (!lua ||
            emit_module(&plan->plan, &attnc_templates, lua, &source, &e))
            fail_msg("%s", e.text);
        bool loop = strstr(source.text.text, "lo += BLOCK_K)");
        assert_int_equal(loop, !most);
        source_free(&source);
        attnc_plan_release(plan);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(several_heads_share_a_block),
        cmocka_unit_test(the_untuned_pick_is_right),
        cmocka_unit_test(one_tile_of_keys_needs_no_loop),
    };
    if (!can_emulate())
        return 77;
    return cmocka_run_group_tests(tests, NULL, close_contexts);
}
