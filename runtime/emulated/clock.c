/* SPDX-License-Identifier: Apache-2.0
 * Vector clocks. Threads that left a barrier together share one, so a barrier
 * costs one join per group that met, not one per thread. */
#include <stdlib.h>
#include <string.h>

#include "machine.h"

Clock *clock_new(Block *b) {
    Clock *c = b->free_clocks;
    if (c)
        b->free_clocks = c->next;
    else
        c = malloc(sizeof *c + b->emu->agents * sizeof c->at[0]);
    if (c)
        c->refs = 1;
    return c;
}

void clock_release(Block *b, Clock *c) {
    if (!c || --c->refs)
        return;
    c->next = b->free_clocks;
    b->free_clocks = c;
}

/* Without memory the launch ends, so a clock that could not be had only has
 * to be harmless until then. */
void meeting_join(Meeting *m, Fiber *f) {
    Block *b = f->block;
    u32 n = b->emu->agents;
    if (!m->sum) {
        m->sum = clock_new(b);
        if (!m->sum) {
            b->emu->no_memory = b->emu->stop = true;
            return;
        }
        memcpy(m->sum->at, f->base->at, n * sizeof m->sum->at[0]);
    } else if (m->last != f->base) {
        for (u32 i = 0; i < n; i++)
            if (m->sum->at[i] < f->base->at[i])
                m->sum->at[i] = f->base->at[i];
    }
    m->sum->at[f->agent] = f->epoch;
    m->sum->floor = 0; /* not known until the first leaves */
    if (m->last != f->base) {
        clock_release(b, m->last);
        m->last = f->base;
        m->last->refs++;
    }
}

static u32 smallest(const u32 *at, u32 n) {
    u32 least = UINT32_MAX;
    for (u32 i = 0; i < n; i++)
        if (at[i] < least)
            least = at[i];
    return least;
}

void meeting_leave(Meeting *m, Fiber *f, u32 epoch) {
    if (!m->sum)
        return;
    if (!m->sum->floor)
        m->sum->floor = smallest(m->sum->at, f->block->emu->agents);
    clock_release(f->block, f->base);
    f->base = m->sum;
    f->base->refs++;
    f->epoch = epoch;
}

void meeting_end(Meeting *m, Block *b) {
    clock_release(b, m->sum);
    clock_release(b, m->last);
    m->sum = m->last = NULL;
}
