/* SPDX-License-Identifier: Apache-2.0
 * Who runs next. Lanes of a warp follow each other directly; among warps, one
 * seed decides. */
#include "machine.h"

u32 emu_random(Emu *e) {
    e->rng ^= e->rng >> 12;
    e->rng ^= e->rng << 25;
    e->rng ^= e->rng >> 27;
    return (u32)(e->rng * 0x2545f4914f6cdd1dull >> 32);
}

void warp_wake(Warp *w, u32 lanes) {
    Emu *e = w->block->emu;
    w->ready |= lanes;
    if (w->place < 0 && w->ready) {
        w->place = (int)e->nready;
        e->ready[e->nready++] = w;
    }
}

void warp_sleep(Warp *w, u32 lanes) {
    Emu *e = w->block->emu;
    w->ready &= ~lanes;
    if (w->ready || w->place < 0)
        return;
    Warp *last = e->ready[--e->nready];
    e->ready[w->place] = last;
    last->place = w->place;
    w->place = -1;
}

/* The next ready lane of w, starting at `from`. */
static Fiber *lane_after(const Warp *w, u32 from) {
    u32 later = w->ready & ~((1u << from) - 1);
    return w->fiber[__builtin_ctz(later ? later : w->ready)];
}

/* The host when nothing is ready. */
static Fiber *pick(Emu *e) {
    if (!e->nready)
        return &e->host;
    Warp *w = e->ready[emu_random(e) % e->nready];
    if (e->config.async_mode == EMU_RANDOM)
        copy_land_one(w->block);
    return lane_after(w, emu_random(e) % LANES);
}

void fiber_block(Fiber *f) {
    Warp *w = f->warp;
    Emu *e = f->block->emu;
    bool ended = f->wait.op == WAIT_EXITED;
    warp_sleep(w, 1u << f->lane);
    Fiber *to = &e->host;
    if (!w->ready)
        warp_check_stuck(w);
    if (!e->stop && f->block->live)
        to = w->ready ? lane_after(w, f->lane) : pick(e);
    e->report->switches++;
    fiber_switch(f, to, ended);
}

void fiber_yield(Fiber *f) {
    Emu *e = f->block->emu;
    if (emu_random(e) & 3)
        return;
    Fiber *to = pick(e);
    if (to->warp == f->warp)
        return;
    e->report->switches++;
    fiber_switch(f, to, false);
}

void emu_stop(Fiber *f) {
    Emu *e = f->block->emu;
    e->stop = true;
    fiber_switch(f, &e->host, true);
}
