/* SPDX-License-Identifier: Apache-2.0
 * Gradients have the same bits on any number of threads, on repeat, and for a
 * sequence alone as among others. */
#include "grad_case.h"
#include "runtime.h"

/* dtype, mask, varlen, dropout, sink. */
static const int features[][5] = {
    {ATTNC_F32, ATTNC_MASK_CAUSAL, 0, 0, 1},
    {ATTNC_F16, ATTNC_MASK_NONE, 0, 1, 0},
    {ATTNC_BF16, ATTNC_MASK_WINDOW, 1, 0, 0},
    {ATTNC_F32, ATTNC_MASK_PREFIX, 1, 1, 1},
};
enum { CASES = sizeof features / sizeof *features };

static Case bits_case(const int *f) {
    Case c = CASE_INIT;
    c.spec.dtype = f[0];
    c.spec.mask = f[1];
    c.spec.varlen = f[2];
    c.spec.dropout = f[3];
    c.spec.sink = f[4];
    c.spec.head_dim = 40;
    c.spec.head_dim_v = 24;
    c.left = f[1] == ATTNC_MASK_WINDOW ? 70 : 0;
    c.right = f[1] == ATTNC_MASK_WINDOW ? 9 : 0;
    c.prefix = f[1] == ATTNC_MASK_PREFIX ? 30 : 0;
    c.heads = 4;
    c.kv_heads = 2;
    return c;
}

/* ---- threads, repeats -------------------------------------------------- */

static void keep_results(const GradData *g, Block out[3]) {
    const Block *from[] = {&g->dq, &g->dk, &g->dv};
    for (int i = 0; i < 3; i++) {
        out[i] =
            (Block){.base = malloc(from[i]->bytes), .bytes = from[i]->bytes};
        memcpy(out[i].base, from[i]->base, from[i]->bytes);
    }
}

/* On 1, 2 and 5 threads, each four times, into fresh poison. */
static void check_repeats(int kernel, Case *c, const char *tile) {
    GradData g;
    Block first[3] = {{0}};
    attnc_spec s = grad_spec(c);
    grad_make(c, &g);
    for (int i = 0; i < 3; i++) {
        attnc_context *ctx = context_make(kernel, NULL, (int[]){1, 2, 5}[i]);
        attnc_plan *fwd = plan_make(ctx, &c->spec, NULL);
        attnc_plan *bwd = plan_with(ctx, &s, tile);
        for (int n = 0; n < 4; n++) {
            grad_poison(&g);
            grad_launch(c, fwd, bwd, &g);
            if (i + n == 0)
                keep_results(&g, first);
            Block *now[] = {&g.dq, &g.dk, &g.dv};
            for (int k = 0; k < 3; k++)
                assert_memory_equal(first[k].base, now[k]->base, now[k]->bytes);
        }
        attnc_plan_release(fwd);
        attnc_plan_release(bwd);
        attnc_context_destroy(ctx);
    }
    for (int k = 0; k < 3; k++)
        free(first[k].base);
    grad_free(&g);
}

static void threads_and_repeats_change_no_bit(void **state) {
    int kernel = *(int *)*state;
    bool pinned = kernel == KERNEL_COMPILED && probe_runs("avx2");
    for (int n = 0; n < CASES; n++) {
        Case c = bits_case(features[n]);
        c.batch = 2;
        c.nq = 150;
        c.nk = 400;
        check_repeats(kernel, &c, NULL);
        for (int i = 0; n == 0 && pinned && i < GRAD_TILES; i++)
            check_repeats(kernel, &c, grad_tiles[i]);
    }
}

/* ---- company ----------------------------------------------------------- */

/* Entry or sequence `b` of *all by itself; outputs are those of *one. */
static void alone(const Case *c, const GradData *all, int64_t b, GradData *one,
                  int32_t cu[2][2]) {
    const Data *d = &all->d;
    attnc_args *a = &one->d.args, out = *a;
    int64_t q0 = d->cu_q ? d->cu_q[b] : 0, k0 = d->cu_k ? d->cu_k[b] : 0;
    int64_t row = d->cu_q ? q0 : b * d->args.lse_stride_b;
    *a = d->args;
    a->batch = 1;
    a->dropout_b0 += c->spec.dropout ? b : 0;
    a->lse += row;
    a->dlse = a->dlse ? a->dlse + row : NULL;
    attnc_tensor *t[] = {&a->q, &a->o, &a->dout, &a->k, &a->v};
    for (int i = 0; i < 5; i++)
        t[i]->data = element(c, t[i], b, 0, i < 3 ? q0 : k0);
    a->dq = out.dq;
    a->dk = out.dk;
    a->dv = out.dv;
    a->dsink = out.dsink;
    if (!d->cu_q)
        return;
    cu[0][0] = cu[1][0] = 0;
    a->seqlen_q = cu[0][1] = d->cu_q[b + 1] - d->cu_q[b];
    a->seqlen_k = cu[1][1] = d->cu_k[b + 1] - d->cu_k[b];
    a->cu_seqlens_q = cu[0];
    a->cu_seqlens_k = cu[1];
}

static void run(attnc_context *ctx, const attnc_spec *s, const attnc_args *a) {
    attnc_args x = *a;
    x.workspace = NULL;
    if (attnc_run(ctx, s, &x, NULL))
        fail_msg("run: %s", attnc_last_error()->text);
}

static void check_rows(const Case *c, const attnc_tensor *all,
                       const attnc_tensor *one, int64_t b, int64_t first,
                       int64_t rows, int64_t heads, int dim) {
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < rows; i++)
            assert_memory_equal(element(c, all, b, h, first + i),
                                element(c, one, 0, h, i),
                                (size_t)(dim * dtype_bytes(c->spec.dtype)));
}

static void check_company(attnc_context *ctx, const Case *c) {
    attnc_spec s = grad_spec(c);
    GradData all;
    grad_make(c, &all);
    const attnc_args *a = &all.d.args;
    run(ctx, &c->spec, a);
    run(ctx, &s, a);
    for (int64_t b = 0; b < c->batch; b += 21) {
        int32_t cu[2][2];
        GradData one;
        Case single = *c;
        single.batch = 1;
        grad_make(&single, &one);
        alone(c, &all, b, &one, cu);
        const attnc_args *o = &one.d.args;
        run(ctx, &s, o);
        int64_t q0 = all.d.cu_q ? all.d.cu_q[b] : 0;
        int64_t k0 = all.d.cu_k ? all.d.cu_k[b] : 0;
        check_rows(c, &a->dq, &o->dq, b, q0, o->seqlen_q, c->heads, 40);
        check_rows(c, &a->dk, &o->dk, b, k0, o->seqlen_k, c->kv_heads, 40);
        check_rows(c, &a->dv, &o->dv, b, k0, o->seqlen_k, c->kv_heads, 24);
        grad_free(&one);
    }
    grad_free(&all);
}

/* Under batch_invariant, in a batch of 64. */
static void company_changes_no_bit(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    for (int n = 0; n < CASES; n++) {
        Case c = bits_case(features[n]);
        c.spec.batch_invariant = 1;
        c.batch = 64;
        c.nq = 60;
        c.nk = 90;
        c.layout = (int)random_int(0, GAPS);
        check_company(ctx, &c);
    }
    attnc_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_BOTH(threads_and_repeats_change_no_bit),
        ON_BOTH(company_changes_no_bit),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
