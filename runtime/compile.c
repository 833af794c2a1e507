/* SPDX-License-Identifier: Apache-2.0
 * C text -> shared object: one compiler child for an object without headers,
 * then a bare ld, in a private directory that is removed whatever happens. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "runtime.h"

#if defined(__aarch64__)
#define HOST "aarch64"
#else
#define HOST "x86_64"
#endif

/* How each arch is asked for. cpu "": the host's. */
static const struct Arch {
    const char *name, *cpu;
    const char *flags[8];
} arches[] = {
    {"avx2", "x86_64", {"-mavx2", "-mfma", "-mf16c", "-mbmi2"}},
    {"avx512",
     "x86_64",
     {"-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mbmi2",
      "-mprefer-vector-width=512"}},
    {"avx512bf16",
     "x86_64",
     {"-mavx512bf16", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma",
      "-mbmi2", "-mprefer-vector-width=512"}},
    {"neon", "aarch64", {NULL}},
    {"portable", "", {NULL}},
    /* CUDA C on the emulated device: registers never set hold NaN, and an
     * index outside an array in registers is reported. */
    {"emulated",
     "",
     {"-ftrivial-auto-var-init=pattern", "-fsanitize=array-bounds"}},
};

/* No -ffast-math: NaN and Inf have to behave. A product and a sum that meet
 * may become one FMA. */
static const char *const flags_all[] = {
    "-std=gnu11",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-fno-asynchronous-unwind-tables",
    "-fno-stack-protector",
    "-fno-ident",
    "-w",
};

/* Stages stay functions of their own, only `inline` ones are inlined: clang
 * takes a quarter less time, and gcc keeps a register tile in registers (58 ->
 * 87 GFLOP/s). gcc's -O1 leaves vector selects in pieces. */
static const char *const level_clang[] = {"-O1", "-finline-hint-functions"};
static const char *const level_gcc[] = {"-O2",
                                        "-fno-inline-functions-called-once"};

/* At the end of each source: the object says who compiled it, which saves a
 * child that asks for the version. */
static const char marker_source[] =
    "\n#ifdef __clang__\n"
    "#define ATTNC_COMPILER \"clang \" __clang_version__\n#else\n"
    "#define ATTNC_COMPILER \"gcc \" __VERSION__\n#endif\n"
    "__attribute__((used)) static const char attnc_compiler[] =\n"
    "    \"attnc-compiler:\" ATTNC_COMPILER;\n";
static const char marker[] = "attnc-compiler:";

static const char prefix[] = "attnc-cc-"; /* of private directories */

enum { ARGS = 40, PATH_LEN = 512, OBJECT_MAX = 64 << 20 };

/* The private directory and the argument list of one child. */
typedef struct Work {
    const CompileJob *job;
    const struct Arch *arch;
    char dir[PATH_LEN];
    char source[PATH_LEN + 16], object[PATH_LEN + 16], shared[PATH_LEN + 16];
    char target[48];
    char *argv[ARGS];
    int argc;
} Work;

static void arg(Work *w, const char *text) {
    w->argv[w->argc++] = (char *)text;
    w->argv[w->argc] = NULL;
}

/* ---- finding ------------------------------------------------------------ */

static bool is_clang(const char *path) {
    const char *slash = strrchr(path, '/');
    return strstr(slash ? slash : path, "clang") != NULL;
}

static bool try_compiler(const char *name, Compiler *out) {
    *out = (Compiler){.clang = is_clang(name)};
    return program_find(name, out->path);
}

/* Newest versioned clang, then what is called clang, then gcc. */
static bool find_default(Compiler *out) {
    char name[16];
    for (int version = 30; version >= 14; version--) {
        snprintf(name, sizeof name, "clang-%d", version);
        if (try_compiler(name, out))
            return true;
    }
    return try_compiler("clang", out) || try_compiler("gcc", out);
}

