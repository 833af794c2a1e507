/* SPDX-License-Identifier: Apache-2.0
 * Inside the emulated device. A launch runs blocks of warps of fibers; a
 * fiber leaves the processor only inside a collective, a barrier or a wait.
 * Types first, then prototypes by file. */
#ifndef ATTNC_EMU_MACHINE_H
#define ATTNC_EMU_MACHINE_H

#include "emu.h"
#include "gen.h"

enum {
    LANES = 32,
    SMEM_BASE = 1024,    /* shared addresses start here, as on sm_80 */
    SMEM_LIMIT = 232448, /* the most any chip lets a block have */
    THREADS_LIMIT = 1024,
    BARRIERS = 16,
    RECORDS = 32, /* accesses of a lane between collectives */
    CHUNK = 16,   /* bytes of shared memory per shadow cell */
    HALVES = 8,   /* cells of a split chunk, 2 bytes each */
    CELL_READERS = 4
};

/* ---- vector clocks ----------------------------------------------------- */

/* What one or more threads know: at[a] is the latest epoch of agent a whose
 * accesses are ordered before theirs. Shared by all who left a barrier
 * together. Agents are the threads; asynchronous engines will follow. */
typedef struct Clock {
    u32 refs;
    u32 floor; /* smallest at[]: older epochs are ordered for sure */
    struct Clock *next;
    u32 at[];
} Clock;

/* Joins the clocks of those who arrive at a barrier. */
typedef struct Meeting {
    Clock *sum;  /* owned */
    Clock *last; /* the clock joined last; a reference is held */
} Meeting;

/* ---- shadow of shared memory ------------------------------------------- */

typedef struct Reader {
    u32 epoch, lanes;
    u16 warp, line;
} Reader;

/* Readers beyond CELL_READERS, chained: none is ever dropped. */
typedef struct More {
    Reader r[5];
    u32 next; /* index + 1; 0: none. Of a free one too */
} More;

enum cell_state { CELL_EMPTY, CELL_SET, CELL_FLIGHT, CELL_SPLIT };

/* State of 16 bytes, or of 2 when the chunk is split: 64 bytes, one line. */
typedef struct Cell {
    u32 epoch; /* of the last write */
    u16 agent, line;
    u8 state; /* enum cell_state */
    u8 readers;
    u16 pad;
    u32 more; /* first More; CELL_SPLIT: the 8 cells; index + 1 */
    Reader r[CELL_READERS];
} Cell;

typedef struct Shadow {
    Cell *cell;             /* per chunk */
    Cell (*halves)[HALVES]; /* of split chunks */
    More *more;
    u32 nhalves, cap_halves, free_halves;
    u32 nmore, cap_more, free_more;
} Shadow;

/* ---- threads ----------------------------------------------------------- */

enum wait_op {
    WAIT_NONE,
    WAIT_SHFL,
    WAIT_LDMATRIX,
    WAIT_MMA,
    WAIT_WARP_SYNC,
    WAIT_BARRIER,
    WAIT_TURN,
    WAIT_EXITED
};

/* What a blocked lane asks for. */
typedef struct Wait {
    u32 op; /* enum wait_op; `kind` refines it */
    u32 kind, line, mask;
    u32 value, lane; /* shfl; ldmatrix: value is the address */
    u32 *out;
    float *c;
    const u32 *a, *b; /* turn: a is where it is, value which */
} Wait;

/* A cp.async between its issue and its wait. */
typedef struct Copy {
    const void *src;
    u32 dst, bytes, valid, line, group;
    bool landed;
} Copy;

typedef struct Fiber {
    void *sp;
    struct Block *block; /* NULL: the host */
    struct Warp *warp;
    u32 thread, lane;
    u32 agent, epoch;
    Clock *base;
    Wait wait;
    Copy *copy; /* copy[first .. last) are in flight */
    u32 first, last, copies;
    u32 group; /* groups committed so far */
    char *stack;
    size_t stack_bytes;
    void *fake, *tsan; /* of the sanitizers */
} Fiber;

/* One access of one lane, kept until its warp's accesses can be grouped. */
typedef struct Record {
    u16 line;
    u8 class, bytes; /* bytes 0: guarded off */
    u32 shared;
    u64 global; /* address, 0: none */
} Record;

