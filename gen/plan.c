/* SPDX-License-Identifier: Apache-2.0
 * Spec, shape and device -> plan: the strategy first (split the keys or not),
 * then a tile per step. Names, parameters and text: plan_step.c,
 * plan_text.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gen.h"

/* ---- what somebody fixed ----------------------------------------------- */

/* Fields fixed by the caller or by a tuned row; of each family its own. */
typedef struct Fixed {
    Tile tile[TILE_FAMILIES];
    unsigned set[TILE_FAMILIES]; /* bit i: field i */
    int from;                    /* FROM_PIN or FROM_TABLE */
} Fixed;

/* The family of `families` that has this field; the first when none has. */
static int family_with(const int *families, Slice key, int *index) {
    const char *name;
    for (int k = 0; families[k] >= 0; k++) {
        for (int i = 0; (name = tile_field_name(families[k], i)); i++) {
            if (slice_is(key, name)) {
                *index = i;
                return families[k];
            }
        }
    }
    *index = -1;
    return families[0];
}

static int fix(const char *text, const int *families, int from, Fixed *out,
               Err *e) {
    Slice key, value;
    *out = (Fixed){.from = from};
    for (int k = 0; families[k] >= 0; k++)
        out->tile[families[k]].family = families[k];
    while (text && next_pair(&text, ", \t", &key, &value)) {
        char pair[128];
        int index, family = family_with(families, key, &index);
        snprintf(pair, sizeof pair, "%.*s=%.*s", (int)key.len, key.p,
                 (int)value.len, value.p);
        int code = tile_parse(pair, &out->tile[family], e);
        if (code)
            return code;
        if (out->set[family] & 1u << index)
            return err_set(e, ERR_REQUEST, "tile",
                           tile_field_name(family, index), "is given twice");
        out->set[family] |= 1u << index;
    }
    return 0;
}

static void overlay(const Fixed *f, Tile *t) {
    for (int i = 0; i < TILE_FIELDS; i++) {
        if (f->set[t->family] & 1u << i)
            t->v[i] = f->tile[t->family].v[i];
    }
}

static bool is_fixed(const Fixed *f, int family, int index) {
    return f->set[family] & 1u << index;
}

static void fix_field(Fixed *f, int family, int index, int value) {
    f->set[family] |= 1u << index;
    f->tile[family].v[index] = value;
}

/* ---- strategy ---------------------------------------------------------- */

enum { SPLIT_LEAST = 256, SPLIT_INVARIANT = 1024 };

/* So few query rows of one kv head that one block holds them. */
static bool few_rows(const attnc_shape *h, const Device *d) {
    int64_t rows = h->heads / h->kv_heads * h->seqlen_q;
    return rows <= 3 * (int64_t)d->vector_bytes; /* 12 vectors of f32 */
}

/* Keys per split, a power of two so that growing lengths share few kernels;
 * 0: not split. Splits pay when the rows cannot occupy the cores and the keys
 * are many. Under batch_invariant neither the batch nor a length that may be
 * another sequence's decides: the query rows do, and varlen never splits. */
static int split_length(const attnc_spec *s, const attnc_shape *h,
                        const Device *d) {
    double items = (double)h->batch * (double)h->kv_heads;
    if (!few_rows(h, d))
        return 0;
    if (s->batch_invariant)
        return s->varlen ? 0 : SPLIT_INVARIANT;
    if (items >= 2 * d->cores || h->seqlen_k < 2 * SPLIT_LEAST)
        return 0;
    double wanted = (double)h->seqlen_k * items / (4 * d->cores);
    int split = SPLIT_LEAST;
    while (split * 2.0 <= wanted)
        split *= 2;
    return split;
}

/* ---- a tile for a step ------------------------------------------------- */

typedef struct Search {
    const Plan *plan;
    const attnc_shape *shape; /* the model's hints */
    const Fixed *fixed;
    int split_k;
    bool found;
    Tile best;
    Figures fig;
} Search;

/* What the strategy says holds unless a field was fixed. */
static void complete(const Search *f, Tile *t) {
    int block_k = t->v[T_cpu_fwd_block_k];
    overlay(f->fixed, t);
    if (t->family == TILE_cpu_combine)
        t->v[T_cpu_combine_split_k] = f->split_k;
    block_k = t->v[T_cpu_fwd_block_k];
    if (t->family != TILE_cpu_fwd || block_k < 1 ||
        is_fixed(f->fixed, TILE_cpu_fwd, T_cpu_fwd_split_k))
        return;
    t->v[T_cpu_fwd_split_k] = (f->split_k + block_k - 1) / block_k * block_k;
}

/* Faster first; then less work, less traffic, less SRAM. */
static int compare(const Figures *a, const Figures *b) {
    const double pairs[][2] = {{a->time_ms, b->time_ms},
                               {a->compute_ms, b->compute_ms},
                               {a->sram_bytes, b->sram_bytes},
                               {a->sram_footprint, b->sram_footprint}};
    for (int i = 0; i < 4; i++) {
        if (pairs[i][0] != pairs[i][1])
            return pairs[i][0] < pairs[i][1] ? -1 : 1;
    }
    return 0;
}

