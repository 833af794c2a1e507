/* SPDX-License-Identifier: Apache-2.0
 * Walking, capping and clearing the cache. Only files whose names follow the
 * cache's own pattern are looked at, so a directory shared by mistake loses
 * nothing of anybody else. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache_internal.h"

enum {
    SHARDS = 256,
    CHECKS = 64, /* the cap is checked about each time 1/64 of it is written */
};

/* One entry's file. */
typedef struct File {
    CacheKey key;
    int64_t bytes, used;
} File;

typedef struct Files {
    File *file;
    size_t count, room;
    int64_t bytes;
    bool bad; /* memory ran out */
} Files;

static int hex_value(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* `text` as exactly `bytes` bytes of lower-case hex. */
static bool hex_bytes(const char *text, uint8_t *out, size_t bytes) {
    for (size_t i = 0; i < bytes; i++, text += 2) {
        if (hex_value(text[0]) < 0 || hex_value(text[1]) < 0)
            return false;
        out[i] = (uint8_t)(hex_value(text[0]) << 4 | hex_value(text[1]));
    }
    return *text == '\0';
}

/* A directory below the format's for reading; NULL with errno. */
static DIR *open_sub(const Cache *c, const char *name) {
    int fd = cache_dir_sub(c->fd, name, false);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (fd >= 0 && !dir)
        close(fd);
    return dir;
}

static void add_file(Files *all, const File *f) {
    if (all->count == all->room) {
        size_t room = all->room ? 2 * all->room : 256;
        File *grown = realloc(all->file, room * sizeof *grown);
        if (!grown) {
            all->bad = true;
            return;
        }
        all->file = grown;
        all->room = room;
    }
    all->file[all->count++] = *f;
    all->bytes += f->bytes;
}

/* Adds the entries of one shard. */
static void scan_shard(const Cache *c, int shard, Files *all) {
    char name[3];
    struct dirent *d;
    struct stat st;
    File f = {.key.sha256[0] = (uint8_t)shard};
    snprintf(name, sizeof name, "%02x", shard);
    DIR *dir = open_sub(c, name);
    while (dir && (d = readdir(dir))) {
        if (!hex_bytes(d->d_name, f.key.sha256 + 1, 31) ||
            fstatat(dirfd(dir), d->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
            !S_ISREG(st.st_mode))
            continue;
        f.bytes = (int64_t)st.st_blocks * 512;
        f.used = st.st_mtim.tv_sec;
        add_file(all, &f);
    }
    if (dir)
        closedir(dir);
}

static int scan(const Cache *c, Files *all, Err *e) {
    *all = (Files){0};
    for (int shard = 0; c->fd >= 0 && shard < SHARDS; shard++)
        scan_shard(c, shard, all);
    if (!all->bad)
        return ATTNC_OK;
    free(all->file);
    return err_set(e, ATTNC_E_MEMORY, "cache", NULL, "out of memory");
}

/* Oldest use first; equal ones in order of their names. */
static int by_use(const void *a, const void *b) {
    const File *x = a, *y = b;
    if (x->used != y->used)
        return x->used < y->used ? -1 : 1;
    return memcmp(&x->key, &y->key, sizeof x->key);
}

/* A use ahead of the clock says nothing (the clock was set back): such
 * entries go first, and a hit would have put them right. */
static void order(Files *all) {
    int64_t now = time(NULL);
    for (size_t i = 0; i < all->count; i++)
        if (all->file[i].used > now + CACHE_HOUR)
            all->file[i].used = INT64_MIN;
    if (all->count > 0)
        qsort(all->file, all->count, sizeof *all->file, by_use);
}

/* Deletes in order until at most `goal` bytes remain. Others may prune at
 * the same time: what they took counts as gone. */
static int64_t remove_until(const Cache *c, const Files *all, int64_t goal) {
    int64_t left = all->bytes, removed = 0;
    for (size_t i = 0; i < all->count && left > goal; i++) {
        CachePath p = cache_path(&all->file[i].key);
        bool gone = unlinkat(c->fd, p.text, 0) == 0;
        removed += gone;
        if (gone || errno == ENOENT)
            left -= all->file[i].bytes;
    }
    return removed;
}

static int check_writable(const Cache *c, Err *e) {
    if (c->fd < 0 || !c->readonly)
        return ATTNC_OK;
    return err_set(e, ATTNC_E_IO, "cache", NULL,
                   "%s is read-only here: nothing removed", c->path);
}

int cache_prune(Cache *c, int64_t max_bytes, int64_t *removed, Err *e) {
    Files all;
    *removed = 0;
    int code = check_writable(c, e);
    if (code == ATTNC_OK)
        code = scan(c, &all, e);
    if (code != ATTNC_OK)
        return code;
    order(&all);
    *removed = remove_until(c, &all, max_bytes);
    free(all.file);
    return ATTNC_OK;
}

int cache_clear(Cache *c, int64_t *removed, Err *e) {
    return cache_prune(c, -1, removed, e);
}

int cache_each(Cache *c, void (*fn)(void *user, const CacheItem *), void *user,
               Err *e) {
    Files all;
    int code = scan(c, &all, e);
    if (code != ATTNC_OK)
        return code;
    for (size_t i = 0; i < all.count; i++) {
        const File *f = &all.file[i];
        CacheItem item = {.bytes = f->bytes, .used = f->used};
        CachePath p = cache_path(&f->key);
        CacheEntry entry;
        struct stat st;
        snprintf(item.name, sizeof item.name, "%.2s%s", p.text, p.text + 3);
        enum load got = cache_load(c, &f->key, &entry, &st, &item.fault);
        item.entry = got == LOAD_OK ? &entry : NULL;
        if (got != LOAD_ABSENT) /* another process removed it */
            fn(user, &item);
        cache_entry_free(&entry);
    }
    free(all.file);
    return ATTNC_OK;
}

/* Checked with a chance in proportion to what was written: a scan is paid by
 * the same number of bytes however large the cache and its entries are. */
void cache_trim(Cache *c, int64_t bytes, uint64_t random) {
    Files all;
    Err e = {0};
    uint64_t cap = (uint64_t)c->max_bytes;
    if (random % cap >= CHECKS * (uint64_t)bytes ||
        scan(c, &all, &e) != ATTNC_OK)
        return;
    if (all.bytes > c->max_bytes) {
        order(&all);
        remove_until(c, &all, c->max_bytes / 10 * 9);
    }
    free(all.file);
}

/* Old by either side of a clock that may have been set. A writer that is
 * wrongly taken for dead loses only its saving. */
static bool stale(const struct stat *st) {
    int64_t age = (int64_t)time(NULL) - st->st_mtim.tv_sec;
    return S_ISREG(st->st_mode) && (age >= CACHE_HOUR || age <= -CACHE_HOUR);
}

void cache_sweep(const Cache *c) {
    struct dirent *d;
    struct stat st;
    uint8_t random[8];
    DIR *dir = open_sub(c, "tmp");
    while (dir && (d = readdir(dir))) {
        char name[17] = "";
        if (strlen(d->d_name) != 20 || strcmp(d->d_name + 16, ".tmp") != 0)
            continue;
        memcpy(name, d->d_name, 16);
        if (hex_bytes(name, random, sizeof random) &&
            fstatat(dirfd(dir), d->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            stale(&st))
            unlinkat(dirfd(dir), d->d_name, 0);
    }
    if (dir)
        closedir(dir);
}
