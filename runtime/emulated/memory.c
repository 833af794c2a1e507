/* SPDX-License-Identifier: Apache-2.0
 * Loads and stores: bounds, alignment, exact extents of tensors. A faulty
 * access is reported and not carried out; a faulty load gives NaN. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine.h"

/* ---- names and tensors -------------------------------------------------- */

int emu_buffer(Emu *e, const void *p, size_t bytes, const char *name,
               int access) {
    Buffer *grown = realloc(e->buffer, (e->nbuffer + 1) * sizeof *grown);
    if (!grown)
        return ERR_MEMORY;
    e->buffer = grown;
    Buffer b = {
        .start = (uintptr_t)p, .end = (uintptr_t)p + bytes, .access = access};
    snprintf(b.name, sizeof b.name, "%s", name);
    b.touched = calloc(bytes / 1024 + 2, 4);
    if (access == EMU_WRITE_ONCE)
        b.stored = calloc(bytes / 64 + 2, 4);
    if (!b.touched || (access == EMU_WRITE_ONCE && !b.stored)) {
        free(b.touched);
        free(b.stored);
        return ERR_MEMORY;
    }
    e->buffer[e->nbuffer++] = b;
    return 0;
}

int emu_region(Emu *e, uint32_t offset, uint32_t bytes, const char *name) {
    Region *grown = realloc(e->region, (e->nregion + 1) * sizeof *grown);
    if (!grown)
        return ERR_MEMORY;
    e->region = grown;
    Region *r = &e->region[e->nregion++];
    r->start = SMEM_BASE + offset;
    r->end = r->start + bytes;
    snprintf(r->name, sizeof r->name, "%s", name);
    return 0;
}

void emu_forget(Emu *e) {
    for (u32 i = 0; i < e->nbuffer; i++) {
        free(e->buffer[i].touched);
        free(e->buffer[i].stored);
    }
    free(e->buffer);
    free(e->region);
    e->buffer = NULL;
    e->region = NULL;
    e->nbuffer = e->nregion = e->last_buffer = 0;
}

void buffers_reset(Emu *e) {
    for (u32 i = 0; i < e->nbuffer; i++) {
        Buffer *b = &e->buffer[i];
        memset(b->touched, 0, ((b->end - b->start) / 1024 + 2) * 4);
        if (b->stored)
            memset(b->stored, 0, ((b->end - b->start) / 64 + 2) * 4);
    }
}

void smem_name(const Emu *e, u32 addr, char out[64]) {
    for (u32 i = 0; i < e->nregion; i++) {
        const Region *r = &e->region[i];
        if (addr < r->start || addr >= r->end)
            continue;
        snprintf(out, 64, "%s + %u", r->name, addr - r->start);
        return;
    }
    snprintf(out, 64, "shared memory at %d", (int)(addr - SMEM_BASE));
}

/* ---- shared memory ------------------------------------------------------ */

u8 *smem_at(Fiber *f, u32 line, u32 addr, u32 bytes) {
    Emu *e = f->block->emu;
    u32 offset = addr - SMEM_BASE;
    char name[64];
    if (offset <= e->smem_bytes && bytes <= e->smem_bytes - offset &&
        addr % bytes == 0)
        return f->block->smem + offset;
    if (addr % bytes) {
        smem_name(e, addr, name);
        report_fault(f, EMU_ALIGNMENT, line, 0, "%u bytes at %s", bytes, name);
    } else {
        report_fault(f, EMU_BOUNDS, line, 0,
                     "%u bytes at %d of shared memory, which has %u", bytes,
                     (int)offset, e->smem_bytes);
    }
    return NULL;
}

void emu_ld_shared(u32 line, u32 addr, u32 bytes, void *out) {
    Fiber *f = emu_now;
    const u8 *p = smem_at(f, line, addr, bytes);
    count_record(f, EMU_COUNT_LD_SHARED, line, bytes, addr, NULL);
    if (!p) {
        memset(out, 0xff, bytes);
        return;
    }
    memcpy(out, p, bytes);
    shadow_read(f, 1u << f->lane, line, addr, bytes);
}

void emu_st_shared(u32 line, u32 addr, u32 bytes, const void *in) {
    Fiber *f = emu_now;
    u8 *p = smem_at(f, line, addr, bytes);
    count_record(f, EMU_COUNT_ST_SHARED, line, bytes, addr, NULL);
    if (!p)
        return;
    memcpy(p, in, bytes);
    shadow_write(f, line, addr, bytes, CELL_SET);
}

/* ---- global memory ------------------------------------------------------ */

/* Does the access fit this tensor in every way but alignment? */
static bool serves(const Buffer *b, uintptr_t p, u32 bytes, bool write) {
    return p >= b->start && p < b->end && bytes <= b->end - p &&
           !(write && b->access == EMU_READ);
}

