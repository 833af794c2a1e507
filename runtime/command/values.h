/* SPDX-License-Identifier: Apache-2.0
 * Elements: rounding to a spec's dtype, widening, and random ones. */
#ifndef ATTNC_VALUES_H
#define ATTNC_VALUES_H

#include <stdint.h>

#include "spec.h"

/* Element i of an array of `dtype` (enum attnc_dtype); put rounds once, to
 * nearest even, overflow to infinity. */
void value_put(int dtype, void *array, int64_t i, double x);
float value_get(int dtype, const void *array, int64_t i);
/* n elements of NaN: what an output holds before a launch. */
void value_poison(int dtype, void *array, int64_t n);

/* Fills n elements with normal random numbers of mean 0, variance 1.
 * Counter-based, so that any element can be had alone: with mix() the
 * finaliser of splitmix64 and g = 0x9e3779b97f4a7c15,
 *   key = mix(mix(seed + g) + stream * g)    word = mix(key + (i / 2 + 1) * g)
 *   u = ((word >> 40) + 1) / 2^24            t = (word & (2^24 - 1)) / 2^24
 *   element i = sqrt(-2 ln u) * (i even: cos, odd: sin)(2 pi t)
 * in f32, then rounded to dtype. i counts in memory order. */
void value_random(int dtype, void *array, int64_t n, uint64_t seed,
                  uint64_t stream);

#endif
