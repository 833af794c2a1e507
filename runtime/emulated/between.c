/* SPDX-License-Identifier: Apache-2.0
 * What blocks do to each other: sums in global memory, numbers given out in
 * order, and turns that are waited for. Between two of these other blocks run,
 * so that who forgets to wait is overtaken under some schedule. */
#include "machine.h"

/* Each number on its own, as on a chip, where a pair is not one access. */
void emu_red_add(u32 line, float *p, u32 count, int guard, const float *x) {
    Fiber *f = emu_now;
    count_record(f, EMU_COUNT_ST_GLOBAL, line, guard ? 4 * count : 0, 0, p);
    if (!guard ||
        !global_check(f, line, p, 4 * count, 4 * count, EMU_COUNT_ST_GLOBAL))
        return;
    for (u32 i = 0; i < count; i++)
        p[i] += x[i];
    fiber_yield(f);
}

static void wake(Block *b, const u32 *p) {
    for (u32 i = 0; b->live && i < b->nthreads; i++) {
        Fiber *f = &b->fiber[i];
        if (f->wait.op != WAIT_TURN || f->wait.a != p || f->wait.value != *p)
            continue;
        f->wait.op = WAIT_NONE;
        warp_wake(f->warp, 1u << f->lane);
    }
}

u32 emu_count_up(u32 line, u32 *p) {
    Fiber *f = emu_now;
    Emu *e = f->block->emu;
    count_record(f, EMU_COUNT_ST_GLOBAL, line, 4, 0, p);
    if (!global_check(f, line, p, 4, 4, EMU_COUNT_ST_GLOBAL))
        return 0;
    u32 before = (*p)++;
    for (u32 i = 0; i < e->resident; i++)
        wake(&e->block[i], p);
    fiber_yield(f);
    return before;
}

void emu_wait_turn(u32 line, const u32 *p, u32 turn) {
    Fiber *f = emu_now;
    if (!global_check(f, line, p, 4, 4, EMU_COUNT_LD_GLOBAL) || *p == turn)
        return;
    f->wait = (Wait){.op = WAIT_TURN, .line = line, .a = p, .value = turn};
    fiber_block(f);
}