typedef struct Warp {
    struct Block *block;
    u32 index;
    u32 lanes;  /* that exist */
    u32 ready;  /* may run */
    u32 at;     /* wait in a collective of the warp */
    Wait head;  /* what the first of them came for */
    bool mixed; /* not all of them came for that */
    u32 exited;
    int place; /* in Emu.ready; -1: not there */
    Fiber *fiber[LANES];
    u8 records[LANES];
    Record record[LANES][RECORDS];
} Warp;

typedef struct Barrier {
    u32 threads; /* expected; 0: unused so far */
    u32 arrived, line;
    u32 votes; /* of block_sync_or */
    Meeting meeting;
} Barrier;

typedef struct Block {
    struct Emu *emu;
    u32 id[3];
    u32 nwarps, nthreads, live;
    u32 tick; /* source of epochs */
    Warp *warp;
    Fiber *fiber;
    u8 *smem;
    Shadow shadow;
    Clock *free_clocks;
    Barrier barrier[BARRIERS];
} Block;

/* ---- the machine ------------------------------------------------------- */

typedef struct Buffer {
    uintptr_t start, end;
    int access;
    char name[32];
    u32 *touched; /* bit per 32-byte sector */
    u32 *stored;  /* EMU_WRITE_ONCE: bit per 2 bytes */
} Buffer;

typedef struct Region {
    u32 start, end;
    char name[32];
} Region;

struct Emu {
    /* one launch */
    EmuConfig config;
    EmuReport *report;
    EmuEntry entry;
    const void *args;
    EmuDim grid, dim;
    u32 smem_bytes;
    u64 rng;
    u64 next_block, blocks, stride, offset; /* shuffled order of blocks */
    bool stop; /* the rest of the launch is given up */
    bool no_memory;
    Fiber host;
    Warp **ready;
    u32 nready;
    /* pools, kept between launches */
    Block *block;
    u32 nblock, resident, agents, pool_threads, pool_smem;
    char *stacks;
    size_t stack_stride, nstack;
    /* tensors and names */
    Buffer *buffer;
    u32 nbuffer;
    u32 last_buffer;
    Region *region;
    u32 nregion;
};

/* The running fiber of this host thread. */
extern __attribute__((visibility("hidden"),
                      tls_model("initial-exec"))) _Thread_local Fiber *emu_now;

/* ---- fiber.c ----------------------------------------------------------- */

size_t fiber_stack_bytes(void);
/* Prepares f to run emu_thread_main on its own stack. */
void fiber_start(Fiber *f);
void fiber_host(Fiber *host);
/* Leaves `from` for `to`; ends `from` when `last`. */
void fiber_switch(Fiber *from, Fiber *to, bool last);
/* Gives back what the sanitizers keep for a fiber. */
void fiber_end(Fiber *f);
/* First function on a fiber's stack; never returns. */
void emu_thread_main(void);

/* ---- schedule.c -------------------------------------------------------- */

u32 emu_random(Emu *e);
void warp_wake(Warp *w, u32 lanes);
void warp_sleep(Warp *w, u32 lanes);
/* Runs something else until the fiber is ready again. */
void fiber_block(Fiber *f);
/* Lets other warps run, now and then. */
void fiber_yield(Fiber *f);
/* Ends the launch from within a fiber; does not return to it. */
void emu_stop(Fiber *f);

/* ---- launch.c ---------------------------------------------------------- */

/* Ready memory for a launch: 0 or ERR_MEMORY. */
int pool_reserve(Emu *e);
void pool_free(Emu *e);
void block_start(Block *b);
/* A kernel returned: the last thing on a fiber's stack. */
void thread_exit(Fiber *f);

/* ---- clock.c ----------------------------------------------------------- */

Clock *clock_new(Block *b); /* refs 1; NULL: out of memory */
void clock_release(Block *b, Clock *c);
void meeting_join(Meeting *m, Fiber *f);
/* Gives f what all who met knew. */
void meeting_leave(Meeting *m, Fiber *f, u32 epoch);
void meeting_end(Meeting *m, Block *b);

/* ---- shadow.c ---------------------------------------------------------- */

