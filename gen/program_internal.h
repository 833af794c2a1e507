/* SPDX-License-Identifier: Apache-2.0
 * What the files that read a program's text share. */
#ifndef ATTNC_PROGRAM_INTERNAL_H
#define ATTNC_PROGRAM_INTERNAL_H

#include "program.h"

enum { PARSE_LETS = 256 };
enum token {
    TOKEN_END,
    TOKEN_INT,
    TOKEN_FLOAT,
    TOKEN_NAME,
    TOKEN_SIGN,
    TOKEN_BAD
};

typedef struct Let {
    char name[PROGRAM_NAME];
    int node;
} Let;

typedef struct Parser {
    const char *text;
    Program *p;
    Err *e;
    size_t at;  /* where the word at hand begins */
    Slice word; /* the word at hand */
    int token;  /* enum token */
    int depth, nlet;
    char found[PROGRAM_NAME + 8];
    Let let[PARSE_LETS];
} Parser;

/* ---- program_words.c --------------------------------------------------- */

/* Records a fault at a place of the text; returns -1. */
int parse_fail(Parser *x, size_t at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void parse_next(Parser *x);       /* to the next word */
char parse_peek(const Parser *x); /* the first character of the next word */
bool parse_at(const Parser *x, const char *sign);
bool parse_expect(Parser *x, const char *sign); /* and steps over it */
const char *parse_found(Parser *x); /* the word at hand, for messages */

/* ---- program_types.c --------------------------------------------------- */

bool parse_is(const Parser *x, int node, int type);
/* Tells that `what` takes `wanted` and not this node; returns -1. */
int parse_wrong_type(Parser *x, size_t at, const char *what, const char *wanted,
                     int node);
/* op of one or two (b = a) arguments, which are checked and made alike. */
int parse_apply(Parser *x, size_t at, int op, int a, int b);
int parse_choose(Parser *x, size_t at, int c, int a, int b);

/* ---- program_print.c --------------------------------------------------- */

enum { INLINE_HEIGHT = 8 }; /* operations inside each other in one value */

/* Which nodes printed text names: > 0 the running number, -1 those written in
 * place, 0 those not reached. c: C, whose stages divide, too. NULL: no memory;
 * the caller frees it. */
int32_t *program_names(const Program *p, const int *roots, int nroots,
                       const ProgramC *c);
/* Shortest decimal that reads back as the same f32, with a point. */
void program_number(float value, Str *out);

/* ---- program_bound.c, program_bound_float.c ---------------------------- */

Range range_hull(Range a, Range b);
Range range_outward(Range a); /* to f32, over- and underflow included */
/* same: both arguments are one node. */
Range range_float_op(int op, Range a, Range b, bool same);

#endif
