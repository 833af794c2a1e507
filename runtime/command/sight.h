/* SPDX-License-Identifier: Apache-2.0
 * What the queries of one head see: built-in mask, key lengths, mask program
 * and pattern together, of whole tiles by intervals, of pairs exactly. */
#ifndef ATTNC_SIGHT_H
#define ATTNC_SIGHT_H

#include "pattern.h"
#include "reference_rows.h"

typedef struct Sight {
    RefProblem p; /* only its spec, arguments and programs */
    RefEval eval;
    Range *range; /* of each node of the mask's graph */
    int64_t b, h;
    RefSeq seq;
    unsigned deps; /* DEP_ bits of what the mask changes with */
} Sight;

/* The arguments' tensors stay the caller's. */
int sight_open(const attnc_spec *s, const attnc_args *a, Sight *out, Err *e);
void sight_close(Sight *s);
/* From here on it is about this entry and query head. */
void sight_head(Sight *s, int64_t b, int64_t h);

/* A tile of queries [q0, q1) and keys [k0, k1), none of them empty. */
typedef struct SightTile {
    int64_t q0, q1, k0, k1;
} SightTile;

/* enum verdict, as a kernel would find it: PARTIAL when not proven. */
int sight_verdict(Sight *s, SightTile t);
/* enum verdict, exact. */
int sight_state(Sight *s, SightTile t);
/* Pairs that see each other. */
int64_t sight_pairs(Sight *s, SightTile t);
/* The same over all entries and heads. */
double sight_all_pairs(Sight *s);
/* The head's blocks of `side` queries and keys; free with blocks_free. */
int sight_blocks(Sight *s, int64_t side, BlockList *out, Err *e);

#endif
