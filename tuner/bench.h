/* SPDX-License-Identifier: Apache-2.0
 * The one internal header of the benchmark: cases, their samples, peaks. */
#ifndef ATTNC_BENCH_H
#define ATTNC_BENCH_H

#include <stdbool.h>
#include <stdio.h>

#include "attnc.h"

/* ---- numbers ----------------------------------------------------------- */

enum { ROUNDS_MAX = 64, PEAK_MS = 20 };

/* One figure over the rounds. */
typedef struct Series {
    double v[ROUNDS_MAX];
    int n;
} Series;

typedef struct Spread {
    double min, median, max;
} Spread;

/* What a case is held against, measured right before and after it. */
enum peak { PEAK_NONE, PEAK_FMA, PEAK_BF16, PEAK_READ };

/* ---- cases ------------------------------------------------------------- */

struct Bench;
struct Case;

/* One figure of case c, in its unit; < 0: failed, and said so. */
typedef double Sample(struct Bench *b, struct Case *c);

typedef struct Case {
    char group[16], name[48];
    const char *unit; /* GFLOP/s | GB/s | us | ns | ms | MiB */
    Sample *sample;
    int peak;          /* enum peak: `ratio` is the share of it */
    attnc_spec spec;   /* attention: what to run */
    attnc_shape shape; /* at which sizes */
    bool bnhd;         /* rows of all heads of a position lie together */
    int part;          /* prepare: which of its times; memory: length;
                          sparse, reads: so many cases before this is dense */
    int row;           /* reads: of the table of what is read */
    const char *target, *tile; /* compile: for what, with what pinned */
    bool alone; /* on one thread, the time shared out as if to all */
    double
        bound; /* what it is held against: the ratio is this over the value */
    double share, start_us; /* of a pattern: of the dense time it may take so
                               much, and this */
    int rivals;  /* so many cases before this one are slower, one hopes: the
                 * ratio says how many times */
    bool listed; /* its pattern comes as an attnc_pattern */
    bool failed;
    attnc_plan *plan;
    attnc_pattern *pattern; /* the blocks of a listed one */
    attnc_array array;      /* the tensor its program reads */
    void *array_data;       /* NULL: none */
    void *workspace;
    size_t workspace_bytes;
    double seconds; /* of one call, when last timed */
    Series value, peaks, ratio;
} Case;

typedef struct Bench {
    int threads, rounds;
    const char *filter;         /* cases whose group/name holds it; NULL: all */
    const char *json;           /* file, or NULL */
    const char *commit;         /* of the project, for the record */
    char attnc[512];            /* the command, beside this program */
    char scratch[64];           /* a directory of this run's own */
    attnc_context *ctx, *alone; /* of all threads, of one */
    char *arena;                /* q, k, v, o of the case at hand */
    size_t arena_bytes;
    Case *cases;
    int ncase;
    bool progress; /* standard error is a terminal */
} Bench;

/* ---- bench.c ----------------------------------------------------------- */

double seconds_now(void);
Spread series_spread(const Series *s);
/* Says on standard error what a call of the library answered; returns -1. */
int say_error(const char *what);

/* ---- peak.c ------------------------------------------------------------ */

/* Runs fn(arg, i) on `threads` threads at once, until all are done. */
void on_threads(int threads, void (*fn)(void *arg, int i), void *arg);
/* GFLOP/s of f32 vector FMAs on so many threads. */
double peak_fma(int threads);
/* The same of bf16 dot products into f32; 0: the machine has none. */
double peak_bf16(int threads);
/* GB/s of reading `bytes` at `data`, every thread its share. */
double peak_read(int threads, const void *data, size_t bytes);
/* GHz, from a chain of additions of one cycle each; 0: not known. */
double clock_ghz(void);
const char *vector_name(void); /* "avx512f" | "avx2" | "baseline" */

/* ---- cases.c ----------------------------------------------------------- */

/* Fills b->cases with what the filter lets through. */
int cases_make(Bench *b);
/* The next case, or NULL when the filter leaves it out. */
Case *case_add(Bench *b, const char *group, const char *unit, Sample *sample,
               const char *name);
/* 8 heads, n queries and keys. */
void case_sizes(Case *c, int dtype, int d, int mask, int64_t n);
/* Cuts the tensors of c out of b->arena into *a. */
void case_tensors(const Bench *b, const Case *c, attnc_args *a);
int64_t case_bytes(const Case *c);
/* Operations of the two products, or five, over the visible pairs. */
double case_flops(const Case *c);

/* ---- attention.c: samples of a running kernel -------------------------- */

Sample sample_flops, sample_bandwidth, sample_us;
Sample sample_naive_flops, sample_naive_us;
Sample sample_unfused_flops, sample_unfused_us;
bool unfused_exists(void);

/* ---- prepare.c: samples of what comes before and around it ------------- */

enum part { PART_COLD, PART_EMIT, PART_COMPILE, PART_LOAD, PART_OWN };
Sample sample_cold, sample_disk, sample_memory_hit, sample_explain, sample_link;
/* Runs argv with its output in `out` (a file); its exit status, or -1. */
int process_run(char *const argv[], const char *out);

/* ---- memory.c ---------------------------------------------------------- */

/* Peak beyond the tensors; of all that a cell of Table 21 takes, c->part
 * queries and keys, as measured and as counted from the plans. */
Sample sample_rss, sample_table, sample_counted;
/* The child process behind the measured ones: prints MiB. what: fwd bwd, or
 * the dtype of a cell of the table. */
int memory_child(const char *what, int64_t n);

/* ---- compile.c: samples of making kernels for GPUs -------------------- */

/* Is there an NVRTC, by what the command finds? */
bool nvrtc_exists(const Bench *b);
Sample sample_compile, sample_in_turn, sample_side_by_side;

/* ---- sparse.c ---------------------------------------------------------- */

void sparse_cases(Bench *b);
Sample sample_allowed;

/* ---- reads.c ----------------------------------------------------------- */

void read_cases(Bench *b);

/* ---- report.c ---------------------------------------------------------- */

/* The table to standard output, and JSON to b->json; 0 or -1. */
int report(const Bench *b);

#endif
