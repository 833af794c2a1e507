/* SPDX-License-Identifier: Apache-2.0
 * Kernels with a loop of their own for partial tiles, over sequences so long
 * that blocks go through full and partial ones, at either end; on emulated
 * devices against f64, next to kernels with one loop. */
#include "emu/forward.h"

static const struct Long {
    int target, dtype, dim, mask;
    int64_t nq, nk;
    const char *tile;
} longs[] = {
    {1, ATTNC_F16, 64, ATTNC_MASK_CAUSAL, 333, 333,
     "block_q=64,block_k=32,warps=2,rows=32,stages=2,q_regs=0"},
    {1, ATTNC_F16, 40, ATTNC_MASK_WINDOW, 300, 400,
     "block_q=64,block_k=16,warps=4,rows=16,stages=3,q_regs=1"},
    {3, ATTNC_BF16, 80, ATTNC_MASK_PREFIX, 250, 401,
     "block_q=32,block_k=48,warps=2,rows=16,stages=4,q_regs=1"},
    {2, ATTNC_F16, 128, ATTNC_MASK_NONE, 70, 513,
     "block_q=64,block_k=64,warps=4,rows=16,stages=2,q_regs=1"},
    {0, ATTNC_F16, 32, ATTNC_MASK_CAUSAL, 257, 320,
     "block_q=32,block_k=32,warps=2,rows=16,stages=2,q_regs=0"},
    {0, ATTNC_F32, 24, ATTNC_MASK_WINDOW, 200, 200,
     "block_q=32,block_k=16,warps=2,rows=16,stages=2"},
};
enum { LONGS = sizeof longs / sizeof *longs };

static Case case_at(int i) {
    Case c = simple(longs[i].dtype, longs[i].dim, longs[i].nq, longs[i].nk);
    c.spec.mask = longs[i].mask;
    c.mode = c.spec.mask == ATTNC_MASK_CAUSAL ? ATTNC_OFFSET_BR : 0;
    c.left = c.spec.mask == ATTNC_MASK_WINDOW ? 150 : 0;
    c.right = c.spec.mask == ATTNC_MASK_WINDOW ? 20 : 0;
    c.prefix = c.spec.mask == ATTNC_MASK_PREFIX ? 90 : 0;
    return c;
}

static void both_loops_are_right(void **state) {
    (void)state;
    for (int i = 0; i < LONGS; i++)
        for (int peel = 0; peel < 2; peel++) {
            Case c = case_at(i);
            attnc_shape h = shape_of(&c);
            char tile[160];
            snprintf(tile, sizeof tile, "%s,blocks=1,peel=%d", longs[i].tile,
                     peel);
            check(&c, longs[i].target, tile, &h, 2);
        }
}

/* Key lengths of their own, in the middle of a tile. */
static void lengths_end_either_loop(void **state) {
    (void)state;
    for (int i = 0; i < LONGS; i += 3) {
        Case c = case_at(i);
        attnc_shape h = shape_of(&c);
        char tile[160];
        c.batch = 3;
        c.spec.lens_k = 1;
        snprintf(tile, sizeof tile, "%s,blocks=1,peel=1", longs[i].tile);
        check(&c, longs[i].target, tile, &h, 2);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_loops_are_right),
        cmocka_unit_test(lengths_end_either_loop),
    };
    if (!can_emulate())
        return 77;
    return cmocka_run_group_tests(tests, NULL, close_contexts);
}
