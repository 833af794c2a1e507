/* SPDX-License-Identifier: Apache-2.0
 * Tiles of cpu_bwd: legality and the enumeration the model ranks. */
#include <stdio.h>

#include "gen.h"

/* ---- legality ---------------------------------------------------------- */

static bool in_ranges(const int32_t *v, char why[TILE_WHY]) {
    const TileRange ranges[] = {
        {"block_q", v[T_cpu_bwd_block_q], 1, 4096},
        {"block_k", v[T_cpu_bwd_block_k], 8, 1024},
        {"vecs", v[T_cpu_bwd_vecs], 1, 8},
        {"keys", v[T_cpu_bwd_keys], 1, 16},
        {"dims", v[T_cpu_bwd_dims], 1, 16},
        {"kv_keys", v[T_cpu_bwd_kv_keys], 1, 16},
        {"kv_vecs", v[T_cpu_bwd_kv_vecs], 1, 8},
        {"chunk_k", v[T_cpu_bwd_chunk_k], 8, 65536},
        {"parts", v[T_cpu_bwd_parts], 0, MOST_PARTS},
        {"copy_kv", v[T_cpu_bwd_copy_kv], 0, 1},
    };
    return tile_in_ranges(ranges, sizeof ranges / sizeof *ranges, why);
}

static bool fits_sram(const attnc_spec *s, const Device *d, const Tile *t,
                      char why[TILE_WHY]) {
    CpuScratch c;
    cpu_scratch(s, d, t, &c);
    int64_t need = cpu_bwd_footprint(&c);
    return need <= d->sram_bytes ||
           tile_refuse(why, "needs %lld bytes of SRAM, there are %.0f",
                       (long long)need, d->sram_bytes);
}

bool tile_bwd_legal(const attnc_spec *s, const Device *d, const Tile *t,
                    char why[TILE_WHY]) {
    const int32_t *v = t->v;
    int lanes = (int)d->vector_bytes / 4, parts = v[T_cpu_bwd_parts];
    if (d->kind != DEVICE_CPU)
        return tile_refuse(why, "family cpu_bwd needs a CPU, not %s", d->arch);
    if (!in_ranges(v, why) ||
        !tile_whole("block_q", v[T_cpu_bwd_block_q],
                    "lanes*vecs = ", lanes * v[T_cpu_bwd_vecs], why) ||
        !tile_whole("block_k", v[T_cpu_bwd_block_k], "", 8, why) ||
        !tile_whole("chunk_k", v[T_cpu_bwd_chunk_k],
                    "block_k = ", v[T_cpu_bwd_block_k], why) ||
        !tile_fits_registers("keys", v[T_cpu_bwd_keys], "vecs",
                             v[T_cpu_bwd_vecs], d, why) ||
        !tile_fits_registers("dims", v[T_cpu_bwd_dims], "vecs",
                             v[T_cpu_bwd_vecs], d, why) ||
        !tile_fits_registers("kv_keys", v[T_cpu_bwd_kv_keys], "kv_vecs",
                             v[T_cpu_bwd_kv_vecs], d, why))
        return false;
    if (parts && MOST_PARTS % parts)
        return tile_refuse(why, "parts=%d; accepted: 0 1 2 4 8", parts);
    return tile_may_read_in_place(s, v[T_cpu_bwd_copy_kv], why) &&
           fits_sram(s, d, t, why);
}

/* ---- enumeration ------------------------------------------------------- */

typedef struct Walk {
    const attnc_spec *s;
    const attnc_shape *h;
    const Device *d;
    void (*fn)(void *user, const Tile *t);
    void *user;
} Walk;

/* Share of SRAM for what a step keeps; K, V and the sums stream through. */
static const double SRAM_SHARE = 0.8;

static int64_t footprint(const Walk *w, const Tile *t) {
    CpuScratch c;
    cpu_scratch(w->s, w->d, t, &c);
    return cpu_bwd_footprint(&c);
}

/* Two passes; one; as many partial sums as occupy the cores, and twice that,
 * for then items end more evenly. */
static void walk_parts(const Walk *w, Tile *t) {
    double items = (double)w->h->batch * (double)w->h->kv_heads;
    int parts = 1;
    while (parts < MOST_PARTS && items * parts < w->d->cores)
        parts *= 2;
    const int each[] = {0, 1, parts, 2 * parts > MOST_PARTS ? 0 : 2 * parts};
    for (int i = 0; i < 4; i++) {
        t->v[T_cpu_bwd_parts] = each[i];
        if (i < 2 || each[i] > each[i - 1])
            w->fn(w->user, t);
    }
}

/* Sums of so many keys that what each query row costs once is little, but no
 * fewer chunks than parts. */
