/* SPDX-License-Identifier: Apache-2.0
 * Warp collectives: a lane leaves its arguments and blocks; the last lane of
 * the mask to come carries the operation out for all. None of them but
 * warp_sync orders memory. */
#include <stdio.h>
#include <string.h>

#include "machine.h"

const char *wait_name(const Wait *w) {
    static const char *const name[] = {"nothing", "shfl",      "ldmatrix",
                                       "mma",     "warp_sync", "barrier",
                                       "turn",    "exit"};
    return name[w->op];
}

/* The lanes that wait like the first of them, as text: "0000ffff at mma (line
 * 12)". Returns those lanes. */
static u32 describe_group(const Warp *w, u32 lanes, char *out, size_t size) {
    const Wait *first = &w->fiber[__builtin_ctz(lanes)]->wait;
    u32 group = 0;
    for (u32 l = lanes; l; l &= l - 1) {
        const Wait *x = &w->fiber[__builtin_ctz(l)]->wait;
        if (x->op == first->op && x->line == first->line)
            group |= l & -l;
    }
    if (first->op == WAIT_EXITED)
        snprintf(out, size, "%08x ended", group);
    else
        snprintf(out, size, "%08x at %s (line %u)", group, wait_name(first),
                 first->line);
    return group;
}

static void diverged(Warp *w, u32 lanes) {
    char text[256] = "";
    Fiber *first = w->fiber[__builtin_ctz(w->at)];
    u32 line[2] = {first->wait.line, 0};
    for (u32 left = lanes; left && strlen(text) < 180;) {
        size_t n = strlen(text);
        if (n)
            n += (size_t)snprintf(text + n, sizeof text - n, "; ");
        u32 group = describe_group(w, left, text + n, sizeof text - n);
        const Wait *x = &w->fiber[__builtin_ctz(group)]->wait;
        if (x->line != line[0] && !line[1])
            line[1] = x->line;
        left &= ~group;
    }
    report_fault(first, EMU_DIVERGENCE, line[0], line[1], "lanes %s", text);
}

/* Lanes in barriers of the whole block, or gone, come to no collective. */
void warp_check_stuck(Warp *w) {
    if (!w->at || w->block->emu->stop)
        return;
    u32 away = 0, wanted = 0;
    for (u32 l = w->lanes; l; l &= l - 1) {
        const Wait *x = &w->fiber[__builtin_ctz(l)]->wait;
        if (x->op == WAIT_EXITED || (x->op == WAIT_BARRIER && !x->kind))
            away |= l & -l;
        else if (x->op != WAIT_BARRIER)
            wanted |= x->mask;
    }
    if (!(wanted & (away | ~w->lanes)) && w->at != w->lanes)
        return;
    diverged(w, w->lanes);
    w->block->emu->stop = true;
}

/* ---- the operations ---------------------------------------------------- */

static void run_shfl(Warp *w, u32 mask) {
    u32 result[LANES];
    for (u32 l = mask; l; l &= l - 1) {
        u32 i = (u32)__builtin_ctz(l);
        const Wait *x = &w->fiber[i]->wait;
        u32 from = x->kind == EMU_XOR   ? i ^ (x->lane & 31)
                   : x->kind == EMU_IDX ? x->lane & 31
                   : x->lane > i        ? i
                                        : i - x->lane;
        if (!(mask >> from & 1)) {
            report_fault(w->fiber[i], EMU_DIVERGENCE, x->line, 0,
                         "shfl from lane %u, which mask %08x leaves out", from,
                         mask);
            from = i;
        }
        result[i] = w->fiber[from]->wait.value;
    }
    for (u32 l = mask; l; l &= l - 1) {
        u32 i = (u32)__builtin_ctz(l);
        w->fiber[i]->wait.value = result[i];
    }
}

static void run_warp_sync(Warp *w, u32 mask) {
    Block *b = w->block;
    Meeting m = {0};
    for (u32 l = mask; l; l &= l - 1)
        meeting_join(&m, w->fiber[__builtin_ctz(l)]);
    u32 epoch = ++b->tick;
    for (u32 l = mask; l; l &= l - 1)
        meeting_leave(&m, w->fiber[__builtin_ctz(l)], epoch);
    meeting_end(&m, b);
}

static bool same_clock(const Warp *w) {
    const Fiber *first = w->fiber[0];
    for (u32 i = 1; i < LANES; i++)
        if (w->fiber[i]->base != first->base ||
            w->fiber[i]->epoch != first->epoch)
            return false;
    return true;
}

/* Row r of a tile is read by the lanes that receive elements of it. */
static void read_row(Warp *w, bool same, u32 line, u32 addr, u32 lanes) {
    if (same) {
        shadow_read(w->fiber[__builtin_ctz(lanes)], lanes, line, addr, 16);
        return;
    }
    for (; lanes; lanes &= lanes - 1)
        shadow_read(w->fiber[__builtin_ctz(lanes)], lanes & -lanes, line, addr,
                    16);
}

static void spread(Warp *w, u32 tile, bool trans, const u8 row[8][16]) {
    for (u32 i = 0; i < LANES; i++) {
        u32 *out = &w->fiber[i]->wait.out[tile];
        u32 t = i % 4, g = i / 4;
        if (!trans) {
            memcpy(out, row[g] + 4 * t, 4);
            continue;
        }
        u16 lo, hi;
        memcpy(&lo, row[2 * t] + 2 * g, 2);
        memcpy(&hi, row[2 * t + 1] + 2 * g, 2);
        *out = lo | (u32)hi << 16;
    }
}

