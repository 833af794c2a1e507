/* SPDX-License-Identifier: Apache-2.0
 * The matrix instructions on a whole warp. Products are exact in f32 and are
 * added in order of k; a tensor core's order and rounding are not promised. */
#include <string.h>

#include "machine.h"
#include "number.h"

typedef float f32x8 __attribute__((vector_size(32)));

/* What the fragments say: a[row][k], b[k][column], as 16-bit or 32-bit. */
typedef struct Operands {
    union {
        u16 half[16][16];
        u32 word[16][8];
    } a;
    union {
        u16 half[16][8];
        u32 word[8][8];
    } b;
} Operands;

/* Lane l = 4 g + t; 16-bit a: two elements at k = 2 t of rows g and g + 8,
 * then the same at k + 8; b: k = 2 t of column g, then k + 8. */
static void gather_half(const Wait *const wait[LANES], u32 steps, Operands *o) {
    for (u32 l = 0; l < LANES; l++) {
        u32 g = l / 4, t = l % 4;
        for (u32 s = 0; s < steps; s++) {
            u32 k = 8 * s + 2 * t, b = wait[l]->b[s];
            memcpy(&o->a.half[g][k], &wait[l]->a[2 * s], 4);
            memcpy(&o->a.half[g + 8][k], &wait[l]->a[2 * s + 1], 4);
            o->b.half[k][g] = (u16)b;
            o->b.half[k + 1][g] = (u16)(b >> 16);
        }
    }
}

/* tf32: a: k = t of rows g, g + 8, then k + 4; b: k = t, then k + 4. */
static void gather_word(const Wait *const wait[LANES], Operands *o) {
    for (u32 l = 0; l < LANES; l++) {
        u32 g = l / 4, t = l % 4;
        for (u32 s = 0; s < 2; s++) {
            o->a.word[g][t + 4 * s] = wait[l]->a[2 * s];
            o->a.word[g + 8][t + 4 * s] = wait[l]->a[2 * s + 1];
            o->b.word[t + 4 * s][g] = wait[l]->b[s];
        }
    }
}

static inline __attribute__((always_inline)) void multiply(
    const Wait *const wait[LANES], const float *a, const float *b, u32 depth,
    u32 stride) {
    f32x8 c[16];
    for (u32 l = 0; l < LANES; l++)
        for (u32 i = 0; i < 4; i++)
            c[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2] = wait[l]->c[i];
    for (u32 r = 0; r < 16; r++)
        for (u32 k = 0; k < depth; k++) {
            f32x8 row;
            memcpy(&row, b + 8 * k, sizeof row);
            c[r] += a[r * stride + k] * row;
        }
    for (u32 l = 0; l < LANES; l++)
        for (u32 i = 0; i < 4; i++)
            wait[l]->c[i] = c[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
}

static inline __attribute__((always_inline)) void run_any(
    u32 shape, const Wait *const wait[LANES],
    void (*widen)(const u16 *, float *, u32)) {
    Operands o;
    float a[256], b[128];
    if (shape == EMU_M16N8K8_TF32) {
        gather_word(wait, &o);
        for (u32 i = 0; i < 128; i++)
            a[i] = float_of(o.a.word[i / 8][i % 8] & 0xffffe000u);
        for (u32 i = 0; i < 64; i++)
            b[i] = float_of(o.b.word[i / 8][i % 8] & 0xffffe000u);
        multiply(wait, a, b, 8, 8);
    } else if (shape == EMU_M16N8K8_F16) {
        memset(&o, 0, sizeof o);
        gather_half(wait, 1, &o);
        widen(o.a.half[0], a, 256);
        widen(o.b.half[0], b, 64);
        multiply(wait, a, b, 8, 16);
    } else {
        gather_half(wait, 2, &o);
        widen(o.a.half[0], a, 256);
        widen(o.b.half[0], b, 128);
        multiply(wait, a, b, 16, 16);
    }
}

static void widen_bf16(const u16 *in, float *out, u32 n) {
    for (u32 i = 0; i < n; i++)
        out[i] = float_of((u32)in[i] << 16);
}

static void widen_f16(const u16 *in, float *out, u32 n) {
    for (u32 i = 0; i < n; i++)
        out[i] = float_of_half(in[i]);
}

static void run_plain(u32 shape, const Wait *const wait[LANES]) {
    run_any(shape, wait, shape == EMU_M16N8K16_BF16 ? widen_bf16 : widen_f16);
}

#ifdef __x86_64__
#include <immintrin.h>

/* Same products and sums as run_plain, bit for bit. */
#define FAST __attribute__((target("avx2,fma,f16c")))

FAST static void widen_f16_fast(const u16 *in, float *out, u32 n) {
    for (u32 i = 0; i < n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(
                                      (const __m128i *)(in + i))));
}

FAST static void run_fast(u32 shape, const Wait *const wait[LANES]) {
    run_any(shape, wait,
            shape == EMU_M16N8K16_BF16 ? widen_bf16 : widen_f16_fast);
}
#endif

void mma_run(u32 shape, const Wait *const wait[LANES]) {
#ifdef __x86_64__
    /* Every chip with AVX2 has F16C; clang 14 cannot ask for the latter. */
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        run_fast(shape, wait);
        return;
    }
#endif
    run_plain(shape, wait);
}

u32 mma_flops(u32 shape) {
    bool k16 = shape == EMU_M16N8K16_F16 || shape == EMU_M16N8K16_BF16;
    return 2 * 16 * 8 * (k16 ? 16 : 8);
}
