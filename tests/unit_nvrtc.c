/* SPDX-License-Identifier: Apache-2.0
 * CUDA text to cubin: every arch, errors, what ptxas says. Skipped where
 * there is no NVRTC. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "crowd.h"
#include "runtime.h"

/* One compile, owned. */
typedef struct Made {
    int rc;
    Blob blob;
    Str log;
    char version[96];
    Err e;
} Made;

static const Template names[] = {{"cuda/first.cu.in", "", 0},
                                 {"cuda/second.cu.in", "", 0}};
static const Templates templates = {names, 2, ""};

static Made make(const char *text, const char *arch, bool ptx) {
    Made m = {0};
    /* Line i of the text came from line 10 i of the second template. */
    uint32_t line[64];
    Source s = {.line = line, .nline = 64};
    for (uint32_t i = 0; i < 64; i++)
        line[i] = 1u << 16 | 10 * (i + 1);
    str_addf(&s.text, "%s", text);
    const CudaJob j = {
        .arch = arch, .source = &s, .templates = &templates, .ptx = ptx};
    m.rc = nvrtc_compile(&j, &m.blob, m.version, &m.log, &m.e);
    str_free(&s.text);
    return m;
}

static void drop(Made *m) {
    free(m->blob.data);
    str_free(&m->log);
}

static const char good[] =
    "typedef struct Args { float *out; long long n; } Args;\n"
    "extern \"C\" __global__ void __launch_bounds__(128, 2)\n"
    "twice(const __grid_constant__ Args a) {\n"
    "    long long i = blockIdx.x * 128ll + threadIdx.x;\n"
    "    if (i < a.n) a.out[i] *= 2;\n"
    "}\n";

static bool is_elf(const Blob *b) {
    return b->len > 1000 && !memcmp(b->data, "\177ELF", 4);
}

static void every_arch_gives_a_cubin(void **state) {
    (void)state;
    static const char *const archs[] = {"sm_75", "sm_80",  "sm_86",  "sm_89",
                                        "sm_90", "sm_90a", "sm_100", "sm_120"};
    NvrtcInfo info;
    Str looked = {0};
    nvrtc_find(NULL, &info, &looked);
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++) {
        Usage u;
        if (atoi(archs[i] + 3) > info.newest)
            continue;
        Made m = make(good, archs[i], false);
        if (m.rc)
            fail_msg("%s", m.e.text);
        assert_true(is_elf(&m.blob));
        assert_non_null(strstr(m.version, "NVRTC 1"));
        assert_true(usage_read(m.log.text, "twice", &u));
        assert_true(u.registers > 3 && u.registers < 64);
        assert_true(u.spill_bytes == 0 && u.stack_bytes == 0);
        assert_false(usage_read(m.log.text, "thrice", &u));
        drop(&m);
    }
    str_free(&looked);
}

static void ptx_is_text(void **state) {
    (void)state;
    Made m = make(good, "sm_80", true);
    assert_int_equal(m.rc, 0);
    assert_non_null(strstr(m.blob.data, ".target sm_80"));
    assert_non_null(strstr(m.blob.data, ".entry twice"));
    drop(&m);
}

/* The driver finishes what the library does not know. */
static void a_newer_chip_gets_ptx_of_the_newest_known(void **state) {
    (void)state;
    NvrtcInfo info;
    Str looked = {0};
    char target[32];
    assert_true(nvrtc_find(NULL, &info, &looked));
    Made m = make(good, "sm_990", false);
    assert_int_equal(m.rc, 0);
    snprintf(target, sizeof target, ".target sm_%d", info.newest);
    assert_non_null(strstr(m.blob.data, target));
    drop(&m);
    str_free(&looked);
}

static void an_older_chip_is_refused(void **state) {
    (void)state;
    Made m = make(good, "sm_30", false);
    assert_int_equal(m.rc, ATTNC_E_MISSING);
    assert_string_equal(m.e.stage, "nvrtc");
    assert_non_null(strstr(m.e.text, "and newer, not for sm_30"));
    drop(&m);
}

