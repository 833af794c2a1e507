/* SPDX-License-Identifier: Apache-2.0
 * CUDA text -> cubin or PTX through NVRTC, which is dlopen'ed: nothing of CUDA
 * is needed to build, and nothing of it is started before it is asked for. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

/* ---- the library's functions -------------------------------------------- */

typedef void *Program;
#define NVRTC_LIST(X)                                                          \
    X(Version, (int *major, int *minor))                                       \
    X(GetNumSupportedArchs, (int *count))                                      \
    X(GetSupportedArchs, (int *archs))                                         \
    X(CreateProgram,                                                           \
      (Program *, const char *text, const char *name, int headers,             \
       const char *const *header, const char *const *include))                 \
    X(CompileProgram, (Program, int count, const char *const *options))        \
    X(DestroyProgram, (Program *))                                             \
    X(GetProgramLogSize, (Program, size_t *))                                  \
    X(GetProgramLog, (Program, char *))                                        \
    X(GetCUBINSize, (Program, size_t *))                                       \
    X(GetCUBIN, (Program, char *))                                             \
    X(GetPTXSize, (Program, size_t *))                                         \
    X(GetPTX, (Program, char *))

enum { PATH_LEN = 512, ARCHS = 64 };

static struct Nvrtc {
#define X(name, parameters) int(*name) parameters;
    NVRTC_LIST(X)
#undef X
    bool found;
    char path[PATH_LEN];
    int major, minor, narch, arch[ARCHS]; /* ascending: 75 80 ... */
} nvrtc;
static Lock lock = {PTHREAD_MUTEX_INITIALIZER, 0};

/* ---- finding ------------------------------------------------------------ */

/* Newest first; CUDA 11 lacks what the driver side needs. */
static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12",
                                    "libnvrtc.so"};
/* Below a toolkit, or below a Python's site-packages. */
static const char *const places[] = {"", "/lib64", "/lib", "/nvidia/cu13/lib",
                                     "/nvidia/cuda_nvrtc/lib"};
enum {
    NAMES = sizeof names / sizeof *names,
    PLACES = sizeof places / sizeof *places
};

static bool fill(void *lib) {
#define X(name, parameters)                                                    \
    *(void **)&nvrtc.name = dlsym(lib, "nvrtc" #name);                         \
    if (!nvrtc.name)                                                           \
        return false;
    NVRTC_LIST(X)
#undef X
    return true;
}

/* Versions and archs; false: not a library to work with. */
static bool ask(void) {
    int n = 0;
    if (nvrtc.Version(&nvrtc.major, &nvrtc.minor) || nvrtc.major < 12 ||
        nvrtc.GetNumSupportedArchs(&n) || n < 1 || n > ARCHS ||
        nvrtc.GetSupportedArchs(nvrtc.arch))
        return false;
    nvrtc.narch = n;
    return true;
}

/* NVRTC opens its built-in functions by bare name: in a directory that the
 * loader does not search they have to be there already. */
static void open_builtins(const char *dir, int major) {
    char path[PATH_LEN];
    for (int minor = 9; minor >= 0; minor--) {
        int n = snprintf(path, sizeof path, "%s/libnvrtc-builtins.so.%d.%d",
                         dir, major, minor);
        if (n < PATH_LEN && dlopen(path, RTLD_NOW | RTLD_LOCAL))
            return;
    }
}

static bool try_library(const char *path) {
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!lib)
        return false;
    if (fill(lib) && ask()) {
        snprintf(nvrtc.path, sizeof nvrtc.path, "%s", path);
        return nvrtc.found = true; /* stays as long as the process */
    }
    dlclose(lib);
    return false;
}

/* dir NULL: the loader's path. */
static bool try_dir(const char *dir, const char *place) {
    char path[PATH_LEN];
    for (int i = 0; i < NAMES; i++) {
        int n = snprintf(path, sizeof path, "%s%s%s%s", dir ? dir : "", place,
                         dir ? "/" : "", names[i]);
        if (n >= PATH_LEN || !try_library(path))
            continue;
        char *slash = strrchr(path, '/');
        if (slash) {
            *slash = 0;
            open_builtins(path, nvrtc.major);
        }
        return true;
    }
    return false;
}

/* Tries a directory in all ways, and notes it in *looked. */
static bool try_root(const char *dir, Str *looked) {
    if (!dir || !*dir)
        return false;
    str_addf(looked, "%s%s", looked->len ? ", " : "", dir);
    for (int i = 0; i < PLACES; i++)
        if (try_dir(dir, places[i]))
            return true;
    return false;
}

