/* SPDX-License-Identifier: Apache-2.0
 * The bits of gradients of CUDA kernels on emulated devices: on repeat, for a
 * sequence alone and in a batch; which weights dropout keeps, in any tile. */
#include "dropout.h"
#include "emu/forward.h"
#include "grad_case.h"

/* dQ in a step of its own, in order, in the block of all keys; without
 * cp.async; FMA. */
typedef struct Kind {
    int target, dtype, max_seqlen;
    const char *tile;
} Kind;
static const Kind kinds[] = {
    {1, ATTNC_F16, 0, "dq=0"},
    {1, ATTNC_BF16, 0, "dq=2,block_k=32,warps=2,rows=16,block_q=32"},
    {2, ATTNC_F16, 128, "dq=1,block_k=128,warps=4,rows=32,block_q=16"},
    {OLD, ATTNC_F16, 0, "dq=2,block_k=16,warps=1,rows=16,block_q=16"},
    {3, ATTNC_F32, 0, NULL},
};
enum { KINDS = sizeof kinds / sizeof *kinds, DIM = 64 };

static attnc_plan *plan_for(const Case *c, const Kind *k, int64_t batch) {
    attnc_prepare_options o = {.struct_size = sizeof o, .tile = k->tile};
    attnc_shape h = shape_of(c);
    attnc_spec s = grad_spec(c);
    attnc_plan *plan = NULL;
    h.max_seqlen = k->max_seqlen;
    h.batch = batch;
    if (attnc_prepare_with(device(k->target), &s, &h, &o, &plan))
        fail_msg("%s: %s", k->tile ? k->tile : "", attnc_last_error()->text);
    return plan;
}

static Case case_for(const Kind *k, int mask) {
    Case c = case_of(k->dtype, DIM, 0, mask);
    c.heads = 2;
    c.nq = 64;
    c.nk = 100;
    return c;
}

/* ---- repeats ------------------------------------------------------------- */

enum { RESULTS = 3, REPEATS = 10 };

static void keep(GradData *g, char *out[RESULTS]) {
    const Block *from[RESULTS] = {&g->dq, &g->dk, &g->dv};
    for (int i = 0; i < RESULTS; i++) {
        out[i] = malloc(from[i]->bytes);
        memcpy(out[i], from[i]->base, from[i]->bytes);
    }
}

static void compare(const GradData *g, char *const kept[RESULTS]) {
    const Block *now[RESULTS] = {&g->dq, &g->dk, &g->dv};
    for (int i = 0; i < RESULTS; i++)
        assert_memory_equal(kept[i], now[i]->base, now[i]->bytes);
}

static void forget(char *kept[RESULTS]) {
    for (int i = 0; i < RESULTS; i++)
        free(kept[i]);
}

/* Each launch takes another schedule. */
static void ten_launches_give_the_same_bits(void **state) {
    (void)state;
    for (int k = 0; k < KINDS; k++) {
        Case c = case_for(&kinds[k], ATTNC_MASK_CAUSAL);
        char *first[RESULTS];
        GradData g;
        attnc_plan *fwd = prepare(&c, kinds[k].target, NULL, NULL);
        attnc_plan *bwd = plan_for(&c, &kinds[k], 1);
        grad_make(&c, &g);
        grad_launch(&c, fwd, bwd, &g);
        keep(&g, first);
        for (int i = 1; i < REPEATS; i++) {
            grad_poison(&g);
            case_launch(&c, bwd, &g.d);
            compare(&g, first);
        }
        forget(first);
        grad_free(&g);
        attnc_plan_release(fwd);
        attnc_plan_release(bwd);
    }
}

/* ---- alone and in a batch ------------------------------------------------ */

static void move(attnc_tensor *t, int64_t entry, int bytes) {
    t->data = (char *)t->data + entry * t->stride_b * bytes;
}

/* The arguments of one entry of *a. */
static attnc_args entry_of(const Case *c, const attnc_args *a, int64_t entry) {
    attnc_args one = *a;
    int bytes = dtype_bytes(c->spec.dtype);
    attnc_tensor *t[] = {&one.q,    &one.k,  &one.v,  &one.o,
                         &one.dout, &one.dq, &one.dk, &one.dv};
    for (int i = 0; i < 8; i++)
        move(t[i], entry, bytes);
    one.lse += entry * a->lse_stride_b;
    one.dlse = a->dlse ? a->dlse + entry * a->lse_stride_b : NULL;
    one.batch = 1;
    return one;
}

static void same_row(const Case *c, const Block *b, const char *kept,
                     const attnc_tensor *t, int64_t heads, int64_t rows) {
    for (int64_t h = 0; h < heads; h++)
        for (int64_t n = 0; n < rows; n++) {
            const char *at = element(c, t, 0, h, n);
            assert_memory_equal(at, kept + (at - b->base),
                                (size_t)(DIM * dtype_bytes(c->spec.dtype)));
        }
}

