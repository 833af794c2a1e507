/* SPDX-License-Identifier: Apache-2.0
 * attnc explain: the machine, the plan, the tiles the model ranked, what it
 * rejected and why. Compiles nothing, loads nothing. */
#include <stdlib.h>
#include <string.h>

#include "command.h"

enum { SHOWN = 8, REJECTED = 5, CANDIDATES = 32768 };

typedef struct Story {
    Problem problem;
    Plan plan;
    char compiler[640]; /* who made the kernel or would; "builtin" */
    bool cached;
    double compile_ms; /* what making it cost, when cached */
    Candidate *all;    /* of one step at a time */
    int count, legal;
    bool asked; /* for what a query sees */
    BlockStory blocks;
} Story;

/* ---- finding out ------------------------------------------------------- */

static const Backend *backend_for(const Device *d) {
    static const Backend *const all[] = {[DEVICE_CPU] = &backend_cpu,
                                         [DEVICE_CUDA] = &backend_cuda,
                                         [DEVICE_EMULATED] = &backend_emulated};
    return all[d->kind];
}

/* Looks into the disk cache: a kernel found there needs no compiler. */
static int look_up(Story *s, Err *e) {
    const Templates *templates;
    Cache *cache = NULL;
    CacheEntry entry;
    CacheKey key;
    Str identity = {0}, kind = {0};
    int rc = session_templates(&templates, e);
    rc = rc ? rc : session_cache(&cache, e);
    if (rc)
        return rc;
    plan_identity(&s->plan, &identity);
    backend_for(&s->plan.device)->kind(&s->plan, &kind);
    if (identity.bad || kind.bad)
        rc = err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    else
        cache_key(identity.text, templates->hash, kind.text, &key);
    if (rc == 0 && cache_find(cache, &key, identity.text, &entry)) {
        s->cached = true;
        s->compile_ms = entry.compile_ms;
        snprintf(s->compiler, sizeof s->compiler, "%s", entry.compiler);
        cache_entry_free(&entry);
    }
    str_free(&identity);
    str_free(&kind);
    cache_close(cache);
    if (templates != &attnc_templates)
        templates_free(templates);
    return rc;
}

/* NVRTC, else the clang that makes PTX. */
static void find_cuda_compiler(Story *s) {
    NvrtcInfo nvrtc;
    Compiler clang;
    Str looked = {0};
    char *dirs = session_cuda_dirs();
    if (nvrtc_find(dirs, &nvrtc, &looked))
        snprintf(s->compiler, sizeof s->compiler, "NVRTC %d.%d (%s)",
                 nvrtc.major, nvrtc.minor, nvrtc.path);
    else if (session_compiler(&clang) && clang.clang)
        snprintf(s->compiler, sizeof s->compiler, "%s, to PTX", clang.path);
    else
        snprintf(s->compiler, sizeof s->compiler,
                 "nothing here (no NVRTC in %.400s)", looked.text);
    str_free(&looked);
    free(dirs);
}

static int choose(const Options *o, Story *s, Err *e) {
    Device device = {0};
    Compiler found;
    const char *list = getenv("ATTNC_COMPILERS");
    Pins pins = {.tile = o->given[OPT_tile].text};
    int rc = problem_make(o, &s->problem, e);
    rc = rc ? rc : session_device(o, &device, e);
    pins.builtin = list && !list[0] && device.kind == DEVICE_CPU;
    rc = rc ? rc
            : plan_choose(&s->problem.spec, &s->problem.shape, &device, &pins,
                          &s->plan, e);
    if (rc == 0 && !pins.builtin)
        rc = look_up(s, e);
    if (rc || s->cached)
        return rc;
    if (device.kind == DEVICE_CUDA) {
        find_cuda_compiler(s);
        return 0;
    }
    if (!pins.builtin && session_compiler(&found)) {
        snprintf(s->compiler, sizeof s->compiler, "%s", found.path);
        return 0;
    }
    /* As attnc_prepare: without a compiler the built-in kernel serves. */
    snprintf(s->compiler, sizeof s->compiler, "builtin");
    if (pins.builtin || pins.tile || !probe_runs(device.arch))
        return 0;
    pins.builtin = true;
    return plan_choose(&s->problem.spec, &s->problem.shape, &device, &pins,
                       &s->plan, e);
}

static void rank(Story *s, int step) {
    s->count = plan_candidates(&s->plan, step, s->all, CANDIDATES);
    s->legal = 0;
    while (s->legal < s->count && s->all[s->legal].legal)
        s->legal++;
}

