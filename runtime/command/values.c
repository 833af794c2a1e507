/* SPDX-License-Identifier: Apache-2.0
 * Elements: rounding to a spec's dtype, widening, and random ones. */
#include <math.h>

#include "convert.h"
#include "values.h"

/* f64 -> f32 rounded to odd: the last bit remembers that something was cut
 * off, so that the second rounding, to a shorter type, is exact. */
static float odd_f32(double x) {
    float f = (float)x;
    if (isnan(x) || (double)f == x)
        return f;
    uint32_t u = f32_to_bits(f);
    if (fabs((double)f) > fabs(x))
        u--; /* rounded away from zero: one step back */
    return bits_to_f32(u | 1);
}

void value_put(int dtype, void *array, int64_t i, double x) {
    if (dtype == ATTNC_F32)
        ((float *)array)[i] = (float)x;
    else if (dtype == ATTNC_F16)
        ((uint16_t *)array)[i] = f32_to_f16(odd_f32(x));
    else
        ((uint16_t *)array)[i] = f32_to_bf16(odd_f32(x));
}

float value_get(int dtype, const void *array, int64_t i) {
    if (dtype == ATTNC_F32)
        return ((const float *)array)[i];
    uint16_t h = ((const uint16_t *)array)[i];
    return dtype == ATTNC_F16 ? f16_to_f32(h) : bf16_to_f32(h);
}

void value_poison(int dtype, void *array, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        value_put(dtype, array, i, NAN);
}

static uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

void value_random(int dtype, void *array, int64_t n, uint64_t seed,
                  uint64_t stream) {
    const uint64_t g = 0x9e3779b97f4a7c15u;
    const float two_pi = 6.2831853f, unit = 0x1p-24f;
    uint64_t key = mix(mix(seed + g) + stream * g);
    for (int64_t i = 0; i < n; i += 2) {
        uint64_t word = mix(key + (uint64_t)(i / 2 + 1) * g);
        float u = (float)((word >> 40) + 1) * unit;
        float t = (float)(word & 0xffffff) * unit;
        float r = sqrtf(-2.0f * logf(u)), s, c;
        sincosf(two_pi * t, &s, &c);
        value_put(dtype, array, i, r * c);
        if (i + 1 < n)
            value_put(dtype, array, i + 1, r * s);
    }
}
