/* SPDX-License-Identifier: Apache-2.0
 * Programs, bias and patterns in the kernels of CPUs, forward and backward,
 * against plain f64. */
#include "program_truth.h"

/* ---- comparison -------------------------------------------------------- */

/* What one tensor of results has been off by so far. */
typedef struct Sum {
    const char *name;
    double off, all, most;
    int64_t bad; /* one is finite, the other not */
} Sum;

static void compare(Sum *s, double x, double want) {
    if (isfinite(x) != isfinite(want) || isnan(x) != isnan(want))
        s->bad++;
    if (!isfinite(x) || !isfinite(want))
        return;
    s->off += (x - want) * (x - want);
    s->all += want * want;
    s->most = fmax(s->most, fabs(x - want));
}

static void expect_near(const Case *c, const Sum *s) {
    static const double limit[] = {3e-5, 4e-3, 3e-2};
    double off = sqrt(s->off), all = sqrt(s->all);
    if (!s->bad && off <= limit[c->spec.dtype] * (all + 0.1))
        return;
    case_print(c);
    fail_msg("%s: off by %.3g of %.3g, at most %.3g; %lld not finite as wanted",
             s->name, off, all, s->most, (long long)s->bad);
}

/* Rows of a tensor as launched against a dense one, of n rows at most. */
static void expect_rows(const Case *c, const char *name, const attnc_tensor *x,
                        const int32_t *cu, int64_t heads, int64_t n, int dim,
                        const double *want) {
    Sum s = {.name = name};
    for (int64_t b = 0; b < c->batch; b++) {
        int64_t from, to;
        rows_of(c, cu, n, b, &from, &to);
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = from; i < to; i++)
                for (int e = 0; e < dim; e++)
                    compare(&s, number(c, x, b, h, i, e),
                            want[((b * heads + h) * n + i - from) * dim + e]);
    }
    expect_near(c, &s);
}

static double lse_at(const Data *d, int64_t b, int64_t h, int64_t i) {
    const attnc_args *a = &d->args;
    int64_t at = h * a->lse_stride_h + i;
    return (double)a->lse[at + (d->cu_q ? 0 : b * a->lse_stride_b)];
}

static void expect_lse(const Case *c, const Data *d, const Truth *t) {
    Sum s = {.name = "lse"};
    for (int64_t b = 0; b < c->batch; b++) {
        int64_t from, to;
        rows_of(c, d->cu_q, c->nq, b, &from, &to);
        for (int64_t h = 0; h < c->heads; h++)
            for (int64_t i = from; i < to; i++)
                compare(&s, lse_at(d, b, h, i),
                        t->lse[(b * c->heads + h) * c->nq + i - from]);
    }
    s.all += 1;
    expect_near(c, &s);
}

static void expect_forward(const Case *c, const Data *d, const Truth *t) {
    expect_rows(c, "o", &d->args.o, d->cu_q, c->heads, c->nq, case_dv(c), t->o);
    expect_lse(c, d, t);
}

static void expect_grads(const Case *c, const GradData *g, const Arrays *x,
                         const Truth *t) {
    const Data *d = &g->d;
    const attnc_args *a = &d->args;
    int dim = c->spec.head_dim;
    expect_rows(c, "dq", &a->dq, d->cu_q, c->heads, c->nq, dim, t->dq);
    expect_rows(c, "dk", &a->dk, d->cu_k, c->kv_heads, c->nk, dim, t->dk);
    expect_rows(c, "dv", &a->dv, d->cu_k, c->kv_heads, c->nk, case_dv(c),
                t->dv);
    Sum s = {.name = "dsink"};
    for (int64_t h = 0; c->spec.sink && h < c->heads; h++)
        compare(&s, (double)g->dsink[h], t->dsink[h]);
    expect_near(c, &s);
    for (int i = 0; i < x->n; i++) {
        Sum grad = {.name = x->known[i].name};
        for (int64_t e = 0; x->grad[i] && e < x->size[i]; e++)
            compare(&grad, (double)x->grad[i][e], x->expect[i][e]);
        grad.all += 1; /* of a shift of whole rows it is 0 */
        expect_near(c, &grad);
    }
}

/* ---- running ----------------------------------------------------------- */

static void spec_set_text(attnc_spec *s, const char *text) {
    Err e = {0};
    if (spec_parse(text, s, &e))
        fail_msg("%s: %s", text, e.text);
}

