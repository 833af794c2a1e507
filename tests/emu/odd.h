/* SPDX-License-Identifier: Apache-2.0
 * Numbers of a case's tensors: some made Inf or NaN, others looked at. */
#ifndef TEST_EMU_ODD_H
#define TEST_EMU_ODD_H

#include "../grad_case.h"
#include "forward.h"

static const float bad[] = {NAN, INFINITY, -INFINITY};

/* Of batch entry 0. */
static inline void spoil(const Case *c, Block *b, const attnc_tensor *t,
                         int64_t h, int64_t n, int column, float x) {
    char *at = element(c, t, 0, h, n);
    put(c->spec.dtype, at + column * dtype_bytes(c->spec.dtype), x);
    memcpy(b->kept, b->base, b->bytes);
}

static inline float value_at(const Case *c, const attnc_tensor *t, int64_t h,
                             int64_t n, int column) {
    const char *p = element(c, t, 0, h, n);
    uint16_t half;
    float x;
    memcpy(&half, p + 2 * column, 2);
    memcpy(&x, p + 4 * column * (c->spec.dtype == ATTNC_F32), 4);
    return c->spec.dtype == ATTNC_F16    ? f16_to_f32(half)
           : c->spec.dtype == ATTNC_BF16 ? bf16_to_f32(half)
                                         : x;
}

#endif