/* ---- text -------------------------------------------------------------- */

static void say_gpu(const Device *d, Str *out) {
    str_addf(out,
             "\n          %.3g GHz; TFLOP/s: f16 %.4g, bf16 %.4g, tf32 %.4g "
             "(mma.sync %.0f %% of these), f32 %.4g\n",
             d->clock_ghz, d->f16_tflops, d->bf16_tflops, d->tf32_tflops,
             1e2 * d->mma_share, d->f32_tflops);
    str_addf(out,
             "          an SM: %s SRAM, a block of it %s, %.0f bytes a cycle; "
             "%.0f registers, %.0f threads\n",
             text_bytes(d->sram_core_bytes).s, text_bytes(d->sram_bytes).s,
             d->sram_width, d->vector_regs, d->max_threads);
    str_addf(out, "          mma.sync m16n8k%.0f, %s cp.async; exp2 %sop/s\n",
             d->mma_k, d->cp_async > 0 ? "with" : "no",
             text_count(d->exp2_gops * 1e9).s);
}

static void say_cpu(const Device *d, Str *out) {
    str_addf(
        out,
        "\n          %.3g GHz, %.0f-byte vectors x %.0f, %.3g FMA a cycle: "
        "%.4g GFLOP/s f32\n",
        d->clock_ghz, d->vector_bytes, d->vector_regs, d->fma_per_cycle,
        1e3 * d->f32_tflops);
    str_addf(out, "          a core: %s SRAM (L2), %s L1\n",
             text_bytes(d->sram_bytes).s, text_bytes(d->l1_bytes).s);
}

static void say_machine(const Device *d, Str *out) {
    str_addf(out, "machine   ");
    text_device(d, out);
    if (d->kind == DEVICE_CPU)
        say_cpu(d, out);
    else
        say_gpu(d, out);
    str_addf(out, "          last cache %s, %.4g GB/s; DRAM %.4g GB/s\n",
             text_bytes(d->llc_bytes).s, d->llc_gbs, d->dram_gbs);
}

static void say_kernel(const Story *s, Str *out) {
    if (strcmp(s->compiler, "builtin") == 0)
        str_addf(out,
                 "compiler: builtin, the generic kernel (no other found)\n");
    else if (s->cached)
        str_addf(out, "in the cache, made by %s in %s\n", s->compiler,
                 text_ms(s->compile_ms).s);
    else
        str_addf(out, "not in the cache; %s would compile it\n", s->compiler);
}

/* What an SM overlaps, each alone; the longest of them bounds the step. */
static void say_sm(const Step *step, Str *out) {
    const Figures *f = &step->fig;
    str_addf(out,
             "          an SM: %d threads a block, about %.0f registers each, "
             "%.0f %% of the warps it holds\n",
             step->threads, f->registers, 1e2 * f->occupancy);
    if (f->product_ms > 0)
        str_addf(out,
                 "          products %s, exp2 %s, issue %s, SRAM reads %s, "
                 "each alone\n",
                 text_ms(f->product_ms).s, text_ms(f->exp2_ms).s,
                 text_ms(f->issue_ms).s, text_ms(f->smem_ms).s);
}

static void say_step(const Story *s, int i, Str *out) {
    const Step *step = &s->plan.step[i];
    const Figures *f = &step->fig;
    str_addf(out, "\n%-9s ", role_name(step->role));
    text_tile(&step->tile, out);
    str_addf(out,
             "\n          from the %s; %s predicted, bound by %s\n"
             "          %.0f work items in %.3g wave%s, %s of %s SRAM each\n",
             tile_from_name(step->tile.from), text_ms(f->time_ms).s, f->bound,
             f->items, f->waves, f->waves == 1 ? "" : "s",
             text_bytes(f->sram_footprint).s,
             text_bytes(s->plan.device.sram_bytes).s);
    if (tile_is_cuda(step->tile.family))
        say_sm(step, out);
    str_addf(out, "          compute %9s  %sFLOP, %s exp2\n",
             text_ms(f->compute_ms).s, text_count(f->flops).s,
             text_count(f->exp2s).s);
    str_addf(out, "          DRAM    %9s  %s, the least possible\n",
             text_ms(f->dram_ms).s, text_bytes(f->dram_bytes).s);
    str_addf(out, "          SRAM    %9s  %s between it and the last cache\n",
             text_ms(f->sram_ms).s, text_bytes(f->sram_bytes).s);
}

