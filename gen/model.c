/* SPDX-License-Identifier: Apache-2.0
 * The IO model: what a tile costs on a device. Every formula is derived in
 * docs/io-model.md, section by section as here. */
#include <math.h>
#include <string.h>

#include "order.h"

/* ---- the mask ---------------------------------------------------------- */

/* Mask numbers are launch arguments; planning assumes offset Nk - Nq, a
 * window of the last Nk/8 keys, a prefix of Nk/8 keys. */
enum { ASSUMED_SHARE = 8 };

/* Sum of clamp(i + a, 0, m) over 0 <= i < n; all below 2^32, so it fits. */
static double sum_clamp(int64_t n, int64_t a, int64_t m) {
    int64_t first = a < 0 ? -a : 0;       /* where i + a reaches 0 */
    int64_t last = m - a > 0 ? m - a : 0; /* where i + a reaches m */
    first = first < n ? first : n;
    last = last < first ? first : last < n ? last : n;
    int64_t count = last - first;
    return (double)(count * (first + a)) +
           (double)count * (double)(count - 1) / 2 +
           (double)(n - last) * (double)m;
}

/* width 1: the visible pairs. Keys at `end` and beyond do not count. */
static double span(const attnc_spec *s, const attnc_shape *h, int64_t width,
                   int64_t end) {
    int64_t nq = h->seqlen_q, nk = h->seqlen_k, off = nk - nq;
    int64_t part = nk / ASSUMED_SHARE, half = (width - 1) / 2;
    double upper = sum_clamp(nq, off + 1 + half, end);
    switch (s->mask) {
    case ATTNC_MASK_CAUSAL:
        return upper;
    case ATTNC_MASK_WINDOW:
        return upper - sum_clamp(nq, off - part - half, end);
    case ATTNC_MASK_PREFIX:
        part = part < end ? part : end;
        return (double)(part * nq) +
               sum_clamp(nq, off + 1 + half - part, end - part);
    default:
        return (double)nq * (double)end;
    }
}

double model_key_span(const attnc_spec *s, const attnc_shape *h,
                      int64_t width) {
    return span(s, h, width, h->seqlen_k);
}

/* Blocks of patterns are multiples of this: so fine, they are seen whole. */
enum { PATTERN_GRAIN = 16 };

double model_visible(const attnc_spec *s, const attnc_shape *h) {
    double seen, part;
    spec_share(s, h, PATTERN_GRAIN, PATTERN_GRAIN, &seen, &part);
    return seen * span(s, h, 1, h->seqlen_k);
}

double model_visible_below(const attnc_spec *s, const attnc_shape *h,
                           int64_t end) {
    return span(s, h, 1, end);
}

/* ---- scratch ----------------------------------------------------------- */

int64_t model_scratch_bytes(const attnc_spec *s, const Device *d,
                            const Tile *t) {
    CpuScratch c = {0};
    if (t->family == TILE_builtin)
        return builtin_scratch(s);
    if (t->family == TILE_cpu_fwd || t->family == TILE_cpu_bwd)
        cpu_scratch(s, d, t, &c);
    return c.total;
}

/* ---- one step's work, counted ------------------------------------------ */

/* Per launch unless said; the names are those of docs/io-model.md. */
typedef struct Work {
    double heads, kv_heads; /* batch * heads, batch * kv heads */
    double rows;            /* query rows of one kv head */
    double blocks, splits;  /* of rows; of keys */
    double padded;          /* rows of one kv head, padded to micro */
    double keys;            /* computed with each row, mean */
    double block_keys;      /* read for each block of rows, mean */
    double pass_keys;       /* of one pass over a key block, mean */
    double micro, lanes;
    double met, part, block_met; /* shares of a pattern: of the tiles of micro
                                    rows at all, in part; of block_q rows */
    double elem;                 /* bytes of one element of Q, K, V, O */
    double splits_met;           /* of a row that a pattern leaves a key */
    double longest; /* keys of the item that has most; 0: items are alike */
} Work;

