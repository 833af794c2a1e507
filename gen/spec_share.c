/* SPDX-License-Identifier: Apache-2.0
 * What a pattern leaves of a grid of tiles: counted from its lists of blocks
 * for the lengths hinted at, and kept beside the pattern, for every candidate
 * of a search asks. */
#include <stdlib.h>
#include <string.h>

#include "program_intern.h"

enum { ROWS_LOOKED_AT = 512 };

/* Which tiles of `keys` one row of tiles meets: `any` block, one in part. */
typedef struct Row {
    const BlockList *list;
    int64_t tiles, keys, block;
    int64_t *met; /* by tile: keys of full blocks, or PART */
} Row;

static const int64_t PART = INT64_MIN;

static void meet(const Row *r, int64_t block, int64_t rows, int64_t whole,
                 bool full) {
    int64_t lo = block * r->block, hi = lo + r->block;
    for (int64_t t = lo / r->keys; t <= (hi - 1) / r->keys && t < r->tiles;
         t++) {
        int64_t from = lo > t * r->keys ? lo : t * r->keys;
        int64_t to = hi < (t + 1) * r->keys ? hi : (t + 1) * r->keys;
        if (r->met[t] == PART)
            continue;
        r->met[t] += (to - from) * rows;
        if (!full || r->met[t] > whole)
            r->met[t] = PART;
    }
}

/* Adds tiles met at all, and those in part, of the queries q0 .. q1 - 1. */
static void count_row(const Row *r, int64_t q0, int64_t q1, int64_t nk,
                      double *any, double *part) {
    const BlockList *x = r->list;
    memset(r->met, 0, (size_t)r->tiles * sizeof *r->met);
    int64_t whole = (q1 - q0) * r->keys;
    for (int64_t a = q0 / r->block; a <= (q1 - 1) / r->block; a++) {
        int64_t from = q0 > a * r->block ? q0 : a * r->block;
        int64_t to = q1 < (a + 1) * r->block ? q1 : (a + 1) * r->block;
        for (int64_t i = x->full_at[a]; i < x->full_at[a + 1]; i++)
            meet(r, x->full[i], to - from, whole, true);
        for (int64_t i = x->part_at[a]; i < x->part_at[a + 1]; i++)
            meet(r, x->part[i], to - from, whole, false);
    }
    for (int64_t t = 0; t < r->tiles; t++) {
        bool cut = (t + 1) * r->keys > nk;
        *any += r->met[t] != 0;
        *part += r->met[t] == PART || (r->met[t] && !cut && r->met[t] < whole);
    }
}

/* Every row of tiles, or ROWS_LOOKED_AT of them, evenly spaced. */
static void count(const BlockList *list, int64_t block, const attnc_shape *h,
                  Share *out) {
    Row r = {list, (h->seqlen_k + out->keys - 1) / out->keys, out->keys, block,
             NULL};
    int64_t rows = (h->seqlen_q + out->queries - 1) / out->queries, n = 0;
    int64_t step = (rows + ROWS_LOOKED_AT - 1) / ROWS_LOOKED_AT;
    r.met = malloc((size_t)r.tiles * sizeof *r.met);
    out->any = out->part = r.met ? 0 : 1;
    for (int64_t i = 0; r.met && i < rows; i += step, n++) {
        int64_t q0 = i * out->queries, q1 = q0 + out->queries;
        count_row(&r, q0, q1 < h->seqlen_q ? q1 : h->seqlen_q, h->seqlen_k,
                  &out->any, &out->part);
    }
    if (n) {
        out->any /= (double)(n * r.tiles);
        out->part /= (double)(n * r.tiles);
    }
    free(r.met);
}

static bool same(const Share *a, const Share *b) {
    return a->nq == b->nq && a->nk == b->nk && a->queries == b->queries &&
           a->keys == b->keys;
}

static Share counted(const attnc_program *p, const attnc_shape *h, Share want) {
    Pattern sized = p->pattern;
    BlockList list;
    Err e = {0};
    want.any = want.part = 1;
    if (sized.kind == PATTERN_BSR || /* whose blocks come with the launch */
        pattern_size(&sized, h->seqlen_q, h->seqlen_k, &e) ||
        pattern_list(&sized, 0, &list, &e))
        return want;
    count(&list, sized.block, h, &want);
    blocks_free(&list);
    return want;
}

void spec_share(const attnc_spec *s, const attnc_shape *h, int64_t queries,
                int64_t keys, double *any, double *part) {
    Share want = {NULL, h->seqlen_q, h->seqlen_k, queries, keys, 1, 0};
    const attnc_program *p = s->sparsity;
    if (p) {
        _Atomic(Share *) *head = (_Atomic(Share *) *)&p->shares;
        Share *x = atomic_load(head);
        while (x && !same(x, &want))
            x = x->next;
        want = x ? *x : counted(p, h, want);
        Share *kept = x ? NULL : malloc(sizeof *kept);
        if (kept) { /* twice the same does no harm */
            *kept = want;
            kept->next = atomic_load(head);
            while (!atomic_compare_exchange_weak(head, &kept->next, kept))
                ;
        }
    }
    *any = want.any;
    *part = want.part;
}
