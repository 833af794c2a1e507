/* SPDX-License-Identifier: Apache-2.0
 * One compilation: its private directory, its children and what they left. */
#ifndef ATTNC_COMPILE_INTERNAL_H
#define ATTNC_COMPILE_INTERNAL_H

#include "runtime.h"

enum { COMPILE_ARGS = 40, COMPILE_PATH = 512 };

/* The argument list of one child. */
typedef struct Words {
    char *v[COMPILE_ARGS];
    int n;
} Words;

typedef struct Work {
    const CompileJob *job;
    char dir[COMPILE_PATH];
    char source[COMPILE_PATH + 16]; /* kernel.c */
    char shared[COMPILE_PATH + 16]; /* kernel.so: what is wanted in the end */
} Work;

/* Adds a word; the list ends with NULL at all times. */
void work_word(Words *words, const char *text);
/* Makes the private directory and writes the source, then `more`, there. */
int work_enter(Work *w, const CompileJob *j, const char *more, Err *e);
/* Removes the directory and everything in it. */
void work_leave(Work *w);
/* What a child's end means: it has to leave `output` behind. status as from
 * child_wait(). The first error of the log, at its template line. */
int work_ended(Work *w, const char *name, int status, const char *output,
               const Str *log, Err *e);
/* Runs the words and waits. */
int work_run(Work *w, const Words *words, const char *output, Str *log, Err *e);
/* The whole of w->shared. */
int work_read(Work *w, Blob *out, Err *e);

#endif