static double ceil_div(double a, double b) {
    return ceil(a / b);
}

/* Keys computed for `seen` ones: each block in whole groups of `keys`; where a
 * mask ends the range, half a group more. */
static double computed(const attnc_spec *s, const Tile *t, double seen) {
    double block_k = t->v[T_cpu_fwd_block_k], keys = t->v[T_cpu_fwd_keys];
    double blocks = floor(seen / block_k);
    double rest = seen - blocks * block_k;
    double whole = ceil_div(block_k, keys) * keys;
    if (!spec_has_mask(s))
        return blocks * whole + ceil_div(rest, keys) * keys;
    return seen * whole / block_k + keys / 2;
}

double model_splits_met(const attnc_spec *s, const attnc_shape *h,
                        int split_k) {
    enum { TOGETHER = 64 };
    double splits = model_parts(h, split_k), met, part;
    spec_share(s, h, TOGETHER, split_k, &met, &part);
    return fmax(1, splits * met);
}

static double longest(const attnc_spec *s, const attnc_shape *h,
                      const Device *d, const Tile *t) {
    const Loads *l = spec_loads(s, h->seqlen_q, h->seqlen_k);
    const Lengths n = {h->heads / h->kv_heads, h->seqlen_q, h->seqlen_k};
    Items items;
    if (!l || !items_of(d, ROLE_fwd, t, &n, &items))
        return 0;
    return items_longest(&items, l, h->kv_heads) / (double)items.block;
}

static Work count(const attnc_spec *s, const attnc_shape *h, const Device *d,
                  const Tile *t) {
    const int32_t *v = t->v;
    Work w = {0};
    int64_t group = h->heads / h->kv_heads;
    double block_q = v[T_cpu_fwd_block_q], split_k = v[T_cpu_fwd_split_k];
    w.heads = (double)h->batch * (double)h->heads;
    w.kv_heads = (double)h->batch * (double)h->kv_heads;
    w.rows = (double)(group * h->seqlen_q);
    w.lanes = d->vector_bytes / 4;
    w.micro = v[T_cpu_fwd_vecs] ? w.lanes * v[T_cpu_fwd_vecs] : 1;
    w.blocks = ceil_div(w.rows, block_q);
    w.splits = split_k ? ceil_div((double)h->seqlen_k, split_k) : 1;
    w.padded = ceil_div(w.rows, w.micro) * w.micro;
    /* A register tile of rows reaches from its first query's first key to
     * its last one's last key. */
    int64_t queries = (int64_t)ceil_div(w.micro, (double)group);
    double seen = model_key_span(s, h, queries) / (double)h->seqlen_q;
    seen /= w.splits;
    w.pass_keys = seen / ceil_div(seen, v[T_cpu_fwd_block_k]);
    spec_share(s, h, queries, v[T_cpu_fwd_block_k], &w.met, &w.part);
    w.keys = w.splits * computed(s, t, seen) * w.met;
    queries = (int64_t)ceil_div(block_q, (double)group);
    double block_part;
    spec_share(s, h, queries, v[T_cpu_fwd_block_k], &w.block_met, &block_part);
    w.block_keys =
        w.block_met * model_key_span(s, h, queries) / (double)h->seqlen_q;
    w.elem = dtype_bytes(s->dtype);
    w.splits_met = split_k ? model_splits_met(s, h, (int)split_k) : 1;
    w.longest = longest(s, h, d, t);
    return w;
}

/* ---- bytes ------------------------------------------------------------- */

static double lse_bytes(const attnc_shape *h, const Work *w) {
    return w->heads * (double)h->seqlen_q * 4;
}

/* Each of Q, K, V, O and LSE once, whatever the tile. */
static double dram_bytes(const attnc_spec *s, const attnc_shape *h,
                         const Work *w) {
    double dims = s->head_dim + s->head_dim_v;
    return w->heads * (double)h->seqlen_q * dims * w->elem +
           w->kv_heads * (double)h->seqlen_k * dims * w->elem + lse_bytes(h, w);
}

