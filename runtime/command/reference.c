/* SPDX-License-Identifier: Apache-2.0
 * Attention in f64, plain two-pass softmax, beside unfused attention in the
 * spec's dtype (scores, then weights, rounded to it). Eight query rows of one
 * head at a time fill the lanes of a vector; every sum runs in index order. */
#include "reference_rows.h"

#include <math.h>
#include <stdlib.h>

#include "convert.h"

typedef double d2 __attribute__((vector_size(16), may_alias));
typedef float f4 __attribute__((vector_size(16), may_alias));
enum { PARTS = REF_LANES / 2, PARTS32 = REF_LANES / 4 };

/* ---- the problem ------------------------------------------------------- */

RefSeq ref_seq_at(const RefProblem *p, int64_t b) {
    const attnc_args *a = p->a;
    RefSeq q = {.nq = a->seqlen_q, .nk = a->seqlen_k};
    if (p->s->varlen) {
        q.q0 = a->cu_seqlens_q[b];
        q.k0 = a->cu_seqlens_k[b];
        q.nq = a->cu_seqlens_q[b + 1] - q.q0;
        q.nk = a->cu_seqlens_k[b + 1] - q.k0;
    }
    q.all = q.nk;
    if (p->s->lens_k && a->lens_k[b] < q.nk)
        q.nk = a->lens_k[b] > 0 ? a->lens_k[b] : 0;
    q.offset = a->mask_offset;
    if (a->mask_offset_mode == ATTNC_OFFSET_BR)
        q.offset = q.all - q.nq;
    else if (a->mask_offset_mode == ATTNC_OFFSET_LEN)
        q.offset = q.nk - q.nq;
    return q;
}

/* The keys [*lo, *hi) that row i sees: the mask's kinds are all intervals.
 * 128 bits, since offset, left and right may be any int64. */
void ref_row_keys(const RefProblem *p, const RefSeq *q, int64_t i, int64_t *lo,
                  int64_t *hi) {
    const attnc_args *a = p->a;
    __int128 diagonal = (__int128)i + q->offset, from = 0, to = q->nk;
    if (p->s->mask == ATTNC_MASK_CAUSAL)
        to = diagonal + 1;
    if (p->s->mask == ATTNC_MASK_PREFIX)
        to = diagonal + 1 > a->mask_prefix ? diagonal + 1 : a->mask_prefix;
    if (p->s->mask == ATTNC_MASK_WINDOW && a->mask_left != INT64_MAX)
        from = diagonal - a->mask_left;
    if (p->s->mask == ATTNC_MASK_WINDOW && a->mask_right != INT64_MAX)
        to = diagonal + a->mask_right + 1;
    from = from > 0 ? from : 0;
    to = to < q->nk ? to : q->nk;
    *lo = (int64_t)from;
    *hi = to > from ? (int64_t)to : *lo;
    if (from > q->nk)
        *lo = *hi = q->nk;
}

/* 2^(-8 (h+1) / n) for the largest power of two n <= heads; further heads take
 * every other slope of the sequence for 2n. */
static float default_slope(int64_t h, int64_t heads) {
    int64_t n = 1;
    while (2 * n <= heads)
        n *= 2;
    double e = h < n ? 8.0 * (double)(h + 1) / (double)n
                     : 4.0 * (double)(2 * (h - n) + 1) / (double)n;
    return (float)exp2(-e);
}

/* ---- tensors ----------------------------------------------------------- */

const char *ref_row_at(const RefProblem *p, const attnc_tensor *t, int64_t b,
                       int64_t h, int64_t n) {
    int64_t at = h * t->stride_h + n * t->stride_n;
    if (!p->s->varlen)
        at += b * t->stride_b;
    return (const char *)t->data + at * dtype_bytes(p->s->dtype);
}

void ref_load_row(int dtype, const char *from, int n, float *to) {
    if (dtype == ATTNC_F32) {
        memcpy(to, from, (size_t)n * 4);
        return;
    }
    for (int c = 0; c < n; c++) {
        uint16_t bits;
        memcpy(&bits, from + 2 * c, 2);
        to[c] = dtype == ATTNC_F16 ? f16_to_f32(bits) : bf16_to_f32(bits);
    }
}

