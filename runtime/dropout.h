/* SPDX-License-Identifier: Apache-2.0
 * Which weights dropout keeps: the one definition in plain C that the built-in
 * kernel and the reference share, and the emitted kernels must equal bit by
 * bit (docs/numerics.md has it in words, with test vectors). */
#ifndef ATTNC_DROPOUT_H
#define ATTNC_DROPOUT_H

#include <stdint.h>

#include "philox.h"

enum { DROPOUT_PATCH = 16 };

/* T: a weight is kept when its 16-bit number is >= T. 65536 for p that rounds
 * to 1, which no launch accepts; p must be in [0, 1]. */
static inline uint32_t dropout_threshold(double p) {
    return (uint32_t)(65536 * p + 0.5);
}

/* What kept weights grow by. */
static inline float dropout_scale(uint32_t threshold) {
    return (float)(1 / (1 - threshold / 65536.0));
}

/* What the numbers of one launch depend on, tensors aside. */
typedef struct Dropout {
    uint64_t seed;
    uint32_t offset;
    uint32_t threshold;
    uint32_t first; /* b0 * heads_total + h0 */
    uint32_t heads; /* heads_total */
} Dropout;

/* The numbers of query i of head h, batch entry or sequence b, and the keys
 * 16 patch .. 16 patch + 15, by key. */
static inline void dropout_numbers(const Dropout *d, int64_t b, int64_t h,
                                   int64_t i, int64_t patch,
                                   uint16_t out[DROPOUT_PATCH]) {
    uint32_t head = d->first + (uint32_t)b * d->heads + (uint32_t)h;
    uint32_t g = i & 7, low = (i >> 3) & 1; /* row g, or g + 8 */
    for (uint32_t c = 0; c < 4; c++) {
        uint32_t x[4] = {(uint32_t)patch << 5 | g << 2 | c, (uint32_t)(i >> 4),
                         head, d->offset};
        philox(x, d->seed, PHILOX_ROUNDS);
        for (uint32_t half = 0; half < 2; half++) {
            uint32_t word = x[2 * half + low];
            out[8 * half + 2 * c] = (uint16_t)word;
            out[8 * half + 2 * c + 1] = (uint16_t)(word >> 16);
        }
    }
}

#endif
