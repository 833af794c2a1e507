/* SPDX-License-Identifier: Apache-2.0
 * The tile families of the backward on GPUs: legality and the search space. */
#include "program.h"

enum { WARP = 32, BLOCK_THREADS = 1024 };

bool cuda_is_bwd(int family) {
    return family == TILE_mma_dkdv || family == TILE_mma_dq ||
           family == TILE_fma_dkdv || family == TILE_fma_dq ||
           family == TILE_cuda_rows;
}

/* ---- the families under one set of names -------------------------------- */

CudaBwd cuda_bwd_of(const Tile *t) {
    const int32_t *v = t->v;
    return (CudaBwd){
        .mma = t->family == TILE_mma_dkdv || t->family == TILE_mma_dq,
        .by_keys = t->family == TILE_mma_dkdv || t->family == TILE_fma_dkdv,
        .own = v[0],
        .other = v[1],
        .warps = v[2],
        .rows = v[3],
        .stages = v[4],
        .blocks = v[5],
        .split = t->family == TILE_mma_dkdv ? v[T_mma_dkdv_split] : 0,
        .dq = t->family == TILE_mma_dkdv ? v[T_mma_dkdv_dq] : DQ_APART,
        .regs = t->family == TILE_mma_dkdv ? v[T_mma_dkdv_kv_regs]
                : t->family == TILE_mma_dq ? v[T_mma_dq_q_do_regs]
                                           : 0};
}

static void set(Tile *t, const CudaBwd *b) {
    const int32_t values[] = {b->own,  b->other,  b->warps,
                              b->rows, b->stages, b->blocks};
    for (int i = 0; i < 6; i++)
        t->v[i] = values[i];
    if (t->family == TILE_mma_dkdv) {
        t->v[T_mma_dkdv_split] = b->split;
        t->v[T_mma_dkdv_dq] = b->dq;
        t->v[T_mma_dkdv_kv_regs] = b->regs;
    }
    if (t->family == TILE_mma_dq)
        t->v[T_mma_dq_q_do_regs] = b->regs;
}
#define SAME_PLACES(family, own, other)                                        \
    _Static_assert(T_##family##_##own == 0 && T_##family##_##other == 1,       \
                   "own rows, then others")
SAME_PLACES(mma_dkdv, block_k, block_q);
SAME_PLACES(fma_dkdv, block_k, block_q);
SAME_PLACES(mma_dq, dq_block_q, dq_block_k);
SAME_PLACES(fma_dq, dq_block_q, dq_block_k);
_Static_assert(T_mma_dkdv_blocks == 5 && T_fma_dkdv_blocks == 5 &&
                   T_mma_dq_dq_blocks == 5 && T_fma_dq_dq_blocks == 5,
               "four families begin with the same six fields");

/* ---- registers ---------------------------------------------------------- */

/* Besides, fitted to what ptxas made without spilling: addresses, counters,
 * lengths, bounds; where products are unrolled, operands under way. */
enum { OTHER_REGISTERS = 48, MMA_REGISTERS = 76, FMA_REGISTERS = 108 };

static int up(int64_t a, int unit) {
    return ((int)a + unit - 1) / unit * unit;
}

void cuda_bwd_dq_share(const CudaBwd *b, int64_t dim, int *m, int *n) {
    int tiles = b->other / 16, m_warps = 1;
    while (tiles % (2 * m_warps) == 0 && b->warps % (2 * m_warps) == 0)
        m_warps *= 2;
    int n_warps = b->warps / m_warps;
    *m = tiles / m_warps;
    *n = (up(dim, 16) / 16 + n_warps - 1) / n_warps;
}

/* Where own rows of 16 bits are held, ptxas fits so many more than it needs
 * elsewhere into the most a thread may have: K and V of d 128, 296 into 255, no
 * spill on sm_80 to sm_120 under a causal mask; sm_75 spills. What a score is
 * made of besides needs FEATURE each. */
