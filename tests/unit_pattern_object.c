/* SPDX-License-Identifier: Apache-2.0
 * Patterns without a closed form through their lists: every target against f64
 * attention under the patterns' own definition, forward and backward. */
#include "grad_case.h"
#include "order.h"
#include "runtime.h"

/* ---- targets ------------------------------------------------------------- */

static const struct {
    const char *name;
    int kernel;
} targets[] = {{"cpu", KERNEL_BUILTIN},
               {"cpu", KERNEL_COMPILED},
               {"emu:sm_80", KERNEL_COMPILED}};
enum { TARGETS = sizeof targets / sizeof *targets };
static attnc_context *contexts[TARGETS];

static int open_contexts(void **state) {
    (void)state;
    random_start();
    for (int i = 0; i < TARGETS; i++)
        contexts[i] = context_make(targets[i].kernel, targets[i].name, 2);
    return 0;
}

static int close_contexts(void **state) {
    (void)state;
    for (int i = 0; i < TARGETS; i++)
        attnc_context_destroy(contexts[i]);
    return 0;
}

/* ---- lists --------------------------------------------------------------- */

enum { BLOCK = 16, MOST_ROWS = 96, MOST_INDEX = 4096 };

typedef struct Bsr {
    int32_t indptr[8 * (MOST_ROWS + 1)], index[MOST_INDEX];
    attnc_pattern_lists lists;
} Bsr;

static int64_t blocks_of(int64_t n) {
    return (n + BLOCK - 1) / BLOCK;
}

static attnc_pattern_lists lists_of(const Case *c) {
    attnc_pattern_lists x = ATTNC_PATTERN_LISTS_INIT;
    x.heads = c->heads;
    x.seqlen_q = c->nq;
    x.seqlen_k = c->nk;
    return x;
}

/* Each block kept in `of` cases of 64, in any order within a row. */
static void bsr_random(const Case *c, Bsr *b, int64_t list_heads, int of) {
    int32_t n = 0;
    int64_t rows = blocks_of(c->nq), columns = blocks_of(c->nk);
    for (int64_t l = 0; l < list_heads; l++)
        for (int64_t a = 0; a <= rows; a++) {
            b->indptr[l * (rows + 1) + a] = n;
            for (int64_t e = 0; e < columns && a < rows; e++)
                if (random_int(0, 63) < of)
                    b->index[n++] = (int32_t)(columns - 1 - e);
        }
    b->lists = lists_of(c);
    b->lists.indptr = b->indptr;
    b->lists.indices = b->index;
    b->lists.index_count = n;
    b->lists.list_heads = list_heads;
}

static attnc_pattern *object(attnc_context *ctx, const attnc_spec *s,
                             const attnc_pattern_lists *x) {
    attnc_pattern *p = NULL;
    if (attnc_pattern_create(ctx, s->sparsity, x, &p))
        fail_msg("pattern: %s: %s", attnc_last_error()->field,
                 attnc_last_error()->text);
    return p;
}

static void set_sparsity(attnc_spec *s, const char *text) {
    if (attnc_program_create(text, ATTNC_PATTERN, &s->sparsity))
        fail_msg("%s: %s", text, attnc_last_error()->text);
}

/* What the definition says of every block: the oracle's tensor. */
static attnc_array oracle(const Case *c, const char *text, const Bsr *b,
                          uint32_t *to) {
    Pattern p;
    Err e = {0};
    int64_t rows = blocks_of(c->nq), columns = blocks_of(c->nk);
    int64_t width = (columns + 31) / 32 * 32;
    assert_int_equal(pattern_parse(text, BLOCK, &p, &e), 0);
    if (b) {
        p.indptr = b->lists.indptr;
        p.index = b->lists.indices;
        p.indices = b->lists.index_count;
        p.bsr_heads = b->lists.list_heads;
    }
    assert_int_equal(pattern_size(&p, c->nq, c->nk, &e), 0);
    memset(to, 0, (size_t)(c->heads * rows * width / 8));
    for (int64_t h = 0; h < c->heads; h++)
        for (int64_t i = 0; i < rows * columns; i++) {
            int64_t at = (h * rows + i / columns) * width + i % columns;
            bool kept = pattern_keep(&p, h, i / columns, i % columns);
            to[at / 32] |= (uint32_t)kept << at % 32;
        }
    return (attnc_array){.name = "pattern_blocks",
                         .data = to,
                         .dtype = ATTNC_ARRAY_BITS,
                         .rank = 4,
                         .n = {c->batch, c->heads, rows, columns},
                         .stride = {0, rows * width, width, 1}};
}

