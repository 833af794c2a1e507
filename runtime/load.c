/* SPDX-License-Identifier: Apache-2.0
 * Shared object bytes -> handle, from a sealed memory file: what was verified
 * is what runs, and noexec mounts do not matter. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x10U /* Linux 6.3: says so where noexec is the default */
#endif

static bool write_all(int fd, const Blob *b) {
    const char *p = b->data;
    for (size_t left = b->len; left;) {
        ssize_t n = write(fd, p, left);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        p += n;
        left -= (size_t)n;
    }
    return true;
}

/* A sealed memory file with these bytes, or -1. */
static int memory_file(const Blob *b) {
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int fd = memfd_create("attnc", flags | MFD_EXEC);
    if (fd < 0)
        fd = memfd_create("attnc", flags);
    if (fd < 0)
        return -1;
    const int seals = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    if (write_all(fd, b) && fcntl(fd, F_ADD_SEALS, seals) == 0)
        return fd;
    close(fd);
    return -1;
}

/* The loader takes a path it has seen before for the same library, and file
 * numbers are used again: so each load spells its path in a way of its own,
 * the bits of a running number as "/." or "/". */
static void unique_path(int fd, char path[128]) {
    static atomic_uint serial;
    unsigned n = atomic_fetch_add(&serial, 1);
    char *p = path + sprintf(path, "/proc/self/fd");
    for (int bit = 0; bit < 32; bit++)
        p += sprintf(p, n >> bit & 1 ? "/." : "/");
    sprintf(p, "/%d", fd);
}

static void *load_memory(const Blob *b) {
    int fd = memory_file(b);
    if (fd < 0)
        return NULL;
    char path[128];
    unique_path(fd, path);
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    close(fd);
    return handle;
}

/* Where there is no memfd or no /proc: a private file, gone at once. */
static void *load_file(const Blob *b, Err *e) {
    const char *tmp = secure_getenv("TMPDIR");
    char path[512];
    int n = snprintf(path, sizeof path, "%s/attnc-XXXXXX.so",
                     tmp && *tmp == '/' ? tmp : "/tmp");
    int fd = n < (int)sizeof path ? mkostemps(path, 3, O_CLOEXEC) : -1;
    if (fd < 0) {
        err_set(e, ATTNC_E_IO, "load", NULL, "cannot create %s: %s", path,
                strerror(errno));
        return NULL;
    }
    bool written = write_all(fd, b) && fchmod(fd, 0500) == 0;
    if (close(fd) != 0)
        written = false;
    void *handle = written ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!handle)
        err_set(e, ATTNC_E_IO, "load", NULL, "cannot load the kernel: %s",
                written ? dlerror() : strerror(errno));
    unlink(path);
    return handle;
}

void *load_object(const Blob *b, Err *e) {
    void *handle = load_memory(b);
    return handle ? handle : load_file(b, e);
}