bool compiler_find(const char *list, Compiler *out) {
    if (!list)
        return find_default(out);
    for (const char *p = list; *p;) {
        char name[PATH_LEN];
        size_t len = strcspn(p, ":");
        int n = snprintf(name, sizeof name, "%.*s", (int)len, p);
        if (len && n < (int)sizeof name && try_compiler(name, out))
            return true;
        p += len + (p[len] == ':');
    }
    return false;
}

int compiler_version(const Compiler *c, char version[96], Err *e) {
    char *argv[] = {(char *)c->path, "--version", NULL};
    Str log = {0};
    int status = child_run(argv, -1, NULL, &log, e);
    int n = (int)strcspn(log.text ? log.text : "", "\n");
    if (status >= 0)
        snprintf(version, 96, "%.*s", n, log.text ? log.text : "");
    str_free(&log);
    return status < 0 ? e->code : 0;
}

/* ---- the private directory ---------------------------------------------- */

/* Removes the files of a directory, and then itself. */
static void remove_dir(int at, const char *name) {
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    for (struct dirent *f; d && (f = readdir(d));)
        if (f->d_name[0] != '.')
            unlinkat(fd, f->d_name, 0);
    if (d)
        closedir(d);
    else if (fd >= 0)
        close(fd);
    unlinkat(at, name, AT_REMOVEDIR);
}

/* Removes what killed processes left an hour ago and longer. */
static void sweep(const char *base) {
    DIR *d = opendir(base);
    struct stat st;
    for (struct dirent *f; d && (f = readdir(d));)
        if (!strncmp(f->d_name, prefix, strlen(prefix)) &&
            strlen(f->d_name) == strlen(prefix) + 6 &&
            fstatat(dirfd(d), f->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISDIR(st.st_mode) && st.st_uid == geteuid() &&
            st.st_mtime < time(NULL) - 3600)
            remove_dir(dirfd(d), f->d_name);
    if (d)
        closedir(d);
}

static bool make_dir(Work *w, const char *base) {
    int n = base && *base == '/'
                ? snprintf(w->dir, PATH_LEN, "%s/%sXXXXXX", base, prefix)
                : PATH_LEN;
    if (n >= PATH_LEN || !mkdtemp(w->dir))
        return false;
    sweep(base);
    return true;
}

static int enter_dir(Work *w, Err *e) {
    if (!make_dir(w, secure_getenv("TMPDIR")) && !make_dir(w, "/tmp") &&
        !make_dir(w, w->job->dir))
        return err_set(e, ATTNC_E_IO, "compile", NULL,
                       "no place for temporary files (TMPDIR, /tmp): %s",
                       strerror(errno));
    snprintf(w->source, sizeof w->source, "%s/kernel.c", w->dir);
    snprintf(w->object, sizeof w->object, "%s/kernel.o", w->dir);
    snprintf(w->shared, sizeof w->shared, "%s/kernel.so", w->dir);
    return 0;
}

static int write_source(Work *w, Err *e) {
    const Str *text = &w->job->source->text;
    FILE *f = fopen(w->source, "wxe");
    bool ok = f && fwrite(text->text, 1, text->len, f) == text->len &&
              fputs(marker_source, f) >= 0;
    if (f && fclose(f) != 0)
        ok = false;
    return ok ? 0
              : err_set(e, ATTNC_E_IO, "compile", NULL,
                        "cannot write the source in %s: %s", w->dir,
                        strerror(errno));
}

/* Whole file, at most OBJECT_MAX bytes. */
static int read_shared(Work *w, Blob *out, Err *e) {
    struct stat st;
    int fd = open(w->shared, O_RDONLY | O_CLOEXEC);
    *out = (Blob){0};
    if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size > 0 &&
        st.st_size < OBJECT_MAX && (out->data = malloc((size_t)st.st_size))) {
        ssize_t n = read(fd, out->data, (size_t)st.st_size);
        out->len = n == st.st_size ? (size_t)n : 0;
    }
    int error = errno;
    if (fd >= 0)
        close(fd);
    if (out->len)
        return 0;
    free(out->data);
    out->data = NULL;
    return err_set(e, ATTNC_E_IO, "compile", NULL,
                   "cannot read the object made: %s", strerror(error));
}

