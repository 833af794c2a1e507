/* SPDX-License-Identifier: Apache-2.0
 * Small SRAM: every spec gets a tile that fits or a reasoned refusal, and the
 * scratch the model computes is what the kernel uses, to the byte. */
#include "case.h"
#include "runtime.h"

static const int budgets_kib[] = {16, 48, 64, 99, 163, 227};
enum { BUDGETS = sizeof(budgets_kib) / sizeof(budgets_kib[0]) };

static const struct {
    int dtype, d, dv, mask;
} specs[] = {
    {ATTNC_F32, 64, 64, ATTNC_MASK_CAUSAL},   {ATTNC_BF16, 1, 3, 0},
    {ATTNC_F16, 128, 128, ATTNC_MASK_CAUSAL}, {ATTNC_F32, 256, 256, 0},
    {ATTNC_BF16, 72, 200, ATTNC_MASK_WINDOW},
};
enum { SPECS = sizeof(specs) / sizeof(specs[0]) };

static Case case_at(int i) {
    Case c = case_of(specs[i].dtype, specs[i].d, specs[i].dv, specs[i].mask);
    c.left = c.right = specs[i].mask == ATTNC_MASK_WINDOW ? 60 : 0;
    c.heads = 4;
    c.kv_heads = 2;
    c.nq = 77;
    c.nk = 301;
    return c;
}

/* All of a step's items with no more scratch than the plan says. */
static void run_exactly(const Step *s, CpuEntry entry, const uint64_t *slots,
                        int64_t items) {
    Block b = {0};
    block_make(&b, (size_t)s->scratch_bytes, GUARD);
    for (int64_t i = 0; i < items; i++)
        entry(slots, b.base + GUARD, i);
    for (size_t i = 0; i < GUARD; i++)
        assert_int_equal((uint8_t)b.base[i] & (uint8_t)b.base[b.bytes - 1 - i],
                         0xff);
    block_free(&b);
}

static void run_plan(const Case *c, const attnc_plan *plan, Data *d) {
    int64_t dims[DIM_COUNT];
    Err e = {0};
    Layout l;
    const Plan *p = &plan->plan;
    assert_int_equal(dims_fill(p, &d->args, dims, &e), 0);
    assert_int_equal(layout_make(p, dims, 1, &l, &e), 0);
    for (int i = 0; i < p->nstep; i++) {
        uint64_t slots[STEP_PARAMS];
        for (int n = 0; n < p->step[i].nparam; n++)
            slots[n] = slot_value(p, &p->step[i].param[n], &d->args, &l);
        run_exactly(&p->step[i], (CpuEntry)plan->module->kernel.entry[i], slots,
                    extent_size(&p->step[i].grid, dims));
    }
    check_results(c, d);
    check_kept(c, d);
}

static void check_plan(const Case *c, attnc_plan *plan, int budget_kib) {
    Data d;
    const Plan *p = &plan->plan;
    for (int i = 0; i < p->nstep; i++) {
        const Step *s = &p->step[i];
        assert_int_equal(s->scratch_bytes,
                         model_scratch_bytes(&p->spec, &p->device, &s->tile));
        if (s->tile.family == TILE_cpu_fwd && s->tile.from == FROM_MODEL)
            assert_true(s->scratch_bytes <= budget_kib * 1024);
    }
    data_make(c, &d);
    workspace_make(plan, &d);
    run_plan(c, plan, &d);
    data_free(&d);
}

static void small_budgets_get_a_tile_or_a_reason(void **state) {
    int tiles = 0;
    for (int b = 0; b < BUDGETS; b++) {
        char target[64];
        snprintf(target, sizeof(target), "cpu@sram_bytes=%d",
                 budgets_kib[b] * 1024);
        attnc_context *ctx = context_make(*(int *)*state, target, 1);
        for (int i = 0; i < SPECS; i++) {
            Case c = case_at(i);
            attnc_shape h = ATTNC_SHAPE_DEFAULT;
            attnc_plan *plan = NULL;
            if (attnc_prepare(ctx, &c.spec, &h, &plan)) {
                assert_int_equal(attnc_last_error()->status, ATTNC_E_REQUEST);
                assert_true(strlen(attnc_last_error()->text) > 20);
                continue;
            }
            check_plan(&c, plan, budgets_kib[b]);
            attnc_plan_release(plan);
            tiles++;
        }
        attnc_context_destroy(ctx);
    }
    print_message("%d tiles\n", tiles);
    assert_true(tiles >= BUDGETS * SPECS / 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_BOTH(small_budgets_get_a_tile_or_a_reason),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
