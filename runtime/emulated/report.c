/* SPDX-License-Identifier: Apache-2.0
 * Faults are collected, never printed; and the ends of the interface: an Emu
 * made and destroyed, the table kernels call through. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine.h"

static EmuFault *entry_for(EmuReport *r, int kind, u32 line, u32 other) {
    for (int i = 0; i < r->nfault; i++) {
        EmuFault *f = &r->fault[i];
        if (f->kind == kind && f->line == line && f->other == other)
            return f;
    }
    if (r->nfault == EMU_REPORT_FAULTS)
        return NULL;
    EmuFault *f = &r->fault[r->nfault++];
    *f = (EmuFault){.kind = kind, .line = line, .other = other};
    return f;
}

void report_fault(Fiber *f, int kind, u32 line, u32 other, const char *fmt,
                  ...) {
    EmuReport *r = f->block->emu->report;
    EmuFault *x = entry_for(r, kind, line, other);
    r->faults++;
    if (!x || x->times++)
        return;
    memcpy(x->block, f->block->id, sizeof x->block);
    x->warp = (int)f->warp->index;
    x->lane = (int)f->lane;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(x->text, sizeof x->text, fmt, ap);
    va_end(ap);
}

void emu_bad_index(u32 line) {
    report_fault(emu_now, EMU_INDEX, line, 0, "an array held in registers");
    emu_stop(emu_now);
}

/* ---- deadlock ----------------------------------------------------------- */

/* "warp 2: ffff0000 at barrier 1 (line 40), ..." */
static void describe_warp(const Warp *w, char *out, size_t size) {
    size_t n = (size_t)snprintf(out, size, "warp %u:", w->index);
    for (u32 left = w->lanes & ~w->exited; left && n < size;) {
        const Wait *x = &w->fiber[__builtin_ctz(left)]->wait;
        u32 group = 0;
        for (u32 l = left; l; l &= l - 1) {
            const Wait *y = &w->fiber[__builtin_ctz(l)]->wait;
            if (y->op == x->op && y->line == x->line && y->kind == x->kind)
                group |= l & -l;
        }
        char id[16] = "";
        if (x->op == WAIT_BARRIER)
            snprintf(id, sizeof id, " %u", x->kind);
        n += (size_t)snprintf(out + n, size - n, " %08x at %s%s (line %u)",
                              group, wait_name(x), id, x->line);
        left &= ~group;
    }
}

void report_deadlock(Emu *e) {
    char text[300] = "";
    Fiber *first = NULL;
    for (u32 i = 0; i < e->resident; i++)
        for (u32 j = 0; e->block[i].live && j < e->block[i].nwarps; j++) {
            Warp *w = &e->block[i].warp[j];
            size_t n = strlen(text);
            if (w->exited == w->lanes)
                continue;
            if (!first)
                first = w->fiber[__builtin_ctz(w->lanes & ~w->exited)];
            if (n && n < sizeof text - 2)
                n += (size_t)snprintf(text + n, sizeof text - n, "; ");
            describe_warp(w, text + n, sizeof text - n);
        }
    if (first)
        report_fault(first, EMU_DEADLOCK, first->wait.line, 0, "%s", text);
    e->stop = true;
}

/* ---- interface ---------------------------------------------------------- */

Emu *emu_create(void) {
    return calloc(1, sizeof(Emu));
}

void emu_destroy(Emu *e) {
    if (!e)
        return;
    pool_free(e);
    emu_forget(e);
    free(e);
}

void emu_report_free(EmuReport *r) {
    free(r->count);
    memset(r, 0, sizeof *r);
}

static const char *const fault_names[] = {
#define X(name, sentence) #name,
    EMU_FAULT_LIST(X)
#undef X
};
static const char *const fault_sentences[] = {
#define X(name, sentence) sentence,
    EMU_FAULT_LIST(X)
#undef X
};
static const char *const class_names[] = {
#define X(name, spelling) spelling,
    EMU_CLASS_LIST(X)
#undef X
};

const char *emu_fault_name(int kind) {
    return fault_names[kind];
}
const char *emu_fault_sentence(int kind) {
    return fault_sentences[kind];
}
const char *emu_class_name(int class) {
    return class_names[class];
}

static u32 emu_id(u32 which) {
    const Fiber *f = emu_now;
    const Emu *e = f->block->emu;
    switch (which) {
    case EMU_THREAD_X:
        return f->thread % e->dim.x;
    case EMU_THREAD_Y:
        return f->thread / e->dim.x % e->dim.y;
    case EMU_THREAD_Z:
        return f->thread / e->dim.x / e->dim.y;
    case EMU_BLOCK_X:
        return f->block->id[0];
    case EMU_BLOCK_Y:
        return f->block->id[1];
    case EMU_BLOCK_Z:
        return f->block->id[2];
    case EMU_GRID_X:
        return e->grid.x;
    case EMU_GRID_Y:
        return e->grid.y;
    case EMU_GRID_Z:
        return e->grid.z;
    case EMU_LANE:
        return f->lane;
    case EMU_SMEM_BASE:
        return SMEM_BASE;
    default:
        return e->smem_bytes;
    }
}

static const EmuTable table = {EMU_API_VERSION, sizeof(EmuTable),
#define EMU(result, name, parameters) emu_##name,
                               EMU_LIST(EMU)
#undef EMU
};

const EmuTable *emu_table(void) {
    return &table;
}
