/* SPDX-License-Identifier: Apache-2.0
 * Spec, shape and device -> plan: the strategy first (split the keys or not),
 * then a tile per step. Names, parameters, text: plan_step.c, plan_text.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pins.h"

/* ---- the sizes a choice looks at ---------------------------------------- */

/* 1 2 3 4 6 8 12 16 ..: at least n, at most half more. */
static int64_t round_size(int64_t n) {
    int64_t power = 1;
    while (2 * power <= n)
        power *= 2;
    return n == power ? n : 2 * n <= 3 * power ? 3 * power / 2 : 2 * power;
}

/* On a CPU, where any tile serves any length about as well, sizes are rounded
 * so that a host whose lengths vary compiles a kernel per half octave of
 * length and not one per length. */
static attnc_shape planning_shape(const Plan *p) {
    attnc_shape h = p->shape;
    if (p->device.kind != DEVICE_CPU)
        return h;
    h.batch = round_size(h.batch);
    h.seqlen_q = round_size(h.seqlen_q);
    h.seqlen_k = round_size(h.seqlen_k);
    return h;
}

/* ---- a tile for a step ------------------------------------------------- */

typedef struct Search {
    const Plan *plan;
    const attnc_shape *shape; /* the model's hints */
    const Fixed *fixed;
    const Pins *pins;
    int split_k;                  /* or how dQ is summed: the strategy */
    int block_field, split_field; /* of the family; -1: has none */
    bool found;
    Tile best;
    Figures fig;
} Search;

/* The field that the strategy decides; -1: none. */
static int strategy_field(int family) {
    int split = tile_field_index(family, "split_k");
    return split >= 0 ? split : tile_field_index(family, "dq");
}

static Search new_search(const Plan *p, const attnc_shape *h, int family,
                         const Fixed *fixed, int split_k) {
    return (Search){.plan = p,
                    .shape = h,
                    .fixed = fixed,
                    .split_k = split_k,
                    .block_field = tile_field_index(family, "block_k"),
                    .split_field = strategy_field(family)};
}

/* What the strategy says holds unless a field was fixed: whole blocks of keys
 * per split; a combine takes the split as it is. */
static void complete(const Search *f, Tile *t) {
    fixed_overlay(f->fixed, t);
    int block_k = f->block_field < 0 ? 1 : t->v[f->block_field];
    if (f->split_field < 0 || block_k < 1 ||
        (f->block_field >= 0 && fixed_has(f->fixed, t->family, f->split_field)))
        return;
    if (t->family == TILE_mma_dkdv)
        block_k = 1;
    t->v[f->split_field] = (f->split_k + block_k - 1) / block_k * block_k;
}

/* What spilled rules out all that wants as many registers and has no more:
 * other stages or blocks do not help it. */
static bool avoided(const Search *f, const Tile *t) {
    const Plan *p = f->plan;
    const Device *d = &p->device;
    for (int i = 0; f->pins && i < f->pins->navoid; i++) {
        const Tile *bad = &f->pins->avoid[i];
        if (bad->family == t->family && tile_is_cuda(t->family) &&
            tile_cuda_registers(&p->spec, d, bad) ==
                tile_cuda_registers(&p->spec, d, t) &&
            tile_cuda_register_limit(d, t) <= tile_cuda_register_limit(d, bad))
            return true;
    }
    return false;
}

/* What is likely to spill would be compiled for nothing: it has to be so much
 * faster. */
static double ranked_ms(const Figures *f) {
    return f->time_ms * (f->doubt > 1 ? f->doubt : 1);
}