/* ---- children ----------------------------------------------------------- */

/* "kernel.c:LINE:COLUMN: error: TEXT" in the log -> the template's line. */
static bool map_error(const CompileJob *j, const char *log, Err *e) {
    const char *p = strstr(log, "error: ");
    while (p && p > log && p[-1] != '\n')
        p--;
    if (!p || !(p = strstr(p, "kernel.c:")))
        return false;
    size_t line = strtoul(p + strlen("kernel.c:"), NULL, 10);
    const char *text = strstr(p, "error: ");
    if (!text || line < 1 || line > j->source->nline)
        return false;
    text += strlen("error: ");
    uint32_t from = j->source->line[line - 1];
    if (from >> 16 >= j->templates->count)
        return false;
    err_set(e, ATTNC_E_COMPILE, "compile", NULL, "%s:%u: %.*s",
            j->templates->t[from >> 16].name, from & 0xffff,
            (int)strcspn(text, "\n"), text);
    return true;
}

static int failed(Work *w, int status, const Str *log, Err *e) {
    const char *text = log->text ? log->text : "";
    if (map_error(w->job, text, e))
        return e->code;
    const char *error = strstr(text, "error: ");
    error = error ? error : text;
    if (status != CHILD_STOLEN && WIFSIGNALED(status))
        return err_set(e, ATTNC_E_COMPILE, "compile", NULL,
                       "%s was killed by signal %d", w->argv[0],
                       WTERMSIG(status));
    return err_set(e, ATTNC_E_COMPILE, "compile", NULL, "%s failed: %.*s",
                   w->argv[0], (int)strcspn(error, "\n"), error);
}

/* Runs w->argv, which has to leave `output` behind. */
static int step(Work *w, const char *output, Str *log, Err *e) {
    struct stat st;
    int status = child_run(w->argv, -1, w->dir, log, e);
    if (status < 0)
        return e->code;
    if ((status == 0 || status == CHILD_STOLEN) && stat(output, &st) == 0 &&
        st.st_size > 0)
        return 0;
    return failed(w, status, log, e);
}

static bool foreign(const Work *w) {
    return w->arch->cpu[0] && strcmp(w->arch->cpu, HOST) != 0;
}

static int compile_object(Work *w, Str *log, Err *e) {
    const Compiler *c = w->job->compiler;
    w->argc = 0;
    arg(w, c->path);
    if (foreign(w)) {
        if (!c->clang)
            return err_set(e, ATTNC_E_MISSING, "compile", "target",
                           "%s compiles for %s only, not for %s; clang can",
                           c->path, HOST, w->arch->name);
        snprintf(w->target, sizeof w->target, "--target=%s-linux-gnu",
                 w->arch->cpu);
        arg(w, w->target);
    }
    for (size_t i = 0; i < sizeof flags_all / sizeof flags_all[0]; i++)
        arg(w, flags_all[i]);
    for (int i = 0; w->arch->flags[i]; i++)
        arg(w, w->arch->flags[i]);
    for (int i = 0; i < 2; i++)
        arg(w, c->clang ? level_clang[i] : level_gcc[i]);
    arg(w, "-c");
    arg(w, w->source);
    arg(w, "-o");
    arg(w, w->object);
    return step(w, w->object, log, e);
}

/* The bare linker, which costs 10 ms less than through the compiler. */
static bool linker_find(const Work *w, char path[PATH_LEN]) {
    char name[64];
    if (!foreign(w) && program_find("ld", path))
        return true;
    snprintf(name, sizeof name, "%s-linux-gnu-ld",
             foreign(w) ? w->arch->cpu : HOST);
    return program_find(name, path) || program_find("ld.lld", path);
}

