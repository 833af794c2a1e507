/* SPDX-License-Identifier: Apache-2.0
 * Gradients of CUDA kernels at the corners, on emulated devices: Inf and NaN
 * reach who sees them and nobody else; what nobody sees gets exact zeros. */
#include "emu/odd.h"

/* ---- kernels ------------------------------------------------------------- */

typedef struct Kind {
    int target, dtype, dim, dim_v;
    const char *tile;
    int max_seqlen;
} Kind;

/* Tensor cores with dK and dV in one warp and in two, without cp.async, FMA;
 * dQ in order and in the block of all keys. */
static const Kind kinds[] = {
    {1, ATTNC_F16, 40, 24, NULL},
    {1, ATTNC_BF16, 32, 32, "split=1,warps=2,rows=16,block_k=16,block_q=32"},
    {OLD, ATTNC_F16, 24, 40, NULL},
    {2, ATTNC_F32, 24, 20, NULL},
    {3, ATTNC_F16, 24, 24, "dq=2,block_k=32,warps=2,rows=16,block_q=32"},
    {1, ATTNC_F16, 40, 24,
     "dq=2,kv_regs=2,block_k=32,warps=2,rows=16,block_q=32"},
    {2, ATTNC_BF16, 24, 40,
     "kv_regs=2,block_k=32,warps=2,rows=16,block_q=16,q_do_regs=2"},
    {OLD, ATTNC_F16, 32, 24, "dq=1,block_k=128,warps=4,rows=32,block_q=16", 96},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static Case corner_case(const Kind *k, int mask) {
    Case c = case_of(k->dtype, k->dim, k->dim_v, mask);
    c.heads = 2;
    c.kv_heads = 1;
    c.nq = 70;
    c.nk = 90;
    c.left = mask == ATTNC_MASK_WINDOW ? 30 : 0;
    c.right = mask == ATTNC_MASK_WINDOW ? 4 : 0;
    c.prefix = mask == ATTNC_MASK_PREFIX ? 20 : 0;
    return c;
}

typedef void (*Check)(Case *c, attnc_plan *fwd, attnc_plan *bwd);

static void with_kind(const Kind *k, Case *c, Check check) {
    Case back = *c;
    back.spec = grad_spec(c);
    attnc_plan *fwd = prepare(c, k->target, NULL, NULL);
    attnc_shape h = shape_of(c);
    h.max_seqlen = k->max_seqlen;
    attnc_plan *bwd = prepare(&back, k->target, k->tile, &h);
    check(c, fwd, bwd);
    attnc_plan_release(fwd);
    attnc_plan_release(bwd);
}

/* ---- what is not finite -------------------------------------------------- */

static bool sees(const Case *c, int64_t i, int64_t j) {
    switch (c->spec.mask) {
    case ATTNC_MASK_WINDOW:
        return i - c->left <= j && j <= i + c->right;
    case ATTNC_MASK_PREFIX:
        return j < c->prefix || j <= i;
    default:
        return j <= i;
    }
}

/* Of one element of dO: the same in that column of dV for all keys that its
 * query sees (NaN where dropped, for it is 0 times that), in no others. */
static void check_reach(const Case *c, const GradData *g, int64_t h, int64_t n,
                        int column, float x) {
    int64_t group = c->heads / c->kv_heads;
    for (int64_t hk = 0; hk < c->kv_heads; hk++)
        for (int64_t j = 0; j < c->nk; j++) {
            float y = value_at(c, &g->d.args.dv, hk, j, column);
            if (hk != h / group || !sees(c, n, j))
                assert_true(isfinite(y));
            else
                assert_true(x == y ||
                            (isnan(y) && (isnan(x) || c->spec.dropout)));
        }
}

/* In tiles that all see and in tiles that only some do. */
static void check_dout(Case *c, attnc_plan *fwd, attnc_plan *bwd) {
    for (int i = 0; i < 3; i++) {
        GradData g;
        grad_make(c, &g);
        attnc_tensor *dout = &g.d.args.dout;
        spoil(c, &g.dout, dout, 0, 20, 3, bad[i]);
        spoil(c, &g.dout, dout, 1, 69, 19, bad[(i + 1) % 3]);
        spoil(c, &g.dout, dout, 0, 41, 0, bad[(i + 2) % 3]);
        grad_launch(c, fwd, bwd, &g);
        check_reach(c, &g, 0, 20, 3, bad[i]);
        check_reach(c, &g, 1, 69, 19, bad[(i + 1) % 3]);
        check_reach(c, &g, 0, 41, 0, bad[(i + 2) % 3]);
        grad_check_kept(c, &g);
        grad_free(&g);
    }
}

static void odd_ones_of_dout_reach_who_sees_them(void **state) {
    (void)state;
    for (int k = 0; k < KINDS; k++) {
        Case c = corner_case(&kinds[k], 1 + k % 3);
        c.spec.dropout = k == 1;
        with_kind(&kinds[k], &c, check_dout);
    }
}

static bool is_zero(const Case *c, const attnc_tensor *t, int64_t b, int64_t h,
                    int64_t n, int dim) {
    const char *p = element(c, t, b, h, n);
    for (int i = 0; i < dim * dtype_bytes(c->spec.dtype); i++)
        if (p[i] && (uint8_t)p[i] != 0x80)
            return false;
    return true;
}

static bool is_finite(const Case *c, const attnc_tensor *t, int64_t h,
                      int64_t n, int dim) {
    for (int i = 0; i < dim; i++)
        if (!isfinite(value_at(c, t, h, n, i)))
            return false;
    return true;
}

/* Causal, 60 queries: key 60 holds NaN or Inf, which none of them sees; query
 * 20 does, which no key behind it sees. */
static void check_hidden(Case *c, attnc_plan *fwd, attnc_plan *bwd) {
    for (int i = 0; i < 3; i++) {
        GradData g;
        grad_make(c, &g);
        attnc_args *a = &g.d.args;
        spoil(c, &g.d.k, &a->k, 0, 60, 1, bad[i]);
        spoil(c, &g.d.v, &a->v, 0, 60, 2, bad[(i + 1) % 3]);
        spoil(c, &g.d.q, &a->q, 0, 20, 0, bad[(i + 2) % 3]);
        spoil(c, &g.dout, &a->dout, c->heads - 1, 20, 2, bad[i]);
        grad_launch(c, fwd, bwd, &g);
        for (int64_t h = 0; h < c->heads; h++)
            for (int64_t n = 0; n < c->nq; n++)
                assert_true(n == 20 ||
                            is_finite(c, &a->dq, h, n, c->spec.head_dim));
        for (int64_t h = 0; h < c->kv_heads; h++)
            for (int64_t n = 21; n < c->nk; n++)
                assert_true(is_finite(c, &a->dk, h, n, c->spec.head_dim) &&
                            is_finite(c, &a->dv, h, n, case_dv(c)));
        grad_check_kept(c, &g);
        grad_free(&g);
    }
}

static void hidden_ones_reach_nobody(void **state) {
    (void)state;
    for (int k = 0; k < KINDS; k++) {
        Case c = corner_case(&kinds[k], ATTNC_MASK_CAUSAL);
        c.nq = 60;
        with_kind(&kinds[k], &c, check_hidden);
    }
}

/* Key 45 is not finite, in all tiles that hold it for some query to see. */
static void check_key(Case *c, attnc_plan *fwd, attnc_plan *bwd) {
    GradData g;
    grad_make(c, &g);
    attnc_args *a = &g.d.args;
    spoil(c, &g.d.k, &a->k, 0, 45, 1, bad[random_int(0, 1)]);
    grad_launch(c, fwd, bwd, &g);
    for (int64_t h = 0; h < c->heads; h++)
        for (int64_t n = 0; n < 45; n++)
            assert_true(is_finite(c, &a->dq, h, n, c->spec.head_dim));
    assert_false(is_finite(c, &a->dk, 0, 45, c->spec.head_dim) &&
                 is_finite(c, &a->dq, 0, 69, c->spec.head_dim) &&
                 is_finite(c, &a->dq, 1, 69, c->spec.head_dim));
    grad_check_kept(c, &g);
    grad_free(&g);
}

static void a_key_reaches_who_sees_it(void **state) {
    (void)state;
    for (int k = 0; k < KINDS; k++) {
        Case c = corner_case(&kinds[k], ATTNC_MASK_CAUSAL);
        with_kind(&kinds[k], &c, check_key);
    }
}

/* ---- padding ------------------------------------------------------------- */

/* dO and Q full of Inf: keys behind the length get zeros, and nothing else. */
static void check_padding(Case *c, attnc_plan *fwd, attnc_plan *bwd) {
    GradData g;
    grad_make(c, &g);
    attnc_args *a = &g.d.args;
    for (int64_t n = 0; n < c->nq; n += 13) {
        spoil(c, &g.dout, &a->dout, 0, n, 1, bad[n % 3]);
        spoil(c, &g.d.q, &a->q, 1, n, 2, bad[(n + 1) % 3]);
    }
    grad_launch(c, fwd, bwd, &g);
    for (int64_t b = 0; b < c->batch; b++)
        for (int64_t n = a->lens_k[b]; n < c->nk; n++)
            for (int64_t h = 0; h < c->kv_heads; h++) {
                assert_true(is_zero(c, &a->dk, b, h, n, c->spec.head_dim));
                assert_true(is_zero(c, &a->dv, b, h, n, case_dv(c)));
            }
    grad_check_kept(c, &g);
    grad_free(&g);
}

static void padding_gets_zeros_whatever_is_seen(void **state) {
    (void)state;
    for (int k = 0; k < KINDS; k++) {
        Case c = corner_case(&kinds[k], k % 2 ? ATTNC_MASK_NONE : k / 2);
        c.spec.lens_k = 1;
        c.batch = 3;
        c.mode = c.spec.mask ? ATTNC_OFFSET_LEN : 0;
        with_kind(&kinds[k], &c, check_padding);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(odd_ones_of_dout_reach_who_sees_them),
        cmocka_unit_test(hidden_ones_reach_nobody),
        cmocka_unit_test(a_key_reaches_who_sees_it),
        cmocka_unit_test(padding_gets_zeros_whatever_is_seen),
    };
    if (!can_emulate())
        return 77;
    random_start();
    return cmocka_run_group_tests(tests, NULL, close_contexts);
}
