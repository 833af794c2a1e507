/* SPDX-License-Identifier: Apache-2.0
 * Which work items of a pattern start first: those that a launch would wait
 * for if they came last. The rest keeps its order, in which neighbours share
 * the keys and values they read. */
#include <string.h>

#include "order.h"

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* ---- loads of items ---------------------------------------------------- */

int64_t items_blocks(const Items *x) {
    return (x->rows + x->block - 1) / x->block;
}

/* Rows lo .. hi - 1 of block i. */
static void range(const Items *x, int64_t i, int64_t *lo, int64_t *hi) {
    int64_t blocks = items_blocks(x), b = x->downwards ? blocks - 1 - i : i;
    *lo = b * x->block;
    *hi = *lo + x->block;
    if (x->unit) {
        int64_t units = (x->rows + x->unit - 1) / x->unit;
        *lo = units * b / blocks * x->unit;
        *hi = units * (b + 1) / blocks * x->unit;
    }
    *hi = least(*hi, x->rows);
}

/* Blocks that row or column `a` keeps, the mean of the heads of a kv head. */
static double kept(const Items *x, const Loads *l, int64_t kv_head, int64_t a) {
    int64_t lists = l->heads > 1 ? x->group : 1, sum = 0;
    const int32_t *of = l->count + (x->by_keys ? l->rows : 0) + a;
    for (int64_t h = kv_head * lists; h < (kv_head + 1) * lists; h++)
        sum += of[h % l->heads * (l->rows + l->columns)];
    return (double)sum / (double)lists;
}

double items_load(const Items *x, const Loads *l, int64_t kv_head, int64_t i) {
    int64_t lo, hi, side = l->block * (x->by_keys ? 1 : x->group);
    double pairs = 0;
    range(x, i, &lo, &hi);
    for (int64_t a = lo / side; a * side < hi; a++) {
        int64_t rows = least(hi, (a + 1) * side) - most(lo, a * side);
        pairs += (double)rows * kept(x, l, kv_head, a);
    }
    return pairs * (double)(l->block * (x->by_keys ? x->group : 1));
}

/* kv heads whose loads may differ. */
static int64_t heads_of(const Loads *l, int64_t kv_heads) {
    return l->heads > 1 ? kv_heads : 1;
}

double items_longest(const Items *x, const Loads *l, int64_t kv_heads) {
    double longest = 0;
    for (int64_t h = 0; h < heads_of(l, kv_heads); h++)
        for (int64_t i = 0; i < items_blocks(x); i++) {
            double load = items_load(x, l, h, i);
            longest = load > longest ? load : longest;
        }
    return longest;
}

double loads_most(const Loads *l, bool by_keys) {
    int32_t most = 0;
    for (int64_t h = 0; h < l->heads; h++) {
        const int32_t *of = l->count + h * (l->rows + l->columns);
        for (int64_t a = by_keys ? l->rows : 0;
             a < l->rows + (by_keys ? l->columns : 0); a++)
            most = of[a] > most ? of[a] : most;
    }
    return (double)most / (double)(by_keys ? l->rows : l->columns);
}

double items_total(const Items *x, const Loads *l, int64_t kv_heads) {
    int64_t heads = heads_of(l, kv_heads), blocks = items_blocks(x);
    double sum = 0;
    for (int64_t i = 0; i < heads * blocks; i++)
        sum += items_load(x, l, i / blocks, i % blocks);
    return sum * (double)(kv_heads / heads);
}

/* ---- items of steps ---------------------------------------------------- */

static Items by_rows(const Lengths *n, int64_t block) {
    return (Items){.downwards = true,
                   .group = n->group,
                   .rows = n->group * n->nq,
                   .block = block,
                   .splits = 1};
}

static Items by_keys(const Lengths *n, int64_t block) {
    return (Items){.by_keys = true,
                   .group = n->group,
                   .rows = n->nk,
                   .block = block,
                   .splits = 1};
}

static Items forward(const Device *d, const Tile *t, const Lengths *n) {
    Items x = by_rows(n, t->v[T_cpu_fwd_block_q]);
    int64_t lanes = (int64_t)d->vector_bytes / 4;
    int split = t->v[T_cpu_fwd_split_k];
    x.unit = t->v[T_cpu_fwd_vecs] ? lanes * t->v[T_cpu_fwd_vecs] : 1;
    x.splits = split ? (n->nk + split - 1) / split : 1;
    return x;
}