static void consider(void *user, const Tile *candidate) {
    Search *f = user;
    const Plan *p = f->plan;
    Tile t = *candidate;
    char why[120];
    Figures fig;
    complete(f, &t);
    if (!tile_legal(&p->spec, f->shape, &p->device, &t, why))
        return;
    model_figures(&p->spec, f->shape, &p->device, &t, &fig);
    if (f->found && compare(&f->fig, &fig) <= 0)
        return;
    f->found = true;
    f->best = t;
    f->fig = fig;
}

static bool search(const Plan *p, const attnc_shape *h, int family,
                   const Fixed *fixed, int split_k, Tile *out) {
    Search f = {.plan = p, .shape = h, .fixed = fixed, .split_k = split_k};
    tile_each(&p->spec, h, &p->device, family, consider, &f);
    if (f.found)
        *out = f.best;
    return f.found;
}

/* Why the fixed fields fit no tile: what is wrong with them on the tile that
 * would have been taken. */
static void reason(const Plan *p, int family, const Fixed *fixed, int split_k,
                   char why[120]) {
    static const Fixed nothing;
    Search f = {.plan = p, .fixed = fixed, .split_k = split_k};
    Tile t = tile_safe(&p->device, family);
    search(p, &p->shape, family, &nothing, split_k, &t);
    complete(&f, &t);
    tile_legal(&p->spec, &p->shape, &p->device, &t, why);
}

/* The sizes a batch-invariant choice of block_k may look at: none. */
static attnc_shape usual_shape(void) {
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    h.seqlen_q = h.seqlen_k = 4096;
    return h;
}

/* A row's bits depend on block_k (and split_k) alone, so batch_invariant
 * takes that from spec and device, and looks at one batch entry for the
 * rest. */
static attnc_shape invariant(const Plan *p, int family, Fixed *fixed) {
    attnc_shape h = p->shape, usual = usual_shape();
    Tile t;
    if (!p->spec.batch_invariant)
        return h;
    h.batch = 1;
    if (family == TILE_cpu_fwd &&
        !is_fixed(fixed, family, T_cpu_fwd_block_k) &&
        search(p, &usual, family, fixed, 0, &t))
        fix_field(fixed, family, T_cpu_fwd_block_k, t.v[T_cpu_fwd_block_k]);
    return h;
}

/* The ladder: pin > table > model > safe. */
static int choose_tile(Plan *p, Step *step, int family, const Fixed *pin,
                       const Fixed *table, int split_k, Err *e) {
    char why[120];
    bool pinned = pin->set[family], tabled = table->set[family] && !pinned;
    Fixed fixed = pinned ? *pin : *table;
    attnc_shape h = invariant(p, family, &fixed);
    Tile *t = &step->tile;
    if (search(p, &h, family, &fixed, split_k, t)) {
        t->from = pinned ? FROM_PIN : tabled ? FROM_TABLE : FROM_MODEL;
        return 0;
    }
    reason(p, family, &fixed, split_k, why);
    if (pinned)
        return err_set(e, ERR_REQUEST, "tile", NULL, "%s", why);
    if (tabled) {
        snprintf(p->note, sizeof p->note, "tuned row skipped: %s", why);
        static const Fixed nothing;
        return choose_tile(p, step, family, pin, &nothing, split_k, e);
    }
    *t = tile_safe(&p->device, family);
    if (split_k)
        t->v[family == TILE_cpu_fwd ? T_cpu_fwd_split_k
                                    : T_cpu_combine_split_k] = split_k;
    if (tile_legal(&p->spec, &p->shape, &p->device, t, why))
        return 0;
    return err_set(e, ERR_REQUEST, "tile", NULL,
                   "no legal tile on %s: %s", p->device.arch, why);
}

/* ---- the plan ---------------------------------------------------------- */

static int check_device(const Device *d, Err *e) {
    if (d->kind == DEVICE_CPU)
        return 0;
    return err_set(e, ERR_REQUEST, "plan", "target",
                   "%s (%s) is not in this version; accepted: cpu avx2 avx512 "
                   "avx512bf16 neon portable", d->arch, d->name);
}

/* A tuned row that cannot even be read is skipped, too. */
static void read_table(const char *text, const int *families, Fixed *out,
                       Plan *p) {
    Err e = {0};
    if (!fix(text, families, FROM_TABLE, out, &e))
        return;
    *out = (Fixed){0};
    snprintf(p->note, sizeof p->note, "tuned row skipped: %.130s", e.text);
}

