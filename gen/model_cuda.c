/* SPDX-License-Identifier: Apache-2.0
 * The IO model for GPUs: what a tile costs on an SM, cycle by cycle of one
 * step of the loop, then waves of blocks. docs/io-model.md derives it. */
#include <math.h>

#include "order.h"

/* ---- constants ---------------------------------------------------------- */

/* So that published speeds of mma.sync kernels come out, until fitted on chips:
 * docs/io-model.md, "Where the constants come from". */
static const double ISSUE_RATE = 4;     /* warp instructions per cycle, SM */
static const double MATRIX_SHARE = 0.9; /* of the peak, in long runs of mma */
static const double SMEM_SHARE = 0.85;  /* of its width, reads and copies */
static const double CONTENTION = 0.15;  /* of smem time not hidden by mma */
static const double SOFTMAX_SLOTS = 5;  /* max, ffma, ex2, add, pack, moves */
static const double MASK_SLOTS = 2;     /* compare and select */
static const double SOFTCAP_SLOTS = 6, ALIBI_SLOTS = 2;
static const double DROPOUT_SLOTS = 7;  /* an eighth of a call, then select */
static const double STEP_SLOTS = 40;    /* of a warp: loop, waits, addresses */
static const double BARRIER = 200;      /* cycles: also filling the pipes */
static const double LATENCY = 800;      /* cycles until a load has landed */
static const double BLOCK_START = 2500; /* first loads, last stores */
static const double LDS_BYTES = 256;  /* of bandwidth a broadcast load takes */
static const double IDLE_BLOCK = 600; /* one that sees no key */
static const double LAUNCH_MS = 0.002;
static const double PEELED = 0.25; /* of mask work that remains */

/* ---- one step of the loop ----------------------------------------------- */

enum { WARP = 32 };

/* A tile's numbers under short names, and its place in shared memory. */
typedef struct Block {
    bool mma;
    double rows, keys, warps, stages, blocks, split, heads;
    bool q_regs, peel;
    double elem;
    CudaSmem smem;
} Block;

/* Cycles of an SM for one block's step, each resource alone. */
typedef struct Step1 {
    double product, exp2, issue, smem;
    double softmax; /* issue slots between the two products */
} Step1;

static Block block_of(const attnc_spec *s, const Device *d, const Tile *t) {
    const int32_t *v = t->v;
    Block b = {.mma = t->family == TILE_mma_fwd, .elem = dtype_bytes(s->dtype)};
    b.rows = v[0];
    b.keys = v[1];
    b.warps = v[2];
    b.stages = v[4];
    if (b.mma) {
        b.q_regs = v[T_mma_fwd_q_regs];
        b.peel = v[T_mma_fwd_peel];
        b.blocks = v[T_mma_fwd_blocks];
        b.split = v[T_mma_fwd_split_k];
        b.heads = v[T_mma_fwd_heads];
    } else {
        b.peel = v[T_fma_fwd_peel];
        b.blocks = v[T_fma_fwd_blocks];
        b.split = v[T_fma_fwd_split_k];
        b.heads = v[T_fma_fwd_heads];
    }
    if (b.heads > 0) { /* as many small blocks */
        b.warps = 1;
        b.blocks *= b.heads;
    }
    cuda_smem(s, d, t, &b.smem);
    return b;
}
_Static_assert(T_mma_fwd_block_q == 0 && T_fma_fwd_block_q == 0 &&
                   T_mma_fwd_block_k == 1 && T_fma_fwd_block_k == 1 &&
                   T_mma_fwd_warps == 2 && T_fma_fwd_warps == 2 &&
                   T_mma_fwd_stages == 4 && T_fma_fwd_stages == 4,
               "both families begin with the same fields");

/* Flops of the two products per cycle and SM. */
static double product_rate(const attnc_spec *s, const Device *d, bool mma) {
    double peak = !mma                     ? d->f32_tflops
                  : s->dtype == ATTNC_F16  ? d->f16_tflops * d->mma_share
                  : s->dtype == ATTNC_BF16 ? d->bf16_tflops * d->mma_share
                                           : d->tf32_tflops * d->mma_share;
    return peak * 1e3 / (d->cores * d->clock_ghz);
}

