/* SPDX-License-Identifier: Apache-2.0
 * attnc run --emu-report: what an emulated device counted, by template line,
 * for people and as JSON. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "emulated/emulated.h"

int emu_report_check(const Options *o, const Run *r, Err *e) {
    const Device *d = &r->ctx->device;
    if (!o->given[OPT_emu_report].text || d->kind == DEVICE_EMULATED)
        return 0;
    return err_set(e, ERR_REQUEST, "command", NULL,
                   "--emu-report: %s is not emulated; nearest: --target "
                   "emu:%s",
                   d->name, d->kind == DEVICE_CUDA ? d->arch : "sm_80");
}

int emu_report_launch(Run *r, Err *e) {
    const EmuConfig config = {
        .async_mode = EMU_LATE, .race = true, .count = true};
    r->emu = calloc((size_t)r->plan->plan.nstep, sizeof *r->emu);
    if (!r->emu)
        return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    return emulated_run(r->plan, &r->args, &config, r->emu, e);
}

void emu_report_drop(Run *r) {
    for (int i = 0; r->emu && i < r->plan->plan.nstep; i++)
        emu_report_free(&r->emu[i]);
    free(r->emu);
}

/* ---- one step ------------------------------------------------------------ */

typedef struct Lines {
    EmuPlaces places;
    EmuRow *row;
    int n;        /* negative: out of memory */
    EmuCount all; /* waves, ideal, sectors and DRAM of all rows */
} Lines;

static void lines_make(const Run *r, int step, Lines *l) {
    memset(l, 0, sizeof *l);
    emulated_places(r->ctx, &r->plan->plan, &l->places);
    l->n = emulated_rows(&l->places, &r->emu[step], &l->row);
    for (int i = 0; i < l->n; i++) {
        const EmuCount *c = &l->row[i].count;
        l->all.waves += c->waves;
        l->all.ideal += c->ideal;
        l->all.sectors += c->sectors;
        l->all.dram_bytes += c->dram_bytes;
    }
}

static void lines_free(Lines *l) {
    emulated_places_free(&l->places);
    free(l->row);
}

/* ---- JSON ---------------------------------------------------------------- */

static json_t *json_row(const EmuRow *r) {
    const EmuCount *c = &r->count;
    json_t *j = json_object();
    json_object_set_new(j, "template", json_text(r->template));
    json_object_set_new(j, "line", json_integer(r->line));
    json_object_set_new(j, "class", json_text(emu_class_name(r->class)));
    json_object_set_new(j, "instructions", json_count((double)c->instructions));
    json_object_set_new(j, "lanes", json_count((double)c->lanes));
    json_object_set_new(j, "waves", json_count((double)c->waves));
    json_object_set_new(j, "ideal", json_count((double)c->ideal));
    json_object_set_new(j, "sectors", json_count((double)c->sectors));
    json_object_set_new(j, "dram_bytes", json_count((double)c->dram_bytes));
    return j;
}

json_t *emu_report_json(const Run *r, int i) {
    Lines l;
    json_t *j = json_object(), *rows = json_array();
    lines_make(r, i, &l);
    for (int n = 0; n < l.n; n++)
        json_array_append_new(rows, json_row(&l.row[n]));
    json_object_set_new(j, "mma_flops",
                        json_count((double)r->emu[i].mma_flops));
    json_object_set_new(j, "waves", json_count((double)l.all.waves));
    json_object_set_new(j, "ideal", json_count((double)l.all.ideal));
    json_object_set_new(j, "dram_bytes", json_count((double)l.all.dram_bytes));
    json_object_set_new(j, "lines", rows);
    lines_free(&l);
    return j;
}

/* ---- text ---------------------------------------------------------------- */

/* "cuda/stage/qk.cu.in" -> "stage/qk:43"; the rest is the same everywhere. */
static Text place(const EmuRow *r) {
    Text t;
    const char *name =
        strncmp(r->template, "cuda/", 5) ? r->template : r->template + 5;
    snprintf(t.s, sizeof t.s, "%.*s:%d", (int)strcspn(name, "."), name,
             r->line);
    return t;
}

static Text count(uint64_t n) {
    Text t = text_count((double)n);
    size_t len = strlen(t.s);
    if (t.s[len - 1] == ' ') /* no unit */
        t.s[len - 1] = 0;
    return t;
}

/* One line of the table, cells that say nothing left empty. */
static void say_line(const char *where, const char *what, const char *times,
                     const EmuCount *c, Str *out) {
    Text cycles = {""}, ratio = {""}, sectors = {""}, dram = {""};
    char line[160];
    if (c->ideal) {
        cycles = count(c->waves);
        snprintf(ratio.s, sizeof ratio.s, "%.2f",
                 (double)c->waves / (double)c->ideal);
    }
    if (c->sectors) {
        sectors = count(c->sectors);
        dram = text_bytes((double)c->dram_bytes);
    }
    int n = snprintf(line, sizeof line, "%-23s %-11s %7s %7s %5s %7s %9s",
                     where, what, times, cycles.s, ratio.s, sectors.s, dram.s);
    while (n > 0 && line[n - 1] == ' ')
        n--;
    str_addf(out, "    %.*s\n", n, line);
}

static int say_step(const Run *r, int i, Str *out) {
    const Step *s = &r->plan->plan.step[i];
    Lines l;
    lines_make(r, i, &l);
    str_addf(out,
             "counted   %s: %sflop by mma; DRAM %s, by the model %s\n"
             "    %-23s %-11s %7s %7s %5s %7s %9s\n",
             role_name(s->role), text_count((double)r->emu[i].mma_flops).s,
             text_bytes((double)l.all.dram_bytes).s,
             text_bytes(s->fig.dram_bytes).s, "template line", "by warps",
             "times", "cycles", "/best", "sectors", "DRAM");
    for (int n = 0; n < l.n; n++)
        say_line(place(&l.row[n]).s, emu_class_name(l.row[n].class),
                 count(l.row[n].count.instructions).s, &l.row[n].count, out);
    say_line("all", "", "", &l.all, out);
    lines_free(&l);
    return l.n < 0 ? ERR_MEMORY : 0;
}

int emu_report_text(const Run *r, Str *out, Err *e) {
    int rc = 0;
    for (int i = 0; i < r->plan->plan.nstep && !rc; i++)
        rc = say_step(r, i, out);
    return rc ? err_set(e, ERR_MEMORY, "command", NULL, "out of memory") : 0;
}
