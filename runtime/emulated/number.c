/* SPDX-License-Identifier: Apache-2.0
 * Conversions and the special functions. ex2, lg2 and rcp are correctly
 * rounded here and off by up to 2 ulp on a chip; results and operands that
 * would be subnormal are zero on both. */
#include <math.h>

#include "machine.h"
#include "number.h"

/* Rounds to nearest even; the sum with a constant does it for subnormals. */
uint16_t half_of_float(float x) {
    u32 u = bits_of(x), sign = u >> 16 & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u)
        return 0x7fff;
    if (u >= 0x477ff000u) /* 65520 and more */
        return (u16)(sign | 0x7c00u);
    if (u < 0x38800000u) /* below the smallest normal, 2^-14 */
        return (u16)(sign | (bits_of(float_of(u) + 0.5f) - 0x3f000000u));
    return (u16)(sign | ((u - 0x38000000u + 0xfffu + (u >> 13 & 1)) >> 13));
}

uint16_t bf16_of_float(float x) {
    u32 u = bits_of(x);
    return x != x ? 0x7fff : (u16)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

/* Nearest, ties away from zero. */
uint32_t tf32_of_float(float x) {
    u32 u = bits_of(x);
    if (x != x)
        return 0x7fffffffu;
    return isinf(x) ? u : (u + 0x1000u) & 0xffffe000u;
}

static float flush(float x) {
    return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x;
}

static void count_lane(u32 line, int class) {
    Emu *e = emu_now->block->emu;
    if (!e->config.count)
        return;
    EmuCount *c = count_at(e, line, class);
    c->lanes++;
    c->instructions += emu_now->lane == 0;
}

float emu_math(u32 line, u32 op, float x) {
    count_lane(line, EMU_COUNT_MATH);
    x = flush(x);
    return flush(op == EMU_EX2 ? exp2f(x) : op == EMU_LG2 ? log2f(x) : 1 / x);
}

u32 emu_convert(u32 line, u32 op, float lo, float hi) {
    count_lane(line, EMU_COUNT_CONVERT);
    if (op == EMU_TO_TF32)
        return tf32_of_float(lo);
    if (op == EMU_TO_F16X2)
        return half_of_float(lo) | (u32)half_of_float(hi) << 16;
    return bf16_of_float(lo) | (u32)bf16_of_float(hi) << 16;
}

float emu_from_f16(u32 line, u16 bits) {
    count_lane(line, EMU_COUNT_CONVERT);
    return float_of_half(bits);
}