/* Hints that may be wrong: they say into how many parts work falls. */
static attnc_shape shape_of(const Case *c) {
    attnc_shape shape = ATTNC_SHAPE_DEFAULT;
    int64_t length = random_int(0, 2), batch = random_int(0, 3);
    shape.batch = batch ? c->batch : random_int(1, 9);
    shape.heads = c->heads;
    shape.kv_heads = c->kv_heads;
    shape.seqlen_q = !c->nq ? 1 : length ? c->nq : random_int(1, 4 * c->nq);
    shape.seqlen_k = c->nk ? c->nk : 1;
    return shape;
}

/* Rows of every third key. */
static void poison_rows(const Case *c, Block *block, const attnc_tensor *t,
                        int dim) {
    for (int64_t b = 0; b < c->batch; b++)
        for (int64_t h = 0; h < c->kv_heads; h++)
            for (int64_t k = 1; k < c->nk; k += 3)
                put_row(c->spec.dtype, element(c, t, b, h, k), dim,
                        k % 2 ? NAN : INFINITY, true);
    memcpy(block->kept, block->base, block->bytes);
}

static void check_case(attnc_context *ctx, const Case *c, bool grads,
                       bool poisoned) {
    GradData g;
    Arrays arrays;
    Truth t;
    Case first = *c;
    attnc_shape shape = shape_of(c);
    first.spec.tensor_grads = 0;
    attnc_plan *fwd = plan_make(ctx, &first.spec, &shape);
    grad_make(c, &g);
    if (poisoned) {
        poison_rows(c, &g.d.k, &g.d.args.k, c->spec.head_dim);
        poison_rows(c, &g.d.v, &g.d.args.v, case_dv(c));
    }
    arrays_make(c, &arrays, &g.d.args);
    truth_make(c, &g, &arrays, grads, &t);
    if (grads) {
        attnc_spec spec = grad_spec(c);
        attnc_plan *bwd = plan_make(ctx, &spec, &shape);
        case_launch(c, fwd, &g.d);
        memcpy(g.d.o.kept, g.d.o.base, g.d.o.bytes);
        memcpy(g.d.lse.kept, g.d.lse.base, g.d.lse.bytes);
        arrays_ask(&arrays);
        case_launch(c, bwd, &g.d);
        expect_grads(c, &g, &arrays, &t);
        grad_check_kept(c, &g);
        attnc_plan_release(bwd);
    } else {
        case_launch(c, fwd, &g.d);
    }
    expect_forward(c, &g.d, &t);
    if (!grads)
        check_kept(c, &g.d);
    truth_free(&t);
    arrays_free(&arrays);
    grad_free(&g);
    attnc_plan_release(fwd);
}

/* {fields of the spec; batch, heads, kv heads, Nq, Nk} */
typedef struct Kind {
    const char *text;
    int64_t size[5];
} Kind;

