/* SPDX-License-Identifier: Apache-2.0
 * Where the cache lives and whether it can be trusted. An entry is code that
 * runs in this process, so nobody but this user and root may be able to
 * change a directory on the way to it. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "cache_internal.h"

/* File systems where a lock may hang or lie. Their numbers are the kernel's
 * (linux/magic.h), those of the parallel ones their own. */
static const struct {
    uint32_t magic;
    const char *name;
} network[] = {
    {0x6969, "NFS"},        {0x0bd00bd0, "Lustre"}, {0x47504653, "GPFS"},
    {0x19830326, "BeeGFS"}, {0xff534d42, "CIFS"},   {0xfe534d42, "SMB2"},
};

enum { WHY = 320 };

static bool owned(const struct stat *st) {
    return st->st_uid == geteuid() || st->st_uid == 0;
}

bool cache_dir_trusted(const struct stat *st) {
    return owned(st) && !(st->st_mode & (S_IWGRP | S_IWOTH));
}

int cache_dir_sub(int at, const char *name, bool create) {
    const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    int fd = openat(at, name, flags);
    if (fd < 0 && errno == ENOENT && create) {
        if (mkdirat(at, name, 0700) != 0 && errno != EEXIST)
            return -1;
        fd = openat(at, name, flags);
    }
    struct stat st;
    if (fd < 0 || (fstat(fd, &st) == 0 && cache_dir_trusted(&st)))
        return fd;
    close(fd);
    errno = EPERM;
    return -1;
}

/* a + b on the heap, or NULL. */
static char *join(const char *a, const char *b) {
    char *text = NULL;
    return asprintf(&text, "%s%s", a, b) < 0 ? NULL : text;
}

/* Home from the environment, else from the user database; NULL: none. */
static char *home_dir(void) {
    const char *home = secure_getenv("HOME");
    if (home && home[0] == '/')
        return strdup(home);
    struct passwd user, *found = NULL;
    char text[4096];
    if (getpwuid_r(geteuid(), &user, text, sizeof text, &found) != 0 ||
        !found || !found->pw_dir || found->pw_dir[0] != '/')
        return NULL;
    return strdup(found->pw_dir);
}

/* The directory asked for: by name, by XDG, in the home. The part of it up to
 * *must_exist characters is never created: a home that is not there must not
 * be invented. Relative XDG paths are ignored, as its specification says. */
static char *choose(const char *named, size_t *must_exist) {
    *must_exist = 0;
    if (named && named[0] == '/')
        return strdup(named);
    if (named) {
        char cwd[PATH_MAX];
        char *base = getcwd(cwd, sizeof cwd) ? join(cwd, "/") : NULL;
        char *path = base ? join(base, named) : NULL;
        free(base);
        return path;
    }
    const char *xdg = secure_getenv("XDG_CACHE_HOME");
    if (xdg && xdg[0] == '/')
        return join(xdg, "/attnc");
    char *home = home_dir();
    char *path = home ? join(home, "/.cache/attnc") : NULL;
    *must_exist = home ? strlen(home) : 0;
    free(home);
    return path;
}

/* What is wrong with directory `fd`, by its real name. */
static void explain(int fd, const struct stat *st, char why[WHY]) {
    char link[64], name[200];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, name, sizeof name - 1);
    name[len > 0 ? len : 0] = '\0';
    if (!owned(st))
        snprintf(why, WHY, "%s belongs to user %u, not to user %u or root",
                 name, (unsigned)st->st_uid, (unsigned)geteuid());
    else
        snprintf(why, WHY, "others may write to %s (chmod go-w would do)",
                 name);
}

/* In a sticky directory like /tmp others can add names, but not rename or
 * remove one of ours. */
static bool parent_trusted(const struct stat *parent, const struct stat *st) {
    return cache_dir_trusted(parent) ||
           (owned(parent) && (parent->st_mode & S_ISVTX) && owned(st));
}

/* Judges the directory *fd that holds `child`, and all above it, by "..": the
 * directories really passed, whatever links the path had. Closes fd. */
