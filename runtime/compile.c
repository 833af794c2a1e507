/* SPDX-License-Identifier: Apache-2.0
 * C text -> shared object: a compiler child for each unit of a source without
 * headers, side by side, then a bare ld. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compile_internal.h"

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

/* A source of two units says so; each is compiled under -DUNIT=n. */
static const char two_units[] = "\n#define UNITS 2\n";
static const char *const unit_flags[] = {"-DUNIT=1", "-DUNIT=2"};

enum { UNITS_MAX = 2 };

/* The objects on their way into one module. */
typedef struct Objects {
    const struct Arch *arch;
    char target[48];
    int units;
    char object[UNITS_MAX][COMPILE_PATH + 32];
} Objects;

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
        char name[COMPILE_PATH];
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

/* ---- children ----------------------------------------------------------- */

static bool foreign(const struct Arch *a) {
    return a->cpu[0] && strcmp(a->cpu, HOST) != 0;
}

/* One CPU would only read the shared part twice. */
static void open_objects(const Work *w, Objects *o) {
    bool two = w->job->source->text.text &&
               strstr(w->job->source->text.text, two_units);
    o->units = two && probe_cpus() > 1 ? 2 : 1;
    for (int i = 0; i < o->units; i++)
        snprintf(o->object[i], sizeof o->object[i], "%s/kernel%d.o", w->dir, i);
    snprintf(o->target, sizeof o->target, "--target=%s-linux-gnu",
             o->arch->cpu);
}

static void compiler_words(const Work *w, const Objects *o, int unit,
                           Words *words) {
    const Compiler *c = w->job->compiler;
    work_word(words, c->path);
    if (foreign(o->arch))
        work_word(words, o->target);
    for (size_t i = 0; i < sizeof flags_all / sizeof flags_all[0]; i++)
        work_word(words, flags_all[i]);
    for (int i = 0; o->arch->flags[i]; i++)
        work_word(words, o->arch->flags[i]);
    for (int i = 0; i < 2; i++)
        work_word(words, c->clang ? level_clang[i] : level_gcc[i]);
    if (o->units > 1)
        work_word(words, unit_flags[unit]);
    work_word(words, "-c");
    work_word(words, w->source);
    work_word(words, "-o");
    work_word(words, o->object[unit]);
}

/* Every child that was started is waited for; the first to fail speaks. */
static int compile_objects(Work *w, const Objects *o, Str *log, Err *e) {
    const char *name = w->job->compiler->path;
    Process child[UNITS_MAX];
    int started = 0, rc = 0;
    for (; started < o->units && !rc; started += !rc) {
        Words words = {0};
        compiler_words(w, o, started, &words);
        rc = child_start(&child[started], words.v, -1, w->dir, e);
    }
    for (int i = 0; i < started; i++) {
        Str unheard = {0};
        int status = child_wait(&child[i], rc ? &unheard : log, e);
        str_free(&unheard);
        rc = rc ? rc : work_ended(w, name, status, o->object[i], log, e);
    }
    return rc;
}

/* The bare linker, which costs 10 ms less than through the compiler. */
static bool linker_find(const struct Arch *a, char path[COMPILE_PATH]) {
    char name[64];
    if (!foreign(a) && program_find("ld", path))
        return true;
    snprintf(name, sizeof name, "%s-linux-gnu-ld", foreign(a) ? a->cpu : HOST);
    return program_find(name, path) || program_find("ld.lld", path);
}

static int link_objects(Work *w, const Objects *o, Str *log, Err *e) {
    char linker[COMPILE_PATH];
    bool bare = linker_find(o->arch, linker);
    Words words = {0};
    work_word(&words, bare ? linker : w->job->compiler->path);
    if (!bare) {
        if (foreign(o->arch))
            work_word(&words, o->target);
        work_word(&words, "-nostdlib");
    }
    work_word(&words, "-shared");
    if (bare) {
        work_word(&words, "-z");
        work_word(&words, "noexecstack");
        work_word(&words, "-s");
    }
    for (int i = 0; i < o->units; i++)
        work_word(&words, o->object[i]);
    work_word(&words, "-o");
    work_word(&words, w->shared);
    return work_run(w, &words, w->shared, log, e);
}

static int make_module(Work *w, const struct Arch *a, Str *log, Err *e) {
    Objects o = {.arch = a};
    open_objects(w, &o);
    int rc = compile_objects(w, &o, log, e);
    return rc ? rc : link_objects(w, &o, log, e);
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

/* Can the compiler make code for the arch? */
static int fits(const Compiler *c, const struct Arch *a, Err *e) {
    if (!foreign(a) || c->clang)
        return 0;
    return err_set(e, ATTNC_E_MISSING, "compile", "target",
                   "%s compiles for %s only, not for %s; clang can", c->path,
                   HOST, a->name);
}

int compile_cpu(const CompileJob *j, Blob *out, char version[96], Str *log,
                Err *e) {
    const struct Arch *a = arch_find(j->arch);
    Work w;
    if (!a)
        return err_set(e, ATTNC_E_INTERNAL, "compile", "target",
                       "no compiler flags for arch %s", j->arch);
    int rc = fits(j->compiler, a, e);
    rc = rc ? rc : work_enter(&w, j, marker_source, e);
    if (rc)
        return rc;
    rc = make_module(&w, a, log, e);
    rc = rc ? rc : work_read(&w, out, e);
    work_leave(&w);
    if (!rc)
        read_version(out, j->compiler, version);
    return rc;
}