/* Instructions a score takes, in all threads together. */
static double score_slots(const attnc_spec *s, const Block *b) {
    double mask = !spec_has_mask(s) ? 0 : MASK_SLOTS;
    return SOFTMAX_SLOTS + mask * (b->peel ? PEELED : 1) +
           (s->softcap ? SOFTCAP_SLOTS : 0) + (s->alibi ? ALIBI_SLOTS : 0) +
           (s->dropout ? DROPOUT_SLOTS : 0);
}

/* Copying the next tiles: an address and a cp.async for 16 bytes, or a load,
 * a store and their guards. */
static double copy_slots(const Device *d, const Block *b) {
    double chunks = (double)(b->smem.k_bytes + b->smem.v_bytes) / 16;
    return chunks / WARP * (d->cp_async ? 2 : 4);
}

/* mma.sync: fragments of K and V are read by every warp, those of Q in each
 * step unless they stay in registers. */
static void mma_step(const attnc_spec *s, const Device *d, const Block *b,
                     Step1 *c) {
    double dim = (double)b->smem.dim, dim_v = (double)b->smem.dim_v;
    double k = b->elem == 4 ? 8 : d->mma_k;
    double products = b->rows / 16 * (b->keys / 8 * dim + dim_v / 8 * b->keys);
    double q = b->q_regs ? 0 : b->rows * dim * b->elem;
    double kv = b->warps * b->keys * (dim + dim_v) * b->elem;
    double tiles = (double)(b->smem.k_bytes + b->smem.v_bytes);
    /* ldmatrix.x4 moves 512 bytes; tf32 V comes 128 bytes at a time. */
    double loads = (q + kv) / 512;
    if (b->elem == 4)
        loads += b->warps * b->keys * dim_v * b->elem / 128;
    c->product = 2 * b->rows * b->keys * (dim + dim_v) /
                 product_rate(s, d, true) / MATRIX_SHARE;
    c->smem = (q + kv + tiles) / d->sram_width / SMEM_SHARE;
    c->issue = products / k + loads;
}

/* FMAs: a thread has a quarter of its warp's rows, an eighth of the keys and
 * of the dims; four of the shared dimension at a time. */
static void fma_step(const attnc_spec *s, const Device *d, const Block *b,
                     Step1 *c) {
    double dim = (double)b->smem.dim, dim_v = (double)b->smem.dim_v;
    double rows = b->rows / b->warps / 4, keys = b->keys / 8;
    double dims = ceil(dim_v / 32) * 4;
    double qk = dim / 4 * (rows + keys);
    double pv = b->keys / 4 * (rows + dims);
    double loads = b->warps * (qk + pv);
    double fmas = b->warps * (dim * rows * keys + b->keys * rows * dims);
    c->product = 2 * fmas * WARP / product_rate(s, d, false);
    c->smem =
        (loads * LDS_BYTES + (double)(b->smem.k_bytes + b->smem.v_bytes)) /
        d->sram_width / SMEM_SHARE;
    c->issue = fmas + loads + b->warps * rows * keys * 4;
}

static Step1 step_of(const attnc_spec *s, const Device *d, const Block *b) {
    Step1 c = {0};
    double scores = b->rows * b->keys;
    double rescale = b->rows * (double)b->smem.dim_v / WARP;
    double exps = 1 + (s->softcap ? 2 : 0);
    if (b->mma)
        mma_step(s, d, b, &c);
    else
        fma_step(s, d, b, &c);
    c.softmax = scores / WARP * score_slots(s, b) + rescale;
    c.issue += c.softmax + copy_slots(d, b) + b->warps * STEP_SLOTS;
    c.softmax /= ISSUE_RATE;
    c.issue /= ISSUE_RATE;
    c.exp2 = scores * exps * d->cores * d->clock_ghz / d->exp2_gops;
    return c;
}