/* An access to [addr, addr + bytes) that is inside shared memory and aligned.
 * `lanes`: of f's warp, all with f's clock; f is one of them. */
void shadow_read(Fiber *f, u32 lanes, u32 line, u32 addr, u32 bytes);
void shadow_write(Fiber *f, u32 line, u32 addr, u32 bytes, int state);
/* A copy's bytes become ordinary, written by f now. */
void shadow_land(Fiber *f, u32 line, u32 addr, u32 bytes);
void shadow_reset(Block *b);

/* ---- memory.c ---------------------------------------------------------- */

/* Forgets what an earlier launch touched. */
void buffers_reset(Emu *e);
/* Where a shared address lies; NULL (reported) when outside or misaligned. */
u8 *smem_at(Fiber *f, u32 line, u32 addr, u32 bytes);
/* Can [p, p + bytes) be read or, for EMU_COUNT_ST_GLOBAL, written? Reports
 * when not. */
bool global_check(Fiber *f, u32 line, const void *p, u32 bytes, u32 align,
                  int class);
/* "K stage 1 + 128", for reports. */
void smem_name(const Emu *e, u32 addr, char out[64]);

void emu_ld_shared(u32 line, u32 addr, u32 bytes, void *out);
void emu_st_shared(u32 line, u32 addr, u32 bytes, const void *in);
void emu_ld_global(u32 line, const void *p, u32 bytes, int guard, void *out);
void emu_st_global(u32 line, void *p, u32 bytes, int guard, const void *in);

/* ---- between.c --------------------------------------------------------- */

void emu_red_add(u32 line, float *p, u32 count, int guard, const float *x);
/* Adds 1; returns what was there. Wakes who waits for the new number. */
u32 emu_count_up(u32 line, u32 *p);
void emu_wait_turn(u32 line, const u32 *p, u32 turn);

/* ---- copy.c ------------------------------------------------------------ */

void emu_cp_async(u32 line, u32 dst, const void *src, u32 bytes, u32 valid);
void emu_cp_async_commit(u32 line);
void emu_cp_async_wait(u32 line, u32 pending);
/* EMU_RANDOM: lands one copy of some thread of b, perhaps. */
void copy_land_one(Block *b);

/* ---- collective.c ------------------------------------------------------ */

void emu_warp_sync(u32 line, u32 mask);
u32 emu_shfl(u32 line, u32 mode, u32 mask, u32 value, u32 lane);
void emu_ldmatrix(u32 line, u32 count, int trans, u32 addr, u32 *r);
void emu_mma(u32 line, u32 shape, float *c, const u32 *a, const u32 *b);
/* Reports when no lane of w can ever complete its collective. */
void warp_check_stuck(Warp *w);
const char *wait_name(const Wait *w);

/* ---- barrier.c --------------------------------------------------------- */

void emu_barrier(u32 line, u32 id, u32 threads, int wait);
int emu_block_sync_or(u32 line, int p);
/* A thread of b ended: the barriers that waited for it may open. */
void barrier_after_exit(Block *b);

/* ---- mma.c ------------------------------------------------------------- */

/* One mma of a whole warp: wait[l] holds c, a, b of lane l. */
void mma_run(u32 shape, const Wait *const wait[LANES]);
u32 mma_flops(u32 shape);

/* ---- number.c ---------------------------------------------------------- */

float emu_math(u32 line, u32 op, float x);
u32 emu_convert(u32 line, u32 op, float lo, float hi);
float emu_from_f16(u32 line, u16 bits);

/* ---- count.c ----------------------------------------------------------- */

EmuCount *count_at(Emu *e, u32 line, int class);
void count_record(Fiber *f, int class, u32 line, u32 bytes, u32 shared,
                  const void *global);
void count_flush(Warp *w);
void count_ldmatrix(Emu *e, u32 line, const u32 *addr, u32 rows);
/* Marks the sectors of [p, p + bytes); the bytes of those new to the launch */
u32 count_touch(Buffer *b, uintptr_t p, u32 bytes);

/* ---- report.c ---------------------------------------------------------- */

void report_fault(Fiber *f, int kind, u32 line, u32 other, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
void emu_bad_index(u32 line);
void report_deadlock(Emu *e);

#endif
