/* SPDX-License-Identifier: Apache-2.0
 * Tiles: named integers of each family, the one body of legality, and the
 * enumeration the model ranks. */
#include <stdio.h>
#include <string.h>

#include "gen.h"

/* ---- names ------------------------------------------------------------- */

static const char *const families[] = {
#define FAMILY(name) #name,
#define FIELD(family, name, doc)
#include "tile.def"
#undef FAMILY
#undef FIELD
};

typedef struct Field {
    int family, index;
    const char *name;
} Field;

static const Field fields[] = {
#define FAMILY(name)
#define FIELD(family, name, doc) {TILE_##family, T_##family##_##name, #name},
#include "tile.def"
#undef FAMILY
#undef FIELD
};

enum { FIELDS = sizeof fields / sizeof *fields };

const char *tile_family_name(int family) {
    return family >= 0 && family < TILE_FAMILIES ? families[family] : "?";
}

const char *tile_field_name(int family, int i) {
    for (int k = 0; k < FIELDS; k++) {
        if (fields[k].family == family && fields[k].index == i)
            return fields[k].name;
    }
    return NULL;
}

const char *tile_from_name(int from) {
    static const char *const names[] = {[FROM_MODEL] = "model",
                                        [FROM_PIN] = "pin",
                                        [FROM_TABLE] = "table",
                                        [FROM_SAFE] = "safe"};
    return from >= 0 && from <= FROM_SAFE ? names[from] : "?";
}

/* ---- text -------------------------------------------------------------- */

void tile_print(const Tile *t, Str *out) {
    const char *name;
    str_addf(out, "%s", tile_family_name(t->family));
    for (int i = 0; (name = tile_field_name(t->family, i)); i++)
        str_addf(out, " %s=%d", name, t->v[i]);
}

static int unknown_field(int family, Slice key, Err *e) {
    const char *names[TILE_FIELDS];
    char name[48];
    int n = 0;
    while (n < TILE_FIELDS && (names[n] = tile_field_name(family, n)))
        n++;
    snprintf(name, sizeof name, "%.*s", (int)key.len, key.p);
    return err_set(e, ERR_REQUEST, "tile", NULL,
                   "unknown field '%s' of %s; nearest: %s", name,
                   tile_family_name(family), nearest_word(name, names, n));
}

static int field_index(int family, Slice key) {
    const char *name;
    for (int i = 0; (name = tile_field_name(family, i)); i++) {
        if (slice_is(key, name))
            return i;
    }
    return -1;
}

int tile_field_index(int family, const char *name) {
    return field_index(family, (Slice){name, strlen(name)});
}

int tile_parse(const char *pairs, Tile *t, Err *e) {
    Slice key, value;
    Tile now = *t;
    while (next_pair(&pairs, ", \t", &key, &value)) {
        int i = field_index(t->family, key);
        int64_t v;
        if (i < 0)
            return unknown_field(t->family, key, e);
        if (!slice_int(value, &v) || v < 0 || v > INT32_MAX)
            return err_set(
                e, ERR_REQUEST, "tile", tile_field_name(t->family, i),
                "'%.*s' is not a number of 0..%d",
                value.len > 40 ? 40 : (int)value.len, value.p, INT32_MAX);
        now.v[i] = (int32_t)v;
    }
    *t = now;
    return 0;
}

/* ---- legality ---------------------------------------------------------- */

/* The names of cpu_fwd's fields, spelled out once. */
typedef struct CpuFwd {
    int block_q, block_k, vecs, keys, dims, copy_kv, split_k;
} CpuFwd;

static CpuFwd cpu_fwd(const Tile *t) {
    return (CpuFwd){t->v[T_cpu_fwd_block_q], t->v[T_cpu_fwd_block_k],
                    t->v[T_cpu_fwd_vecs],    t->v[T_cpu_fwd_keys],
                    t->v[T_cpu_fwd_dims],    t->v[T_cpu_fwd_copy_kv],
                    t->v[T_cpu_fwd_split_k]};
}

