/* SPDX-License-Identifier: Apache-2.0
 * Many processes and threads on one cache directory: each kernel is built
 * once, nobody ever reads half an entry, and a kill at any point leaves the
 * cache usable. */
#include <sched.h>
#include <signal.h>

#include "cache_util.h"

enum { PROCESSES = 16, KEYS = 8, BYTES = 30000 };

static void sleep_us(long us) {
    nanosleep(&(struct timespec){us / 1000000, us % 1000000 * 1000}, NULL);
}

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

/* What a process is told; children inherit it. */
typedef struct Job {
    const char *dir;
    int timeout_ms; /* of the lock; -1: without locks */
    int start;      /* pipe: its end says go */
    int id;
} Job;

/* The runtime's way: find, lock, find again, build, put. Every build adds one
 * byte to the key's file of builds. */
static bool obtain(Cache *c, const Job *job, int n) {
    CacheKey k = key_of(n);
    if (has_number(c, n, BYTES))
        return true;
    int token = job->timeout_ms < 0 ? -1 : cache_lock(c, &k, job->timeout_ms);
    if (token < 0 || !has_number(c, n, BYTES)) {
        int fd = open(path_of("%s/built-%d", job->dir, n),
                      O_WRONLY | O_CREAT | O_APPEND, 0600);
        bool wrote = write(fd, "x", 1) == 1;
        close(fd);
        if (!wrote)
            return false;
        sleep_us(20000); /* the compiler */
        put_number(c, n, BYTES);
    }
    cache_unlock(c, token);
    return has_number(c, n, BYTES);
}

static int worker(void *arg) {
    const Job *job = arg;
    Log log = {0};
    char none;
    CHILD(read(job->start, &none, 1) == 0);
    Cache *c = open_at(job->dir, &log);
    CHILD(c && cache_dir(c));
    for (int i = 0; i < KEYS; i++)
        CHILD(obtain(c, job, (i + job->id) % KEYS));
    CHILD(log.warnings == 0);
    cache_close(c);
    return 0;
}

/* All processes start on an empty directory at once; builds of all keys. */
static int race(const char *dir, int timeout_ms) {
    pid_t pid[PROCESSES];
    int gate[2], builds = 0;
    assert_int_equal(pipe(gate), 0);
    for (int i = 0; i < PROCESSES; i++) {
        Job job = {dir, timeout_ms, gate[0], i};
        fflush(NULL);
        pid[i] = fork();
        if (pid[i] == 0) {
            close(gate[1]);
            _exit(worker(&job));
        }
    }
    close(gate[0]);
    close(gate[1]);
    for (int i = 0; i < PROCESSES; i++)
        assert_int_equal(await(pid[i]), 0);
    for (int n = 0; n < KEYS; n++) {
        struct stat st;
        assert_int_equal(stat(path_of("%s/built-%d", dir, n), &st), 0);
        builds += (int)st.st_size;
    }
    return builds;
}

static void each_kernel_is_built_once_by_16_processes(void **state) {
    assert_int_equal(race(*state, 60000), KEYS);
}

static void without_locks_nothing_fails(void **state) {
    assert_in_range(race(*state, -1), KEYS, KEYS * PROCESSES);
}

static void impatient_processes_build_for_themselves(void **state) {
    assert_in_range(race(*state, 1), KEYS, KEYS * PROCESSES);
}

/* ---- whole or nothing -------------------------------------------------- */

static int write_for_ever(void *arg) {
    const Job *job = arg;
    Cache *c = open_at(job->dir, NULL);
    for (;;)
        put_number(c, 1, job->id ? BYTES : 4 * BYTES);
    return 0;
}