static bool walk_up(int fd, struct stat child, char why[WHY]) {
    struct stat st;
    for (;;) {
        if (fd < 0 || fstat(fd, &st) != 0) {
            snprintf(why, WHY, "a directory above it: %m");
            break;
        }
        if (st.st_ino == child.st_ino && st.st_dev == child.st_dev) {
            close(fd); /* the root is its own parent */
            return true;
        }
        if (!parent_trusted(&st, &child)) {
            explain(fd, &st, why);
            break;
        }
        int up = openat(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
        close(fd);
        fd = up;
        child = st;
    }
    if (fd >= 0)
        close(fd);
    return false;
}

/* Length of the longest part of `path` that is there. */
static size_t present(char *path) {
    size_t end = strlen(path);
    struct stat st;
    while (end > 1) {
        char cut = path[end];
        path[end] = '\0';
        bool there = lstat(path, &st) == 0;
        path[end] = cut;
        if (there)
            break;
        do
            end--;
        while (end > 1 && path[end] != '/');
    }
    return end;
}

/* Makes what is missing of `path`, once the part that is there was judged:
 * nothing is made where nothing could be used, for example by root in the
 * home of somebody else. */
static bool make_dirs(char *path, size_t must_exist, char why[WHY]) {
    size_t len = strlen(path), end = present(path);
    struct stat ours = {.st_uid = geteuid()};
    if (end == len)
        return true; /* judged when it is opened */
    if (end < must_exist) {
        snprintf(why, WHY, "the home directory is missing");
        return false;
    }
    char cut = path[end];
    path[end] = '\0';
    int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    path[end] = cut;
    if (!walk_up(fd, ours, why))
        return false;
    for (end++; end <= len; end++) {
        cut = path[end];
        if (cut != '/' && cut != '\0')
            continue;
        path[end] = '\0';
        bool made = mkdir(path, 0700) == 0 || errno == EEXIST;
        path[end] = cut;
        if (!made) {
            snprintf(why, WHY, "cannot be made: %m");
            return false;
        }
    }
    return true;
}

/* Opens the directory itself; -1 with the reason. */
static int open_leaf(const char *path, char why[WHY]) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && lstat(path, &st) == 0 && S_ISLNK(st.st_mode))
        snprintf(why, WHY, "is a symbolic link; name what it points to");
    else if (fd < 0)
        snprintf(why, WHY, "%m");
    if (fd < 0)
        return -1;
    bool good = fstat(fd, &st) == 0 && cache_dir_trusted(&st);
    if (!good)
        explain(fd, &st, why);
    else
        good = walk_up(openat(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC), st,
                       why);
    if (good)
        return fd;
    close(fd);
    return -1;
}

/* Can entries be added? Makes what adding needs. Else errno says why. */
static bool writable(int fd) {
    int tmp = cache_dir_sub(fd, "tmp", true);
    if (tmp < 0)
        return false;
    bool good = faccessat(tmp, ".", W_OK, AT_EACCESS) == 0 &&
                faccessat(fd, ".", W_OK, AT_EACCESS) == 0;
    int error = errno;
    close(tmp);
    errno = error;
    return good;
}

static void judge_locks(Cache *c) {
    struct statfs fs;
    c->locks = !c->readonly && fstatfs(c->fd, &fs) == 0;
    for (size_t i = 0; c->locks && i < sizeof network / sizeof *network; i++) {
        if ((uint32_t)fs.f_type != network[i].magic)
            continue;
        c->locks = false;
        cache_log(c, ATTNC_LOG_INFO,
                  "%s is on %s: no locks, so processes may compile the same "
                  "kernel; ATTNC_CACHE_DIR on a local disk is faster",
                  c->path, network[i].name);
    }
}

/* Opens v<format> below the leaf and finds out what may be done there. */
static bool open_format(Cache *c, int leaf, char why[WHY]) {
    char name[16];
    snprintf(name, sizeof name, "v%d", CACHE_FORMAT);
    c->fd = cache_dir_sub(leaf, name, !c->readonly);
    if (c->fd < 0) {
        snprintf(why, WHY, "%s in it: %m", name);
        return false;
    }
    if (!c->readonly && !writable(c->fd)) {
        c->readonly = true;
        cache_warn(c, "%s: %m; reading only", c->path);
    }
    judge_locks(c);
    return true;
}

/* The path asked for, made when it may be; NULL, or a path with the reason in
 * why, when it cannot be used. */
static char *wanted(Cache *c, const char *named, char why[WHY]) {
    /* With borrowed rights the environment, and what it leads to, is the
     * choice of somebody else. */
    if (getuid() != geteuid() || getgid() != getegid()) {
        snprintf(why, WHY, "off: real and effective user differ");
        return NULL;
    }
    size_t must_exist;
    char *path = choose(named, &must_exist);
    if (!path) {
        snprintf(why, WHY, "no home directory");
        return NULL;
    }
    /* A trailing slash would make open() follow a link. */
    for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--)
        path[n - 1] = '\0';
    if (!c->readonly)
        make_dirs(path, must_exist, why);
    return path;
}

void cache_dir_open(Cache *c, const char *option) {
    char why[WHY] = "";
    const char *named = option ? option : secure_getenv("ATTNC_CACHE_DIR");
    if (named && !named[0])
        return; /* asked for: no disk */
    char *path = wanted(c, named, why);
    int leaf = path && !why[0] ? open_leaf(path, why) : -1;
    c->path = path;
    if (leaf < 0 || !open_format(c, leaf, why)) {
        cache_warn(c, "%s%s%s; keeping kernels in memory only",
                   path ? path : "", path ? ": " : "", why);
        free(path);
        c->path = NULL;
    }
    if (leaf >= 0)
        close(leaf);
}