static double max4(double a, double b, double c, double d) {
    return fmax(fmax(a, b), fmax(c, d));
}

/* Cycles of an SM for one step of each of `resident` blocks, per block. The
 * resources overlap between warps: one warp per scheduler does its products
 * and its softmax in turn, more of them fill each other's gaps. Loads in
 * flight are what `stages` leaves room for. */
static double step_cycles(const Block *b, const Step1 *c, double resident) {
    double warps = fmax(resident * b->warps / ISSUE_RATE, 0.25);
    double busy = max4(c->product + CONTENTION * fmin(c->product, c->smem),
                       c->exp2, c->issue, c->smem);
    double chain =
        fmax(c->product, c->smem) + fmax(c->exp2, c->softmax) + BARRIER;
    double wait = 2 * LATENCY / (b->stages - 1) / resident;
    double gap = fmax(0, chain - busy) / fmax(warps, 1);
    /* Fewer warps than schedulers leave some of them idle. */
    return fmax((busy + gap) / fmin(warps, 1), wait);
}

/* ---- a launch ----------------------------------------------------------- */

/* Per launch unless said; the names are those of docs/io-model.md. */
typedef struct Work {
    double heads, kv_heads; /* batch * heads, batch * kv heads */
    double rows;            /* query rows of one kv head */
    double blocks, splits;  /* of rows; of keys */
    double items, busy;     /* blocks of the grid; those that see a key */
    double block_keys;      /* read for each block of rows, mean */
    double longest;         /* keys of the block that reads most */
    double splits_met;      /* of a row that a pattern leaves a key */
    double steps;           /* of a busy block, mean */
    double resident;        /* blocks on an SM */
} Work;

/* Whole tiles where there are few; else half a tile more than the keys, so
 * that growing lengths do not change the choice at each tile. */
static double steps_of(const attnc_spec *s, double keys, double block_k) {
    if (!spec_has_mask(s) && keys <= 8 * block_k)
        return ceil(keys / block_k);
    return keys / block_k + 0.5;
}

static Work count(const attnc_spec *s, const attnc_shape *h, const Device *d,
                  const Block *b) {
    Work w = {0};
    int64_t group = h->heads / h->kv_heads;
    int64_t queries = (int64_t)ceil(b->rows / (double)group);
    w.heads = (double)h->batch * (double)h->heads;
    w.kv_heads = (double)h->batch * (double)h->kv_heads;
    w.rows = (double)(group * h->seqlen_q);
    w.blocks = ceil(w.rows / b->rows);
    w.splits = b->split > 0 ? ceil((double)h->seqlen_k / b->split) : 1;
    double share = fmax(b->heads, 1);
    w.items = (double)h->batch * ceil((double)h->kv_heads / share) * share *
              w.blocks * w.splits;
    double met, part; /* shares of a pattern */
    const Loads *l = spec_loads(s, h->seqlen_q, h->seqlen_k);
    spec_share(s, h, queries, b->keys, &met, &part);
    w.block_keys = met * model_key_span(s, h, queries) / (double)h->seqlen_q;
    w.longest = l                  ? loads_most(l, false) * (double)h->seqlen_k
                : spec_has_mask(s) ? (double)h->seqlen_k
                                   : 0;
    w.longest = fmax(w.longest, w.block_keys);
    w.splits_met = b->split > 0 ? model_splits_met(s, h, (int)b->split) : 1;
    w.busy = w.items * w.splits_met / w.splits;
    w.steps = steps_of(s, w.block_keys / w.splits_met, b->keys);
    w.resident = fmin(b->blocks, fmax(1, ceil(w.busy / d->cores)));
    return w;
}

/* Cycles the busiest SM works. Equal blocks come in waves, the last of fewer
 * of them; unequal ones start longest first, so what remains is a small one,
 * but never less than the longest. */
