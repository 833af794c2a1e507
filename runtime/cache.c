/* SPDX-License-Identifier: Apache-2.0
 * The disk cache of compiled kernels. Rename is what makes it correct: a
 * reader sees a whole entry or none; locks only save work. Whatever is wrong
 * with a file is a miss, with the directory a warning. */
#include <errno.h>
#include <fcntl.h>
#include <sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "cache_internal.h"

enum {
    KEY_SCHEMA = 1,
    MAX_FILE = 256 << 20, /* a longer file is not one of ours */
    POLL_FIRST_US = 500,
    POLL_LAST_US = 10000,
};
static const int64_t default_cap = INT64_C(1) << 30;

/* ---- log --------------------------------------------------------------- */

static void log_line(const Cache *c, int level, const char *fmt, va_list ap) {
    char line[1024] = "cache: ";
    size_t at = strlen(line);
    if (!c->log)
        return;
    vsnprintf(line + at, sizeof line - at, fmt, ap);
    c->log(c->log_user, level, line);
}

void cache_log(const Cache *c, int level, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    log_line(c, level, fmt, ap);
    va_end(ap);
}

void cache_warn(Cache *c, const char *fmt, ...) {
    va_list ap;
    int error = errno; /* for a %m in fmt */
    if (atomic_flag_test_and_set(&c->warned))
        return;
    errno = error;
    va_start(ap, fmt);
    log_line(c, ATTNC_LOG_WARNING, fmt, ap);
    va_end(ap);
}

/* ---- open and close ---------------------------------------------------- */

int cache_open(const CacheOptions *o, Cache **out, Err *e) {
    Cache *c = calloc(1, sizeof *c);
    *out = c;
    if (!c)
        return err_set(e, ATTNC_E_MEMORY, "cache", NULL, "out of memory");
    c->fd = -1;
    c->readonly = o->readonly;
    c->max_bytes = o->max_bytes > 0 ? o->max_bytes : default_cap;
    c->log = o->log;
    c->log_user = o->log_user;
    atomic_flag_clear(&c->warned);
    cache_dir_open(c, o->dir);
    if (c->fd >= 0 && !c->readonly)
        cache_sweep(c);
    return ATTNC_OK;
}

void cache_close(Cache *c) {
    if (!c)
        return;
    if (c->fd >= 0)
        close(c->fd);
    free(c->path);
    free(c);
}

const char *cache_dir(const Cache *c) {
    return c->path;
}

/* ---- key --------------------------------------------------------------- */

/* The length goes first, so that no two lists of fields hash alike. */
static void hash_field(SHA2_CTX *hash, const char *text) {
    uint64_t len = strlen(text);
    uint8_t prefix[8];
    for (int i = 0; i < 8; i++)
        prefix[i] = (uint8_t)(len >> (8 * i));
    SHA256Update(hash, prefix, sizeof prefix);
    SHA256Update(hash, (const uint8_t *)text, len);
}

void cache_key(const char *identity, const char *templates_hash,
               const char *output_kind, CacheKey *out) {
    SHA2_CTX hash;
    char numbers[64];
    snprintf(numbers, sizeof numbers, "schema %d generator %d pointer %zu",
             KEY_SCHEMA, ATTNC_GENERATOR_VERSION, sizeof(void *));
    SHA256Init(&hash);
    hash_field(&hash, numbers);
    hash_field(&hash, templates_hash);
    hash_field(&hash, output_kind);
    hash_field(&hash, identity);
    SHA256Final(out->sha256, &hash);
}

CachePath cache_path(const CacheKey *k) {
    static const char digit[] = "0123456789abcdef";
    CachePath p = {{0}};
    char *at = p.text;
    for (int i = 0; i < 32; i++) {
        *at++ = digit[k->sha256[i] >> 4];
        *at++ = digit[k->sha256[i] & 15];
        if (i == 0)
            *at++ = '/';
    }
    return p;
}

/* The shard directory of a key; -1 with errno. */
static int open_shard(const Cache *c, const CachePath *p, bool create) {
    const char shard[3] = {p->text[0], p->text[1], 0};
    return cache_dir_sub(c->fd, shard, create);
}