bool tile_refuse(char why[TILE_WHY], const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(why, TILE_WHY, fmt, args);
    va_end(args);
    return false;
}

bool tile_in_ranges(const TileRange *r, int n, char why[TILE_WHY]) {
    for (int i = 0; i < n; i++) {
        if (r[i].value < r[i].lo || r[i].value > r[i].hi)
            return tile_refuse(why, "%s=%d is out of range; accepted %d..%d",
                               r[i].name, r[i].value, r[i].lo, r[i].hi);
    }
    return true;
}

bool tile_whole(const char *name, int value, const char *unit_name, int unit,
                char why[TILE_WHY]) {
    int up = (value + unit - 1) / unit * unit;
    if (value == up)
        return true;
    int nearest = up - value <= unit / 2 || up == unit ? up : up - unit;
    return tile_refuse(why, "%s=%d is not a multiple of %s%d; nearest %d", name,
                       value, unit_name, unit, nearest);
}

bool tile_fits_registers(const char *name, int rows, const char *vecs_name,
                         int vecs, const Device *d, char why[TILE_WHY]) {
    int need = rows * vecs + vecs + 1, have = (int)d->vector_regs;
    if (need <= have)
        return true;
    int most = (have - 1 - vecs) / vecs;
    if (most < 1)
        return tile_refuse(why,
                           "%s=%d needs %d vector registers, %s has %d; "
                           "nearest %s=%d",
                           vecs_name, vecs, need, d->arch, have, vecs_name,
                           (have - 1) / 2);
    return tile_refuse(why,
                       "%s=%d x %s=%d needs %d vector registers, %s has %d; "
                       "nearest %s=%d",
                       name, rows, vecs_name, vecs, need, d->arch, have, name,
                       most);
}

bool tile_may_read_in_place(const attnc_spec *s, int copy_kv,
                            char why[TILE_WHY]) {
    return copy_kv || s->dtype == ATTNC_F32 ||
           tile_refuse(why,
                       "copy_kv=0 reads K and V in place, which needs "
                       "dtype=f32, not %s; nearest copy_kv=1",
                       spec_spelling(s, "dtype"));
}

static bool fits_sram(const attnc_spec *s, const Device *d, const Tile *t,
                      char why[TILE_WHY]) {
    int64_t need = model_scratch_bytes(s, d, t);
    if (need <= d->sram_bytes)
        return true;
    Tile unit = *t;
    int vecs = t->v[T_cpu_fwd_vecs];
    int micro = vecs ? (int)d->vector_bytes / 4 * vecs : 1;
    unit.v[T_cpu_fwd_block_q] = micro;
    int64_t least = model_scratch_bytes(s, d, &unit);
    if (least > d->sram_bytes)
        return tile_refuse(why,
                           "needs %lld bytes of SRAM, there are %.0f, and "
                           "block_q=%d needs %lld",
                           (long long)need, d->sram_bytes, micro,
                           (long long)least);
    return tile_refuse(why, "needs %lld bytes of SRAM, there are %.0f",
                       (long long)need, d->sram_bytes);
}

/* Few rows: vectors of dims, `lanes` sums added up across them at once. */
static bool few_legal(const attnc_spec *s, const Device *d, const CpuFwd *f,
                      char why[TILE_WHY]) {
    int lanes = (int)d->vector_bytes / 4, regs = (int)d->vector_regs;
    bool ragged = s->head_dim % lanes || s->head_dim_v % lanes;
    const TileRange ranges[] = {
        {"block_q", f->block_q, 1, FEW_ROWS},
        {"keys", f->keys, lanes, regs - 2},
        {"dims", f->dims, 1, regs - 2},
    };
    if (s->batch_invariant)
        return tile_refuse(why, "vecs=0 gives a row other bits than more rows "
                                "have, which batch_invariant forbids");
    if (s->dropout)
        return tile_refuse(why, "vecs=0 draws no dropout; nearest vecs=1");
    if (ragged && !f->copy_kv)
        return tile_refuse(why,
                           "vecs=0 reads rows in place only where they are "
                           "whole vectors of %d; nearest copy_kv=1",
                           lanes);
    return tile_in_ranges(ranges, 3, why) &&
           tile_whole("keys", f->keys, "lanes = ", lanes, why);
}