/* K and V once per block of rows, Q and O once (per split with a key). */
static double sram_bytes(const attnc_spec *s, const attnc_shape *h,
                         const Work *w) {
    double dims = s->head_dim + s->head_dim_v;
    double kv = w->kv_heads * w->blocks * w->block_keys * dims * w->elem;
    double q = w->kv_heads * w->rows * s->head_dim * w->elem;
    double o = w->kv_heads * w->rows * s->head_dim_v;
    if (w->splits == 1)
        return kv + q + o * w->elem + lse_bytes(h, w);
    return kv + w->splits_met * (q + o * 4) + w->splits * lse_bytes(h, w);
}

/* ---- cycles ------------------------------------------------------------ */

/* Costs of the emitted code in cycles, fitted where marked (measured on Zen 3
 * and Zen 5; docs/io-model.md says how). */
static const double FMA_LATENCY = 4, DOT_LATENCY = 6;
static const double BROADCAST = 1.5;    /* fitted: loads that one is worth */
static const double LOAD_SHARE = 0.1;   /* fitted: of loads not hidden */
static const double L1_SHARE = 0.95;    /* of L1: more is read from SRAM */
static const double LINE = 64;          /* of a row of V, read 4 dims a time */
static const double FAR_LOAD = 2;       /* loads that a vector from there is */
static const double GROUP_START = 6;    /* fill and drain of a register tile */
static const double SUM_ROUND_TRIP = 2; /* load, scale, store a sum vector */
static const double EXP_INSTRUCTIONS = 16, EXP_AVX512 = 9;
static const double BLOCK_START = 60; /* a sub-block meets a key block */
/* Drawing and dropping, a vector of weights: 7.3 cycles on Zen 3. */
static const double DROPOUT = 7;
static const double ADD_ACROSS = 3;  /* fitted: two shuffles, an addition */
static const double FEW_START = 300; /* vecs=0: a row meets a key block */
static const double ITEM_START = 500, IDLE_ITEM = 300;
/* A pattern: what it says of a tile; and of a vector of scores in a tile that
 * it cuts. */
static const double VERDICT = 150, KEEP = 12;
static const double TRANSPOSE = 4; /* a vector of Q in or O out */
static const double COPY = 2;      /* a vector of K or V */
static const double JITTER = 0.05;
/* f32 rows whose stride is a multiple of 4 KiB meet in few L1 sets: a fifth of
 * the speed is lost unless they are copied, which the kernel then does. Of
 * how many launches that is so cannot be known when planning: CROWDED. */
static const double CROWDED = 0.2, CROWDED_LOSS = 0.2;

Feed cpu_feed(const Device *d, bool pairs, double bytes) {
    return (Feed){pairs ? DOT_LATENCY : FMA_LATENCY,
                  bytes > L1_SHARE * d->l1_bytes ? FAR_LOAD : 1};
}

/* Cycles of one step of a register tile of rows x vecs sums: vecs loads, rows
 * broadcasts (NEON multiplies by a lane and needs but the load), rows x vecs
 * FMAs, none sooner than its predecessor's result. */
double cpu_step_cycles(const Device *d, double rows, double vecs, Feed f) {
    double broadcast = strcmp(d->arch, "neon") ? BROADCAST : 1;
    double fma = rows * vecs / d->fma_per_cycle;
    double load = (vecs * f.load + rows * broadcast) / d->loads_per_cycle;
    return fmax(fmax(fma, load), f.latency) + LOAD_SHARE * fmin(fma, load);
}

/* exp2 of one vector of scores, with its load, subtraction, sum and store. */
double cpu_exp_cycles(const Device *d) {
    double n = strncmp(d->arch, "avx512", 6) ? EXP_INSTRUCTIONS : EXP_AVX512;
    return n / (2 * d->fma_per_cycle) + 1;
}

