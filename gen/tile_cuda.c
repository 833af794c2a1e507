/* SPDX-License-Identifier: Apache-2.0
 * The tile families of GPUs: what a device's numbers allow, and the search
 * space. No chip is known by name here. */
#include "program.h"

enum {
    WARP = 32,
    REGISTERS_MAX = 255, /* of one thread: the field of an instruction */
    REGISTER_UNIT = 8,   /* they are given out in eights */
    BLOCK_THREADS = 1024,
};

bool tile_is_cuda(int family) {
    return family == TILE_mma_fwd || family == TILE_fma_fwd ||
           family == TILE_cuda_combine || cuda_is_bwd(family);
}

/* ---- the two forward families under one set of names -------------------- */

typedef struct Fwd {
    bool mma;
    int block_q, block_k, warps, rows, stages, q_regs, peel, blocks, split_k;
    int heads, team; /* team: warps that share a head */
} Fwd;

static Fwd fwd_of(const Tile *t) {
    const int32_t *v = t->v;
    int heads = v[T_mma_fwd_heads];
    if (t->family == TILE_mma_fwd)
        return (Fwd){true,
                     v[T_mma_fwd_block_q],
                     v[T_mma_fwd_block_k],
                     v[T_mma_fwd_warps],
                     v[T_mma_fwd_rows],
                     v[T_mma_fwd_stages],
                     v[T_mma_fwd_q_regs],
                     v[T_mma_fwd_peel],
                     v[T_mma_fwd_blocks],
                     v[T_mma_fwd_split_k],
                     heads,
                     heads ? 1 : v[T_mma_fwd_warps]};
    heads = v[T_fma_fwd_heads];
    return (Fwd){false,
                 v[T_fma_fwd_block_q],
                 v[T_fma_fwd_block_k],
                 v[T_fma_fwd_warps],
                 v[T_fma_fwd_rows],
                 v[T_fma_fwd_stages],
                 0,
                 v[T_fma_fwd_peel],
                 v[T_fma_fwd_blocks],
                 v[T_fma_fwd_split_k],
                 heads,
                 heads ? 1 : v[T_fma_fwd_warps]};
}

static void set_fwd(Tile *t, const Fwd *f) {
    int32_t *v = t->v;
    if (f->mma) {
        v[T_mma_fwd_block_q] = f->block_q, v[T_mma_fwd_block_k] = f->block_k;
        v[T_mma_fwd_warps] = f->warps, v[T_mma_fwd_rows] = f->rows;
        v[T_mma_fwd_stages] = f->stages, v[T_mma_fwd_q_regs] = f->q_regs;
        v[T_mma_fwd_peel] = f->peel, v[T_mma_fwd_blocks] = f->blocks;
        v[T_mma_fwd_heads] = f->heads;
    } else {
        v[T_fma_fwd_block_q] = f->block_q, v[T_fma_fwd_block_k] = f->block_k;
        v[T_fma_fwd_warps] = f->warps, v[T_fma_fwd_rows] = f->rows;
        v[T_fma_fwd_stages] = f->stages, v[T_fma_fwd_peel] = f->peel;
        v[T_fma_fwd_blocks] = f->blocks, v[T_fma_fwd_heads] = f->heads;
    }
}

/* ---- registers ---------------------------------------------------------- */

/* Besides, fitted to the least registers with which ptxas 13.0 spills nothing,
 * of 96 kernels: addresses, counters, lengths and bounds; what goes with copies
 * that wait in registers; 16-byte chunks that a thread copies, beyond two; each
 * further width of the pages of a row; a second loop for boundary tiles; what
 * mask and score programs have of rows and tensors; a part of O, and of the
 * scores beyond 64 on their way to weights. What ptxas takes lies up to DOUBT
 * below, so that what wants so many too many is yet legal. */