/* ---- against f64 --------------------------------------------------------- */

/* Fresh data; the launches read the object, the judge the definition. */
static void check_case(attnc_context *ctx, const Case *c, const char *text,
                       const Bsr *b, attnc_plan *fwd, attnc_plan *bwd) {
    static uint32_t blocks[8 * MOST_ROWS * ((MOST_ROWS + 31) / 32)];
    attnc_array expected = oracle(c, text, b, blocks);
    attnc_pattern_lists x = b ? b->lists : lists_of(c);
    attnc_pattern *p = object(ctx, &c->spec, &x);
    GradData g;
    grad_make(c, &g);
    g.d.args.pattern = p;
    grad_launch(c, fwd, bwd, &g);
    g.d.args.pattern = NULL;
    g.d.args.tensors = &expected;
    g.d.args.tensor_count = 1;
    check_results(c, &g.d);
    grad_check_results(c, &g);
    grad_check_kept(c, &g);
    grad_free(&g);
    attnc_pattern_release(p);
}

static void check_pattern(int target, const char *text, int32_t mask,
                          int times) {
    attnc_context *ctx = contexts[target];
    char whole[80];
    Bsr b;
    Case c = case_of((int)random_int(0, 2), 24, 0, mask);
    snprintf(whole, sizeof whole, "%s block=%d", text, BLOCK);
    set_sparsity(&c.spec, whole);
    c.spec.sink = random_int(0, 1);
    c.spec.dropout = random_int(0, 1);
    attnc_spec back = grad_spec(&c);
    attnc_plan *fwd = plan_make(ctx, &c.spec, NULL);
    attnc_plan *bwd = plan_make(ctx, &back, NULL);
    for (int i = 0; i < times; i++) {
        bool listed = strcmp(text, "bsr") == 0;
        c.batch = random_int(1, 2);
        c.kv_heads = random_int(1, 2);
        c.heads = c.kv_heads * random_int(1, 2);
        c.nq = random_int(1, 150);
        c.nk = random_int(0, 1) && listed ? random_int(1, 150) : c.nq;
        c.layout = (int)random_int(0, LAYOUTS - 1);
        c.mode = ATTNC_OFFSET_BR;
        if (listed)
            bsr_random(&c, &b, random_int(0, 1) ? 1 : c.heads,
                       16 * (int)random_int(0, 4));
        check_case(ctx, &c, text, listed ? &b : NULL, fwd, bwd);
    }
    attnc_plan_release(fwd);
    attnc_plan_release(bwd);
}

static void lists_are_what_their_rule_says(void **state) {
    (void)state;
    for (int t = 0; t < TARGETS; t++) {
        int times = t == 0 ? 12 : t == 1 ? 6 : 2;
        check_pattern(t, "bsr", ATTNC_MASK_NONE, times);
        check_pattern(t, "bigbird:random=2,seed=3", ATTNC_MASK_CAUSAL, times);
        if (t < 2)
            check_pattern(t, "orig-bigbird", ATTNC_MASK_NONE, times);
    }
}

/* Few of many blocks: walks go from one to the next over words of bits, along
 * keys and, where keys are few, along queries. */
static void check_long(int target, bool keys) {
    attnc_context *ctx = contexts[target];
    Case c = case_of(ATTNC_F32, 16, 0, ATTNC_MASK_NONE);
    Bsr b;
    set_sparsity(&c.spec, "bsr block=16");
    attnc_spec back = grad_spec(&c);
    attnc_plan *fwd = plan_make(ctx, &c.spec, NULL);
    attnc_plan *bwd = plan_make(ctx, &back, NULL);
    c.kv_heads = random_int(1, 2);
    c.heads = c.kv_heads * random_int(1, 2);
    c.nq = keys ? random_int(1, 40) : random_int(530, 1500);
    c.nk = keys ? random_int(530, 1500) : random_int(1, 40);
    bsr_random(&c, &b, random_int(0, 1) ? 1 : c.heads, 2);
    check_case(ctx, &c, "bsr", &b, fwd, bwd);
    attnc_plan_release(fwd);
    attnc_plan_release(bwd);
}

