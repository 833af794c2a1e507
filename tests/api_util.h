/* SPDX-License-Identifier: Apache-2.0
 * What the tests of the public calls share: a fresh directory, a compiler that
 * counts, a small causal attention and its f64 result. */
#ifndef API_UTIL_H
#define API_UTIL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime.h"

#if defined(__SANITIZE_THREAD__)
#define TSAN 1 /* it cannot follow threads that start in a forked child */
#else
#define TSAN 0
#endif

enum { HEADS = 2, ROWS = 40, KEYS = 48, DIM = 16 };
enum { SIZE_Q = HEADS * ROWS * DIM, SIZE_K = HEADS * KEYS * DIM };

/* ---- helpers ------------------------------------------------------------ */

static char dir[40]; /* a new one for each test: cache, compilers, counts */
static char compiler[64];
static float q[SIZE_Q], k[SIZE_K], v[SIZE_K], o[SIZE_Q], lse[HEADS * ROWS];

static const char *in_dir(const char *name) {
    static char path[80];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static inline void write_file(const char *name, const char *text) {
    FILE *f = fopen(in_dir(name), "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(chmod(in_dir(name), 0755), 0);
}

/* A compiler that counts the modules it is called for, each by a letter in a
 * file (of a module's units by the first); then it does
 * `what`, or (NULL) compiles. */
static inline void write_compiler(const char *what) {
    char script[1024], path[512], real[600];
    if (!program_find("clang", path) && !program_find("gcc", path))
        skip();
    snprintf(real, sizeof real, "exec %s \"$@\"", path);
    snprintf(script, sizeof script,
             "#!/bin/sh\ncase \"$*\" in *-DUNIT=2*) ;; "
             "*) printf x >> %s/count ;; esac\n%s\n",
             dir, what ? what : real);
    write_file("clang", script);
    snprintf(compiler, sizeof compiler, "%s/clang", dir);
}

static inline int compiled(void) {
    struct stat st;
    return stat(in_dir("count"), &st) == 0 ? (int)st.st_size : 0;
}

static inline int enter(void **state) {
    (void)state;
    strcpy(dir, "/tmp/attnc-api-XXXXXX");
    unsigned seed = 1;
    for (int i = 0; i < SIZE_K; i++) {
        k[i] = (float)rand_r(&seed) / RAND_MAX - 0.5f;
        v[i] = (float)rand_r(&seed) / RAND_MAX - 0.5f;
    }
    for (int i = 0; i < SIZE_Q; i++)
        q[i] = (float)rand_r(&seed) / RAND_MAX - 0.5f;
    return mkdtemp(dir) ? 0 : -1;
}

static inline int leave(void **state) {
    (void)state;
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

static inline attnc_options options(void) {
    attnc_options op = ATTNC_OPTIONS_INIT;
    static char cache[64];
    snprintf(cache, sizeof cache, "%s/cache", dir);
    op.cache_dir = cache;
    op.threads = 2;
    return op;
}

static inline attnc_context *context(const attnc_options *op) {
    attnc_context *c;
    if (attnc_context_create(op, &c))
        fail_msg("%s", attnc_last_error()->text);
    return c;
}

/* One that compiles nothing. */
static inline attnc_context *builtin(void) {
    attnc_options op = options();
    op.compilers = "";
    return context(&op);
}

static inline void drop(attnc_plan *p, attnc_context *c) {
    attnc_plan_release(p);
    attnc_context_destroy(c);
}

static inline attnc_spec causal(void) {
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    s.head_dim = DIM;
    s.mask = ATTNC_MASK_CAUSAL;
    return s;
}

/* The plan and where it came from. */
static inline attnc_plan *prepared(attnc_context *c, const char **from) {
    attnc_spec s = causal();
    attnc_plan *p;
    attnc_plan_info info = {.struct_size = sizeof info};
    if (attnc_prepare(c, &s, NULL, &p))
        fail_msg("%s\n%s", attnc_last_error()->text, attnc_last_error()->log);
    assert_int_equal(attnc_plan_get_info(p, &info), 0);
    *from = info.cache;
    return p;
}

static inline void prepare_says(attnc_context *c, const char *from) {
    const char *got;
    attnc_plan *p = prepared(c, &got);
    assert_string_equal(got, from);
    attnc_plan_release(p);
}

static inline void failed(int rc, int status, const char *text) {
    const attnc_error *e = attnc_last_error();
    assert_int_equal(rc, status);
    assert_int_equal(e->status, status);
    if (!strstr(e->text, text) || strchr(e->text, '\n'))
        fail_msg("'%s' does not say '%s'", e->text, text);
}

static inline attnc_args arguments(void) {
    attnc_args a = ATTNC_ARGS_INIT;
    a.batch = 1;
    a.heads = a.kv_heads = HEADS;
    a.seqlen_q = ROWS;
    a.seqlen_k = KEYS;
    a.q = (attnc_tensor){q, SIZE_Q, ROWS * DIM, DIM};
    a.k = (attnc_tensor){k, SIZE_K, KEYS * DIM, DIM};
    a.v = (attnc_tensor){v, SIZE_K, KEYS * DIM, DIM};
    a.o = (attnc_tensor){o, SIZE_Q, ROWS * DIM, DIM};
    a.lse = lse;
    a.lse_stride_b = HEADS * ROWS;
    a.lse_stride_h = ROWS;
    a.mask_offset_mode = ATTNC_OFFSET_BR;
    for (int i = 0; i < SIZE_Q; i++)
        o[i] = NAN;
    return a;
}

/* One row of causal attention in f64. */
static inline double row_error(int h, int i) {
    double sum = 0, out[DIM] = {0}, error = 0;
    for (int j = 0; j <= i + KEYS - ROWS; j++) {
        double s = 0;
        for (int d = 0; d < DIM; d++)
            s += (double)q[(h * ROWS + i) * DIM + d] *
                 k[(h * KEYS + j) * DIM + d];
        double w = exp(s / 4);
        sum += w;
        for (int d = 0; d < DIM; d++)
            out[d] += w * v[(h * KEYS + j) * DIM + d];
    }
    for (int d = 0; d < DIM; d++)
        error = fmax(error, fabs(out[d] / sum - o[(h * ROWS + i) * DIM + d]));
    return fmax(error, fabs(log(sum) - lse[h * ROWS + i]));
}

static inline void result_is_right(void) {
    for (int h = 0; h < HEADS; h++)
        for (int i = 0; i < ROWS; i++)
            if (!(row_error(h, i) < 1e-5) || isnan(o[(h * ROWS + i) * DIM]))
                fail_msg("head %d row %d: error %g", h, i, row_error(h, i));
}

static inline void run_is_right(attnc_context *c) {
    attnc_spec s = causal();
    attnc_args a = arguments();
    if (attnc_run(c, &s, &a, NULL))
        fail_msg("%s", attnc_last_error()->text);
    result_is_right();
}

/* Launches with a workspace from the heap. */
static inline int launch(const attnc_plan *p, attnc_args a) {
    size_t bytes;
    assert_int_equal(attnc_workspace(p, &a, &bytes), 0);
    a.workspace = aligned_alloc(64, (bytes + 63) / 64 * 64);
    a.workspace_bytes = bytes;
    int rc = attnc_launch(p, &a, NULL);
    free(a.workspace);
    return rc;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, enter, leave)

#endif
