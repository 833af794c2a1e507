/* SPDX-License-Identifier: Apache-2.0
 * The thread pool: every item once, workers told apart, nested, concurrent and
 * forked callers. */
#include <fenv.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime.h"

#if defined(__SANITIZE_THREAD__)
#define TSAN 1 /* it cannot follow threads that start in a forked child */
#else
#define TSAN 0
#endif

enum { WORKERS = 5 };

static Pool *pool_of(int threads) {
    Err e = {0};
    Pool *p = pool_create(threads, &e);
    assert_non_null(p);
    assert_int_equal(pool_threads(p), threads);
    return p;
}

/* What the items of one loop saw. */
typedef struct Loop {
    int64_t count;
    atomic_char *seen;
    atomic_bool inside[WORKERS];
    int64_t last[WORKERS]; /* item of each worker, to see them ascend */
    atomic_int faults;
    Pool *pool; /* for a nested loop */
} Loop;

static void note(void *arg, int64_t i, int worker) {
    Loop *l = arg;
    if (worker < 0 || worker >= WORKERS || i < 0 || i >= l->count) {
        atomic_fetch_add(&l->faults, 1);
        return;
    }
    if (atomic_exchange(&l->inside[worker], true) || l->last[worker] >= i)
        atomic_fetch_add(&l->faults, 1);
    l->last[worker] = i;
    atomic_fetch_add(&l->seen[i], 1);
    atomic_store(&l->inside[worker], false);
}

/* Runs a loop; the number of faults seen. */
static int run_loop(Pool *p, int64_t count) {
    Loop l = {.count = count, .seen = calloc((size_t)count + 1, 1)};
    for (int i = 0; i < WORKERS; i++)
        l.last[i] = -1;
    pool_for(p, count, note, &l);
    int faults = atomic_load(&l.faults);
    for (int64_t i = 0; i < count; i++)
        faults += atomic_load(&l.seen[i]) != 1;
    free(l.seen);
    return faults;
}

static void every_item_runs_once(void **state) {
    (void)state;
    const int64_t counts[] = {0, 1, 2, 3, 7, 64, 1000, 100000};
    for (int threads = 1; threads <= WORKERS; threads++) {
        Pool *p = pool_of(threads);
        for (int round = 0; round < 20; round++)
            for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
                assert_int_equal(run_loop(p, counts[i] >> (round > 2)), 0);
        pool_destroy(p);
    }
}

static void a_pool_may_be_made_and_never_used(void **state) {
    (void)state;
    for (int i = 0; i < 100; i++)
        pool_destroy(pool_of(3));
    pool_destroy(NULL);
}

static void short_jobs_do_not_wait_for_late_threads(void **state) {
    (void)state;
    Pool *p = pool_of(4);
    for (int i = 0; i < 5000; i++)
        assert_int_equal(run_loop(p, 2), 0);
    pool_destroy(p);
}

static void threads_that_slept_wake_up(void **state) {
    (void)state;
    Pool *p = pool_of(3);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(run_loop(p, 100), 0);
        usleep(2000); /* longer than they spin */
    }
    pool_destroy(p);
}

static void nest(void *arg, int64_t i, int worker) {
    Loop *l = arg;
    (void)i, (void)worker;
    atomic_fetch_add(&l->faults, run_loop(l->pool, 10));
}

static void a_loop_inside_a_loop_runs(void **state) {
    (void)state;
    Loop l = {.pool = pool_of(3)};
    pool_for(l.pool, 50, nest, &l);
    assert_int_equal(atomic_load(&l.faults), 0);
    pool_destroy(l.pool);
}

static void *call_often(void *arg) {
    int64_t faults = 0;
    for (int i = 0; i < 300; i++)
        faults += run_loop(arg, 50);
    return (void *)(intptr_t)faults;
}

static void callers_at_the_same_time_all_finish(void **state) {
    (void)state;
    Pool *p = pool_of(3);
    pthread_t t[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, call_often, p), 0);
    for (int i = 0; i < 4; i++) {
        void *faults;
        pthread_join(t[i], &faults);
        assert_int_equal((intptr_t)faults, 0);
    }
    pool_destroy(p);
}

/* Items long enough that every worker gets one. */
static void take_worker(void *arg, int64_t i, int worker) {
    Loop *l = arg;
    (void)i;
    atomic_fetch_add(&l->seen[worker], 1);
    usleep(1000);
}

static void all_workers_take_part(void **state) {
    (void)state;
    Pool *p = pool_of(4);
    Loop l = {.seen = calloc(4, 1)};
    pool_for(p, 60, take_worker, &l);
    for (int i = 0; i < 4; i++)
        assert_true(atomic_load(&l.seen[i]) > 0);
    free(l.seen);
    pool_destroy(p);
}

/* Signals and the floating-point environment as a kernel may expect them. */
static void look_around(void *arg, int64_t i, int worker) {
    Loop *l = arg;
    sigset_t set;
    (void)i;
    usleep(500);
    if (worker == 0)
        return;
    pthread_sigmask(SIG_BLOCK, NULL, &set);
    if (!sigismember(&set, SIGINT) || !sigismember(&set, SIGCHLD) ||
        fegetround() != FE_TONEAREST)
        atomic_fetch_add(&l->faults, 1);
}

static void workers_take_no_signals_and_round_to_nearest(void **state) {
    (void)state;
    Pool *p = pool_of(3);
    Loop l = {0};
    fesetround(FE_UPWARD);
    pool_for(p, 30, look_around, &l);
    fesetround(FE_TONEAREST);
    assert_int_equal(atomic_load(&l.faults), 0);
    pool_destroy(p);
}

static int exit_status(pid_t pid) {
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 99;
}

static void a_forked_child_can_go_on(void **state) {
    (void)state;
    if (TSAN)
        skip();
    Pool *p = pool_of(3);
    assert_int_equal(run_loop(p, 100), 0);
    for (int i = 0; i < 10; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            int faults = run_loop(p, 100) + run_loop(p, 1000);
            pool_destroy(p);
            _exit(faults != 0);
        }
        assert_int_equal(run_loop(p, 100), 0);
        assert_int_equal(exit_status(pid), 0);
    }
    pool_destroy(p);
}

static void a_child_forked_during_a_job_can_use_the_pool(void **state) {
    (void)state;
    if (TSAN)
        skip();
    Pool *p = pool_of(3);
    pthread_t other;
    assert_int_equal(pthread_create(&other, NULL, call_often, p), 0);
    for (int i = 0; i < 20; i++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(run_loop(p, 200) != 0);
        assert_int_equal(exit_status(pid), 0);
    }
    pthread_join(other, NULL);
    pool_destroy(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_item_runs_once),
        cmocka_unit_test(a_pool_may_be_made_and_never_used),
        cmocka_unit_test(short_jobs_do_not_wait_for_late_threads),
        cmocka_unit_test(threads_that_slept_wake_up),
        cmocka_unit_test(a_loop_inside_a_loop_runs),
        cmocka_unit_test(callers_at_the_same_time_all_finish),
        cmocka_unit_test(all_workers_take_part),
        cmocka_unit_test(workers_take_no_signals_and_round_to_nearest),
        cmocka_unit_test(a_forked_child_can_go_on),
        cmocka_unit_test(a_child_forked_during_a_job_can_use_the_pool),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
