/* SPDX-License-Identifier: Apache-2.0
 * The two figures of a CPU that nobody writes down: the clock it sustains and
 * the rate of its memory. Together some 30 ms, once per machine. */
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#include "runtime.h"

enum {
    CHAIN_LOOPS = 1 << 14, /* of 64 dependent additions */
    BUFFER = 32 << 20,     /* bytes read from memory, by all threads */
    THREADS_MAX = 16,
    TRIALS = 3,
};

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- clock -------------------------------------------------------------- */

/* x += x cannot be folded: one cycle each on every CPU of these archs. */
#if defined(__x86_64__)
#define ADD1 "add %0, %0\n"
#elif defined(__aarch64__)
#define ADD1 "add %0, %0, %0\n"
#endif

#ifdef ADD1
#define ADD8 ADD1 ADD1 ADD1 ADD1 ADD1 ADD1 ADD1 ADD1
static void chain(void) {
    uint64_t x = 1;
    for (int i = 0; i < CHAIN_LOOPS; i++)
        __asm__ volatile(ADD8 ADD8 ADD8 ADD8 ADD8 ADD8 ADD8 ADD8
                         : "+r"(x)
                         :
                         : "cc");
}

double measure_clock_ghz(void) {
    double best = 1;
    for (int i = 0; i < TRIALS; i++) {
        double start = now_s();
        chain();
        double took = now_s() - start;
        best = took < best ? took : best;
    }
    return CHAIN_LOOPS * 64 / best * 1e-9;
}
#else
double measure_clock_ghz(void) {
    return 2; /* an assembler we do not speak */
}
#endif

/* ---- memory ------------------------------------------------------------- */

typedef long long v2 __attribute__((vector_size(16)));

typedef struct Reader {
    v2 *part;
    size_t count;
    atomic_int *ready;
    int readers;
    double start, end;
    v2 sum;
} Reader;

/* Past the caches where the ISA can, so that reading comes from memory. */
static void write_part(Reader *r) {
    for (size_t i = 0; i < r->count; i++) {
        v2 x = {(long long)i, 1};
#if defined(__x86_64__)
        __builtin_ia32_movntdq(&r->part[i], x);
#else
        r->part[i] = x;
#endif
    }
}

static void *read_part(void *arg) {
    Reader *r = arg;
    write_part(r);
    atomic_fetch_add(r->ready, 1);
    while (atomic_load(r->ready) < r->readers)
        sched_yield();
    r->start = now_s();
    v2 a = {0}, b = {0}, c = {0}, d = {0};
    for (size_t i = 0; i + 3 < r->count; i += 4) {
        a += r->part[i];
        b += r->part[i + 1];
        c += r->part[i + 2];
        d += r->part[i + 3];
    }
    r->sum = a + b + c + d; /* or nothing would be read */
    r->end = now_s();
    return NULL;
}

/* Seconds from the first start to the last end. */
static double span(const Reader *r, int n) {
    double start = r[0].start, end = r[0].end;
    for (int i = 1; i < n; i++) {
        start = r[i].start < start ? r[i].start : start;
        end = r[i].end > end ? r[i].end : end;
    }
    return end - start;
}

double measure_dram_gbs(int cpus) {
    int n = cpus < THREADS_MAX ? cpus : THREADS_MAX;
    Reader reader[THREADS_MAX];
    pthread_t thread[THREADS_MAX];
    atomic_int ready = 0;
    size_t count = (size_t)(BUFFER / n) / 64 * 64 / sizeof(v2);
    v2 *buffer = aligned_alloc(64, BUFFER);
    if (!buffer)
        return 0;
    /* A thread that does not start is done by the caller, after the rest:
     * so readers wait only for those that run. */
    int started = 1;
    for (int i = 0; i < n; i++)
        reader[i] = (Reader){.part = buffer + (size_t)i * count,
                             .count = count,
                             .ready = &ready,
                             .readers = n};
    while (started < n &&
           !pthread_create(&thread[started], NULL, read_part, &reader[started]))
        started++;
    atomic_fetch_add(&ready, n - started);
    read_part(&reader[0]);
    for (int i = 1; i < started; i++)
        pthread_join(thread[i], NULL);
    double bytes = (double)(count * sizeof(v2)) * started;
    free(buffer);
    return bytes / span(reader, started) * 1e-9;
}