/* Rows [j, j + n) of K or V to the tile, as f32 (exact). */
static void load_tile(RefWork *w, const attnc_tensor *t, const RefGroup *g,
                      int64_t j, int n, int width) {
    for (int r = 0; r < n; r++)
        ref_load_row(w->p->s->dtype,
                     ref_row_at(w->p, t, g->b, g->hk, g->seq.k0 + j + r), width,
                     w->tile + (size_t)r * width);
}

float ref_round(int dtype, float x) {
    if (dtype == ATTNC_F16)
        return f16_to_f32(f32_to_f16(x));
    return dtype == ATTNC_BF16 ? bf16_to_f32(f32_to_bf16(x)) : x;
}

/* To 10 bits of mantissa, ties away from zero, as the matrix units do. */
float ref_tf32(float x) {
    uint32_t u = f32_to_bits(x);
    return isfinite(x) ? bits_to_f32((u + 0x1000u) & ~0x1fffu) : x;
}

static void round_operands(const RefProblem *p, float *x, int64_t n) {
    for (int64_t i = 0; i < n && p->tf32; i++)
        x[i] = ref_tf32(x[i]);
}

/* ---- scores ------------------------------------------------------------ */

static void load_queries(RefWork *w, const RefGroup *g) {
    const RefProblem *p = w->p;
    for (int t = 0; t < REF_LANES; t++) {
        int64_t i = g->row[t < g->n ? t : 0]; /* idle lanes repeat a row */
        ref_load_row(p->s->dtype,
                     ref_row_at(p, &p->a->q, g->b, g->h, g->seq.q0 + i), p->d,
                     w->tile);
        for (int c = 0; c < p->d; c++)
            w->q[c][t] = w->q32[c][t] = w->tile[c];
    }
    round_operands(p, (float *)w->q32, (int64_t)p->d * REF_LANES);
}

static double distance(const RefSeq *q, int64_t i, int64_t j) {
    return fabs((double)((__int128)i + q->offset - j));
}

double ref_score(const RefProblem *p, const RefSeq *q, int64_t h, int64_t i,
                 int64_t j, double dot, double *bend) {
    double x = p->scale * dot, cap = p->a->softcap;
    *bend = 1;
    if (p->s->softcap) {
        double t = tanh(x / cap);
        x = cap * t;
        *bend = 1 - t * t;
    }
    if (p->s->alibi)
        x -= p->slopes[h] * distance(q, i, j);
    return x;
}

/* The product leaves its GEMM rounded; the rest is part of the softmax. */
float ref_score32(const RefProblem *p, const RefSeq *q, int64_t h, int64_t i,
                  int64_t j, float dot, float *bend) {
    float x = ref_round(p->s->dtype, p->scale * dot), cap = p->a->softcap;
    *bend = 1;
    if (p->s->softcap) {
        float t = tanhf(x / cap);
        x = cap * t;
        *bend = 1 - t * t;
    }
    if (p->s->alibi)
        x -= p->slopes[h] * (float)distance(q, i, j);
    return x;
}

static double score(const RefProblem *p, const RefGroup *g, int t, int64_t j,
                    double dot) {
    double bend;
    if (j < g->lo[t] || j >= g->hi[t])
        return -INFINITY;
    return ref_score(p, &g->seq, g->h, g->row[t], j, dot, &bend);
}

static float score32(const RefProblem *p, const RefGroup *g, int t, int64_t j,
                     float dot) {
    float bend;
    if (j < g->lo[t] || j >= g->hi[t])
        return -INFINITY;
    return ref_score32(p, &g->seq, g->h, g->row[t], j, dot, &bend);
}

static void scores(RefWork *w, const RefGroup *g, int64_t j, int n, Lanes *s) {
    const RefProblem *p = w->p;
    for (int r = 0; r < n; r++) {
        const float *k = w->tile + (size_t)r * p->d;
        d2 dot[PARTS] = {{0}};
        for (int c = 0; c < p->d; c++)
            for (int x = 0; x < PARTS; x++)
                dot[x] += ((const d2 *)w->q[c])[x] * (double)k[c];
        for (int t = 0; t < REF_LANES; t++)
            s[r][t] = score(p, g, t, j + r, dot[t / 2][t % 2]);
    }
}