/* Queries in the vectors. */
static bool many_legal(const Device *d, const CpuFwd *f, char why[TILE_WHY]) {
    int lanes = (int)d->vector_bytes / 4;
    return tile_whole("block_q", f->block_q, "lanes*vecs = ", lanes * f->vecs,
                      why) &&
           tile_fits_registers("keys", f->keys, "vecs", f->vecs, d, why) &&
           tile_fits_registers("dims", f->dims, "vecs", f->vecs, d, why);
}

static bool cpu_fwd_legal(const attnc_spec *s, const Device *d, const Tile *t,
                          char why[TILE_WHY]) {
    CpuFwd f = cpu_fwd(t);
    const TileRange ranges[] = {
        {"block_q", f.block_q, 1, 65536},
        {"block_k", f.block_k, 8, 1024},
        {"vecs", f.vecs, 0, 8},
        {"keys", f.keys, 1, 16},
        {"dims", f.dims, 1, 16},
        {"copy_kv", f.copy_kv, 0, 1},
        {"split_k", f.split_k, 0, 1 << 30},
    };
    if (d->kind != DEVICE_CPU)
        return tile_refuse(why, "family cpu_fwd needs a CPU, not %s", d->arch);
    if (!tile_in_ranges(ranges, sizeof ranges / sizeof *ranges, why) ||
        !tile_whole("block_k", f.block_k, "", 8, why) ||
        !tile_whole("split_k", f.split_k, "block_k = ", f.block_k, why) ||
        !(f.vecs ? many_legal(d, &f, why) : few_legal(s, d, &f, why)))
        return false;
    return tile_may_read_in_place(s, f.copy_kv, why) && fits_sram(s, d, t, why);
}

bool tile_legal(const attnc_spec *s, const attnc_shape *h, const Device *d,
                const Tile *t, char why[TILE_WHY]) {
    bool merge = s->pass == ATTNC_PASS_MERGE; /* no splits, but parts */
    const TileRange combine[] = {
        {"rows", t->v[T_cpu_combine_rows], 1, 1024},
        {"split_k", t->v[T_cpu_combine_split_k], merge ? 0 : 8,
         merge ? 0 : 1 << 30},
    };
    const TileRange constant = {"rows", t->v[T_builtin_rows], BUILTIN_ROWS,
                                BUILTIN_ROWS};
    const TileRange rows = {"rows", t->v[T_cpu_rows_rows], 1, 4096};
    why[0] = 0;
    switch (t->family) {
    case TILE_cpu_fwd:
        return cpu_fwd_legal(s, d, t, why);
    case TILE_cpu_combine:
        return tile_in_ranges(combine, 2, why);
    case TILE_builtin:
        return tile_in_ranges(&constant, 1, why);
    case TILE_cpu_bwd:
        return tile_bwd_legal(s, d, t, why);
    case TILE_cpu_rows:
        return tile_in_ranges(&rows, 1, why);
    default:
        if (tile_is_cuda(t->family)) /* sizes steer; promises may allow */
            return tile_cuda_legal(s, d, t, why) &&
                   cuda_bwd_promised(h, t, why);
        return tile_refuse(why, "unknown family %d", t->family);
    }
}

/* ---- enumeration ------------------------------------------------------- */

typedef struct Walk {
    const attnc_spec *s;
    const attnc_shape *h;
    const Device *d;
    void (*fn)(void *user, const Tile *t);
    void *user;
} Walk;

/* Share of SRAM for what a work item keeps; the rest is for what streams
 * through: K and V in place, the caller's data. */
static const double SRAM_SHARE = 0.75;

/* Query sub-blocks in one work item: about sqrt(2) apart, then what fits. */
static const int sub_blocks[] = {1,  2,  3,  4,  6,  8,   12,  16,
                                 24, 32, 48, 64, 96, 128, 192, 256};

