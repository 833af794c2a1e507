/* SPDX-License-Identifier: Apache-2.0
 * Gradients of CUDA kernels on emulated devices agree with f64: features, head
 * dims, tiles, corners, with fresh data amid NaN and outputs in poison. */
#include "emu/forward.h"
#include "grad_case.h"

/* The forward by the model's tile, the backward by these ones. */
static void check_grad(const Case *c, int target, const char *tile,
                       const attnc_shape *promises, int times) {
    Case back = *c;
    back.spec = grad_spec(c);
    attnc_plan *fwd = prepare(c, target, NULL, promises);
    attnc_plan *bwd = prepare(&back, target, tile, promises);
    for (int i = 0; i < times; i++)
        grad_check(c, fwd, bwd);
    attnc_plan_release(fwd);
    attnc_plan_release(bwd);
}

/* ---- any mix of features ------------------------------------------------- */

static void features_of(Case *c) {
    attnc_spec *s = &c->spec;
    s->mask = (int32_t)random_int(0, 3);
    s->lens_k = random_int(0, 2) == 0;
    s->varlen = random_int(0, 3) == 0;
    s->softcap = random_int(0, 3) == 0;
    s->alibi = random_int(0, 3) == 0;
    s->sink = random_int(0, 3) == 0;
    s->dropout = random_int(0, 2) == 0;
    c->mode = (int32_t)random_int(0, s->lens_k ? 2 : 1);
    c->offset = PICK(0, 0, 3, -5, 40);
    c->left = s->mask == ATTNC_MASK_WINDOW ? PICK(0, 9, 70, INT64_MAX) : 0;
    c->right = s->mask == ATTNC_MASK_WINDOW ? PICK(0, 4, INT64_MAX) : 0;
    c->prefix = s->mask == ATTNC_MASK_PREFIX ? PICK(0, 3, 90) : 0;
}

/* {batch, kv heads, group, Nq, Nk}: none, one, odd, tails */
static const int64_t sizes[][5] = {{1, 1, 1, 1, 1},    {2, 2, 1, 0, 5},
                                   {1, 2, 1, 7, 0},    {2, 1, 2, 33, 70},
                                   {2, 1, 3, 65, 5},   {1, 2, 1, 128, 64},
                                   {1, 1, 1, 64, 130}, {1, 1, 4, 37, 99}};

static void mix(int target, int kernels) {
    for (int i = 0; i < kernels; i++) {
        Case c = CASE_INIT;
        c.spec.dtype = (int32_t)random_int(0, 2);
        c.spec.head_dim = (int32_t)PICK(1, 8, 16, 24, 40, 64, 64, 72);
        c.spec.head_dim_v = (int32_t)PICK(0, 0, 3, 24, 64);
        features_of(&c);
        Case back = c;
        back.spec = grad_spec(&c);
        attnc_plan *fwd = prepare(&c, target, NULL, NULL);
        attnc_plan *bwd = prepare(&back, target, NULL, NULL);
        for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) {
            c.batch = sizes[n][0];
            c.kv_heads = sizes[n][1];
            c.heads = c.kv_heads * sizes[n][2];
            c.nq = sizes[n][3];
            c.nk = sizes[n][4];
            c.layout = (int)random_int(0, LAYOUTS - 1);
            c.scale = random_int(0, 3) ? NAN : 0.3f;
            grad_check(&c, fwd, bwd);
        }
        attnc_plan_release(fwd);
        attnc_plan_release(bwd);
    }
}

static void any_mix_agrees_on_sm80(void **state) {
    (void)state;
    mix(1, full() ? 60 : 6);
}

static void any_mix_agrees_on_sm75(void **state) {
    (void)state;
    mix(OLD, full() ? 60 : 5);
}

/* ---- tiles, head dims ---------------------------------------------------- */

typedef struct Pinned {
    int target, dtype, dim, dim_v;
    const char *tile;
} Pinned;

/* Warps that share keys; rows of 32; one stage and two; every page width; own
 * rows in registers. */
static const Pinned pinned[] = {
    {1, ATTNC_F16, 64, 0, "block_k=32,rows=32,warps=1,block_q=32,stages=2"},
    {1, ATTNC_F16, 64, 48, "block_k=64,rows=16,warps=4,block_q=16,stages=1"},
    {1, ATTNC_BF16, 72, 0, "split=1,warps=4,rows=16,block_k=32,block_q=32"},
    {2, ATTNC_F16, 128, 0, "dq_block_q=64,dq_warps=2,dq_rows=32,dq_stages=2"},
    {1, ATTNC_F16, 256, 0, NULL},
    {OLD, ATTNC_F16, 128, 104, "dq_stages=1,stages=1"},
    {OLD, ATTNC_F16, 256, 0, NULL},
    {OLD, ATTNC_BF16, 64, 0, "block_k=16,warps=1,rows=16,block_q=16"},
    {3, ATTNC_F32, 128, 0, NULL},
    {1, ATTNC_F32, 64, 40, "split=0,block_k=32,warps=2,rows=16,block_q=16"},
    {2, ATTNC_F32, 24, 0, "split=1,block_k=32,warps=4,rows=16,block_q=32"},
    {3, ATTNC_F32, 256, 0, NULL},
    {1, ATTNC_F16, 64, 24,
     "kv_regs=2,block_k=32,warps=2,rows=16,block_q=32,stages=2,q_do_regs=1"},
    {2, ATTNC_BF16, 128, 0,
     "kv_regs=1,split=1,block_k=32,warps=4,rows=16,block_q=16,q_do_regs=2"},
    {OLD, ATTNC_F16, 24, 72,
     "kv_regs=2,block_k=64,warps=2,rows=32,block_q=16,stages=1,q_do_regs=2"},
    {1, ATTNC_F32, 40, 64,
     "kv_regs=1,block_k=32,warps=2,rows=16,block_q=16,q_do_regs=2"},
    {3, ATTNC_F32, 24, 0,
     "kv_regs=2,block_k=32,warps=2,rows=16,block_q=32,q_do_regs=1"},
};

static void tiles_of_any_kind_agree(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof pinned / sizeof *pinned; i++) {
        const Pinned *p = &pinned[i];
        Case c = simple(p->dtype, p->dim, 70, 100);
        bool tf32 = p->dtype == ATTNC_F32 && p->tile;
        c.spec.f32_math = tf32 ? ATTNC_MATH_TF32 : ATTNC_MATH_IEEE;
        attnc_shape h = ATTNC_SHAPE_DEFAULT;
        c.spec.head_dim_v = p->dim_v;
        c.spec.mask = (int32_t)random_int(0, 1);
        c.mode = c.spec.mask ? ATTNC_OFFSET_BR : 0;
        h.align_q = h.align_k = h.align_v = h.align_o = PICK(4, 8, 16);
        check_grad(&c, p->target, p->tile, i % 2 ? &h : NULL, 2);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_mix_agrees_on_sm80),
        cmocka_unit_test(any_mix_agrees_on_sm75),
        cmocka_unit_test(tiles_of_any_kind_agree),
    };
    if (!can_emulate())
        return 77;
    random_start();
    return cmocka_run_group_tests(tests, NULL, close_contexts);
}