enum { MOST_REGISTERS = 255, HELD_FIT = 41, FEATURE = 8 };

static int held_fit(const attnc_spec *s, const Device *d) {
    int features = (s->alibi != 0) + (s->softcap != 0) + (s->dropout != 0) +
                   (s->mask > ATTNC_MASK_CAUSAL);
    if (s->dtype == ATTNC_F32 || d->mma_k < 16 || spec_has_programs(s))
        return 0;
    return HELD_FIT - FEATURE * features;
}

/* Own rows as fragments, 4 registers for 32 bytes of 16 rows. */
static int held_registers(const CudaBwd *b, const CudaBwdSmem *m, int elem) {
    int64_t dims = (b->regs > 0 ? m->dim_v : 0) + (b->regs > 1 ? m->dim : 0);
    return (int)dims * elem / 8;
}

/* Per m16 tile of rows: 4 registers for each n8 tile of sums and scores, and
 * of dP; fragments of both operands. Those of dQ take the place of scores. */
static int mma_registers(const CudaBwd *b, const CudaBwdSmem *m, int elem) {
    int tiles = b->rows / 16, dim = (int)m->dim, dim_v = (int)m->dim_v;
    int sums = !b->by_keys ? dim
               : b->split  ? (dim > dim_v ? dim : dim_v)
                           : dim + dim_v;
    int pairs = tiles * (b->other + 4), dq_m, dq_n;
    cuda_bwd_dq_share(b, m->dim, &dq_m, &dq_n);
    if (b->dq != DQ_APART && dq_m * (8 * dq_n + 4) > pairs)
        pairs = dq_m * (8 * dq_n + 4);
    return tiles * sums / 2 + pairs + 8 + tiles * held_registers(b, m, elem);
}

/* A thread has a quarter of the warp's rows, an eighth of the others. */
static int fma_registers(const CudaBwd *b, const CudaBwdSmem *m) {
    int rows = b->rows / 4;
    int sums = up(m->dim, 32) / 8 + (b->by_keys ? up(m->dim_v, 32) / 8 : 0);
    return rows * (sums + b->other / 4 + 4) + 4;
}

int cuda_bwd_registers(const attnc_spec *s, const Device *d, const Tile *t) {
    CudaBwdSmem m;
    CudaBwd b = cuda_bwd_of(t);
    if (t->family == TILE_cuda_rows)
        return OTHER_REGISTERS;
    cuda_bwd_smem(s, d, t, &m);
    if (!b.mma)
        return fma_registers(&b, &m) + FMA_REGISTERS;
    int all = mma_registers(&b, &m, dtype_bytes(s->dtype)) + MMA_REGISTERS;
    bool fits = b.regs && all <= MOST_REGISTERS + held_fit(s, d);
    return fits && all > MOST_REGISTERS ? MOST_REGISTERS : all;
}

/* ---- legality ----------------------------------------------------------- */

static bool has_mma(const attnc_spec *s, const Device *d, char why[TILE_WHY]) {
    double peak = s->dtype == ATTNC_F16            ? d->f16_tflops
                  : s->dtype == ATTNC_BF16         ? d->bf16_tflops
                  : s->f32_math == ATTNC_MATH_TF32 ? d->tf32_tflops
                                                   : 0;
    if (d->mma_k > 0 && peak > 0)
        return true;
    return tile_refuse(why,
                       "the backward has no mma for %s on %s; nearest "
                       "families fma_dkdv, fma_dq",
                       spec_spelling(s, "dtype"), d->arch);
}

