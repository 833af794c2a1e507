/* SPDX-License-Identifier: Apache-2.0
 * What each line costs: warp instructions, cycles of shared memory against
 * the fewest possible, sectors of DRAM. Lanes run one after another, so their
 * accesses are kept until the next collective and then paired by order. */
#include <stdlib.h>
#include <string.h>

#include "machine.h"

EmuCount *count_at(Emu *e, u32 line, int class) {
    static _Thread_local EmuCount nowhere;
    EmuReport *r = e->report;
    if (line >= r->lines) {
        u32 lines = line + 512;
        void *p = realloc(r->count, lines * sizeof *r->count);
        if (!p) {
            e->no_memory = e->stop = true;
            return &nowhere;
        }
        r->count = p;
        memset(r->count + r->lines, 0, (lines - r->lines) * sizeof *r->count);
        r->lines = lines;
    }
    return &r->count[line][class];
}

u32 count_touch(Buffer *b, uintptr_t p, u32 bytes) {
    u64 base = b->start / 32, fresh = 0;
    for (u64 s = p / 32; s <= (p + bytes - 1) / 32; s++) {
        u32 *word = &b->touched[(s - base) / 32], bit = 1u << (s - base) % 32;
        fresh += !(*word & bit);
        *word |= bit;
    }
    return (u32)fresh * 32;
}

/* ---- shared memory ------------------------------------------------------ */

/* Cycles for n words of up to 32 lanes: the fullest of the 32 banks, equal
 * words counted once. */
static u32 waves_of(const u32 *word, u32 n) {
    u32 seen[LANES][LANES], depth[LANES] = {0}, most = 0;
    for (u32 i = 0; i < n; i++) {
        u32 bank = word[i] % LANES, j = 0;
        while (j < depth[bank] && seen[bank][j] != word[i])
            j++;
        if (j == depth[bank])
            seen[bank][depth[bank]++] = word[i];
        if (depth[bank] > most)
            most = depth[bank];
    }
    return most;
}

/* The common case: every address in banks of its own. */
static bool all_differ(const u32 *addr, u32 n, u32 bytes) {
    u32 seen = 0;
    for (u32 i = 0; i < n; i++) {
        u32 bit = 1u << addr[i] / bytes % (LANES * 4 / bytes);
        if (seen & bit)
            return false;
        seen |= bit;
    }
    return true;
}

/* Wide accesses go in groups of lanes that could fill the banks once. */
static void count_waves(EmuCount *c, const u32 *addr, u32 n, u32 bytes) {
    u32 words = bytes < 4 ? 1 : bytes / 4, step = LANES / words;
    for (u32 i = 0; i < n; i += step) {
        u32 word[LANES], filled = 0;
        if (all_differ(addr + i, n - i < step ? n - i : step, 4 * words)) {
            c->waves++;
            c->ideal++;
            continue;
        }
        for (u32 j = i; j < n && j < i + step; j++)
            for (u32 k = 0; k < words; k++)
                word[filled++] = addr[j] / 4 + k;
        c->waves += waves_of(word, filled);
        c->ideal += 1;
    }
}

void count_ldmatrix(Emu *e, u32 line, const u32 *addr, u32 rows) {
    if (e->config.count)
        count_waves(count_at(e, line, EMU_COUNT_LDMATRIX), addr, rows, 16);
}

/* ---- global memory ------------------------------------------------------ */

/* Distinct sectors, kept in ascending order: lanes mostly come so. */
static u32 sectors_of(const u64 *address, u32 n) {
    u64 s[LANES];
    u32 distinct = 0;
    for (u32 i = 0; i < n; i++) {
        u64 x = address[i] / 32;
        u32 at = distinct;
        while (at && s[at - 1] > x)
            at--;
        if (at && s[at - 1] == x)
            continue;
        memmove(s + at + 1, s + at, (distinct - at) * sizeof s[0]);
        s[at] = x;
        distinct++;
    }
    return distinct;
}

/* ---- grouping ----------------------------------------------------------- */

void count_record(Fiber *f, int class, u32 line, u32 bytes, u32 shared,
                  const void *global) {
    Warp *w = f->warp;
    if (!w->block->emu->config.count)
        return;
    if (w->records[f->lane] == RECORDS)
        count_flush(w);
    w->record[f->lane][w->records[f->lane]++] = (Record){
        (u16)line, (u8) class, (u8)bytes, shared, (u64)(uintptr_t)global};
}

static void count_group(Emu *e, const Record *const *r, u32 n) {
    EmuCount *c = count_at(e, r[0]->line, r[0]->class);
    u32 shared[LANES], nshared = 0, nglobal = 0, bytes = 2;
    u64 global[LANES];
    for (u32 i = 0; i < n; i++) {
        if (!r[i]->bytes)
            continue;
        bytes = r[i]->bytes;
        c->lanes++;
        if (r[i]->shared)
            shared[nshared++] = r[i]->shared;
        if (r[i]->global)
            global[nglobal++] = r[i]->global;
    }
    c->instructions++;
    if (nshared)
        count_waves(c, shared, nshared, bytes);
    if (nglobal)
        c->sectors += sectors_of(global, nglobal);
}

/* Pairs the heads of the lanes' lists that stand on one line: lanes of a warp
 * meet the same accesses in the same order, save in guarded branches. */
void count_flush(Warp *w) {
    u8 done[LANES] = {0};
    for (;;) {
        const Record *group[LANES];
        u32 n = 0;
        for (u32 l = 0; l < LANES; l++) {
            if (done[l] == w->records[l])
                continue;
            const Record *r = &w->record[l][done[l]];
            if (n && (r->line != group[0]->line || r->class != group[0]->class))
                continue;
            group[n++] = r;
            done[l]++;
        }
        if (!n)
            break;
        count_group(w->block->emu, group, n);
    }
    memset(w->records, 0, sizeof w->records);
}
