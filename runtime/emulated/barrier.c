/* SPDX-License-Identifier: Apache-2.0
 * Barriers of a block: number 0 for all its threads, the others for a number
 * of threads told at each call. They order memory by vector clocks. */
#include <string.h>

#include "machine.h"

static void open_barrier(Block *b, u32 id) {
    Barrier *r = &b->barrier[id];
    u32 epoch = ++b->tick;
    for (u32 i = 0; i < b->nwarps; i++) {
        u32 wake = 0;
        for (u32 l = b->warp[i].lanes; l; l &= l - 1) {
            Fiber *f = b->warp[i].fiber[__builtin_ctz(l)];
            if (f->wait.op != WAIT_BARRIER || f->wait.kind != id)
                continue;
            meeting_leave(&r->meeting, f, epoch);
            f->wait.op = WAIT_NONE;
            f->wait.value = r->votes;
            wake |= l & -l;
        }
        if (wake)
            warp_wake(&b->warp[i], wake);
    }
    meeting_end(&r->meeting, b);
    r->arrived = 0;
    r->threads = 0;
    r->votes = 0;
}

/* bar.sync 0 of a warp is one instruction: lanes on different lines are in
 * different ones. */
static void check_line(Fiber *f) {
    for (u32 l = f->warp->lanes; l; l &= l - 1) {
        const Wait *x = &f->warp->fiber[__builtin_ctz(l)]->wait;
        if (x->op == WAIT_BARRIER && x->kind == f->wait.kind &&
            x->line != f->wait.line) {
            report_fault(f, EMU_DIVERGENCE, x->line, f->wait.line,
                         "lanes of a warp at the barriers of two lines");
            return;
        }
    }
}

static bool join(Fiber *f, u32 line, u32 id, u32 threads) {
    if (id >= BARRIERS || (id && (!threads || threads % LANES))) {
        report_fault(
            f, EMU_BARRIER, line, 0,
            "barrier %u for %u threads; ids are 0 to 15, threads a multiple "
            "of 32",
            id, threads);
        return false;
    }
    Barrier *r = &f->block->barrier[id];
    if (r->arrived && r->threads != threads)
        report_fault(f, EMU_BARRIER, line, r->line,
                     "barrier %u for %u threads; others came for %u", id,
                     threads, r->threads);
    r->threads = threads;
    r->line = line;
    r->arrived++;
    meeting_join(&r->meeting, f);
    return true;
}

static u32 wanted(const Block *b, u32 id) {
    return id ? b->barrier[id].threads : b->live;
}

void emu_barrier(u32 line, u32 id, u32 threads, int wait) {
    Fiber *f = emu_now;
    Block *b = f->block;
    Emu *e = b->emu;
    if (e->config.count) {
        EmuCount *c = count_at(e, line, EMU_COUNT_SYNC);
        c->instructions += f->lane == 0;
        c->lanes++;
    }
    if (!join(f, line, id, threads))
        emu_stop(f);
    if (wait) {
        f->wait = (Wait){.op = WAIT_BARRIER, .kind = id, .line = line};
        check_line(f);
    }
    bool complete = b->barrier[id].arrived >= wanted(b, id);
    if (!wait)
        f->epoch = ++b->tick;
    if (complete)
        open_barrier(b, id);
    if (e->stop)
        emu_stop(f);
    if (wait && !complete)
        fiber_block(f);
    else if (wait)
        fiber_yield(f);
}

int emu_block_sync_or(u32 line, int p) {
    Fiber *f = emu_now;
    f->block->barrier[0].votes |= p != 0;
    emu_barrier(line, 0, 0, 1);
    return (int)f->wait.value;
}

void barrier_after_exit(Block *b) {
    if (b->live && b->barrier[0].arrived >= b->live)
        open_barrier(b, 0);
}
