/* SPDX-License-Identifier: Apache-2.0
 * Threads for one context. The caller is worker 0; items are drawn from one
 * counter in ascending order. Threads spin briefly for the next job, then
 * sleep; a job does not wait for one that is late to it. */
#include <errno.h>
#include <fenv.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "runtime.h"

enum {
    SPIN_NS = 50000,     /* before a thread sleeps */
    STACK = 1 << 20,     /* bytes of a thread's */
    OPEN = 1 << 30,      /* gate: workers may enter the job */
    WAITED = 1 << 29,    /* gate: the caller sleeps until it is empty */
    INSIDE = WAITED - 1, /* gate: how many workers are in the job */
};

typedef struct Worker {
    Pool *pool;
    int index;
    pthread_t thread;
} Worker;

struct Pool {
    int threads;      /* workers, the caller included */
    int spawned;      /* threads running */
    unsigned forks;   /* fork_count() when they were started */
    atomic_uint busy; /* a job runs: 1 + fork_count() of its process */
    atomic_bool stop;
    void (*fn)(void *, int64_t, int);
    void *arg;
    int64_t count, chunk;
    _Alignas(64) atomic_llong next; /* item */
    _Alignas(64) atomic_int epoch;  /* a job more; futex of the workers */
    atomic_int sleepers;
    _Alignas(64) atomic_int gate; /* futex of the caller */
    Worker worker[];
};

static void futex_wait(atomic_int *word, int value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(atomic_int *word, int threads) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, threads, NULL, NULL, 0);
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Draws items until none is left. */
static void run_items(Pool *p, int worker) {
    int64_t chunk = p->chunk, count = p->count;
    for (;;) {
        int64_t i =
            atomic_fetch_add_explicit(&p->next, chunk, memory_order_relaxed);
        if (i >= count)
            return;
        int64_t end = i + chunk < count ? i + chunk : count;
        for (; i < end; i++)
            p->fn(p->arg, i, worker);
    }
}

/* Enters the open job, if any, works and leaves. */
static bool join_job(Pool *p, int worker) {
    int gate = atomic_load(&p->gate);
    do {
        if (!(gate & OPEN))
            return false;
    } while (!atomic_compare_exchange_weak(&p->gate, &gate, gate + 1));
    run_items(p, worker);
    gate = atomic_fetch_sub(&p->gate, 1) - 1;
    if (gate & WAITED && !(gate & INSIDE))
        futex_wake(&p->gate, 1);
    return true;
}

/* Waits until `word` differs from `value`: spins, then sleeps. */
static void await_change(atomic_int *word, int value, atomic_int *sleepers) {
    int64_t end = now_ns() + SPIN_NS;
    for (int i = 1; atomic_load(word) == value; i++) {
        relax();
        if (i % 64 || now_ns() < end)
            continue;
        atomic_fetch_add(sleepers, 1);
        while (atomic_load(word) == value)
            futex_wait(word, value);
        atomic_fetch_sub(sleepers, 1);
    }
}

static void *work(void *arg) {
    const Worker *w = arg;
    Pool *p = w->pool;
    fesetenv(FE_DFL_ENV); /* not what the creating thread had set */
    while (!atomic_load(&p->stop)) {
        int epoch = atomic_load(&p->epoch);
        join_job(p, w->index);
        if (!atomic_load(&p->stop))
            await_change(&p->epoch, epoch, &p->sleepers);
    }
    return NULL;
}

/* Starts the threads, all signals blocked: the host's handlers run on the
 * host's threads. Fewer than asked for is no error, only slower. */
static void spawn(Pool *p) {
    sigset_t all, old;
    pthread_attr_t attr;
    if (pthread_attr_init(&attr) != 0)
        return;
    pthread_attr_setstacksize(&attr, STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (p->spawned < p->threads - 1) {
        Worker *w = &p->worker[p->spawned];
        *w = (Worker){p, p->spawned + 1, 0};
        if (pthread_create(&w->thread, &attr, work, w) != 0)
            break;
        pthread_setname_np(w->thread, "attnc");
        p->spawned++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
}

/* In a forked child the threads are gone and the counters are as the parent's
 * last job left them. */
static void revive(Pool *p) {
    if (p->forks != fork_count()) {
        p->forks = fork_count();
        p->spawned = 0;
        atomic_store(&p->gate, 0);
        atomic_store(&p->sleepers, 0);
    }
    if (p->spawned < p->threads - 1)
        spawn(p);
}

/* Shuts the gate and waits until all who entered have left. */
static void finish(Pool *p) {
    atomic_fetch_and(&p->gate, ~OPEN);
    int64_t end = now_ns() + SPIN_NS;
    for (int i = 1; atomic_load(&p->gate) & INSIDE; i++) {
        relax();
        if (i % 64 || now_ns() < end)
            continue;
        int gate = atomic_fetch_or(&p->gate, WAITED) | WAITED;
        if (gate & INSIDE)
            futex_wait(&p->gate, gate);
    }
    atomic_store(&p->gate, 0);
}

static void run_job(Pool *p, int64_t count, void (*fn)(void *, int64_t, int),
                    void *arg) {
    revive(p);
    p->fn = fn;
    p->arg = arg;
    p->count = count;
    /* Many small items: draw some at once, few enough to stay balanced. */
    int64_t chunk = count / ((int64_t)p->threads * 1024);
    p->chunk = chunk < 1 ? 1 : chunk > 64 ? 64 : chunk;
    atomic_store(&p->next, 0);
    atomic_store(&p->gate, OPEN);
    atomic_fetch_add(&p->epoch, 1);
    if (atomic_load(&p->sleepers) > 0)
        futex_wake(&p->epoch, count > INT_MAX ? INT_MAX : (int)count - 1);
    run_items(p, 0);
    finish(p);
}

/* Takes the pool; false: another job, of this process, has it. A job of the
 * parent that a fork cut off does not count. */
static bool enter(Pool *p) {
    unsigned mine = fork_count() + 1, busy = atomic_load(&p->busy);
    return busy != mine &&
           atomic_compare_exchange_strong(&p->busy, &busy, mine);
}

static void leave(Pool *p) {
    atomic_store(&p->busy, 0);
}

void pool_start(Pool *p) {
    if (!enter(p))
        return;
    revive(p);
    leave(p);
}

void pool_for(Pool *p, int64_t count, void (*fn)(void *, int64_t, int),
              void *arg) {
    if (count > 1 && p->threads > 1 && enter(p)) {
        run_job(p, count, fn, arg);
        leave(p);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        fn(arg, i, 0);
}

int pool_threads(const Pool *p) {
    return p->threads;
}

Pool *pool_create(int threads, Err *e) {
    size_t bytes = sizeof(Pool) + (size_t)threads * sizeof(Worker);
    Pool *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) {
        err_set(e, ATTNC_E_MEMORY, "context", "threads",
                "no memory for %d threads", threads);
        return NULL;
    }
    *p = (Pool){.threads = threads, .forks = fork_count()};
    return p;
}

void pool_destroy(Pool *p) {
    if (!p)
        return;
    if (p->forks == fork_count()) {
        atomic_store(&p->stop, true);
        atomic_fetch_add(&p->epoch, 1);
        futex_wake(&p->epoch, INT_MAX);
        for (int i = 0; i < p->spawned; i++)
            pthread_join(p->worker[i].thread, NULL);
    }
    free(p);
}
