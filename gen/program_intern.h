/* SPDX-License-Identifier: Apache-2.0
 * The table of programs: what of a text is kept, and how it is entered. */
#ifndef ATTNC_PROGRAM_INTERN_H
#define ATTNC_PROGRAM_INTERN_H

#include <stdatomic.h>

#include "pattern.h"
#include "program.h"

/* Of the tiles of queries x keys that cover nq x nk: met by a pattern at all,
 * and only in part (spec_share.c). */
typedef struct Share {
    struct Share *next;
    int64_t nq, nk, queries, keys;
    double any, part;
} Share;

struct attnc_program {
    int kind;                /* enum program_kind, or one of a spec's own */
    const char *text;        /* canonical; of a spec's own a key */
    Program graph;           /* masks, scores */
    Pattern pattern;         /* PROGRAM_PATTERN; without lengths */
    ProgramGrad grad;        /* PROGRAM_SPEC_GRAD */
    _Atomic(Share *) shares; /* PROGRAM_PATTERN: counted so far */
    _Atomic(struct Loads *) loads; /* likewise: order.h */
};

/* A spec's own: what it puts together of several. */
enum { PROGRAM_SPEC_KEEP = 64, PROGRAM_SPEC_SCORE, PROGRAM_SPEC_GRAD };

/* NULL: not there. */
const attnc_program *intern_find(const char *text, int kind);
/* Takes *p over, its text too (NULL: out of memory), and returns it or the
 * equal one that came first; NULL: *e is set. */
const attnc_program *intern_add(attnc_program *p, Err *e);
/* Frees what it holds. */
void intern_drop(attnc_program *p);

#endif
