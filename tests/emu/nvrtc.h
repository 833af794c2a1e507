/* SPDX-License-Identifier: Apache-2.0
 * NVRTC for tests: found by dlopen, absent without complaint. Compiling needs
 * no GPU. */
#ifndef TEST_NVRTC_H
#define TEST_NVRTC_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* NVRTC(name, parameters): all return 0 on success. */
#define NVRTC_LIST(NVRTC)                                                      \
    NVRTC(Version, (int *major, int *minor))                                   \
    NVRTC(CreateProgram,                                                       \
          (void **program, const char *text, const char *name, int headers,    \
           const char *const *header, const char *const *header_name))         \
    NVRTC(CompileProgram,                                                      \
          (void *program, int options, const char *const *option))             \
    NVRTC(GetProgramLogSize, (void *program, size_t *bytes))                   \
    NVRTC(GetProgramLog, (void *program, char *log))                           \
    NVRTC(GetCUBINSize, (void *program, size_t *bytes))                        \
    NVRTC(GetPTXSize, (void *program, size_t *bytes))                          \
    NVRTC(DestroyProgram, (void **program))

typedef struct Nvrtc {
#define NVRTC(name, parameters) int(*name) parameters;
    NVRTC_LIST(NVRTC)
#undef NVRTC
} Nvrtc;

static inline void *nvrtc_open(void) {
    const char *home = getenv("CUDA_HOME");
    char path[512];
    snprintf(path, sizeof path, "%s/lib64/libnvrtc.so",
             home ? home : "/usr/local/cuda");
    void *h = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    h = h ? h : dlopen("libnvrtc.so", RTLD_NOW | RTLD_LOCAL);
    h = h ? h : dlopen("libnvrtc.so.13", RTLD_NOW | RTLD_LOCAL);
    return h ? h : dlopen("libnvrtc.so.12", RTLD_NOW | RTLD_LOCAL);
}

static inline bool nvrtc_find(Nvrtc *n) {
    void *h = nvrtc_open();
    if (!h)
        return false;
#define NVRTC(name, parameters) *(void **)&n->name = dlsym(h, "nvrtc" #name);
    NVRTC_LIST(NVRTC)
#undef NVRTC
    return n->CompileProgram && n->GetCUBINSize;
}

enum { UNKNOWN_ARCH = 5 }; /* NVRTC_ERROR_INVALID_OPTION */

/* What ptxas says of a kernel, and sizes. */
typedef struct Compiled {
    bool known; /* an older NVRTC does not know every arch */
    int registers, spill_bytes, stack_bytes;
    size_t ptx_bytes, cubin_bytes;
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
static inline Compiled nvrtc_compile(const Nvrtc *n, const char *text,
                                     const char *name, const char *arch) {
    void *program = NULL;
    Compiled c = {0};
    char gpu[64];
    size_t bytes = 0;
    snprintf(gpu, sizeof gpu, "--gpu-architecture=%s", arch);
    const char *options[] = {gpu, "--ptxas-options=-v"};
    assert_int_equal(n->CreateProgram(&program, text, name, 0, NULL, NULL), 0);
    int rc = n->CompileProgram(program, 2, options);
    assert_int_equal(n->GetProgramLogSize(program, &bytes), 0);
    char *log = calloc(bytes + 1, 1);
    assert_non_null(log);
    n->GetProgramLog(program, log);
    c.known = rc != UNKNOWN_ARCH;
    if (rc && c.known)
        fail_msg("%s for %s: %s", name, arch, log);
    c.registers = number_after(log, "Used ");
    c.spill_bytes = number_before(log, "bytes spill stores");
    c.stack_bytes = number_before(log, "bytes stack frame");
    n->GetPTXSize(program, &c.ptx_bytes);
    n->GetCUBINSize(program, &c.cubin_bytes);
    n->DestroyProgram(&program);
    free(log);
    return c;
}

#endif