static void scores32(RefWork *w, const RefGroup *g, int64_t j, int n,
                     Lanes32 *s) {
    const RefProblem *p = w->p;
    round_operands(p, w->tile, (int64_t)n * p->d);
    for (int r = 0; r < n; r++) {
        const float *k = w->tile + (size_t)r * p->d;
        f4 dot[PARTS32] = {{0}};
        for (int c = 0; c < p->d; c++)
            for (int x = 0; x < PARTS32; x++)
                dot[x] += ((const f4 *)w->q32[c])[x] * k[c];
        for (int t = 0; t < REF_LANES; t++)
            s[r][t] = score32(p, g, t, j + r, dot[t / 4][t % 4]);
    }
}

/* ---- softmax ----------------------------------------------------------- */

/* Scores of one lane to weights; -inf excludes, NaN spreads. Returns the
 * log-sum-exp, -inf when nothing is seen. A masked score becomes -1, which no
 * weight is, so that its V is left alone whatever it holds. */
static const double MASKED = -1;

static double softmax(Lanes *s, int t, int64_t n, double sink) {
    double m = sink, l;
    for (int64_t j = 0; j < n; j++)
        m = s[j][t] > m ? s[j][t] : m;
    l = sink == -INFINITY ? 0 : exp(sink - m);
    for (int64_t j = 0; j < n; j++) {
        double e = s[j][t] == -INFINITY ? MASKED : exp(s[j][t] - m);
        s[j][t] = e;
        l += e == MASKED ? 0 : e;
    }
    for (int64_t j = 0; j < n; j++)
        s[j][t] = s[j][t] == MASKED ? MASKED : s[j][t] / l;
    return l == 0 ? -INFINITY : m + log(l);
}

static float softmax32(const RefProblem *p, Lanes32 *s, int t, int64_t n,
                       float sink) {
    float m = sink, l;
    for (int64_t j = 0; j < n; j++)
        m = s[j][t] > m ? s[j][t] : m;
    l = sink == -INFINITY ? 0 : expf(sink - m);
    for (int64_t j = 0; j < n; j++) {
        float e = s[j][t] == -INFINITY ? (float)MASKED : expf(s[j][t] - m);
        s[j][t] = e;
        l += e == (float)MASKED ? 0 : e;
    }
    for (int64_t j = 0; j < n; j++)
        if (s[j][t] != (float)MASKED)
            s[j][t] = ref_round(p->s->dtype, s[j][t] / l);
    return l == 0 ? -INFINITY : m + logf(l);
}

static bool all_masked(const Lanes *s, int t, int64_t n) {
    for (int64_t j = 0; j < n; j++)
        if (s[j][t] != MASKED)
            return false;
    return true;
}

/* ---- dropout ----------------------------------------------------------- */

/* Weights of lane t after dropout: 0, or larger as fewer are left. */
static void drop(RefWork *w, const RefGroup *g, int t) {
    const RefProblem *p = w->p;
    const double grow = 1 / (1 - p->drop.threshold / 65536.0);
    uint16_t numbers[DROPOUT_PATCH];
    for (int64_t j = g->begin; j < g->end; j++) {
        double *x = &w->s[j - g->begin][t];
        int64_t at = j % DROPOUT_PATCH;
        if (j == g->begin || at == 0)
            dropout_numbers(&p->drop, g->b, g->h, g->row[t < g->n ? t : 0],
                            j / DROPOUT_PATCH, numbers);
        double by = numbers[at] < p->drop.threshold ? 0 : grow;
        if (*x != MASKED)
            *x *= by;
        if (!p->unfused || w->s32[j - g->begin][t] == (float)MASKED)
            continue;
        float *y = &w->s32[j - g->begin][t];
        *y = ref_round(p->s->dtype, *y * (float)by);
    }
}

double ref_kept(const RefProblem *p, int64_t b, int64_t h, int64_t i,
                int64_t j) {
    uint16_t numbers[DROPOUT_PATCH];
    if (!p->drop.threshold)
        return 1;
    dropout_numbers(&p->drop, b, h, i, j / DROPOUT_PATCH, numbers);
    return numbers[j % DROPOUT_PATCH] < p->drop.threshold
               ? 0
               : 1 / (1 - p->drop.threshold / 65536.0);
}

/* ---- O = P V ----------------------------------------------------------- */

static bool all_finite(const float *x, int64_t n) {
    float zero = 0; /* 0 * x is 0 or NaN, and NaN stays in a sum */
    for (int64_t i = 0; i < n; i++)
        zero += 0 * x[i];
    return zero == 0;
}

/* o += P V, key by key, and the squares of what is added; a masked weight
 * counts 0. */