enum {
    OTHER_REGISTERS = 26,
    HELD_REGISTERS = 24,
    CHUNK_REGISTERS = 3,
    CHUNKS_EASY = 2,
    CHUNKS_MOST = 10,
    WIDTH_REGISTERS = 5,
    PEEL_REGISTERS = 20,
    PROGRAM_REGISTERS = 26,
    SCORES_EASY = 64,
    DOUBT = 32,
    COMBINE_REGISTERS = 30,
};

static int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

/* Without cp.async the next tile waits in registers. */
static int held_registers(const Device *d, const Fwd *f, const CudaSmem *m,
                          int elem) {
    int64_t bytes = m->k_bytes > m->v_bytes ? m->k_bytes : m->v_bytes;
    if (d->cp_async)
        return 0;
    return (int)(bytes * elem / (f->mma ? elem : 4)) / (f->team * WARP * 4) +
           HELD_REGISTERS;
}

/* 16-byte chunks of a tile that a thread copies; *widths: of its pages. */
static int chunks_of(const Fwd *f, int row_bytes, int *widths) {
    int chunks = 0;
    for (int width = f->mma ? 128 : row_bytes; width >= 16; width /= 2) {
        int bytes = row_bytes / width * width;
        chunks += ceil_div(f->block_k * bytes / 16, f->team * WARP);
        *widths += bytes > 0;
        row_bytes -= bytes;
    }
    return chunks;
}

static int copy_registers(const Fwd *f, const CudaSmem *m, int elem) {
    int widths = 0, bytes = f->mma ? elem : 4;
    int chunks = chunks_of(f, (int)m->dim * bytes, &widths) +
                 chunks_of(f, (int)m->dim_v * bytes, &widths);
    chunks = chunks < CHUNKS_MOST ? chunks : CHUNKS_MOST;
    chunks = chunks > CHUNKS_EASY ? chunks - CHUNKS_EASY : 0;
    return CHUNK_REGISTERS * chunks + WIDTH_REGISTERS * (widths - 2);
}

/* Per m16 tile of rows: 4 registers for each n8 tile of O and S, the
 * fragments of Q (all, or of one step), maximum and sum; K or V fragments of
 * two steps. */
static int mma_registers(const Fwd *f, const CudaSmem *m, int elem) {
    int tiles = f->rows / 16;
    int o = tiles * (int)m->dim_v / 2, scores = tiles * f->block_k / 2;
    int q = f->q_regs ? tiles * (int)m->dim * elem / 8 : tiles * 4;
    int more = scores > SCORES_EASY ? (scores - SCORES_EASY) / 8 : 0;
    return o + o / 8 + scores + more + q + tiles * 4 + 8;
}

/* A thread has a quarter of the warp's rows, an eighth of the keys and dims;
 * four dims of its rows and keys at a time. */
static int fma_registers(const Fwd *f, const CudaSmem *m) {
    int rows = f->rows / 4, keys = f->block_k / 8;
    int dims = ceil_div((int)m->dim_v, 32) * 4;
    return rows * (dims + keys) + 4 * rows + 4 + 2 * rows;
}

int tile_cuda_registers(const attnc_spec *s, const Device *d, const Tile *t) {
    CudaSmem m;
    Fwd f = fwd_of(t);
    int elem = dtype_bytes(s->dtype);
    if (cuda_is_bwd(t->family))
        return cuda_bwd_registers(s, d, t);
    if (t->family == TILE_cuda_combine)
        return COMBINE_REGISTERS + 2 * ceil_div(s->head_dim_v, WARP);
    cuda_smem(s, d, t, &m);
    return (f.mma ? mma_registers(&f, &m, elem) : fma_registers(&f, &m)) +
           held_registers(d, &f, &m, elem) + copy_registers(&f, &m, elem) +
           OTHER_REGISTERS + f.peel * PEEL_REGISTERS +
           (spec_has_programs(s) ? PROGRAM_REGISTERS : 0);
}