static double sm_cycles(const attnc_spec *s, const Device *d, const Block *b,
                        const Work *w, const Step1 *c) {
    double full =
        w->steps * step_cycles(b, c, w->resident) + BLOCK_START / w->resident;
    double share = w->busy / d->cores;
    double idle = (w->items - w->busy) / d->cores / w->resident * IDLE_BLOCK;
    if (s->sparsity || (spec_has_mask(s) && s->mask != ATTNC_MASK_WINDOW)) {
        double steps = s->sparsity
                           ? steps_of(s, w->longest / w->splits, b->keys)
                           : w->longest / w->block_keys * w->steps;
        double alone = steps * step_cycles(b, c, 1) + BLOCK_START;
        return fmax((share + 0.5) * full + idle,
                    w->resident > 1 || s->sparsity ? alone : 0);
    }
    double most = ceil(share), rest = fmod(most, w->resident);
    double cycles = (most - rest) * full;
    if (rest > 0)
        cycles += rest * w->steps * step_cycles(b, c, rest) + BLOCK_START;
    return cycles;
}

/* ---- bytes -------------------------------------------------------------- */

/* Each of Q, K, V, O and LSE once, whatever the tile. */
static double dram_bytes(const attnc_spec *s, const attnc_shape *h,
                         const Work *w, double elem) {
    double dims = s->head_dim + s->head_dim_v;
    double rows = w->kv_heads * w->rows;
    return rows * (dims * elem + 4) +
           w->kv_heads * (double)h->seqlen_k * dims * elem;
}

/* K and V once per block of rows, Q and O once (per split). */
static double l2_bytes(const attnc_spec *s, const Work *w, double elem) {
    double dims = s->head_dim + s->head_dim_v;
    double rows = w->kv_heads * w->rows;
    double kv = w->kv_heads * w->blocks * w->block_keys * dims * elem;
    double out = w->splits > 1 ? 4 : elem;
    return kv + w->splits * rows * 4 +
           w->splits_met * rows * (s->head_dim * elem + s->head_dim_v * out);
}

/* Where K and V come from again: L2 when those of the heads at work fit. */
static double reread_gbs(const attnc_spec *s, const attnc_shape *h,
                         const Device *d, const Work *w, double elem) {
    double active = ceil(d->cores * w->resident / (w->blocks * w->splits));
    double head = (double)h->seqlen_k * (s->head_dim + s->head_dim_v) * elem;
    return fmin(active, w->kv_heads) * head <= d->llc_bytes ? d->llc_gbs
                                                            : d->dram_gbs;
}

/* ---- figures ------------------------------------------------------------ */

/* The resource that takes longest, by name. */
static const char *bound_of(const Figures *f, const Block *b, double alone) {
    const struct {
        const char *name;
        double ms;
    } all[] = {{b->mma ? "tensor" : "fma", f->product_ms},
               {"exp2", f->exp2_ms},
               {"issue", f->issue_ms},
               {"smem", f->smem_ms}};
    int best = 0;
    if (f->time_ms <= f->dram_ms)
        return "dram";
    if (f->time_ms <= f->sram_ms)
        return "sram";
    for (int i = 1; i < 4; i++)
        best = all[i].ms > all[best].ms ? i : best;
    if (f->compute_ms > 1.4 * alone)
        return "waves";
    return f->compute_ms > 2 * all[best].ms ? "latency" : all[best].name;
}

/* Kernels compiled near their bound of registers lose some overlap. Beyond it
 * they may spill, the sooner the more registers are wanted. */
static double pressure(const attnc_spec *s, const Device *d, const Tile *t,
                       Figures *f) {
    f->registers = tile_cuda_registers(s, d, t);
    double share = f->registers / tile_cuda_register_limit(d, t);
    f->doubt = share > 1 ? 1.1 + 3 * (share - 1) : 1;
    return 1 + 0.5 * fmax(0, fmin(share, 1) - 0.85);
}