static void weigh(RefWork *w, const Lanes *s, int n) {
    int dv = w->p->dv;
    Lanes p[REF_TILE] __attribute__((aligned(16)));
    for (int r = 0; r < n; r++)
        for (int t = 0; t < REF_LANES; t++)
            p[r][t] = s[r][t] == MASKED ? 0 : s[r][t];
    for (int c = 0; c < dv; c++) {
        d2 *o = (d2 *)w->o[c], *terms = (d2 *)w->terms[c];
        d2 sum[PARTS], squares[PARTS];
        memcpy(sum, o, sizeof(sum));
        memcpy(squares, terms, sizeof(squares));
        for (int r = 0; r < n; r++)
            for (int x = 0; x < PARTS; x++) {
                d2 one =
                    ((const d2 *)p[r])[x] * (double)w->tile[(size_t)r * dv + c];
                sum[x] += one;
                squares[x] += one * one;
            }
        memcpy(o, sum, sizeof(sum));
        memcpy(terms, squares, sizeof(squares));
    }
}

static void weigh32(RefWork *w, const Lanes32 *s, int n) {
    int dv = w->p->dv;
    Lanes32 p[REF_TILE] __attribute__((aligned(16)));
    for (int r = 0; r < n; r++)
        for (int t = 0; t < REF_LANES; t++)
            p[r][t] = s[r][t] == (float)MASKED ? 0 : s[r][t];
    round_operands(w->p, (float *)p, (int64_t)n * REF_LANES);
    for (int c = 0; c < dv; c++) {
        f4 *o = (f4 *)w->o32[c], sum[PARTS32];
        memcpy(sum, o, sizeof(sum));
        for (int r = 0; r < n; r++)
            for (int x = 0; x < PARTS32; x++)
                sum[x] += ((const f4 *)p[r])[x] * w->tile[(size_t)r * dv + c];
        memcpy(o, sum, sizeof(sum));
    }
}

/* The same where V holds NaN or infinity, of which a masked weight must take
 * no part, not even 0 times that. */
static void weigh_seen(RefWork *w, const Lanes *s, const Lanes32 *s32, int n) {
    int dv = w->p->dv;
    for (int r = 0; r < n; r++)
        for (int c = 0; c < dv; c++)
            for (int t = 0; t < REF_LANES; t++) {
                float v = w->tile[(size_t)r * dv + c];
                if (s[r][t] != MASKED) {
                    w->o[c][t] += s[r][t] * v;
                    w->terms[c][t] += s[r][t] * v * s[r][t] * v;
                }
                if (w->p->unfused && s32[r][t] != (float)MASKED)
                    w->o32[c][t] +=
                        ref_operand(w->p, s32[r][t]) * ref_operand(w->p, v);
            }
}

/* ---- one group --------------------------------------------------------- */

/* Scores of n keys from j on; where none is kept there is nothing to do. */
static void tile_scores(RefWork *w, const RefGroup *g, int64_t j, int n) {
    const RefProblem *p = w->p;
    Lanes *s = w->s + (j - g->begin);
    Lanes32 *s32 = w->s32 + (p->unfused ? j - g->begin : 0);
    if (!ref_tile_keep(w, g, j, n, s, s32))
        return;
    load_tile(w, &p->a->k, g, j, n, p->d);
    scores(w, g, j, n, s);
    if (p->unfused)
        scores32(w, g, j, n, s32);
    ref_tile_bend(w, g, j, n, s, s32);
}

static void group_scores(RefWork *w, const RefGroup *g) {
    load_queries(w, g);
    for (int64_t j = g->begin; j < g->end; j += REF_TILE)
        tile_scores(w, g, j,
                    (int)(g->end - j < REF_TILE ? g->end - j : REF_TILE));
}

static void group_softmax(RefWork *w, const RefGroup *g) {
    const RefProblem *p = w->p;
    float sink = p->s->sink ? p->a->sink[g->h] : -INFINITY;
    for (int t = 0; t < REF_LANES; t++) {
        w->lse[t] = softmax(w->s, t, g->end - g->begin, sink);
        w->none[t] = all_masked(w->s, t, g->end - g->begin);
        if (p->unfused)
            w->lse32[t] = softmax32(p, w->s32, t, g->end - g->begin, sink);
        if (p->drop.threshold)
            drop(w, g, t);
    }
}

