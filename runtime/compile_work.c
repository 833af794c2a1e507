/* SPDX-License-Identifier: Apache-2.0
 * Where compilers work: a private directory that is removed whatever happens,
 * and what is made of a child's end and its words. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "compile_internal.h"

static const char prefix[] = "attnc-cc-"; /* of private directories */

enum { OBJECT_MAX = 64 << 20 };

void work_word(Words *words, const char *text) {
    words->v[words->n++] = (char *)text;
    words->v[words->n] = NULL;
}

/* ---- the private directory ---------------------------------------------- */

/* Removes the files of a directory, and then itself. */
static void remove_dir(int at, const char *name) {
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    for (struct dirent *f; d && (f = readdir(d));)
        if (f->d_name[0] != '.')
            unlinkat(fd, f->d_name, 0);
    if (d)
        closedir(d);
    else if (fd >= 0)
        close(fd);
    unlinkat(at, name, AT_REMOVEDIR);
}

/* Removes what killed processes left an hour ago and longer. */
static void sweep(const char *base) {
    DIR *d = opendir(base);
    struct stat st;
    for (struct dirent *f; d && (f = readdir(d));)
        if (!strncmp(f->d_name, prefix, strlen(prefix)) &&
            strlen(f->d_name) == strlen(prefix) + 6 &&
            fstatat(dirfd(d), f->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISDIR(st.st_mode) && st.st_uid == geteuid() &&
            st.st_mtime < time(NULL) - 3600)
            remove_dir(dirfd(d), f->d_name);
    if (d)
        closedir(d);
}

static bool make_dir(Work *w, const char *base) {
    int n = base && *base == '/'
                ? snprintf(w->dir, COMPILE_PATH, "%s/%sXXXXXX", base, prefix)
                : COMPILE_PATH;
    if (n >= COMPILE_PATH || !mkdtemp(w->dir))
        return false;
    sweep(base);
    return true;
}

static int enter_dir(Work *w, Err *e) {
    if (!make_dir(w, secure_getenv("TMPDIR")) && !make_dir(w, "/tmp") &&
        !make_dir(w, w->job->dir))
        return err_set(e, ATTNC_E_IO, "compile", NULL,
                       "no place for temporary files (TMPDIR, /tmp): %s",
                       strerror(errno));
    snprintf(w->source, sizeof w->source, "%s/kernel.c", w->dir);
    snprintf(w->shared, sizeof w->shared, "%s/kernel.so", w->dir);
    return 0;
}

static int write_source(Work *w, const char *more, Err *e) {
    const Str *text = &w->job->source->text;
    FILE *f = fopen(w->source, "wxe");
    bool ok = f && fwrite(text->text, 1, text->len, f) == text->len &&
              fputs(more, f) >= 0;
    if (f && fclose(f) != 0)
        ok = false;
    return ok ? 0
              : err_set(e, ATTNC_E_IO, "compile", NULL,
                        "cannot write the source in %s: %s", w->dir,
                        strerror(errno));
}

int work_enter(Work *w, const CompileJob *j, const char *more, Err *e) {
    *w = (Work){.job = j};
    int rc = enter_dir(w, e);
    if (rc)
        return rc;
    rc = write_source(w, more, e);
    if (rc)
        work_leave(w);
    return rc;
}

void work_leave(Work *w) {
    remove_dir(AT_FDCWD, w->dir);
}

/* Whole file, at most OBJECT_MAX bytes. */
int work_read(Work *w, Blob *out, Err *e) {
    struct stat st;
    int fd = open(w->shared, O_RDONLY | O_CLOEXEC);
    *out = (Blob){0};
    if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size > 0 &&
        st.st_size < OBJECT_MAX && (out->data = malloc((size_t)st.st_size))) {
        ssize_t n = read(fd, out->data, (size_t)st.st_size);
        out->len = n == st.st_size ? (size_t)n : 0;
    }
    int error = errno;
    if (fd >= 0)
        close(fd);
    if (out->len)
        return 0;
    free(out->data);
    out->data = NULL;
    return err_set(e, ATTNC_E_IO, "compile", NULL,
                   "cannot read the object made: %s", strerror(error));
}

/* ---- children ----------------------------------------------------------- */

static int failed(Work *w, const char *name, int status, const Str *log,
                  Err *e) {
    const char *text = log->text ? log->text : "";
    const CompileJob *j = w->job;
    if (error_at_template(text, "kernel.c:", j->source, j->templates, e))
        return e->code;
    const char *error = strstr(text, "error: ");
    error = error ? error : text;
    if (status != CHILD_STOLEN && WIFSIGNALED(status))
        return err_set(e, ATTNC_E_COMPILE, "compile", NULL,
                       "%s was killed by signal %d%s", name, WTERMSIG(status),
                       WTERMSIG(status) == SIGKILL ? "; was memory short?"
                                                   : "");
    return err_set(e, ATTNC_E_COMPILE, "compile", NULL, "%s failed: %.*s", name,
                   (int)strcspn(error, "\n"), error);
}

int work_ended(Work *w, const char *name, int status, const char *output,
               const Str *log, Err *e) {
    struct stat st;
    if (status < 0)
        return e->code;
    if ((status == 0 || status == CHILD_STOLEN) && stat(output, &st) == 0 &&
        st.st_size > 0)
        return 0;
    return failed(w, name, status, log, e);
}

int work_run(Work *w, const Words *words, const char *output, Str *log,
             Err *e) {
    int status = child_run(words->v, -1, w->dir, log, e);
    return work_ended(w, words->v[0], status, output, log, e);
}