int tile_cuda_register_limit(const Device *d, const Tile *t) {
    Fwd f = fwd_of(t);
    if (t->family == TILE_cuda_combine || t->family == TILE_cuda_rows)
        return REGISTERS_MAX;
    int warps = f.blocks * f.warps;
    if (cuda_is_bwd(t->family))
        warps = cuda_bwd_of(t).blocks * cuda_bwd_of(t).warps;
    if (warps < 1)
        return REGISTERS_MAX;
    int each = (int)d->vector_regs / (warps * WARP);
    each -= each % REGISTER_UNIT;
    return each < REGISTERS_MAX ? each : REGISTERS_MAX;
}

int tile_cuda_threads(const Tile *t) {
    if (t->family == TILE_cuda_rows)
        return CUDA_ROWS_THREADS;
    if (cuda_is_bwd(t->family))
        return cuda_bwd_of(t).warps * WARP;
    int warps = t->family == TILE_cuda_combine ? t->v[T_cuda_combine_merge_rows]
                                               : fwd_of(t).warps;
    return warps * WARP;
}

/* ---- legality ----------------------------------------------------------- */

/* Has the device the instruction that the family multiplies by? */
static bool has_mma(const attnc_spec *s, const Device *d, char why[TILE_WHY]) {
    const char *dtype = spec_spelling(s, "dtype");
    double peak = s->dtype == ATTNC_F16    ? d->f16_tflops
                  : s->dtype == ATTNC_BF16 ? d->bf16_tflops
                                           : d->tf32_tflops;
    if (s->dtype == ATTNC_F32 && s->f32_math != ATTNC_MATH_TF32)
        return tile_refuse(why, "family mma_fwd rounds f32 to tf32, which "
                                "f32_math=ieee forbids; nearest fma_fwd");
    if (d->mma_k > 0 && peak > 0)
        return true;
    return tile_refuse(why,
                       "%s has no mma.sync for %s; nearest family "
                       "fma_fwd",
                       d->arch, s->dtype == ATTNC_F32 ? "tf32" : dtype);
}

static bool fits_smem(const Device *d, const Fwd *f, const CudaSmem *m,
                      char why[TILE_WHY]) {
    double all = f->blocks * ((double)m->total + d->sram_reserved);
    if ((double)m->total > d->sram_bytes)
        return tile_refuse(why, "needs %lld bytes of SRAM, a block has %.0f",
                           (long long)m->total, d->sram_bytes);
    if (all > d->sram_core_bytes)
        return tile_refuse(why,
                           "blocks=%d need %.0f bytes of SRAM, an SM has "
                           "%.0f",
                           f->blocks, all, d->sram_core_bytes);
    return true;
}

static bool fits_sm(const attnc_spec *s, const Device *d, const Tile *t,
                    const Fwd *f, char why[TILE_WHY]) {
    int threads = f->blocks * f->warps * WARP;
    int need = tile_cuda_registers(s, d, t);
    int have = tile_cuda_register_limit(d, t);
    if (threads > d->max_threads)
        return tile_refuse(why, "blocks=%d of %d threads; an SM holds %.0f",
                           f->blocks, f->warps * WARP, d->max_threads);
    if (f->blocks > d->max_blocks)
        return tile_refuse(why, "blocks=%d; an SM holds %.0f", f->blocks,
                           d->max_blocks);
    if (need > have + DOUBT)
        return tile_refuse(why,
                           "wants %d registers a thread, there are %d "
                           "with blocks=%d",
                           need, have, f->blocks);
    return true;
}

