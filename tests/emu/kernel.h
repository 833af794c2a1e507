/* SPDX-License-Identifier: Apache-2.0
 * For tests of the emulated device: a kernel's text compiled by clang as the
 * product does it, loaded and bound; lines of the text found by their marks. */
#ifndef TEST_EMU_KERNEL_H
#define TEST_EMU_KERNEL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emulated/emu.h"
#include "emulated/number.h"
#include "runtime.h"

enum { SKIPPED = 77 };

/* ---- text ---------------------------------------------------------------- */

static inline void add_template(Str *s, const char *name) {
    for (size_t i = 0; i < attnc_templates.count; i++)
        if (!strcmp(attnc_templates.t[i].name, name)) {
            str_add(s, attnc_templates.t[i].text, attnc_templates.t[i].len);
            return;
        }
    fail_msg("no template %s", name);
}

static inline void add_file(Str *s, const char *name) {
    const char *source = getenv("SOURCE");
    char path[512], piece[4096];
    snprintf(path, sizeof path, "%s/tests/emu/%s", source ? source : ".", name);
    FILE *f = fopen(path, "re");
    if (!f)
        fail_msg("cannot read %s", path);
    for (size_t n; (n = fread(piece, 1, sizeof piece, f)) > 0;)
        str_add(s, piece, n);
    fclose(f);
}

/* The primitives, real or emulated, then the file with lines of its own;
 * `define` is a macro to define, or "". */
static inline Str kernel_text(const char *file, int arch, const char *define,
                              bool real) {
    static const char *const emulated[] = {
        "cuda/prim/emu/api.h.in", "cuda/prim/emu/base.h.in",
        "cuda/prim/emu/memory.h.in", "cuda/prim/emu/warp.h.in",
        "cuda/prim/emu/between.h.in"};
    static const char *const device[] = {
        "cuda/prim/real/base.cuh.in", "cuda/prim/real/memory.cuh.in",
        "cuda/prim/real/warp.cuh.in", "cuda/prim/real/between.cuh.in"};
    Str s = {0};
    str_addf(&s, "#define ARCH %d\n", arch);
    if (*define)
        str_addf(&s, "#define %s\n", define);
    for (int i = 0; i < (real ? 4 : 5); i++)
        add_template(&s, real ? device[i] : emulated[i]);
    str_addf(&s, "#line 1 \"%s\"\n", file);
    add_file(&s, file);
    assert_false(s.bad);
    return s;
}

/* The line that carries the mark @name. */
static inline uint32_t line_of(const char *file, const char *name) {
    Str s = {0};
    char mark[64];
    uint32_t line = 1;
    add_file(&s, file);
    snprintf(mark, sizeof mark, "@%s ", name);
    const char *p = strstr(s.text, mark);
    if (!p)
        fail_msg("no mark %s in %s", mark, file);
    for (const char *q = s.text; q < p; q++)
        line += *q == '\n';
    str_free(&s);
    return line;
}

/* ---- kernels ------------------------------------------------------------- */

typedef struct Loaded {
    void *handle;
    EmuEntry entry;
    double compile_ms;
} Loaded;

static inline bool have_clang(Compiler *c) {
    return compiler_find(NULL, c) && c->clang;
}

static inline Loaded kernel_load(const char *file, int arch, const char *define,
                                 const char *entry) {
    Compiler clang;
    Loaded k = {0};
    Err e = {0};
    Str log = {0};
    Blob b = {0};
    char version[96];
    Source source = {.text = kernel_text(file, arch, define, false)};
    CompileJob job = {.compiler = &clang,
                      .arch = "emulated",
                      .source = &source,
                      .templates = &attnc_templates};
    assert_true(have_clang(&clang));
    if (compile_cpu(&job, &b, version, &log, &e))
        fail_msg("%s %s: %s\n%s", file, define, e.text,
                 log.text ? log.text : "");
    k.handle = load_object(&b, &e);
    assert_non_null(k.handle);
    k.entry = (EmuEntry)(uintptr_t)dlsym(k.handle, entry);
    assert_non_null(k.entry);
    *(const EmuTable **)dlsym(k.handle, "attnc_emu") = emu_table();
    free(b.data);
    str_free(&log);
    str_free(&source.text);
    return k;
}

static inline void kernel_unload(Loaded *k) {
    dlclose(k->handle);
}

/* ---- faults -------------------------------------------------------------- */

/* Entry of this kind at this line (0: any), or NULL. */
static inline const EmuFault *fault_at(const EmuReport *r, int kind,
                                       uint32_t line) {
    for (int i = 0; i < r->nfault; i++)
        if (r->fault[i].kind == kind && (!line || r->fault[i].line == line))
            return &r->fault[i];
    return NULL;
}

static inline void print_faults(const EmuReport *r) {
    for (int i = 0; i < r->nfault; i++)
        print_message("  line %u (%u): %s: %s\n", r->fault[i].line,
                      r->fault[i].other, emu_fault_sentence(r->fault[i].kind),
                      r->fault[i].text);
}

static inline void expect_no_fault(const EmuReport *r) {
    if (r->faults) {
        print_faults(r);
        fail_msg("%llu faults", (unsigned long long)r->faults);
    }
}

static inline void expect_fault(const EmuReport *r, int kind, uint32_t line,
                                uint32_t other) {
    const EmuFault *f = fault_at(r, kind, line);
    for (int i = 0; f && other && f->other != other && i < r->nfault; i++)
        if (r->fault[i].kind == kind && r->fault[i].line == line)
            f = &r->fault[i];
    if (!f || (other && f->other != other)) {
        print_faults(r);
        fail_msg("no %s at line %u (%u)", emu_fault_name(kind), line, other);
    }
}

#endif
