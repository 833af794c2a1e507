/* SPDX-License-Identifier: Apache-2.0
 * NVRTC for tests, through the runtime's own door. Compiling needs no GPU. */
#ifndef TEST_NVRTC_H
#define TEST_NVRTC_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

/* What ptxas says of a kernel, and its size. */
typedef struct Compiled {
    bool known; /* an older NVRTC does not know every arch */
    int registers, spill_bytes, stack_bytes;
    size_t cubin_bytes;
} Compiled;

static inline int number_after(const char *log, const char *word) {
    const char *p = log ? strstr(log, word) : NULL;
    return p ? atoi(p + strlen(word)) : -1;
}

/* The number in front of `word`. */
static inline int number_before(const char *log, const char *word) {
    const char *p = log ? strstr(log, word) : NULL;
    if (!p || p == log)
        return -1;
    while (p > log && (p[-1] < '0' || p[-1] > '9'))
        p--;
    while (p > log && p[-1] >= '0' && p[-1] <= '9')
        p--;
    return atoi(p);
}

/* Compiles for an arch, "sm_80"; fails the test with the log otherwise. */
static inline Compiled compile_cuda(Str text, const char *name,
                                    const char *arch) {
    const Source source = {.text = text};
    const CudaJob job = {
        .arch = arch, .source = &source, .templates = &attnc_templates};
    char version[96];
    Blob out = {0};
    Str log = {0};
    Err e = {0};
    if (nvrtc_compile(&job, &out, version, &log, &e))
        fail_msg("%s for %s: %s\n%s", name, arch, e.text, log.text);
    Compiled c = {
        .known = out.len > 4 && !memcmp(out.data, "\177ELF", 4),
        .registers = number_after(log.text, "Used "),
        .spill_bytes = number_before(log.text, "bytes spill stores"),
        .stack_bytes = number_before(log.text, "bytes stack frame"),
        .cubin_bytes = out.len,
    };
    free(out.data);
    str_free(&log);
    return c;
}

#endif