/* ---- find -------------------------------------------------------------- */

/* Reads `len` bytes. Never mapped: another process may truncate the file. */
static bool read_all(int fd, char *to, size_t len) {
    while (len > 0) {
        ssize_t n = read(fd, to, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        to += n;
        len -= (size_t)n;
    }
    return true;
}

static enum load refuse(const char **fault, const char *why) {
    *fault = why;
    return LOAD_REFUSED;
}

/* Reads the open file whole and checks it. */
static enum load load_file(int fd, const CacheKey *k, CacheEntry *out,
                           struct stat *st, const char **fault) {
    if (fstat(fd, st) != 0 || !S_ISREG(st->st_mode))
        return refuse(fault, "not a file");
    if (!cache_dir_trusted(st))
        return refuse(fault, "others own it or may write to it");
    if (st->st_size > MAX_FILE) {
        *fault = "too long for an entry";
        return LOAD_BAD;
    }
    Blob file = {malloc((size_t)st->st_size + 1), (size_t)st->st_size};
    enum load got;
    if (!file.data)
        got = refuse(fault, "out of memory");
    else if (!read_all(fd, file.data, file.len))
        got = refuse(fault, "not readable");
    else
        got = cache_file_decode(&file, k, out, fault);
    free(file.data);
    return got;
}

enum load cache_load(const Cache *c, const CacheKey *k, CacheEntry *out,
                     struct stat *st, const char **fault) {
    CachePath p = cache_path(k);
    memset(out, 0, sizeof *out);
    int shard = open_shard(c, &p, false);
    /* O_NONBLOCK: a FIFO laid there must not hold us up. */
    int fd = shard < 0 ? -1
                       : openat(shard, p.text + 3,
                                O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    enum load got;
    if (fd >= 0)
        got = load_file(fd, k, out, st, fault);
    else if (errno == ENOENT)
        got = LOAD_ABSENT;
    else
        got = refuse(fault, "not to be opened");
    if (fd >= 0)
        close(fd);
    if (shard >= 0)
        close(shard);
    return got;
}

/* Deletes a bad file, unless another process has put a new one there. */
static void drop_bad(const Cache *c, const CachePath *p,
                     const struct stat *seen) {
    struct stat now;
    if (fstatat(c->fd, p->text, &now, AT_SYMLINK_NOFOLLOW) == 0 &&
        now.st_ino == seen->st_ino && now.st_size == seen->st_size &&
        now.st_mtim.tv_sec == seen->st_mtim.tv_sec &&
        now.st_mtim.tv_nsec == seen->st_mtim.tv_nsec)
        unlinkat(c->fd, p->text, 0);
}

/* Marks a use. The mtime, since atime is off or lazy on most systems; at most
 * once an hour, and also when it lies ahead of a clock that was set back. */
static void touch(const Cache *c, const CachePath *p, const struct stat *st) {
    int64_t age = (int64_t)time(NULL) - st->st_mtim.tv_sec;
    if (!c->readonly && (age >= CACHE_HOUR || age <= -CACHE_HOUR))
        utimensat(c->fd, p->text, NULL, AT_SYMLINK_NOFOLLOW);
}

bool cache_find(Cache *c, const CacheKey *k, const char *identity,
                CacheEntry *out) {
    struct stat st;
    const char *fault = NULL;
    CachePath p = cache_path(k);
    memset(out, 0, sizeof *out);
    enum load got =
        c->fd < 0 ? LOAD_ABSENT : cache_load(c, k, out, &st, &fault);
    if (got == LOAD_OK && strcmp(out->identity, identity) != 0) {
        cache_entry_free(out);
        fault = "entry of another identity";
        got = LOAD_REFUSED;
    }
    if (got == LOAD_OK)
        touch(c, &p, &st);
    if (got == LOAD_BAD && !c->readonly)
        drop_bad(c, &p, &st);
    if (fault)
        cache_log(c, ATTNC_LOG_INFO, "%s/v%d/%s: %s; a miss", c->path,
                  CACHE_FORMAT, p.text, fault);
    return got == LOAD_OK;
}

/* ---- put --------------------------------------------------------------- */

static bool write_all(int fd, const Blob *file) {
    const char *from = file->data;
    size_t left = file->len;
    while (left > 0) {
        ssize_t n = write(fd, from, left);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        from += n;
        left -= (size_t)n;
    }
    return true;
}

/* Writes a temporary file, all of it, and moves it to its place: 0 or an
 * errno, with nothing left behind. */
static int publish_in(int tmp, int shard, const char *temp, const char *name,
                      const Blob *file) {
    int error = 0;
    int fd = openat(tmp, temp,
                    O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno;
    if (!write_all(fd, file) || fsync(fd) != 0)
        error = errno;
    /* Network file systems report a full disk as late as here. */
    if (close(fd) != 0 && !error)
        error = errno;
    if (!error && renameat(tmp, temp, shard, name) != 0)
        error = errno;
    if (error)
        unlinkat(tmp, temp, 0);
    return error;
}

static int publish(const Cache *c, const CacheKey *k, const Blob *file,
                   uint64_t random) {
    CachePath p = cache_path(k);
    char temp[32];
    snprintf(temp, sizeof temp, "%016llx.tmp", (unsigned long long)random);
    int error = 0, shard = -1, tmp = cache_dir_sub(c->fd, "tmp", true);
    if (tmp >= 0)
        shard = open_shard(c, &p, true);
    if (shard < 0)
        error = errno;
    else
        error = publish_in(tmp, shard, temp, p.text + 3, file);
    if (shard >= 0)
        close(shard);
    if (tmp >= 0)
        close(tmp);
    return error;
}

void cache_put(Cache *c, const CacheKey *k, const CacheEntry *e) {
    Blob file;
    uint64_t random;
    if (c->fd < 0 || c->readonly)
        return;
    /* From the kernel: two forks of one process must not draw the same. */
    if (getrandom(&random, sizeof random, 0) != sizeof random ||
        !cache_file_encode(k, e, &file)) {
        cache_warn(c, "a kernel was not saved: %m");
        return;
    }
    int error = publish(c, k, &file, random);
    free(file.data);
    errno = error;
    if (error)
        cache_warn(c, "%s: a kernel was not saved: %m", c->path);
    else
        cache_trim(c, (int64_t)file.len, random);
}

/* ---- locks ------------------------------------------------------------- */

static int64_t elapsed_ms(const struct timespec *since) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - since->tv_sec) * 1000 +
           (now.tv_nsec - since->tv_nsec) / 1000000;
}

/* The byte of the lock file that stands for a key. */
static int64_t lock_byte(const CacheKey *k) {
    uint64_t at;
    memcpy(&at, k->sha256, sizeof at);
    return (int64_t)(at >> 2);
}

/* Asks for the byte until it is granted or time is over. */
static bool wait_byte(int fd, int64_t byte, int timeout_ms) {
    struct flock want = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    struct timespec begin;
    long us = POLL_FIRST_US;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (;;) {
        if (fcntl(fd, F_OFD_SETLK, &want) == 0)
            return true;
        if (errno != EAGAIN && errno != EACCES && errno != EINTR)
            return false;
        if (elapsed_ms(&begin) >= timeout_ms)
            return false;
        nanosleep(&(struct timespec){.tv_nsec = us * 1000}, NULL);
        us = us * 2 < POLL_LAST_US ? us * 2 : POLL_LAST_US;
    }
}

/* One open file per token: the lock belongs to the open file, so it keeps
 * threads apart too, and vanishes with a process that dies. */
int cache_lock(Cache *c, const CacheKey *k, int timeout_ms) {
    if (c->fd < 0 || !c->locks)
        return -1;
    int fd =
        openat(c->fd, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0 || wait_byte(fd, lock_byte(k), timeout_ms))
        return fd;
    close(fd);
    return -1;
}

/* Unlocks by name first: a child forked meanwhile shares the open file, and
 * closing ours would not end the lock. */
void cache_unlock(Cache *c, int token) {
    struct flock none = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
    (void)c;
    if (token < 0)
        return;
    fcntl(token, F_OFD_SETLK, &none);
    close(token);
}