static void walk_chunks(const Walk *w, Tile *t) {
    int block_k = t->v[T_cpu_bwd_block_k];
    for (int chunk = 64; chunk <= 1024; chunk *= 2) {
        if (chunk < block_k)
            continue;
        if (chunk > 128 && chunk / 2 >= w->h->seqlen_k)
            break;
        t->v[T_cpu_bwd_chunk_k] = (chunk + block_k - 1) / block_k * block_k;
        walk_parts(w, t);
    }
}

static void walk_block_q(const Walk *w, Tile *t) {
    static const int subs[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32};
    int micro = (int)w->d->vector_bytes / 4 * t->v[T_cpu_bwd_vecs];
    int64_t rows = w->h->heads / w->h->kv_heads * w->h->seqlen_q;
    for (size_t i = 0; i < sizeof subs / sizeof *subs; i++) {
        t->v[T_cpu_bwd_block_q] = subs[i] * micro;
        if (i > 0 && (subs[i - 1] * (int64_t)micro >= rows ||
                      footprint(w, t) > SRAM_SHARE * w->d->sram_bytes))
            break;
        walk_chunks(w, t);
    }
}

static void walk_blocks(const Walk *w, Tile *t) {
    static const int block_ks[] = {16, 32, 64, 96, 128};
    for (size_t i = w->s->sparsity ? 0 : 1;
         i < sizeof block_ks / sizeof *block_ks; i++) {
        t->v[T_cpu_bwd_block_k] = block_ks[i];
        for (int copy = w->s->dtype != ATTNC_F32; copy <= 1; copy++) {
            t->v[T_cpu_bwd_copy_kv] = copy;
            walk_block_q(w, t);
        }
    }
}

/* Cycles of a step of the register tiles that a row of `vectors` takes: whole
 * ones, and a narrower one for what is left. */
static double row_cycles(const Device *d, int keys, int vecs, int vectors) {
    Feed f = cpu_feed(d, false, 0);
    int rest = vectors % vecs;
    double whole = vectors / vecs * cpu_step_cycles(d, keys, vecs, f);
    return (whole + (rest ? cpu_step_cycles(d, keys, rest, f) : 0)) / keys;
}

/* The register tile of dK and dV that takes the fewest cycles; their rows are
 * so many vectors long. */
static void pick_kv(const Walk *w, Tile *t) {
    static const int keys[] = {12, 8, 6, 5, 4, 3, 2};
    int lanes = (int)w->d->vector_bytes / 4, regs = (int)w->d->vector_regs;
    int k = (w->s->head_dim + lanes - 1) / lanes;
    int v = (w->s->head_dim_v + lanes - 1) / lanes;
    double best = 0;
    for (int vecs = 4; vecs >= 1; vecs--) {
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
            if (keys[i] * vecs + vecs + 1 > regs)
                continue;
            double cycles = row_cycles(w->d, keys[i], vecs, k) +
                            row_cycles(w->d, keys[i], vecs, v);
            if (best > 0 && cycles >= best)
                continue;
            best = cycles;
            t->v[T_cpu_bwd_kv_keys] = keys[i];
            t->v[T_cpu_bwd_kv_vecs] = vecs;
        }
    }
}

void tile_bwd_each(const attnc_spec *s, const attnc_shape *h, const Device *d,
                   Tile *t, void (*fn)(void *user, const Tile *t), void *user) {
    static const int shapes[] = {3, 4, 6, 8, 12};
    Walk w = {s, h, d, fn, user};
    int least = (int)(4 * d->fma_per_cycle), regs = (int)d->vector_regs;
    pick_kv(&w, t);
    for (int vecs = 1; vecs <= 4; vecs++) {
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            int keys = shapes[i], fit = (regs - 1 - vecs) / vecs;
            if (keys > fit || (keys * vecs < least && keys < fit))
                continue;
            t->v[T_cpu_bwd_vecs] = vecs;
            t->v[T_cpu_bwd_keys] = t->v[T_cpu_bwd_dims] = keys;
            walk_blocks(&w, t);
        }
    }
}

void tile_bwd_safe(const Device *d, Tile *t) {
    t->v[T_cpu_bwd_block_q] = (int)d->vector_bytes / 4;
    t->v[T_cpu_bwd_block_k] = t->v[T_cpu_bwd_chunk_k] = 8;
    t->v[T_cpu_bwd_vecs] = t->v[T_cpu_bwd_keys] = t->v[T_cpu_bwd_dims] = 1;
    t->v[T_cpu_bwd_kv_keys] = t->v[T_cpu_bwd_kv_vecs] = 1;
    t->v[T_cpu_bwd_parts] = t->v[T_cpu_bwd_copy_kv] = 1;
}
