/* SPDX-License-Identifier: Apache-2.0
 * The IO model of the backward on a CPU: the five products of cpu_bwd, and the
 * steps that go over rows once. docs/io-model.md, "The backward". */
#include <math.h>

#include "order.h"

static const double GROUP_START = 6;    /* as in model.c */
static const double SUM_ROUND_TRIP = 2; /* load, add, store a sum vector */
static const double BLOCK_START = 120;  /* a sub-block meets a key block */
static const double TRANSPOSE = 4;      /* a vector of Q, dO, dQ */
static const double DIFFERENCE = 4;     /* dS of a vector of scores */
static const double ITEM_START = 2000;
static const double COPY = 2;
/* Drawing a vector of weights as in the forward, dropping dP and P. */
static const double DROPOUT = 8;
static const double PART = 3;  /* a vector of dQ, for each partial sum */
static const double ADD = 6.5; /* one gradient to the element that was read */
static const double CROWDED = 0.2, CROWDED_LOSS = 0.2;

/* Per launch; the names are those of docs/io-model.md. */
typedef struct Work {
    double heads, kv_heads; /* batch * heads, batch * kv heads */
    double rows, blocks;    /* query rows of one kv head; in blocks */
    double padded;          /* rows, padded to micro */
    double chunks;          /* of keys */
    double keys;            /* computed with each row, mean */
    double share;           /* of rows and chunks that meet at all */
    double lanes, micro, elem;
    double part, met; /* of a pattern: tiles of sub-blocks that it cuts; of
                         blocks that it leaves */
} Work;

/* What a pattern leaves of the tiles, for a sub-block and for a block of rows
 * that meets a chunk. */
static void share_of_pattern(const attnc_spec *s, const attnc_shape *h,
                             const Tile *t, Work *w) {
    const int32_t *v = t->v;
    int64_t group = h->heads / h->kv_heads;
    int64_t queries = (v[T_cpu_bwd_block_q] + group - 1) / group;
    double met, part;
    spec_share(s, h, (int64_t)ceil(w->micro / (double)group),
               v[T_cpu_bwd_block_k], &met, &w->part);
    w->keys *= met;
    spec_share(s, h, queries, v[T_cpu_bwd_block_k], &w->met, &part);
    spec_share(s, h, queries, v[T_cpu_bwd_chunk_k], &met, &part);
    w->share *= met;
}

static Work count(const attnc_spec *s, const attnc_shape *h, const Device *d,
                  const Tile *t) {
    const int32_t *v = t->v;
    double group = (double)(h->heads / h->kv_heads);
    Work w = {.heads = (double)h->batch * (double)h->heads,
              .kv_heads = (double)h->batch * (double)h->kv_heads,
              .rows = group * (double)h->seqlen_q,
              .lanes = d->vector_bytes / 4,
              .elem = dtype_bytes(s->dtype)};
    w.micro = w.lanes * v[T_cpu_bwd_vecs];
    w.padded = ceil(w.rows / w.micro) * w.micro;
    w.blocks = ceil(w.rows / v[T_cpu_bwd_block_q]);
    w.chunks = ceil((double)h->seqlen_k / v[T_cpu_bwd_chunk_k]);
    double queries = (double)h->seqlen_q, keys = (double)h->seqlen_k;
    w.keys = model_key_span(s, h, (int64_t)ceil(w.micro / group)) / queries;
    double wide =
        model_key_span(s, h, (int64_t)ceil(v[T_cpu_bwd_block_q] / group));
    w.share = fmin(1, wide / queries / keys + 0.5 / w.chunks);
    if (!spec_has_mask(s))
        w.share = 1;
    share_of_pattern(s, h, t, &w);
    return w;
}

/* ---- bytes ------------------------------------------------------------- */

/* Q, K, V, O, dO, LSE in; dQ, dK, dV out; the partial sums both ways. */
static double dram_bytes(const attnc_spec *s, const attnc_shape *h,
                         const Tile *t, const Work *w) {
    double d = s->head_dim, dv = s->head_dim_v;
    double q = w->heads * (double)h->seqlen_q;
    double k = w->kv_heads * (double)h->seqlen_k;
    return q * (2 * d + 2 * dv) * w->elem + k * 2 * (d + dv) * w->elem +
           q * 4 * (2 + 2 * d * t->v[T_cpu_bwd_parts]);
}

/* For each chunk the rows of Q and dO, and dQ both ways; for each block of
 * rows K, V, and dK and dV both ways. */
