/* SPDX-License-Identifier: Apache-2.0
 * Number formats of the device, on the host. */
#ifndef ATTNC_EMU_NUMBER_H
#define ATTNC_EMU_NUMBER_H

#include <stdint.h>
#include <string.h>

static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* f16 to f32, exact: the exponent is moved by a product, which also serves
 * subnormals; infinities and NaN get the f32 exponent. */
static inline float float_of_half(uint16_t h) {
    uint32_t magnitude = (h & 0x7fffu) << 13;
    float x = float_of(magnitude) * 0x1p112f;
    uint32_t bits = bits_of(x);
    if ((h & 0x7c00u) == 0x7c00u)
        bits = magnitude | 0x7f800000u;
    return float_of(bits | (uint32_t)(h & 0x8000u) << 16);
}

uint16_t half_of_float(float x);
uint16_t bf16_of_float(float x);
uint32_t tf32_of_float(float x);

#endif
