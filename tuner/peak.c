/* SPDX-License-Identifier: Apache-2.0
 * What this machine can do at best: multiply-adds and reads per second. Each
 * form is compiled for its own instructions, so that the build stays portable,
 * and chosen at run time. */
#include "bench.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* ---- threads ----------------------------------------------------------- */

typedef struct Worker {
    void (*fn)(void *arg, int i);
    void *arg;
    int i;
    pthread_t thread;
} Worker;

static void *work(void *p) {
    Worker *w = p;
    w->fn(w->arg, w->i);
    return NULL;
}

void on_threads(int threads, void (*fn)(void *arg, int i), void *arg) {
    Worker *w = calloc(threads, sizeof *w);
    int started = 0;
    for (int i = 1; w && i < threads; i++) {
        w[i] = (Worker){.fn = fn, .arg = arg, .i = i};
        if (pthread_create(&w[i].thread, NULL, work, &w[i]))
            break;
        started = i;
    }
    fn(arg, 0);
    for (int i = started + 1; i < threads; i++)
        fn(arg, i);
    for (int i = 1; i <= started; i++)
        pthread_join(w[i].thread, NULL);
    free(w);
}

/* ---- multiply-adds ----------------------------------------------------- */

/* A loop of STEPS rounds over CHAINS independent vectors: more chains than
 * latency times issue width, so that only the rate counts. Returns its
 * operations. */
enum { STEPS = 4096, CHAINS = 12 };
typedef double Loop(void);

#define FMA_LOOP(name, bytes, isa)                                             \
    typedef float name##_vec __attribute__((vector_size(bytes)));              \
    isa static double name(void) {                                             \
        name##_vec a[CHAINS], x = {0}, y = {0};                                \
        x += 0.999f;                                                           \
        y += 0.001f;                                                           \
        for (int i = 0; i < CHAINS; i++)                                       \
            a[i] = y * (float)i;                                               \
        for (int s = 0; s < STEPS; s++) {                                      \
            _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) a[i] =   \
                a[i] * x + y;                                                  \
        }                                                                      \
        for (int i = 1; i < CHAINS; i++)                                       \
            a[0] += a[i];                                                      \
        __asm__ volatile("" : : "m"(a[0]));                                    \
        return 2.0 * STEPS * CHAINS * (bytes / 4);                             \
    }

FMA_LOOP(fma_baseline, 16, )
#if defined(__x86_64__)
FMA_LOOP(fma_avx2, 32, __attribute__((target("avx2,fma"))))
FMA_LOOP(fma_avx512, 64, __attribute__((target("avx512f"))))

__attribute__((target("avx512f,avx512bf16"))) static double dot_bf16(void) {
    __m512 a[CHAINS + 4];
    __m512bh x = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    for (int i = 0; i < CHAINS + 4; i++)
        a[i] = _mm512_set1_ps(i);
    for (int s = 0; s < STEPS; s++) {
        _Pragma("GCC unroll 16") for (int i = 0; i < CHAINS + 4; i++) a[i] =
            _mm512_dpbf16_ps(a[i], x, x);
    }
    for (int i = 1; i < CHAINS + 4; i++)
        a[0] += a[i];
    __asm__ volatile("" : : "m"(a[0]));
    return 2.0 * STEPS * (CHAINS + 4) * 32;
}
#endif

static const struct {
    const char *name;
    Loop *loop;
} fma_loops[] = {
#if defined(__x86_64__)
    {"avx512f", fma_avx512},
    {"avx2", fma_avx2},
#endif
    {"baseline", fma_baseline},
};

static int fma_best(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512f") ? 0
           : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
               ? 1
               : 2;
#else
    return 0;
#endif
}

const char *vector_name(void) {
    return fma_loops[fma_best()].name;
}

/* Every thread loops until the same instant; the rate is the sum. */
typedef struct Race {
    Loop *loop;
    double start, end;
    _Atomic double total;
} Race;

static void run_until(void *arg, int i) {
    (void)i;
    Race *r = arg;
    double done = 0;
    while (seconds_now() < r->end)
        done += r->loop();
    double elapsed = seconds_now() - r->start, rate = done / elapsed;
    double old = atomic_load(&r->total);
    while (!atomic_compare_exchange_weak(&r->total, &old, old + rate))
        continue;
}

static double rate(int threads, Loop *loop) {
    loop(); /* wide units wake up */
    double now = seconds_now();
    Race r = {.loop = loop, .start = now, .end = now + PEAK_MS / 1e3};
    on_threads(threads, run_until, &r);
    return r.total / 1e9;
}

double peak_fma(int threads) {
    return rate(threads, fma_loops[fma_best()].loop);
}

double peak_bf16(int threads) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bf16"))
        return rate(threads, dot_bf16);
#endif
    (void)threads;
    return 0;
}

/* ---- memory ------------------------------------------------------------ */

typedef struct Reading {
    const char *data;
    size_t bytes;
    int threads;
} Reading;

/* Four streams at once: one alone leaves the memory waiting. */
static void read_share(void *arg, int i) {
    typedef uint64_t Line __attribute__((vector_size(64), aligned(8)));
    Reading *r = arg;
    size_t share = r->bytes / r->threads / sizeof(Line), part = share / 4;
    const Line *p = (const Line *)(const void *)r->data + share * i;
    Line sum = {0};
    for (size_t n = 0; n < part; n++)
        sum ^= p[n] ^ p[n + part] ^ p[n + 2 * part] ^ p[n + 3 * part];
    __asm__ volatile("" : : "m"(sum));
}

double peak_read(int threads, const void *data, size_t bytes) {
    Reading r = {.data = data, .bytes = bytes, .threads = threads};
    double start = seconds_now();
    int times = 0;
    do {
        on_threads(threads, read_share, &r);
        times++;
    } while (seconds_now() - start < PEAK_MS / 1e3);
    return times * (double)bytes / (seconds_now() - start) / 1e9;
}

/* ---- clock ------------------------------------------------------------- */

double clock_ghz(void) {
    enum { CHAIN = 64, TIMES = 1 << 16 };
    double best = 0;
    for (int r = 0; r < 5; r++) {
        double start = seconds_now();
        for (uint64_t n = 0, x = 0; n < TIMES; n++) {
#if defined(__x86_64__)
            __asm__ volatile(".rept 64\n\tadd $1, %0\n\t.endr" : "+r"(x));
#elif defined(__aarch64__)
            __asm__ volatile(".rept 64\n\tadd %0, %0, #1\n\t.endr" : "+r"(x));
#else
            (void)x;
            return 0;
#endif
        }
        double ghz = (double)CHAIN * TIMES / (seconds_now() - start) / 1e9;
        best = ghz > best ? ghz : best;
    }
    return best;
}