/* Per vector of scores: Q K^T, the softmax and P V, with block_k keys in a
 * pass. */
static double score_cycles(const attnc_spec *s, const Device *d, const Tile *t,
                           double block_k) {
    const int32_t *v = t->v;
    double vecs = v[T_cpu_fwd_vecs], keys = v[T_cpu_fwd_keys];
    double dims = v[T_cpu_fwd_dims];
    double dim = s->head_dim, dim_v = s->head_dim_v;
    bool pairs = s->dtype == ATTNC_BF16 && !strcmp(d->arch, "avx512bf16");
    double steps_qk = pairs ? ceil(dim / 2) : dim;
    double steps_pv = pairs ? block_k / 2 : block_k;
    Feed q = cpu_feed(d, pairs, steps_qk * vecs * d->vector_bytes);
    Feed p = cpu_feed(d, pairs, block_k * (vecs * d->vector_bytes + LINE));
    double qk = steps_qk * cpu_step_cycles(d, keys, vecs, q) + GROUP_START;
    double full = floor(dim_v / dims), rest = dim_v - full * dims;
    double pv = steps_pv * (full * cpu_step_cycles(d, dims, vecs, p) +
                            (rest ? cpu_step_cycles(d, rest, vecs, p) : 0)) +
                (full + (rest > 0)) * GROUP_START +
                dim_v * vecs * SUM_ROUND_TRIP;
    double score = cpu_exp_cycles(d) +
                   (s->softcap ? 2 * cpu_exp_cycles(d) : 0) +
                   (s->alibi ? 1 : 0) + (s->dropout ? DROPOUT : 0);
    return qk / (keys * vecs) + pv / (block_k * vecs) + score +
           BLOCK_START / (block_k * vecs);
}

/* As above for vecs=0: a vector of dims is loaded for each product, sums are
 * added up across their lanes, `lanes` at once. */
static double few_cycles(const attnc_spec *s, const Device *d, const Tile *t,
                         double block_k) {
    const int32_t *v = t->v;
    double keys = v[T_cpu_fwd_keys], dims = v[T_cpu_fwd_dims];
    double lanes = d->vector_bytes / 4;
    double group = fmin(dims, ceil_div(s->head_dim_v, lanes));
    /* Each row sweeps K, then V: beyond L1 they come from SRAM every time. */
    double tile = block_k * fmax(s->head_dim, s->head_dim_v) * 4;
    Feed f = cpu_feed(d, false, tile);
    double products =
        fmax(keys / d->fma_per_cycle, (keys * f.load + 1) / d->loads_per_cycle);
    double across = (lanes - 1) * ADD_ACROSS;
    double qk = ceil_div(s->head_dim, lanes) * products * lanes / keys +
                GROUP_START * lanes / keys + across;
    double step = fmax(fmax(group / d->fma_per_cycle,
                            (group * f.load + 1) / d->loads_per_cycle),
                       FMA_LATENCY);
    double pv = lanes * step * ceil_div(s->head_dim_v, lanes * group);
    double score = 1 + cpu_exp_cycles(d) * (s->softcap ? 3 : 1) + s->alibi;
    return qk + pv + score + FEW_START * lanes / block_k;
}

double cpu_pattern_cycles(const attnc_spec *s, double tiles, double asked,
                          double cut) {
    return s->sparsity ? tiles * asked * VERDICT + cut * KEEP : 0;
}