static bool try_list(const char *dirs, Str *looked) {
    char dir[PATH_LEN];
    for (const char *p = dirs; p && *p;) {
        size_t len = strcspn(p, ":");
        int n = snprintf(dir, sizeof dir, "%.*s", (int)len, p);
        if (n < PATH_LEN && try_root(dir, looked))
            return true;
        p += len + (p[len] == ':');
    }
    return false;
}

/* What the caller names wins, then the user's environment. */
static bool find(const char *dirs, Str *looked) {
    if (try_list(dirs, looked) ||
        try_root(secure_getenv("CUDA_HOME"), looked) ||
        try_root(secure_getenv("CUDA_PATH"), looked))
        return true;
    str_addf(looked, "%sthe loader's path", looked->len ? ", " : "");
    return try_dir(NULL, "") || try_root("/usr/local/cuda", looked);
}

bool nvrtc_find(const char *dirs, NvrtcInfo *out, Str *looked) {
    lock_take(&lock);
    if (!nvrtc.found)
        find(dirs, looked);
    *out = (NvrtcInfo){.path = nvrtc.path,
                       .major = nvrtc.major,
                       .minor = nvrtc.minor,
                       .oldest = nvrtc.narch ? nvrtc.arch[0] : 0,
                       .newest = nvrtc.narch ? nvrtc.arch[nvrtc.narch - 1] : 0};
    bool found = nvrtc.found;
    lock_give(&lock);
    return found;
}

static int require(const char *dirs, Err *e) {
    NvrtcInfo info;
    Str looked = {0};
    if (!nvrtc_find(dirs, &info, &looked))
        err_set(e, ATTNC_E_MISSING, "nvrtc", NULL,
                "no NVRTC found (looked for %s, %s in %s)", names[0], names[1],
                looked.text ? looked.text : "the loader's path");
    str_free(&looked);
    return e->code;
}

/* ---- what to compile for ------------------------------------------------ */

static bool knows(int arch) {
    for (int i = 0; i < nvrtc.narch; i++)
        if (nvrtc.arch[i] == arch)
            return true;
    return false;
}

/* The newest arch it knows that is not newer than `arch`; 0: none. */
static int newest_below(int arch) {
    int best = 0;
    for (int i = 0; i < nvrtc.narch; i++)
        if (nvrtc.arch[i] <= arch)
            best = nvrtc.arch[i];
    return best;
}

/* "sm_86" is compiled as itself; a chip newer than the library gets PTX of
 * the newest arch known, for the driver to finish. */
static int choose_arch(const CudaJob *j, char option[64], bool *ptx, Err *e) {
    int number = atoi(j->arch + strlen("sm_")), known = newest_below(number);
    if (!known)
        return err_set(e, ATTNC_E_MISSING, "nvrtc", "target",
                       "NVRTC %d.%d compiles for sm_%d and newer, not for %s",
                       nvrtc.major, nvrtc.minor, nvrtc.arch[0], j->arch);
    *ptx = j->ptx || !knows(number);
    if (knows(number))
        snprintf(option, 64, "--gpu-architecture=%s%s",
                 *ptx ? "compute_" : "sm_", j->arch + strlen("sm_"));
    else
        snprintf(option, 64, "--gpu-architecture=compute_%d", known);
    return 0;
}

/* ---- compiling ---------------------------------------------------------- */

#define SOURCE_NAME "kernel.cu"

static int failed(const CudaJob *j, const char *log, Err *e) {
    if (error_at_template(log, SOURCE_NAME "(", j->source, j->templates, e))
        return e->code;
    const char *error = strstr(log, "error");
    error = error ? error : log;
    return err_set(e, ATTNC_E_COMPILE, "compile", NULL,
                   "NVRTC %d.%d failed for %s: %.*s", nvrtc.major, nvrtc.minor,
                   j->arch, (int)strcspn(error, "\n"), error);
}

static int no_memory(Err *e) {
    return err_set(e, ATTNC_E_MEMORY, "compile", NULL, "no memory for NVRTC");
}

static int read_log(Program p, Str *log, Err *e) {
    size_t size = 0;
    char *text;
    if (nvrtc.GetProgramLogSize(p, &size) || size < 2)
        return 0;
    text = malloc(size);
    if (!text)
        return no_memory(e);
    if (nvrtc.GetProgramLog(p, text) == 0)
        str_add(log, text, strnlen(text, size));
    free(text);
    return 0;
}