/* The most rows of a multiple of micro whose footprint fits the share. */
static int most_rows(const Walk *w, const Tile *t, int micro) {
    int lo = 1, hi = 65536 / micro;
    Tile probe = *t;
    while (lo < hi) {
        int mid = (lo + hi + 1) / 2;
        probe.v[T_cpu_fwd_block_q] = mid * micro;
        if (model_scratch_bytes(w->s, w->d, &probe) <=
            SRAM_SHARE * w->d->sram_bytes)
            lo = mid;
        else
            hi = mid - 1;
    }
    return lo * micro;
}

static void walk_block_q(const Walk *w, Tile *t) {
    int vecs = t->v[T_cpu_fwd_vecs];
    int micro = vecs ? (int)w->d->vector_bytes / 4 * vecs : 1;
    int64_t rows = w->h->heads / w->h->kv_heads * w->h->seqlen_q;
    int64_t all = (rows + micro - 1) / micro * micro;
    int most = most_rows(w, t, micro);
    if (all < most)
        most = (int)all;
    for (size_t i = 0; i < sizeof sub_blocks / sizeof *sub_blocks; i++) {
        int block_q = sub_blocks[i] * micro;
        if (block_q >= most)
            break;
        t->v[T_cpu_fwd_block_q] = block_q;
        w->fn(w->user, t);
    }
    t->v[T_cpu_fwd_block_q] = most;
    w->fn(w->user, t);
    if (most < all && most <= 32768) { /* one too large, to show the limit */
        t->v[T_cpu_fwd_block_q] = 2 * most;
        w->fn(w->user, t);
    }
}

static void walk_blocks(const Walk *w, Tile *t) {
    static const int block_ks[] = {16, 32, 48, 64, 96, 128, 192, 256};
    for (size_t i = w->s->sparsity ? 0 : 1;
         i < sizeof block_ks / sizeof *block_ks; i++) {
        t->v[T_cpu_fwd_block_k] = block_ks[i];
        for (int copy = w->s->dtype != ATTNC_F32; copy <= 1; copy++) {
            t->v[T_cpu_fwd_copy_kv] = copy;
            walk_block_q(w, t);
        }
    }
}

static void show_limit(const Walk *w, Tile *t) {
    t->v[T_cpu_fwd_block_q] =
        (int)w->d->vector_bytes / 4 * t->v[T_cpu_fwd_vecs];
    t->v[T_cpu_fwd_block_k] = 64;
    t->v[T_cpu_fwd_copy_kv] = 1;
    w->fn(w->user, t);
}

/* Few rows, all of them in one item; every register tile that adds up whole
 * vectors of sums. The next block of keys is on its way meanwhile, so a block
 * is a small part of SRAM. */
static void walk_few(const Walk *w, Tile *t) {
    static const int block_ks[] = {16, 32, 48, 64};
    int64_t rows = w->h->heads / w->h->kv_heads * w->h->seqlen_q;
    int lanes = (int)w->d->vector_bytes / 4, regs = (int)w->d->vector_regs;
    if (rows > FEW_ROWS)
        return;
    t->v[T_cpu_fwd_vecs] = 0;
    t->v[T_cpu_fwd_block_q] = (int)rows;
    for (int keys = lanes; keys <= regs - 2 && keys <= 16; keys += lanes)
        for (int i = 0; i < 16; i++) {
            t->v[T_cpu_fwd_keys] = keys;
            t->v[T_cpu_fwd_dims] = i & 1 ? 8 : 4;
            t->v[T_cpu_fwd_copy_kv] = i >> 1 & 1;
            t->v[T_cpu_fwd_block_k] = block_ks[i >> 2];
            w->fn(w->user, t);
        }
}

/* Register tiles: enough independent sums to cover the FMA latency, and two
 * shapes of P V for each of Q K^T. */
