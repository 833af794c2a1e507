/* SPDX-License-Identifier: Apache-2.0
 * How much of a pattern lies in each row and column of blocks: counted once
 * for each pair of lengths and kept beside the pattern. */
#include <stdlib.h>
#include <string.h>

#include "order.h"
#include "program_intern.h"

/* Lists of heads that are counted; of more the first stands for all. */
enum { MOST_LISTS = 64, FINE = 16 };

typedef struct Count {
    const Pattern *p;
    int mask;
    int32_t *row, *column;
} Count;

/* May a pair of the block see under the mask? Its numbers are launch arguments:
 * the diagonal at Nk - Nq, a window or prefix of Nk/8 keys. */
static bool meets(const Count *c, int64_t a, int64_t e) {
    const Pattern *p = c->p;
    int64_t off = p->nk - p->nq, part = p->nk / 8;
    int64_t q0 = a * p->block, k0 = e * p->block;
    bool below = k0 <= q0 + p->block - 1 + off;
    switch (c->mask) {
    case ATTNC_MASK_CAUSAL:
        return below;
    case ATTNC_MASK_WINDOW:
        return below && k0 + p->block > q0 + off - part;
    case ATTNC_MASK_PREFIX:
        return below || k0 < part;
    default:
        return true;
    }
}

static void add(void *user, int64_t a, int64_t e) {
    const Count *c = user;
    bool met = meets(c, a, e);
    c->row[a] += met;
    c->column[e] += met;
}

Loads *loads_make(const Pattern *p, int mask, int64_t heads) {
    int64_t sides = p->nbq + p->nbk;
    Loads *l = calloc(1, sizeof *l + (size_t)(heads * sides) * sizeof(int32_t));
    Err e = {0};
    if (!l)
        return NULL;
    *l = (Loads){.nq = p->nq,
                 .nk = p->nk,
                 .mask = mask,
                 .block = p->block,
                 .heads = heads,
                 .rows = p->nbq,
                 .columns = p->nbk};
    for (int64_t h = 0; h < heads && !e.code; h++) {
        int32_t *row = l->count + h * sides;
        Count c = {p, mask, row, row + p->nbq};
        pattern_each(p, h, add, &c, &e);
    }
    if (e.code)
        free(l);
    return e.code ? NULL : l;
}

/* Drawn heads differ in what they draw, which is as much for all. */
static Loads *counted(const attnc_spec *s, int64_t nq, int64_t nk) {
    Pattern p = s->sparsity->pattern;
    Err e = {0};
    int64_t heads = pattern_heads(&p);
    if (p.kind == PATTERN_BSR)
        return NULL;
    if (pattern_is_element(p.kind))
        p.block = FINE; /* global tokens may be few */
    if (pattern_size(&p, nq, nk, &e))
        return NULL;
    return loads_make(&p, s->mask, heads && heads <= MOST_LISTS ? heads : 1);
}

const Loads *spec_loads(const attnc_spec *s, int64_t nq, int64_t nk) {
    if (!s->sparsity)
        return NULL;
    _Atomic(Loads *) *head = (_Atomic(Loads *) *)&s->sparsity->loads;
    Loads *first = atomic_load(head), *x = first;
    int n = 0;
    for (; x && (x->nq != nq || x->nk != nk || x->mask != s->mask); n++)
        x = x->next;
    if (x || n >= LOADS_KEPT)
        return x;
    x = counted(s, nq, nk);
    if (x) { /* twice the same does no harm */
        x->next = first;
        while (!atomic_compare_exchange_weak(head, &x->next, x))
            ;
    }
    return x;
}