static double sram_bytes(const attnc_spec *s, const attnc_shape *h,
                         const Tile *t, const Work *w) {
    double d = s->head_dim, dv = s->head_dim_v;
    double row = (d + dv) * w->elem + 8 * d;
    double key = (d + dv) * (w->elem + 8);
    double passes = t->v[T_cpu_bwd_parts] ? 1 : 2;
    return w->kv_heads * w->share * passes *
           (w->chunks * w->rows * row + w->blocks * (double)h->seqlen_k * key);
}

/* ---- cycles, per vector of scores -------------------------------------- */

/* A product into sums in registers, `steps` long: S, dP, or dQ. */
static double product(const Device *d, double rows, double vecs, double steps,
                      Feed f) {
    return (steps * cpu_step_cycles(d, rows, vecs, f) + GROUP_START) /
           (rows * vecs);
}

/* dK or dV: `vectors` of dims, whole register tiles and a narrower rest. */
static double sums(const Device *d, const Tile *t, double lanes,
                   double vectors) {
    double keys = t->v[T_cpu_bwd_kv_keys], vecs = t->v[T_cpu_bwd_kv_vecs];
    double rows = t->v[T_cpu_bwd_block_q], whole = floor(vectors / vecs);
    double rest = vectors - whole * vecs;
    Feed f = cpu_feed(d, false, rows * vecs * d->vector_bytes);
    double cycles = whole * cpu_step_cycles(d, keys, vecs, f) +
                    (rest > 0 ? cpu_step_cycles(d, keys, rest, f) : 0);
    double start = (whole + (rest > 0)) * 2 * GROUP_START / rows;
    return lanes * ((cycles + start) / keys + vectors * SUM_ROUND_TRIP / rows);
}

typedef struct Cycles {
    double scores, dq, dkdv;
} Cycles;

static Cycles cycles_of(const attnc_spec *s, const Device *d, const Tile *t,
                        const Work *w) {
    const int32_t *v = t->v;
    double dim = s->head_dim, dim_v = s->head_dim_v;
    double keys = v[T_cpu_bwd_keys], vecs = v[T_cpu_bwd_vecs];
    double block_k = fmin(v[T_cpu_bwd_block_k], fmax(w->keys, 8));
    Feed near = cpu_feed(d, false, dim * vecs * d->vector_bytes);
    Cycles c;
    c.scores = product(d, keys, vecs, dim, near) +
               product(d, keys, vecs, dim_v, near) + cpu_exp_cycles(d) +
               DIFFERENCE + BLOCK_START / (block_k * vecs) +
               (s->softcap ? 2 * cpu_exp_cycles(d) : 0) + (s->alibi ? 1 : 0) +
               (s->dropout ? DROPOUT : 0);
    c.dq =
        dim / block_k *
        (product(d, v[T_cpu_bwd_dims], vecs, block_k, near) + SUM_ROUND_TRIP);
    c.dkdv = sums(d, t, w->lanes, ceil(dim / w->lanes)) +
             sums(d, t, w->lanes, ceil(dim_v / w->lanes));
    return c;
}

/* All cores together. Two passes compute the scores twice. */
static double total_cycles(const attnc_spec *s, const attnc_shape *h,
                           const Device *d, const Tile *t, const Work *w) {
    double dims = s->head_dim + s->head_dim_v;
    double vectors = w->kv_heads * w->padded * w->keys / w->lanes;
    double passes = t->v[T_cpu_bwd_parts] ? 1 : 2;
    Cycles c = cycles_of(s, d, t, w);
    double products = vectors * (passes * c.scores + c.dq + c.dkdv);
    double meets = w->kv_heads * w->padded * w->chunks * w->share;
    double rows = meets * (dims + s->head_dim) / w->lanes;
    double parts =
        w->kv_heads * w->rows * s->head_dim / w->lanes * t->v[T_cpu_bwd_parts];
    double kv = w->kv_heads * w->blocks * w->share * w->chunks *
                t->v[T_cpu_bwd_chunk_k] * dims / w->lanes;
    double copies = s->dtype == ATTNC_F32 ? CROWDED : 1;
    double placed = t->v[T_cpu_bwd_copy_kv] ? copies * kv * COPY
                                            : CROWDED * CROWDED_LOSS * products;
    double nk = (double)h->seqlen_k;
    double tiles = passes * w->kv_heads * ceil(nk / t->v[T_cpu_bwd_block_k]);
    double asked = w->blocks + w->met * w->padded / w->micro;
    double cut = passes * w->kv_heads * w->padded * w->part * nk / w->lanes;
    return products + placed + passes * rows * TRANSPOSE + parts * PART +
           w->kv_heads * w->chunks * ITEM_START +
           cpu_pattern_cycles(s, tiles, asked, cut);
}

