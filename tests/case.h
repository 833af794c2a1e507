/* SPDX-License-Identifier: Apache-2.0
 * What the numeric tests share: a case is a spec with sizes and a layout; its
 * tensors are fresh random numbers amid NaN, its outputs lie in poison whose
 * every foreign byte must survive, and its results are held against f64. */
#ifndef CASE_H
#define CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "attnc.h"
#include "convert.h"
#include "reference.h"

/* ---- random numbers ---------------------------------------------------- */

static uint64_t random_state = 1;

static inline uint64_t random_bits(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x2545f4914f6cdd1du;
}

/* Of lo..hi. */
static inline int64_t random_int(int64_t lo, int64_t hi) {
    return lo + (int64_t)((random_bits() >> 11) % (uint64_t)(hi - lo + 1));
}

/* Near to normal: mean 0, variance 1. */
static inline float random_float(void) {
    float sum = -6;
    for (int i = 0; i < 12; i++)
        sum += (float)(random_bits() >> 40) * 0x1p-24f;
    return sum;
}

/* A fresh seed, or ATTNC_TEST_SEED; printed, so that a failure repeats. */
static inline void random_start(void) {
    const char *given = getenv("ATTNC_TEST_SEED");
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    uint64_t seed = (uint64_t)t.tv_sec * 1000003u + (uint64_t)t.tv_nsec;
    seed = given ? strtoull(given, NULL, 0) : seed;
    print_message("ATTNC_TEST_SEED=%llu\n", (unsigned long long)seed);
    random_state = seed * 2 + 1;
}

/* ---- contexts ---------------------------------------------------------- */

enum kernel { KERNEL_BUILTIN, KERNEL_COMPILED };

/* A test that runs on both; its state points to the kernel's number. */
/* clang-format off */
#define ON_BUILTIN(f) {"builtin_" #f, f, NULL, NULL, &(int){KERNEL_BUILTIN}}
#define ON_COMPILED(f) {"compiled_" #f, f, NULL, NULL, &(int){KERNEL_COMPILED}}
#define ON_BOTH(f) ON_BUILTIN(f), ON_COMPILED(f)
/* clang-format on */

static inline void print_log(void *user, int level, const char *line) {
    (void)user;
    if (level == ATTNC_LOG_WARNING)
        print_message("attnc: %s\n", line);
}

/* target may be NULL. The disk cache only where the tests have their own. */
static inline attnc_context *context_make(int kernel, const char *target,
                                          int threads) {
    attnc_options o = ATTNC_OPTIONS_INIT;
    attnc_context *c = NULL;
    o.target = target ? target : "cpu";
    o.threads = threads;
    o.cache_dir = getenv("ATTNC_CACHE_DIR") ? NULL : "";
    o.compilers = kernel == KERNEL_BUILTIN ? "" : NULL;
    o.log = print_log;
    if (attnc_context_create(&o, &c))
        fail_msg("context: %s", attnc_last_error()->text);
    return c;
}

static inline attnc_plan *plan_make(attnc_context *c, const attnc_spec *spec,
                                    const attnc_shape *shape) {
    attnc_shape any = ATTNC_SHAPE_DEFAULT;
    attnc_plan *plan = NULL;
    if (attnc_prepare(c, spec, shape ? shape : &any, &plan)) {
        const attnc_error *e = attnc_last_error();
        fail_msg("prepare: %s: %s\n%s", e->stage, e->text, e->log);
    }
    return plan;
}

/* ---- cases ------------------------------------------------------------- */

/* How rows lie: heads first; positions first; padded and one element off;
 * backwards; one K and V for all batch entries and heads; in any order with
 * any padding. */
enum layout { BHND, BNHD, GAPS, REVERSED, SHARED, FUZZ, LAYOUTS };

typedef struct Case {
    attnc_spec spec;
    int64_t batch, heads, kv_heads, nq, nk; /* varlen: longest */
    int32_t mode;                           /* of the offset */
    int64_t offset, left, right, prefix;
    int layout;
    bool no_lse;
    float scale;                    /* NaN: default */
    const int32_t *rows_q, *rows_k; /* varlen: lengths; NULL: random ones */
} Case;