/* Faster first; then less work, less traffic, less SRAM. */
static int compare(const Figures *a, const Figures *b) {
    const double pairs[][2] = {{ranked_ms(a), ranked_ms(b)},
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
    if (avoided(f, &t) || !tile_legal(&p->spec, f->shape, &p->device, &t, why))
        return;
    model_figures(&p->spec, f->shape, &p->device, &t, &fig);
    if (f->found && compare(&f->fig, &fig) <= 0)
        return;
    f->found = true;
    f->best = t;
    f->fig = fig;
}

/* The best legal tile into f->best. */
static bool search(Search *f, int family) {
    tile_each(&f->plan->spec, f->shape, &f->plan->device, family, consider, f);
    return f->found;
}

/* What a plan is chosen from. */
typedef struct Choice {
    Plan *p;
    const Pins *pins;
    const int *families; /* of the steps, in order; then -1 */
    Fixed pin, table;
} Choice;

static const Fixed nothing;

/* Why the fixed fields fit no tile: what is wrong with them on the tile that
 * would have been taken. */
static void reason(const Plan *p, int family, const Fixed *fixed, int split_k,
                   char why[120]) {
    attnc_shape h = planning_shape(p);
    Search f = new_search(p, &h, family, &nothing, split_k);
    Tile t = search(&f, family) ? f.best : tile_safe(&p->device, family);
    f.fixed = fixed;
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
 * rest. Those of gradients depend on all of cpu_bwd. */
static attnc_shape invariant(const Choice *c, int family, Fixed *fixed) {
    attnc_shape h = planning_shape(c->p), usual = usual_shape();
    Search f = new_search(c->p, &usual, family, fixed, 0);
    f.pins = c->pins;
    if (!c->p->spec.batch_invariant)
        return h;
    h.batch = 1;
    if (f.block_field >= 0 && !fixed_has(fixed, family, f.block_field) &&
        search(&f, family))
        for (int i = 0; tile_field_name(family, i); i++)
            if (i == f.block_field || family == TILE_cpu_bwd)
                fixed_set(fixed, family, i, f.best.v[i]);
    return h;
}

/* The ladder: pin > table > model > safe. */
static int choose_tile(const Choice *c, Step *step, int family, int split_k,
                       bool use_table, Err *e) {
    char why[120];
    Plan *p = c->p;
    bool pinned = c->pin.set[family];
    bool tabled = use_table && c->table.set[family] && !pinned;
    Fixed fixed = pinned ? c->pin : tabled ? c->table : nothing;
    attnc_shape h = invariant(c, family, &fixed);
    Search f = new_search(p, &h, family, &fixed, split_k);
    f.pins = c->pins;
    if (search(&f, family)) {
        step->tile = f.best;
        step->tile.from = pinned ? FROM_PIN : tabled ? FROM_TABLE : FROM_MODEL;
        return 0;
    }
    reason(p, family, &fixed, split_k, why);
    if (pinned)
        return err_set(e, ERR_REQUEST, "tile", NULL, "%s", why);
    if (tabled) {
        snprintf(p->note, sizeof p->note, "tuned row skipped: %s", why);
        return choose_tile(c, step, family, split_k, false, e);
    }
    step->tile = tile_safe(&p->device, family);
    if (f.split_field >= 0)
        step->tile.v[f.split_field] = split_k;
    if (tile_legal(&p->spec, &p->shape, &p->device, &step->tile, why))
        return 0;
    return err_set(e, ERR_REQUEST, "tile", NULL, "no legal tile on %s: %s",
                   p->device.arch, why);
}

/* ---- the plan ---------------------------------------------------------- */

/* A tuned row that cannot even be read is skipped, too. */
static void read_table(const char *text, const int *families, Fixed *out,
                       Plan *p) {
    Err e = {0};
    if (!fixed_read(text, families, FROM_TABLE, out, &e))
        return;
    *out = (Fixed){0};
    snprintf(p->note, sizeof p->note, "tuned row skipped: %.130s", e.text);
}

/* The best tiles' time with keys split like this, all steps. */
static double time_split(const Choice *c, int split_k) {
    attnc_shape h = planning_shape(c->p);
    double ms = 0;
    for (int i = 0; i < (split_k ? 2 : 1); i++) {
        int family = c->families[i];
        Search f = new_search(c->p, &h, family, &c->pin, split_k);
        f.pins = c->pins;
        if (!search(&f, family))
            return HUGE_VAL;
        ms += f.fig.time_ms;
        split_k = f.best.v[f.split_field];
    }
    return ms;
}

/* A second step has to promise more than the model may err by. */
static const double SPLIT_GAIN = 0.9, DQ_GAIN = 0.9;

/* The model compares: filling the chip costs the second step. */
static int split_by_model(const Choice *c) {
    const Plan *p = c->p;
    attnc_shape h = planning_shape(p);
    int lengths[16];
    int n = (p->device.kind == DEVICE_CPU ? cpu_splits : cuda_splits)(
        &p->spec, &h, &p->device, lengths);
    int best = lengths[0];
    double least = n > 1 ? SPLIT_GAIN * time_split(c, best) : 0;
    for (int i = 1; i < n; i++) {
        double ms = time_split(c, lengths[i]);
        if (ms < least) {
            least = ms;
            best = lengths[i];
        }
    }
    return best;
}

/* The best tiles' time when dQ is summed like this, all steps but delta, which
 * is there either way. */
static double time_dq(const Choice *c, int dq) {
    const Plan *p = c->p;
    attnc_shape usual = usual_shape();
    const attnc_shape *h = p->spec.batch_invariant ? &usual : &p->shape;
    double ms = cuda_dq_ms(&p->spec, h, &p->device, dq);
    for (int i = 0; i < (dq == DQ_APART ? 2 : 1); i++) {
        Search f = new_search(p, h, c->families[i], &c->pin, dq);
        f.pins = c->pins;
        ms += search(&f, c->families[i]) ? f.fig.time_ms : HUGE_VAL;
    }
    return ms;
}

static int choose_dq(const Choice *c) {
    int best = DQ_APART;
    double least = DQ_GAIN * time_dq(c, best);
    for (int dq = best + 1; dq < DQ_WAYS; dq++) {
        double ms = time_dq(c, dq);
        if (ms < least) {
            least = ms;
            best = dq;
        }
    }
    return best;
}

static int split_of(const Choice *c) {
    const Fixed *const by[] = {&c->pin, &c->table};
    int family = c->families[0], field = strategy_field(family);
    if (field < 0)
        return 0;
    for (int i = 0; i < 2; i++) {
        if (fixed_has(by[i], family, field))
            return by[i]->tile[family].v[field];
    }
    return family == TILE_mma_dkdv ? choose_dq(c) : split_by_model(c);
}

/* A pin for a step that the plan does not have would do nothing. */
static int check_used(const Plan *p, const Fixed *pin, Err *e) {
    for (int family = 0; family < TILE_FAMILIES; family++) {
        bool used = !pin->set[family];
        for (int i = 0; i < p->nstep; i++)
            used |= p->step[i].tile.family == family;
        if (!used)
            return err_set(e, ERR_REQUEST, "tile", NULL,
                           p->spec.pass == ATTNC_PASS_BWD
                               ? "a field of %s is pinned, but dQ has no step "
                                 "of its own; pin dq=0 too"
                               : "a field of %s is pinned, but the keys are "
                                 "not split; pin split_k too",
                           tile_family_name(family));
    }
    return 0;
}

/* The families of a plan's steps: forward, combine; or backward, rows; or
 * the combine alone. */
static int families_of(const Plan *p, const Pins *pins, int out[4], Err *e) {
    bool cpu = p->device.kind == DEVICE_CPU;
    bool bwd = p->spec.pass == ATTNC_PASS_BWD;
    out[0] = bwd   ? TILE_cpu_bwd
             : cpu ? TILE_cpu_fwd
                   : cuda_family(&p->spec, &p->device);
    out[1] = bwd ? TILE_cpu_rows : cpu ? TILE_cpu_combine : TILE_cuda_combine;
    out[2] = -1;
    if (bwd && !cpu)
        cuda_bwd_families(&p->spec, &p->device, out);
    if (p->spec.pass == ATTNC_PASS_MERGE) {
        out[0] = out[1];
        out[1] = -1;
    }
    if (!pins->builtin)
        return 0;
    if (!cpu)
        return err_set(e, ERR_REQUEST, "plan", "target",
                       "%s has no built-in kernel; nearest: cpu",
                       p->device.arch);
    out[0] = TILE_builtin;
    out[1] = -1;
    return 0;
}

static int choose_forward(const Choice *c, Err *e) {
    Plan *p = c->p;
    int split_k = split_of(c), code = 0;
    p->nstep = split_k ? 2 : 1;
    p->step[0].role = split_k ? ROLE_fwd_split : ROLE_fwd;
    p->step[1].role = ROLE_combine;
    for (int i = 0; i < p->nstep && !code; i++) {
        Step *s = &p->step[i];
        code = choose_tile(c, s, c->families[i], split_k, true, e);
        if (!i && split_k && !code)
            split_k = s->tile.v[tile_field_index(c->families[0], "split_k")];
    }
    return code;
}

/* A tile of each family; on a CPU the main one says which steps there are. */
static int choose_backward(const Choice *c, Err *e) {
    Plan *p = c->p;
    Step chosen[3] = {0};
    int role[PLAN_STEPS], code = 0;
    bool cpu = plan_bwd_cpu(&p->spec, c->families[0]);
    int dq = cpu ? 0 : split_of(c);
    for (int i = 0; c->families[i] >= 0 && !code; i++)
        code = choose_tile(c, &chosen[i], c->families[i], i ? 0 : dq, true, e);
    if (code)
        return code;
    p->nstep = cpu ? plan_bwd_roles(&p->spec, &chosen[0].tile, role)
                   : cuda_bwd_roles(&p->spec, &chosen[0].tile, role);
    for (int i = 0; i < p->nstep; i++) {
        int of = cpu ? !plan_bwd_is_main(role[i]) : cuda_bwd_family(role[i]);
        p->step[i].role = role[i];
        p->step[i].tile = chosen[c->families[1] < 0 ? 0 : of].tile;
        if (!cpu && role[i] == ROLE_dtensor)
            cuda_tensor_tile(p, &p->step[i].tile);
    }
    return 0;
}

static int choose_merge(const Choice *c, Err *e) {
    c->p->nstep = 1;
    c->p->step[0].role = ROLE_merge;
    return choose_tile(c, &c->p->step[0], c->families[0], 0, true, e);
}

static int choose_steps(Plan *p, const Pins *pins, Err *e) {
    int families[4];
    Choice c = {.p = p, .pins = pins, .families = families};
    int code = families_of(p, pins, families, e);
    if (!code)
        code = fixed_read(pins->tile, families, FROM_PIN, &c.pin, e);
    if (code)
        return code;
    read_table(pins->table, families, &c.table, p);
    code = p->spec.pass == ATTNC_PASS_BWD     ? choose_backward(&c, e)
           : p->spec.pass == ATTNC_PASS_MERGE ? choose_merge(&c, e)
                                              : choose_forward(&c, e);
    return code ? code : check_used(p, &c.pin, e);
}

int plan_choose(const attnc_spec *s, const attnc_shape *h, const Device *d,
                const Pins *pins, Plan *out, Err *e) {
    static const Pins no_pins;
    memset(out, 0, sizeof *out);
    int code = spec_check(s, &out->spec, e);
    if (!code)
        code = shape_check(h, &out->shape, e);
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
        c->legal =
            tile_legal(&p->spec, &p->shape, &p->device, &c->tile, c->why);
        model_figures(&p->spec, l->search->shape, &p->device, &c->tile,
                      &c->fig);
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
    const Tile *t = &p->step[step].tile;
    attnc_shape h = planning_shape(p);
    Search s = new_search(p, &h, t->family, &nothing, 0);
    if (s.split_field >= 0)
        s.split_k = t->v[s.split_field];
    List l = {.search = &s};
    tile_each(&p->spec, &h, &p->device, t->family, collect, &l);
    l.cap = l.n;
    l.n = 0;
    l.c = calloc((size_t)l.cap, sizeof *l.c);
    if (!l.c)
        return 0;
    tile_each(&p->spec, &h, &p->device, t->family, collect, &l);
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
    for (int i = 0; i < best + rejected; i++) /* at the sizes asked for */
        model_figures(&p->spec, &p->shape, &p->device, &out[i].tile,
                      &out[i].fig);
    return best + rejected;
}

int plan_dq_ways(const Plan *p, DqWay out[DQ_WAYS]) {
    static const Pins no_pins;
    int families[4];
    Choice c = {.p = (Plan *)p, .pins = &no_pins, .families = families};
    if (p->nstep < 2 || p->step[1].tile.family != TILE_mma_dkdv)
        return 0;
    cuda_bwd_families(&p->spec, &p->device, families);
    for (int dq = DQ_APART; dq < DQ_WAYS; dq++) {
        out[dq] = (DqWay){.ms = time_dq(&c, dq)};
        if (out[dq].ms == HUGE_VAL)
            reason(p, families[0], &nothing, dq, out[dq].why);
    }
    return DQ_WAYS;
}