static void walk_cpu_fwd(const Walk *w, Tile *t) {
    static const int shapes[] = {2, 3, 4, 5, 6, 8, 12};
    int regs = (int)w->d->vector_regs;
    int least = (int)(4 * w->d->fma_per_cycle);
    walk_few(w, t);
    for (int vecs = 1; vecs <= 4; vecs++) {
        int fit = (regs - 1 - vecs) / vecs;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            int keys = shapes[i];
            if (keys * vecs < least && keys < fit)
                continue;
            t->v[T_cpu_fwd_vecs] = vecs;
            t->v[T_cpu_fwd_keys] = keys;
            t->v[T_cpu_fwd_dims] = keys;
            if (keys > fit) { /* one too large, to show the limit */
                show_limit(w, t);
                break;
            }
            walk_blocks(w, t);
            if (keys != 4 && fit >= 4 && 4 * vecs >= least) {
                t->v[T_cpu_fwd_dims] = 4;
                walk_blocks(w, t);
            }
        }
    }
}

static void walk_rows(const Walk *w, Tile *t, int field) {
    static const int rows[] = {8, 16, 32, 64, 128, 256};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        t->v[field] = rows[i];
        w->fn(w->user, t);
    }
}

void tile_each(const attnc_spec *s, const attnc_shape *h, const Device *d,
               int family, void (*fn)(void *user, const Tile *t), void *user) {
    Walk w = {s, h, d, fn, user};
    Tile t = {.family = family, .from = FROM_MODEL};
    if (family == TILE_cpu_fwd && d->kind == DEVICE_CPU) {
        walk_cpu_fwd(&w, &t);
    } else if (family == TILE_cpu_combine) {
        walk_rows(&w, &t, T_cpu_combine_rows);
    } else if (family == TILE_cpu_rows) {
        walk_rows(&w, &t, T_cpu_rows_rows);
    } else if (family == TILE_cpu_bwd && d->kind == DEVICE_CPU) {
        tile_bwd_each(s, h, d, &t, fn, user);
    } else if (family == TILE_builtin) {
        t.v[T_builtin_rows] = BUILTIN_ROWS;
        fn(user, &t);
    } else if (tile_is_cuda(family) && d->kind != DEVICE_CPU) {
        tile_cuda_each(s, h, d, &t, fn, user);
    }
}

typedef struct List {
    const Walk *walk;
    Candidate *out;
    int n, max;
} List;

static void add(void *user, const Tile *t) {
    List *l = user;
    if (l->n == l->max)
        return;
    Candidate *c = &l->out[l->n++];
    *c = (Candidate){.tile = *t};
    c->legal = tile_legal(l->walk->s, l->walk->h, l->walk->d, t, c->why);
    model_figures(l->walk->s, l->walk->h, l->walk->d, t, &c->fig);
}

int tile_enumerate(const attnc_spec *s, const attnc_shape *h, const Device *d,
                   int family, Candidate *out, int max) {
    Walk w = {.s = s, .h = h, .d = d};
    List l = {&w, out, 0, max};
    tile_each(s, h, d, family, add, &l);
    return l.n;
}

Tile tile_safe(const Device *d, int family) {
    Tile t = {.family = family, .from = FROM_SAFE};
    if (family == TILE_cpu_combine) {
        t.v[T_cpu_combine_rows] = 1;
        t.v[T_cpu_combine_split_k] = 1024;
    } else if (family == TILE_builtin) {
        t.v[T_builtin_rows] = BUILTIN_ROWS;
    } else if (family == TILE_cpu_rows) {
        t.v[T_cpu_rows_rows] = 1;
    } else if (family == TILE_cpu_bwd) {
        tile_bwd_safe(d, &t);
    } else if (tile_is_cuda(family)) {
        tile_cuda_safe(&t);
    } else {
        t.v[T_cpu_fwd_block_q] = (int)d->vector_bytes / 4;
        t.v[T_cpu_fwd_block_k] = 8;
        t.v[T_cpu_fwd_vecs] = t.v[T_cpu_fwd_keys] = t.v[T_cpu_fwd_dims] = 1;
        t.v[T_cpu_fwd_copy_kv] = 1;
    }
    return t;
}