/* clang-format off */
#define CASE_INIT {.spec = ATTNC_SPEC_DEFAULT, .batch = 1, .heads = 1, \
                   .kv_heads = 1, .nq = 1, .nk = 1, .scale = NAN}
/* clang-format on */

static inline Case case_of(int dtype, int d, int dv, int mask) {
    Case c = CASE_INIT;
    c.spec.dtype = dtype;
    c.spec.head_dim = d;
    c.spec.head_dim_v = dv;
    c.spec.mask = mask;
    return c;
}

/* One tensor: guard, rows, and for outputs a guard behind. `kept` is what must
 * be there afterwards, results aside. */
typedef struct Block {
    char *base, *kept;
    size_t bytes;
} Block;

typedef struct Data {
    attnc_args args;
    Block q, k, v, o, lse, workspace;
    int32_t *lens_k, *cu_q, *cu_k;
    float *slopes, *sink;
} Data;

enum { GUARD = 256 };

static inline int case_dv(const Case *c) {
    return c->spec.head_dim_v ? c->spec.head_dim_v : c->spec.head_dim;
}

static inline void case_print(const Case *c) {
    Str s = {0};
    spec_print(&c->spec, &s);
    print_error("case: %s\n  batch=%lld heads=%lld kv_heads=%lld nq=%lld "
                "nk=%lld mode=%d offset=%lld left=%lld right=%lld "
                "prefix=%lld layout=%d scale=%g\n",
                s.text, (long long)c->batch, (long long)c->heads,
                (long long)c->kv_heads, (long long)c->nq, (long long)c->nk,
                c->mode, (long long)c->offset, (long long)c->left,
                (long long)c->right, (long long)c->prefix, c->layout,
                (double)c->scale);
    str_free(&s);
}

/* Strides of a random order of the three dims, with random padding. */
static inline void lay_fuzz(attnc_tensor *t, int64_t n, int64_t heads,
                            int64_t rows, int64_t dim) {
    int64_t *stride[3] = {&t->stride_b, &t->stride_h, &t->stride_n};
    int64_t count[3] = {n, heads, rows}, span = dim;
    int first = (int)random_int(0, 2), step = (int)random_int(1, 2);
    for (int i = 0; i < 3; i++) {
        int at = (first + i * step) % 3;
        *stride[at] = span + random_int(0, 3);
        span = *stride[at] * count[at] + (count[at] == 0) * dim;
    }
}

/* Sets the strides of a tensor of n x heads x rows x dim; returns how many
 * elements it spans, *first the element where row 0 starts. */
static inline int64_t lay(attnc_tensor *t, int layout, int64_t n, int64_t heads,
                          int64_t rows, int64_t dim, int64_t *first) {
    int64_t pad = layout == GAPS ? 3 : layout == REVERSED ? 1 : 0;
    t->stride_n = dim + pad;
    t->stride_h = rows * t->stride_n + 2 * pad;
    t->stride_b = heads * t->stride_h + pad;
    if (layout == BNHD) {
        t->stride_h = dim;
        t->stride_n = heads * dim;
        t->stride_b = rows * heads * dim;
    }
    if (layout == SHARED)
        t->stride_b = t->stride_h = 0;
    if (layout == FUZZ)
        lay_fuzz(t, n, heads, rows, dim);
    int64_t last = (n - 1) * t->stride_b + (heads - 1) * t->stride_h +
                   (rows - 1) * t->stride_n + dim;
    *first = layout == GAPS;
    if (layout == REVERSED && rows > 0) {
        *first = (rows - 1) * t->stride_n;
        t->stride_n = -t->stride_n;
    }
    return n > 0 && rows > 0 ? last : 0;
}

static inline void block_make(Block *b, size_t bytes, size_t behind) {
    b->bytes = bytes + GUARD + behind;
    b->base = aligned_alloc(64, (b->bytes + 63) / 64 * 64);
    b->kept = malloc(b->bytes);
    assert_non_null(b->base);
    assert_non_null(b->kept);
    memset(b->base, 0xff, b->bytes); /* NaN of every type */
}

static inline void block_free(Block *b) {
    free(b->base);
    free(b->kept);
}

