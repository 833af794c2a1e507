/* SPDX-License-Identifier: Apache-2.0
 * A plan's kernels for a chip that need not be here, as tests compile them. */
#ifndef CUBIN_MAKE_H
#define CUBIN_MAKE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "cubin.h"

/* Says what was looked at when there is no NVRTC: the test is to be skipped. */
static inline bool nvrtc_is_here(void) {
    NvrtcInfo info;
    Str looked = {0};
    bool found = nvrtc_find(getenv("ATTNC_CUDA_DIRS"), &info, &looked);
    if (!found)
        print_message("skipped: no NVRTC; looked at%s\n", looked.text);
    str_free(&looked);
    return found;
}

static inline double cpu_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* Compiles; *ms: CPU time of the compiler. */
static inline Blob cubin_make(const Plan *p, const char *arch, Str *log,
                              double *ms) {
    Source source = {0};
    Blob cubin = {0};
    Err e = {0};
    char version[96];
    if (emit_module(p, &attnc_templates, lua_find(&e), &source, &e))
        fail_msg("%s: %s", arch, e.text);
    const CudaJob job = {.dirs = getenv("ATTNC_CUDA_DIRS"),
                         .arch = arch,
                         .source = &source,
                         .templates = &attnc_templates};
    double start = cpu_ms();
    if (nvrtc_compile(&job, &cubin, version, log, &e))
        fail_msg("%s: %s\n%s", arch, e.text, log->text ? log->text : "");
    *ms = cpu_ms() - start;
    source_free(&source);
    return cubin;
}

#endif
