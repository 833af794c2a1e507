/* SPDX-License-Identifier: Apache-2.0
 * Lists of a pattern's blocks, made from what each row can keep: time goes
 * with the blocks kept, not with all blocks. */
#include <stdlib.h>
#include <string.h>

#include "pattern.h"

/* ---- what a row can keep ----------------------------------------------- */

/* Collects the blocks of one row, each once. */
typedef struct Row {
    const Pattern *p;
    int64_t h, a;
    int64_t *mark; /* of each block the row + 1 that took it last */
    int32_t *out;
    int64_t n, cap;
    bool bad;       /* out of memory */
    uint32_t *bits; /* if given, blocks are marked there, not collected */
} Row;

/* Sets bits lo .. hi - 1. */
static void set_bits(uint32_t *to, int64_t lo, int64_t hi) {
    if (hi == lo + 1) { /* soon: as most are, those drawn */
        to[lo >> 5] |= 1u << (lo & 31);
        return;
    }
    for (int64_t w = lo >> 5; w << 5 < hi; w++) {
        uint32_t from = w == lo >> 5 ? ~0u << (lo & 31) : ~0u;
        to[w] |= hi - (w << 5) < 32 ? from & ~(~0u << (hi & 31)) : from;
    }
}

static void take(Row *r, int64_t lo, int64_t hi) {
    lo = lo > 0 ? lo : 0;
    hi = hi < r->p->nbk ? hi : r->p->nbk;
    if (r->bits && lo < hi)
        set_bits(r->bits, lo, hi);
    if (r->bits)
        return;
    for (int64_t e = lo; e < hi && !r->bad; e++) {
        if (r->mark[e] == r->a + 1)
            continue;
        r->mark[e] = r->a + 1;
        if (r->n == r->cap) {
            int64_t cap = 2 * r->cap + 64;
            int32_t *out = realloc(r->out, (size_t)cap * sizeof *out);
            r->bad = !out;
            if (!out)
                return;
            r->out = out;
            r->cap = cap;
        }
        r->out[r->n++] = (int32_t)e;
    }
}

/* The blocks of keys [lo, hi). */
static void take_keys(Row *r, int64_t lo, int64_t hi) {
    int64_t b = r->p->block;
    lo = lo > 0 ? lo : 0;
    if (hi > lo)
        take(r, lo / b, (hi + b - 1) / b);
}

static void take_drawn(Row *r) {
    int64_t draw[PATTERN_DRAWS];
    int n = pattern_draw(r->p, r->h, r->a, draw);
    for (int i = 0; i < n; i++)
        take(r, draw[i], draw[i] + 1);
}

/* Columns first .. first + size - 1 of every window of l blocks. */
static void take_columns(Row *r, int64_t l, int64_t first, int64_t size,
                         int64_t end) {
    for (int64_t w = 0; w < end; w += l)
        take(r, w + first, w + first + size);
}

static void row_ds_fixed(Row *r) {
    const PatternArgs *x = &r->p->a;
    int64_t l = x->stride, end = r->p->nbk / l * l;
    int64_t first = l - (1 + r->h % x->verts) * x->global;
    int64_t tail = end + first < r->p->nbk - x->global ? end + first
                                                       : r->p->nbk - x->global;
    tail = tail > 0 ? tail : 0;
    int64_t top = x->causal ? r->a + 1 : r->p->nbk;
    take(r, r->a / l * l, r->a / l * l + l);
    take_columns(r, l, first, x->global, end < top ? end : top);
    if (end < r->p->nbk)
        take(r, tail, tail + x->global);
    if (x->horizontal && pattern_ds_global(r->p, r->h, r->a, r->p->nbq))
        take(r, 0, r->p->nbk);
}

static void row_butterfly(Row *r) {
    const Pattern *p = r->p;
    int64_t n = 1, nb = p->nbq < p->nbk ? p->nbq : p->nbk;
    while (2 * n <= nb)
        n *= 2;
    int64_t u = r->a * n / p->nbq, reach = p->a.m ? (int64_t)1 << p->a.m : n;
    for (int64_t bit = 0; bit < reach; bit = bit ? 2 * bit : 1) {
        int64_t v = u ^ bit; /* of e n / nb, rounded down */
        take(r, (v * p->nbk + n - 1) / n, ((v + 1) * p->nbk + n - 1) / n);
    }
    take(r, 0, r->a < p->a.global ? p->nbk : p->a.global);
}

static void row_strided(Row *r) {
    int64_t l = r->p->a.stride, i0 = r->a * r->p->block;
    int64_t i1 = i0 + r->p->block;
    i1 = i1 < r->p->nq ? i1 : r->p->nq;
    for (int64_t back = 0; back < i1; back += l)
        take_keys(r, i0 - back, i1 - back);
}

