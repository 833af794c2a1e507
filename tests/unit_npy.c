/* SPDX-License-Identifier: Apache-2.0
 * .npy files: what is read, what is refused and how, rounding of elements,
 * and that no bytes at all can do harm. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "attnc.h"
#include "convert.h"
#include "npy.h"
#include "values.h"

/* ---- files in memory ---------------------------------------------------- */

typedef struct File {
    int fd;
    char path[64];
} File;

static File make_file(const void *bytes, size_t len) {
    File f = {.fd = memfd_create("npy", 0)};
    assert_true(f.fd >= 0);
    assert_int_equal(write(f.fd, bytes, len), (ssize_t)len);
    snprintf(f.path, sizeof f.path, "/proc/self/fd/%d", f.fd);
    return f;
}

/* A file of `version` with this dictionary and `data` zero bytes. */
static size_t compose(unsigned char *out, int version, const char *dict,
                      size_t data) {
    size_t wide = version == 1 ? 2 : 4, len = strlen(dict);
    memcpy(out, "\x93NUMPY", 6);
    out[6] = (unsigned char)version;
    out[7] = 0;
    for (size_t i = 0; i < wide; i++)
        out[8 + i] = (unsigned char)(len >> 8 * i);
    memcpy(out + 8 + wide, dict, len);
    memset(out + 8 + wide + len, 0, data);
    return 8 + wide + len + data;
}

static int open_dict(int version, const char *dict, size_t data, Npy *n,
                     Err *e) {
    unsigned char bytes[4096];
    File f = make_file(bytes, compose(bytes, version, dict, data));
    *e = (Err){0};
    int rc = npy_open(f.path, n, e);
    close(f.fd);
    if (rc)
        assert_non_null(strstr(e->text, f.path));
    return rc;
}

#define HEAD(descr, order, shape)                                              \
    "{'descr': " descr ", 'fortran_order': " order ", 'shape': " shape ", }\n"

/* ---- accepted ------------------------------------------------------------ */

static void reads_versions_and_types(void **state) {
    static const struct {
        const char *dict;
        int type, bytes;
    } cases[] = {
        {HEAD("'<f2'", "False", "(2, 3)"), NPY_F16, 2},
        {HEAD("'<f4'", "False", "(2, 3)"), NPY_F32, 4},
        {HEAD("'<f8'", "False", "(2, 3)"), NPY_F64, 8},
        {HEAD("'<i4'", "False", "(2, 3)"), NPY_I32, 4},
        {HEAD("'<i8'", "False", "(2, 3)"), NPY_I64, 8},
        {HEAD("'|b1'", "False", "(2, 3)"), NPY_BOOL, 1},
    };
    (void)state;
    for (int version = 1; version <= 3; version++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            Npy n;
            Err e;
            assert_int_equal(open_dict(version, cases[i].dict,
                                       6u * (size_t)cases[i].bytes, &n, &e),
                             0);
            assert_int_equal(n.type, cases[i].type);
            assert_int_equal(n.rank, 2);
            assert_int_equal(n.dim[1], 3);
            assert_int_equal(n.count, 6);
            npy_close(&n);
        }
}

static void reads_its_own_header(void **state) {
    const int64_t dims[][4] = {{7}, {2, 3}, {1, 8, 70, 64}, {0, 5}};
    const int ranks[] = {1, 2, 4, 2};
    (void)state;
    for (int i = 0; i < 4; i++) {
        char bytes[4096 + 1 * 8 * 70 * 64 * 4] = {0};
        size_t len = npy_header(bytes, dims[i], ranks[i]);
        int64_t count = 1;
        for (int j = 0; j < ranks[i]; j++)
            count *= dims[i][j];
        assert_int_equal(len % 64, 0);
        File f = make_file(bytes, len + (size_t)count * 4);
        Npy n;
        Err e = {0};
        assert_int_equal(npy_open(f.path, &n, &e), 0);
        assert_int_equal(n.type, NPY_F32);
        assert_int_equal(n.count, count);
        assert_memory_equal(n.dim, dims[i], (size_t)ranks[i] * 8);
        npy_close(&n);
        close(f.fd);
    }
}

/* ---- refused ------------------------------------------------------------- */

