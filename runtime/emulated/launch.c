/* SPDX-License-Identifier: Apache-2.0
 * One launch: memory for the resident blocks, blocks started in shuffled
 * order, the host's side of the scheduler, the end of threads. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "machine.h"

/* ---- pools ------------------------------------------------------------- */

static void block_free(Block *b) {
    for (u32 i = 0; i < BARRIERS; i++)
        meeting_end(&b->barrier[i].meeting, b);
    for (u32 i = 0; b->fiber && i < b->emu->pool_threads; i++) {
        clock_release(b, b->fiber[i].base);
        free(b->fiber[i].copy);
        fiber_end(&b->fiber[i]);
    }
    for (Clock *c = b->free_clocks, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    free(b->fiber);
    free(b->warp);
    free(b->smem);
    free(b->shadow.cell);
    free(b->shadow.halves);
    free(b->shadow.more);
    memset(b, 0, sizeof *b);
}

void pool_free(Emu *e) {
    for (u32 i = 0; i < e->nblock; i++)
        block_free(&e->block[i]);
    if (e->stacks)
        munmap(e->stacks, e->nstack * e->stack_stride);
    free(e->block);
    free(e->ready);
    e->block = NULL;
    e->ready = NULL;
    e->stacks = NULL;
    e->nblock = e->pool_threads = e->pool_smem = 0;
    e->nstack = 0;
}

/* A page nobody may touch lies below each stack; the odd stride keeps equal
 * depths of neighbours out of the same cache sets. */
static bool stacks_make(Emu *e, size_t count) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    e->stack_stride = fiber_stack_bytes() + page;
    void *p = mmap(NULL, count * e->stack_stride, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return false;
    e->stacks = p;
    e->nstack = count;
    for (size_t i = 0; i < count; i++)
        if (mprotect(e->stacks + i * e->stack_stride, page, PROT_NONE))
            return false;
    return true;
}

static bool block_make(Emu *e, Block *b, u32 index, u32 threads, u32 smem) {
    u32 chunks = (smem + CHUNK - 1) / CHUNK + 1;
    b->emu = e;
    b->fiber = calloc(threads, sizeof *b->fiber);
    b->warp = calloc((threads + LANES - 1) / LANES, sizeof *b->warp);
    b->smem = malloc(chunks * CHUNK);
    b->shadow.cell = aligned_alloc(sizeof(Cell), chunks * sizeof(Cell));
    if (!b->fiber || !b->warp || !b->smem || !b->shadow.cell)
        return false;
    for (u32 i = 0; i < threads; i++) {
        Fiber *f = &b->fiber[i];
        size_t page = e->stack_stride - fiber_stack_bytes();
        f->stack_bytes = fiber_stack_bytes();
        f->stack =
            e->stacks + page + ((size_t)index * threads + i) * e->stack_stride;
    }
    return true;
}

/* Grows what earlier launches left; a launch of no more threads and shared
 * memory allocates nothing. */
int pool_reserve(Emu *e) {
    u32 threads = e->dim.x * e->dim.y * e->dim.z;
    u32 resident = e->config.resident > 1 ? (u32)e->config.resident : 1;
    if (resident <= e->nblock && threads <= e->pool_threads &&
        e->smem_bytes <= e->pool_smem) {
        e->resident = resident;
        return 0;
    }
    pool_free(e);
    u32 warps = (threads + LANES - 1) / LANES;
    e->block = calloc(resident, sizeof *e->block);
    e->ready = calloc((size_t)resident * warps, sizeof *e->ready);
    bool ok =
        e->block && e->ready && stacks_make(e, (size_t)resident * threads);
    e->nblock = e->resident = e->block ? resident : 0;
    e->pool_threads = threads;
    e->pool_smem = e->smem_bytes;
    e->agents = warps * LANES;
    for (u32 i = 0; ok && i < resident; i++)
        ok = block_make(e, &e->block[i], i, threads, e->smem_bytes);
    if (!ok)
        pool_free(e);
    return ok ? 0 : ERR_MEMORY;
}

/* ---- blocks ------------------------------------------------------------ */

/* Nobody knows anything of anybody; lanes that do not exist never matter. */
static Clock *first_clock(Block *b) {
    Clock *c = clock_new(b);
    if (!c)
        return NULL;
    for (u32 i = 0; i < b->emu->agents; i++)
        c->at[i] = i < b->nthreads ? 0 : UINT32_MAX;
    c->floor = 0;
    return c;
}

static void warps_start(Block *b, Clock *clock) {
    for (u32 i = 0; i < b->nwarps; i++) {
        Warp *w = &b->warp[i];
        w->block = b;
        w->index = i;
        w->lanes = w->ready = w->at = w->exited = 0;
        w->place = -1;
        memset(w->records, 0, sizeof w->records);
    }
    for (u32 i = 0; i < b->nthreads; i++) {
        Fiber *f = &b->fiber[i];
        f->block = b;
        f->warp = &b->warp[i / LANES];
        f->thread = f->agent = i;
        f->lane = i % LANES;
        f->wait.op = WAIT_NONE;
        f->first = f->last = f->group = 0;
        f->epoch = b->tick;
        clock_release(b, f->base);
        f->base = clock;
        clock->refs++;
        f->warp->fiber[f->lane] = f;
        f->warp->lanes |= 1u << f->lane;
        fiber_start(f);
    }
    for (u32 i = 0; i < b->nwarps; i++)
        warp_wake(&b->warp[i], b->warp[i].lanes);
}

/* The next block of the grid, by a stride prime to their number. */
static void block_take(Emu *e, u32 id[3]) {
    u64 i = (e->next_block++ * e->stride + e->offset) % e->blocks;
    id[0] = (u32)(i % e->grid.x);
    id[1] = (u32)(i / e->grid.x % e->grid.y);
    id[2] = (u32)(i / e->grid.x / e->grid.y);
}

void block_start(Block *b) {
    Emu *e = b->emu;
    block_take(e, b->id);
    b->nthreads = b->live = e->dim.x * e->dim.y * e->dim.z;
    b->nwarps = (b->nthreads + LANES - 1) / LANES;
    b->tick = 1;
    for (u32 i = 0; i < BARRIERS; i++) {
        meeting_end(&b->barrier[i].meeting, b);
        memset(&b->barrier[i], 0, sizeof b->barrier[i]);
    }
    memset(b->smem, 0xff, e->smem_bytes); /* NaN in every format */
    shadow_reset(b);
    Clock *clock = first_clock(b);
    if (!clock) {
        e->no_memory = e->stop = true;
        return;
    }
    warps_start(b, clock);
    clock_release(b, clock);
}

static void thread_forget_copies(Fiber *f) {
    if (f->first != f->last)
        report_fault(f, EMU_EXIT_IN_FLIGHT, f->copy[f->first].line, 0,
                     "%u cp.async were never waited for", f->last - f->first);
}

void thread_exit(Fiber *f) {
    Block *b = f->block;
    thread_forget_copies(f);
    f->wait = (Wait){.op = WAIT_EXITED};
    f->warp->exited |= 1u << f->lane;
    b->live--;
    barrier_after_exit(b);
    if (f->warp->exited == f->warp->lanes)
        count_flush(f->warp);
    fiber_block(f);
}

/* ---- the launch -------------------------------------------------------- */

static u64 divisor(u64 a, u64 b) {
    while (b) {
        u64 r = a % b;
        a = b;
        b = r;
    }
    return a;
}

static void shuffle_blocks(Emu *e) {
    e->next_block = 0;
    e->offset = emu_random(e) % e->blocks;
    e->stride = emu_random(e) % e->blocks + 1;
    while (divisor(e->stride, e->blocks) != 1)
        e->stride++;
}

/* Runs fibers until every block has ended or the launch is given up. */
static void run_blocks(Emu *e) {
    u32 running = 0;
    for (; running < e->resident && running < e->blocks; running++)
        block_start(&e->block[running]);
    while (running && !e->stop) {
        if (!e->nready) {
            report_deadlock(e);
            return;
        }
        Warp *w = e->ready[emu_random(e) % e->nready];
        e->report->switches++;
        fiber_switch(&e->host, w->fiber[__builtin_ctz(w->ready)], false);
        for (u32 i = 0; i < e->resident; i++) {
            if (e->stop || e->block[i].live || !e->block[i].nthreads)
                continue;
            e->block[i].nthreads = 0;
            if (e->next_block < e->blocks)
                block_start(&e->block[i]);
            else
                running--;
        }
    }
}

static bool limits_hold(Emu *e, EmuReport *r) {
    u64 threads = (u64)e->dim.x * e->dim.y * e->dim.z;
    const char *what = NULL;
    u64 value = 0, limit = 0;
    if (!threads || threads > THREADS_LIMIT) {
        what = "threads of a block";
        value = threads;
        limit = THREADS_LIMIT;
    } else if (e->smem_bytes > SMEM_LIMIT) {
        what = "bytes of shared memory";
        value = e->smem_bytes;
        limit = SMEM_LIMIT;
    } else if (e->grid.y > 65535 || e->grid.z > 65535) {
        what = "blocks in y or z";
        value = e->grid.y > 65535 ? e->grid.y : e->grid.z;
        limit = 65535;
    }
    if (!what)
        return true;
    EmuFault *f = &r->fault[r->nfault++];
    f->kind = EMU_LIMIT;
    f->times = r->faults = 1;
    snprintf(f->text, sizeof f->text, "%llu %s; the limit is %llu", value, what,
             limit);
    return false;
}

int emu_launch(Emu *e, const EmuConfig *config, EmuEntry entry,
               const void *args, EmuDim grid, EmuDim block, uint32_t smem_bytes,
               EmuReport *report) {
    e->config = *config;
    e->report = report;
    e->entry = entry;
    e->args = args;
    e->grid = grid;
    e->dim = block;
    e->smem_bytes = smem_bytes;
    e->blocks = (u64)grid.x * grid.y * grid.z;
    e->rng = (config->seed + 1) * 0x9e3779b97f4a7c15ull | 1;
    e->stop = e->no_memory = false;
    e->nready = 0;
    if (!limits_hold(e, report))
        return ERR_REQUEST;
    if (!e->blocks)
        return 0;
    if (pool_reserve(e))
        return ERR_MEMORY;
    buffers_reset(e);
    for (u32 i = 0; i < e->nblock; i++)
        e->block[i].nthreads = 0;
    shuffle_blocks(e);
    Fiber *outer = emu_now;
    fiber_host(&e->host);
    run_blocks(e);
    emu_now = outer;
    return e->no_memory ? ERR_MEMORY : 0;
}
