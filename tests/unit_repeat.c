/* SPDX-License-Identifier: Apache-2.0
 * The same bits: on repeat, on any number of threads, and, where the spec
 * says batch_invariant, alone or in company. */
#include "case.h"

static Case repeat_case(int i) {
    static const int dims[] = {16, 64, 20, 96};
    Case c = CASE_INIT;
    c.spec.dtype = i % 3;
    c.spec.head_dim = dims[i % 4];
    c.spec.mask = i % 4;
    c.spec.softcap = i & 1;
    c.spec.alibi = i >> 1 & 1;
    c.spec.dropout = i % 3 > 0;
    c.left = c.spec.mask == ATTNC_MASK_WINDOW ? 50 : 0;
    c.right = c.left;
    c.prefix = c.spec.mask == ATTNC_MASK_PREFIX ? 50 : 0;
    c.kv_heads = 2;
    c.heads = 4;
    return c;
}

/* Rows that fill blocks and not; few rows with many keys, which are split. */
static const int64_t sizes[][3] = {{2, 150, 333}, {1, 1, 3000}, {1, 3, 2049}};

static char *results_of(const Data *d) {
    char *all = malloc(d->o.bytes + d->lse.bytes);
    memcpy(all, d->o.base, d->o.bytes);
    memcpy(all + d->o.bytes, d->lse.base, d->lse.bytes);
    return all;
}

static attnc_shape hints(const Case *c) {
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    h.batch = c->batch;
    h.heads = c->heads;
    h.kv_heads = c->kv_heads;
    h.seqlen_q = c->nq;
    h.seqlen_k = c->nk;
    return h;
}

/* Launches on contexts of other thread counts, ten times each. */
static void check_repeats(int kernel, Case *c) {
    char *first = NULL;
    Data d;
    data_make(c, &d);
    for (int threads = 1; threads <= 3; threads++) {
        attnc_context *ctx = context_make(kernel, NULL, threads);
        attnc_shape h = hints(c);
        attnc_plan *plan = plan_make(ctx, &c->spec, &h);
        for (int i = 0; i < 10; i++) {
            data_poison(&d);
            case_launch(c, plan, &d);
            char *now = results_of(&d);
            if (first)
                assert_memory_equal(now, first, d.o.bytes + d.lse.bytes);
            free(first);
            first = now;
        }
        attnc_plan_release(plan);
        attnc_context_destroy(ctx);
    }
    check_results(c, &d);
    free(first);
    data_free(&d);
}

static void repeats_and_thread_counts_give_the_same_bits(void **state) {
    for (int i = 0; i < 6; i++) {
        Case c = repeat_case(i);
        c.batch = sizes[i % 3][0];
        c.nq = sizes[i % 3][1];
        c.nk = sizes[i % 3][2];
        check_repeats(*(int *)*state, &c);
    }
}

/* ---- batch invariance -------------------------------------------------- */

/* Launch of entry or sequence `b` of *all by itself. */
static void alone(const Case *c, const Data *all, int64_t b, Data *one,
                  int32_t cu[2][2]) {
    attnc_args *a = &one->args;
    *a = all->args;
    a->batch = 1;
    a->dropout_b0 += c->spec.dropout ? b : 0;
    attnc_tensor *t[] = {&a->q, &a->k, &a->v};
    for (int i = 0; i < 3; i++) {
        int64_t n = i == 0      ? all->cu_q ? all->cu_q[b] : 0
                    : all->cu_k ? all->cu_k[b]
                                : 0;
        t[i]->data = element(c, t[i], b, 0, n);
    }
    for (int i = 0; i < 2 && all->cu_q; i++) {
        const int32_t *from = i ? all->cu_k : all->cu_q;
        cu[i][0] = 0;
        cu[i][1] = from[b + 1] - from[b];
    }
    if (all->cu_q) {
        a->cu_seqlens_q = cu[0];
        a->cu_seqlens_k = cu[1];
        a->seqlen_q = cu[0][1];
        a->seqlen_k = cu[1][1];
    }
}

static void run(const Case *c, attnc_context *ctx, const attnc_args *a) {
    if (attnc_run(ctx, &c->spec, a, NULL) == 0)
        return;
    case_print(c);
    fail_msg("run: %s", attnc_last_error()->text);
}

/* Rows of entry b in both outputs. */
static void check_same(const Case *c, const Data *all, int64_t b,
                       const attnc_args *one, int64_t rows) {
    const attnc_args *a = &all->args;
    int64_t n0 = all->cu_q ? all->cu_q[b] : 0;
    int64_t lse0 = all->cu_q ? n0 : b * a->lse_stride_b;
    size_t bytes = (size_t)(case_dv(c) * dtype_bytes(c->spec.dtype));
    for (int64_t h = 0; h < c->heads; h++)
        for (int64_t i = 0; i < rows; i++) {
            assert_memory_equal(element(c, &a->o, b, h, n0 + i),
                                element(c, &one->o, 0, h, i), bytes);
            assert_true(a->lse[lse0 + h * a->lse_stride_h + i] ==
                        one->lse[h * one->lse_stride_h + i]);
        }
}

static void check_company(attnc_context *ctx, Case *c) {
    Data all, one;
    c->spec.batch_invariant = 1;
    c->batch = 64;
    data_make(c, &all);
    run(c, ctx, &all.args);
    for (int64_t b = 0; b < c->batch; b += 21) {
        int32_t cu[2][2];
        Case single = *c;
        single.batch = 1;
        data_make(&single, &one); /* its outputs */
        attnc_tensor o = one.args.o;
        float *lse = one.args.lse;
        int64_t stride = one.args.lse_stride_h;
        alone(c, &all, b, &one, cu);
        one.args.o = o;
        one.args.lse = lse;
        one.args.lse_stride_h = stride;
        run(&single, ctx, &one.args);
        check_same(c, &all, b, &one.args, one.args.seqlen_q);
        data_free(&one);
    }
    data_free(&all);
}

static void a_sequence_alone_and_in_a_batch_of_64_agree(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    for (int i = 0; i < 8; i++) {
        Case c = repeat_case(i);
        c.spec.varlen = i & 1;
        c.nq = i < 4 ? 40 : 1;
        c.nk = i < 4 ? 90 : 1500;
        check_company(ctx, &c);
    }
    attnc_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_BOTH(repeats_and_thread_counts_give_the_same_bits),
        ON_BOTH(a_sequence_alone_and_in_a_batch_of_64_agree),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
