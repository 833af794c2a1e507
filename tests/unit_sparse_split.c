/* SPDX-License-Identifier: Apache-2.0
 * Rows and columns of patterns that take longest: split keys, of which parts
 * that see nothing are neither written nor read; what starts first, on targets
 * whose kernels number their blocks themselves. */
#include "grad_case.h"
#include "runtime.h"

static const char *const targets[] = {"cpu", "emu:sm_80"};
enum { EMULATED = 1, TARGETS = sizeof targets / sizeof *targets };
static attnc_context *contexts[TARGETS];

static int open_contexts(void **state) {
    (void)state;
    random_start();
    for (int i = 0; i < TARGETS; i++)
        contexts[i] = context_make(KERNEL_COMPILED, targets[i], 2);
    return 0;
}

static int close_contexts(void **state) {
    (void)state;
    for (int i = 0; i < TARGETS; i++)
        attnc_context_destroy(contexts[i]);
    return 0;
}

static attnc_plan *split_plan(attnc_context *ctx, Case *c, const char *text,
                              const char *tile) {
    attnc_prepare_options o = {.struct_size = sizeof o, .tile = tile};
    attnc_plan *plan = NULL;
    if (attnc_program_create(text, ATTNC_PATTERN, &c->spec.sparsity))
        fail_msg("%s: %s", text, attnc_last_error()->text);
    if (attnc_prepare_with(ctx, &c->spec, NULL, &o, &plan))
        fail_msg("prepare: %s", attnc_last_error()->text);
    assert_int_equal(plan->plan.step[0].role, ROLE_fwd_split);
    return plan;
}

/* The workspace holds NaN, and what is not written stays so. */
static void parts_that_see_nothing_are_not_read(void **state) {
    (void)state;
    static const struct {
        const char *pattern, *tile;
    } cases[] = {
        {"longformer block=16", "split_k=64,block_k=32"},
        {"orig-bigbird:random=0 block=32", "split_k=128,block_k=64"},
        {"butterfly:m=2,global=1 block=16", "split_k=64,block_k=64"},
        {"orig-longformer:w=40,global=3", "split_k=96,block_k=32"},
    };
    for (int i = 0; i < TARGETS; i++)
        for (int n = 0; n < 4; n++) {
            Case c =
                case_of(n % 2 ? ATTNC_F16 : ATTNC_F32, 16, 24, ATTNC_MASK_NONE);
            c.heads = 1 + n % 2;
            attnc_plan *plan =
                split_plan(contexts[i], &c, cases[n].pattern, cases[n].tile);
            c.nq = c.nk = random_int(200, 400);
            case_check(&c, plan);
            attnc_plan_release(plan);
        }
}

/* ---- order --------------------------------------------------------------- */

static void set_sparsity(Case *c, const char *text) {
    if (attnc_program_create(text, ATTNC_PATTERN, &c->spec.sparsity))
        fail_msg("%s: %s", text, attnc_last_error()->text);
}

/* Outputs hold NaN before: a block that ran twice took another's place. */
static void every_block_runs_whichever_goes_first(void **state) {
    (void)state;
    static const char *const texts[] = {"longformer block=16",
                                        "orig-bigbird:random=0 block=32"};
    static const int lengths[] = {1, 31, 64, 65, 97, 200};
    enum { LENGTHS = sizeof lengths / sizeof *lengths };
    for (int n = 0; n < 2; n++) {
        Case c = case_of(ATTNC_F16, 16, 16, ATTNC_MASK_NONE);
        set_sparsity(&c, texts[n]);
        c.batch = 2;
        c.heads = 3 * (c.kv_heads = 2);
        attnc_plan *fwd = plan_make(contexts[EMULATED], &c.spec, NULL);
        attnc_spec back = grad_spec(&c);
        attnc_plan *bwd = plan_make(contexts[EMULATED], &back, NULL);
        for (int i = 0; i < LENGTHS; i++) {
            c.nq = c.nk = lengths[i];
            grad_check(&c, fwd, bwd);
        }
        attnc_plan_release(fwd);
        attnc_plan_release(bwd);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_that_see_nothing_are_not_read),
        cmocka_unit_test(every_block_runs_whichever_goes_first),
    };
    return cmocka_run_group_tests(tests, open_contexts, close_contexts);
}