static const Kind kinds[] = {
    {"mask=program mask_program=\"k <= q\"", {1, 2, 2, 100, 130}},
    {"mask=program mask_program=\"k <= q + off\" head_dim=20",
     {2, 4, 2, 70, 90}},
    {"mask=program mask_program=\"i32 doc[:,:]; doc[b, q] == doc[b, k]\" "
     "head_dim=40 sink=1",
     {2, 4, 2, 90, 90}},
    {"mask=program varlen=1 lens_k=1 mask_program=\"i32 doc[:,:]; doc[b, q] "
     "== doc[b, k] && k <= q + off\"",
     {3, 3, 1, 90, 80}},
    {"mask=program mask_program=\"i32 left; q - k <= left + 9 * h\" "
     "softcap=1",
     {2, 4, 2, 130, 140}},
    {"mask=program mask_program=\"bits lit[:,:]; lit[q, k]\" varlen=1",
     {3, 4, 2, 90, 150}},
    {"mask=program mask_program=\"bits lit[:,:]; lit[q / 16, k / 4] "
     "|| lit[k, q]\"",
     {1, 2, 2, 130, 270}},
    {"mask=program mask_program=\"bool keep[:,:]; keep[q, k]\" dtype=f16",
     {1, 4, 2, 33, 50}},
    {"mask=program mask_program=\"i32 mark[:,:]; bool on[:,:]; "
     "mark[q, k] != 2 || on[q, k]\"",
     {1, 4, 2, 77, 50}},
    {"mask=causal score_program=\"f32 slope[:]; s + slope[h] * 0.1 * "
     "abs(q - k)\"",
     {2, 4, 2, 70, 90}},
    {"mask=window alibi=1 score_program=\"f32 gate[:]; s * tanh(gate[h])\"",
     {2, 4, 4, 90, 90}},
    {"score_program=\"10.0 * tanh(s / 10.0)\" dropout=1 head_dim=33 "
     "head_dim_v=24",
     {2, 3, 1, 65, 70}},
    {"score_program=\"bool keep[:,:]; f32 bias[:,:,:]; keep[q, k] ? s + "
     "bias[h, q, k] : -inf\" dropout=1",
     {2, 4, 2, 65, 70}},
    {"score_program=\"f16 half[:,:]; k % 3 == 1 && q > 5 ? -inf : "
     "exp(s) * 0.2 + log(1.5 + abs(half[h, k]))\" sink=1 varlen=1",
     {2, 4, 2, 65, 90}},
    {"bias=hqk mask=causal", {2, 4, 2, 100, 100}},
    {"bias=bhqk dropout=1 dtype=bf16", {2, 2, 1, 50, 61}},
    {"bias=bk lens_k=1", {3, 2, 2, 50, 61}},
    {"bias=q softcap=1 alibi=1", {2, 2, 1, 50, 61}},
    {"bias=1 mask=prefix", {1, 2, 1, 50, 61}},
    {"sparsity=\"butterfly:m=2 block=16\"", {1, 2, 1, 250, 250}},
    {"sparsity=\"ds-longformer:causal=1 block=32\" dropout=1 bias=hqk",
     {2, 4, 2, 150, 150}},
    {"sparsity=\"fixed block=16\" mask=window varlen=1 dtype=f16",
     {3, 2, 1, 150, 150}},
    {"sparsity=\"strided:16\" score_program=\"s * 0.5\"", {1, 2, 2, 99, 130}},
    /* tables; constant and computed places; one tensor read twice */
    {"score_program=\"f32 table[:,:]; s + table[min(abs(q - k) / 8, 8), h]\" "
     "mask=causal",
     {2, 4, 2, 70, 90}},
    {"score_program=\"f32 far[:]; s * far[3] + far[(q - k) / 8 + 4]\" "
     "dropout=1 lens_k=1",
     {2, 4, 1, 70, 90}},
    {"score_program=\"f32 bias[:,:,:]; s + bias[h, q, k] + bias[h, k, q]\" "
     "mask=program mask_program=\"k != q\"",
     {2, 3, 1, 70, 70}},
    {"score_program=\"f32 bias[:,:,:]; f32 slope[:]; (s + bias[h / 2, q, k]) * "
     "slope[b]\" varlen=1 head_dim=40",
     {2, 4, 2, 60, 70}},
    /* few rows, split keys */
    {"mask=program mask_program=\"i32 doc[:,:]; (doc[b, k] + h) % 2 == 0 && "
     "k != 7\" sink=1",
     {2, 4, 1, 1, 900}},
    {"score_program=\"f32 row[:]; k % 2 == h % 2 ? -inf : s + row[k]\" "
     "head_dim=20 alibi=1 softcap=1",
     {1, 4, 2, 1, 2100}},
    {"bias=hqk mask=program mask_program=\"k <= q + off\" dtype=f16",
     {1, 2, 2, 3, 1100}},
    {"bias=hk sparsity=\"local-ft:c=100\"", {1, 2, 1, 2, 700}},
};

static Case case_of_kind(const Kind *kind) {
    Case c = CASE_INIT;
    c.spec.head_dim = 16;
    spec_set_text(&c.spec, kind->text);
    attnc_spec bwd = grad_spec(&c);
    c.spec.tensor_grads = (int32_t)spec_grads_possible(&bwd);
    c.batch = kind->size[0];
    c.heads = kind->size[1];
    c.kv_heads = kind->size[2];
    c.nq = kind->size[3];
    c.nk = kind->size[4];
    bool window = c.spec.mask == ATTNC_MASK_WINDOW;
    c.mode = (int32_t)random_int(0, c.spec.lens_k ? 2 : 1);
    c.offset = random_int(-5, 9);
    c.left = window ? random_int(3, 60) : 0;
    c.right = window ? random_int(0, 20) : 0;
    c.prefix = c.spec.mask == ATTNC_MASK_PREFIX ? random_int(0, 40) : 0;
    c.layout = (int)random_int(0, LAYOUTS - 1);
    return c;
}

static void programs_agree_with_f64(void **state) {
    (void)state;
    attnc_context *ctx = context_make(KERNEL_COMPILED, NULL, 2);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        Case c = case_of_kind(&kinds[i]);
        check_case(ctx, &c, false, false);
        check_case(ctx, &c, true, false);
    }
    attnc_context_destroy(ctx);
}

