/* SPDX-License-Identifier: Apache-2.0
 * Samples of a running attention: attnc's kernel, and two peers on the same
 * tensors: a plain loop, and two library products around a softmax. */
#include "bench.h"

#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>

/* ---- timing ------------------------------------------------------------ */

enum { SAMPLE_MS = 40 };

typedef int Call(Bench *b, Case *c, const attnc_args *a);

/* Seconds of one call, averaged over enough of them to fill SAMPLE_MS. */
static double seconds_of(Bench *b, Case *c, Call *call) {
    attnc_args a;
    case_tensors(b, c, &a);
    if (c->seconds == 0) { /* first touch, and how long a call takes */
        double start = seconds_now();
        if (call(b, c, &a))
            return -1;
        c->seconds = seconds_now() - start;
    }
    int times = 1 + (int)(SAMPLE_MS / 1e3 / c->seconds);
    double start = seconds_now();
    for (int i = 0; i < times; i++)
        if (call(b, c, &a))
            return -1;
    return c->seconds = (seconds_now() - start) / times;
}

static double gflops(Bench *b, Case *c, Call *call) {
    double s = seconds_of(b, c, call);
    return s < 0 ? s : case_flops(c) / s / 1e9;
}

static double micros(Bench *b, Case *c, Call *call) {
    double s = seconds_of(b, c, call);
    return s < 0 ? s : s * 1e6;
}

/* ---- attnc ------------------------------------------------------------- */

/* The O and LSE that a backward reads; a forward takes no gradient. */
static int forward_first(Bench *b, const Case *c) {
    attnc_spec spec = c->spec;
    attnc_array array = c->array;
    attnc_args a;
    spec.pass = ATTNC_PASS_FWD;
    spec.tensor_grads = 0;
    array.grad = NULL;
    case_tensors(b, c, &a);
    a.tensors = &array;
    a.workspace = NULL;
    return attnc_run(b->ctx, &spec, &a, NULL) ? say_error(c->name) : 0;
}

static int prepare(Bench *b, Case *c) {
    attnc_args sizes;
    attnc_prepare_options options = {sizeof options, c->tile};
    if (c->spec.pass == ATTNC_PASS_BWD && forward_first(b, c))
        return -1;
    if (attnc_prepare_with(c->alone ? b->alone : b->ctx, &c->spec, &c->shape,
                           &options, &c->plan))
        return say_error(c->name);
    case_tensors(b, c, &sizes);
    if (attnc_workspace(c->plan, &sizes, &c->workspace_bytes))
        return say_error(c->name);
    size_t bytes = (c->workspace_bytes + 63) / 64 * 64;
    c->workspace = aligned_alloc(64, bytes ? bytes : 64);
    return c->workspace ? 0 : -1;
}

static int launch(Bench *b, Case *c, const attnc_args *a) {
    (void)b;
    return attnc_launch(c->plan, a, NULL) ? say_error(c->name) : 0;
}

double sample_flops(Bench *b, Case *c) {
    return !c->plan && prepare(b, c) ? -1 : gflops(b, c, launch);
}

double sample_us(Bench *b, Case *c) {
    if (!c->plan && prepare(b, c))
        return -1;
    return micros(b, c, launch) / (c->alone ? b->threads : 1);
}

double sample_bandwidth(Bench *b, Case *c) {
    double us = sample_us(b, c);
    return us < 0 ? us : (double)case_bytes(c) / us / 1e3;
}

/* ---- a plain loop ------------------------------------------------------ */

/* One head's rows i of a f32 attention; `s` holds the scores of one row. */
static void naive_row(const attnc_args *a, int d, int64_t keys, int64_t h,
                      int64_t i, float *s) {
    const float *q = (float *)a->q.data + h * a->q.stride_h + i * a->q.stride_n;
    const float *k = (float *)a->k.data + h * a->k.stride_h;
    const float *v = (float *)a->v.data + h * a->v.stride_h;
    float *o = (float *)a->o.data + h * a->o.stride_h + i * a->o.stride_n;
    float max = -INFINITY, sum = 0, scale = 1 / sqrtf(d);
    for (int64_t j = 0; j < keys; j++) {
        s[j] = 0;
        for (int x = 0; x < d; x++)
            s[j] += q[x] * k[j * a->k.stride_n + x];
        s[j] *= scale;
        max = s[j] > max ? s[j] : max;
    }
    for (int x = 0; x < d; x++)
        o[x] = 0;
    for (int64_t j = 0; j < keys; j++) {
        float p = expf(s[j] - max);
        sum += p;
        for (int x = 0; x < d; x++)
            o[x] += p * v[j * a->v.stride_n + x];
    }
    for (int x = 0; x < d; x++)
        o[x] /= sum;
}

/* One attention, shared by heads among threads. */
typedef struct Job {
    const Case *c;
    const attnc_args *a;
    int threads;
    float *scores; /* of every thread, kept between calls */
    size_t each;   /* how many of them are one thread's */
} Job;

static void naive_heads(void *arg, int t) {
    const Job *job = arg;
    const attnc_args *a = job->a;
    const attnc_spec *spec = &job->c->spec;
    float *s = job->scores + t * job->each;
    for (int64_t h = t; h < a->heads; h += job->threads)
        for (int64_t i = 0; i < a->seqlen_q; i++)
            naive_row(a, spec->head_dim,
                      spec->mask == ATTNC_MASK_CAUSAL ? i + 1 : a->seqlen_k, h,
                      i, s);
}

