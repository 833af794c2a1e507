/* SPDX-License-Identifier: Apache-2.0
 * What went wrong last in each thread, the sentences of the statuses, a
 * compiler's errors at their templates, and the log callback. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

/* Strings of a thread's last error; the log alone is on the heap. */
typedef struct Record {
    attnc_error error;
    Err err;
} Record;

static _Thread_local Record last;

/* Holds each thread's log, so that it is freed when the thread ends. */
static pthread_key_t log_key;
static bool have_key;

__attribute__((constructor)) static void make_key(void) {
    have_key = pthread_key_create(&log_key, free) == 0;
}

/* Before the code of `free`'s caller could be unloaded. */
__attribute__((destructor)) static void drop_key(void) {
    if (!have_key)
        return;
    free(pthread_getspecific(log_key));
    pthread_key_delete(log_key);
    have_key = false;
}

/* The usual remedy, by stage and status. */
static const struct {
    const char *stage;
    int code;
    const char *hint;
} hints[] = {
    {"lua", ATTNC_E_MISSING, "install Lua 5.4 (Debian: liblua5.4-0)"},
    {"nvrtc", ATTNC_E_MISSING,
     "install the CUDA toolkit, or pip install nvidia-cuda-nvrtc and name its "
     "site-packages in cuda_dirs"},
    {"cuda", ATTNC_E_MISSING,
     "install NVIDIA's driver, or choose a target without a GPU: cpu"},
    {"compile", ATTNC_E_MISSING,
     "install clang 14 or newer, or gcc with binutils"},
    {"compile", ATTNC_E_COMPILE,
     "attnc_last_error()->log holds all the compiler said"},
    {"cache", ATTNC_E_NOT_CACHED,
     "prepare it once where compiling is on, or allow it here"},
    {"load", ATTNC_E_MISSING, "choose a target this machine can run: cpu"},
    {"load", ATTNC_E_REQUEST, "pin a smaller tile"},
    {"load", ATTNC_E_MEMORY, "free memory of the GPU"},
    {"launch", ATTNC_E_MISSING, "choose a target this machine can run: cpu"},
    {"launch", ATTNC_E_MEMORY,
     "free memory of the GPU, or provide a workspace of your own"},
    {"launch", ATTNC_E_PROMISE,
     "prepare with a shape that promises less, or use attnc_run"},
    {"launch", ATTNC_E_WORKSPACE,
     "ask attnc_workspace for the size; align it to 64 bytes"},
};

const char *error_hint(const Err *e) {
    for (size_t i = 0; i < sizeof hints / sizeof hints[0]; i++)
        if (hints[i].code == e->code && !strcmp(hints[i].stage, e->stage))
            return hints[i].hint;
    return "";
}

/* The calling thread's copy of the log; "" when there is none. */
static const char *keep_log(const char *log) {
    if (!have_key)
        return "";
    free(pthread_getspecific(log_key));
    char *copy = log && *log ? strdup(log) : NULL;
    if (pthread_setspecific(log_key, copy) != 0) {
        free(copy);
        copy = NULL;
    }
    return copy ? copy : "";
}

int error_publish(const Err *e, const char *hint, const char *log) {
    last.err = *e;
    if (!last.err.code)
        last.err.code = ATTNC_E_INTERNAL;
    last.error = (attnc_error){
        .status = last.err.code,
        .stage = last.err.stage,
        .field = last.err.field,
        .text = last.err.text,
        .hint = hint ? hint : error_hint(e),
        .log = keep_log(log),
    };
    return last.err.code;
}

bool error_at_template(const char *log, const char *mark, const Source *s,
                       const Templates *t, Err *e) {
    static const char word[] = "error: ";
    const char *text = strstr(log, word), *p = text;
    while (p && p > log && p[-1] != '\n')
        p--;
    p = p ? strstr(p, mark) : NULL;
    if (!p || p > text)
        return false;
    size_t line = strtoul(p + strlen(mark), NULL, 10);
    if (line < 1 || line > s->nline)
        return false;
    uint32_t from = s->line[line - 1];
    if (from >> 16 >= t->count)
        return false;
    text += sizeof word - 1;
    err_set(e, ATTNC_E_COMPILE, "compile", NULL, "%s:%u: %.*s",
            t->t[from >> 16].name, from & 0xffff, (int)strcspn(text, "\n"),
            text);
    return true;
}

const attnc_error *attnc_last_error(void) {
    if (!last.error.stage)
        last.error = (attnc_error){0, "", "", "", "", ""};
    return &last.error;
}

const char *attnc_status_text(int status) {
    switch (status) {
#define X(suffix, value, exit_status, sentence)                                \
    case value:                                                                \
        return sentence;
        ATTNC_STATUS_LIST(X)
#undef X
    }
    return "not a status of attnc";
}

int attnc_version(void) {
    return ATTNC_VERSION_MAJOR * 10000 + ATTNC_VERSION_MINOR * 100 +
           ATTNC_VERSION_PATCH;
}

void context_log(const attnc_context *c, int level, const char *fmt, ...) {
    if (!c->options.log)
        return;
    char line[ERR_TEXT];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    c->options.log(c->options.log_user, level, line);
}