/* All cores together. */
static double total_cycles(const attnc_spec *s, const attnc_shape *h,
                           const Device *d, const Tile *t, const Work *w) {
    double dims = s->head_dim + s->head_dim_v;
    double vectors = w->kv_heads * w->padded * w->keys / w->lanes;
    double products =
        vectors * (t->v[T_cpu_fwd_vecs] ? score_cycles
                                        : few_cycles)(s, d, t, w->pass_keys);
    double kv = w->kv_heads * w->blocks * w->block_keys * dims / w->lanes;
    double rows = w->kv_heads * w->padded * w->splits_met * dims / w->lanes;
    double items = w->kv_heads * w->blocks * w->splits_met;
    double idle = w->kv_heads * w->blocks * w->splits - items;
    double copies = s->dtype == ATTNC_F32 ? CROWDED : 1;
    double placed = t->v[T_cpu_fwd_copy_kv] ? copies * kv * COPY
                                            : CROWDED * CROWDED_LOSS * products;
    double nk = (double)h->seqlen_k;
    double tiles = w->kv_heads * ceil_div(nk, t->v[T_cpu_fwd_block_k]);
    double asked = w->blocks + w->block_met * w->padded / w->micro;
    double cut = w->kv_heads * w->padded * w->part * nk / w->lanes;
    return products + placed + rows * TRANSPOSE + items * ITEM_START +
           idle * IDLE_ITEM + cpu_pattern_cycles(s, tiles, asked, cut);
}

/* ---- time -------------------------------------------------------------- */

/* Cycles of one core in a millisecond, from the FMA peak: what a chip
 * sustains, whatever clock it claims. */
double cpu_cycles_per_ms(const Device *d) {
    double flops = 2 * d->fma_per_cycle * d->vector_bytes / 4;
    return d->f32_tflops * 1e9 / (flops * d->cores);
}

/* How much longer than an even share the last core works. Equal items end in
 * whole waves, less even than that by JITTER of an item; unequal ones start
 * longest first, so what remains is a small item, but never less than the
 * longest, of which a split leaves split_k keys. */
static double imbalance(const attnc_spec *s, const attnc_shape *h,
                        const Device *d, const Work *w) {
    double items = w->kv_heads * w->blocks * w->splits;
    if (w->longest > 0) {
        double keys = w->kv_heads * w->blocks * w->keys / d->cores;
        double mean = w->keys / w->splits_met;
        double most = fmax(w->longest / w->splits, mean);
        return fmax(most, keys + 0.25 * mean) / keys;
    }
    double share = items / d->cores;
    if (!spec_has_mask(s) || s->mask == ATTNC_MASK_WINDOW)
        return (ceil(share) + JITTER) / share;
    double longest = (double)h->seqlen_k / w->block_keys;
    return fmax(longest, share + 0.25) / share;
}

/* Where K and V come from again: the last cache when those of the heads at
 * work fit there, else DRAM. */
static double reread_gbs(const attnc_spec *s, const attnc_shape *h,
                         const Device *d, const Work *w) {
    double active = ceil_div(d->cores, w->blocks * w->splits);
    double head = (double)h->seqlen_k * (s->head_dim + s->head_dim_v) * w->elem;
    return fmin(active, w->kv_heads) * head <= d->llc_bytes ? d->llc_gbs
                                                            : d->dram_gbs;
}

/* Copies wait for what they read; in place, prefetch hides half of it. */
void cpu_predict(Figures *f, double balance, double exposed) {
    double busy = f->compute_ms + exposed * f->sram_ms;
    f->time_ms = fmax(fmax(busy, f->dram_ms), f->sram_ms);
    if (f->time_ms > busy)
        f->bound = f->dram_ms >= f->sram_ms ? "dram" : "sram";
    else
        f->bound = balance > 1.25 ? "waves" : "compute";
}

static void cpu_fwd(const attnc_spec *s, const attnc_shape *h, const Device *d,
                    const Tile *t, Figures *f) {
    Work w = count(s, h, d, t);
    double visible = model_visible(s, h);
    double balance = imbalance(s, h, d, &w);
    f->flops = 2 * w.heads * visible * (s->head_dim + s->head_dim_v);
    f->exp2s = w.heads * visible;
    f->dram_bytes = dram_bytes(s, h, &w);
    f->sram_bytes = sram_bytes(s, h, &w);
    f->items = w.kv_heads * w.blocks * w.splits;
    f->waves = ceil(f->items / d->cores);
    f->compute_ms = balance * total_cycles(s, h, d, t, &w) / d->cores /
                    cpu_cycles_per_ms(d);
    f->dram_ms = f->dram_bytes / d->dram_gbs * 1e-6;
    f->sram_ms = f->sram_bytes / reread_gbs(s, h, d, &w) * 1e-6;
    cpu_predict(f, balance, s->dtype == ATTNC_F32 ? 0.5 : 1);
}