static bool fits(const attnc_spec *s, const Device *d, const Tile *t,
                 const CudaBwd *b, char why[TILE_WHY]) {
    CudaBwdSmem m;
    cuda_bwd_smem(s, d, t, &m);
    double all = b->blocks * ((double)m.total + d->sram_reserved);
    int need = cuda_bwd_registers(s, d, t),
        have = tile_cuda_register_limit(d, t);
    if ((double)m.total > d->sram_bytes || all > d->sram_core_bytes)
        return tile_refuse(why,
                           "needs %lld bytes of SRAM a block; a block has "
                           "%.0f, an SM %.0f",
                           (long long)m.total, d->sram_bytes,
                           d->sram_core_bytes);
    if (b->blocks * b->warps * WARP > d->max_threads ||
        b->blocks > d->max_blocks)
        return tile_refuse(
            why, "blocks=%d of %d threads; an SM holds %.0f, %.0f", b->blocks,
            b->warps * WARP, d->max_blocks, d->max_threads);
    if (need > have)
        return tile_refuse(why,
                           "wants %d registers a thread, there are %d with "
                           "blocks=%d",
                           need, have, b->blocks);
    return true;
}

static bool in_ranges(const Tile *t, const CudaBwd *b, char why[TILE_WHY]) {
    int unit = b->mma ? 16 : 8, f = t->family;
    const TileRange ranges[] = {
        {tile_field_name(f, 0), b->own, unit, 512},
        {tile_field_name(f, 1), b->other, unit, 128},
        {tile_field_name(f, 2), b->warps, 1, BLOCK_THREADS / WARP},
        {tile_field_name(f, 3), b->rows, unit, 32},
        {tile_field_name(f, 4), b->stages, 1, 2},
        {tile_field_name(f, 5), b->blocks, 1, 32},
        {"split", b->split, 0, 1},
        {"dq", b->dq, 0, DQ_WAYS - 1},
        {b->by_keys ? "kv_regs" : "q_do_regs", b->regs, 0, 2},
    };
    return tile_in_ranges(ranges, sizeof ranges / sizeof *ranges, why) &&
           tile_whole(tile_field_name(f, 3), b->rows, "", unit, why) &&
           tile_whole(tile_field_name(f, 1), b->other, "", unit, why);
}

bool cuda_bwd_legal(const attnc_spec *s, const Device *d, const Tile *t,
                    char why[TILE_WHY]) {
    CudaBwd b = cuda_bwd_of(t);
    const TileRange rows = {"delta_rows", t->v[T_cuda_rows_delta_rows], 1,
                            1024};
    int own = b.warps * b.rows / (1 + b.split);
    if (t->family == TILE_cuda_rows)
        return tile_in_ranges(&rows, 1, why);
    if ((b.mma && !has_mma(s, d, why)) || !in_ranges(t, &b, why))
        return false;
    if (b.split && b.warps % 2)
        return tile_refuse(why,
                           "split=1 needs pairs of warps, not %d; nearest "
                           "warps=%d",
                           b.warps, b.warps + 1);
    if (b.dq != DQ_APART && s->dtype == ATTNC_F32)
        return tile_refuse(why,
                           "dq=%d reads dS across, in 16 bits; nearest "
                           "dq=0",
                           b.dq);
    if (b.dq == DQ_ATOMIC && s->deterministic)
        return tile_refuse(why, "dq=3 sums in any order, the spec says "
                                "deterministic=1; nearest dq=2");
    if (b.own != own)
        return tile_refuse(why, "%s=%d is not the warps' rows; nearest %d",
                           tile_field_name(t->family, 0), b.own, own);
    return fits(s, d, t, &b, why);
}

bool cuda_bwd_promised(const attnc_shape *h, const Tile *t,
                       char why[TILE_WHY]) {
    if (!cuda_is_bwd(t->family) || cuda_bwd_of(t).dq != DQ_BLOCK ||
        (h->max_seqlen > 0 && h->max_seqlen <= cuda_bwd_of(t).own))
        return true;
    return tile_refuse(why,
                       "dq=1 needs all keys in one block: promise max_seqlen "
                       "<= block_k = %d; nearest dq=2",
                       cuda_bwd_of(t).own);
}