static void readers_see_one_whole_entry_of_two_writers(void **state) {
    Job job[2] = {{.dir = *state, .id = 0}, {.dir = *state, .id = 1}};
    Log log = {0};
    Cache *c = open_at(*state, &log);
    put_number(c, 1, BYTES);
    pid_t pid[2] = {spawn(write_for_ever, &job[0]),
                    spawn(write_for_ever, &job[1])};
    double end = now_ms() + 500;
    long reads = 0;
    for (; now_ms() < end; reads++) {
        CacheKey k = key_of(1);
        CacheEntry got;
        assert_true(cache_find(c, &k, "kernel 1", &got));
        assert_true(got.binary.len == BYTES || got.binary.len == 4 * BYTES);
        cache_entry_free(&got);
    }
    print_message("%ld reads\n", reads);
    for (int i = 0; i < 2; i++) {
        kill(pid[i], SIGKILL);
        await(pid[i]);
    }
    assert_int_equal(log.warnings + log.infos, 0);
    cache_close(c);
}

static void count_bad(void *user, const CacheItem *item) {
    *(int *)user += !item->entry;
}

/* A process that does all there is, until it is killed. */
static int live(void *arg) {
    const Job *job = arg;
    Cache *c = open_at(job->dir, NULL);
    for (int n = 0;; n = (n + 1) % KEYS) {
        CacheKey k = key_of(n);
        int token = cache_lock(c, &k, 1000);
        if (!has_number(c, n, BYTES) || n % 2)
            put_number(c, n, BYTES);
        cache_unlock(c, token);
    }
    return 0;
}

static void a_kill_at_any_point_leaves_the_cache_usable(void **state) {
    uint32_t seed = (uint32_t)time(NULL) | 1;
    Job job = {.dir = *state};
    Log log = {0};
    int bad = 0;
    Err e = {0};
    print_message("seed %u\n", seed);
    for (int i = 0; i < 100; i++) {
        pid_t pid = spawn(live, &job);
        sleep_us(draw(&seed) % 8000);
        kill(pid, SIGKILL);
        assert_int_equal(await(pid), 128 + SIGKILL);
    }
    Cache *c = open_at(*state, &log);
    assert_int_equal(cache_each(c, count_bad, &bad, &e), 0);
    assert_int_equal(bad, 0);
    for (int n = 0; n < KEYS; n++) {
        CacheKey k = key_of(n);
        int token = cache_lock(c, &k, 0); /* no lock outlived its process */
        assert_true(token >= 0);
        put_number(c, n, BYTES);
        cache_unlock(c, token);
        assert_true(has_number(c, n, BYTES));
    }
    assert_int_equal(log.warnings + log.infos, 0);
    cache_close(c);
}

/* ---- locks ------------------------------------------------------------- */

static void a_lock_is_waited_for_no_longer_than_asked(void **state) {
    Cache *c = open_at(*state, NULL), *other = open_at(*state, NULL);
    CacheKey k = key_of(1), another = key_of(2);
    int token = cache_lock(c, &k, 0);
    assert_true(token >= 0);
    double begin = now_ms();
    assert_int_equal(cache_lock(other, &k, 50), -1);
    assert_int_equal(cache_lock(c, &k, 50), -1); /* threads too */
    assert_in_range((uint64_t)(now_ms() - begin), 100, 2000);
    int free_one = cache_lock(other, &another, 0);
    assert_true(free_one >= 0);
    cache_unlock(other, free_one);
    cache_unlock(c, token);
    token = cache_lock(other, &k, 0);
    assert_true(token >= 0);
    cache_unlock(other, token);
    cache_close(c);
    cache_close(other);
}

static int linger(void *arg) {
    (void)arg;
    sleep_us(30000000);
    return 0;
}

static void a_forked_child_does_not_hold_the_lock(void **state) {
    Cache *c = open_at(*state, NULL);
    CacheKey k = key_of(1);
    int token = cache_lock(c, &k, 0);
    pid_t pid = spawn(linger, NULL);
    cache_unlock(c, token);
    token = cache_lock(c, &k, 0);
    assert_true(token >= 0);
    cache_unlock(c, token);
    kill(pid, SIGKILL);
    await(pid);
    cache_close(c);
}

