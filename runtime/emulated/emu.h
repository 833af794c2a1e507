/* SPDX-License-Identifier: Apache-2.0
 * The emulated device: runs a kernel compiled against templates/cuda/prim/emu
 * with one fiber per CUDA thread, and reports what a real chip would get
 * wrong or do slowly. docs/emulation.md tells what is checked and how. */
#ifndef ATTNC_EMU_H
#define ATTNC_EMU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../../templates/cuda/prim/emu/api.h.in"

typedef struct Emu Emu;

/* When the data of an asynchronous copy becomes visible: at the wait that
 * orders it, at once, or anywhere in between. */
enum emu_async { EMU_LATE, EMU_EAGER, EMU_RANDOM };

typedef struct EmuConfig {
    uint64_t seed;  /* of the schedule; the same seed is the same run */
    int async_mode; /* enum emu_async */
    bool race;      /* detect races (about 5 % of the time) */
    bool count;     /* fill EmuReport.count */
    int resident;   /* blocks interleaved with each other; 0: one */
} EmuConfig;

typedef struct EmuDim {
    uint32_t x, y, z;
} EmuDim;

/* X(name, sentence) */
#define EMU_FAULT_LIST(X)                                                      \
    X(BOUNDS, "access out of bounds")                                          \
    X(ALIGNMENT, "misaligned access")                                          \
    X(READ_ONLY, "write to a read-only tensor")                                \
    X(TWICE, "output written twice")                                           \
    X(UNINITIALISED, "read of shared memory nobody wrote")                     \
    X(IN_FLIGHT, "access to bytes an asynchronous copy still owns")            \
    X(RACE_READ, "read not ordered after a write")                             \
    X(RACE_WRITE, "write not ordered after a write")                           \
    X(RACE_REUSE, "write not ordered after a read")                            \
    X(DIVERGENCE, "lanes of a warp at different collectives")                  \
    X(BARRIER, "barrier misused")                                              \
    X(DEADLOCK, "no thread can go on")                                         \
    X(EXIT_IN_FLIGHT, "thread ended with copies in flight")                    \
    X(INDEX, "register array index out of range")                              \
    X(LIMIT, "more than the device has")
enum emu_fault {
#define X(name, sentence) EMU_##name,
    EMU_FAULT_LIST(X)
#undef X
        EMU_FAULTS
};

/* Faults of one kind between the same two lines are one entry. */
typedef struct EmuFault {
    int kind;          /* enum emu_fault */
    uint32_t line;     /* of the emitted text; 0: none */
    uint32_t other;    /* line of the other party; 0: none */
    uint32_t block[3]; /* of the first occurrence, as warp and lane */
    int warp, lane;
    uint64_t times;
    char text[320];
} EmuFault;

/* X(name, spelling) instruction classes that are counted per line */
#define EMU_CLASS_LIST(X)                                                      \
    X(LD_SHARED, "ld.shared")                                                  \
    X(ST_SHARED, "st.shared")                                                  \
    X(LD_GLOBAL, "ld.global")                                                  \
    X(ST_GLOBAL, "st.global")                                                  \
    X(CP_ASYNC, "cp.async")                                                    \
    X(LDMATRIX, "ldmatrix")                                                    \
    X(MMA, "mma")                                                              \
    X(SHFL, "shfl")                                                            \
    X(SYNC, "sync")                                                            \
    X(WAIT, "wait")                                                            \
    X(MATH, "ex2/lg2/rcp")                                                     \
    X(CONVERT, "cvt")
enum emu_class {
#define X(name, spelling) EMU_COUNT_##name,
    EMU_CLASS_LIST(X)
#undef X
        EMU_CLASSES
};

/* What the calls on one line did, all blocks together. */
typedef struct EmuCount {
    uint64_t instructions; /* per warp */
    uint64_t lanes;        /* lanes that took part */
    uint64_t waves, ideal; /* shared memory: cycles taken, and without
                              bank conflicts */
    uint64_t sectors;      /* global: 32-byte sectors asked for */
    uint64_t dram_bytes;   /* of those, 32 x the ones never touched before */
} EmuCount;

enum { EMU_REPORT_FAULTS = 32 };

typedef struct EmuReport {
    EmuFault fault[EMU_REPORT_FAULTS];
    int nfault;      /* entries in use */
    uint64_t faults; /* occurrences, those without an entry too */
    EmuCount (*count)[EMU_CLASSES]; /* [lines], by line of the text */
    uint32_t lines;
    uint64_t mma_flops; /* of all mma instructions */
    uint64_t switches;  /* between fibers */
} EmuReport;

/* Entry of a kernel, as KERNEL() of prim/emu defines it. */
typedef void (*EmuEntry)(const void *args);

enum emu_access { EMU_READ, EMU_WRITE, EMU_WRITE_ONCE };

/* NULL when out of memory. An Emu serves one host thread at a time. */
Emu *emu_create(void);
void emu_destroy(Emu *e);

/* Declares [p, p + bytes) as a tensor; accesses outside every tensor are
 * faults. `access`: enum emu_access, EMU_WRITE_ONCE reports a second store to
 * the same bytes in one launch. 0, or ERR_MEMORY. */
int emu_buffer(Emu *e, const void *p, size_t bytes, const char *name,
               int access);
/* Names a part of shared memory, by offset from its base, for reports. */
int emu_region(Emu *e, uint32_t offset, uint32_t bytes, const char *name);
/* Forgets all buffers and regions. */
void emu_forget(Emu *e);

/* Runs the grid. 0: the run ended (look at report->faults); else
 * ERR_REQUEST (limits, told in the report) or ERR_MEMORY. */
int emu_launch(Emu *e, const EmuConfig *config, EmuEntry entry,
               const void *args, EmuDim grid, EmuDim block, uint32_t smem_bytes,
               EmuReport *report);

/* What a loaded kernel's `attnc_emu` must point to. */
const EmuTable *emu_table(void);

void emu_report_free(EmuReport *r);
const char *emu_fault_name(int kind);
const char *emu_fault_sentence(int kind);
const char *emu_class_name(int class);

#endif