static void few_of_many_blocks_are_found(void **state) {
    (void)state;
    for (int t = 0; t < TARGETS; t++)
        for (int i = 0; i < (t < 2 ? 6 : 2); i++)
            check_long(t, i % 2);
}

/* ---- equal bits ---------------------------------------------------------- */

static Case one_head(void) {
    Case c = case_of(ATTNC_F32, 32, 0, ATTNC_MASK_NONE);
    c.nq = c.nk = 100;
    return c;
}

static attnc_plan *pinned(attnc_context *ctx, const attnc_spec *s) {
    attnc_prepare_options o = {sizeof o, "block_q=64,block_k=32"};
    attnc_plan *plan = NULL;
    if (attnc_prepare_with(ctx, s, NULL, &o, &plan))
        fail_msg("%s", attnc_last_error()->text);
    return plan;
}

/* O and LSE of the data under lists; NULL: dense. */
static void bits_of(attnc_context *ctx, const Case *c, Data *d,
                    const attnc_pattern_lists *x) {
    attnc_spec s = c->spec;
    attnc_pattern *p = NULL;
    if (x) {
        set_sparsity(&s, "bsr block=16");
        p = object(ctx, &s, x);
    }
    attnc_plan *plan = pinned(ctx, &s);
    d->args.pattern = p;
    data_poison(d);
    case_launch(c, plan, d);
    attnc_plan_release(plan);
    attnc_pattern_release(p);
}

static void all_blocks_are_dense_and_order_is_free(void **state) {
    (void)state;
    attnc_context *ctx = contexts[1];
    Case c = one_head();
    Data d;
    Bsr b, turned;
    data_make(&c, &d);
    bits_of(ctx, &c, &d, NULL);
    char *dense = malloc(d.o.bytes);
    memcpy(dense, d.o.base, d.o.bytes);
    bsr_random(&c, &b, 1, 64);
    bits_of(ctx, &c, &d, &b.lists);
    assert_memory_equal(dense, d.o.base, d.o.bytes);
    bsr_random(&c, &b, 1, 32);
    bits_of(ctx, &c, &d, &b.lists);
    memcpy(dense, d.o.base, d.o.bytes);
    turned = b;
    for (int a = 0; a < 7; a++)
        for (int i = b.indptr[a]; i < b.indptr[a + 1]; i++)
            turned.index[i] = b.index[b.indptr[a + 1] - 1 - i + b.indptr[a]];
    turned.lists.indices = turned.index;
    turned.lists.indptr = turned.indptr;
    bits_of(ctx, &c, &d, &turned.lists);
    assert_memory_equal(dense, d.o.base, d.o.bytes);
    free(dense);
    data_free(&d);
}

/* ---- golden layouts ------------------------------------------------------ */

static const struct {
    const char *text;
    int rows[9]; /* bit e of row a: is block e kept; -1: end */
} golden[] = {
    {"ds-longformer", {0xff, 0x07, 0x0f, 0x1d, 0x39, 0x71, 0xe1, 0xc1, -1}},
    {"ds-longformer:causal=1",
     {0x01, 0x03, 0x07, 0x0d, 0x19, 0x31, 0x61, 0xc1, -1}},
    {"fixed", {0x01, 0x03, 0x07, 0x0f, 0x18, 0x38, 0x78, 0xf8, -1}},
    {"ds-fixed", {0x8f, 0x8f, 0x8f, 0x8f, 0xf8, 0xf8, 0xf8, 0xf8, -1}},
    {"ds-fixed:stride=3", {0xa7, 0xa7, 0xa7, 0xbc, 0xbc, 0xbc, 0xe4, 0xe4, -1}},
    {"butterfly:m=1", {0x03, 0x03, 0x0c, 0x0c, 0x30, 0x30, 0xc0, 0xc0, -1}},
    {"butterfly:m=2", {0x07, 0x0b, 0x0d, 0x0e, 0x70, 0xb0, 0xd0, 0xe0, -1}},
    {"butterfly", {0x17, 0x2b, 0x4d, 0x8e, 0x71, 0xb2, 0xd4, 0xe8, -1}},
    {"butterfly:causal=1",
     {0x01, 0x03, 0x05, 0x0e, 0x11, 0x32, 0x54, 0xe8, -1}},
    {"butterfly:m=2", {0x1f, 0x1f, 0x27, 0x3b, 0x3b, 0x3c, -1}},
};

