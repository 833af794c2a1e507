/* SPDX-License-Identifier: Apache-2.0
 * CUDA C -> PTX by clang, where there is no toolkit. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compile_internal.h"

/* The last ones are what CUDA's headers would say. */
static const char *const cuda_flags[] = {
    "-x",
    "cuda",
    "--cuda-device-only",
    "-nocudainc",
    "-nocudalib",
    "--cuda-path=/nonexistent",
    "-std=c++17",
    "-O3",
    "-w",
    "-S",
    "-D__global__=__attribute__((global))",
    "-D__device__=__attribute__((device))",
    "-D__shared__=__attribute__((shared))",
    "-D__forceinline__=__inline__ __attribute__((always_inline))",
    "-D__launch_bounds__(...)=__attribute__((launch_bounds(__VA_ARGS__)))",
    "-D__grid_constant__="};

/* Newest first. What is made for an older arch runs on a newer chip. */
static const int ptx_archs[] = {120, 100, 90, 89, 86, 80, 75};

/* One try; *unknown: this clang does not know the arch. */
static int make_ptx(Work *w, int arch, bool *unknown, Str *log, Err *e) {
    char target[32];
    Words words = {0};
    snprintf(target, sizeof target, "--cuda-gpu-arch=sm_%d", arch);
    work_word(&words, w->job->compiler->path);
    for (size_t i = 0; i < sizeof cuda_flags / sizeof cuda_flags[0]; i++)
        work_word(&words, cuda_flags[i]);
    work_word(&words, target);
    work_word(&words, w->source);
    work_word(&words, "-o");
    work_word(&words, w->shared);
    log->len = 0;
    int rc = work_run(w, &words, w->shared, log, e);
    *unknown = rc && log->text && strstr(log->text, "gpu arch");
    return rc;
}

static int make_newest_ptx(Work *w, Str *log, Err *e) {
    int wanted = atoi(w->job->arch + strlen("sm_"));
    int count = sizeof ptx_archs / sizeof ptx_archs[0];
    bool unknown = true;
    for (int i = 0; i < count && unknown; i++) {
        if (ptx_archs[i] > wanted)
            continue;
        *e = (Err){0};
        make_ptx(w, ptx_archs[i], &unknown, log, e);
    }
    if (!unknown)
        return e->code;
    *e = (Err){0};
    return err_set(e, ATTNC_E_MISSING, "compile", "target",
                   "%s makes no PTX for %s", w->job->compiler->path,
                   w->job->arch);
}

/* The driver takes PTX as a string. */
static int end_text(Blob *b, Err *e) {
    char *text = realloc(b->data, b->len + 1);
    if (!text) {
        free(b->data);
        *b = (Blob){0};
        return err_set(e, ATTNC_E_MEMORY, "compile", NULL, "no memory");
    }
    text[b->len++] = 0;
    b->data = text;
    return 0;
}

int compile_ptx(const CompileJob *j, Blob *out, char version[96], Str *log,
                Err *e) {
    Work w;
    int rc = work_enter(&w, j, "", e);
    if (rc)
        return rc;
    rc = make_newest_ptx(&w, log, e);
    rc = rc ? rc : work_read(&w, out, e);
    work_leave(&w);
    rc = rc ? rc : end_text(out, e);
    return rc ? rc : compiler_version(j->compiler, version, e);
}
