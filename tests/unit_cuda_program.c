/* SPDX-License-Identifier: Apache-2.0
 * Mask programs, score programs, patterns and biases in the forward kernels of
 * GPUs, on emulated devices against f64. */
#include "emu/programs.h"
#include "fuzz/program_random.h"

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

/* ---- each program ------------------------------------------------------ */

static void masks_and_scores_do_what_they_say(void **state) {
    (void)state;
    for (int i = 0; i < MASKS; i++) {
        Case c = program_case(ATTNC_F16, 16);
        set_mask(&c, masks[i]);
        if (i % 2)
            c.spec.score_program = program_of(scores[i / 2], ATTNC_SCORE);
        run(&c, 1, NULL);
    }
    for (int i = MASKS / 2; i < SCORES; i++) {
        Case c = program_case(ATTNC_F16, 16);
        c.spec.score_program = program_of(scores[i], ATTNC_SCORE);
        run(&c, 1, NULL);
    }
}

/* Of every broadcast. */
static void patterns_are_arithmetic_and_biases_are_added(void **state) {
    (void)state;
    for (int bias = ATTNC_BIAS_1; bias <= ATTNC_BIAS_BHQK; bias++) {
        Case c = program_case(ATTNC_F16, 16);
        if (bias % 2)
            c.spec.sparsity =
                program_of(patterns[bias / 2 % PATTERNS], ATTNC_PATTERN);
        c.spec.mask = bias % 4 ? ATTNC_MASK_CAUSAL : ATTNC_MASK_NONE;
        c.spec.bias = bias;
        run(&c, 1, NULL);
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

/* ---- random programs --------------------------------------------------- */

/* A mask and a score in each kernel; what is wild counts as 0.5. */
static void random_programs_agree(void **state) {
    (void)state;
    for (int i = 0; i < (full() ? 150 : 30); i++) {
        Case c = program_case(ATTNC_F16, 16);
        uint64_t seed = random_bits();
        Str text = {0};
        char *mask = random_text(&seed, PROGRAM_MASK, 2 + i % 4);
        set_mask(&c, mask);
        str_addf(&text, RANDOM_TENSORS "let e = ");
        random_expr(&seed, TYPE_FLOAT, 2 + i % 4, true, &text);
        str_addf(&text, "; s + (abs(e) < 4.0 ? e : 0.5)");
        c.spec.score_program = program_of(text.text, ATTNC_SCORE);
        run(&c, 1 + i % 3, NULL);
        str_free(&text);
        free(mask);
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
    for (int i = 0; i < (full() ? 400 : 24); i++) {
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
        c.nq += c.nq ? 8 : 0; /* the error of one row is a matter of luck */
        char tile[160];
        tile_of(&c, target, tile);
        attnc_plan *plan = prepare(&c, target, tile, &h);
        program_check(&c, plan, 3);
        attnc_plan_release(plan);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest each[] = {
        cmocka_unit_test(masks_and_scores_do_what_they_say),
        cmocka_unit_test(patterns_are_arithmetic_and_biases_are_added),
        cmocka_unit_test(heads_of_a_block_see_different_keys),
    };
    const struct CMUnitTest random[] = {
        cmocka_unit_test(random_programs_agree)};
    const struct CMUnitTest mix[] = {cmocka_unit_test(any_mix_agrees)};
    const char *part = argc > 1 ? argv[1] : "each";
    random_start();
    if (!can_emulate())
        return 77;
    if (!strcmp(part, "random"))
        return cmocka_run_group_tests(random, NULL, close_contexts);
    return !strcmp(part, "mix")
               ? cmocka_run_group_tests(mix, NULL, close_contexts)
               : cmocka_run_group_tests(each, NULL, close_contexts);
}