/* What decides on a GPU, beside the time. */
static void say_gpu_row(const Figures *f, Str *out) {
    if (f)
        str_addf(out, " %8s %7s %5.0f%c", text_ms(f->product_ms).s,
                 text_ms(f->smem_ms).s, f->registers, f->doubt > 1 ? '*' : ' ');
    else
        str_addf(out, " %8s %7s %5s ", "products", "reads", "regs");
}

/* One column for each field of the tile, as wide as its name. */
static void say_ranked(const Story *s, int family, Str *out) {
    const char *name;
    bool gpu = tile_is_cuda(family) && family != TILE_cuda_combine;
    bool doubted = false;
    str_addf(out, "\n %7s %-7s %7s %8s", "time", "bound", "sram", "uses");
    if (gpu)
        say_gpu_row(NULL, out);
    for (int i = 0; (name = tile_field_name(family, i)); i++)
        str_addf(out, " %s", name);
    str_addf(out, "\n");
    for (int c = 0; c < s->legal && c < SHOWN; c++) {
        const Candidate *k = &s->all[c];
        str_addf(out, " %7s %-7s %7s %8s", text_ms(k->fig.time_ms).s,
                 k->fig.bound, text_ms(k->fig.sram_ms).s,
                 text_bytes(k->fig.sram_footprint).s);
        if (gpu)
            say_gpu_row(&k->fig, out);
        for (int i = 0; (name = tile_field_name(family, i)); i++)
            str_addf(out, " %*d", (int)strlen(name), k->tile.v[i]);
        str_addf(out, "\n");
        doubted |= k->fig.doubt > 1;
    }
    if (s->legal > SHOWN)
        str_addf(out, "  ... and %d more\n", s->legal - SHOWN);
    if (doubted)
        str_addf(out, "  * more registers than a thread may have, so it is "
                      "likely to spill: ranked as slower\n");
}

static void say_rejected(const Story *s, Str *out) {
    int n = s->count - s->legal;
    if (n == 0)
        return;
    str_addf(out, "\n  rejected: %d, those first that would be fastest\n", n);
    for (int c = s->legal; c < s->count && c < s->legal + REJECTED; c++) {
        str_addf(out, "  ");
        text_tile(&s->all[c].tile, out);
        str_addf(out, "\n      %s; would take %s\n", s->all[c].why,
                 text_ms(s->all[c].fig.time_ms).s);
    }
    if (n > REJECTED)
        str_addf(out, "  ... and %d more\n", n - REJECTED);
}

/* How dQ may be summed, by the time of all steps that hang on it. */
static void say_dq(const Plan *p, Str *out) {
    static const char *const where[] = {
        "a step of its own", "in the block that has all keys",
        "f32 sums of blocks of keys, in order", "the same, in any order"};
    DqWay way[DQ_WAYS];
    int n = plan_dq_ways(p, way);
    for (int i = 0; i < n; i++) {
        str_addf(out, "%s%-9s dq=%d %s: ", i ? "" : "\n", i ? "" : "dQ", i,
                 where[i]);
        if (way[i].why[0])
            str_addf(out, "%s", way[i].why);
        else
            str_addf(out, "%s%s", text_ms(way[i].ms).s,
                     p->step[1].tile.v[T_mma_dkdv_dq] == i ? ", taken" : "");
        str_addf(out, "\n");
    }
    if (n)
        str_addf(out, "          a step of its own is left for 10 %% less\n");
}

static json_t *json_dq(const Plan *p) {
    DqWay way[DQ_WAYS];
    int n = plan_dq_ways(p, way);
    json_t *list = json_array();
    for (int i = 0; i < n; i++) {
        json_t *j = json_object();
        json_object_set_new(j, "dq", json_integer(i));
        if (way[i].why[0])
            json_object_set_new(j, "why", json_text(way[i].why));
        else
            json_object_set_new(j, "time_ms", json_number(way[i].ms));
        json_array_append_new(list, j);
    }
    return list;
}

static void tell(Story *s, Str *out) {
    const Plan *p = &s->plan;
    str_addf(out, "attention ");
    text_problem(&s->problem, out);
    str_addf(out, "\n");
    say_machine(&p->device, out);
    str_addf(out, "kernel    ");
    say_kernel(s, out);
    say_dq(p, out);
    for (int i = 0; i < p->nstep; i++) {
        say_step(s, i, out);
        rank(s, i);
        if (s->count > 1)
            say_ranked(s, p->step[i].tile.family, out);
        say_rejected(s, out);
    }
    if (s->asked)
        blocks_text(&s->blocks, out);
    str_addf(out, "\nthe plan as text\n");
    plan_print(p, out);
    if (out->len && out->text[out->len - 1] != '\n')
        str_addf(out, "\n");
}