/* The layout as lists of a bsr pattern. */
static void bsr_golden(const Case *c, Bsr *b, const int *rows) {
    int32_t n = 0;
    int a = 0;
    for (; rows[a] >= 0; a++) {
        b->indptr[a] = n;
        for (int e = 0; e < 8; e++)
            if (rows[a] >> e & 1)
                b->index[n++] = e;
    }
    b->indptr[a] = n;
    b->lists = lists_of(c);
    b->lists.indptr = b->indptr;
    b->lists.indices = b->index;
    b->lists.index_count = n;
    b->lists.list_heads = 1;
}

/* The closed form by the kernels, then the same layout as lists, which the
 * judge holds against the bytes above. */
static void check_golden(attnc_context *ctx, const char *text,
                         const int *rows) {
    static uint32_t blocks[64];
    Case c = one_head();
    Bsr b;
    GradData g;
    char whole[80];
    int n = 0;
    while (rows[n] >= 0)
        n++;
    c.nq = c.nk = n * BLOCK;
    bool causal = strstr(text, "causal") || !strcmp(text, "fixed");
    bsr_golden(&c, &b, rows);
    snprintf(whole, sizeof whole, "%s block=%d", text, BLOCK);
    grad_make(&c, &g);
    for (int listed = 0; listed < 2; listed++) {
        Case now = c;
        now.spec.mask = listed && causal ? ATTNC_MASK_CAUSAL : ATTNC_MASK_NONE;
        set_sparsity(&now.spec, listed ? "bsr block=16" : whole);
        attnc_pattern *p = listed ? object(ctx, &now.spec, &b.lists) : NULL;
        attnc_spec back = grad_spec(&now);
        attnc_plan *fwd = plan_make(ctx, &now.spec, NULL);
        attnc_plan *bwd = plan_make(ctx, &back, NULL);
        data_poison(&g.d);
        grad_poison(&g);
        g.d.args.pattern = p;
        g.d.args.tensor_count = 0;
        grad_launch(&now, fwd, bwd, &g);
        attnc_plan_release(fwd);
        attnc_plan_release(bwd);
        attnc_pattern_release(p);
        set_sparsity(&now.spec, "bsr block=16");
        now.spec.mask = causal ? ATTNC_MASK_CAUSAL : ATTNC_MASK_NONE;
        attnc_array expected = oracle(&now, "bsr", &b, blocks);
        g.d.args.pattern = NULL;
        g.d.args.tensors = &expected;
        g.d.args.tensor_count = 1;
        check_results(&now, &g.d);
        grad_check_results(&now, &g);
    }
    grad_free(&g);
}

static void kernels_keep_the_golden_layouts(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
        check_golden(contexts[0], golden[i].text, golden[i].rows);
        if (i % 3 == 0)
            check_golden(contexts[1], golden[i].text, golden[i].rows);
    }
}

/* ---- objects ------------------------------------------------------------- */

static void refused(const attnc_program *s, const attnc_pattern_lists *x,
                    const char *field) {
    attnc_pattern *p = (attnc_pattern *)x;
    assert_int_equal(attnc_pattern_create(contexts[0], s, x, &p),
                     ATTNC_E_REQUEST);
    assert_string_equal(attnc_last_error()->field, field);
    assert_null(p);
}