/* Element address of row n of head h; b as batch entry or 0 for varlen. */
static inline char *element(const Case *c, const attnc_tensor *t, int64_t b,
                            int64_t h, int64_t n) {
    int64_t e = n * t->stride_n + h * t->stride_h;
    e += c->spec.varlen ? 0 : b * t->stride_b;
    return (char *)t->data + e * dtype_bytes(c->spec.dtype);
}

static inline void put(int dtype, char *to, float x) {
    uint16_t h = dtype == ATTNC_F16 ? f32_to_f16(x) : f32_to_bf16(x);
    memcpy(to, dtype == ATTNC_F32 ? (void *)&x : (void *)&h,
           (size_t)dtype_bytes(dtype));
}

static inline void put_row(int dtype, char *to, int dim, float x, bool same) {
    for (int c = 0; c < dim; c++)
        put(dtype, to + c * dtype_bytes(dtype), same ? x : random_float() * x);
}

/* Bounds of the packed rows of sequence b; without varlen of entry b. */
static inline void rows_of(const Case *c, const int32_t *cu, int64_t n,
                           int64_t b, int64_t *from, int64_t *to) {
    *from = c->spec.varlen ? cu[b] : 0;
    *to = c->spec.varlen ? cu[b + 1] : n;
}

static inline void fill(const Case *c, Block *b, attnc_tensor *t, int64_t heads,
                        const int32_t *cu, int64_t n, int dim,
                        const int32_t *lens) {
    for (int64_t e = 0; e < c->batch; e++) {
        int64_t from, to;
        rows_of(c, cu, n, e, &from, &to);
        if (lens && from + lens[e] < to)
            to = from + lens[e]; /* the rest stays NaN */
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = from; i < to; i++)
                put_row(c->spec.dtype, element(c, t, e, h, i), dim, 1, false);
    }
    memcpy(b->kept, b->base, b->bytes);
}

/* One tensor amid NaN; inputs end where their memory ends. */
static inline void tensor_make(const Case *c, Block *b, attnc_tensor *t,
                               int layout, int64_t heads, int64_t rows, int dim,
                               size_t behind) {
    int64_t first, n = c->spec.varlen ? 1 : c->batch;
    int size = dtype_bytes(c->spec.dtype);
    int64_t span = lay(t, layout, n, heads, rows, dim, &first);
    block_make(b, (size_t)((span + (layout == GAPS)) * size), behind);
    t->data = b->base + GUARD + first * size;
}

/* ---- lengths ----------------------------------------------------------- */

/* Sequence lengths as given, or 0..n with the corners frequent and n first. */
static inline int32_t *cu_make(int64_t batch, int64_t n, const int32_t *given) {
    int32_t *cu = malloc(sizeof(int32_t) * (size_t)(batch + 1));
    cu[0] = 0;
    for (int64_t b = 0; b < batch; b++) {
        int64_t len = b == 0 ? n : random_int(0, n);
        if (b > 0 && random_int(0, 3) == 0)
            len = random_int(0, n > 1 ? 1 : n);
        cu[b + 1] = cu[b] + (given ? given[b] : (int32_t)len);
    }
    return cu;
}

/* Key lengths 0..nk of each entry; in varlen also beyond the sequence. */
static inline int32_t *lens_make(const Case *c, const int32_t *cu_k) {
    int32_t *lens = malloc(sizeof(int32_t) * (size_t)(c->batch + 1));
    for (int64_t b = 0; b < c->batch; b++) {
        int64_t n = cu_k ? cu_k[b + 1] - cu_k[b] : c->nk;
        int64_t pick = random_int(0, 4);
        lens[b] = (int32_t)(pick == 0   ? 0
                            : pick == 1 ? n
                            : pick == 2 ? c->nk
                                        : random_int(0, n));
    }
    return lens;
}

static inline void lengths_make(const Case *c, Data *d) {
    if (c->spec.varlen) {
        d->cu_q = cu_make(c->batch, c->nq, c->rows_q);
        d->cu_k = cu_make(c->batch, c->nk, c->rows_k);
    }
    if (c->spec.lens_k)
        d->lens_k = lens_make(c, d->cu_k);
    d->args.cu_seqlens_q = d->cu_q;
    d->args.cu_seqlens_k = d->cu_k;
    d->args.lens_k = d->lens_k;
}

