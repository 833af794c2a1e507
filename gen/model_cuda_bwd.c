/* SPDX-License-Identifier: Apache-2.0
 * The IO model of the backward on GPUs: a step of dK and dV or of dQ, cycle by
 * cycle, then waves of blocks. docs/io-model.md, "The backward on a GPU". */
#include <math.h>

#include "order.h"

/* As in model_cuda.c, which says where they come from. */
static const double ISSUE_RATE = 4, MATRIX_SHARE = 0.9, SMEM_SHARE = 0.85;
static const double CONTENTION = 0.15, STEP_SLOTS = 40, BARRIER = 200;
static const double LATENCY = 800, BLOCK_START = 2500, LDS_BYTES = 256;
static const double LAUNCH_MS = 0.002;
/* Of a pair of scores: P, dS, their packing, what a row or column brings. */
static const double PAIR_SLOTS = 8, MASK_SLOTS = 3, SOFTCAP_SLOTS = 8;
static const double ALIBI_SLOTS = 3;

/* Bytes of f32 sums a cycle that one SM adds to memory: kernels that do little
 * else were seen to sustain some 30 GB/s of it. */
static const double ADD_BYTES = 16;

enum { WARP = 32 };

/* Cycles of an SM for one block's step, each resource alone. */
typedef struct Step1 {
    double product, exp2, issue, smem, adds;
    double weights; /* issue slots between the products */
} Step1;

/* Per launch; own rows as in CudaBwd. */
typedef struct Work {
    double heads, kv_heads, visible; /* visible: pairs of one head */
    double own, other;               /* rows of one kv head */
    double items, steps, resident;
} Work;

static double product_rate(const attnc_spec *s, const Device *d, bool mma) {
    double peak = !mma                    ? d->f32_tflops
                  : s->dtype == ATTNC_F16 ? d->f16_tflops * d->mma_share
                  : s->dtype == ATTNC_F32 ? d->tf32_tflops * d->mma_share
                                          : d->bf16_tflops * d->mma_share;
    return peak * 1e3 / (d->cores * d->clock_ghz);
}

/* Flops of a pair in all products: scores and dP, then two sums or one. */
static double pair_flops(const CudaBwd *b, double dim, double dim_v) {
    double sums = b->by_keys ? dim + dim_v : dim;
    double dq = b->dq == DQ_APART ? 0 : dim;
    return 2 * (dim + dim_v + sums + dq + (b->split ? dim : 0));
}

/* Of all tiles, those that meet a pair that sees. */
static double met_share(const attnc_spec *s, const attnc_shape *h,
                        const CudaBwd *b, double visible) {
    int64_t group = h->heads / h->kv_heads;
    int64_t rows = ((b->by_keys ? b->other : b->own) + group - 1) / group;
    double fine, met, part;
    spec_share(s, h, 16, 16, &fine, &part); /* as model_visible counts */
    spec_share(s, h, rows, b->by_keys ? b->own : b->other, &met, &part);
    return visible / fine * met / ((double)h->seqlen_q * (double)h->seqlen_k);
}

static Work count(const attnc_spec *s, const attnc_shape *h, const Device *d,
                  const CudaBwd *b) {
    double rows = (double)(h->heads / h->kv_heads * h->seqlen_q);
    Work w = {.heads = (double)h->batch * (double)h->heads,
              .kv_heads = (double)h->batch * (double)h->kv_heads,
              .visible = model_visible(s, h),
              .own = b->by_keys ? (double)h->seqlen_k : rows,
              .other = b->by_keys ? rows : (double)h->seqlen_k};
    double share = met_share(s, h, b, w.visible);
    w.items = w.kv_heads * ceil(w.own / b->own);
    w.steps = w.other * share / b->other + (share < 1 ? 1 : 0.5);
    w.resident = fmin(b->blocks, fmax(1, ceil(w.items / d->cores)));
    return w;
}

/* Blocks of keys add to the first step one after the other, unless a mask
 * lets each begin with rows that none before it sees: the last one lags. */
static double lag_steps(const attnc_spec *s, const Device *d, const CudaBwd *b,
                        const Work *w) {
    if (b->dq != DQ_ORDERED || s->mask != ATTNC_MASK_NONE)
        return 0;
    return fmin(ceil(w->own / b->own), d->cores * w->resident) - 1;
}