/* ---- time -------------------------------------------------------------- */

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Work items that have keys. */
static double items(const Tile *t, const Work *w) {
    int parts = t->v[T_cpu_bwd_parts];
    return w->kv_heads * (parts ? fmin(parts, w->chunks) : w->chunks);
}

/* Pairs of the keys `at` .. `end` - 1, a chunk. */
static double chunk_pairs(const attnc_spec *s, const attnc_shape *h,
                          const Loads *l, const Items *chunks, int64_t at,
                          int64_t end) {
    double pairs = 0;
    int64_t heads = l && l->heads > 1 ? h->kv_heads : 1;
    for (int64_t head = 0; l && head < heads; head++)
        pairs += items_load(chunks, l, head, at / chunks->block);
    return l ? pairs
             : model_visible_below(s, h, end) - model_visible_below(s, h, at);
}

/* The longest part over the mean one. Parts take chunks there and back. */
static double longest_part(const attnc_spec *s, const attnc_shape *h,
                           const Device *d, const Tile *t, const Work *w) {
    enum { EVEN = 32 }; /* chunks of each part, with which all are alike */
    int64_t chunk_k = t->v[T_cpu_bwd_chunk_k], keys = h->seqlen_k, i = 0;
    int64_t n = (int64_t)(items(t, w) / w->kv_heads);
    const Lengths lengths = {h->heads / h->kv_heads, h->seqlen_q, keys};
    const Loads *l = spec_loads(s, h->seqlen_q, keys);
    double all = 0, most = 0, pairs[MOST_PARTS] = {0};
    Items chunks;
    if (w->chunks > EVEN * n)
        return 1;
    items_of(d, ROLE_bwd_dkdv, t, &lengths, &chunks);
    for (int64_t lo = 0; lo < keys; lo += chunk_k, i++) {
        int64_t p = i / n % 2 ? n - 1 - i % n : i % n;
        double mine =
            chunk_pairs(s, h, l, &chunks, lo, least(lo + chunk_k, keys));
        all += mine;
        pairs[p] += mine;
        most = fmax(most, pairs[p]);
    }
    return most * n / fmax(all, 1);
}

/* Of a step of two whose items a pattern makes differ. */
static double step_balance(const attnc_shape *h, const Device *d, int role,
                           const Tile *t, const Loads *l) {
    const Lengths n = {h->heads / h->kv_heads, h->seqlen_q, h->seqlen_k};
    Items x;
    items_of(d, role, t, &n, &x);
    double blocks = (double)items_blocks(&x), heads = (double)h->kv_heads;
    double mean = items_total(&x, l, h->kv_heads) / heads / blocks;
    double longest = items_longest(&x, l, h->kv_heads) / fmax(mean, 1);
    double share = (double)h->batch * heads * blocks / d->cores;
    return fmax(fmax(longest, 1), share + 0.25) / share;
}

/* How much longer than an even share the last core works: equal items end in
 * whole waves, of others the longest come first. Of two passes the items are
 * chunks, then blocks of rows; under a mask no chunk is longer than the first.
 */
static double imbalance(const attnc_spec *s, const attnc_shape *h,
                        const Device *d, const Tile *t, const Work *w) {
    double n = items(t, w), share = n / d->cores, longest;
    const Loads *l = spec_loads(s, h->seqlen_q, h->seqlen_k);
    int64_t chunk = least(t->v[T_cpu_bwd_chunk_k], h->seqlen_k);
    if (l && !t->v[T_cpu_bwd_parts]) /* in proportion to their products */
        return (4 * step_balance(h, d, ROLE_bwd_dkdv, t, l) +
                3 * step_balance(h, d, ROLE_bwd_dq, t, l)) /
               7;
    longest = t->v[T_cpu_bwd_parts]
                  ? longest_part(s, h, d, t, w)
                  : model_visible_below(s, h, chunk) * n / w->kv_heads /
                        fmax(model_visible(s, h), 1);
    return fmax(ceil(share), longest) / share;
}

void model_bwd(const attnc_spec *s, const attnc_shape *h, const Device *d,
               const Tile *t, Figures *f) {
    Work w = count(s, h, d, t);
    double visible = model_visible(s, h), balance = imbalance(s, h, d, t, &w);
    CpuScratch c;
    cpu_scratch(s, d, t, &c);
    f->sram_footprint = (double)cpu_bwd_footprint(&c);
    f->flops = 2 * w.heads * visible * (3 * s->head_dim + 2 * s->head_dim_v);
    f->exp2s = w.heads * visible;
    f->dram_bytes = dram_bytes(s, h, t, &w);
    f->sram_bytes = sram_bytes(s, h, t, &w);
    f->items = items(t, &w);
    f->waves = ceil(f->items / d->cores);
    f->compute_ms = balance * total_cycles(s, h, d, t, &w) / d->cores /
                    cpu_cycles_per_ms(d);
    f->dram_ms = f->dram_bytes / d->dram_gbs * 1e-6;
    f->sram_ms = f->sram_bytes / d->llc_gbs * 1e-6;
    cpu_predict(f, balance, s->dtype == ATTNC_F32 ? 0.5 : 1);
}