/* ---- the other families ------------------------------------------------ */

/* How many parts a row has; those of a merge, which no hint tells, as two. */
double model_parts(const attnc_shape *h, int split_k) {
    return split_k ? ceil_div((double)h->seqlen_k, split_k) : 2;
}

/* Every split's O and LSE in, O and LSE out. */
static void cpu_combine(const attnc_spec *s, const attnc_shape *h,
                        const Device *d, const Tile *t, Figures *f) {
    double rows = (double)h->batch * (double)h->heads * (double)h->seqlen_q;
    int split_k = t->v[T_cpu_combine_split_k];
    double splits = model_parts(h, split_k);
    double met = split_k ? model_splits_met(s, h, split_k) : splits;
    double row_blocks = ceil_div((double)(h->heads / h->kv_heads * h->seqlen_q),
                                 t->v[T_cpu_combine_rows]);
    f->dram_bytes = rows * (s->head_dim_v * dtype_bytes(s->dtype) + 4);
    f->sram_bytes = f->dram_bytes + rows * (met * s->head_dim_v + splits) * 4;
    f->exp2s = rows * splits;
    f->items = (double)h->batch * (double)h->kv_heads * row_blocks;
    f->waves = ceil(f->items / d->cores);
    double cycles = rows * met * s->head_dim_v + f->items * ITEM_START;
    double balance = f->waves * d->cores / f->items;
    f->compute_ms = balance * cycles / d->cores / cpu_cycles_per_ms(d);
    f->sram_ms = f->sram_bytes / d->llc_gbs * 1e-6;
    f->dram_ms = f->dram_bytes / d->dram_gbs * 1e-6;
    cpu_predict(f, balance, 0.5);
}

/* The precompiled kernel: its structure is that of cpu_fwd with its constant
 * tile; what run-time dims cost beyond that was measured as a factor. */
static void builtin(const attnc_spec *s, const attnc_shape *h, const Device *d,
                    Figures *f) {
    static const double SLOWDOWN = 2.5;
    Tile like = {.family = TILE_cpu_fwd};
    like.v[T_cpu_fwd_block_q] = BUILTIN_ROWS;
    like.v[T_cpu_fwd_block_k] = BUILTIN_KEYS;
    like.v[T_cpu_fwd_vecs] = 1;
    like.v[T_cpu_fwd_keys] = like.v[T_cpu_fwd_dims] = 8;
    like.v[T_cpu_fwd_copy_kv] = 1;
    cpu_fwd(s, h, d, &like, f);
    f->compute_ms *= SLOWDOWN;
    cpu_predict(f, 1, 1);
}

void model_figures(const attnc_spec *s, const attnc_shape *h, const Device *d,
                   const Tile *t, Figures *out) {
    Figures f = {.bound = "compute"};
    if (tile_is_cuda(t->family)) {
        model_cuda(s, h, d, t, out);
        return;
    }
    f.sram_footprint = (double)model_scratch_bytes(s, d, t);
    if (t->family == TILE_cpu_combine || s->pass == ATTNC_PASS_MERGE)
        cpu_combine(s, h, d, t, &f); /* the built-in's rows stand first, too */
    else if (t->family == TILE_builtin)
        builtin(s, h, d, &f);
    else if (t->family == TILE_cpu_bwd)
        model_bwd(s, h, d, t, &f);
    else if (t->family == TILE_cpu_rows)
        model_rows(s, h, d, t, &f);
    else
        cpu_fwd(s, h, d, t, &f);
    *out = f;
}