static void run_ldmatrix(Warp *w) {
    const Wait *first = &w->fiber[0]->wait;
    u32 count = first->kind & 7, line = first->line, addr[LANES];
    bool trans = first->kind & 8, same = same_clock(w);
    for (u32 i = 0; i < count; i++) {
        u8 row[8][16];
        for (u32 r = 0; r < 8; r++) {
            Fiber *f = w->fiber[8 * i + r];
            addr[8 * i + r] = f->wait.value;
            const u8 *p = smem_at(f, line, f->wait.value, 16);
            if (!p) {
                memset(row[r], 0xff, 16);
                continue;
            }
            memcpy(row[r], p, 16);
            read_row(w, same, line, f->wait.value,
                     trans ? 0x11111111u << r / 2 : 0xfu << 4 * r);
        }
        spread(w, i, trans, row);
    }
    count_ldmatrix(w->block->emu, line, addr, 8 * count);
}

static void run_mma(Warp *w) {
    const Wait *wait[LANES];
    for (u32 i = 0; i < LANES; i++)
        wait[i] = &w->fiber[i]->wait;
    mma_run(wait[0]->kind, wait);
    w->block->emu->report->mma_flops += mma_flops(wait[0]->kind);
}

static void run(Warp *w, u32 mask) {
    Emu *e = w->block->emu;
    const Wait *first = &w->fiber[__builtin_ctz(mask)]->wait;
    static const u8 class[] = {
        [WAIT_SHFL] = EMU_COUNT_SHFL,
        [WAIT_LDMATRIX] = EMU_COUNT_LDMATRIX,
        [WAIT_MMA] = EMU_COUNT_MMA,
        [WAIT_WARP_SYNC] = EMU_COUNT_SYNC,
    };
    switch (first->op) {
    case WAIT_SHFL:
        run_shfl(w, mask);
        break;
    case WAIT_LDMATRIX:
        run_ldmatrix(w);
        break;
    case WAIT_MMA:
        run_mma(w);
        break;
    case WAIT_WARP_SYNC:
        run_warp_sync(w, mask);
        break;
    }
    if (!e->config.count)
        return;
    EmuCount *c = count_at(e, first->line, class[first->op]);
    c->instructions++;
    c->lanes += (u32)__builtin_popcount(mask);
    count_flush(w);
}

/* ---- the meeting of lanes ---------------------------------------------- */

/* All lanes of the mask have come: do they mean the same? */
static bool agree(Warp *w, const Fiber *f) {
    if (!w->mixed)
        return true;
    for (u32 l = f->wait.mask; l; l &= l - 1) {
        const Wait *x = &w->fiber[__builtin_ctz(l)]->wait;
        if (x->op != f->wait.op || x->kind != f->wait.kind ||
            x->line != f->wait.line || x->mask != f->wait.mask)
            return false;
    }
    return true;
}

/* Notes whether all who wait came for the same thing. */
static void compare(Warp *w, const Wait *x) {
    const Wait *h = &w->head;
    if (!w->at) {
        w->head = *x;
        w->mixed = false;
    } else if (x->op != h->op || x->kind != h->kind || x->line != h->line ||
               x->mask != h->mask) {
        w->mixed = true;
    }
}

static void meet(Fiber *f) {
    Warp *w = f->warp;
    u32 mask = f->wait.mask, self = 1u << f->lane;
    if (!(mask & self)) {
        report_fault(f, EMU_DIVERGENCE, f->wait.line, 0,
                     "%s by lane %u, which its mask %08x leaves out",
                     wait_name(&f->wait), f->lane, mask);
        emu_stop(f);
    }
    compare(w, &f->wait);
    w->at |= self;
    if (mask & ~w->at) {
        fiber_block(f);
        f->wait.op = WAIT_NONE;
        return;
    }
    if (!agree(w, f)) {
        diverged(w, w->at);
        emu_stop(f);
    }
    run(w, mask);
    w->at &= ~mask;
    f->wait.op = WAIT_NONE;
    warp_wake(w, mask);
    fiber_yield(f);
}

void emu_warp_sync(u32 line, u32 mask) {
    Fiber *f = emu_now;
    f->wait = (Wait){.op = WAIT_WARP_SYNC, .line = line, .mask = mask};
    meet(f);
}

u32 emu_shfl(u32 line, u32 mode, u32 mask, u32 value, u32 lane) {
    Fiber *f = emu_now;
    f->wait = (Wait){.op = WAIT_SHFL,
                     .kind = mode,
                     .line = line,
                     .mask = mask,
                     .value = value,
                     .lane = lane};
    meet(f);
    return f->wait.value;
}

void emu_ldmatrix(u32 line, u32 count, int trans, u32 addr, u32 *r) {
    Fiber *f = emu_now;
    f->wait = (Wait){.op = WAIT_LDMATRIX,
                     .kind = count | (trans ? 8u : 0),
                     .line = line,
                     .mask = UINT32_MAX,
                     .value = addr,
                     .out = r};
    meet(f);
}

void emu_mma(u32 line, u32 shape, float *c, const u32 *a, const u32 *b) {
    Fiber *f = emu_now;
    f->wait = (Wait){.op = WAIT_MMA,
                     .kind = shape,
                     .line = line,
                     .mask = UINT32_MAX,
                     .c = c,
                     .a = a,
                     .b = b};
    meet(f);
}