static void fwd(const attnc_spec *s, const attnc_shape *h, const Device *d,
                const Tile *t, Figures *f) {
    Block b = block_of(s, d, t);
    Work w = count(s, h, d, &b);
    Step1 c = step_of(s, d, &b);
    double per_ms = d->clock_ghz * 1e6; /* cycles */
    double all = w.busy * w.steps / d->cores / per_ms;
    double visible = model_visible(s, h);
    f->flops = 2 * w.heads * visible * (s->head_dim + s->head_dim_v);
    f->exp2s = w.heads * visible;
    f->dram_bytes = dram_bytes(s, h, &w, b.elem);
    f->sram_bytes = l2_bytes(s, &w, b.elem);
    f->sram_footprint = (double)b.smem.total;
    f->items = w.items / fmax(b.heads, 1);
    f->waves = ceil(w.items / (d->cores * w.resident));
    f->occupancy = b.blocks * b.warps * WARP / d->max_threads;
    f->product_ms = c.product * all;
    f->exp2_ms = c.exp2 * all;
    f->issue_ms = c.issue * all;
    f->smem_ms = c.smem * all;
    f->compute_ms = sm_cycles(s, d, &b, &w, &c) * pressure(s, d, t, f) / per_ms;
    f->dram_ms = f->dram_bytes / d->dram_gbs * 1e-6;
    f->sram_ms = f->sram_bytes / reread_gbs(s, h, d, &w, b.elem) * 1e-6;
    f->time_ms = fmax(fmax(f->compute_ms, f->dram_ms), f->sram_ms);
    f->bound = bound_of(f, &b, step_cycles(&b, &c, w.resident) * all);
    f->time_ms += LAUNCH_MS;
}

/* Every split's O and LSE in, O and LSE out; a warp for each row. */
static void combine(const attnc_spec *s, const attnc_shape *h, const Device *d,
                    const Tile *t, Figures *f) {
    double rows = (double)h->batch * (double)h->heads * (double)h->seqlen_q;
    double merge = t->v[T_cuda_combine_merge_rows];
    double splits = model_parts(h, t->v[T_cuda_combine_split_k]);
    double warps = fmin(d->max_threads / WARP, d->max_blocks * merge);
    int split_k = t->v[T_cuda_combine_split_k];
    double met = split_k ? model_splits_met(s, h, split_k) : splits;
    double steps = met * ceil((s->head_dim_v + 1) / (double)WARP);
    f->dram_bytes = rows * (s->head_dim_v * dtype_bytes(s->dtype) + 4);
    f->sram_bytes = f->dram_bytes + rows * (met * s->head_dim_v + splits) * 4;
    f->exp2s = rows * splits;
    f->registers = tile_cuda_registers(s, d, t);
    f->occupancy = warps * WARP / d->max_threads;
    f->items = ceil(rows / merge);
    f->waves = ceil(rows / (d->cores * warps));
    f->issue_ms =
        rows * steps * 4 / ISSUE_RATE / d->cores / d->clock_ghz * 1e-6;
    f->compute_ms =
        f->issue_ms + f->waves * (2 * LATENCY + 30 * met) / d->clock_ghz * 1e-6;
    f->sram_ms = f->sram_bytes / d->llc_gbs * 1e-6;
    f->dram_ms = f->dram_bytes / d->dram_gbs * 1e-6;
    f->time_ms = fmax(fmax(f->compute_ms, f->dram_ms), f->sram_ms);
    f->bound = f->time_ms <= f->sram_ms   ? "sram"
               : f->time_ms <= f->dram_ms ? "dram"
                                          : "latency";
    f->time_ms += LAUNCH_MS;
}

void model_cuda(const attnc_spec *s, const attnc_shape *h, const Device *d,
                const Tile *t, Figures *out) {
    Figures f = {.bound = "latency"};
    if (cuda_is_bwd(t->family))
        model_cuda_bwd(s, h, d, t, &f);
    else if (t->family == TILE_cuda_combine)
        combine(s, h, d, t, &f);
    else
        fwd(s, h, d, t, &f);
    *out = f;
}