static void refuses_with_the_reason(void **state) {
    static const struct {
        const char *dict, *reason;
        size_t data;
    } cases[] = {
        {HEAD("'<f4'", "False", "(2, 3)"), "truncated", 23},
        {HEAD("'<f4'", "False", "(2, 3)"), "trailing", 25},
        {HEAD("'>f4'", "False", "(2, 3)"), "big-endian", 24},
        {HEAD("'|O'", "False", "(2, 3)"), "object", 24},
        {HEAD("[('a', '<f4')]", "False", "(2, 3)"), "records", 24},
        {HEAD("'<c8'", "False", "(2, 3)"), "dtype '<c8'", 48},
        {HEAD("'<f4'", "True", "(2, 3)"), "Fortran", 24},
        {HEAD("'<f4'", "Maybe", "(2, 3)"), "fortran_order", 24},
        {HEAD("'<f4'", "False", "(2, -3)"), "shape", 24},
        {HEAD("'<f4'", "False", "(2 3)"), "shape", 24},
        {HEAD("'<f4'", "False", "(2.0, 3)"), "shape", 24},
        {HEAD("'<f4'", "False", "[2, 3]"), "shape", 24},
        {HEAD("'<f4'", "False", "(2, 3"), "shape", 24},
        {HEAD("'<f4'", "False", "(99999999999999999999,)"), "shape", 24},
        {HEAD("'<f4'", "False", "(4294967296, 4294967296)"), "overflows", 24},
        {HEAD("'<f8'", "False", "(2305843009213693952,)"), "overflows", 24},
        {HEAD("'<f4'", "False", "(1, 1, 1, 1, 1, 1, 1, 1, 1)"), "dimensions",
         4},
        {"{'descr': '<f4', 'fortran_order': False, }\n", "malformed", 24},
        {"{'descr': '<f4', 'descr': '<f4', 'shape': (6,), }\n", "repeated", 24},
        {"{'descr': '<f4', 'order': 1, 'shape': (6,), }\n", "unknown", 24},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (6,)\n",
         "malformed", 24},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (6,)} 1\n",
         "malformed", 24},
        {"['descr']\n", "malformed", 24},
        {"{'descr\n", "malformed", 24},
        {"", "malformed", 24},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Npy n;
        Err e;
        int rc = open_dict(1, cases[i].dict, cases[i].data, &n, &e);
        if (rc != ERR_REQUEST || !strstr(e.text, cases[i].reason))
            fail_msg("case %zu: %d, %s", i, rc, e.text);
        assert_int_equal(n.fd, -1);
    }
}