static void group_weigh(RefWork *w, const RefGroup *g) {
    const RefProblem *p = w->p;
    memset(w->o, 0, sizeof(Lanes) * (size_t)p->dv);
    memset(w->terms, 0, sizeof(Lanes) * (size_t)p->dv);
    memset(w->o32, 0, sizeof(Lanes32) * (size_t)p->dv);
    for (int64_t j = g->begin; j < g->end; j += REF_TILE) {
        int n = (int)(g->end - j < REF_TILE ? g->end - j : REF_TILE);
        const Lanes *s = w->s + (j - g->begin);
        const Lanes32 *s32 = w->s32 + (p->unfused ? j - g->begin : 0);
        load_tile(w, &p->a->v, g, j, n, p->dv);
        if (!all_finite(w->tile, (int64_t)n * p->dv)) {
            weigh_seen(w, s, s32, n);
            continue;
        }
        weigh(w, s, n);
        round_operands(p, w->tile, (int64_t)n * p->dv);
        if (p->unfused)
            weigh32(w, s32, n);
    }
    for (int c = 0; c < p->dv && p->unfused; c++)
        for (int t = 0; t < REF_LANES; t++)
            w->o32[c][t] = ref_round(p->s->dtype, w->o32[c][t]);
}

void ref_group_run(RefWork *w, const RefGroup *g) {
    group_scores(w, g);
    group_softmax(w, g);
    group_weigh(w, g);
}

/* ---- problem and worker ------------------------------------------------ */

int ref_problem_make(const attnc_spec *s, const attnc_args *a, bool unfused,
                     RefProblem *p, Err *e) {
    *p = (RefProblem){.s = s, .a = a, .unfused = unfused};
    p->tf32 = s->dtype == ATTNC_F32 && s->f32_math == ATTNC_MATH_TF32;
    p->d = s->head_dim;
    p->dv = s->head_dim_v ? s->head_dim_v : s->head_dim;
    p->scale = isnan(a->scale) ? 1 / sqrtf((float)p->d) : a->scale;
    p->drop.seed = a->dropout_seed;
    p->drop.offset = (uint32_t)a->dropout_offset;
    p->drop.threshold = s->dropout ? dropout_threshold(a->dropout_p) : 0;
    p->drop.heads = (uint32_t)(a->dropout_heads ? a->dropout_heads : a->heads);
    p->drop.first =
        (uint32_t)a->dropout_b0 * p->drop.heads + (uint32_t)a->dropout_h0;
    ref_programs_make(&p->programs, s, a);
    p->slopes = calloc((size_t)a->heads + 1, sizeof(float));
    if (!p->slopes)
        return err_set(e, ERR_MEMORY, "check", "", "out of memory");
    for (int64_t h = 0; h < a->heads; h++)
        p->slopes[h] = a->slopes ? a->slopes[h] : default_slope(h, a->heads);
    return 0;
}

void ref_problem_free(RefProblem *p) {
    free(p->slopes);
}

bool ref_work_alloc(RefWork *w, const RefProblem *p) {
    int64_t n = 1;
    for (int64_t b = 0; b < p->a->batch; b++) {
        int64_t nk = ref_seq_at(p, b).nk;
        n = nk > n ? nk : n;
    }
    int width = p->d > p->dv ? p->d : p->dv;
    w->p = p;
    w->q = aligned_alloc(64, sizeof(Lanes) * (size_t)p->d);
    w->o = aligned_alloc(64, sizeof(Lanes) * (size_t)p->dv);
    w->terms = aligned_alloc(64, sizeof(Lanes) * (size_t)p->dv);
    w->s = aligned_alloc(64, sizeof(Lanes) * (size_t)n);
    w->q32 = aligned_alloc(32, sizeof(Lanes32) * (size_t)p->d);
    w->o32 = aligned_alloc(32, sizeof(Lanes32) * (size_t)p->dv);
    w->s32 = aligned_alloc(32, sizeof(Lanes32) * (size_t)(p->unfused ? n : 1));
    w->tile = malloc(sizeof(float) * (size_t)width * REF_TILE);
    bool values = ref_eval_alloc(&w->eval, &p->programs);
    return w->q && w->o && w->terms && w->s && w->q32 && w->o32 && w->tile &&
           w->s32 && values;
}

void ref_work_free(RefWork *w) {
    free(w->q);
    free(w->o);
    free(w->terms);
    free(w->s);
    free(w->q32);
    free(w->o32);
    free(w->s32);
    free(w->tile);
    ref_eval_free(&w->eval);
}