static int link_object(Work *w, Str *log, Err *e) {
    char linker[PATH_LEN];
    bool bare = linker_find(w, linker);
    w->argc = 0;
    arg(w, bare ? linker : w->job->compiler->path);
    if (!bare) {
        if (foreign(w))
            arg(w, w->target);
        arg(w, "-nostdlib");
    }
    arg(w, "-shared");
    if (bare) {
        arg(w, "-z");
        arg(w, "noexecstack");
        arg(w, "-s");
    }
    arg(w, w->object);
    arg(w, "-o");
    arg(w, w->shared);
    return step(w, w->shared, log, e);
}

/* "clang 14.0.6" from the object's own words. */
static void read_version(const Blob *b, const Compiler *c, char version[96]) {
    const char *p = memmem(b->data, b->len, marker, sizeof marker - 1);
    snprintf(version, 96, "%s", c->clang ? "clang" : "gcc");
    if (!p)
        return;
    p += sizeof marker - 1;
    size_t left = b->len - (size_t)(p - (const char *)b->data);
    size_t len = strnlen(p, left < 95 ? left : 95);
    while (len && p[len - 1] == ' ')
        len--;
    snprintf(version, 96, "%.*s", (int)len, p);
}

static const struct Arch *arch_find(const char *name) {
    for (size_t i = 0; i < sizeof arches / sizeof arches[0]; i++)
        if (!strcmp(arches[i].name, name))
            return &arches[i];
    return NULL;
}

void compile_options(const char *arch, Str *out) {
    const struct Arch *a = arch_find(arch);
    for (size_t i = 0; i < sizeof flags_all / sizeof flags_all[0]; i++)
        str_addf(out, " %s", flags_all[i]);
    for (int i = 0; a && a->flags[i]; i++)
        str_addf(out, " %s", a->flags[i]);
    str_addf(out, " clang %s %s gcc %s %s", level_clang[0], level_clang[1],
             level_gcc[0], level_gcc[1]);
}

/* ---- PTX ---------------------------------------------------------------- */

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
    snprintf(w->target, sizeof w->target, "--cuda-gpu-arch=sm_%d", arch);
    w->argc = 0;
    arg(w, w->job->compiler->path);
    for (size_t i = 0; i < sizeof cuda_flags / sizeof cuda_flags[0]; i++)
        arg(w, cuda_flags[i]);
    arg(w, w->target);
    arg(w, w->source);
    arg(w, "-o");
    arg(w, w->shared);
    log->len = 0;
    int rc = step(w, w->shared, log, e);
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
    static const struct Arch none = {"ptx", "", {NULL}};
    Work w = {.job = j, .arch = &none};
    int rc = enter_dir(&w, e);
    if (rc)
        return rc;
    rc = write_source(&w, e);
    rc = rc ? rc : make_newest_ptx(&w, log, e);
    rc = rc ? rc : read_shared(&w, out, e);
    remove_dir(AT_FDCWD, w.dir);
    rc = rc ? rc : end_text(out, e);
    return rc ? rc : compiler_version(j->compiler, version, e);
}

int compile_cpu(const CompileJob *j, Blob *out, char version[96], Str *log,
                Err *e) {
    Work w = {.job = j, .arch = arch_find(j->arch)};
    if (!w.arch)
        return err_set(e, ATTNC_E_INTERNAL, "compile", "target",
                       "no compiler flags for arch %s", j->arch);
    int rc = enter_dir(&w, e);
    if (rc)
        return rc;
    rc = write_source(&w, e);
    rc = rc ? rc : compile_object(&w, log, e);
    rc = rc ? rc : link_object(&w, log, e);
    rc = rc ? rc : read_shared(&w, out, e);
    remove_dir(AT_FDCWD, w.dir);
    if (!rc)
        read_version(out, j->compiler, version);
    return rc;
}