static void row_band(Row *r) {
    const PatternArgs *x = &r->p->a;
    int64_t i0 = r->a * r->p->block, i1 = i0 + r->p->block;
    i1 = i1 < r->p->nq ? i1 : r->p->nq;
    if (r->p->kind == PATTERN_LOCAL_FT) {
        take_keys(r, i0 - x->c / 2, i1 - 1 + (x->c + 1) / 2);
    } else if (r->p->kind == PATTERN_LOCAL_LUCID) {
        take_keys(r, (i0 / x->w - x->back) * x->w,
                  ((i1 - 1) / x->w + x->forward + 1) * x->w);
    } else { /* PATTERN_ORIG_LONGFORMER */
        take_keys(r, i0 - x->w, i1 + x->w);
        take_keys(r, 0, i0 < x->global ? r->p->nk : x->global);
    }
}

static void row_longformer(Row *r) {
    const PatternArgs *x = &r->p->a;
    take(r, r->a - x->window / 2, r->a + x->window / 2 + 1);
    take(r, 0, r->a < x->global ? r->p->nbk : x->global);
}

static void row_bigbird(Row *r) {
    int64_t last = r->p->nbk - 1;
    bool all = !r->a || r->a == last;
    take(r, 0, all ? last + 1 : 1);
    take(r, last, last + 1);
    take(r, r->a - 1, r->a + 2);
}

static void row_listed(Row *r) {
    const Pattern *p = r->p;
    const int32_t *at = p->indptr + (r->h % p->bsr_heads) * (p->nbq + 1) + r->a;
    for (int32_t i = at[0]; i < at[1]; i++)
        take(r, p->index[i], (int64_t)p->index[i] + 1);
}

static void row_fixed(Row *r) {
    const PatternArgs *x = &r->p->a;
    int64_t first = x->stride - (r->h % x->verts + 1) * x->vert;
    take(r, r->a / x->stride * x->stride, r->a + 1);
    take_columns(r, x->stride, first, x->vert, r->a + 1);
}

/* Every block the row keeps, and few besides. */
static void row_blocks(Row *r) {
    switch (r->p->kind) {
    case PATTERN_DS_BIGBIRD:
        take_drawn(r);
        row_longformer(r);
        break;
    case PATTERN_DS_LONGFORMER:
        row_longformer(r);
        break;
    case PATTERN_ORIG_BIGBIRD:
        take_drawn(r);
        row_bigbird(r);
        break;
    case PATTERN_STRIDED:
        row_strided(r);
        break;
    case PATTERN_FIXED:
        row_fixed(r);
        break;
    case PATTERN_DS_FIXED:
        row_ds_fixed(r);
        break;
    case PATTERN_BUTTERFLY:
        row_butterfly(r);
        break;
    case PATTERN_BSR:
        row_listed(r);
        break;
    default:
        row_band(r);
    }
}

/* ---- lists ------------------------------------------------------------- */

void blocks_free(BlockList *x) {
    free(x->full_at);
    free(x->part_at);
    free(x->full);
    free(x->part);
    *x = (BlockList){0};
}

static int no_memory(BlockList *x, Err *e) {
    blocks_free(x);
    return err_set(e, ERR_MEMORY, "sparsity", NULL, "out of memory");
}

static bool open_list(BlockList *x, int64_t rows, int64_t columns, int64_t full,
                      int64_t part) {
    *x = (BlockList){.rows = rows, .columns = columns};
    x->full_at = calloc((size_t)rows + 2, sizeof *x->full_at);
    x->part_at = calloc((size_t)rows + 2, sizeof *x->part_at);
    x->full = malloc((size_t)(full + 1) * sizeof *x->full);
    x->part = malloc((size_t)(part + 1) * sizeof *x->part);
    return x->full_at && x->part_at && x->full && x->part;
}

/* Turns one list of blocks by rows into one by columns: counts, then places;
 * rows come in order, so columns are ascending. */
static void turn(const int64_t *at, const int32_t *block, int64_t rows,
                 int64_t columns, int64_t *out_at, int32_t *out) {
    for (int64_t i = 0; i < at[rows]; i++)
        out_at[block[i] + 2]++;
    for (int64_t c = 2; c <= columns; c++)
        out_at[c] += out_at[c - 1];
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t i = at[r]; i < at[r + 1]; i++)
            out[out_at[block[i] + 1]++] = (int32_t)r;
    }
}