static int read_output(Program p, bool ptx, Blob *out, Err *e) {
    size_t size = 0;
    int rc = ptx ? nvrtc.GetPTXSize(p, &size) : nvrtc.GetCUBINSize(p, &size);
    char *data = rc || !size ? NULL : malloc(size);
    if (!rc && size && !data)
        return no_memory(e);
    rc = rc || !size ? 1
         : ptx       ? nvrtc.GetPTX(p, data)
                     : nvrtc.GetCUBIN(p, data);
    if (!rc) {
        *out = (Blob){data, size};
        return 0;
    }
    free(data);
    return err_set(e, ATTNC_E_COMPILE, "compile", NULL,
                   "NVRTC %d.%d made no %s", nvrtc.major, nvrtc.minor,
                   ptx ? "PTX" : "cubin");
}

/* What does not depend on arch and form. */
static const char *const options_all[] = {"--std=c++17", "--ptxas-options=-v",
                                          "--ptxas-options=-O3"};
enum { OPTIONS = sizeof options_all / sizeof *options_all };

/* Those that later ones know. From 12.4 on no declarations of what no kernel
 * here uses, which saves 4 ms; from 12.9 on NVRTC starts the driver to keep
 * what it compiled in the driver's cache, and attnc has its own. */
static const struct Later {
    int major, minor;
    const char *option;
} options_later[] = {{12, 4, "--minimal"}, {12, 9, "--no-cache"}};
enum { LATER = sizeof options_later / sizeof *options_later };

static int add_later(const char **options) {
    int n = 0;
    for (int i = 0; i < LATER; i++) {
        const struct Later *l = &options_later[i];
        if (nvrtc.major > l->major ||
            (nvrtc.major == l->major && nvrtc.minor >= l->minor))
            options[n++] = l->option;
    }
    return n;
}

void nvrtc_options(Str *out) {
    for (int i = 0; i < OPTIONS; i++)
        str_addf(out, " %s", options_all[i]);
}

static int compile(const CudaJob *j, Program p, const char *arch, bool ptx,
                   Blob *out, Str *log, Err *e) {
    const char *options[OPTIONS + 1 + LATER];
    memcpy(options, options_all, sizeof options_all);
    options[OPTIONS] = arch;
    int n = OPTIONS + 1 + add_later(options + OPTIONS + 1);
    int status = nvrtc.CompileProgram(p, n, options);
    int rc = read_log(p, log, e);
    if (!rc && status)
        rc = failed(j, log->text ? log->text : "", e);
    return rc ? rc : read_output(p, ptx, out, e);
}

int nvrtc_compile(const CudaJob *j, Blob *out, char version[96], Str *log,
                  Err *e) {
    char arch[64];
    bool ptx = false;
    Program p = NULL;
    int rc = require(j->dirs, e);
    rc = rc ? rc : choose_arch(j, arch, &ptx, e);
    if (!rc && nvrtc.CreateProgram(&p, j->source->text.text, SOURCE_NAME, 0,
                                   NULL, NULL))
        rc = no_memory(e);
    if (rc)
        return rc;
    rc = compile(j, p, arch, ptx, out, log, e);
    nvrtc.DestroyProgram(&p);
    if (!rc)
        snprintf(version, 96, "NVRTC %d.%d", nvrtc.major, nvrtc.minor);
    return rc;
}

/* ---- what ptxas says of an entry ---------------------------------------- */

/* The number before `unit` in the text up to `end`; 0: not there. */
static int64_t number_before(const char *text, const char *end,
                             const char *unit) {
    const char *p = strstr(text, unit);
    if (!p || p >= end)
        return 0;
    while (p > text && p[-1] == ' ')
        p--;
    while (p > text && p[-1] >= '0' && p[-1] <= '9')
        p--;
    return strtoll(p, NULL, 10);
}

bool usage_read(const char *log, const char *entry, Usage *out) {
    char head[128];
    snprintf(head, sizeof head, "entry function '%.100s'", entry);
    const char *at = strstr(log, head);
    if (!at)
        return false;
    const char *end = strstr(at + 1, "Compiling entry function");
    end = end ? end : at + strlen(at);
    *out = (Usage){
        .registers = (int)number_before(at, end, "registers"),
        .stack_bytes = number_before(at, end, "bytes stack frame"),
        .spill_bytes = number_before(at, end, "bytes spill stores") +
                       number_before(at, end, "bytes spill loads"),
    };
    return out->registers > 0;
}
