/* SPDX-License-Identifier: Apache-2.0
 * Plans as text: the identity that keys the cache, and the whole plan, which
 * reads back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gen.h"

/* ---- identity ---------------------------------------------------------- */

/* What CUDA templates read of shape and device, besides the arch. */
static void print_cuda(const Plan *p, Str *out) {
    const Device *d = &p->device;
    str_addf(out, "\nprims=%s mma_k=%g cp_async=%g\npromises ",
             d->kind == DEVICE_EMULATED ? "emu" : "real", d->mma_k,
             d->cp_async);
    shape_print_promises(&p->shape, out);
}

void plan_identity(const Plan *p, Str *out) {
    str_addf(out, "arch=%s\nspec ", p->device.arch);
    spec_print(&p->spec, out);
    /* CPU kernels read no promise: they are only checked at launch. */
    if (p->device.kind != DEVICE_CPU)
        print_cuda(p, out);
    for (int i = 0; i < p->nstep; i++) {
        str_addf(out, "\nstep %s ", role_name(p->step[i].role));
        tile_print(&p->step[i].tile, out);
    }
    str_addf(out, "\n");
}

/* ---- plan -> text ------------------------------------------------------ */

static const char *dim_name(int dim) {
    static const char *const names[] = {
        "one",     "batch",    "heads",        "kv_heads",
        "group",   "seqlen_q", "seqlen_k",     "rows",
        "total_q", "parts",    "tensor_parts", "tensor_elements"};
    _Static_assert(sizeof names / sizeof *names == DIM_COUNT, "a dim has no "
                                                              "name");
    return names[dim];
}

/* "batch*kv_heads*rows/384": each factor rounded up. */
static void print_extent(const Extent *x, Str *out) {
    for (int i = 0; i < 5 && x->f[i].dim != DIM_ONE; i++) {
        str_addf(out, "%s%s", i ? "*" : "", dim_name(x->f[i].dim));
        if (x->f[i].div > 1)
            str_addf(out, "/%lld", (long long)x->f[i].div);
    }
}

static void print_figures(const Figures *f, Str *out) {
    str_addf(out,
             "  model flops=%.6g exp2s=%.6g dram_bytes=%.6g sram_bytes=%.6g "
             "sram_footprint=%.6g items=%.6g waves=%.6g compute_ms=%.4g "
             "dram_ms=%.4g sram_ms=%.4g time_ms=%.4g bound=%s\n",
             f->flops, f->exp2s, f->dram_bytes, f->sram_bytes,
             f->sram_footprint, f->items, f->waves, f->compute_ms, f->dram_ms,
             f->sram_ms, f->time_ms, f->bound);
}

static void print_cuda_step(const Step *s, Str *out) {
    const Figures *f = &s->fig;
    str_addf(out, "  smem_bytes=%lld threads=%d\n", (long long)s->smem_bytes,
             s->threads);
    print_figures(f, out);
    str_addf(out,
             "  sm product_ms=%.4g exp2_ms=%.4g issue_ms=%.4g smem_ms=%.4g "
             "registers=%g occupancy=%.3g\n",
             f->product_ms, f->exp2_ms, f->issue_ms, f->smem_ms, f->registers,
             f->occupancy);
}

static void print_step(const Plan *p, const Step *s, Str *out) {
    str_addf(out, "step %s from=%s entry=%s\n  tile ", role_name(s->role),
             tile_from_name(s->tile.from), s->entry);
    tile_print(&s->tile, out);
    str_addf(out, "\n  grid ");
    print_extent(&s->grid, out);
    str_addf(out, "\n  params");
    for (int i = 0; i < s->nparam; i++) {
        char name[PARAM_TEXT];
        param_text(p, &s->param[i], name);
        str_addf(out, " %s", name);
    }
    str_addf(out, "\n");
    if (tile_is_cuda(s->tile.family)) {
        print_cuda_step(s, out);
        return;
    }
    str_addf(out, "  scratch_bytes=%lld\n", (long long)s->scratch_bytes);
    print_figures(&s->fig, out);
}