/* ---- JSON -------------------------------------------------------------- */

static json_t *json_candidates(const Story *s) {
    json_t *list = json_array();
    for (int i = 0; i < s->legal && i < SHOWN; i++) {
        json_t *j = json_object();
        json_object_set_new(j, "tile", json_tile(&s->all[i].tile));
        json_object_set_new(j, "model", json_figures(&s->all[i].fig));
        json_array_append_new(list, j);
    }
    return list;
}

static json_t *json_rejected(const Story *s) {
    json_t *list = json_array();
    for (int i = s->legal; i < s->count && i < s->legal + 256; i++) {
        json_t *j = json_object();
        json_object_set_new(j, "tile", json_tile(&s->all[i].tile));
        json_object_set_new(j, "why", json_text(s->all[i].why));
        json_array_append_new(list, j);
    }
    return list;
}

static json_t *json_steps(Story *s) {
    json_t *list = json_array();
    for (int i = 0; i < s->plan.nstep; i++) {
        const Step *step = &s->plan.step[i];
        json_t *j = json_object();
        rank(s, i);
        json_object_set_new(j, "role", json_text(role_name(step->role)));
        json_object_set_new(j, "tile", json_tile(&step->tile));
        json_object_set_new(j, "model", json_figures(&step->fig));
        json_object_set_new(j, "legal", json_integer(s->legal));
        json_object_set_new(j, "illegal", json_integer(s->count - s->legal));
        json_object_set_new(j, "candidates", json_candidates(s));
        json_object_set_new(j, "rejected", json_rejected(s));
        json_array_append_new(list, j);
    }
    return list;
}

static int tell_json(const Options *o, Story *s, Str *out, Err *e) {
    json_t *j = json_object(), *compile = json_object();
    Str text = {0};
    plan_print(&s->plan, &text);
    json_object_set_new(compile, "cache",
                        json_text(s->cached ? "disk" : "miss"));
    json_object_set_new(compile, "compiler", json_text(s->compiler));
    json_object_set_new(j, "target", json_text(text_target(&s->plan.device)));
    json_object_set_new(j, "device", json_text(s->plan.device.name));
    json_object_set_new(j, "spec", json_spec(&s->plan.spec));
    json_object_set_new(j, "shape", json_shape(&s->plan.shape));
    json_object_set_new(j, "steps", json_steps(s));
    if (s->plan.spec.pass == ATTNC_PASS_BWD)
        json_object_set_new(j, "dq", json_dq(&s->plan));
    json_object_set_new(j, "compile", compile);
    json_object_set_new(j, "machine", json_device(&s->plan.device));
    json_object_set_new(j, "plan", json_text(text.text ? text.text : ""));
    if (s->blocks.drawn)
        json_object_set_new(
            j, "blocks",
            blocks_json(&s->blocks, o->given[OPT_print_blocks].text));
    str_free(&text);
    return json_finish(j, out, e);
}

/* The map, and its picture where it is asked for. */
static int draw(const Options *o, Story *s, Err *e) {
    const char *svg = o->given[OPT_svg].text;
    s->asked = blocks_asked(o, &s->problem);
    int rc = blocks_tell(o, &s->problem, &s->plan, &s->blocks, e);
    return rc || !svg ? rc : blocks_picture(svg, &s->blocks, e);
}

static int say(const Options *o, Story *s, Str *out, Err *e) {
    if (o->given[OPT_json].text)
        return tell_json(o, s, out, e);
    if (o->given[OPT_print_blocks].text)
        pattern_text(&s->blocks.map, "011", out);
    else
        tell(s, out);
    return 0;
}

int verb_explain(const Options *o, Str *out, Err *e) {
    Story *s = calloc(1, sizeof *s);
    Candidate *all = calloc(CANDIDATES, sizeof *all);
    int rc =
        s && all ? 0 : err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    if (rc == 0) {
        s->all = all;
        rc = choose(o, s, e);
    }
    rc = rc ? rc : draw(o, s, e);
    rc = rc ? rc : say(o, s, out, e);
    if (s) {
        problem_free(&s->problem);
        blocks_drop(&s->blocks);
    }
    free(s);
    free(all);
    return rc;
}
