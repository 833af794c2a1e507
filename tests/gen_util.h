/* SPDX-License-Identifier: Apache-2.0
 * What the tests of gen share: devices, specs, shapes and plans from text;
 * whether two plans are the same code. */
#ifndef GEN_UTIL_H
#define GEN_UTIL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gen.h"

/* A file of the source tree as text; skips the test where that is not. */
static inline const char *source_text(const char *name) {
    static char text[65536];
    char path[512];
    const char *source = getenv("SOURCE");
    if (!source)
        skip();
    snprintf(path, sizeof path, "%s/%s", source, name);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    return text;
}

static inline Device device(const char *name) {
    Device d;
    Err e = {0};
    if (device_find(name, &d, &e))
        fail_msg("%s", e.text);
    return d;
}

/* Canonical. */
static inline attnc_spec spec(const char *text) {
    attnc_spec s = ATTNC_SPEC_DEFAULT, out;
    Err e = {0};
    assert_int_equal(spec_parse(text, &s, &e), 0);
    assert_int_equal(spec_check(&s, &out, &e), 0);
    return out;
}

static inline attnc_shape shape(const char *text) {
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    Err e = {0};
    assert_int_equal(shape_parse(text, &h, &e), 0);
    return h;
}

/* The tile that AVX2 likes, with some fields changed. */
static inline Tile avx2_tile(const char *changes) {
    Tile t = {.family = TILE_cpu_fwd};
    Err e = {0};
    assert_int_equal(
        tile_parse("block_q=384,block_k=64,vecs=3,keys=4,dims=4", &t, &e), 0);
    assert_int_equal(tile_parse(changes, &t, &e), 0);
    return t;
}

/* Plans from text; the error when there is one. */
static inline Err try_plan(const char *spec_text, const char *shape_text,
                           const Device *d, const Pins *pins, Plan *p) {
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    attnc_shape h = shape(shape_text);
    Err e = {0};
    assert_int_equal(spec_parse(spec_text, &s, &e), 0);
    plan_choose(&s, &h, d, pins, p, &e);
    return e;
}

static inline Plan plan_on(const Device *d, const char *spec_text,
                           const char *shape_text, const Pins *pins) {
    Plan p;
    Err e = try_plan(spec_text, shape_text, d, pins, &p);
    if (e.code)
        fail_msg("%s", e.text);
    return p;
}

static inline Plan plan(const char *spec_text, const char *shape_text,
                        const char *device_name, const Pins *pins) {
    Device d = device(device_name);
    return plan_on(&d, spec_text, shape_text, pins);
}

static inline char *identity(const Plan *p) {
    Str s = {0};
    plan_identity(p, &s);
    return s.text;
}

static inline bool same_identity(const Plan *a, const Plan *b) {
    char *x = identity(a), *y = identity(b);
    bool same = !strcmp(x, y);
    free(x);
    free(y);
    return same;
}

#endif