/* ---- enumeration -------------------------------------------------------- */

typedef struct Walk {
    const attnc_spec *s;
    const attnc_shape *h;
    const Device *d;
    Tile *t;
    void (*fn)(void *user, const Tile *t);
    void *user;
} Walk;

/* Products in the unrolled body of a step: each takes 1 to 2 ms to compile.
 * Short launches, in flops, get a short body. */
static const double SHORT_LAUNCH = 1e12;
enum { BODY_SHORT = 72, BODY_MOST = 128 };

static bool short_enough(const Walk *w, const CudaBwd *b) {
    int dims = (up(w->s->head_dim, 16) + up(w->s->head_dim_v, 16)) / 16;
    int body = b->rows / 16 * b->other / 8 * 2 * dims *
               (w->s->dtype == ATTNC_F32 ? 2 : 1);
    double flops = 4.0 * (double)w->h->batch * (double)w->h->heads *
                   model_visible(w->s, w->h) *
                   (w->s->head_dim + w->s->head_dim_v);
    bool least = b->rows == 16 && b->other == 16;
    return !b->mma || least ||
           body <= (flops < SHORT_LAUNCH ? BODY_SHORT : BODY_MOST);
}

/* With as many own rows in registers as fit, for none of these is read again;
 * and with none. */
static bool walk_held(const Walk *w, CudaBwd *b) {
    char why[TILE_WHY];
    for (b->regs = b->mma ? 2 : 0; b->regs > 0; b->regs--) {
        set(w->t, b);
        if (cuda_bwd_legal(w->s, w->d, w->t, why)) {
            w->fn(w->user, w->t);
            break;
        }
    }
    bool some = b->regs > 0;
    b->regs = 0;
    set(w->t, b);
    w->fn(w->user, w->t);
    return some || cuda_bwd_legal(w->s, w->d, w->t, why);
}

static void walk_variants(const Walk *w, CudaBwd *b) {
    static const int blocks[] = {1, 2, 3, 4};
    for (b->stages = 1; b->stages <= 2; b->stages++)
        for (int i = 0; i < 4; i++) {
            b->blocks = blocks[i];
            if (!walk_held(w, b))
                break;
        }
}

static void walk_others(const Walk *w, CudaBwd *b) {
    for (b->other = b->mma ? 16 : 8; b->other <= 64; b->other *= 2)
        if (short_enough(w, b))
            walk_variants(w, b);
}

void cuda_bwd_each(const attnc_spec *s, const attnc_shape *h, const Device *d,
                   Tile *t, void (*fn)(void *user, const Tile *t), void *user) {
    Walk w = {s, h, d, t, fn, user};
    CudaBwd b = cuda_bwd_of(t);
    for (int rows = 8; t->family == TILE_cuda_rows && rows <= 64; rows *= 2) {
        t->v[T_cuda_rows_delta_rows] = rows;
        fn(user, t);
    }
    if (t->family == TILE_cuda_rows)
        return;
    for (b.split = 0; b.split <= (b.mma && b.by_keys); b.split++)
        for (b.warps = 1 + b.split; b.warps <= 8; b.warps *= 2)
            for (b.rows = b.mma ? 16 : 8; b.rows <= 32; b.rows *= 2) {
                b.own = b.warps * b.rows / (1 + b.split);
                walk_others(&w, &b);
            }
}

/* Of every head dim. */
void cuda_bwd_safe(Tile *t) {
    CudaBwd b = cuda_bwd_of(t);
    int unit = b.mma ? 16 : 8;
    if (t->family == TILE_cuda_rows) {
        t->v[T_cuda_rows_delta_rows] = 8;
        return;
    }
    b.split = b.mma && b.by_keys;
    b.warps = 2;
    b.rows = b.other = unit;
    b.own = 2 * unit / (1 + b.split);
    b.stages = b.blocks = 1;
    b.regs = 0;
    set(t, &b);
}