static void refuses_other_beginnings(void **state) {
    static const struct {
        const char *bytes;
        size_t len;
        const char *reason;
    } cases[] = {
        {"", 0, "truncated"},
        {"\x93NUMPY", 6, "truncated"},
        {"\x93NUMPX\x01\x00\x00\x00", 10, "not a .npy"},
        {"PK\x03\x04\x00\x00\x00\x00\x00\x00", 10, "not a .npy"},
        {"\x93NUMPY\x04\x00\x00\x00\x00\x00", 12, "version"},
        {"\x93NUMPY\x01\x01\x00\x00\x00\x00", 12, "version"},
        {"\x93NUMPY\x01\x00\xff\x00", 10, "truncated"},
        {"\x93NUMPY\x02\x00\xff\xff\xff\xff", 12, "absurd"},
        {"\x93NUMPY\x02\x00\x01\x00\x01\x00", 12, "absurd"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        File f = make_file(cases[i].bytes, cases[i].len);
        Npy n;
        Err e = {0};
        int rc = npy_open(f.path, &n, &e);
        if (rc != ERR_REQUEST || !strstr(e.text, cases[i].reason))
            fail_msg("case %zu: %d, %s", i, rc, e.text);
        close(f.fd);
    }
    Npy n;
    Err e = {0}, dir = {0};
    assert_int_equal(npy_open("/nowhere/q.npy", &n, &e), ERR_REQUEST);
    assert_non_null(strstr(e.text, "/nowhere/q.npy"));
    assert_int_equal(npy_open("/proc/self", &n, &dir), ERR_REQUEST);
    assert_non_null(strstr(dir.text, "directory"));
}

/* A pipe has no size to compare with: reading finds out. */
static void a_pipe_is_held_to_its_header(void **state) {
    const char *dict = HEAD("'<f4'", "False", "(2, 3)");
    (void)state;
    for (size_t data = 20; data <= 28; data += 4) {
        unsigned char bytes[4096];
        float out[6];
        int ends[2];
        char path[64];
        Npy n;
        Err e = {0};
        size_t len = compose(bytes, 1, dict, data);
        assert_int_equal(pipe(ends), 0);
        assert_int_equal(write(ends[1], bytes, len), (ssize_t)len);
        close(ends[1]);
        snprintf(path, sizeof path, "/proc/self/fd/%d", ends[0]);
        assert_int_equal(npy_open(path, &n, &e), 0);
        close(ends[0]);
        int rc = npy_read(&n, ATTNC_F32, out, &e);
        assert_int_equal(rc, data == 24 ? 0 : ERR_REQUEST);
        if (rc)
            assert_non_null(
                strstr(e.text, data < 24 ? "truncated" : "trailing"));
        npy_close(&n);
    }
}

static uint64_t next(uint64_t *s) {
    *s += 0x9e3779b97f4a7c15u;
    uint64_t z = (*s ^ *s >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Random damage to good files: refused with one line or read whole. */
static void no_bytes_do_harm(void **state) {
    static const char *const dicts[] = {
        HEAD("'<f4'", "False", "(2, 3)"), HEAD("'<f8'", "False", "(1, 1, 3,)"),
        HEAD("'<f2'", "False", "()"), HEAD("'<f2'", "False", "(0, 9)")};
    static const size_t sizes[] = {24, 24, 2, 0};
    static const char pool[] = "{}()[]',:\" <>|OfFTrueFalse0123456789\n\x93";
    uint64_t seed = 7;
    int good = 0;
    (void)state;
    for (int i = 0; i < 20000; i++) {
        unsigned char bytes[4096];
        double out[64];
        int which = i % 4;
        size_t len = compose(bytes, 1 + i % 3, dicts[which], sizes[which]);
        for (uint64_t k = next(&seed) % 4; k; k--) {
            uint64_t r = next(&seed);
            bytes[r % len] = r >> 32 & 1
                                 ? (unsigned char)(r >> 40)
                                 : (unsigned char)pool[(r >> 40) % sizeof pool];
        }
        len -= next(&seed) % 8 == 0 ? next(&seed) % len : 0;
        File f = make_file(bytes, len);
        Npy n;
        Err e = {0};
        int rc = npy_open(f.path, &n, &e);
        if (rc == 0 && n.type <= NPY_F64 && n.count <= 64) {
            assert_int_equal(npy_read(&n, ATTNC_F32, out, &e), 0);
            good++;
        }
        assert_true(rc == 0 || rc == ERR_REQUEST);
        assert_true(rc == 0 || strlen(e.text) > 10);
        npy_close(&n);
        close(f.fd);
    }
    assert_in_range(good, 2000, 18000);
}

/* ---- elements ------------------------------------------------------------ */

static float put_get(int dtype, double x) {
    uint32_t cell = 0;
    value_put(dtype, &cell, 0, x);
    return value_get(dtype, &cell, 0);
}

/* Neighbours a < b of a 16-bit type: what lies between goes to the nearer,
 * the middle to the even one, however close to the middle it is. */
static void check_between(int dtype, uint16_t bits) {
    uint16_t cell[2] = {bits, (uint16_t)(bits + 1)};
    double a = (double)value_get(dtype, cell, 0);
    double b = (double)value_get(dtype, cell, 1), mid = (a + b) / 2;
    float even = bits & 1 ? (float)b : (float)a;
    if (!isfinite(b))
        return;
    assert_true(put_get(dtype, a) == (float)a);
    assert_true(put_get(dtype, -a) == (float)-a);
    assert_true(put_get(dtype, mid) == even);
    assert_true(put_get(dtype, nextafter(mid, a)) == (float)a);
    assert_true(put_get(dtype, nextafter(mid, b)) == (float)b);
    assert_true(put_get(dtype, -nextafter(mid, b)) == (float)-b);
}

static void rounds_once_to_nearest_even(void **state) {
    (void)state;
    for (uint32_t bits = 0; bits < 0x7c00; bits++)
        check_between(ATTNC_F16, (uint16_t)bits);
    for (uint32_t bits = 0; bits < 0x7f80; bits++)
        check_between(ATTNC_BF16, (uint16_t)bits);
}

static void keeps_what_is_not_finite(void **state) {
    (void)state;
    for (int dtype = ATTNC_F32; dtype <= ATTNC_BF16; dtype++) {
        assert_true(isnan(put_get(dtype, NAN)));
        assert_true(put_get(dtype, INFINITY) == INFINITY);
        assert_true(put_get(dtype, -INFINITY) == -INFINITY);
        assert_true(put_get(dtype, 1e300) == INFINITY);
        assert_true(put_get(dtype, -1e-300) == 0);
    }
    assert_true(put_get(ATTNC_F16, 65519.99) == 65504);
    assert_true(put_get(ATTNC_F16, 65520) == INFINITY);
    uint32_t cells[3] = {0};
    value_poison(ATTNC_F16, cells, 3);
    assert_true(isnan(value_get(ATTNC_F16, cells, 2)));
}

static void random_elements_are_normal_and_repeat(void **state) {
    enum { N = 100001 };
    static float a[N], b[N];
    double sum = 0, square = 0, product = 0;
    (void)state;
    value_random(ATTNC_F32, a, N, 1, 0);
    value_random(ATTNC_F32, b, 1001, 1, 0);
    assert_memory_equal(a, b, 1001 * sizeof *a);
    value_random(ATTNC_F32, b, N, 1, 1);
    for (int i = 0; i < N; i++) {
        assert_true(fabsf(a[i]) < 6);
        sum += a[i];
        square += (double)a[i] * a[i];
        product += (double)a[i] * b[i];
    }
    assert_true(fabs(sum / N) < 0.015);
    assert_true(fabs(square / N - 1) < 0.02);
    assert_true(fabs(product / N) < 0.015);
    value_random(ATTNC_F32, b, N, 2, 0);
    assert_true(a[0] != b[0] && a[N - 1] != b[N - 1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_versions_and_types),
        cmocka_unit_test(reads_its_own_header),
        cmocka_unit_test(refuses_with_the_reason),
        cmocka_unit_test(refuses_other_beginnings),
        cmocka_unit_test(a_pipe_is_held_to_its_header),
        cmocka_unit_test(no_bytes_do_harm),
        cmocka_unit_test(rounds_once_to_nearest_even),
        cmocka_unit_test(keeps_what_is_not_finite),
        cmocka_unit_test(random_elements_are_normal_and_repeat),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