static bool fwd_legal(const attnc_spec *s, const Device *d, const Tile *t,
                      char why[TILE_WHY]) {
    Fwd f = fwd_of(t);
    CudaSmem m;
    int unit = f.mma ? 16 : 8;
    const TileRange ranges[] = {
        {"block_q", f.block_q, unit, 512},
        {"block_k", f.block_k, unit, 256},
        {"warps", f.warps, 1, BLOCK_THREADS / WARP},
        {"rows", f.rows, unit, 32},
        {"stages", f.stages, 2, d->cp_async ? 4 : 2},
        {"q_regs", f.q_regs, 0, 1},
        {"peel", f.peel, 0, 1},
        {"blocks", f.blocks, 1, 32},
        {"split_k", f.split_k, 0, f.heads ? 0 : 1 << 30},
        {"heads", f.heads, 0, BLOCK_THREADS / WARP},
    };
    if (f.mma && !has_mma(s, d, why))
        return false;
    if (!tile_in_ranges(ranges, sizeof ranges / sizeof *ranges, why) ||
        !tile_whole("rows", f.rows, "", unit, why) ||
        !tile_whole("block_k", f.block_k, "", unit, why) ||
        !tile_whole("split_k", f.split_k, "block_k = ", f.block_k, why))
        return false;
    if (f.heads && f.heads != f.warps)
        return tile_refuse(why,
                           "heads=%d, a warp for each, but warps=%d; nearest "
                           "heads=%d",
                           f.heads, f.warps, f.warps);
    if (f.block_q != f.team * f.rows)
        return tile_refuse(why, "block_q=%d is not %s = %d; nearest block_q=%d",
                           f.block_q, f.heads ? "rows" : "warps*rows",
                           f.team * f.rows, f.team * f.rows);
    cuda_smem(s, d, t, &m);
    return fits_smem(d, &f, &m, why) && fits_sm(s, d, t, &f, why);
}

bool tile_cuda_legal(const attnc_spec *s, const Device *d, const Tile *t,
                     char why[TILE_WHY]) {
    bool merge = s->pass == ATTNC_PASS_MERGE; /* no splits, but parts */
    const TileRange combine[] = {
        {"merge_rows", t->v[T_cuda_combine_merge_rows], 1,
         BLOCK_THREADS / WARP},
        {"split_k", t->v[T_cuda_combine_split_k], merge ? 0 : 8,
         merge ? 0 : 1 << 30},
    };
    if (d->kind == DEVICE_CPU)
        return tile_refuse(why, "family %s needs a GPU, not %s",
                           tile_family_name(t->family), d->arch);
    if (t->family == TILE_cuda_combine)
        return tile_in_ranges(combine, 2, why);
    if (cuda_is_bwd(t->family))
        return cuda_bwd_legal(s, d, t, why);
    return fwd_legal(s, d, t, why);
}

/* ---- enumeration -------------------------------------------------------- */

typedef struct Walk {
    const attnc_spec *s;
    const attnc_shape *h;
    const Device *d;
    Tile *t;
    void (*fn)(void *user, const Tile *t);
    void *user;
    double flops;
} Walk;

/* Compiling takes 1 to 2 ms for each product of the loop's unrolled body, and
 * as much for each register of O, which is cleared, rescaled and stored.
 * Launches that are short, in flops of the two products, get a short body; only
 * long ones a loop for boundary tiles, which doubles it. */
static const double SHORT_LAUNCH = 1e11, LONG_LAUNCH = 4e12;
enum { BODY_SHORT = 128, BODY_MOST = 448 };

static double flops_of(const Walk *w) {
    return 2.0 * (double)w->h->batch * (double)w->h->heads *
           model_visible(w->s, w->h) * (w->s->head_dim + w->s->head_dim_v);
}

/* m16n8k16 products of one warp in one step, and registers of O. */
static bool short_enough(const Walk *w, const Fwd *f) {
    int dims = ceil_div(w->s->head_dim, 16) + ceil_div(w->s->head_dim_v, 16);
    int each = ceil_div(f->block_k, 8) * dims + ceil_div(w->s->head_dim_v, 2);
    int body = f->rows / 16 * each;
    bool least = f->rows == 16 && f->block_k <= 32;
    return !f->mma || least ||
           body <= (w->flops < SHORT_LAUNCH ? BODY_SHORT : BODY_MOST);
}