/* ---- one cache, many users --------------------------------------------- */

static int use_inherited(void *cache) {
    CHILD(has_number(cache, 1, BYTES));
    put_number(cache, 2, BYTES);
    CHILD(has_number(cache, 2, BYTES));
    cache_close(cache);
    return 0;
}

static void a_cache_goes_on_working_after_fork(void **state) {
    Log log = {0};
    Cache *c = open_at(*state, &log);
    put_number(c, 1, BYTES);
    pid_t pid[4];
    for (int i = 0; i < 4; i++)
        pid[i] = spawn(use_inherited, c);
    for (int i = 0; i < 4; i++)
        assert_int_equal(await(pid[i]), 0);
    assert_true(has_number(c, 2, BYTES));
    assert_int_equal(log.warnings, 0);
    cache_close(c);
}

typedef struct Shared {
    Cache *cache;
    atomic_int builds[KEYS], faults;
} Shared;

static void *thread(void *arg) {
    Shared *s = arg;
    for (int i = 0; i < 3 * KEYS; i++) {
        CacheKey k = key_of(i % KEYS);
        int token = cache_lock(s->cache, &k, 60000);
        if (!has_number(s->cache, i % KEYS, BYTES)) {
            atomic_fetch_add(&s->builds[i % KEYS], 1);
            put_number(s->cache, i % KEYS, BYTES);
        }
        if (token < 0 || !has_number(s->cache, i % KEYS, BYTES))
            atomic_fetch_add(&s->faults, 1);
        cache_unlock(s->cache, token);
    }
    return NULL;
}

static void threads_share_one_cache(void **state) {
    Log log = {0};
    Shared s = {.cache = open_with(
                    (CacheOptions){.dir = *state, .log = count_line}, &log)};
    pthread_t id[8];
    for (int i = 0; i < 8; i++)
        assert_int_equal(pthread_create(&id[i], NULL, thread, &s), 0);
    for (int i = 0; i < 8; i++)
        pthread_join(id[i], NULL);
    for (int n = 0; n < KEYS; n++)
        assert_int_equal(s.builds[n], 1);
    assert_int_equal(s.faults + log.warnings, 0);
    cache_close(s.cache);
}

/* Clearing all the time: what is found is still whole, nothing is refused. */
static int clear_for_ever(void *dir) {
    Cache *c = open_at(dir, NULL);
    for (;;) {
        int64_t removed;
        Err e = {0};
        CHILD(cache_clear(c, &removed, &e) == 0);
    }
    return 0;
}

static void clearing_under_use_costs_only_hits(void **state) {
    Log log = {0};
    Cache *c = open_at(*state, &log);
    pid_t pid = spawn(clear_for_ever, *state);
    double end = now_ms() + 300;
    for (int n = 0; now_ms() < end; n++) {
        CacheKey k = key_of(n % KEYS);
        CacheEntry got;
        put_number(c, n % KEYS, BYTES);
        if (cache_find(c, &k, path_of("kernel %d", n % KEYS), &got))
            assert_int_equal(got.binary.len, BYTES);
        cache_entry_free(&got);
    }
    kill(pid, SIGKILL);
    assert_int_equal(await(pid), 128 + SIGKILL);
    assert_int_equal(log.warnings + log.infos, 0);
    cache_close(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        T(each_kernel_is_built_once_by_16_processes),
        T(without_locks_nothing_fails),
        T(impatient_processes_build_for_themselves),
        T(readers_see_one_whole_entry_of_two_writers),
        T(a_kill_at_any_point_leaves_the_cache_usable),
        T(a_lock_is_waited_for_no_longer_than_asked),
        T(a_forked_child_does_not_hold_the_lock),
        T(a_cache_goes_on_working_after_fork),
        T(threads_share_one_cache),
        T(clearing_under_use_costs_only_hits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
