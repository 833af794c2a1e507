/* SPDX-License-Identifier: Apache-2.0
 * Reports as text, by the lines of the templates. */
#include <stdlib.h>
#include <string.h>

#include "emulated.h"

/* ---- places -------------------------------------------------------------- */

void emulated_places(attnc_context *c, const Plan *p, EmuPlaces *out) {
    Err none = {0};
    const struct LuaApi *lua = lua_find(&none);
    *out = (EmuPlaces){.templates = c->templates};
    if (lua)
        emit_module(p, c->templates, lua, &out->source, &none);
}

void emulated_places_free(EmuPlaces *p) {
    source_free(&p->source);
}

const char *emulated_place(const EmuPlaces *p, uint32_t line, int *at) {
    *at = 0;
    if (line < 1 || line > p->source.nline)
        return "?";
    uint32_t from = p->source.line[line - 1];
    *at = (int)(from & 0xffff);
    return p->templates->t[from >> 16].name;
}

static void add_place(const EmuPlaces *p, uint32_t line, Str *out) {
    int at;
    const char *name = emulated_place(p, line, &at);
    if (at)
        str_addf(out, "%s:%d", name, at);
    else
        str_addf(out, "line %u", line);
}

void emulated_fault(const EmuPlaces *p, const EmuFault *f, Str *out) {
    add_place(p, f->line, out);
    if (f->other) {
        str_addf(out, " and ");
        add_place(p, f->other, out);
    }
    str_addf(out, ": %s: %s (block %u, warp %d, lane %d; %llu times)",
             emu_fault_sentence(f->kind), f->text, f->block[0], f->warp,
             f->lane, (unsigned long long)f->times);
}

/* ---- counts -------------------------------------------------------------- */

/* All counts of one template line and class. */
typedef struct Row {
    const char *name;
    int at, class;
    EmuCount count;
} Row;

static void add_count(EmuCount *to, const EmuCount *c) {
    to->instructions += c->instructions;
    to->lanes += c->lanes;
    to->waves += c->waves;
    to->ideal += c->ideal;
    to->sectors += c->sectors;
    to->dram_bytes += c->dram_bytes;
}

/* A line of a template is pasted for several tensors and steps. */
static Row *row_for(Row *rows, int *n, const char *name, int at, int class) {
    for (int i = 0; i < *n; i++)
        if (rows[i].at == at && rows[i].class == class &&
            !strcmp(rows[i].name, name))
            return &rows[i];
    rows[*n] = (Row){.name = name, .at = at, .class = class};
    return &rows[(*n)++];
}

static int by_place(const void *a, const void *b) {
    const Row *x = a, *y = b;
    int names = strcmp(x->name, y->name);
    return names ? names : x->at - y->at;
}

static void print_row(const Row *r, Str *out) {
    const EmuCount *c = &r->count;
    str_addf(out, "  %-34s %4d  %-11s %12llu", r->name, r->at,
             emu_class_name(r->class), (unsigned long long)c->instructions);
    if (c->ideal)
        str_addf(out, " %12llu %5.2f", (unsigned long long)c->waves,
                 (double)c->waves / (double)c->ideal);
    else
        str_addf(out, " %12s %5s", "", "");
    if (c->sectors)
        str_addf(out, " %12llu %12llu", (unsigned long long)c->sectors,
                 (unsigned long long)c->dram_bytes);
    str_addf(out, "\n");
}

static int print_step(const EmuPlaces *p, const Step *s, const EmuReport *r,
                      Str *out) {
    int n = 0;
    Row *rows = calloc((size_t)r->lines * EMU_CLASSES + 1, sizeof *rows);
    if (!rows)
        return ERR_MEMORY;
    for (uint32_t line = 0; line < r->lines; line++)
        for (int class = 0; class < EMU_CLASSES; class ++) {
            const EmuCount *c = &r->count[line][class];
            int at;
            if (!c->instructions && !c->lanes)
                continue;
            const char *name = emulated_place(p, line, &at);
            add_count(&row_for(rows, &n, name, at, class)->count, c);
        }
    qsort(rows, (size_t)n, sizeof *rows, by_place);
    str_addf(out,
             "%s: %.4g Gflop by mma\n"
             "  %-34s line  %-11s %12s %12s %5s %12s %12s\n",
             role_name(s->role), (double)r->mma_flops * 1e-9, "template",
             "class", "instructions", "smem waves", "/best", "sectors",
             "DRAM bytes");
    for (int i = 0; i < n; i++)
        print_row(&rows[i], out);
    free(rows);
    return 0;
}

int emulated_print(const attnc_plan *p, const EmuReport *reports, Str *out) {
    EmuPlaces places;
    int rc = 0;
    emulated_places(p->ctx, &p->plan, &places);
    for (int i = 0; i < p->plan.nstep && !rc; i++)
        rc = print_step(&places, &p->plan.step[i], &reports[i], out);
    emulated_places_free(&places);
    return rc ? rc : out->bad ? ERR_MEMORY : 0;
}