/* Tensors may lie in one another (interleaved heads): one that serves is
 * preferred to one that only holds the address. */
static Buffer *buffer_of(Emu *e, uintptr_t p, u32 bytes, bool write) {
    Buffer *holds = NULL;
    if (e->last_buffer < e->nbuffer &&
        serves(&e->buffer[e->last_buffer], p, bytes, write))
        return &e->buffer[e->last_buffer];
    for (u32 i = 0; i < e->nbuffer; i++) {
        Buffer *b = &e->buffer[i];
        if (serves(b, p, bytes, write)) {
            e->last_buffer = i;
            return b;
        }
        if (p >= b->start && p < b->end)
            holds = b;
    }
    return holds;
}

/* The tensor whose end or start lies nearest to p. */
static const Buffer *nearest(const Emu *e, uintptr_t p, i64 *past) {
    const Buffer *best = NULL;
    u64 least = UINT64_MAX;
    for (u32 i = 0; i < e->nbuffer; i++) {
        const Buffer *b = &e->buffer[i];
        i64 d = p < b->start ? (i64)(p - b->start) : (i64)(p - b->end);
        u64 far = d < 0 ? 0 - (u64)d : (u64)d;
        if (far < least) {
            least = far;
            best = b;
            *past = d;
        }
    }
    return best;
}

static void report_outside(Fiber *f, u32 line, uintptr_t p, u32 bytes) {
    i64 past = 0;
    const Buffer *b = nearest(f->block->emu, p, &past);
    if (!b)
        report_fault(f, EMU_BOUNDS, line, 0,
                     "%u bytes at %#llx; no tensor is known", bytes, (u64)p);
    else if (past < 0)
        report_fault(f, EMU_BOUNDS, line, 0,
                     "%u bytes, %llu before the start of %s", bytes,
                     0 - (u64)past, b->name);
    else
        report_fault(f, EMU_BOUNDS, line, 0,
                     "%u bytes, %llu after the end of %s (%llu bytes)", bytes,
                     (u64)past, b->name, (u64)(b->end - b->start));
}

/* Notes a store; true when some of the bytes had one before. */
static bool store_twice(Buffer *b, uintptr_t p, u32 bytes) {
    bool twice = false;
    for (u64 i = (p - b->start) / 2; i < (p + bytes - b->start + 1) / 2; i++) {
        twice |= b->stored[i / 32] >> i % 32 & 1;
        b->stored[i / 32] |= 1u << i % 32;
    }
    return twice;
}

bool global_check(Fiber *f, u32 line, const void *pointer, u32 bytes, u32 align,
                  int class) {
    bool write = class == EMU_COUNT_ST_GLOBAL;
    uintptr_t p = (uintptr_t)pointer;
    Buffer *b = buffer_of(f->block->emu, p, bytes, write);
    if (!b) {
        report_outside(f, line, p, bytes);
        return false;
    }
    if (bytes > b->end - p) {
        report_fault(f, EMU_BOUNDS, line, 0,
                     "%u bytes at %s + %llu, %llu past its end", bytes, b->name,
                     (u64)(p - b->start), (u64)(bytes - (b->end - p)));
        return false;
    }
    if (p % align) {
        report_fault(f, EMU_ALIGNMENT, line, 0,
                     "%u bytes at %s + %llu, an address of alignment %u", align,
                     b->name, (u64)(p - b->start), (u32)(p & -p));
        return false;
    }
    if (write && b->access == EMU_READ) {
        report_fault(f, EMU_READ_ONLY, line, 0, "%s + %llu", b->name,
                     (u64)(p - b->start));
        return false;
    }
    if (write && b->stored && store_twice(b, p, bytes))
        report_fault(f, EMU_TWICE, line, 0, "%s + %llu", b->name,
                     (u64)(p - b->start));
    if (f->block->emu->config.count)
        count_at(f->block->emu, line, class)->dram_bytes +=
            count_touch(b, p, bytes);
    return true;
}

void emu_ld_global(u32 line, const void *p, u32 bytes, int guard, void *out) {
    Fiber *f = emu_now;
    count_record(f, EMU_COUNT_LD_GLOBAL, line, guard ? bytes : 0, 0, p);
    if (!guard)
        memset(out, 0, bytes);
    else if (global_check(f, line, p, bytes, bytes, EMU_COUNT_LD_GLOBAL))
        memcpy(out, p, bytes);
    else
        memset(out, 0xff, bytes);
}

void emu_st_global(u32 line, void *p, u32 bytes, int guard, const void *in) {
    Fiber *f = emu_now;
    count_record(f, EMU_COUNT_ST_GLOBAL, line, guard ? bytes : 0, 0, p);
    if (guard && global_check(f, line, p, bytes, bytes, EMU_COUNT_ST_GLOBAL))
        memcpy(p, in, bytes);
}
