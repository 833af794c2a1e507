/* SPDX-License-Identifier: Apache-2.0
 * Without NVRTC clang's own back end makes PTX of the same text. Skipped where
 * there is no clang. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime.h"

static Compiler clang;

/* The real primitives, and a kernel that uses some of each kind. */
static void add_source(Source *s, int cc, const char *more) {
    static const char *const files[] = {"cuda/prim/real/base.cuh.in",
                                        "cuda/prim/real/memory.cuh.in",
                                        "cuda/prim/real/warp.cuh.in"};
    str_addf(&s->text, "#define ARCH %d\n", cc);
    for (int i = 0; i < 3; i++)
        for (size_t k = 0; k < attnc_templates.count; k++)
            if (!strcmp(attnc_templates.t[k].name, files[i]))
                str_add(&s->text, attnc_templates.t[k].text,
                        attnc_templates.t[k].len);
    str_addf(&s->text,
             "typedef struct Args { const u16 *in; float *out; } Args;\n"
             "KERNEL(try_them, 32, 1, Args) {\n"
             "    u32 x[4], smem = smem_base(); float c[4] = {0, 0, 0, 0};\n"
             "    ld_global_b128(x, a.in + 8 * thread_x(), 1);\n"
             "    st_shared_b128(smem + 16 * thread_x(), x);\n"
             "    block_sync();\n"
             "    ldmatrix_x4(x, smem + 16 * lane_id());\n"
             "    %s;\n"
             "    a.out[thread_x()] = ex2(c[0]) + c[1] + c[2] + c[3];\n"
             "}\n",
             more);
}

static Blob make(const char *arch, const char *more, int want) {
    Source s = {0};
    Str log = {0};
    Blob b = {0};
    Err e = {0};
    char version[96] = "";
    add_source(&s, 10 * atoi(arch + 3), more);
    const CompileJob j = {.compiler = &clang,
                          .arch = arch,
                          .source = &s,
                          .templates = &attnc_templates};
    if (compile_ptx(&j, &b, version, &log, &e) != want)
        fail_msg("%s\n%s", e.text, log.text ? log.text : "");
    if (!want)
        assert_non_null(strstr(version, "clang"));
    else
        assert_true(strlen(e.text) > 10);
    str_free(&s.text);
    str_free(&log);
    return b;
}

static void every_arch_gives_ptx(void **state) {
    (void)state;
    static const struct {
        const char *arch, *more, *has;
    } rows[] = {
        {"sm_75", "mma_m16n8k8_f16(c, x, x)", "mma.sync.aligned.m16n8k8"},
        {"sm_80", "mma_m16n8k16_bf16(c, x, x)", "mma.sync.aligned.m16n8k16"},
        {"sm_86", "mma_m16n8k16_f16(c, x, x)", "mma.sync.aligned.m16n8k16"},
        {"sm_90a", "mma_m16n8k8_tf32(c, x, x)", "mma.sync.aligned.m16n8k8"},
        {"sm_120", "cp_async_commit(); CP_ASYNC_WAIT(0)", "cp.async.wait_"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        Blob b = make(rows[i].arch, rows[i].more, 0);
        assert_int_equal(((char *)b.data)[b.len - 1], 0);
        assert_non_null(strstr(b.data, ".entry try_them"));
        assert_non_null(strstr(b.data, rows[i].has));
        assert_null(strstr(b.data, "call.uni"));
        free(b.data);
    }
}

/* The driver runs PTX of an older arch on any newer chip. */
static void a_chip_clang_does_not_know_gets_an_older_arch(void **state) {
    (void)state;
    Blob b = make("sm_990", "mma_m16n8k16_f16(c, x, x)", 0);
    assert_non_null(strstr(b.data, ".target sm_"));
    assert_null(strstr(b.data, ".target sm_99"));
    free(b.data);
    b = make("sm_30", "", ATTNC_E_MISSING);
    assert_null(b.data);
}

static void errors_are_told(void **state) {
    (void)state;
    Blob b = make("sm_80", "c[0] = nobody", ATTNC_E_COMPILE);
    assert_null(b.data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_arch_gives_ptx),
        cmocka_unit_test(a_chip_clang_does_not_know_gets_an_older_arch),
        cmocka_unit_test(errors_are_told),
    };
    if (!compiler_find(NULL, &clang) || !clang.clang) {
        printf("skipped: no clang\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