static inline float *heads_make(int64_t heads, float by) {
    float *x = malloc(sizeof(float) * (size_t)heads);
    for (int64_t h = 0; h < heads; h++)
        x[h] = random_float() * by;
    return x;
}

/* A share of a model whose heads and batch lie on several machines. */
static inline void dropout_make(const Case *c, attnc_args *a) {
    static const double p[] = {0.1, 0.5, 0.9, 0};
    a->dropout_p = p[random_int(0, 3)];
    a->dropout_seed = random_bits();
    a->dropout_offset = (uint32_t)random_bits();
    a->dropout_b0 = random_int(0, 100);
    a->dropout_h0 = random_int(0, 7);
    if (a->dropout_h0 || random_int(0, 1))
        a->dropout_heads = c->heads + a->dropout_h0 + random_int(0, 5);
}

/* Sizes and numbers of the launch. */
static inline void numbers_make(const Case *c, Data *d) {
    attnc_args *a = &d->args;
    a->batch = c->batch;
    a->heads = c->heads;
    a->kv_heads = c->kv_heads;
    a->seqlen_q = c->nq;
    a->seqlen_k = c->nk;
    a->mask_offset = c->offset;
    a->mask_offset_mode = c->mode;
    a->mask_left = c->left;
    a->mask_right = c->right;
    a->mask_prefix = c->prefix;
    a->scale = c->scale;
    a->softcap = c->spec.softcap ? 1.5f : 0;
    if (c->spec.alibi && random_int(0, 1)) /* else the default slopes */
        a->slopes = d->slopes = heads_make(c->heads, 0.1f);
    if (c->spec.sink)
        a->sink = d->sink = heads_make(c->heads, 2);
    if (c->spec.dropout)
        dropout_make(c, a);
}

/* Outputs that a launch which writes nothing leaves wrong. */
static inline void data_poison(Data *d) {
    Block *blocks[] = {&d->o, &d->lse};
    for (int i = 0; i < 2; i++) {
        memset(blocks[i]->base, 0x5a, blocks[i]->bytes);
        memset(blocks[i]->kept, 0x5a, blocks[i]->bytes);
    }
}

static inline void lse_make(const Case *c, Data *d, int64_t rows) {
    int64_t n = c->spec.varlen ? 1 : c->batch;
    d->args.lse_stride_h = rows + 3;
    d->args.lse_stride_b = c->heads * (rows + 3) + 1;
    block_make(&d->lse, (size_t)(n * d->args.lse_stride_b) * 4, GUARD);
    d->args.lse = c->no_lse ? NULL : (float *)(d->lse.base + GUARD);
}

static inline void data_make(const Case *c, Data *d) {
    *d = (Data){.args = ATTNC_ARGS_INIT};
    lengths_make(c, d);
    numbers_make(c, d);
    attnc_args *a = &d->args;
    int64_t nq = d->cu_q ? d->cu_q[c->batch] : c->nq;
    int64_t nk = d->cu_k ? d->cu_k[c->batch] : c->nk;
    int own = c->layout == SHARED ? BNHD : c->layout;
    int kv = c->spec.varlen ? own : c->layout;
    tensor_make(c, &d->q, &a->q, own, c->heads, nq, c->spec.head_dim, 0);
    tensor_make(c, &d->k, &a->k, kv, c->kv_heads, nk, c->spec.head_dim, 0);
    tensor_make(c, &d->v, &a->v, kv, c->kv_heads, nk, case_dv(c), 0);
    tensor_make(c, &d->o, &a->o, own, c->heads, nq, case_dv(c), GUARD);
    /* Rows shared by entries of unlike lengths must hold numbers. */
    const int32_t *lens = kv == SHARED ? NULL : d->lens_k;
    fill(c, &d->q, &a->q, c->heads, d->cu_q, nq, c->spec.head_dim, NULL);
    fill(c, &d->k, &a->k, c->kv_heads, d->cu_k, nk, c->spec.head_dim, lens);
    fill(c, &d->v, &a->v, c->kv_heads, d->cu_k, nk, case_dv(c), lens);
    lse_make(c, d, nq);
    data_poison(d);
}

