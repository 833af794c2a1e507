/* SPDX-License-Identifier: Apache-2.0
 * cp.async: from its issue to its thread's wait the bytes belong to the copy,
 * whenever the data lands. */
#include <stdlib.h>
#include <string.h>

#include "machine.h"

static void land(Copy *c, u8 *dst) {
    memcpy(dst, c->src, c->valid);
    memset(dst + c->valid, 0, c->bytes - c->valid);
    c->landed = true;
}

static u8 *place_of(Block *b, const Copy *c) {
    return b->smem + (c->dst - SMEM_BASE);
}

static Copy *copy_new(Fiber *f) {
    if (f->first == f->last)
        f->first = f->last = 0;
    if (f->last == f->copies) {
        u32 cap = f->copies ? 2 * f->copies : 32;
        Copy *p = realloc(f->copy, cap * sizeof *p);
        if (!p) {
            f->block->emu->no_memory = true;
            emu_stop(f);
        }
        f->copy = p;
        f->copies = cap;
    }
    return &f->copy[f->last++];
}

void emu_cp_async(u32 line, u32 dst, const void *src, u32 bytes, u32 valid) {
    Fiber *f = emu_now;
    Emu *e = f->block->emu;
    u8 *p = smem_at(f, line, dst, bytes);
    count_record(f, EMU_COUNT_CP_ASYNC, line, bytes, dst, valid ? src : NULL);
    if (valid > bytes) {
        report_fault(f, EMU_BOUNDS, line, 0, "%u of %u bytes valid", valid,
                     bytes);
        return;
    }
    if (valid && !global_check(f, line, src, valid, bytes, EMU_COUNT_CP_ASYNC))
        return;
    if (!p)
        return;
    shadow_write(f, line, dst, bytes, CELL_FLIGHT);
    Copy *c = copy_new(f);
    *c = (Copy){src, dst, bytes, valid, line, f->group, false};
    if (e->config.async_mode == EMU_EAGER)
        land(c, p);
    else
        memset(p, 0xff, bytes);
}

void emu_cp_async_commit(u32 line) {
    Fiber *f = emu_now;
    if (f->block->emu->config.count)
        count_at(f->block->emu, line, EMU_COUNT_WAIT)->instructions +=
            f->lane == 0;
    f->group++;
}

void emu_cp_async_wait(u32 line, u32 pending) {
    Fiber *f = emu_now;
    if (f->block->emu->config.count)
        count_at(f->block->emu, line, EMU_COUNT_WAIT)->instructions +=
            f->lane == 0;
    for (; f->first < f->last; f->first++) {
        Copy *c = &f->copy[f->first];
        if (c->group + pending >= f->group)
            break;
        if (!c->landed)
            land(c, place_of(f->block, c));
        shadow_land(f, c->line, c->dst, c->bytes);
    }
}

void copy_land_one(Block *b) {
    Emu *e = b->emu;
    Fiber *f = &b->fiber[emu_random(e) % b->nthreads];
    if (f->first == f->last)
        return;
    Copy *c = &f->copy[f->first + emu_random(e) % (f->last - f->first)];
    if (!c->landed)
        land(c, place_of(b, c));
}