/* dS is written once; each warp reads its rows of it and its columns of K,
 * over all keys of the block. */
static double dq_bytes(const CudaBwd *b, const CudaBwdSmem *m, double elem) {
    int rows, columns;
    cuda_bwd_dq_share(b, m->dim, &rows, &columns);
    double reads = b->warps * 16.0 * (rows + columns) * b->own;
    return b->dq == DQ_APART ? 0 : elem * (reads + b->own * b->other);
}

/* Fragments of own rows, as far as they are not held, and of the others in two
 * products, of the others again in the sums; every warp reads them. */
static void mma_step(const CudaBwd *b, const CudaBwdSmem *m, double elem,
                     double k, Step1 *c) {
    double dims = (double)(m->dim + m->dim_v), warps = b->warps;
    double read = b->regs == 2 ? 0 : b->regs ? (double)m->dim : dims;
    double sums =
        (double)(b->by_keys && !b->split ? m->dim + m->dim_v : m->dim);
    double bytes =
        warps * elem * (b->rows * read + b->other * dims + b->other * sums) +
        dq_bytes(b, m, elem);
    double flops = pair_flops(b, (double)m->dim, (double)m->dim_v);
    c->smem = bytes + b->other * dims * elem;
    c->issue = flops / 2 * b->own * b->other / (16 * 8 * k) + bytes / 512;
    if (elem == 4) /* tf32: the others come 128 bytes at a time in the sums */
        c->issue += warps * elem * b->other * sums / 128;
}

static void fma_step(const CudaBwd *b, const CudaBwdSmem *m, Step1 *c) {
    double dims = (double)(m->dim + m->dim_v), rows = b->rows / 4.0;
    double sums = (double)(b->by_keys ? m->dim + m->dim_v : m->dim);
    double dots = dims / 4 * (rows + b->other / 8.0);
    double adds = b->other / 4.0 * (rows + sums / 32 * 4);
    double loads = b->warps * (dots + adds);
    double flops = pair_flops(b, (double)m->dim, (double)m->dim_v);
    c->smem = loads * LDS_BYTES + b->other * dims * 4;
    c->issue = flops / 2 * b->own * b->other / WARP + loads;
}

static Step1 step_of(const attnc_spec *s, const Device *d, const CudaBwd *b,
                     const CudaBwdSmem *m) {
    Step1 c = {0};
    double pairs = (double)b->own * b->other * (1 + b->split);
    double slots = PAIR_SLOTS + (!spec_has_mask(s) ? 0 : MASK_SLOTS) +
                   (s->softcap ? SOFTCAP_SLOTS : 0) +
                   (s->alibi ? ALIBI_SLOTS : 0);
    if (b->mma)
        mma_step(b, m, dtype_bytes(s->dtype),
                 s->dtype == ATTNC_F32 ? 8 : d->mma_k, &c);
    else
        fma_step(b, m, &c);
    c.product = pair_flops(b, (double)m->dim, (double)m->dim_v) * b->own *
                b->other / product_rate(s, d, b->mma) / MATRIX_SHARE;
    c.smem /= d->sram_width * SMEM_SHARE;
    if (b->dq == DQ_ORDERED || b->dq == DQ_ATOMIC) {
        c.adds = b->other * (double)m->dim * 4 / ADD_BYTES;
        c.issue += b->other * (double)m->dim / WARP;
    }
    c.weights = pairs / WARP * slots / ISSUE_RATE;
    c.issue =
        c.issue / ISSUE_RATE + c.weights + b->warps * STEP_SLOTS / ISSUE_RATE;
    c.exp2 =
        pairs * (s->softcap ? 3 : 1) * d->cores * d->clock_ghz / d->exp2_gops;
    return c;
}