/* Every third key is seen by nobody, for one reason or another. */
static void nan_behind_a_mask_reaches_nothing(void **state) {
    (void)state;
    static const Kind poisoned[] = {
        {"mask=program mask_program=\"k % 3 != 1\"", {1, 4, 2, 70, 90}},
        {"score_program=\"k % 3 == 1 ? -inf : s\" mask=causal dropout=1",
         {2, 2, 1, 70, 90}},
        {"mask=program mask_program=\"k % 3 != 1\" bias=hqk",
         {1, 2, 2, 1, 700}},
        {"mask=program mask_program=\"k % 3 != 1\" dtype=bf16",
         {1, 2, 1, 40, 50}},
    };
    attnc_context *ctx = context_make(KERNEL_COMPILED, NULL, 2);
    for (size_t i = 0; i < sizeof poisoned / sizeof *poisoned; i++) {
        Case c = case_of_kind(&poisoned[i]);
        c.layout = BHND;
        check_case(ctx, &c, false, true);
        check_case(ctx, &c, true, true);
    }
    attnc_context_destroy(ctx);
}

/* ---- bits of tensors' gradients ---------------------------------------- */

/* Parts of a table, of heads' slopes, of a bias beside a table that nobody
 * reads beyond 90; of what an item owns. */
static const Kind summed[] = {
    {"score_program=\"f32 table[:,:]; s + table[min(abs(q - k) / 8, 8), h]\" "
     "mask=causal",
     {3, 4, 2, 300, 300}},
    {"score_program=\"f32 slope[:]; s - slope[0] * abs(q - k) * 0.1\"",
     {2, 4, 2, 200, 130}},
    {"bias=qk score_program=\"f32 row[:]; s + row[min(abs(q - k), 90)]\"",
     {3, 2, 1, 200, 200}},
    {"bias=bk dropout=1 lens_k=1", {3, 4, 2, 150, 130}},
    {"bias=q varlen=1 dtype=f16", {3, 4, 2, 150, 130}},
};

/* Equal to `first`, which the first launch makes. */
static void expect_same(const Arrays *x, float *first[SPEC_TENSORS]) {
    for (int i = 0; i < x->n; i++) {
        size_t bytes = sizeof(float) * (size_t)x->size[i];
        if (!x->grad[i])
            continue;
        if (!first[i]) {
            first[i] = malloc(bytes + 1);
            memcpy(first[i], x->grad[i], bytes);
        }
        assert_memory_equal(first[i], x->grad[i], bytes);
    }
}

/* Elements of row beyond what it is read at have no gradient. */
static void expect_zeros(const Arrays *x) {
    for (int i = 0; i < x->n; i++)
        for (int64_t e = 91; !strcmp(x->known[i].name, "row") && e < x->size[i];
             e++)
            assert_true(x->grad[i][e] == 0);
}

/* On 1, 2 and 5 threads, twice each, into fresh poison. */
static void check_bits(const Kind *kind) {
    Case c = case_of_kind(kind), first = c;
    attnc_shape shape = shape_of(&c);
    attnc_spec spec = grad_spec(&c);
    float *grad[SPEC_TENSORS] = {0};
    GradData g;
    Arrays arrays;
    first.spec.tensor_grads = 0;
    grad_make(&c, &g);
    arrays_make(&c, &arrays, &g.d.args);
    for (int run = 0; run < 6; run++) {
        attnc_context *ctx =
            context_make(KERNEL_COMPILED, NULL, (int[]){1, 2, 5}[run / 2]);
        attnc_plan *fwd = plan_make(ctx, &first.spec, &shape);
        attnc_plan *bwd = plan_make(ctx, &spec, &shape);
        for (int i = 0; i < arrays.n; i++) {
            arrays.array[i].grad = NULL;
            for (int64_t e = 0; arrays.grad[i] && e < arrays.size[i]; e++)
                arrays.grad[i][e] = NAN;
        }
        case_launch(&c, fwd, &g.d);
        arrays_ask(&arrays);
        case_launch(&c, bwd, &g.d);
        expect_same(&arrays, grad);
        expect_zeros(&arrays);
        attnc_plan_release(bwd);
        attnc_plan_release(fwd);
        attnc_context_destroy(ctx);
    }
    for (int i = 0; i < SPEC_TENSORS; i++)
        free(grad[i]);
    arrays_free(&arrays);
    grad_free(&g);
}

static void threads_change_no_bit_of_a_gradient(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof summed / sizeof *summed; i++)
        check_bits(&summed[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_change_no_bit_of_a_gradient),
        cmocka_unit_test(programs_agree_with_f64),
        cmocka_unit_test(nan_behind_a_mask_reaches_nothing),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