static int split_of(const Plan *p, const Fixed *pin, const Fixed *table) {
    const Fixed *const by[] = {pin, table};
    for (int i = 0; i < 2; i++) {
        if (is_fixed(by[i], TILE_cpu_fwd, T_cpu_fwd_split_k))
            return by[i]->tile[TILE_cpu_fwd].v[T_cpu_fwd_split_k];
    }
    return split_length(&p->spec, &p->shape, &p->device);
}

/* A pin for a step that the plan does not have would do nothing. */
static int check_used(const Plan *p, const Fixed *pin, Err *e) {
    for (int family = 0; family < TILE_FAMILIES; family++) {
        bool used = !pin->set[family];
        for (int i = 0; i < p->nstep; i++)
            used |= p->step[i].tile.family == family;
        if (!used)
            return err_set(e, ERR_REQUEST, "tile", NULL,
                           "a field of %s is pinned, but the keys are not "
                           "split; pin split_k too", tile_family_name(family));
    }
    return 0;
}

static int choose_steps(Plan *p, const Pins *pins, Err *e) {
    static const int emitted[] = {TILE_cpu_fwd, TILE_cpu_combine, -1};
    static const int constant[] = {TILE_builtin, -1};
    const int *families = pins->builtin ? constant : emitted;
    Fixed pin, table;
    int code = fix(pins->tile, families, FROM_PIN, &pin, e);
    if (code)
        return code;
    read_table(pins->table, families, &table, p);
    int split_k = pins->builtin ? 0 : split_of(p, &pin, &table);
    p->nstep = split_k ? 2 : 1;
    p->step[0].role = split_k ? ROLE_fwd_split : ROLE_fwd;
    p->step[1].role = ROLE_combine;
    for (int i = 0; i < p->nstep && !code; i++) {
        int family = i ? TILE_cpu_combine : families[0];
        code = choose_tile(p, &p->step[i], family, &pin, &table, split_k, e);
        if (!i && split_k && !code)
            split_k = p->step[0].tile.v[T_cpu_fwd_split_k];
    }
    return code ? code : check_used(p, &pin, e);
}

int plan_choose(const attnc_spec *s, const attnc_shape *h, const Device *d,
                const Pins *pins, Plan *out, Err *e) {
    static const Pins no_pins;
    memset(out, 0, sizeof *out);
    int code = spec_check(s, &out->spec, e);
    if (!code)
        code = shape_check(h, &out->shape, e);
    if (!code)
        code = check_device(d, e);
    if (code)
        return code;
    out->device = *d;
    code = choose_steps(out, pins ? pins : &no_pins, e);
    if (!code)
        plan_complete(out);
    return code;
}

/* ---- candidates, for explain ------------------------------------------- */

typedef struct List {
    const Search *search;
    Candidate *c;
    int n, cap;
} List;

static void collect(void *user, const Tile *t) {
    List *l = user;
    const Plan *p = l->search->plan;
    if (l->n < l->cap) {
        Candidate *c = &l->c[l->n];
        *c = (Candidate){.tile = *t};
        complete(l->search, &c->tile);
        c->legal = tile_legal(&p->spec, &p->shape, &p->device, &c->tile,
                              c->why);
        model_figures(&p->spec, &p->shape, &p->device, &c->tile, &c->fig);
    }
    l->n++;
}

static int rank(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    if (x->legal != y->legal)
        return x->legal ? -1 : 1;
    int order = compare(&x->fig, &y->fig);
    return order ? order : memcmp(x->tile.v, y->tile.v, sizeof x->tile.v);
}

int plan_candidates(const Plan *p, int step, Candidate *out, int max) {
    static const Fixed nothing;
    const Tile *t = &p->step[step].tile;
    Search s = {.plan = p, .shape = &p->shape, .fixed = &nothing};
    s.split_k = t->family == TILE_cpu_fwd ? t->v[T_cpu_fwd_split_k] : 0;
    if (t->family == TILE_cpu_combine)
        s.split_k = t->v[T_cpu_combine_split_k];
    List l = {.search = &s};
    tile_each(&p->spec, &p->shape, &p->device, t->family, collect, &l);
    l.cap = l.n;
    l.n = 0;
    l.c = calloc((size_t)l.cap, sizeof *l.c);
    if (!l.c)
        return 0;
    tile_each(&p->spec, &p->shape, &p->device, t->family, collect, &l);
    qsort(l.c, (size_t)l.n, sizeof *l.c, rank);
    /* When not all fit, rejected ones keep up to a quarter of the places. */
    int legal = 0;
    while (legal < l.n && l.c[legal].legal)
        legal++;
    int rejected = l.n - legal < max / 4 ? l.n - legal : max / 4;
    int best = legal < max - rejected ? legal : max - rejected;
    rejected = l.n - legal < max - best ? l.n - legal : max - best;
    memcpy(out, l.c, (size_t)best * sizeof *out);
    memcpy(out + best, l.c + legal, (size_t)rejected * sizeof *out);
    free(l.c);
    return best + rejected;
}