static void bad_lists_are_refused(void **state) {
    (void)state;
    Case c = one_head();
    Bsr b;
    attnc_spec closed = c.spec;
    set_sparsity(&c.spec, "bsr block=16");
    set_sparsity(&closed, "butterfly block=16");
    bsr_random(&c, &b, 1, 64);
    attnc_pattern_lists x = b.lists;
    refused(NULL, &x, "sparsity");
    refused(c.spec.sparsity, NULL, "lists");
    refused(closed.sparsity, &x, "sparsity");
    x.seqlen_q = 0;
    refused(c.spec.sparsity, &x, "seqlen_q");
    x = b.lists;
    x.list_heads = 3;
    refused(c.spec.sparsity, &x, "list_heads");
    x = b.lists;
    x.indices = NULL;
    refused(c.spec.sparsity, &x, "indices");
    x = b.lists;
    b.index[1] = b.index[0]; /* twice */
    assert_int_not_equal(attnc_pattern_create(contexts[0], c.spec.sparsity, &x,
                                              &(attnc_pattern *){NULL}),
                         0);
    assert_non_null(strstr(attnc_last_error()->text, "twice"));
}

static void equal_requests_share_and_launches_are_held_to_them(void **state) {
    (void)state;
    attnc_context *ctx = contexts[0];
    Case c = one_head();
    Data d;
    Bsr b;
    set_sparsity(&c.spec, "bsr block=16");
    bsr_random(&c, &b, 1, 48);
    attnc_pattern *x = object(ctx, &c.spec, &b.lists);
    attnc_pattern *y = object(ctx, &c.spec, &b.lists);
    assert_non_null(ctx->patterns);
    assert_int_equal(attnc_pattern_bytes(x), 7 * 4);
    attnc_pattern_release(x);
    assert_non_null(ctx->patterns);
    attnc_plan *plan = plan_make(ctx, &c.spec, NULL);
    data_make(&c, &d);
    workspace_make(plan, &d);
    assert_int_equal(attnc_launch(plan, &d.args, NULL), ATTNC_E_REQUEST);
    assert_string_equal(attnc_last_error()->field, "pattern_blocks");
    d.args.pattern = y;
    assert_int_equal(attnc_launch(plan, &d.args, NULL), 0);
    d.args.seqlen_q--;
    assert_int_equal(attnc_launch(plan, &d.args, NULL), ATTNC_E_REQUEST);
    assert_string_equal(attnc_last_error()->field, "pattern");
    assert_int_equal(attnc_pattern_upload(y, &d, NULL), ATTNC_E_REQUEST);
    attnc_pattern_release(y);
    assert_null(ctx->patterns);
    attnc_plan_release(plan);
    data_free(&d);
}

/* One list is counted for all heads; packed sequences are not counted. */
static void work_is_counted_from_the_lists(void **state) {
    (void)state;
    Case c = one_head();
    Bsr b;
    set_sparsity(&c.spec, "bsr block=16");
    bsr_random(&c, &b, 1, 48);
    Plan p = {.spec = c.spec};
    attnc_args a = ATTNC_ARGS_INIT;
    assert_null(pattern_loads(&p, &a));
    a.pattern = object(contexts[0], &c.spec, &b.lists);
    const Loads *l = pattern_loads(&p, &a);
    assert_non_null(l);
    int32_t columns[MOST_ROWS] = {0};
    for (int32_t i = 0; i < b.lists.index_count; i++)
        columns[b.index[i]]++;
    for (int64_t r = 0; r < l->rows; r++)
        assert_int_equal(l->count[r], b.indptr[r + 1] - b.indptr[r]);
    for (int64_t e = 0; e < l->columns; e++)
        assert_int_equal(l->count[l->rows + e], columns[e]);
    attnc_pattern_release((attnc_pattern *)(uintptr_t)a.pattern);
    const int32_t cu[] = {0, (int32_t)c.nq};
    b.lists.batch = 1;
    b.lists.cu_seqlens_q = b.lists.cu_seqlens_k = cu;
    c.spec.varlen = 1;
    a.pattern = object(contexts[0], &c.spec, &b.lists);
    assert_null(pattern_loads(&p, &a));
    attnc_pattern_release((attnc_pattern *)(uintptr_t)a.pattern);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_are_what_their_rule_says),
        cmocka_unit_test(few_of_many_blocks_are_found),
        cmocka_unit_test(all_blocks_are_dense_and_order_is_free),
        cmocka_unit_test(kernels_keep_the_golden_layouts),
        cmocka_unit_test(bad_lists_are_refused),
        cmocka_unit_test(equal_requests_share_and_launches_are_held_to_them),
        cmocka_unit_test(work_is_counted_from_the_lists),
    };
    return cmocka_run_group_tests(tests, open_contexts, close_contexts);
}
