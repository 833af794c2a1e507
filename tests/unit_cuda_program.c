/* SPDX-License-Identifier: Apache-2.0
 * Mask programs, score programs, patterns and biases in the forward kernels of
 * GPUs, on emulated devices against f64. */
#include "emu/programs.h"

/* ---- sizes ------------------------------------------------------------- */

static void sizes(Case *c) {
    c->kv_heads = random_int(1, 2);
    c->heads = c->kv_heads * PICK(1, 1, 2, 3);
    c->batch = random_int(1, 2);
    c->nq = PICK(1, 5, 33, 64, 70, 100);
    c->nk = PICK(1, 7, 64, 65, 100, 130, 200);
    c->layout = (int)random_int(0, LAYOUTS - 1);
    c->mode = 0;
    c->offset = PICK(0, 0, 3, -5, 40);
}

static void run(Case *c, int target, const char *tile) {
    sizes(c);
    attnc_plan *plan = prepare(c, target, tile, NULL);
    program_check(c, plan, 3);
    attnc_plan_release(plan);
}

static Case program_case(int dtype, int dim) {
    return case_of(dtype, dim, 0, ATTNC_MASK_NONE);
}

/* ---- one program at a time --------------------------------------------- */

static void masks_hide_what_they_say(void **state) {
    (void)state;
    for (int i = 0; i < MASKS; i++) {
        Case c = program_case(ATTNC_F16, 16);
        set_mask(&c, masks[i]);
        run(&c, 1, NULL);
    }
}

static void scores_become_what_they_say(void **state) {
    (void)state;
    for (int i = 0; i < SCORES; i++) {
        Case c = program_case(ATTNC_F16, 16);
        c.spec.score_program = program_of(scores[i], ATTNC_SCORE);
        run(&c, 1, NULL);
    }
}

static void patterns_are_arithmetic(void **state) {
    (void)state;
    for (int i = 0; i < PATTERNS; i++) {
        Case c = program_case(ATTNC_F16, 16);
        c.spec.sparsity = program_of(patterns[i], ATTNC_PATTERN);
        c.spec.mask = i % 2 ? ATTNC_MASK_CAUSAL : ATTNC_MASK_NONE;
        run(&c, 1, NULL);
    }
}

static void biases_of_every_broadcast_are_added(void **state) {
    (void)state;
    for (int bias = ATTNC_BIAS_1; bias <= ATTNC_BIAS_BHQK; bias += 1) {
        Case c = program_case(ATTNC_F16, 16);
        c.spec.bias = bias;
        run(&c, 1, NULL);
    }
}

/* ---- any mix ----------------------------------------------------------- */

/* Any tile that may be legal; what is not gives way to the model's. */
static void tile_of(const Case *c, int target, char tile[160]) {
    bool fma = (c->spec.dtype == ATTNC_F32 && !c->spec.f32_math) ||
               (c->spec.dtype == ATTNC_BF16 && target == OLD);
    int warps = (int)PICK(1, 2, 4), rows = (int)PICK(16, 16, 32);
    int keys = (int)PICK(16, 32, 48), n;
    rows = fma ? rows / 2 : rows;
    keys = fma ? keys / 2 : keys;
    n = snprintf(tile, 160, "peel=%d", (int)random_int(0, 1));
    if (random_int(0, 3) == 0)
        return;
    n += snprintf(tile + n, 160 - (size_t)n,
                  ",block_q=%d,block_k=%d,warps=%d,rows=%d,stages=%d,blocks=1",
                  rows * warps, keys, warps, rows,
                  target == OLD ? 2 : (int)PICK(2, 3, 4));
    if (!fma)
        snprintf(tile + n, 160 - (size_t)n, ",q_regs=%d",
                 (int)random_int(0, 1));
}

static void any_mix_agrees(void **state) {
    (void)state;
    for (int i = 0; i < (full() ? 400 : 40); i++) {
        int target = (int)random_int(0, TARGETS - 1);
        int dtype = (int)random_int(0, 2);
        Case c = program_case(dtype, (int)PICK(8, 16, 24, 40));
        c.spec.f32_math =
            dtype == ATTNC_F32 && target != OLD && random_int(0, 1);
        c.spec.head_dim_v = (int32_t)PICK(0, 0, 8, 32);
        program_features(&c);
        sizes(&c);
        c.mode = (int32_t)random_int(0, c.spec.lens_k ? 2 : 1);
        c.offset = c.mode ? 0 : c.offset;
        attnc_shape h = shape_of(&c);
        if (c.spec.batch_invariant) { /* splits of 1024 keys */
            c.nq = PICK(1, 5);
            h.seqlen_q = 1;
            h.seqlen_k = 8192;
        }
        char tile[160];
        tile_of(&c, target, tile);
        attnc_plan *plan = prepare(&c, target, tile, &h);
        program_check(&c, plan, 3);
        attnc_plan_release(plan);
    }
}

/* A warp for each head: each goes its own way over the tiles. */
static void heads_of_a_block_see_different_keys(void **state) {
    (void)state;
    static const char *const tiles[] = {
        "block_q=16,block_k=16,warps=4,rows=16,stages=2,heads=4",
        "block_q=32,block_k=32,warps=2,rows=32,stages=4,heads=2"};
    for (int i = 0; i < 4; i++) {
        Case c = program_case(ATTNC_F16, 16);
        set_mask(&c, i % 2 ? "(k / 16 + h) % 3 == 0 && k <= q + h * 8"
                           : "i32 wide[:]; k < wide[h] * 10");
        sizes(&c);
        c.heads = c.kv_heads = 5;
        c.nq = 20;
        attnc_plan *plan = prepare(&c, 1, tiles[i / 2], NULL);
        program_check(&c, plan, 3);
        attnc_plan_release(plan);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(masks_hide_what_they_say),
        cmocka_unit_test(scores_become_what_they_say),
        cmocka_unit_test(patterns_are_arithmetic),
        cmocka_unit_test(biases_of_every_broadcast_are_added),
        cmocka_unit_test(heads_of_a_block_see_different_keys),
        cmocka_unit_test(any_mix_agrees),
    };
    random_start();
    return can_emulate() ? cmocka_run_group_tests(tests, NULL, close_contexts)
                         : 77;
}
