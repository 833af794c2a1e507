/* SPDX-License-Identifier: Apache-2.0
 * The two figures of a CPU that nobody writes down: the clock it sustains and
 * the rate of its memory. Together some 25 ms, a few times per machine. */
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "runtime.h"

enum {
    CHAIN_LOOPS = 1 << 14, /* of 64 dependent additions */
    ROUNDS = 12,
    BUFFER = 4 << 20, /* bytes read from memory, by all threads */
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
    atomic_int *ready; /* readers that came to a round */
    int readers;
    double start[ROUNDS], end[ROUNDS];
    v2 sum;
} Reader;

/* A sanitizer that looks at every access would measure itself. */
#define BARE __attribute__((no_sanitize("thread", "address")))

/* Writes and leaves nothing in a cache, so that reading comes from memory
 * however small the part is: fresh pages are what costs time here. */
BARE static void write_part(Reader *r) {
    for (size_t i = 0; i < r->count; i++) {
        v2 x = {(long long)i, 1};
#if defined(__x86_64__)
        _mm_stream_si128((__m128i *)&r->part[i], (__m128i)x);
#else
        r->part[i] = x;
#endif
    }
#if defined(__aarch64__)
    for (size_t i = 0; i < r->count; i += 2)
        __asm__ volatile("dc civac, %0" : : "r"(&r->part[i]) : "memory");
    __asm__ volatile("dsb ish" : : : "memory");
#endif
}

BARE static void read_part(Reader *r) {
    v2 a = {0}, b = {0}, c = {0}, d = {0};
    for (size_t i = 0; i + 3 < r->count; i += 4) {
        a += r->part[i];
        b += r->part[i + 1];
        c += r->part[i + 2];
        d += r->part[i + 3];
    }
    r->sum += a + b + c + d; /* or nothing would be read */
}

static void *measure(void *arg) {
    Reader *r = arg;
    for (int i = 0; i < ROUNDS; i++) {
        write_part(r);
        atomic_fetch_add(r->ready, 1);
        while (atomic_load(r->ready) < (i + 1) * r->readers)
            sched_yield();
        r->start[i] = now_s();
        read_part(r);
        r->end[i] = now_s();
    }
    return NULL;
}

/* Seconds from the first start to the last end of the best round. */
static double best_round(const Reader *r, int n) {
    double best = 1e9;
    for (int k = 0; k < ROUNDS; k++) {
        double start = r[0].start[k], end = r[0].end[k];
        for (int i = 1; i < n; i++) {
            start = fmin(start, r[i].start[k]);
            end = fmax(end, r[i].end[k]);
        }
        best = fmin(best, end - start);
    }
    return best;
}

/* Runs n readers; those that find no thread are left out. */
static double read_rate(v2 *buffer, int n) {
    Reader reader[THREADS_MAX];
    pthread_t thread[THREADS_MAX];
    atomic_int ready = 0;
    size_t count = (size_t)(BUFFER / n) / 64 * 64 / sizeof(v2);
    int started = 1;
    for (int i = 0; i < n; i++)
        reader[i] = (Reader){.part = buffer + (size_t)i * count,
                             .count = count,
                             .ready = &ready,
                             .readers = n};
    while (started < n &&
           !pthread_create(&thread[started], NULL, measure, &reader[started]))
        started++;
    for (int i = started; i < n; i++) /* nobody waits for them */
        atomic_fetch_add(&ready, ROUNDS);
    measure(&reader[0]);
    for (int i = 1; i < started; i++)
        pthread_join(thread[i], NULL);
    double bytes = (double)(count * sizeof(v2)) * started;
    return bytes / best_round(reader, started) * 1e-9;
}

double measure_dram_gbs(int cpus) {
    v2 *buffer = aligned_alloc(64, BUFFER);
    if (!buffer)
        return 0;
    double rate = read_rate(buffer, cpus < THREADS_MAX ? cpus : THREADS_MAX);
    free(buffer);
    return rate;
}
