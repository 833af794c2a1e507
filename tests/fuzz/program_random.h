/* SPDX-License-Identifier: Apache-2.0
 * Texts of random programs. */
#ifndef PROGRAM_RANDOM_H
#define PROGRAM_RANDOM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "program.h"

/* ---- chance ------------------------------------------------------------ */

static inline uint32_t roll(uint64_t *seed) {
    *seed += 0x9e3779b97f4a7c15u;
    uint64_t z = (*seed ^ *seed >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ z >> 31) >> 16);
}

static inline int below(uint64_t *seed, int n) {
    return (int)(roll(seed) % (uint32_t)n);
}

/* Tensors every random program may read. */
#define RANDOM_TENSORS                                                         \
    "i32 doc[:,:]; i32 len[:]; f32 slope[:]; f32 bias[:,:,:]; f16 row[:]; "    \
    "bool on[:,:]; bits lit[:,:]; "
enum { DOC, LEN, SLOPE, BIAS, ROW, ON, LIT, RANDOM_ARRAYS };

static inline void random_expr(uint64_t *seed, int type, int depth, bool score,
                               Str *out);

static inline void text_of_int(uint64_t *seed, int depth, Str *out) {
    static const char *const leaf[] = {"q",  "k", "b", "h",   "nq",
                                       "nk", "q", "k", "off", "len[b]"};
    static const char *const op[] = {"+", "-", "*", "/",  "%",
                                     "&", "|", "^", "<<", ">>"};
    int pick = below(seed, depth > 0 ? 8 : 2);
    if (pick == 0) {
        str_addf(out, "%d", below(seed, 12) - (below(seed, 3) ? 0 : 6));
    } else if (pick == 1) {
        str_addf(out, "%s", leaf[below(seed, 10)]);
    } else if (pick < 5) {
        str_addf(out, "(");
        random_expr(seed, TYPE_INT, depth - 1, false, out);
        str_addf(out, " %s ", op[below(seed, below(seed, 2) ? 3 : 10)]);
        random_expr(seed, TYPE_INT, depth - 1, false, out);
        str_addf(out, ")");
    } else if (pick == 5) {
        static const char *const call[] = {"min", "max", "select", "abs"};
        int which = below(seed, 4);
        str_addf(out, "%s(", call[which]);
        if (which == 2)
            random_expr(seed, TYPE_BOOL, depth - 1, false, out);
        else
            random_expr(seed, TYPE_INT, depth - 1, false, out);
        for (int i = which == 3 ? 0 : which == 2 ? 2 : 1; i > 0; i--) {
            str_addf(out, ", ");
            random_expr(seed, TYPE_INT, depth - 1, false, out);
        }
        str_addf(out, ")");
    } else if (pick == 6) {
        str_addf(out, below(seed, 2) ? "-" : "~");
        random_expr(seed, TYPE_INT, 0, false, out);
    } else {
        str_addf(out, "doc[b, %s]", below(seed, 2) ? "q" : "k");
    }
}

static inline void text_of_bool(uint64_t *seed, int depth, Str *out) {
    static const char *const compare[] = {"<", "<=", ">", ">=", "==", "!="};
    int pick = below(seed, depth > 0 ? 8 : 1);
    if (pick < 3) {
        int type = below(seed, 4) ? TYPE_INT : TYPE_FLOAT;
        str_addf(out, "(");
        random_expr(seed, type, depth - 1, false, out);
        str_addf(out, " %s ", compare[below(seed, 6)]);
        random_expr(seed, type, depth - 1, false, out);
        str_addf(out, ")");
    } else if (pick < 6) {
        static const char *const join[] = {"&&", "||", "&", "^"};
        str_addf(out, "(");
        random_expr(seed, TYPE_BOOL, depth - 1, false, out);
        str_addf(out, " %s ", join[below(seed, 4)]);
        random_expr(seed, TYPE_BOOL, depth - 1, false, out);
        str_addf(out, ")");
    } else if (pick == 6) {
        str_addf(out, "!");
        random_expr(seed, TYPE_BOOL, 0, false, out);
    } else {
        static const char *const read[] = {"on[q, k % 5]", "lit[q, k]",
                                           "lit[h + k / 4, q * 2]"};
        str_addf(out, "%s", read[depth % 3]);
    }
}

static inline void text_of_float(uint64_t *seed, int depth, bool score,
                                 Str *out) {
    static const char *const leaf[] = {"slope[h]", "bias[h, q, k]", "row[k]",
                                       "0.5",      "1.5",           "-2.0"};
    static const char *const call[] = {"min",  "max",   "abs",   "exp",
                                       "tanh", "floor", "float", "log"};
    int pick = below(seed, depth > 0 ? 7 : 2);
    if (pick == 0) {
        str_addf(out, "%s", leaf[below(seed, 6)]);
    } else if (pick == 1) {
        str_addf(out, "%s", score ? "s" : leaf[below(seed, 6)]);
    } else if (pick < 5) {
        str_addf(out, "(");
        random_expr(seed, TYPE_FLOAT, depth - 1, score, out);
        str_addf(out, " %c ", "+-*/"[below(seed, 4)]);
        random_expr(seed, TYPE_FLOAT, depth - 1, score, out);
        str_addf(out, ")");
    } else if (pick == 5) {
        int which = below(seed, 8);
        str_addf(out, "%s(", call[which]);
        random_expr(seed, which == 6 ? TYPE_INT : TYPE_FLOAT, depth - 1, score,
                    out);
        if (which < 2) {
            str_addf(out, ", ");
            random_expr(seed, TYPE_FLOAT, depth - 1, score, out);
        }
        str_addf(out, ")");
    } else {
        random_expr(seed, TYPE_BOOL, depth - 1, false, out);
        str_addf(out, " ? ");
        random_expr(seed, TYPE_FLOAT, depth - 1, score, out);
        str_addf(out, " : ");
        random_expr(seed, TYPE_FLOAT, depth - 1, score, out);
    }
}

static inline void random_expr(uint64_t *seed, int type, int depth, bool score,
                               Str *out) {
    str_addf(out, "(");
    if (type == TYPE_INT)
        text_of_int(seed, depth, out);
    else if (type == TYPE_BOOL)
        text_of_bool(seed, depth, out);
    else
        text_of_float(seed, depth, score, out);
    str_addf(out, ")");
}

/* Text of a random program; the caller frees it. */
static inline char *random_text(uint64_t *seed, int kind, int depth) {
    Str s = {0};
    str_addf(&s, RANDOM_TENSORS);
    random_expr(seed, kind == PROGRAM_MASK ? TYPE_BOOL : TYPE_FLOAT, depth,
                kind == PROGRAM_SCORE, &s);
    assert_false(s.bad);
    return s.text;
}

#endif
