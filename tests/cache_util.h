/* SPDX-License-Identifier: Apache-2.0
 * What the tests of the cache share: a fresh directory, entries, children. */
#ifndef CACHE_UTIL_H
#define CACHE_UTIL_H

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "cache_internal.h"

enum { NOBODY = 65534 };

/* What came through the log callback. */
typedef struct Log {
    atomic_int warnings, infos;
    char last[1024]; /* of single-threaded tests */
} Log;

static inline void take_line(void *user, int level, const char *line) {
    Log *log = user;
    if (level == ATTNC_LOG_WARNING)
        atomic_fetch_add(&log->warnings, 1);
    else
        atomic_fetch_add(&log->infos, 1);
    snprintf(log->last, sizeof log->last, "%s", line);
}

/* Several threads at once: counts only. */
static inline void count_line(void *user, int level, const char *line) {
    Log *log = user;
    (void)line;
    if (level == ATTNC_LOG_WARNING)
        atomic_fetch_add(&log->warnings, 1);
}

static inline Cache *open_with(CacheOptions o, Log *log) {
    Cache *c = NULL;
    Err e = {0};
    if (log && !o.log)
        o.log = take_line;
    o.log_user = log;
    if (cache_open(&o, &c, &e) != 0)
        return NULL;
    return c;
}

static inline Cache *open_at(const char *dir, Log *log) {
    return open_with((CacheOptions){.dir = dir}, log);
}

/* A path built like printf, in a ring so that several can be held. */
static inline const char *path_of(const char *fmt, ...)
    __attribute__((format(printf, 1, 2)));
static inline const char *path_of(const char *fmt, ...) {
    static char ring[32][512];
    static int turn;
    char *out = ring[turn++ % 32];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(out, sizeof ring[0], fmt, ap);
    va_end(ap);
    return out;
}

/* A new directory 0755 below /tmp for each test; its path is *state. */
static inline int setup(void **state) {
    char *dir = strdup("/tmp/attnc-cache-XXXXXX");
    *state = dir;
    return mkdtemp(dir) && chmod(dir, 0755) == 0 ? 0 : -1;
}

static inline int remove_one(const char *path, const struct stat *st, int type,
                             struct FTW *at) {
    (void)st, (void)type, (void)at;
    return remove(path);
}

static inline int teardown(void **state) {
    nftw(*state, remove_one, 32, FTW_DEPTH | FTW_PHYS);
    free(*state);
    return 0;
}

static inline uint32_t draw(uint32_t *seed) {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 17;
    return *seed ^= *seed << 5;
}

/* Key and entry number `n`; the binary is `bytes` long and depends on n. */
static inline CacheKey key_of(int n) {
    CacheKey k;
    char identity[32];
    snprintf(identity, sizeof identity, "kernel %d", n);
    cache_key(identity, "templates", "object", &k);
    return k;
}

static inline CacheEntry entry_of(int n, size_t bytes) {
    CacheEntry e = {.created = 1700000000 + n, .compile_ms = n + 0.25};
    uint32_t seed = 2463534242u + (uint32_t)n;
    char identity[32];
    snprintf(identity, sizeof identity, "kernel %d", n);
    e.identity = strdup(identity);
    e.compiler = strdup("clang 14.0.6");
    e.log = strdup("warning: none\n");
    e.plan = strdup("plan\nof two lines\n");
    e.binary = (Blob){malloc(bytes), bytes};
    for (size_t i = 0; i < bytes; i++)
        ((uint8_t *)e.binary.data)[i] = (uint8_t)draw(&seed);
    return e;
}

static inline bool entry_equal(const CacheEntry *a, const CacheEntry *b) {
    return strcmp(a->identity, b->identity) == 0 &&
           strcmp(a->compiler, b->compiler) == 0 &&
           strcmp(a->log, b->log) == 0 && strcmp(a->plan, b->plan) == 0 &&
           a->binary.len == b->binary.len &&
           memcmp(a->binary.data, b->binary.data, a->binary.len) == 0 &&
           a->created == b->created && a->compile_ms == b->compile_ms;
}

static inline void put_number(Cache *c, int n, size_t bytes) {
    CacheKey k = key_of(n);
    CacheEntry e = entry_of(n, bytes);
    cache_put(c, &k, &e);
    cache_entry_free(&e);
}

/* Found, and the very entry that was put? */
static inline bool has_number(Cache *c, int n, size_t bytes) {
    CacheKey k = key_of(n);
    CacheEntry want = entry_of(n, bytes), got;
    bool found = cache_find(c, &k, want.identity, &got);
    bool good = found && entry_equal(&want, &got);
    cache_entry_free(&want);
    cache_entry_free(&got);
    return good;
}

/* Path of an entry's file in the cache directory `dir`. */
static inline const char *file_of(const char *dir, int n) {
    CacheKey k = key_of(n);
    return path_of("%s/v%d/%s", dir, CACHE_FORMAT, cache_path(&k).text);
}

static inline bool exists(const char *path) {
    struct stat st;
    return lstat(path, &st) == 0;
}

static inline void write_file(const char *path, const void *data, size_t len) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, len), len);
    close(fd);
}

static inline void set_age(const char *path, int64_t seconds) {
    struct timespec at[2] = {{.tv_nsec = UTIME_OMIT},
                             {.tv_sec = time(NULL) - seconds}};
    assert_int_equal(utimensat(AT_FDCWD, path, at, AT_SYMLINK_NOFOLLOW), 0);
}

static inline int64_t age_of(const char *path) {
    struct stat st;
    assert_int_equal(lstat(path, &st), 0);
    return time(NULL) - st.st_mtim.tv_sec;
}

/* Runs fn in a child; what it returns is its exit status: 0 good, 77 not
 * possible here, else the line of the first thing that was not as promised,
 * by CHILD(). */
#define CHILD(condition)                                                       \
    do {                                                                       \
        if (!(condition)) {                                                    \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);    \
            return 1;                                                          \
        }                                                                      \
    } while (0)

static inline pid_t spawn(int (*fn)(void *arg), void *arg) {
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        int status = fn(arg);
        fflush(NULL);
        _exit(status);
    }
    return pid;
}

static inline int await(pid_t pid) {
    int status;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static inline void in_child(int (*fn)(void *arg), void *arg) {
    int status = await(spawn(fn, arg));
    if (status == 77)
        skip();
    assert_int_equal(status, 0);
}

#endif