int blocks_transpose(const BlockList *in, BlockList *out, Err *e) {
    if (!open_list(out, in->columns, in->rows, in->full_at[in->rows],
                   in->part_at[in->rows]))
        return no_memory(out, e);
    turn(in->full_at, in->full, in->rows, in->columns, out->full_at, out->full);
    turn(in->part_at, in->part, in->rows, in->columns, out->part_at, out->part);
    return 0;
}

/* Appends n numbers to a list that was allocated for exactly *used. */
static bool append(int32_t **list, int64_t *cap, int64_t used, int32_t x) {
    if (used == *cap) {
        int64_t more = 2 * *cap + 64;
        int32_t *grown = realloc(*list, (size_t)more * sizeof *grown);
        if (!grown)
            return false;
        *list = grown;
        *cap = more;
    }
    (*list)[used] = x;
    return true;
}

/* Splits the row's blocks by verdict; empty ones fall away. */
static bool sort_row(Row *r, BlockList *x, int64_t *full_cap,
                     int64_t *part_cap) {
    int64_t full = x->full_at[r->a], part = x->part_at[r->a];
    for (int64_t i = 0; i < r->n; i++) {
        int verdict = pattern_verdict(r->p, r->h, r->a, r->out[i]);
        if (verdict == BLOCK_FULL &&
            !append(&x->full, full_cap, full++, r->out[i]))
            return false;
        if (verdict == BLOCK_PARTIAL &&
            !append(&x->part, part_cap, part++, r->out[i]))
            return false;
    }
    x->full_at[r->a + 1] = full;
    x->part_at[r->a + 1] = part;
    return true;
}

int pattern_list(const Pattern *p, int64_t h, BlockList *out, Err *e) {
    BlockList rows, columns;
    Row r = {.p = p, .h = h};
    int64_t full_cap = 0, part_cap = 0;
    r.mark = calloc((size_t)p->nbk + 1, sizeof *r.mark);
    bool good = open_list(&rows, p->nbq, p->nbk, 0, 0) && r.mark;
    for (r.a = 0; good && r.a < p->nbq; r.a++) {
        r.n = 0;
        row_blocks(&r);
        good = !r.bad && sort_row(&r, &rows, &full_cap, &part_cap);
    }
    free(r.mark);
    free(r.out);
    *out = (BlockList){0};
    if (!good)
        return no_memory(&rows, e);
    /* Turned twice, every row is ascending. */
    if (!blocks_transpose(&rows, &columns, e)) {
        blocks_transpose(&columns, out, e);
        blocks_free(&columns);
    }
    blocks_free(&rows);
    return e->code;
}

double blocks_density(const BlockList *x) {
    double kept = (double)(x->full_at[x->rows] + x->part_at[x->rows]);
    double all = (double)x->rows * (double)x->columns;
    return all > 0 ? kept / all : 0;
}

/* Of these kinds a row's blocks are those its rule keeps, but for a causal cut:
 * no need to draw them again for each. */
static bool keeps(const Row *r, int64_t e) {
    const Pattern *p = r->p;
    if (p->kind == PATTERN_DS_BIGBIRD || p->kind == PATTERN_ORIG_BIGBIRD ||
        p->kind == PATTERN_BSR)
        return !p->a.causal || e <= r->a;
    return pattern_keep(p, r->h, r->a, e);
}

void pattern_mark(const Pattern *p, int64_t h, uint32_t *to, int64_t width) {
    Row r = {.p = p, .h = h};
    for (; r.a < p->nbq; r.a++) {
        r.bits = to + r.a * width / 32;
        row_blocks(&r);
        if (!p->a.causal || r.a + 1 >= p->nbk)
            continue;
        int64_t w = (r.a + 1) >> 5;
        r.bits[w] &= ~(~0u << ((r.a + 1) & 31));
        memset(r.bits + w + 1, 0, (size_t)(width / 32 - w - 1) * 4);
    }
}

int pattern_each(const Pattern *p, int64_t h,
                 void (*fn)(void *user, int64_t a, int64_t e), void *user,
                 Err *e) {
    Row r = {.p = p, .h = h};
    r.mark = calloc((size_t)p->nbk + 1, sizeof *r.mark);
    r.bad = !r.mark;
    for (; r.a < p->nbq && !r.bad; r.a++) {
        r.n = 0;
        row_blocks(&r);
        for (int64_t i = 0; i < r.n && !r.bad; i++)
            if (keeps(&r, r.out[i]))
                fn(user, r.a, r.out[i]);
    }
    free(r.mark);
    free(r.out);
    return r.bad ? err_set(e, ERR_MEMORY, "pattern", NULL, "no memory") : 0;
}
