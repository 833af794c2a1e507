/* SPDX-License-Identifier: Apache-2.0
 * Reports by the lines of the templates. */
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

/* The fault's own words, with places for the "line 12" in them. */
static void add_text(const EmuPlaces *p, const char *text, Str *out) {
    for (const char *at; (at = strstr(text, "line "));) {
        char *end;
        unsigned long line = strtoul(at + 5, &end, 10);
        str_add(out, text, (size_t)(at - text));
        if (end > at + 5)
            add_place(p, (uint32_t)line, out);
        else
            str_addf(out, "line ");
        text = end > at + 5 ? end : at + 5;
    }
    str_addf(out, "%s", text);
}

void emulated_fault(const EmuPlaces *p, const EmuFault *f, Str *out) {
    add_place(p, f->line, out);
    if (f->other) {
        str_addf(out, " and ");
        add_place(p, f->other, out);
    }
    str_addf(out, ": %s: ", emu_fault_sentence(f->kind));
    add_text(p, f->text, out);
    str_addf(out, " (block %u, warp %d, lane %d; %llu times)", f->block[0],
             f->warp, f->lane, (unsigned long long)f->times);
}

/* ---- counts -------------------------------------------------------------- */

static void add_count(EmuCount *to, const EmuCount *c) {
    to->instructions += c->instructions;
    to->lanes += c->lanes;
    to->waves += c->waves;
    to->ideal += c->ideal;
    to->sectors += c->sectors;
    to->dram_bytes += c->dram_bytes;
}

/* A line of a template is pasted for several tensors and steps. */
static EmuRow *row_for(EmuRow *rows, int *n, const EmuRow *like) {
    for (int i = 0; i < *n; i++)
        if (rows[i].line == like->line && rows[i].class == like->class &&
            !strcmp(rows[i].template, like->template))
            return &rows[i];
    rows[*n] = *like;
    return &rows[(*n)++];
}

int emulated_rows(const EmuPlaces *p, const EmuReport *r, EmuRow **out) {
    int n = 0;
    *out = calloc((size_t)r->lines * EMU_CLASSES + 1, sizeof **out);
    if (!*out)
        return ERR_MEMORY;
    for (uint32_t line = 0; line < r->lines; line++)
        for (int class = 0; class < EMU_CLASSES; class ++) {
            const EmuCount *c = &r->count[line][class];
            EmuRow like = {.class = class};
            if (!c->instructions && !c->lanes)
                continue;
            like.template = emulated_place(p, line, &like.line);
            add_count(&row_for(*out, &n, &like)->count, c);
        }
    return n;
}
