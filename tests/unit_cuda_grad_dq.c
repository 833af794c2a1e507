/* SPDX-License-Identifier: Apache-2.0
 * Every way to sum dQ on emulated devices: it agrees with f64 whatever is
 * masked, empty or shared by a group; sums in order have the same bits under
 * every schedule. */
#include "emu/forward.h"
#include "grad_case.h"

/* ---- agreement ----------------------------------------------------------- */

typedef struct Way {
    int target, dtype, dim, dim_v, max_seqlen;
    const char *tile;
} Way;

/* In the block of all keys, in order, in any order; warps that share columns,
 * rows, both; sums of dK and dV in two warps; odd dims; no cp.async. */
static const Way ways[] = {
    {1, ATTNC_F16, 64, 0, 64,
     "dq=1,block_k=64,warps=4,rows=16,block_q=32,stages=2"},
    {1, ATTNC_BF16, 40, 24, 32,
     "dq=1,split=1,block_k=32,warps=4,rows=16,block_q=16,stages=1"},
    {OLD, ATTNC_F16, 24, 72, 64,
     "dq=1,block_k=64,warps=2,rows=32,block_q=32,stages=1"},
    {1, ATTNC_F16, 64, 32, 0,
     "dq=2,block_k=32,warps=2,rows=16,block_q=32,stages=2"},
    {2, ATTNC_BF16, 72, 0, 0,
     "dq=2,block_k=64,warps=4,rows=16,block_q=64,stages=1"},
    {3, ATTNC_F16, 33, 17, 0,
     "dq=2,split=1,block_k=16,warps=2,rows=16,block_q=16,stages=2"},
    {OLD, ATTNC_F16, 40, 0, 0,
     "dq=2,block_k=32,warps=2,rows=16,block_q=16,stages=1"},
    {1, ATTNC_BF16, 48, 64, 64,
     "dq=1,kv_regs=2,block_k=64,warps=4,rows=16,block_q=32,stages=2"},
    {3, ATTNC_F16, 64, 32, 0,
     "dq=2,kv_regs=2,block_k=32,warps=2,rows=16,block_q=32,stages=2"},
    {OLD, ATTNC_F16, 40, 0, 0,
     "dq=2,kv_regs=1,block_k=32,warps=2,rows=16,block_q=16,stages=1"},
    {1, ATTNC_F16, 16, 0, 0,
     "dq=3,block_k=32,warps=2,rows=16,block_q=32,stages=2"},
};
enum { WAYS = sizeof ways / sizeof *ways };

/* A tile that is not legal is an error here, not a reason for another. */
static attnc_plan *backward(const Case *c, const Way *w) {
    attnc_prepare_options o = {.struct_size = sizeof o, .tile = w->tile};
    attnc_shape h = shape_of(c);
    attnc_spec s = grad_spec(c);
    attnc_plan *plan = NULL;
    s.deterministic = strstr(w->tile, "dq=3") == NULL;
    h.max_seqlen = w->max_seqlen;
    if (attnc_prepare_with(device(w->target), &s, &h, &o, &plan))
        fail_msg("%s: %s", w->tile, attnc_last_error()->text);
    return plan;
}

static Case case_for(const Way *w, int mask) {
    Case c = case_of(w->dtype, w->dim, w->dim_v, mask);
    c.left = mask == ATTNC_MASK_WINDOW ? PICK(0, 9, 30, INT64_MAX) : 0;
    c.right = mask == ATTNC_MASK_WINDOW ? PICK(0, 4, INT64_MAX) : 0;
    c.prefix = mask == ATTNC_MASK_PREFIX ? PICK(0, 20, 90) : 0;
    c.mode = mask ? (int32_t)random_int(0, 1) : 0;
    c.offset = PICK(0, 0, 3, -5, 40, -200);
    return c;
}

static void features_of(Case *c, int i) {
    c->spec.varlen = i % 3 == 1;
    c->spec.lens_k = i % 4 == 2;
    c->spec.dropout = i % 4 == 1;
    c->spec.softcap = i % 5 == 3;
    c->spec.alibi = i % 5 == 4;
    c->spec.sink = i % 2;
}

/* {batch, kv heads, group, Nq, Nk}: none, one, odd, tails; all of the second
 * half fits one block of 32 keys, and 64 queries a sequence. */
static const int64_t sizes[][5] = {{1, 2, 1, 70, 130}, {2, 1, 3, 45, 99},
                                   {1, 1, 1, 130, 64}, {2, 1, 2, 0, 5},
                                   {1, 2, 2, 7, 0},    {2, 2, 1, 1, 1},
                                   {1, 1, 3, 31, 32},  {3, 1, 1, 20, 17}};
enum { SIZES = 8, FITTING = 3 };

static void check_way(const Way *w, int i, int mask) {
    Case c = case_for(w, mask);
    features_of(&c, i + mask);
    attnc_plan *fwd = prepare(&c, w->target, NULL, NULL);
    attnc_plan *bwd = backward(&c, w);
    for (int n = w->max_seqlen ? FITTING : 0; n < SIZES; n++) {
        c.batch = sizes[n][0];
        c.kv_heads = sizes[n][1];
        c.heads = c.kv_heads * sizes[n][2];
        c.nq = sizes[n][3];
        c.nk = sizes[n][4];
        c.layout = (int)random_int(0, LAYOUTS - 1);
        grad_check(&c, fwd, bwd);
    }
    attnc_plan_release(fwd);
    attnc_plan_release(bwd);
}

static void every_way_agrees(void **state) {
    (void)state;
    for (int i = 0; i < WAYS; i++)
        for (int mask = 0; mask < 4; mask++)
            if (full() || mask == i % 4 || mask == (i / 4 + i + 1) % 4)
                check_way(&ways[i], i, mask);
}

/* ---- the same bits ------------------------------------------------------- */

static void run_under(const attnc_plan *p, GradData *g, uint64_t seed) {
    const EmuConfig config = {.seed = seed,
                              .async_mode = (int)(seed % 3),
                              .resident = 1 + (int)(seed % 4)};
    Err e = {0};
    grad_poison(g);
    if (emulated_run(p, &g->d.args, &config, NULL, &e))
        fail_msg("schedule %d: %s", (int)seed, e.text);
}

/* Under schedules with one to four blocks at a time. */
static void check_bits(const Case *c, const Way *w) {
    GradData g;
    attnc_plan *fwd = prepare(c, w->target, NULL, NULL);
    attnc_plan *bwd = backward(c, w);
    grad_make(c, &g);
    grad_launch(c, fwd, bwd, &g);
    char *first = malloc(g.dq.bytes);
    memcpy(first, g.dq.base, g.dq.bytes);
    for (uint64_t seed = 0; seed < 8; seed++) {
        run_under(bwd, &g, seed);
        assert_memory_equal(first, g.dq.base, g.dq.bytes);
    }
    free(first);
    grad_free(&g);
    attnc_plan_release(fwd);
    attnc_plan_release(bwd);
}

static void sums_in_order_keep_their_bits(void **state) {
    (void)state;
    static const int of[] = {3, 5};
    for (int i = 0; i < 2; i++)
        for (int mask = i; mask < 4; mask += 2) {
            Case c = case_for(&ways[of[i]], mask);
            c.offset = c.mode = 0;
            c.heads = 2;
            c.nq = 60;
            c.nk = 150;
            check_bits(&c, &ways[of[i]]);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_way_agrees),
        cmocka_unit_test(sums_in_order_keep_their_bits),
    };
    if (!can_emulate())
        return 77;
    random_start();
    return cmocka_run_group_tests(tests, NULL, close_contexts);
}
