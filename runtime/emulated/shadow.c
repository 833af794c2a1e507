/* SPDX-License-Identifier: Apache-2.0
 * The shadow of shared memory: for every 16 bytes, or 2 once threads disagree
 * about a chunk, who wrote last, who read since, and whether the bytes were
 * ever written or belong to a copy in flight. */
#include <stdlib.h>
#include <string.h>

#include "machine.h"

/* ---- pools of a block --------------------------------------------------- */

static bool out_of_memory(Block *b) {
    b->emu->no_memory = b->emu->stop = true;
    return false;
}

/* Index + 1 of a fresh More; 0: out of memory. */
static u32 more_new(Block *b) {
    Shadow *s = &b->shadow;
    u32 i = s->free_more;
    if (i) {
        s->free_more = s->more[i - 1].next;
    } else {
        if (s->nmore == s->cap_more) {
            u32 cap = s->cap_more ? 2 * s->cap_more : 256;
            More *p = realloc(s->more, cap * sizeof *p);
            if (!p)
                return out_of_memory(b);
            s->more = p;
            s->cap_more = cap;
        }
        i = ++s->nmore;
    }
    memset(&s->more[i - 1], 0, sizeof(More));
    return i;
}

static void more_free(Block *b, u32 i) {
    Shadow *s = &b->shadow;
    while (i) {
        u32 next = s->more[i - 1].next;
        s->more[i - 1].next = s->free_more;
        s->free_more = i;
        i = next;
    }
}

static u32 halves_new(Block *b) {
    Shadow *s = &b->shadow;
    u32 i = s->free_halves;
    if (i) {
        s->free_halves = s->halves[i - 1][0].more;
        return i;
    }
    if (s->nhalves == s->cap_halves) {
        u32 cap = s->cap_halves ? 2 * s->cap_halves : 64;
        Cell(*p)[HALVES] = realloc(s->halves, cap * sizeof *p);
        if (!p)
            return out_of_memory(b);
        s->halves = p;
        s->cap_halves = cap;
    }
    return ++s->nhalves;
}

void shadow_reset(Block *b) {
    u32 chunks = (b->emu->smem_bytes + CHUNK - 1) / CHUNK;
    memset(b->shadow.cell, 0, chunks * sizeof(Cell));
    b->shadow.nhalves = b->shadow.free_halves = 0;
    b->shadow.nmore = b->shadow.free_more = 0;
}

/* ---- order -------------------------------------------------------------- */

/* Do the accesses of `agent` in `epoch` come before those of f now? */
static inline bool ordered(const Fiber *f, u32 epoch, u32 agent) {
    return epoch <= f->base->floor || agent == f->agent ||
           f->base->at[agent] >= epoch;
}

static void report_race(Fiber *f, int kind, u32 line, u32 addr, u32 other,
                        u32 agent) {
    char name[64];
    smem_name(f->block->emu, addr, name);
    report_fault(f, kind, line, other,
                 "%s: not ordered after line %u of warp %u lane %u", name,
                 other, agent / LANES, agent % LANES);
}

static void check_readers(Fiber *f, const Reader *r, u32 line, u32 addr) {
    if (r->epoch <= f->base->floor)
        return;
    for (u32 l = r->lanes; l; l &= l - 1) {
        u32 agent = (u32)r->warp * LANES + (u32)__builtin_ctz(l);
        if (ordered(f, r->epoch, agent))
            continue;
        report_race(f, EMU_RACE_REUSE, line, addr, r->line, agent);
        return;
    }
}

/* ---- one cell ----------------------------------------------------------- */

/* Takes the place of a reader that is ordered before f, or a free one. */
static bool add_to(Fiber *f, Reader *r, u32 n, const Reader *mine) {
    Reader *place = NULL;
    for (u32 i = 0; i < n; i++) {
        if (r[i].warp == mine->warp && r[i].epoch == mine->epoch) {
            r[i].lanes |= mine->lanes;
            return true;
        }
        if (!place && r[i].epoch <= f->base->floor)
            place = &r[i];
    }
    if (place)
        *place = *mine;
    return place;
}

static void add_reader(Fiber *f, Cell *c, u32 lanes, u32 line) {
    Reader mine = {f->epoch, lanes, (u16)f->warp->index, (u16)line};
    if (add_to(f, c->r, c->readers, &mine))
        return;
    if (c->readers < CELL_READERS) {
        c->r[c->readers++] = mine;
        return;
    }
    /* Free readers of a More have epoch 0 and count as ordered. */
    Shadow *s = &f->block->shadow;
    for (u32 i = c->more; i; i = s->more[i - 1].next)
        if (add_to(f, s->more[i - 1].r, 5, &mine))
            return;
    u32 i = more_new(f->block);
    if (!i)
        return;
    s->more[i - 1].r[0] = mine;
    s->more[i - 1].next = c->more;
    c->more = i;
}

static void report_state(Fiber *f, const Cell *c, u32 line, u32 addr) {
    char name[64];
    smem_name(f->block->emu, addr, name);
    if (c->state == CELL_EMPTY)
        report_fault(f, EMU_UNINITIALISED, line, 0, "%s was never written",
                     name);
    else
        report_fault(
            f, EMU_IN_FLIGHT, line, c->line,
            "%s belongs to the cp.async of line %u (warp %u lane %u), not "
            "yet waited for",
            name, c->line, c->agent / LANES, c->agent % LANES);
}