/* Of d and dv long products, bwd_dkdv has 2 of each, bwd_dq 2 and 1. */
void model_bwd_share(const attnc_spec *s, int role, Figures *f) {
    double d = s->head_dim, dv = s->head_dim_v;
    double mine = role == ROLE_bwd_dq ? 2 * d + dv : 2 * d + 2 * dv;
    double share = mine / (4 * d + 3 * dv);
    double *of[] = {&f->compute_ms, &f->sram_ms,    &f->sram_bytes,
                    &f->dram_ms,    &f->dram_bytes, &f->time_ms};
    if (role == ROLE_bwd)
        return;
    for (int i = 0; i < 6; i++)
        *of[i] *= share;
    mine = role == ROLE_bwd_dq ? d : 2 * d + 2 * dv;
    f->flops *= mine / (3 * d + 2 * dv);
}

/* Of a vector of scores, what all reads of tensors take: P and dS for each; a
 * sum for each lane, or of lanes that stay with their elements. */
static double read_cycles(const attnc_spec *s, const Device *d, double lanes) {
    const ProgramGrad *g = spec_score_grad(s);
    double cycles = 0;
    for (int i = 0; i < g->nread; i++) {
        const ReadGrad *r = &g->read[i];
        bool row = r->broadcast & DEP_K && r->expr < 0;
        cycles += row ? SUM_ROUND_TRIP : ADD * lanes;
        cycles += i ? cpu_exp_cycles(d) + DIFFERENCE : 0; /* else in scores */
    }
    return cycles;
}

void model_bwd_tensor(const attnc_spec *s, const attnc_shape *h,
                      const Device *d, const Tile *t, double items,
                      Figures *f) {
    Work w = count(s, h, d, t);
    double dims = s->head_dim + s->head_dim_v, share = items / d->cores;
    double vectors = w.kv_heads * w.padded * w.keys / w.lanes;
    double balance = ceil(share) / share, keys = (double)h->seqlen_k;
    double cycles =
        vectors * (cycles_of(s, d, t, &w).scores + read_cycles(s, d, w.lanes)) +
        w.kv_heads * w.padded * 2 * dims / w.lanes * TRANSPOSE +
        items * ITEM_START;
    f->flops = 0; /* none that is not done before */
    f->exp2s = w.heads * model_visible(s, h);
    f->dram_bytes = (w.kv_heads * (w.rows + keys)) * dims * w.elem;
    f->sram_bytes = w.kv_heads * (w.rows + w.blocks * keys) * dims * w.elem;
    f->items = items;
    f->waves = ceil(share);
    f->compute_ms = balance * cycles / d->cores / cpu_cycles_per_ms(d);
    f->dram_ms = f->dram_bytes / d->dram_gbs * 1e-6;
    f->sram_ms = f->sram_bytes / d->llc_gbs * 1e-6;
    cpu_predict(f, balance, s->dtype == ATTNC_F32 ? 0.5 : 1);
}

/* dO and O once each, or the partial sums of dQ: what a step reads and writes
 * of `dims` numbers for each row. */
void model_rows(const attnc_spec *s, const attnc_shape *h, const Device *d,
                const Tile *t, Figures *f) {
    double rows = (double)h->batch * (double)h->heads * (double)h->seqlen_q;
    double dims = s->head_dim + s->head_dim_v;
    f->dram_bytes = rows * (dims * dtype_bytes(s->dtype) + 4);
    f->sram_bytes = f->dram_bytes;
    f->items = ceil(rows / t->v[T_cpu_rows_rows]);
    f->waves = ceil(f->items / d->cores);
    double cycles = rows * dims * 4 / d->vector_bytes + f->items * 200;
    f->compute_ms = f->waves * d->cores / f->items * cycles / d->cores /
                    cpu_cycles_per_ms(d);
    f->dram_ms = f->dram_bytes / d->dram_gbs * 1e-6;
    f->sram_ms = f->sram_bytes / d->llc_gbs * 1e-6;
    cpu_predict(f, 1, 0.5);
}
