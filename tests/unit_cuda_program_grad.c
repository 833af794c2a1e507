/* SPDX-License-Identifier: Apache-2.0
 * Gradients under mask programs, score programs, patterns and biases in the
 * kernels of GPUs, on emulated devices against f64. */
#include "emu/programs.h"

static void sizes(Case *c) {
    c->kv_heads = random_int(1, 2);
    c->heads = c->kv_heads * PICK(1, 1, 2, 3);
    c->batch = random_int(1, 2);
    c->nq = PICK(1, 5, 33, 64, 70);
    c->nk = PICK(1, 7, 64, 65, 100);
    c->layout = (int)random_int(0, LAYOUTS - 1);
    c->mode = 0;
    c->offset = PICK(0, 0, 3, -5, 40);
}

static Case program_case(int dtype, int dim) {
    return case_of(dtype, dim, 0, ATTNC_MASK_NONE);
}

/* ---- each program ------------------------------------------------------ */

static void gradients_pass_through_programs(void **state) {
    (void)state;
    for (int i = 0; i < MASKS; i++) {
        Case c = program_case(ATTNC_F16, 16);
        set_mask(&c, masks[i]);
        c.spec.score_program = program_of(scores[i % SCORES], ATTNC_SCORE);
        if (i >= SCORES - 1)
            c.spec.tensor_grads = (int32_t)spec_grads_possible(&c.spec);
        sizes(&c);
        program_backward(&c, 1, NULL, 2);
    }
}

/* Launches differ in what runs when. */
static void schedules_change_no_bit_of_a_gradient(void **state) {
    (void)state;
    for (int i = 0; i < SCORES; i += 2) { /* slopes, T5's table, .. */
        Case c = program_case(ATTNC_F16, 16);
        GradData g;
        Arrays x;
        c.spec.score_program = program_of(scores[i], ATTNC_SCORE);
        c.spec.tensor_grads = (int32_t)spec_grads_possible(&c.spec);
        sizes(&c);
        Case there = c, back = c;
        there.spec.tensor_grads = 0;
        back.spec = grad_spec(&c);
        attnc_plan *fwd = prepare(&there, 1, NULL, NULL);
        attnc_plan *bwd = prepare(&back, 1, NULL, NULL);
        float *first[SPEC_TENSORS] = {0};
        grad_make(&c, &g);
        laid_make(&c, &g.d.args, &x);
        for (int run = 0; run < 3; run++) {
            program_grad_launch(&c, fwd, bwd, &g, &x);
            for (int t = 0; t < x.count; t++) {
                size_t bytes = (size_t)array_elements(&x.of[t]) * 4;
                if (x.of[t].grad && !run)
                    first[t] = memcpy(malloc(bytes + 1), x.of[t].grad, bytes);
                if (x.of[t].grad)
                    assert_memory_equal(first[t], x.of[t].grad, bytes);
            }
        }
        for (int t = 0; t < x.count; t++)
            free(first[t]);
        arrays_free(&x);
        grad_free(&g);
        attnc_plan_release(fwd);
        attnc_plan_release(bwd);
    }
}

static void biases_of_every_broadcast_have_gradients(void **state) {
    (void)state;
    for (int bias = ATTNC_BIAS_1; bias <= ATTNC_BIAS_BHQK; bias++) {
        Case c = program_case(bias % 5 ? ATTNC_F16 : ATTNC_F32, 16);
        c.spec.bias = bias;
        c.spec.mask = bias % 3 ? ATTNC_MASK_CAUSAL : ATTNC_MASK_NONE;
        c.spec.tensor_grads = 1;
        if (bias % 2)
            c.spec.sparsity =
                program_of(patterns[bias / 2 % PATTERNS], ATTNC_PATTERN);
        sizes(&c);
        program_backward(&c, bias % TARGETS, NULL, 2);
    }
}

/* ---- any mix ----------------------------------------------------------- */

/* Tiles of both steps; what is not legal gives way to the model's. */
static const char *const tiles[] = {
    "block_k=32,block_q=16,warps=2,rows=16,stages=2,split=0,"
    "dq_block_q=32,dq_block_k=16,dq_warps=2,dq_rows=16,dq_stages=2",
    "block_k=16,block_q=32,warps=2,rows=16,stages=1,split=1,"
    "dq_block_q=32,dq_block_k=48,dq_warps=1,dq_rows=32,dq_stages=1",
    "block_k=16,block_q=8,warps=2,rows=8,stages=2,"
    "dq_block_q=16,dq_block_k=16,dq_warps=1,dq_rows=16,dq_stages=2",
    "block_k=32,block_q=16,warps=2,rows=16,stages=2,dq=2",
    "block_k=32,block_q=16,warps=2,rows=16,stages=2,dq=2,kv_regs=2",
    "block_k=32,block_q=16,warps=2,rows=16,stages=2,kv_regs=1,"
    "dq_block_q=32,dq_block_k=16,dq_warps=2,dq_rows=16,q_do_regs=2",
    "block_k=32,block_q=16,warps=2,rows=16,stages=1,dq=3",
    "block_k=128,block_q=16,warps=4,rows=32,stages=2,dq=1",
    NULL};
enum { TILES = sizeof tiles / sizeof *tiles };

static void any_mix_agrees(void **state) {
    (void)state;
    for (int i = 0; i < (full() ? 300 : 16); i++) {
        Case c = program_case((int)random_int(0, 2), (int)PICK(8, 16, 24, 40));
        c.spec.head_dim_v = (int32_t)PICK(0, 0, 8, 32);
        program_features(&c);
        if (random_int(0, 1))
            c.spec.tensor_grads = (int32_t)spec_grads_possible(&c.spec);
        sizes(&c);
        c.mode = (int32_t)random_int(0, c.spec.lens_k ? 2 : 1);
        c.offset = c.mode ? 0 : c.offset;
        c.nq += c.nq ? 8 : 0; /* the error of one row is a matter of luck */
        program_backward(&c, (int)random_int(0, TARGETS - 1),
                         tiles[random_int(0, TILES - 1)], 2);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest programs[] = {
        cmocka_unit_test(gradients_pass_through_programs)};
    const struct CMUnitTest biases[] = {
        cmocka_unit_test(schedules_change_no_bit_of_a_gradient),
        cmocka_unit_test(biases_of_every_broadcast_have_gradients)};
    const struct CMUnitTest mix[] = {cmocka_unit_test(any_mix_agrees)};
    const char *part = argc > 1 ? argv[1] : "programs";
    random_start();
    if (!can_emulate())
        return 77;
    if (!strcmp(part, "biases"))
        return cmocka_run_group_tests(biases, NULL, close_contexts);
    return !strcmp(part, "mix")
               ? cmocka_run_group_tests(mix, NULL, close_contexts)
               : cmocka_run_group_tests(programs, NULL, close_contexts);
}