void plan_print(const Plan *p, Str *out) {
    str_addf(out, "spec ");
    spec_print(&p->spec, out);
    str_addf(out, "\nshape ");
    shape_print(&p->shape, out);
    str_addf(out, "\ndevice ");
    device_print(&p->device, out);
    str_addf(out, "\n");
    if (*p->note)
        str_addf(out, "note %s\n", p->note);
    for (int i = 0; i < p->nbuf; i++) {
        const Buf *b = &p->buf[i];
        str_addf(out, "buf %s f%d elements=%lld%s", b->name, b->elem_bytes * 8,
                 (long long)b->fixed, b->extent.f[0].dim == DIM_ONE ? "" : "*");
        print_extent(&b->extent, out);
        str_addf(out, "\n");
    }
    for (int i = 0; i < p->nstep; i++)
        print_step(p, &p->step[i], out);
}

/* ---- text -> plan ------------------------------------------------------ */

static int index_of(Slice word, const char *(*name)(int), int count) {
    int i = 0;
    while (i < count && !slice_is(word, name(i)))
        i++;
    return i < count ? i : -1;
}

/* "fwd from=model entry=...": the entry follows from the rest. */
static int parse_step(const char *text, Plan *p, Err *e) {
    Slice word, from;
    bool ok = p->nstep < PLAN_STEPS && next_pair(&text, " ", &word, &from);
    Step *s = &p->step[ok ? p->nstep++ : 0];
    s->role = ok ? index_of(word, role_name, ROLE_COUNT) : -1;
    ok = ok && next_pair(&text, " ", &word, &from) && slice_is(word, "from");
    s->tile.from = ok ? index_of(from, tile_from_name, FROM_SAFE + 1) : -1;
    s->tile.family = -1;
    if (s->role >= 0 && s->tile.from >= 0)
        return 0;
    return err_set(e, ERR_REQUEST, "plan", "step", "is not a step of a plan");
}

static int parse_tile(const char *text, Plan *p, Err *e) {
    Slice word, value;
    Tile *t = p->nstep ? &p->step[p->nstep - 1].tile : NULL;
    if (!t || !next_pair(&text, " ", &word, &value))
        return err_set(e, ERR_REQUEST, "plan", "tile", "has no step");
    t->family = index_of(word, tile_family_name, TILE_FAMILIES);
    if (t->family < 0)
        return err_set(e, ERR_REQUEST, "plan", "tile", "unknown family");
    return tile_parse(text, t, e);
}

/* One line of the plan; lines that follow from others are only compared. */
static int parse_line(const char *line, Plan *p, Err *e) {
    if (!strncmp(line, "spec ", 5))
        return spec_parse(line + 5, &p->spec, e);
    if (!strncmp(line, "shape ", 6))
        return shape_parse(line + 6, &p->shape, e);
    if (!strncmp(line, "device ", 7))
        return device_parse(line + 7, &p->device, e);
    if (!strncmp(line, "step ", 5))
        return parse_step(line + 5, p, e);
    if (!strncmp(line, "  tile ", 7))
        return parse_tile(line + 7, p, e);
    if (!strncmp(line, "note ", 5))
        snprintf(p->note, sizeof p->note, "%s", line + 5);
    return 0;
}

static int split_of(const Tile *t) {
    int field = tile_field_index(t->family, "split_k");
    return field < 0 ? 0 : t->v[field];
}

static bool is_fwd(int family) {
    return family == TILE_cpu_fwd || family == TILE_mma_fwd ||
           family == TILE_fma_fwd;
}

/* Is b the family that merges the splits of family a? */
static bool merges(int a, int b) {
    return is_fwd(a) &&
           b == (a == TILE_cpu_fwd ? TILE_cpu_combine : TILE_cuda_combine);
}