static double step_cycles(const CudaBwd *b, const Step1 *c, double resident) {
    double warps = fmax(resident * b->warps / ISSUE_RATE, 0.25);
    double busy = c->product + CONTENTION * fmin(c->product, c->smem);
    busy = fmax(fmax(busy, c->exp2), fmax(c->issue, c->smem));
    busy = fmax(busy, c->adds);
    double chain = fmax(c->product, c->smem) + fmax(c->exp2, c->weights) +
                   BARRIER + (b->stages == 1 ? BARRIER + LATENCY : 0) +
                   (b->dq != DQ_APART ? BARRIER : 0) +
                   (b->dq == DQ_ORDERED ? 2 * BARRIER : 0);
    double gap = fmax(0, chain - busy) / fmax(warps, 1);
    return (busy + gap) / fmin(warps, 1);
}

/* Cycles until a block is done that a pattern lets meet most of the others,
 * alone on its SM; 0: blocks are alike. */
static double longest_cycles(const attnc_spec *s, const attnc_shape *h,
                             const CudaBwd *b, const Work *w, const Step1 *c) {
    const Loads *l = spec_loads(s, h->seqlen_q, h->seqlen_k);
    if (!l)
        return 0;
    double steps = loads_most(l, b->by_keys) * w->other / b->other;
    return fmax(steps, w->steps) * step_cycles(b, c, 1);
}

static void main_step(const attnc_spec *s, const attnc_shape *h,
                      const Device *d, const Tile *t, Figures *f) {
    CudaBwd b = cuda_bwd_of(t);
    CudaBwdSmem m;
    cuda_bwd_smem(s, d, t, &m);
    Work w = count(s, h, d, &b);
    Step1 c = step_of(s, d, &b, &m);
    double per_ms = d->clock_ghz * 1e6, elem = dtype_bytes(s->dtype);
    double all = w.items * w.steps / d->cores / per_ms;
    double dims = s->head_dim + s->head_dim_v;
    double out = b.by_keys ? dims : s->head_dim;
    double cycles = step_cycles(&b, &c, w.resident);
    double share = ceil(w.items / d->cores / w.resident) * w.resident;
    /* Own rows are held before the first step's others are asked for. */
    double start = BLOCK_START + (b.regs ? LATENCY : 0);
    f->flops = w.heads * w.visible * pair_flops(&b, s->head_dim, s->head_dim_v);
    f->exp2s = w.heads * w.visible;
    f->dram_bytes =
        w.kv_heads * ((w.own + w.other) * dims + w.own * out) * elem;
    f->sram_bytes = w.kv_heads * w.own * (dims + out) * elem +
                    w.items * w.steps * b.other * dims * elem;
    if (c.adds > 0) /* read, added to, written */
        f->sram_bytes += w.items * w.steps * b.other * s->head_dim * 8;
    f->sram_footprint = (double)m.total;
    f->items = w.items;
    f->waves = ceil(w.items / (d->cores * w.resident));
    f->registers = cuda_bwd_registers(s, d, t);
    f->occupancy = b.blocks * b.warps * WARP / d->max_threads;
    f->product_ms = c.product * all;
    f->exp2_ms = c.exp2 * all;
    f->issue_ms = c.issue * all;
    f->smem_ms = c.smem * all;
    f->compute_ms =
        fmax(share * (w.steps * cycles + start / w.resident),
             longest_cycles(s, h, &b, &w, &c) + start) /
            per_ms +
        lag_steps(s, d, &b, &w) * (cycles * w.resident + LATENCY) / per_ms;
    f->sram_ms = f->sram_bytes / d->llc_gbs * 1e-6;
    f->dram_ms = f->dram_bytes / d->dram_gbs * 1e-6;
    f->bound = b.mma ? "tensor" : "fma";
    if (c.issue > c.product)
        f->bound = "issue";
    if (c.smem > fmax(c.product, c.issue))
        f->bound = "smem";
}

/* delta: rows of O and dO once; dsink, whose rows are two numbers, is less. */
static void rows_step(const attnc_spec *s, const attnc_shape *h,
                      const Device *d, const Tile *t, Figures *f) {
    double rows = (double)h->batch * (double)h->heads * (double)h->seqlen_q;
    f->dram_bytes = rows * (2.0 * s->head_dim_v * dtype_bytes(s->dtype) + 12);
    f->sram_bytes = f->dram_bytes;
    f->flops = rows * 2 * s->head_dim_v;
    f->registers = cuda_bwd_registers(s, d, t);
    f->items = ceil(rows / t->v[T_cuda_rows_delta_rows]);
    f->occupancy = 1;
    f->waves = ceil(f->items * CUDA_ROWS_THREADS / (d->cores * d->max_threads));
    f->compute_ms = f->waves * 2 * LATENCY / d->clock_ghz * 1e-6;
    f->sram_ms = f->sram_bytes / d->llc_gbs * 1e-6;
    f->dram_ms = f->dram_bytes / d->dram_gbs * 1e-6;
    f->bound = "latency";
}

