/* SPDX-License-Identifier: Apache-2.0
 * The counter-based random numbers of dropout and of patterns drawn. */
#ifndef ATTNC_PHILOX_H
#define ATTNC_PHILOX_H

#include <stdint.h>

enum { PHILOX_ROUNDS = 7 };

/* Philox4x32 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
 * (SC 2011): x is the counter on entry and the number after. */
static inline void philox(uint32_t x[4], uint64_t key, int rounds) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int r = 0; r < rounds; r++) {
        uint64_t p0 = (uint64_t)0xd2511f53u * x[0];
        uint64_t p1 = (uint64_t)0xcd9e8d57u * x[2];
        x[0] = (uint32_t)(p1 >> 32) ^ x[1] ^ k0;
        x[1] = (uint32_t)p1;
        x[2] = (uint32_t)(p0 >> 32) ^ x[3] ^ k1;
        x[3] = (uint32_t)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
}

#endif