/* Starting threads costs more than a small attention. */
static int on_heads(Bench *b, Case *c, const attnc_args *a,
                    void (*fn)(void *arg, int t)) {
    size_t width = (a->seqlen_k + 7) / 8 * 8;
    Job job = {.c = c, .a = a, .each = a->seqlen_q * width};
    if (!c->workspace)
        c->workspace = calloc(b->threads * job.each, sizeof(float));
    if (!c->workspace)
        return -1;
    job.scores = c->workspace;
    job.threads = case_flops(c) < 4e6 ? 1 : b->threads;
    on_threads(job.threads, fn, &job);
    return 0;
}

static int naive(Bench *b, Case *c, const attnc_args *a) {
    return on_heads(b, c, a, naive_heads);
}

double sample_naive_flops(Bench *b, Case *c) {
    return gflops(b, c, naive);
}

double sample_naive_us(Bench *b, Case *c) {
    return micros(b, c, naive);
}

/* ---- two products of a library ----------------------------------------- */

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };
typedef void Sgemm(int order, int ta, int tb, int m, int n, int k, float alpha,
                   const float *a, int lda, const float *b, int ldb, float beta,
                   float *c, int ldc);

static Sgemm *sgemm_find(void) {
    static Sgemm *found;
    static int looked;
    void *lib = looked++ ? NULL : dlopen("libopenblas.so.0", RTLD_NOW);
    if (lib) {
        void (*threads)(int) =
            (void (*)(int))dlsym(lib, "openblas_set_num_threads");
        found = (Sgemm *)dlsym(lib, "cblas_sgemm");
        if (threads)
            threads(1); /* heads are shared among threads here */
    }
    return found;
}

bool unfused_exists(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           sgemm_find();
#else
    return false;
#endif
}

#if defined(__x86_64__)
#define WIDE __attribute__((target("avx2,fma")))
#else
#define WIDE
#endif
typedef float f8 __attribute__((vector_size(32), aligned(4)));
typedef int i8 __attribute__((vector_size(32), aligned(4)));

WIDE static inline f8 max8(f8 a, f8 b) {
    i8 take = a > b;
    return (f8)((take & (i8)a) | (~take & (i8)b));
}

/* 2^x for x <= 0: the fraction by a polynomial, the rest into the exponent. */
WIDE static inline f8 exp2_8(f8 x) {
    x = max8(x, (f8){0} - 126.0f);
    f8 magic = x + 12582912.0f; /* rounds to an integer, held low */
    f8 f = x - (magic - 12582912.0f);
    f8 p = 0.000154035f * f + 0.00133336f;
    p = p * f + 0.00961813f;
    p = p * f + 0.05550411f;
    p = p * f + 0.24022651f;
    p = p * f + 0.69314718f;
    p = p * f + 1.0f;
    return (f8)((i8)p + ((i8)magic << 23));
}

/* Row of n scores (a multiple of 8, the tail -inf) -> weights. */
WIDE static void softmax_row(float *s, int64_t n, float scale) {
    f8 *v = (f8 *)s, max = {0}, sum = {0};
    max -= INFINITY;
    for (int64_t i = 0; i < n / 8; i++)
        max = max8(v[i], max);
    float top = max[0], total = 0;
    for (int i = 1; i < 8; i++)
        top = max[i] > top ? max[i] : top;
    for (int64_t i = 0; i < n / 8; i++)
        sum += v[i] = exp2_8((v[i] - top) * scale);
    for (int i = 0; i < 8; i++)
        total += sum[i];
    for (int64_t i = 0; i < n / 8; i++)
        v[i] /= total;
}

static void unfused_head(const Job *job, int64_t h, float *s, int64_t width) {
    const attnc_args *a = job->a;
    Sgemm *sgemm = sgemm_find();
    int d = job->c->spec.head_dim, nq = a->seqlen_q, nk = a->seqlen_k;
    bool causal = job->c->spec.mask == ATTNC_MASK_CAUSAL;
    float scale = 1 / sqrtf(d) * 1.44269504f;
    sgemm(ROW_MAJOR, NO_TRANS, TRANS, nq, nk, d, 1,
          (float *)a->q.data + h * a->q.stride_h, a->q.stride_n,
          (float *)a->k.data + h * a->k.stride_h, a->k.stride_n, 0, s, width);
    for (int64_t i = 0; i < nq; i++) {
        for (int64_t j = causal ? i + 1 : nk; j < width; j++)
            s[i * width + j] = -INFINITY;
        softmax_row(s + i * width, width, scale);
    }
    sgemm(ROW_MAJOR, NO_TRANS, NO_TRANS, nq, d, nk, 1, s, width,
          (float *)a->v.data + h * a->v.stride_h, a->v.stride_n, 0,
          (float *)a->o.data + h * a->o.stride_h, a->o.stride_n);
}

static void unfused_heads(void *arg, int t) {
    const Job *job = arg;
    int64_t width = (job->a->seqlen_k + 7) / 8 * 8;
    float *s = job->scores + t * job->each;
    for (int64_t h = t; h < job->a->heads; h += job->threads)
        unfused_head(job, h, s, width);
}

static int unfused(Bench *b, Case *c, const attnc_args *a) {
    return on_heads(b, c, a, unfused_heads);
}

double sample_unfused_flops(Bench *b, Case *c) {
    return gflops(b, c, unfused);
}

double sample_unfused_us(Bench *b, Case *c) {
    return micros(b, c, unfused);
}