/* Sums are set to zero, read and written in the type of dQ. */
static double sum_bytes(const attnc_spec *s, const attnc_shape *h) {
    double rows = (double)h->batch * (double)h->heads * (double)h->seqlen_q;
    return rows * s->head_dim * (8.0 + dtype_bytes(s->dtype));
}

double cuda_dq_ms(const attnc_spec *s, const attnc_shape *h, const Device *d,
                  int dq) {
    if (dq == DQ_APART || dq == DQ_BLOCK)
        return 0;
    return sum_bytes(s, h) / d->dram_gbs * 1e-6 + 2 * LAUNCH_MS;
}

void model_cuda_dq_sum(const attnc_spec *s, const attnc_shape *h,
                       const Device *d, Figures *f) {
    f->dram_bytes = f->sram_bytes = sum_bytes(s, h);
    f->flops = 0;
    f->sram_ms = f->sram_bytes / d->llc_gbs * 1e-6;
    f->dram_ms = f->dram_bytes / d->dram_gbs * 1e-6;
    f->time_ms = fmax(f->compute_ms, f->dram_ms) + 2 * LAUNCH_MS;
    f->bound = f->compute_ms > f->dram_ms ? "latency" : "dram";
}

/* To look at two pairs, whether one of them is the thread's. */
static const double LOOK_SLOTS = 10;

/* Of all pairs, how often a warp looks at one: none where each has an element
 * of its own; every thread at its warp's, or, where other warps may add to the
 * same element, at all of the block; a row's lanes may sum theirs before. */
static double looks(const attnc_spec *s, const CudaBwd *b) {
    const ProgramGrad *g = spec_score_grad(s);
    GradShare share = grad_share(g);
    double sum = 0;
    for (int i = 0; i < g->nread; i++) {
        const ReadGrad *r = &g->read[i];
        bool direct = !(r->broadcast & (DEP_Q | DEP_K));
        bool row = r->broadcast & DEP_K && r->expr < 0;
        bool apart = share.parted >> r->tensor & 1 || share.split & DEP_Q;
        for (int k = 0; k < g->nread; k++)
            direct &= k == i || g->read[k].tensor != r->tensor;
        if (!direct)
            sum += !apart ? b->warps : row ? 4.0 / b->other : 1;
    }
    return sum;
}

void model_cuda_tensor(const attnc_spec *s, const Device *d, const Tile *t,
                       double items, Figures *f) {
    CudaBwd b = cuda_bwd_of(t);
    double wide = d->cores * b.blocks, waves = ceil(items / wide);
    double slots = f->exp2s / 2 * looks(s, &b) * LOOK_SLOTS;
    double even = f->items / wide / f->waves; /* of dQ's blocks */
    double look_ms = slots / ISSUE_RATE / d->cores / (d->clock_ghz * 1e6);
    f->compute_ms = (f->compute_ms * even + look_ms) * waves * wide / items;
    f->flops = 0;
    f->items = items;
    f->waves = waves;
    f->time_ms = fmax(fmax(f->compute_ms, f->dram_ms), f->sram_ms) + LAUNCH_MS;
    f->bound = f->compute_ms > f->sram_ms ? "issue" : "sram";
}

void model_cuda_bwd(const attnc_spec *s, const attnc_shape *h, const Device *d,
                    const Tile *t, Figures *f) {
    if (t->family == TILE_cuda_rows)
        rows_step(s, h, d, t, f);
    else
        main_step(s, h, d, t, f);
    f->time_ms = fmax(fmax(f->compute_ms, f->dram_ms), f->sram_ms);
    if (f->time_ms <= f->dram_ms)
        f->bound = "dram";
    else if (f->time_ms <= f->sram_ms)
        f->bound = "sram";
    f->time_ms += LAUNCH_MS;
}
