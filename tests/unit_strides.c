/* SPDX-License-Identifier: Apache-2.0
 * Tensors as they lie: any order and padding, stride 0, packed QKV, pointers
 * one element off, rows further apart than 32 bits reach, more heads than a
 * 16-bit grid holds. */
#include <sys/mman.h>

#include "case.h"

static Case case_for(int dtype) {
    Case c = case_of(dtype, 24, 17, ATTNC_MASK_CAUSAL);
    c.mode = ATTNC_OFFSET_BR;
    return c;
}

static void any_strides_agree_with_f64(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    for (int dtype = 0; dtype < 3; dtype++) {
        Case c = case_for(dtype);
        attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
        for (int i = 0; i < 60; i++) {
            c.layout = i < 30 ? FUZZ : i % LAYOUTS;
            c.batch = random_int(1, 3);
            c.kv_heads = random_int(1, 3);
            c.heads = c.kv_heads * random_int(1, 3);
            c.nq = random_int(1, 50);
            c.nk = random_int(1, 150);
            case_check(&c, plan);
        }
        attnc_plan_release(plan);
    }
    attnc_context_destroy(ctx);
}

/* One buffer [B, N, 3, H, d] holds Q, K and V; `off` bytes before it. */
static void check_packed(attnc_plan *plan, const Case *c, int off) {
    Data d;
    data_make(c, &d);
    int size = dtype_bytes(c->spec.dtype), dim = c->spec.head_dim;
    int64_t row = 3 * c->heads * dim, n = c->batch * c->nq * row;
    char *all = malloc((size_t)(n * size + off));
    put_row(c->spec.dtype, all + off, (int)n, 1, false);
    attnc_tensor *t[3] = {&d.args.q, &d.args.k, &d.args.v};
    for (int i = 0; i < 3; i++) {
        t[i]->data = all + off + i * c->heads * dim * size;
        t[i]->stride_h = dim;
        t[i]->stride_n = row;
        t[i]->stride_b = c->nq * row;
    }
    case_launch(c, plan, &d);
    check_results(c, &d);
    check_kept(c, &d);
    free(all);
    data_free(&d);
}

static void packed_qkv_agrees_with_f64(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    for (int dtype = 0; dtype < 3; dtype++) {
        Case c = case_for(dtype);
        c.spec.head_dim_v = 24;
        c.batch = 2;
        c.heads = c.kv_heads = 3;
        c.nq = c.nk = 45;
        attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
        check_packed(plan, &c, 0);
        check_packed(plan, &c, dtype_bytes(dtype));
        check_packed(plan, &c, 2); /* f32: the alignment promised is 2 */
        attnc_plan_release(plan);
    }
    attnc_context_destroy(ctx);
}

/* Moves a tensor's rows to a sparse mapping, `apart` elements between rows,
 * heads or entries, as `which` says; returns the mapping. */
static void *spread(const Case *c, attnc_tensor *t, int64_t heads, int64_t n,
                    int dim, int which, int64_t apart, size_t *bytes) {
    attnc_tensor to = {
        .stride_n = dim, .stride_h = n * dim, .stride_b = heads * n * dim};
    int64_t *strides[] = {&to.stride_n, &to.stride_h, &to.stride_b};
    int64_t counts[] = {n, heads, c->batch};
    int size = dtype_bytes(c->spec.dtype);
    *strides[which] = apart;
    *bytes =
        (size_t)((apart * counts[which] + c->batch * heads * n * dim) * size);
    to.data = mmap(NULL, *bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (to.data == MAP_FAILED)
        skip();
    for (int64_t b = 0; b < c->batch; b++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = 0; i < n; i++)
                memcpy(element(c, &to, b, h, i), element(c, t, b, h, i),
                       (size_t)(dim * size));
    *t = to;
    return to.data;
}

/* Three rows, heads or entries, 2^31 + 3 elements apart, of each tensor. */
static void strides_beyond_32_bits_reach_their_rows(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 1);
    Case c = case_for(ATTNC_F32);
    c.batch = c.heads = c.kv_heads = c.nq = c.nk = 3;
    attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
    for (int i = 0; i < 12; i++) {
        Data d;
        data_make(&c, &d);
        attnc_tensor *t[] = {&d.args.q, &d.args.k, &d.args.v, &d.args.o};
        size_t bytes;
        void *far = spread(&c, t[i / 3], 3, 3,
                           i / 3 < 2 ? c.spec.head_dim : case_dv(&c), i % 3,
                           (1ll << 31) + 3, &bytes);
        case_launch(&c, plan, &d);
        check_results(&c, &d);
        munmap(far, bytes);
        data_free(&d);
    }
    attnc_plan_release(plan);
    attnc_context_destroy(ctx);
}

static void heads_beyond_16_bits_agree_with_f64(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    Case c = CASE_INIT;
    c.spec.dtype = ATTNC_F16;
    c.spec.head_dim = 8;
    c.spec.mask = ATTNC_MASK_CAUSAL;
    c.heads = c.kv_heads = 70;
    c.batch = 1000;
    c.nq = c.nk = 4;
    attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
    case_check(&c, plan);
    c.heads = 70000;
    c.kv_heads = 35000;
    c.batch = 1;
    case_check(&c, plan);
    attnc_plan_release(plan);
    attnc_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_BOTH(any_strides_agree_with_f64),
        ON_BOTH(packed_qkv_agrees_with_f64),
        ON_BOTH(strides_beyond_32_bits_reach_their_rows),
        ON_BOTH(heads_beyond_16_bits_agree_with_f64),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
