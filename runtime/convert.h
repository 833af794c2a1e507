/* SPDX-License-Identifier: Apache-2.0
 * Element types: f16 and bf16 bits to f32 and back, round to nearest even.
 * Branch-free in integers, so that loops over them vectorise on any ISA and
 * a host that flushes denormals changes nothing. */
#ifndef ATTNC_CONVERT_H
#define ATTNC_CONVERT_H

#include <stdint.h>
#include <string.h>

static inline float bits_to_f32(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline uint32_t f32_to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline float bf16_to_f32(uint16_t h) {
    return bits_to_f32((uint32_t)h << 16);
}

/* NaN stays NaN, quiet. */
static inline uint16_t f32_to_bf16(float x) {
    uint32_t u = f32_to_bits(x);
    uint32_t nan = (u & 0x7fffffffu) > 0x7f800000u;
    uint32_t rounded = u + 0x7fffu + (u >> 16 & 1);
    return (uint16_t)((nan ? (u | 0x400000u) : rounded) >> 16);
}

static inline float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t u = (uint32_t)(h & 0x7fffu) << 13;
    uint32_t normal = u + (112u << 23);
    uint32_t special = u + (224u << 23); /* infinity and NaN */
    /* A denormal's value is its mantissa times 2^-24: exact in f32. */
    uint32_t denormal = f32_to_bits((float)(int32_t)(u >> 13) * 0x1p-24f);
    uint32_t out = u < (1u << 23)     ? denormal
                   : u >= (31u << 23) ? special
                                      : normal;
    return bits_to_f32(out | sign);
}

/* Above 65519.99 to infinity; NaN stays NaN, quiet. */
static inline uint16_t f32_to_f16(float x) {
    uint32_t u = f32_to_bits(x);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000u);
    uint32_t a = u & 0x7fffffffu;
    if (a > 0x7f800000u)
        return sign | 0x7e00u | (uint16_t)(a >> 13 & 0x1ffu);
    if (a >= 0x477ff000u) /* 65520: the tie that rounds up to infinity */
        return sign | 0x7c00u;
    if (a < 0x38800000u) {
        /* Below 2^-14: adding 0.5 puts one f16 denormal step in the last
         * place of f32, so that the addition itself rounds to even. */
        float y = bits_to_f32(a) + 0.5f;
        return sign | (uint16_t)(f32_to_bits(y) - 0x3f000000u);
    }
    uint32_t rounded = a - (112u << 23) + 0xfffu + (a >> 13 & 1);
    return sign | (uint16_t)(rounded >> 13);
}

#endif