/* The steps that its main tile asks for, which all of them share. */
static bool is_backward(const Plan *p) {
    bool builtin = p->step[0].tile.family == TILE_builtin;
    const Step *main = builtin ? &p->step[0] : plan_bwd_main(p);
    int role[PLAN_STEPS];
    if (!main || p->nstep != plan_bwd_roles(&p->spec, &main->tile, role))
        return false;
    const Tile *rows = &p->step[0].tile;
    for (int i = 0; i < p->nstep; i++) {
        const Tile *t = plan_bwd_is_main(role[i]) ? &main->tile : rows;
        if (p->step[i].role != role[i] || p->step[i].tile.family != t->family ||
            memcmp(p->step[i].tile.v, t->v, sizeof t->v))
            return false;
    }
    return builtin || rows->family == TILE_cpu_rows;
}

/* Of parts the caller has: split_k 0. */
static bool is_merge(const Plan *p) {
    const Tile *t = &p->step[0].tile;
    return p->nstep == 1 && p->step[0].role == ROLE_merge &&
           (t->family == TILE_cpu_combine || t->family == TILE_cuda_combine ||
            t->family == TILE_builtin);
}

/* The steps a plan can have, and a legal tile of the right family in each. */
static int check_steps(const Plan *p, Err *e) {
    const Step *s = p->step;
    const Tile *t = &s[0].tile, *u = &s[1].tile;
    char why[120] = "";
    bool fwd =
        p->nstep == 1 && s[0].role == ROLE_fwd &&
        (t->family == TILE_builtin || (is_fwd(t->family) && !split_of(t)));
    bool split = p->nstep == 2 && s[0].role == ROLE_fwd_split &&
                 s[1].role == ROLE_combine && merges(t->family, u->family) &&
                 split_of(t) > 0 && split_of(t) == split_of(u);
    bool bwd = p->spec.pass == ATTNC_PASS_BWD;
    bool legal = bwd ? is_backward(p) || cuda_bwd_plan(p)
                 : p->spec.pass == ATTNC_PASS_MERGE ? is_merge(p)
                                                    : fwd || split;
    for (int i = 0; legal && i < p->nstep; i++)
        legal = tile_legal(&p->spec, &p->shape, &p->device, &s[i].tile, why);
    if (legal)
        return 0;
    return err_set(e, ERR_REQUEST, "plan", "step", "%s",
                   *why ? why : "no such sequence of steps");
}

static int check_plan(Plan *p, Err *e) {
    attnc_spec s = p->spec;
    attnc_shape h = p->shape;
    int code = spec_check(&s, &p->spec, e);
    if (!code)
        code = shape_check(&h, &p->shape, e);
    if (!code && p->device.kind < 0)
        code = err_set(e, ERR_REQUEST, "plan", "device", "is missing");
    if (!code)
        code = check_steps(p, e);
    return code;
}

/* Everything this version derives must be what the text says. */
static int check_same(const Plan *p, const char *text, Err *e) {
    Str again = {0};
    plan_print(p, &again);
    int code = 0;
    if (again.bad)
        code = err_set(e, ERR_MEMORY, "plan", NULL, "out of memory");
    else if (strcmp(again.text, text))
        code = err_set(e, ERR_REQUEST, "plan", NULL,
                       "the text is not what this version prints for it");
    str_free(&again);
    return code;
}

static int parse_lines(char *text, Plan *p, Err *e) {
    char *rest;
    int code = 0;
    for (char *line = strtok_r(text, "\n", &rest); line && !code;
         line = strtok_r(NULL, "\n", &rest))
        code = parse_line(line, p, e);
    return code;
}

int plan_parse(const char *text, Plan *out, Err *e) {
    Plan p = {.spec = ATTNC_SPEC_DEFAULT, .shape = ATTNC_SHAPE_DEFAULT};
    p.device.kind = -1;
    char *copy = strdup(text);
    if (!copy)
        return err_set(e, ERR_MEMORY, "plan", NULL, "out of memory");
    int code = parse_lines(copy, &p, e);
    free(copy);
    if (!code)
        code = check_plan(&p, e);
    if (code)
        return code;
    plan_complete(&p);
    code = check_same(&p, text, e);
    if (!code)
        *out = p;
    return code;
}
