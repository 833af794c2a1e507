/* SPDX-License-Identifier: Apache-2.0
 * Forks: how often this process was forked off, and locks that a fork cannot
 * leave taken for ever. */
#include "runtime.h"

static atomic_uint forks;

static void count_fork(void) {
    atomic_fetch_add(&forks, 1);
}

__attribute__((constructor)) static void watch_forks(void) {
    pthread_atfork(NULL, NULL, count_fork);
}

unsigned fork_count(void) {
    return atomic_load_explicit(&forks, memory_order_relaxed);
}

void lock_init(Lock *l) {
    pthread_mutex_init(&l->mutex, NULL);
    l->forks = fork_count();
}

/* A child starts with one thread, so nobody else resets the lock. */
bool lock_take(Lock *l) {
    bool forked = l->forks != fork_count();
    if (forked)
        lock_init(l);
    pthread_mutex_lock(&l->mutex);
    return forked;
}

void lock_give(Lock *l) {
    pthread_mutex_unlock(&l->mutex);
}
