/* SPDX-License-Identifier: Apache-2.0
 * What the cache's own files share. On disk, below the directory in use:
 *   v<format>/<2 hex>/<62 hex>  one entry, named by its key
 *   v<format>/tmp/<16 hex>.tmp  being written
 *   v<format>/lock              one byte per key, for the advisory locks */
#ifndef ATTNC_CACHE_INTERNAL_H
#define ATTNC_CACHE_INTERNAL_H

#include <sys/stat.h>
#include <time.h>

#include "runtime.h"

enum {
    CACHE_FORMAT = 1,       /* another major: another directory, a miss */
    CACHE_FORMAT_MINOR = 0, /* may add sections, which older readers skip */
    CACHE_HOUR = 3600,      /* of temps left behind, and between mtime bumps */
};

struct Cache {
    char *path; /* the directory in use; NULL: memory only */
    int fd;     /* of its v<format>, -1: memory only */
    bool readonly;
    bool locks; /* off where the file system's locks are not to be trusted */
    int64_t max_bytes;
    atomic_flag warned;
    void (*log)(void *user, int level, const char *line);
    void *log_user;
};

/* "<2 hex>/<62 hex>", relative to Cache.fd. */
typedef struct CachePath {
    char text[66];
} CachePath;

/* ---- cache.c ----------------------------------------------------------- */

/* One line "cache: ..." through the log callback. */
void cache_log(const Cache *c, int level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* The same as a warning, once in the life of a cache. */
void cache_warn(Cache *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

CachePath cache_path(const CacheKey *k);

/* LOAD_REFUSED: could not be read, or is not ours to trust. LOAD_BAD: was
 * read, and is not an entry of this key. */
enum load { LOAD_OK, LOAD_ABSENT, LOAD_REFUSED, LOAD_BAD };
/* Reads and checks one entry. *out is owned by the caller after LOAD_OK and
 * empty otherwise; *st (of the file) and *fault are set as far as known. */
enum load cache_load(const Cache *c, const CacheKey *k, CacheEntry *out,
                     struct stat *st, const char **fault);

/* ---- cache_file.c ------------------------------------------------------ */

/* Entry -> bytes of its file; false: out of memory. */
bool cache_file_encode(const CacheKey *k, const CacheEntry *e, Blob *out);
/* Bytes -> entry: LOAD_OK with *out filled, LOAD_BAD, or LOAD_REFUSED (out
 * of memory) with *out empty and what is wrong in *fault. Reads nothing
 * outside the bytes, whatever they hold. */
enum load cache_file_decode(const Blob *file, const CacheKey *k,
                            CacheEntry *out, const char **fault);

/* ---- cache_dir.c ------------------------------------------------------- */

/* Chooses (option, ATTNC_CACHE_DIR, XDG_CACHE_HOME/attnc, ~/.cache/attnc),
 * creates, checks and opens the directory: fills path, fd, readonly and locks,
 * or warns and leaves the cache in memory only. "" asks for just that. */
void cache_dir_open(Cache *c, const char *option);
/* Opens directory `name` in `at`, made first when `create`; -1 with errno.
 * Refuses links and what others could write (EPERM). */
int cache_dir_sub(int at, const char *name, bool create);
/* Can nobody but root and this user change it? */
bool cache_dir_trusted(const struct stat *st);

/* ---- cache_trim.c ------------------------------------------------------ */

/* Removes what writers that died left in tmp/. */
void cache_sweep(const Cache *c);
/* After a put of `bytes`: now and then holds the cache to its cap. */
void cache_trim(Cache *c, int64_t bytes, uint64_t random);

#endif
