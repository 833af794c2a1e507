/* SPDX-License-Identifier: Apache-2.0
 * Block-sparse patterns: which keys a query sees, as rules, as lists of
 * blocks, as mask programs, as pictures. The rules: pattern.def. */
#ifndef ATTNC_PATTERN_H
#define ATTNC_PATTERN_H

#include "gen.h"

enum pattern_kind {
#define PATTERN(kind, name, grain, doc) PATTERN_##kind,
#include "pattern.def"
#undef PATTERN
    PATTERNS
};

enum {
    PATTERN_LEAST_BLOCK = 16,
    PATTERN_MOST_BLOCK = 256,
    PATTERN_DRAWS = 64,
    /* so that a n of butterfly stays in int32 in kernels */
    PATTERN_MOST_BLOCKS = 46340
};

/* Arguments of all kinds; a kind uses those pattern.def lists for it. */
typedef struct PatternArgs {
    int64_t c, w, back, forward, exact, window, global, random, seed, causal,
        stride, vert, verts, horizontal, m;
} PatternArgs;

typedef struct Pattern {
    int kind;      /* enum pattern_kind */
    int64_t block; /* B; of element-wise kinds the grain of their lists */
    PatternArgs a;
    int64_t nq, nk; /* lengths, after pattern_size */
    int64_t nbq, nbk;
    /* kind BSR: of block row a of head h the blocks
     * index[indptr[h' (nbq + 1) + a]] .., h' = 0 where bsr_heads is 1. */
    const int32_t *indptr, *index;
    int64_t indices, bsr_heads; /* numbers in `index`; lists */
} Pattern;

/* ---- pattern_spec.c ---------------------------------------------------- */

const char *pattern_name(int kind);
bool pattern_is_element(int kind);
/* Calls fn for every pattern and each of its arguments (name NULL: the
 * pattern itself): what docs and help list. */
void pattern_rows(void (*fn)(void *user, const char *pattern,
                             const char *argument, int64_t def, int64_t lo,
                             int64_t hi, const char *doc),
                  void *user);
/* "NAME", "NAME:first" or "NAME:key=value,..." -> *p. block 0: not given, 64;
 * given for an element-wise kind: refused. */
int pattern_parse(const char *text, int64_t block, Pattern *p, Err *e);
/* Canonical: every argument of the kind, and the block where it matters. */
void pattern_print(const Pattern *p, Str *out);
/* Sets the lengths; refuses arguments that do not go with them. BSR arrays are
 * set before: rows of `heads` (1: shared) lists, which must rise by rows, lie
 * in range and name no block twice; order within a row is free. */
int pattern_size(Pattern *p, int64_t nq, int64_t nk, Err *e);
/* Heads whose lists differ: h and h % pattern_heads() are alike; 0: all do. */
int64_t pattern_heads(const Pattern *p);

/* ---- pattern.c --------------------------------------------------------- */

/* The definition: does query i of head h see key j? i < nq, j < nk. */
bool pattern_visible(const Pattern *p, int64_t h, int64_t i, int64_t j);
/* Is block (a, e) kept? Of element-wise kinds: does any pair see? */
bool pattern_keep(const Pattern *p, int64_t h, int64_t a, int64_t e);
enum { BLOCK_EMPTY, BLOCK_PARTIAL, BLOCK_FULL };
/* All, some or none of the block's pairs that lie in the lengths. */
int pattern_verdict(const Pattern *p, int64_t h, int64_t a, int64_t e);
/* Pairs of the block that see. */
int64_t pattern_pairs(const Pattern *p, int64_t h, int64_t a, int64_t e);
/* ds-fixed: is block x of nb a global one? */
bool pattern_ds_global(const Pattern *p, int64_t h, int64_t x, int64_t nb);

/* ---- pattern_draw.c ---------------------------------------------------- */

/* Blocks drawn for row a of head h into out[PATTERN_DRAWS]; returns how many.
 * Draw t takes word t & 3 of Philox4x32-7 with key seed and counter
 * {t / 4, a, h, 0}: the floor(word n / 2^32)-th of the n candidates left. */
int pattern_draw(const Pattern *p, int64_t h, int64_t a,
                 int64_t out[PATTERN_DRAWS]);

/* ---- pattern_list.c ---------------------------------------------------- */

/* Blocks of one head, by row of blocks: of row a full[full_at[a]] ..
 * full[full_at[a + 1] - 1] need no mask, part[..] do; ascending. */
typedef struct BlockList {
    int64_t rows, columns;
    int64_t *full_at, *part_at; /* rows + 1 each */
    int32_t *full, *part;
} BlockList;

/* Time and memory O(blocks kept + rows + columns). */
int pattern_list(const Pattern *p, int64_t h, BlockList *out, Err *e);
/* Of a pattern without a closed form: sets bit a * width + e of `to`, which is
 * zero, for each block (a, e) that head h keeps. width: multiple of 32. */
void pattern_mark(const Pattern *p, int64_t h, uint32_t *to, int64_t width);
/* Calls fn for each block (a, e) that head h keeps. */
int pattern_each(const Pattern *p, int64_t h,
                 void (*fn)(void *user, int64_t a, int64_t e), void *user,
                 Err *e);
/* The same blocks by column. */
int blocks_transpose(const BlockList *in, BlockList *out, Err *e);
void blocks_free(BlockList *x);
/* Kept blocks / all blocks. */
double blocks_density(const BlockList *x);

/* ---- pattern_program.c ------------------------------------------------- */

/* The pattern as text of a mask program over any lengths; false: it has no
 * closed form (drawn, or listed). */
bool pattern_program(const Pattern *p, Str *out);

/* ---- pattern_picture.c ------------------------------------------------- */

/* One line a block row, a character a block: empty, partial, full by
 * `symbols` (".+#", or "011" as --print-blocks has it). */
void pattern_text(const BlockList *x, const char *symbols, Str *out);
/* The same as a picture of `width` pixels, blocks merged into runs. */
void pattern_svg(const BlockList *x, int width, Str *out);

#endif