/* More blocks of an SM, up to one too many, to show the limit. */
static void walk_blocks(const Walk *w, Fwd *f) {
    static const int blocks[] = {1, 2, 3, 4, 6, 8};
    char why[TILE_WHY];
    for (int i = 0; i < 6; i++) {
        f->blocks = blocks[i];
        set_fwd(w->t, f);
        w->fn(w->user, w->t);
        if (!fwd_legal(w->s, w->d, w->t, why))
            return;
    }
}

static void walk_variants(const Walk *w, Fwd *f) {
    int stages = w->d->cp_async ? 4 : 2;
    int peels = spec_has_mask(w->s) && w->flops >= LONG_LAUNCH;
    for (f->stages = 2; f->stages <= stages; f->stages++)
        for (f->q_regs = 0; f->q_regs <= f->mma; f->q_regs++)
            for (f->peel = 0; f->peel <= peels; f->peel++)
                walk_blocks(w, f);
}

static void walk_keys(const Walk *w, Fwd *f) {
    static const int wide[] = {16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256};
    static const int narrow[] = {8, 16, 32, 64, 128};
    int n = f->mma ? 11 : 5;
    for (int i = 0; i < n; i++) {
        f->block_k = f->mma ? wide[i] : narrow[i];
        if (short_enough(w, f))
            walk_variants(w, f);
    }
}

/* Heads so short that a warp has room for all rows of one: several share a
 * block, for an SM holds fewer blocks than warps. */
static void walk_heads(const Walk *w, Fwd f) {
    f.team = 1;
    for (f.heads = 2; f.heads <= 8; f.heads *= 2) {
        f.warps = f.heads;
        if (f.heads <= w->h->kv_heads)
            walk_keys(w, &f);
    }
}

/* Blocks of more rows than there are waste their warps, so of those only the
 * smallest is looked at. */
static void walk_fwd(const Walk *w, bool mma) {
    int64_t rows = w->h->heads / w->h->kv_heads * w->h->seqlen_q;
    for (int warps = 1; warps <= 8; warps *= 2)
        for (int r = mma ? 16 : 8; r <= 32; r *= 2) {
            Fwd f = {.mma = mma, .warps = warps, .rows = r, .team = warps};
            f.block_q = warps * r;
            if (warps == 1 && rows <= r)
                walk_heads(w, f);
            if (f.block_q / 2 >= rows && warps * r > 64)
                continue;
            walk_keys(w, &f);
        }
}

static void walk_combine(const Walk *w) {
    for (int rows = 1; rows <= 16; rows *= 2) {
        w->t->v[T_cuda_combine_merge_rows] = rows;
        w->fn(w->user, w->t);
    }
}

void tile_cuda_each(const attnc_spec *s, const attnc_shape *h, const Device *d,
                    Tile *t, void (*fn)(void *user, const Tile *t),
                    void *user) {
    Walk w = {s, h, d, t, fn, user, 0};
    w.flops = flops_of(&w);
    if (cuda_is_bwd(t->family))
        cuda_bwd_each(s, h, d, t, fn, user);
    else if (t->family == TILE_cuda_combine)
        walk_combine(&w);
    else
        walk_fwd(&w, t->family == TILE_mma_fwd);
}

void tile_cuda_safe(Tile *t) {
    if (cuda_is_bwd(t->family)) {
        cuda_bwd_safe(t);
        return;
    }
    if (t->family == TILE_cuda_combine) {
        t->v[T_cuda_combine_merge_rows] = 1;
        t->v[T_cuda_combine_split_k] = 1024;
        return;
    }
    /* Two warps: without cp.async a tile of K waits in their registers. */
    bool mma = t->family == TILE_mma_fwd;
    int unit = mma ? 16 : 8;
    Fwd f = {.mma = mma,
             .block_q = 2 * unit,
             .block_k = unit,
             .warps = 2,
             .team = 2,
             .rows = unit,
             .stages = 2,
             .blocks = 1};
    set_fwd(t, &f);
}
