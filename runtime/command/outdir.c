/* SPDX-License-Identifier: Apache-2.0
 * Output files that appear whole or not at all: written beside their place
 * under another name, then renamed. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "command.h"

static int failed(const char *path, const char *what, Err *e) {
    return err_set(e, ATTNC_E_IO, "command", NULL, "%s: %s: %s", path, what,
                   strerror(errno));
}

/* The file that proves a directory writable leaves no trace. */
int outdir_check(const char *dir, Err *e) {
    OutFile f;
    if (mkdir(dir, 0777) != 0 && errno != EEXIST)
        return failed(dir, "cannot make the directory", e);
    int rc = outfile_open(dir, "probe", &f, e);
    if (rc == 0)
        outfile_drop(&f);
    return rc;
}

int outfile_open(const char *dir, const char *name, OutFile *f, Err *e) {
    size_t len = strlen(dir) + strlen(name) + 16;
    *f = (OutFile){.path = malloc(len), .temp = calloc(1, len), .fd = -1};
    if (!f->path || !f->temp) {
        outfile_drop(f);
        return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    }
    snprintf(f->path, len, "%s/%s", dir, name);
    snprintf(f->temp, len, "%s/.%s.XXXXXX", dir, name);
    f->fd = mkostemp(f->temp, O_CLOEXEC);
    if (f->fd >= 0)
        return 0;
    int rc = failed(dir, "cannot write there", e);
    f->temp[0] = '\0';
    outfile_drop(f);
    return rc;
}

int outfile_beside(const char *path, OutFile *f, Err *e) {
    const char *slash = strrchr(path, '/');
    char *dir = slash ? strndup(path, (size_t)(slash - path + 1)) : strdup(".");
    if (!dir)
        return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    int rc = outfile_open(dir, slash ? slash + 1 : path, f, e);
    free(dir);
    return rc;
}

int outfile_write(OutFile *f, const void *data, size_t len, Err *e) {
    const char *p = data;
    while (len) {
        ssize_t n = write(f->fd, p, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return failed(f->path, "writing failed", e);
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

/* The rights an ordinary new file would have. */
static void usual_mode(int fd) {
    mode_t mask = umask(0);
    umask(mask);
    fchmod(fd, 0666 & ~mask);
}

static int settle(OutFile *f, Err *e) {
    usual_mode(f->fd);
    int rc = fsync(f->fd) != 0 && errno != EINVAL;
    if (close(f->fd) != 0)
        rc = 1;
    f->fd = -1;
    return rc ? failed(f->path, "writing failed", e) : 0;
}

int outfile_publish(OutFile *f, int n, Err *e) {
    int rc = 0;
    for (int i = 0; i < n && rc == 0; i++)
        rc = settle(&f[i], e);
    for (int i = 0; i < n && rc == 0; i++) {
        if (rename(f[i].temp, f[i].path) != 0)
            rc = failed(f[i].path, "cannot be replaced", e);
        else
            f[i].temp[0] = '\0';
    }
    for (int i = 0; i < n; i++)
        outfile_drop(&f[i]);
    return rc;
}

void outfile_drop(OutFile *f) {
    if (f->fd >= 0)
        close(f->fd);
    if (f->temp && f->temp[0])
        unlink(f->temp);
    free(f->path);
    free(f->temp);
    *f = (OutFile){.fd = -1};
}
