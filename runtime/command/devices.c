/* SPDX-License-Identifier: Apache-2.0
 * attnc devices: this machine, the chips known, and what compiles for them:
 * what was found, and what was looked for where. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"

enum { COMPILERS = 24 };

typedef struct Found {
    Device here;
    Compiler compiler[COMPILERS];
    char version[COMPILERS][96];
    int ncompiler;
    char looked[160]; /* the names tried */
    bool lua;
} Found;

static void try_name(Found *f, const char *name) {
    Err none = {0};
    Compiler *c = &f->compiler[f->ncompiler];
    if (f->ncompiler == COMPILERS || !compiler_find(name, c))
        return;
    if (compiler_version(c, f->version[f->ncompiler], &none) != 0)
        snprintf(f->version[f->ncompiler], 96, "does not run");
    f->ncompiler++;
}

/* The list of the environment, or what the library tries by itself. */
static void find_compilers(Found *f) {
    const char *list = getenv("ATTNC_COMPILERS");
    char name[64];
    snprintf(f->looked, sizeof f->looked, "%s",
             list ? list : "clang-30 .. clang-14, clang, gcc");
    for (const char *p = list; p && *p; p += strspn(p, ":")) {
        size_t len = strcspn(p, ":");
        snprintf(name, sizeof name, "%.*s", (int)len, p);
        try_name(f, name);
        p += len;
    }
    for (int v = 30; !list && v >= 14; v--) {
        snprintf(name, sizeof name, "clang-%d", v);
        try_name(f, name);
    }
    if (!list) {
        try_name(f, "clang");
        try_name(f, "gcc");
    }
}

static int find_all(const Options *o, Found *f, Err *e) {
    Err none = {0};
    int rc = session_device(o, &f->here, e);
    if (rc)
        return rc;
    find_compilers(f);
    f->lua = lua_find(&none) != NULL;
    return 0;
}

/* ---- text -------------------------------------------------------------- */

static void say_row(const Device *d, Str *out) {
    str_addf(out, "  %-10.10s %-10s %5.0f %6.2f %9s %9s %7.0f %7.4g %7.4g\n",
             d->name, d->arch, d->cores, d->clock_ghz,
             text_bytes(d->sram_bytes).s, text_bytes(d->llc_bytes).s,
             d->dram_gbs, d->f32_tflops,
             d->f16_tflops > 0 ? d->f16_tflops : d->f32_tflops);
}

static void tell(const Found *f, Str *out) {
    str_addf(out, "this machine\n  ");
    text_device(&f->here, out);
    str_addf(
        out,
        "\n  %.3g GHz, %s L1, %s L2, %s last cache\n  DRAM %.3g GB/s, %.4g "
        "GFLOP/s f32\n",
        f->here.clock_ghz, text_bytes(f->here.l1_bytes).s,
        text_bytes(f->here.sram_bytes).s, text_bytes(f->here.llc_bytes).s,
        f->here.dram_gbs, 1e3 * f->here.f32_tflops);
    str_addf(out,
             "\nknown (--target NAME or ARCH, then @cores=4,.. to change a "
             "figure)\n  %-10s %-10s %5s %6s %9s %9s %7s %7s %7s\n",
             "name", "arch", "cores", "GHz", "SRAM", "LLC", "GB/s", "f32",
             "f16");
    for (int i = 0; i < device_count(); i++)
        say_row(device_at(i), out);
    str_addf(out,
             "  f32, f16: TFLOP/s, dense. --json has all figures and where "
             "each comes from.\n  CUDA devices: not in this "
             "version.\n\ncompilers\n");
    for (int i = 0; i < f->ncompiler; i++)
        str_addf(out, "  %s: %s\n", f->compiler[i].path, f->version[i]);
    if (f->ncompiler == 0)
        str_addf(out, "  none: the built-in kernel is used\n");
    str_addf(out, "  looked for on PATH: %s\n\nLua 5.4 library\n  %s\n",
             f->looked,
             f->lua ? "found" : "not found: without it nothing can be emitted");
}

/* ---- JSON -------------------------------------------------------------- */

static int tell_json(const Found *f, Str *out, Err *e) {
    json_t *j = json_object(), *known = json_array(), *compilers = json_array();
    for (int i = 0; i < device_count(); i++) {
        json_t *d = json_device(device_at(i));
        json_object_set_new(d, "source", json_text(device_source(i)));
        json_array_append_new(known, d);
    }
    for (int i = 0; i < f->ncompiler; i++) {
        json_t *c = json_object();
        json_object_set_new(c, "path", json_text(f->compiler[i].path));
        json_object_set_new(c, "version", json_text(f->version[i]));
        json_array_append_new(compilers, c);
    }
    json_object_set_new(j, "machine", json_device(&f->here));
    json_object_set_new(j, "known", known);
    json_object_set_new(j, "compilers", compilers);
    json_object_set_new(j, "looked_for", json_text(f->looked));
    json_object_set_new(j, "lua", json_boolean(f->lua));
    return json_finish(j, out, e);
}

int verb_devices(const Options *o, Str *out, Err *e) {
    Found *f = calloc(1, sizeof *f);
    int rc = f ? find_all(o, f, e)
               : err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    if (rc == 0 && o->given[OPT_json].text)
        rc = tell_json(f, out, e);
    else if (rc == 0)
        tell(f, out);
    free(f);
    return rc;
}