static void cell_read(Fiber *f, Cell *c, u32 lanes, u32 line, u32 addr) {
    if (c->state != CELL_SET) {
        report_state(f, c, line, addr);
        return;
    }
    if (!f->block->emu->config.race)
        return;
    /* Several lanes read: that one of them wrote does not order the others. */
    bool alone = !(lanes & (lanes - 1));
    if (!(alone && ordered(f, c->epoch, c->agent)) &&
        c->epoch > f->base->at[c->agent])
        report_race(f, EMU_RACE_READ, line, addr, c->line, c->agent);
    add_reader(f, c, lanes, line);
}

static void cell_write(Fiber *f, Cell *c, u32 line, u32 addr, int state) {
    Block *b = f->block;
    if (c->state == CELL_FLIGHT)
        report_state(f, c, line, addr);
    if (b->emu->config.race) {
        if (c->state == CELL_SET && !ordered(f, c->epoch, c->agent))
            report_race(f, EMU_RACE_WRITE, line, addr, c->line, c->agent);
        for (u32 i = 0; i < c->readers; i++)
            check_readers(f, &c->r[i], line, addr);
        for (u32 i = c->more; i; i = b->shadow.more[i - 1].next)
            for (u32 j = 0; j < 5; j++)
                check_readers(f, &b->shadow.more[i - 1].r[j], line, addr);
    }
    if (c->more)
        more_free(b, c->more);
    c->more = 0;
    c->readers = 0;
    c->epoch = f->epoch;
    c->agent = (u16)f->agent;
    c->line = (u16)line;
    c->state = (u8)state;
}

static void cell_land(Fiber *f, Cell *c) {
    if (c->state != CELL_FLIGHT || c->agent != f->agent)
        return; /* overwritten meanwhile: reported then */
    c->epoch = f->epoch;
    c->state = CELL_SET;
}

/* ---- chunks ------------------------------------------------------------- */

static void cell_copy(Block *b, Cell *to, const Cell *from) {
    *to = *from;
    to->more = 0;
    for (u32 i = from->more; i;) {
        u32 copy = more_new(b);
        if (!copy)
            return;
        u32 next = b->shadow.more[i - 1].next;
        b->shadow.more[copy - 1] = b->shadow.more[i - 1];
        b->shadow.more[copy - 1].next = to->more;
        to->more = copy;
        i = next;
    }
}

/* The 8 cells of a chunk; splits it first. NULL: out of memory. */
static Cell *halves_of(Block *b, Cell *c) {
    if (c->state == CELL_SPLIT)
        return b->shadow.halves[c->more - 1];
    u32 i = halves_new(b);
    if (!i)
        return NULL;
    Cell whole = *c;
    for (u32 j = 0; j < HALVES; j++)
        cell_copy(b, &b->shadow.halves[i - 1][j], &whole);
    more_free(b, whole.more);
    c->state = CELL_SPLIT;
    c->readers = 0;
    c->more = i;
    return b->shadow.halves[i - 1];
}

/* A whole chunk was written: one cell speaks for it again. */
static void unite(Block *b, Cell *c) {
    u32 i = c->more;
    Cell first = b->shadow.halves[i - 1][0];
    b->shadow.halves[i - 1][0].more = b->shadow.free_halves;
    b->shadow.free_halves = i;
    *c = first;
}

enum action { READ, WRITE, LAND };

static inline void act(Fiber *f, Cell *c, int action, u32 lanes, u32 line,
                       u32 addr, int state) {
    if (action == READ)
        cell_read(f, c, lanes, line, addr);
    else if (action == WRITE)
        cell_write(f, c, line, addr, state);
    else
        cell_land(f, c);
}

static void part(Fiber *f, Cell *c, int action, u32 lanes, u32 line, u32 addr,
                 u32 bytes, int state) {
    Cell *h = halves_of(f->block, c);
    for (u32 i = 0; h && i < bytes / 2; i++)
        act(f, &h[addr % CHUNK / 2 + i], action, lanes, line, addr + 2 * i,
            state);
    if (h && action == WRITE && bytes == CHUNK)
        unite(f->block, c);
}

static inline void each(Fiber *f, int action, u32 lanes, u32 line, u32 addr,
                        u32 bytes, int state) {
    Cell *c = &f->block->shadow.cell[(addr - SMEM_BASE) / CHUNK];
    if (bytes == CHUNK && c->state != CELL_SPLIT)
        act(f, c, action, lanes, line, addr, state);
    else
        part(f, c, action, lanes, line, addr, bytes, state);
}

void shadow_read(Fiber *f, u32 lanes, u32 line, u32 addr, u32 bytes) {
    each(f, READ, lanes, line, addr, bytes, 0);
}

void shadow_write(Fiber *f, u32 line, u32 addr, u32 bytes, int state) {
    each(f, WRITE, 0, line, addr, bytes, state);
}

void shadow_land(Fiber *f, u32 line, u32 addr, u32 bytes) {
    each(f, LAND, 0, line, addr, bytes, 0);
}
