/* SPDX-License-Identifier: Apache-2.0
 * f16 and bf16: every value there and back, every tie to even. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "convert.h"

/* The value of f16 bits by definition. */
static double f16_value(uint32_t h) {
    int e = h >> 10 & 31, m = h & 1023;
    double x = e == 0 ? ldexp(m, -24) : ldexp(1024 + m, e - 25);
    return h & 0x8000 ? -x : x;
}

static void every_f16_goes_there_and_back(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float x = f16_to_f32((uint16_t)h);
        if ((h & 0x7fff) > 0x7c00) {
            assert_true(isnan(x));
            assert_true(isnan(f16_to_f32(f32_to_f16(x))));
            continue;
        }
        if ((h & 0x7fff) == 0x7c00)
            assert_true(isinf(x) && (x < 0) == (h >> 15));
        else
            assert_true(x == f16_value(h));
        assert_int_equal(f32_to_f16(x), h);
    }
}

/* Between neighbours: below the middle down, above it up, on it to even. */
static void f16_rounds_to_nearest_even(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x7c00; h++) {
        double high = h == 0x7bff ? 65536 : f16_value(h + 1);
        float middle = (float)((f16_value(h) + high) / 2); /* exact */
        uint32_t even = h & 1 ? h + 1 : h;
        assert_int_equal(f32_to_f16(nextafterf(middle, 0)), h);
        assert_int_equal(f32_to_f16(nextafterf(middle, INFINITY)), h + 1);
        assert_int_equal(f32_to_f16(middle), even);
        assert_int_equal(f32_to_f16(-middle), even | 0x8000);
    }
    assert_int_equal(f32_to_f16(INFINITY), 0x7c00);
    assert_int_equal(f32_to_f16(1e30f), 0x7c00);
}

static void every_bf16_rounds_to_nearest_even(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x7f80; h++) {
        float x = bf16_to_f32((uint16_t)h);
        float middle = bits_to_f32(h << 16 | 0x8000);
        assert_int_equal(f32_to_bf16(x), h);
        assert_int_equal(f32_to_bf16(bits_to_f32(h << 16 | 0x7fff)), h);
        assert_int_equal(f32_to_bf16(bits_to_f32(h << 16 | 0x8001)), h + 1);
        assert_int_equal(f32_to_bf16(middle), h & 1 ? h + 1 : h);
        assert_int_equal(f32_to_bf16(-x), h | 0x8000);
    }
    assert_int_equal(f32_to_bf16(INFINITY), 0x7f80);
    assert_true(isnan(bf16_to_f32(f32_to_bf16(bits_to_f32(0x7f800001)))));
    assert_true(isnan(bf16_to_f32(f32_to_bf16(NAN))));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_f16_goes_there_and_back),
        cmocka_unit_test(f16_rounds_to_nearest_even),
        cmocka_unit_test(every_bf16_rounds_to_nearest_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
