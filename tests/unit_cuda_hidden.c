/* SPDX-License-Identifier: Apache-2.0
 * Scores of -inf in CUDA kernels, on emulated devices: as behind a mask, what
 * is not finite reaches who sees it and nobody else, in every gradient. */
#include "emu/odd.h"
#include "emu/programs.h"

/* ---- kernels ------------------------------------------------------------- */

typedef struct Kind {
    int target, dtype, tf32, dim, dim_v;
    const char *fwd, *bwd;
    int max_seqlen;
} Kind;

/* Tensor cores in f16, bf16 and tf32, FMA in f32 and f16; copies through
 * registers; one tile and two of V; loops of their own for partial tiles; dK
 * and dV in two warps; dQ in order, in the block of all keys, in any order. */
static const Kind kinds[] = {
    {1, ATTNC_F16, 0, 40, 24,
     "block_q=32,block_k=32,warps=2,rows=16,stages=4,q_regs=1,peel=1,blocks=1",
     NULL, 0},
    {1, ATTNC_BF16, 0, 32, 72,
     "block_q=32,block_k=32,warps=2,rows=16,stages=3,q_regs=0,peel=0,blocks=1",
     "split=1,warps=2,rows=16,block_k=16,block_q=32,kv_regs=1", 0},
    {OLD, ATTNC_F16, 0, 24, 40, NULL,
     "dq=1,block_k=128,warps=4,rows=32,block_q=16", 96},
    {2, ATTNC_F32, 0, 24, 20,
     "block_q=16,block_k=24,warps=2,rows=8,stages=2,peel=1,blocks=1", NULL, 0},
    {2, ATTNC_F32, 1, 40, 24,
     "block_q=32,block_k=32,warps=2,rows=16,stages=2,q_regs=1,peel=1,blocks=1",
     NULL, 0},
    {3, ATTNC_F16, 0, 24, 33, NULL,
     "dq=2,block_k=32,warps=2,rows=16,block_q=32,kv_regs=2", 0},
    {1, ATTNC_BF16, 0, 24, 24, NULL,
     "dq=3,block_k=32,warps=2,rows=16,block_q=32", 0},
    {OLD, ATTNC_BF16, 0, 20, 24, NULL, NULL, 0},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* ---- who sees whom ------------------------------------------------------- */

/* Excluded: (a q + b k + c h) % m < below, and whole keys by a bias. */
typedef struct Hidden {
    int a, b, c, m, below;
    bool key[128]; /* its bias is -inf */
} Hidden;

static Hidden hidden_make(const Case *c) {
    Hidden x = {.a = (int)random_int(0, 5),
                .b = (int)random_int(1, 5),
                .c = (int)random_int(0, 2),
                .m = (int)random_int(2, 7)};
    x.below = (int)random_int(0, x.m);
    for (int64_t k = 0; k < c->nk; k++)
        x.key[k] = c->spec.bias && random_int(0, 3) == 0;
    return x;
}

static bool sees(const Case *c, const Hidden *x, int64_t h, int64_t q,
                 int64_t k) {
    bool masked = (c->spec.mask == ATTNC_MASK_CAUSAL && k > q) ||
                  (c->spec.mask == ATTNC_MASK_PROGRAM && k % 3 == q % 3);
    return !masked && !x->key[k] &&
           (x->a * q + x->b * k + x->c * h) % x->m >= x->below;
}

static void give_programs(Case *c, const Hidden *x) {
    char text[128];
    snprintf(text, sizeof text,
             "(%d * q + %d * k + %d * h) %% %d < %d ? -inf : s * 0.75", x->a,
             x->b, x->c, x->m, x->below);
    c->spec.score_program = program_of(text, ATTNC_SCORE);
    if (c->spec.mask == ATTNC_MASK_PROGRAM)
        c->spec.mask_program = program_of("k % 3 != q % 3", ATTNC_MASK);
}

static void fill_bias(const Case *c, const Hidden *x, Arrays *arrays) {
    attnc_array *t = &arrays->of[0];
    for (int64_t k = 0; c->spec.bias && k < c->nk; k++)
        if (x->key[k])
            ((float *)t->data)[k * t->stride[0]] = -INFINITY;
}

/* ---- what is not finite -------------------------------------------------- */

/* Queries by query heads, keys by kv heads: which numbers of a row are not. */
enum { HEADS = 6, ROWS = 100, DIMS = 80, SPOILT = 3 };
typedef struct Odd {
    bool q[HEADS][ROWS], k[HEADS][ROWS];
    bool v[HEADS][ROWS][DIMS], dout[HEADS][ROWS][DIMS];
} Odd;

static void spoil_some(const Case *c, GradData *g, Odd *odd, bool infinite) {
    attnc_args *a = &g->d.args;
    *odd = (Odd){0};
    for (int i = 0; i < SPOILT; i++) {
        float x = bad[infinite ? random_int(0, 2) : 0];
        int64_t h = random_int(0, c->heads - 1);
        int64_t hk = random_int(0, c->kv_heads - 1);
        int64_t q = random_int(0, c->nq - 1), k = random_int(0, c->nk - 1);
        int64_t q2 = random_int(0, c->nq - 1), k2 = random_int(0, c->nk - 1);
        int column = (int)random_int(0, case_dv(c) - 1);
        spoil(c, &g->d.v, &a->v, hk, k, column, x);
        spoil(c, &g->dout, &a->dout, h, q, column, x);
        odd->v[hk][k][column] = odd->dout[h][q][column] = true;
        if (i > 0 || c->spec.bias) /* NaN - inf is NaN: it hides no score */
            continue;
        spoil(c, &g->d.q, &a->q, h, q2, 1, NAN);
        spoil(c, &g->d.k, &a->k, hk, k2, 2, NAN);
        odd->q[h][q2] = odd->k[hk][k2] = true;
    }
}

/* Of a row of queries: all its scores are NaN; only its delta and so dS. */
typedef struct Taint {
    bool scores[HEADS][ROWS], ds[HEADS][ROWS];
} Taint;

static void expect(const Case *c, const attnc_tensor *t, int64_t h, int64_t n,
                   int column, bool tainted, const char *what) {
    if (isfinite(value_at(c, t, h, n, column)) == !tainted)
        return;
    case_print(c);
    fail_msg("%s of head %d, row %d, column %d is %g", what, (int)h, (int)n,
             column, value_at(c, t, h, n, column));
}

/* O, which comes first, says what delta is. */
static void check_rows(const Case *c, const Hidden *x, const Odd *odd,
                       const GradData *g, Taint *t) {
    int64_t group = c->heads / c->kv_heads;
    for (int64_t h = 0; h < c->heads; h++)
        for (int64_t q = 0; q < c->nq; q++) {
            bool o[DIMS] = {0}, some = false, scores = odd->q[h][q];
            bool out = false;
            for (int64_t k = 0; k < c->nk; k++) {
                if (!sees(c, x, h, q, k))
                    continue;
                some = true;
                scores |= odd->k[h / group][k];
                for (int i = 0; i < case_dv(c); i++)
                    o[i] |= odd->v[h / group][k][i];
            }
            scores &= some;
            for (int i = 0; i < case_dv(c); i++) {
                o[i] |= scores;
                out |= o[i] || odd->dout[h][q][i];
                expect(c, &g->d.args.o, h, q, i, o[i], "o");
            }
            t->scores[h][q] = scores;
            t->ds[h][q] = some && out;
            for (int i = 0; i < c->spec.head_dim; i++)
                expect(c, &g->d.args.dq, h, q, i, t->ds[h][q], "dq");
        }
}

static void check_keys(const Case *c, const Hidden *x, const Odd *odd,
                       const GradData *g, const Taint *t) {
    int64_t group = c->heads / c->kv_heads;
    for (int64_t hk = 0; hk < c->kv_heads; hk++)
        for (int64_t k = 0; k < c->nk; k++) {
            bool dk = false, dv[DIMS] = {0};
            for (int64_t h = hk * group; h < (hk + 1) * group; h++)
                for (int64_t q = 0; q < c->nq; q++) {
                    if (!sees(c, x, h, q, k))
                        continue;
                    dk |= t->ds[h][q];
                    for (int i = 0; i < case_dv(c); i++)
                        dv[i] |= t->scores[h][q] || odd->dout[h][q][i];
                }
            for (int i = 0; i < c->spec.head_dim; i++)
                expect(c, &g->d.args.dk, hk, k, i, dk, "dk");
            for (int i = 0; i < case_dv(c); i++)
                expect(c, &g->d.args.dv, hk, k, i, dv[i], "dv");
        }
}

/* ---- running ------------------------------------------------------------- */

static void launch(const Case *c, const Hidden *x, attnc_plan *fwd,
                   attnc_plan *bwd, bool infinite) {
    GradData g;
    Arrays arrays;
    static Odd odd;
    static Taint taint;
    grad_make(c, &g);
    laid_make(c, &g.d.args, &arrays);
    fill_bias(c, x, &arrays);
    spoil_some(c, &g, &odd, infinite);
    program_grad_launch(c, fwd, bwd, &g, &arrays);
    check_rows(c, x, &odd, &g, &taint);
    check_keys(c, x, &odd, &g, &taint);
    check_results(c, &g.d);
    /* Sums of Inf may come out as NaN, and so do dropped ones. */
    if (!infinite && !c->spec.dropout)
        grad_check_results(c, &g);
    grad_check_kept(c, &g);
    arrays_free(&arrays);
    grad_free(&g);
}

static void check_kind(const Kind *kind, int i) {
    Case c = case_of(kind->dtype, kind->dim, kind->dim_v,
                     (int)PICK(ATTNC_MASK_NONE, ATTNC_MASK_NONE,
                               ATTNC_MASK_CAUSAL, ATTNC_MASK_PROGRAM));
    c.spec.f32_math = kind->tf32;
    c.spec.bias = random_int(0, 1) ? ATTNC_BIAS_K : ATTNC_BIAS_NONE;
    c.spec.dropout = i % 3 == 1;
    c.spec.softcap = i % 4 == 1;
    c.spec.alibi = i % 4 == 2;
    c.kv_heads = random_int(1, 2);
    c.heads = c.kv_heads * random_int(1, 3);
    c.nq = PICK(40, 64, 70);
    c.nk = PICK(64, 90, 96);
    Hidden x = hidden_make(&c);
    give_programs(&c, &x);
    Case back = c;
    attnc_shape h = shape_of(&c);
    back.spec = grad_spec(&c);
    back.spec.deterministic = !kind->bwd || !strstr(kind->bwd, "dq=3");
    h.max_seqlen = kind->max_seqlen;
    h.mult_k = c.nk == 64 ? PICK(1, 64) : 1;
    attnc_plan *fwd = prepare(&c, kind->target, kind->fwd, &h);
    attnc_plan *bwd = prepare(&back, kind->target, kind->bwd, &h);
    for (int n = 0; n < 3; n++)
        launch(&c, &x, fwd, bwd, n > 0);
    attnc_plan_release(fwd);
    attnc_plan_release(bwd);
}

static void a_score_of_minus_infinity_hides_what_is_not_finite(void **state) {
    (void)state;
    for (int n = 0; n < (full() ? 6 : 1); n++)
        for (int i = 0; i < KINDS; i++)
            check_kind(&kinds[i], n + i);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_score_of_minus_infinity_hides_what_is_not_finite)};
    if (!can_emulate())
        return 77;
    random_start();
    return cmocka_run_group_tests(tests, NULL, close_contexts);
}
