/* SPDX-License-Identifier: Apache-2.0
 * Where the work of a pattern lies, and which work items start first. */
#ifndef ATTNC_ORDER_H
#define ATTNC_ORDER_H

#include "pattern.h"
#include "program.h"

/* How many blocks each row and each column of blocks keeps. Of head h the rows
 * come first in count + h % heads * (rows + columns), then the columns. */
typedef struct Loads {
    struct Loads *next;
    int64_t nq, nk;
    int mask;      /* enum attnc_mask: what it hides does not count */
    int64_t block; /* side */
    int64_t heads; /* lists: h and h % heads are alike */
    int64_t rows, columns;
    int32_t count[];
} Loads;

typedef struct Lengths {
    int64_t group, nq, nk; /* group: query heads that share a key head */
} Lengths;

/* How work items share out the rows, or the keys, of a kv head. */
typedef struct Items {
    bool by_keys, downwards; /* the first item has the last rows */
    int64_t group;           /* rows of a query: heads that share keys */
    int64_t rows, block;     /* all; of an item */
    int64_t unit;            /* > 0: blocks are evened out in whole units */
    int64_t splits;          /* items of a block, side by side */
} Items;

enum { ORDER_FIRST = 64 };

/* Items that start before the others, which keep their order. Loads repeat
 * after `period` blocks of rows or keys; 0: all come as they are. */
typedef struct Order {
    int64_t period, splits, count;
    int n;
    int32_t first[ORDER_FIRST];  /* places in a period, longest first */
    int32_t rising[ORDER_FIRST]; /* the same, ascending */
} Order;

/* ---- load.c ------------------------------------------------------------ */

/* Of a sized pattern under a mask that has its usual numbers (model.c); of
 * its first `heads` heads. NULL: no memory. Freed by free(). */
Loads *loads_make(const Pattern *p, int mask, int64_t heads);
/* Of the spec's pattern at these lengths, counted once and kept beside it.
 * NULL: none is known: no pattern, bsr, whose blocks come with the launch, or
 * no memory; or more than LOADS_KEPT lengths were asked for. */
enum { LOADS_KEPT = 512 };
const Loads *spec_loads(const attnc_spec *s, int64_t nq, int64_t nk);

/* ---- model.c ----------------------------------------------------------- */

/* Splits in which rows that lie together see some key of a pattern. */
double model_splits_met(const attnc_spec *s, const attnc_shape *h, int split_k);

/* ---- order.c ----------------------------------------------------------- */

/* Items of a kv head, its splits not counted. */
int64_t items_blocks(const Items *x);
/* Pairs of a row and a key that block `i` of a kv head may see. */
double items_load(const Items *x, const Loads *l, int64_t kv_head, int64_t i);
/* Of the item that has most. */
double items_longest(const Items *x, const Loads *l, int64_t kv_heads);
/* Share of all blocks that the row of blocks keeps, or the column, that has
 * most. */
double loads_most(const Loads *l, bool by_keys);
/* Of all items of a batch entry. */
double items_total(const Items *x, const Loads *l, int64_t kv_heads);
/* Of a step for a CPU at these lengths; false: its items are alike, or one. */
bool items_of(const Device *d, int role, const Tile *t, const Lengths *n,
              Items *out);
/* Of `count` items those go first whose load is clearly above the mean. */
void order_make(const Items *x, const Loads *l, int64_t kv_heads, int64_t count,
                Order *out);
/* The item that starts as number i: a permutation of 0 .. count - 1. */
int64_t order_item(const Order *o, int64_t i);
/* What a kernel is told that numbers its items itself: rows of queries, or
 * keys, at the beginning and the end of a head that are such, for any lengths:
 * counted at ENDS_AT of both. 0 and 0: packed sequences, or none are. */
enum { ENDS_AT = 16384 };
void order_ends(const attnc_spec *s, bool by_keys, int64_t *low, int64_t *high);
/* The same for a step of a plan for a GPU. */
void order_step_ends(const attnc_spec *s, int role, int64_t *low,
                     int64_t *high);

#endif
