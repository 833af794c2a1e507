/* SPDX-License-Identifier: Apache-2.0
 * attnc devices: this machine, the chips known, and what compiles for them:
 * what was found, and what was looked for where. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"

enum { COMPILERS = 24, GPUS = 16 };

typedef struct Found {
    Device here;
    Compiler compiler[COMPILERS];
    char version[COMPILERS][96];
    int ncompiler;
    char looked[160]; /* the names tried */
    bool lua;
    Device gpu[GPUS];
    int ngpu;
    Err no_gpu; /* why there is none */
    NvrtcInfo nvrtc;
    bool has_nvrtc;
    Str nvrtc_looked; /* places tried in vain */
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

static void find_cuda(Found *f) {
    char *dirs = session_cuda_dirs();
    int n = cuda_count(&f->no_gpu);
    for (int i = 0; i < n && i < GPUS; i++) {
        Err none = {0};
        if (cuda_query(i, &f->gpu[f->ngpu], &none) == 0)
            f->ngpu++;
        else
            f->no_gpu = none;
    }
    f->has_nvrtc = nvrtc_find(dirs, &f->nvrtc, &f->nvrtc_looked);
    free(dirs);
}

static int find_here(Device *out, Err *e) {
    Cache *cache = NULL;
    int rc = session_cache(&cache, e);
    rc = rc ? rc : probe_cpu(cache_dir(cache), out, e);
    cache_close(cache);
    return rc;
}

static int find_all(Found *f, Err *e) {
    Err none = {0};
    int rc = find_here(&f->here, e);
    if (rc)
        return rc;
    find_compilers(f);
    find_cuda(f);
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

static void say_cuda(const Found *f, Str *out) {
    str_addf(out, "\nNVIDIA GPUs (--target cuda, cuda:1, ..; the first is what "
                  "auto means)\n");
    for (int i = 0; i < f->ngpu; i++)
        say_row(&f->gpu[i], out);
    if (f->ngpu == 0)
        str_addf(out, "  none, auto means this CPU: %s\n",
                 f->no_gpu.code ? f->no_gpu.text : "the driver has no GPU");
    str_addf(out, "\nNVRTC, CUDA's compiler library\n");
    if (f->has_nvrtc)
        str_addf(out, "  %s: %d.%d, sm_%d to sm_%d\n", f->nvrtc.path,
                 f->nvrtc.major, f->nvrtc.minor, f->nvrtc.oldest,
                 f->nvrtc.newest);
    else
        str_addf(out, "  none: clang makes PTX instead\n  looked for in %s\n",
                 f->nvrtc_looked.text);
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
             "each comes from.\n  emu:NAME runs a GPU's kernels on this CPU "
             "and checks every access.\n");
    say_cuda(f, out);
    str_addf(out, "\ncompilers\n");
    for (int i = 0; i < f->ncompiler; i++)
        str_addf(out, "  %s: %s\n", f->compiler[i].path, f->version[i]);
    if (f->ncompiler == 0)
        str_addf(out, "  none: the built-in kernel is used\n");
    str_addf(out, "  looked for on PATH: %s\n\nLua 5.4 library\n  %s\n",
             f->looked,
             f->lua ? "found" : "not found: without it nothing can be emitted");
}

/* ---- JSON -------------------------------------------------------------- */

static void add_cuda(json_t *j, const Found *f) {
    json_t *gpus = json_array(), *nvrtc = json_object();
    for (int i = 0; i < f->ngpu; i++)
        json_array_append_new(gpus, json_device(&f->gpu[i]));
    json_object_set_new(j, "gpus", gpus);
    json_object_set_new(j, "auto", json_text(f->ngpu ? "cuda" : "cpu"));
    json_object_set_new(j, "no_gpu", json_text(f->no_gpu.text));
    json_object_set_new(nvrtc, "found", json_boolean(f->has_nvrtc));
    if (f->has_nvrtc) {
        json_object_set_new(nvrtc, "path", json_text(f->nvrtc.path));
        json_object_set_new(nvrtc, "major", json_integer(f->nvrtc.major));
        json_object_set_new(nvrtc, "minor", json_integer(f->nvrtc.minor));
        json_object_set_new(nvrtc, "oldest", json_integer(f->nvrtc.oldest));
        json_object_set_new(nvrtc, "newest", json_integer(f->nvrtc.newest));
    } else {
        json_object_set_new(nvrtc, "looked_in",
                            json_text(f->nvrtc_looked.text));
    }
    json_object_set_new(j, "nvrtc", nvrtc);
}

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
    add_cuda(j, f);
    json_object_set_new(j, "compilers", compilers);
    json_object_set_new(j, "looked_for", json_text(f->looked));
    json_object_set_new(j, "lua", json_boolean(f->lua));
    return json_finish(j, out, e);
}

int verb_devices(const Options *o, Str *out, Err *e) {
    Found *f = calloc(1, sizeof *f);
    int rc = f ? find_all(f, e)
               : err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    if (rc == 0 && o->given[OPT_json].text)
        rc = tell_json(f, out, e);
    else if (rc == 0)
        tell(f, out);
    if (f)
        str_free(&f->nvrtc_looked);
    free(f);
    return rc;
}