/* Planned for a batch of 64, launched with four; planned for one, launched
 * with the third of them. */
static void a_sequence_has_its_bits_alone_and_in_a_batch(void **state) {
    (void)state;
    for (int k = 0; k < KINDS; k += 2) {
        Case c = case_for(&kinds[k], ATTNC_MASK_CAUSAL);
        Kind free_choice = kinds[k];
        char *first[RESULTS];
        GradData g;
        c.spec.batch_invariant = 1;
        c.batch = 4;
        free_choice.tile = NULL;
        attnc_plan *fwd = prepare(&c, kinds[k].target, NULL, NULL);
        attnc_plan *many = plan_for(&c, &free_choice, 64);
        attnc_plan *alone = plan_for(&c, &free_choice, 1);
        grad_make(&c, &g);
        grad_launch(&c, fwd, many, &g);
        keep(&g, first);
        grad_poison(&g);
        attnc_args one = entry_of(&c, &g.d.args, 2);
        assert_int_equal(attnc_launch(alone, &one, NULL), 0);
        same_row(&c, &g.dq, first[0], &one.dq, c.heads, c.nq);
        same_row(&c, &g.dk, first[1], &one.dk, c.kv_heads, c.nk);
        same_row(&c, &g.dv, first[2], &one.dv, c.kv_heads, c.nk);
        forget(first);
        grad_free(&g);
        attnc_plan_release(fwd);
        attnc_plan_release(many);
        attnc_plan_release(alone);
    }
}

/* ---- dropout ------------------------------------------------------------- */

static bool is_kept(const attnc_args *a, int64_t b, int64_t h, int64_t i,
                    int64_t j) {
    uint16_t numbers[DROPOUT_PATCH];
    int64_t heads = a->dropout_heads ? a->dropout_heads : a->heads;
    const Dropout d = {.seed = a->dropout_seed,
                       .offset = (uint32_t)a->dropout_offset,
                       .threshold = dropout_threshold(a->dropout_p),
                       .first =
                           (uint32_t)(a->dropout_b0 * heads + a->dropout_h0),
                       .heads = (uint32_t)heads};
    dropout_numbers(&d, b, h, i, j / DROPOUT_PATCH, numbers);
    return numbers[j % DROPOUT_PATCH] >= d.threshold;
}

/* With Q = 0 all weights are 1 / keys, and with row i of dO the i-th unit
 * vector dV[j][i] tells whether weight (i, j) was kept. */
static void check_kept_set(const Case *c, const Kind *k) {
    GradData g;
    attnc_plan *fwd = prepare(c, k->target, NULL, NULL);
    attnc_plan *bwd = plan_for(c, k, 1);
    grad_make(c, &g);
    attnc_args *a = &g.d.args;
    a->dropout_p = 0.4;
    for (int64_t h = 0; h < c->heads; h++)
        for (int64_t i = 0; i < c->nq; i++) {
            put_row(c->spec.dtype, element(c, &a->q, 0, h, i), DIM, 0, true);
            put_row(c->spec.dtype, element(c, &a->dout, 0, h, i), DIM, 0, true);
            put(c->spec.dtype,
                element(c, &a->dout, 0, h, i) + i * dtype_bytes(c->spec.dtype),
                1);
        }
    memcpy(g.d.q.kept, g.d.q.base, g.d.q.bytes);
    memcpy(g.dout.kept, g.dout.base, g.dout.bytes);
    grad_launch(c, fwd, bwd, &g);
    static const char zero[4];
    size_t bytes = (size_t)dtype_bytes(c->spec.dtype);
    for (int64_t h = 0; h < c->heads; h++)
        for (int64_t j = 0; j < c->nk; j++)
            for (int64_t i = 0; i < c->nq; i++) {
                const char *at =
                    element(c, &a->dv, 0, h, j) + (size_t)i * bytes;
                assert_int_equal(memcmp(at, zero, bytes) != 0,
                                 is_kept(a, 0, h, i, j));
            }
    grad_free(&g);
    attnc_plan_release(fwd);
    attnc_plan_release(bwd);
}

static void dropout_keeps_the_same_in_any_tile(void **state) {
    (void)state;
    for (int k = 0; k < KINDS; k++) {
        Case c = case_for(&kinds[k], ATTNC_MASK_NONE);
        c.spec.dropout = 1;
        c.kv_heads = 2;
        check_kept_set(&c, &kinds[k]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ten_launches_give_the_same_bits),
        cmocka_unit_test(a_sequence_has_its_bits_alone_and_in_a_batch),
        cmocka_unit_test(dropout_keeps_the_same_in_any_tile),
    };
    if (!can_emulate())
        return 77;
    random_start();
    return cmocka_run_group_tests(tests, NULL, close_contexts);
}