static inline void data_free(Data *d) {
    Block *blocks[] = {&d->q, &d->k, &d->v, &d->o, &d->lse, &d->workspace};
    for (int i = 0; i < 6; i++)
        block_free(blocks[i]);
    free(d->lens_k);
    free(d->cu_q);
    free(d->cu_k);
    free(d->slopes);
    free(d->sink);
}

/* ---- running ----------------------------------------------------------- */

static inline void workspace_make(attnc_plan *plan, Data *d) {
    size_t bytes = 0;
    if (attnc_workspace(plan, &d->args, &bytes))
        fail_msg("workspace: %s", attnc_last_error()->text);
    block_free(&d->workspace);
    block_make(&d->workspace, bytes, GUARD);
    d->args.workspace = d->workspace.base + GUARD;
    d->args.workspace_bytes = bytes;
}

static inline void case_launch(const Case *c, attnc_plan *plan, Data *d) {
    workspace_make(plan, d);
    if (attnc_launch(plan, &d->args, NULL)) {
        case_print(c);
        fail_msg("launch: %s: %s", attnc_last_error()->field,
                 attnc_last_error()->text);
    }
}

/* Takes the results out of the comparison of what must be kept. */
static inline void forgive(const Case *c, Data *d, Block *o, Block *lse) {
    const attnc_args *a = &d->args;
    size_t row = (size_t)(case_dv(c) * dtype_bytes(c->spec.dtype));
    for (int64_t b = 0; b < c->batch; b++) {
        int64_t from, to;
        rows_of(c, d->cu_q, c->nq, b, &from, &to);
        for (int64_t h = 0; h < c->heads; h++)
            for (int64_t i = from; i < to; i++) {
                char *at = element(c, &a->o, b, h, i);
                memcpy(o->kept + (at - o->base), at, row);
                at = lse->base + GUARD + 4 * (h * a->lse_stride_h + i);
                at += c->spec.varlen ? 0 : 4 * b * a->lse_stride_b;
                if (a->lse)
                    memcpy(lse->kept + (at - lse->base), at, 4);
            }
    }
}

/* Nothing but the results changed in n blocks, of those names; no byte around
 * the workspace w. */
static inline void blocks_kept(const Case *c, const Block *const *blocks,
                               const char *const *names, int n,
                               const Block *w) {
    for (int i = 0; i < n; i++)
        if (memcmp(blocks[i]->base, blocks[i]->kept, blocks[i]->bytes)) {
            case_print(c);
            fail_msg("a byte of %s changed that is no result", names[i]);
        }
    for (size_t i = 0; w->base && i < GUARD; i++)
        if ((uint8_t)w->base[i] != 0xff ||
            (uint8_t)w->base[w->bytes - GUARD + i] != 0xff)
            fail_msg("a byte around the workspace changed");
}

static inline void check_kept(const Case *c, Data *d) {
    const Block *blocks[] = {&d->q, &d->k, &d->v, &d->o, &d->lse};
    const char *names[] = {"q", "k", "v", "o", "lse"};
    forgive(c, d, &d->o, &d->lse);
    blocks_kept(c, blocks, names, 5, &d->workspace);
}

/* The results against f64. */
static inline void check_results(const Case *c, const Data *d) {
    RefCheck r;
    Err e = {0};
    if (reference_check(&c->spec, &d->args, 1, NULL, NULL, &r, &e))
        fail_msg("reference: %s", e.text);
    if (r.ok)
        return;
    case_print(c);
    fail_msg("%s (o %.3g, unfused %.3g; lse %.3g, unfused %.3g)", r.why, r.o,
             r.unfused_o, r.lse, r.unfused_lse);
}

/* Fresh data, launch, all checks. */
static inline void case_check(const Case *c, attnc_plan *plan) {
    Data d;
    data_make(c, &d);
    case_launch(c, plan, &d);
    check_results(c, &d);
    check_kept(c, &d);
    data_free(&d);
}

#endif