static void errors_point_into_the_template(void **state) {
    (void)state;
    Made m = make("typedef int i32;\n"
                  "extern \"C\" __global__ void f(i32 *p) {\n"
                  "    *p = nobody;\n"
                  "}\n",
                  "sm_80", false);
    assert_int_equal(m.rc, ATTNC_E_COMPILE);
    assert_string_equal(m.e.text, "compile: cuda/second.cu.in:30: identifier "
                                  "\"nobody\" is undefined");
    assert_non_null(strstr(m.log.text, "kernel.cu(3)"));
    drop(&m);
}

/* ptxas errors have no line: the first of its words is told. */
static void assembler_errors_are_told(void **state) {
    (void)state;
    Made m = make("extern \"C\" __global__ void f(int *p) {\n"
                  "    asm volatile(\"cp.async.commit_group;\");\n"
                  "}\n",
                  "sm_75", false);
    assert_int_equal(m.rc, ATTNC_E_COMPILE);
    assert_non_null(strstr(m.e.text, "sm_75"));
    assert_non_null(strstr(m.log.text, "cp.async"));
    drop(&m);
}

static void spills_are_read(void **state) {
    (void)state;
    Usage u;
    Made m = make("extern \"C\" __global__ void __launch_bounds__(1024, 1)\n"
                  "crowd(const float *in, float *out) {\n" CROWD_BODY "}\n",
                  "sm_80", false);
    assert_int_equal(m.rc, 0);
    assert_true(usage_read(m.log.text, "crowd", &u));
    assert_true(u.registers <= 64 && u.spill_bytes > 0 && u.stack_bytes > 0);
    drop(&m);
}

/* Two entries of one log do not mix. */
static void usage_is_of_the_named_entry(void **state) {
    (void)state;
    const char *log =
        "ptxas info    : Compiling entry function 'a' for 'sm_80'\n"
        "ptxas info    : Function properties for a\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 144 registers, used 1 barriers\n"
        "ptxas info    : Compiling entry function 'ab' for 'sm_80'\n"
        "ptxas info    : Function properties for ab\n"
        "    88 bytes stack frame, 84 bytes spill stores, 12 bytes spill "
        "loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers\n";
    Usage a, b;
    assert_true(usage_read(log, "a", &a) && usage_read(log, "ab", &b));
    assert_true(a.registers == 144 && a.spill_bytes == 0);
    assert_true(b.registers == 255 && b.spill_bytes == 96);
    assert_int_equal(b.stack_bytes, 88);
    assert_false(usage_read(log, "b", &b));
}

static void *compile_some(void *user) {
    Made *m = user;
    *m = make(good, "sm_86", false);
    return NULL;
}

static void threads_compile_at_once(void **state) {
    (void)state;
    enum { THREADS = 3 };
    pthread_t thread[THREADS];
    Made made[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(
            pthread_create(&thread[i], NULL, compile_some, &made[i]), 0);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(thread[i], NULL);
        assert_int_equal(made[i].rc, 0);
        assert_true(is_elf(&made[i].blob));
        drop(&made[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_arch_gives_a_cubin),
        cmocka_unit_test(ptx_is_text),
        cmocka_unit_test(a_newer_chip_gets_ptx_of_the_newest_known),
        cmocka_unit_test(an_older_chip_is_refused),
        cmocka_unit_test(errors_point_into_the_template),
        cmocka_unit_test(assembler_errors_are_told),
        cmocka_unit_test(spills_are_read),
        cmocka_unit_test(usage_is_of_the_named_entry),
        cmocka_unit_test(threads_compile_at_once),
    };
    NvrtcInfo info;
    Str looked = {0};
    if (!nvrtc_find(NULL, &info, &looked)) {
        printf("skipped: no NVRTC in %s\n", looked.text);
        str_free(&looked);
        return 77;
    }
    str_free(&looked);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