bool items_of(const Device *d, int role, const Tile *t, const Lengths *n,
              Items *out) {
    bool builtin = t->family == TILE_builtin, cpu = t->family == TILE_cpu_bwd;
    *out = (Items){0};
    if (t->family == TILE_cpu_fwd)
        *out = forward(d, t, n);
    else if (role == ROLE_bwd_dkdv && (builtin || cpu))
        *out = by_keys(n, builtin ? BUILTIN_KEYS : t->v[T_cpu_bwd_chunk_k]);
    else if (role == ROLE_bwd_dq && (builtin || cpu))
        *out = by_rows(n, builtin ? BUILTIN_ROWS : t->v[T_cpu_bwd_block_q]);
    else if (role == ROLE_fwd && builtin)
        *out = by_rows(n, BUILTIN_ROWS);
    return out->block && items_blocks(out) > 1;
}

/* ---- order ------------------------------------------------------------- */

/* What an item must have of the mean to go first. */
static const double CLEARLY = 2;

/* Enters a place among the longest, of which `load` is kept beside. */
static void enter(Order *o, double *load, int64_t place, double x) {
    int at = o->n;
    while (at > 0 && load[at - 1] < x)
        at--;
    if (at == ORDER_FIRST)
        return;
    o->n += o->n < ORDER_FIRST;
    for (int i = o->n - 1; i > at; i--) {
        load[i] = load[i - 1];
        o->first[i] = o->first[i - 1];
    }
    load[at] = x;
    o->first[at] = (int32_t)place;
}

static void sort_rising(Order *o) {
    for (int i = 0; i < o->n; i++) {
        int at = i;
        for (; at > 0 && o->rising[at - 1] > o->first[i]; at--)
            o->rising[at] = o->rising[at - 1];
        o->rising[at] = o->first[i];
    }
}

void order_make(const Items *x, const Loads *l, int64_t kv_heads, int64_t count,
                Order *out) {
    int64_t blocks = items_blocks(x), period = heads_of(l, kv_heads) * blocks;
    double load[ORDER_FIRST], sum = 0;
    out->period = out->n = 0;
    out->count = count;
    out->splits = x->splits;
    if (period > INT32_MAX || count % (period * x->splits))
        return;
    for (int64_t i = 0; i < period; i++)
        sum += items_load(x, l, i / blocks, i % blocks);
    for (int64_t i = 0; i < period; i++) {
        double mine = items_load(x, l, i / blocks, i % blocks);
        if (mine * (double)period >= CLEARLY * sum && mine > 0)
            enter(out, load, i, mine);
    }
    sort_rising(out);
    out->period = out->n ? period : 0;
}

/* All that are longest, one in each period, then the next; then the rest,
 * period by period. */
int64_t order_item(const Order *o, int64_t i) {
    if (!o->period)
        return i;
    int64_t part = i % o->splits, block = i / o->splits;
    int64_t periods = o->count / o->splits / o->period, place;
    int64_t early = o->n * periods, rest = o->period - o->n, of;
    if (block < early) {
        of = block % periods;
        place = o->first[block / periods];
    } else {
        of = (block - early) / rest;
        place = (block - early) % rest;
        for (int k = 0; k < o->n && place >= o->rising[k]; k++)
            place++;
    }
    return (of * o->period + place) * o->splits + part;
}

/* ---- ends -------------------------------------------------------------- */

void order_ends(const attnc_spec *s, bool by_keys, int64_t *low,
                int64_t *high) {
    const Loads *l = s->varlen ? NULL : spec_loads(s, ENDS_AT, ENDS_AT);
    double sum = 0;
    *low = *high = 0;
    if (!l)
        return;
    int64_t n = by_keys ? l->columns : l->rows;
    const int32_t *count = l->count + (by_keys ? l->rows : 0);
    for (int64_t a = 0; a < n; a++)
        sum += count[a];
    while (*low < n && count[*low] * (double)n >= CLEARLY * sum)
        ++*low;
    while (*low + *high < n &&
           count[n - 1 - *high] * (double)n >= CLEARLY * sum)
        ++*high;
    *low *= l->block;
    *high *= l->block;
}

void order_step_ends(const attnc_spec *s, int role, int64_t *low,
                     int64_t *high) {
    *low = *high = 0;
    if (role == ROLE_fwd || role == ROLE_fwd_split || role == ROLE_bwd_dq)
        order_ends(s, false, low, high);
    if (role == ROLE_bwd || role == ROLE_bwd_dkdv)
        order_ends(s, true, low, high);
}
