/* SPDX-License-Identifier: Apache-2.0
 * Runs the subject, attn_fwd.cu.h, on random inputs and compares with f64. */
#ifndef TEST_EMU_SUBJECT_H
#define TEST_EMU_SUBJECT_H

#include <math.h>

#include "kernel.h"

#define SUBJECT "attn_fwd.cu.h"

enum { DIM = 64 };

/* Mirrors Args of the subject. */
typedef struct SubjectArgs {
    const uint16_t *q, *k, *v;
    uint16_t *o;
    float *lse;
    int64_t n;
    float scale_log2;
    uint32_t causal;
} SubjectArgs;

typedef struct Subject {
    int64_t heads, n;
    bool causal;
    uint16_t *q, *k, *v, *o;
    float *lse;
} Subject;

static inline uint16_t *random_halves(size_t count, uint32_t *seed) {
    uint16_t *p = malloc(count * 2);
    assert_non_null(p);
    for (size_t i = 0; i < count; i++) {
        *seed = *seed * 1664525u + 1013904223u;
        p[i] = half_of_float((float)((int)(*seed >> 8 & 0xfff) - 2048) / 1024);
    }
    return p;
}

static inline Subject subject_new(int64_t heads, int64_t n, bool causal) {
    size_t count = (size_t)(heads * n * DIM);
    uint32_t seed = (uint32_t)(n * 31 + heads);
    Subject s = {heads,
                 n,
                 causal,
                 random_halves(count, &seed),
                 random_halves(count, &seed),
                 random_halves(count, &seed),
                 malloc(count * 2),
                 malloc((size_t)(heads * n) * 4)};
    assert_non_null(s.o);
    assert_non_null(s.lse);
    return s;
}

static inline void subject_free(Subject *s) {
    free(s->q);
    free(s->k);
    free(s->v);
    free(s->o);
    free(s->lse);
}

/* Results of an earlier launch are poisoned first. */
static inline EmuReport subject_run(const Subject *s, const Loaded *k,
                                    const EmuConfig *config, int stages) {
    size_t bytes = (size_t)(s->heads * s->n * DIM) * 2;
    size_t rows = (size_t)(s->heads * s->n) * 4;
    SubjectArgs a = {
        s->q, s->k, s->v, s->o, s->lse, s->n, 0.125f * 1.44269504f, s->causal};
    EmuDim grid = {(uint32_t)((s->n + 63) / 64), (uint32_t)s->heads, 1};
    EmuReport r = {0};
    static Emu *e; /* kept: stacks are costly to map */
    e = e ? e : emu_create();
    assert_non_null(e);
    emu_forget(e);
    memset(s->o, 0xff, bytes);
    memset(s->lse, 0xff, rows);
    assert_int_equal(emu_buffer(e, s->q, bytes, "q", EMU_READ), 0);
    assert_int_equal(emu_buffer(e, s->k, bytes, "k", EMU_READ), 0);
    assert_int_equal(emu_buffer(e, s->v, bytes, "v", EMU_READ), 0);
    assert_int_equal(emu_buffer(e, s->o, bytes, "o", EMU_WRITE_ONCE), 0);
    assert_int_equal(emu_buffer(e, s->lse, rows, "lse", EMU_WRITE_ONCE), 0);
    assert_int_equal(emu_region(e, 0, 8192, "Q"), 0);
    assert_int_equal(emu_region(e, 8192, 8192u * (uint32_t)stages, "K"), 0);
    assert_int_equal(emu_launch(e, config, k->entry, &a, grid,
                                (EmuDim){128, 1, 1},
                                8192u * (1 + 2 * (uint32_t)stages), &r),
                     0);
    return r;
}

/* One row in f64: softmax over the visible keys, times V. */
static inline double reference_row(const Subject *s, int64_t h, int64_t i,
                                   double o[DIM]) {
    int64_t base = h * s->n, keys = s->causal ? i + 1 : s->n;
    double *w = malloc((size_t)keys * sizeof *w), max = -INFINITY, sum = 0;
    assert_non_null(w);
    for (int64_t j = 0; j < keys; j++) {
        w[j] = 0;
        for (int64_t x = 0; x < DIM; x++)
            w[j] += (double)float_of_half(s->q[(base + i) * DIM + x]) *
                    float_of_half(s->k[(base + j) * DIM + x]);
        w[j] *= 0.125;
        max = fmax(max, w[j]);
    }
    memset(o, 0, DIM * sizeof *o);
    for (int64_t j = 0; j < keys; j++) {
        double p = exp(w[j] - max);
        sum += p;
        for (int64_t x = 0; x < DIM; x++)
            o[x] += p * float_of_half(s->v[(base + j) * DIM + x]);
    }
    for (int64_t x = 0; x < DIM; x++)
        o[x] /= sum;
    free(w);
    return max + log(sum);
}

/* Relative error of o in the 2-norm; LSE's largest error goes to *lse. NaN
 * where a result is not a number. */
static inline double subject_error(const Subject *s, double *lse) {
    double error = 0, norm = 0, o[DIM];
    *lse = 0;
    for (int64_t h = 0; h < s->heads; h++)
        for (int64_t i = 0; i < s->n; i++) {
            double want = reference_row(s, h, i, o);
            double off = fabs(s->lse[h * s->n + i] - want);
            *lse = off > *lse || off != off ? off : *lse;
            for (int64_t x = 0; x < DIM; x++) {
                double got = float_of_half(s->o[(h * s->n + i) * DIM + x]);
                error += (got - o[x]) * (got - o[x]);
                norm += o[x] * o[x];
            }
        }
    return sqrt(error / norm);
}

#endif
