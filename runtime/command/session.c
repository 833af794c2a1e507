/* SPDX-License-Identifier: Apache-2.0
 * Between the command and the library: contexts from options, the variables
 * that name code, warnings and errors. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"

Str session_warnings;

static void on_log(void *user, int level, const char *line) {
    (void)user;
    if (level == ATTNC_LOG_WARNING)
        str_addf(&session_warnings, "attnc: warning: %s\n", line);
}

static const char *target(const Options *o) {
    const char *text = o->given[OPT_target].text;
    return text ? text : "auto";
}

int session_cache(Cache **out, Err *e) {
    CacheOptions options = {.log = on_log};
    return cache_open(&options, out, e);
}

int session_device(const Options *o, Device *out, Err *e) {
    Cache *cache = NULL;
    int rc = session_cache(&cache, e);
    rc = rc ? rc : probe_target(target(o), cache_dir(cache), out, e);
    cache_close(cache);
    return rc;
}

bool session_compiler(Compiler *out) {
    return compiler_find(getenv("ATTNC_COMPILERS"), out);
}

static const char *templates_dir(void) {
    const char *dir = getenv("ATTNC_TEMPLATES");
    return dir && dir[0] ? dir : NULL;
}

int session_templates(const Templates **out, Err *e) {
    *out = &attnc_templates;
    return templates_dir() ? templates_read(templates_dir(), out, e) : 0;
}

int session_open(const Options *o, int threads, attnc_context **out, Err *e) {
    attnc_options options = ATTNC_OPTIONS_INIT;
    const char *off = getenv("ATTNC_NO_COMPILE");
    options.target = target(o);
    options.no_compile = off && off[0] && strcmp(off, "0") != 0;
    options.compilers = getenv("ATTNC_COMPILERS");
    options.templates_dir = templates_dir();
    options.threads = threads;
    options.log = on_log;
    char *cuda_dirs = session_cuda_dirs();
    options.cuda_dirs = cuda_dirs;
    int created = attnc_context_create(&options, out);
    free(cuda_dirs);
    if (created != 0)
        return session_error(e);
    const Device *device = &(*out)->device;
    int rc = 0;
    if (device->kind == DEVICE_CPU && !probe_runs(device->arch))
        rc = err_set(e, ATTNC_E_MISSING, "command", NULL,
                     "--target %s: this machine cannot run %s; nearest: cpu",
                     target(o), device->arch);
    return rc;
}

/* ---- errors ------------------------------------------------------------ */

static void add_text(Err *e, const char *before, const char *text) {
    size_t len = strlen(e->text);
    snprintf(e->text + len, sizeof e->text - len, "%s%s", before, text);
}

void session_keep_log(const char *log, const char *what, Err *e) {
    const char *dir = getenv("TMPDIR");
    char path[256];
    int n = snprintf(path, sizeof path, "%s/attnc-XXXXXX.log",
                     dir && dir[0] ? dir : "/tmp");
    int fd = n < (int)sizeof path ? mkstemps(path, 4) : -1;
    if (fd < 0)
        return;
    ssize_t got = write(fd, log, strlen(log));
    close(fd);
    if (got < 0)
        return;
    add_text(e, "; ", what);
    add_text(e, " kept in ", path);
}

int session_error(Err *e) {
    const attnc_error *last = attnc_last_error();
    if (e->code)
        return e->code;
    e->code = last->status ? last->status : ERR_INTERNAL;
    snprintf(e->stage, sizeof e->stage, "%s", last->stage);
    snprintf(e->field, sizeof e->field, "%s", last->field);
    snprintf(e->text, sizeof e->text, "%s", last->text);
    if (e->code == ATTNC_E_COMPILE)
        session_keep_log(last->log, "its output is", e);
    else if (last->hint[0])
        add_text(e, "; ", last->hint);
    return e->code;
}
