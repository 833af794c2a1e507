/* SPDX-License-Identifier: Apache-2.0
 * What the built-in kernels share: slots, elements, exp, the rows and keys of
 * an item, scores and masks. */
#ifndef ATTNC_BUILTIN_ITEM_H
#define ATTNC_BUILTIN_ITEM_H

#include <float.h>
#include <math.h>
#include <string.h>

#include "convert.h"
#include "dropout.h"
#include "program.h"
#include "runtime.h"

enum { ROWS = BUILTIN_ROWS, KEYS = BUILTIN_KEYS, LANES = BUILTIN_LANES };
enum { SUBS = ROWS / LANES, HALF = LANES / 2 };

/* Two of them hold the lanes: 128 bits is what every baseline ISA has. */
typedef float f4 __attribute__((vector_size(HALF * 4), may_alias));
typedef int32_t i4 __attribute__((vector_size(HALF * 4)));
typedef uint32_t u4 __attribute__((vector_size(HALF * 4)));

/* Slots: the params of param.def without buffers, in its order. */
#define SLOT_POINTER_IN(name) AT_##name,
#define SLOT_POINTER_OUT(name) AT_##name,
#define SLOT_LENGTH(name) AT_##name,
#define SLOT_STRIDE(name) AT_##name,
#define SLOT_SCALAR(name) AT_##name,
#define SLOT_WORK(name)
#define PARAM(name, kind) SLOT_##kind(name)
enum slot {
#include "param.def"
};
#undef PARAM

/* Values of a program at one row, and the tensors it reads. */
typedef struct Values {
    const Program *p;
    int last;
    double *value;
    ProgramEnv env;
    ProgramArray array[PROGRAM_TENSORS];
} Values;

/* Of a spec; those that it has not are NULL. */
typedef struct Programs {
    const Program *keep, *score;
    const ProgramGrad *grads; /* of a backward with a score */
    Values keep_values, score_values;
} Programs;

/* What an item works on. Lane arrays have one entry per row of the block. */
typedef struct Item {
    const uint64_t *slot;
    const attnc_spec *spec;
    int64_t b, hk, q0, k0, nq, nk; /* first packed rows; rows, visible keys */
    int64_t begin, end;            /* keys any row sees */
    int64_t group;                 /* query heads of a key head */
    int d, dv, dv4, rows;
    float scale, cap, grow; /* grow: of what dropout keeps; else 1 */
    Dropout drop;
    int64_t row[ROWS];          /* position * group + head within the group */
    int64_t lo[ROWS], hi[ROWS]; /* keys it sees */
    int64_t diagonal[ROWS];     /* its position plus the offset */
    float slope[ROWS];
    _Alignas(64) float max[ROWS], sum[ROWS];
    float *qt, *ot;      /* [sub][dim][lane] */
    float *k, *v;        /* [key][d], [key][dv4] */
    float *s, *seen;     /* [key][lane]; scores kept before exp */
    float *bend;         /* [key][lane] derivative of the score, or NULL */
    int64_t all, offset; /* keys of the entry, lens_k aside; its diagonal's */
    bool has_programs;
    Programs programs;
} Item;

/* ---- builtin_program.c ------------------------------------------------- */

/* Finds the spec's programs; their values lie at the begin of the scratch,
 * whose rest is returned. */
char *open_programs(Item *t, char *scratch);
/* From here on pairs are those of query i of head h. */
void open_pairs(Item *t, int64_t h, int64_t i);
bool pair_kept(Item *t, int64_t j);
/* Every value of the score's graph for key j with score s. */
const double *pair_values(Values *v, int64_t j, float s);
/* What programs make of the masked scores of sub-block u: -inf excludes. */
void bend_scores(Item *t, int u, int64_t j, int n);

/* ---- slots ------------------------------------------------------------- */

static inline int64_t length(const Item *t, enum slot at) {
    return (int64_t)t->slot[at];
}

static inline float scalar(const Item *t, enum slot at) {
    return bits_to_f32((uint32_t)t->slot[at]);
}

static inline const void *pointer(const Item *t, enum slot at) {
    return (const void *)(uintptr_t)t->slot[at];
}

/* Row n of head h of the tensor whose strides follow each other from `stride`;
 * the seam through which every row is reached. */
static inline char *row_ptr(const Item *t, enum slot at, enum slot stride,
                            int64_t h, int64_t n) {
    int64_t e = h * length(t, stride + 1) + n * length(t, stride + 2);
    if (!t->spec->varlen)
        e += t->b * length(t, stride);
    return (char *)(uintptr_t)t->slot[at] + e * dtype_bytes(t->spec->dtype);
}

static inline int32_t int_at(const Item *t, enum slot at, int64_t i) {
    int32_t x;
    memcpy(&x, (const char *)pointer(t, at) + 4 * i, 4);
    return x;
}

static inline float float_at(const Item *t, enum slot at, int64_t i) {
    float x;
    memcpy(&x, (const char *)pointer(t, at) + 4 * i, 4);
    return x;
}

/* ---- elements ---------------------------------------------------------- */

static inline void load(int dtype, const char *from, int n,
                        float *restrict to) {
    uint16_t h;
    if (dtype == ATTNC_F32)
        memcpy(to, from, (size_t)n * 4);
    else if (dtype == ATTNC_F16)
        for (int c = 0; c < n; c++) {
            memcpy(&h, from + 2 * c, 2);
            to[c] = f16_to_f32(h);
        }
    else
        for (int c = 0; c < n; c++) {
            memcpy(&h, from + 2 * c, 2);
            to[c] = bf16_to_f32(h);
        }
}

static inline void store(int dtype, float x, char *to) {
    uint16_t h = dtype == ATTNC_F16 ? f32_to_f16(x) : f32_to_bf16(x);
    if (dtype == ATTNC_F32)
        memcpy(to, &x, 4);
    else
        memcpy(to, &h, 2);
}

/* ---- exp and tanh on lanes --------------------------------------------- */

static inline f4 pick(i4 yes, f4 x, f4 y) {
    return (f4)(((i4)x & yes) | ((i4)y & ~yes));
}

/* e^x for x <= 89: below 2^-126 it is 0, NaN stays NaN. Within 2^-22.8 of its
 * value: 2^n times a polynomial of degree 6 on |f| <= 1/2. */
static inline f4 exp4(f4 x) {
    const f4 magic = (f4){0} + 0x1.8p23f; /* rounds to an integer */
    f4 n = x * 0x1.715476p0f + magic;
    u4 bits = (u4)n;
    n -= magic;
    f4 f = (x - n * 0x1.62ep-1f) - n * 0x1.0bfbe8p-15f; /* ln 2 in two parts */
    f4 p = f * 0x1.6a231cp-10f + 0x1.123a8ep-7f;
    p = p * f + 0x1.5558f6p-5f;
    p = p * f + 0x1.555490p-3f;
    p = p * f + 0x1.fffffcp-2f;
    p = p * f + 1;
    p = p * f + 1;
    p *= (f4)((bits << 23) + (127u << 23));
    return pick(x < -87.33654f, (f4){0}, p);
}

/* An odd polynomial near 0, where 1 - 2 / (e^2x + 1) would cancel. */
static inline f4 tanh4(f4 x) {
    i4 sign = (i4)x & INT32_MIN;
    f4 a = (f4)((i4)x ^ sign), z = x * x;
    f4 p = z * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    f4 e = exp4(pick(a > 10, (f4){0} + 10, a) * 2);
    f4 far = (f4)((i4)(1 - 2 / (e + 1)) | sign);
    return pick(a < 0.625f, x + x * z * p, far);
}

/* ---- the item ---------------------------------------------------------- */

static inline int64_t add_sat(int64_t x, int64_t y) {
    int64_t sum;
    if (__builtin_add_overflow(x, y, &sum))
        return x < 0 ? INT64_MIN : INT64_MAX;
    return sum;
}

/* Which keys a row sees: the interval that every kind of mask is. */
static inline void keep(const Item *t, int64_t diagonal, int64_t *lo,
                        int64_t *hi) {
    int64_t next = add_sat(diagonal, 1), to = t->nk, from = 0;
    int64_t left = length(t, AT_mask_left), right = length(t, AT_mask_right);
    int64_t prefix = length(t, AT_mask_prefix);
    if (t->spec->mask == ATTNC_MASK_CAUSAL)
        to = next;
    else if (t->spec->mask == ATTNC_MASK_PREFIX)
        to = next > prefix ? next : prefix;
    else if (t->spec->mask == ATTNC_MASK_WINDOW) {
        if (__builtin_sub_overflow(diagonal, left, &from))
            from = left > 0 ? INT64_MIN : INT64_MAX;
        from = left == INT64_MAX ? 0 : from;
        to = right == INT64_MAX ? to : add_sat(next, right);
    }
    *lo = from < 0 ? 0 : from;
    *hi = to > t->nk ? t->nk : to;
    if (*hi <= *lo)
        *lo = *hi = 0;
}

/* The ALiBi paper's: 2^(-8 (h+1) / n) for the largest power of two n <= heads,
 * then every other one of the sequence for 2n. */
static inline float slope_of(const Item *t, int64_t h) {
    if (pointer(t, AT_slopes))
        return float_at(t, AT_slopes, h);
    int64_t n = 1;
    while (2 * n <= length(t, AT_heads))
        n *= 2;
    double e = h < n ? 8.0 * (double)(h + 1) / (double)n
                     : 4.0 * (double)(2 * (h - n) + 1) / (double)n;
    return (float)exp2(-e);
}

/* Lengths and offset of the item's batch entry or sequence; the offset of the
 * diagonal is returned. */
static inline int64_t open_entry(Item *t) {
    int64_t offset = length(t, AT_mask_offset);
    t->nq = length(t, AT_seqlen_q);
    t->nk = length(t, AT_seqlen_k);
    t->q0 = t->k0 = 0;
    if (t->spec->varlen) {
        t->q0 = int_at(t, AT_cu_seqlens_q, t->b);
        t->k0 = int_at(t, AT_cu_seqlens_k, t->b);
        t->nq = int_at(t, AT_cu_seqlens_q, t->b + 1) - t->q0;
        t->nk = int_at(t, AT_cu_seqlens_k, t->b + 1) - t->k0;
    }
    int64_t all = t->nk;
    if (t->spec->lens_k) {
        int32_t len = int_at(t, AT_lens_k, t->b);
        t->nk = len < t->nk ? len : t->nk;
        t->nk = t->nk < 0 ? 0 : t->nk;
    }
    if (length(t, AT_mask_offset_mode) == ATTNC_OFFSET_BR)
        offset = all - t->nq;
    else if (length(t, AT_mask_offset_mode) == ATTNC_OFFSET_LEN)
        offset = t->nk - t->nq;
    t->all = all;
    t->offset = offset;
    return offset;
}

/* Rows r0.. of the entry; false when it has none there. Idle lanes repeat the
 * last row. */
static inline bool open_rows(Item *t, int64_t r0, int64_t offset) {
    int64_t left = t->group * t->nq - r0;
    t->rows = (int)(left < ROWS ? left : ROWS);
    t->begin = t->nk;
    t->end = 0;
    for (int r = 0; r < ROWS && left > 0; r++) {
        int64_t n = r0 + (r < t->rows ? r : t->rows - 1);
        int64_t h = t->hk * t->group + n % t->group;
        int64_t diagonal = add_sat(n / t->group, offset);
        t->row[r] = n;
        keep(t, diagonal, &t->lo[r], &t->hi[r]);
        t->diagonal[r] = diagonal;
        t->slope[r] = t->spec->alibi ? slope_of(t, h) : 0;
        t->max[r] = t->spec->sink ? float_at(t, AT_sink, h) : -INFINITY;
        t->sum[r] = t->max[r] == -INFINITY ? 0 : 1;
        t->max[r] = t->max[r] == -INFINITY ? -FLT_MAX : t->max[r];
        if (t->lo[r] == t->hi[r])
            continue;
        t->begin = t->lo[r] < t->begin ? t->lo[r] : t->begin;
        t->end = t->hi[r] > t->end ? t->hi[r] : t->end;
    }
    return left > 0;
}

static inline void load_queries(Item *t) {
    float *row = t->s; /* 2 KEYS x LANES floats: any head_dim */
    for (int r = 0; r < ROWS; r++) {
        float *to = t->qt + (r / LANES * t->d) * LANES + r % LANES;
        int64_t h = t->hk * t->group + t->row[r] % t->group;
        load(t->spec->dtype,
             row_ptr(t, AT_q, AT_q_stride_b, h, t->q0 + t->row[r] / t->group),
             t->d, row);
        for (int c = 0; c < t->d; c++)
            to[c * LANES] = row[c];
    }
}

/* ---- one key block ----------------------------------------------------- */

static inline bool all_finite(const float *x, int n) {
    uint32_t special = 0;
    for (int c = 0; c < n; c++)
        special |= (f32_to_bits(x[c]) & 0x7f800000u) == 0x7f800000u;
    return !special;
}

/* Dense f32 copies of keys [j, j + n). Returns whether all of V is finite. */
static inline bool load_block(Item *t, int64_t j, int n) {
    bool finite = true;
    for (int r = 0; r < n; r++) {
        float *v = t->v + r * t->dv4;
        load(t->spec->dtype,
             row_ptr(t, AT_k, AT_k_stride_b, t->hk, t->k0 + j + r), t->d,
             t->k + r * t->d);
        load(t->spec->dtype,
             row_ptr(t, AT_v, AT_v_stride_b, t->hk, t->k0 + j + r), t->dv, v);
        memset(v + t->dv, 0, (size_t)(t->dv4 - t->dv) * 4);
        finite = all_finite(v, t->dv) && finite;
    }
    return finite;
}

/* S^T = K Q^T or dP^T = V dO^T for one sub-block, 4 keys at a time; rows are
 * `pitch` apart and d long; those of a last group beyond n are stale and never
 * read. */
static inline void dots(const float *rows, int pitch, int d, const float *qt,
                        int n, float *s) {
    for (int r = 0; r < n; r += 4) {
        const float *k = rows + r * pitch;
        f4 a[4][2];
        for (int x = 0; x < 4; x++)
            a[x][0] = a[x][1] = (f4){0};
        for (int c = 0; c < d; c++) {
            f4 q0 = *(const f4 *)(qt + c * LANES);
            f4 q1 = *(const f4 *)(qt + c * LANES + HALF);
            for (int x = 0; x < 4; x++) {
                a[x][0] += k[x * pitch + c] * q0;
                a[x][1] += k[x * pitch + c] * q1;
            }
        }
        memcpy(s + r * LANES, a, sizeof(a));
    }
}

/* Dot products to scores, before the mask, for the rows of sub-block u. */
static inline void score(Item *t, int u, int64_t j, int n) {
    for (int half = 0; half < LANES; half += HALF) {
        int lane = u * LANES + half;
        f4 slope, far;
        for (int x = 0; x < HALF; x++) {
            slope[x] = t->slope[lane + x];
            far[x] = (float)add_sat(t->diagonal[lane + x], -j);
        }
        for (int r = 0; r < n; r++) {
            f4 *s = (f4 *)(t->s + r * LANES + half), x = *s * t->scale;
            if (t->spec->softcap) {
                f4 bent = tanh4(x / t->cap);
                x = t->cap * bent;
                if (t->bend)
                    *(f4 *)(t->bend + r * LANES + half) = 1 - bent * bent;
            }
            f4 gap = far - (float)r;
            if (t->spec->alibi)
                x -= slope * (f4)((i4)gap & INT32_MAX);
            *s = x;
        }
    }
}

/* Excludes what a row does not see. */
static inline void mask(Item *t, int u, int64_t j, int n) {
    for (int x = 0; x < LANES; x++) {
        int64_t lo = t->lo[u * LANES + x] - j, hi = t->hi[u * LANES + x] - j;
        for (int r = 0; r < n; r++)
            if (r < lo || r >= hi)
                t->s[r * LANES + x] = -INFINITY;
    }
}

static inline void open_dropout(Item *t) {
    const uint64_t *s = t->slot;
    t->grow = t->spec->dropout ? scalar(t, AT_dropout_scale) : 1;
    t->drop =
        (Dropout){s[AT_dropout_seed], (uint32_t)s[AT_dropout_offset],
                  (uint32_t)s[AT_dropout_threshold],
                  (uint32_t)s[AT_dropout_first], (uint32_t)s[AT_dropout_heads]};
}

/* The item's spec and numbers; its place among `blocks` a kv head is in *block.
 * The offset of the diagonal is returned. */
static inline int64_t open_item(Item *t, const uint64_t *args, int64_t item,
                                int64_t blocks, int64_t *block) {
    *t = (Item){.slot = args};
    t->spec = pointer(t, AT_spec);
    t->d = t->spec->head_dim;
    t->dv = t->spec->head_dim_v ? t->spec->head_dim_v : t->d;
    t->dv4 = (t->dv + 3) / 4 * 4;
    t->scale = scalar(t, AT_scale);
    t->cap = scalar(t, AT_softcap);
    open_dropout(t);
    int64_t kv_heads = length(t, AT_kv_heads);
    t->group = length(t, AT_heads) / kv_heads;
    t->hk = item / blocks % kv_heads;
    t->b = item / blocks / kv_heads;
    *block = item % blocks;
    return open_entry(t);
}

/* Blocks of query rows of a kv head. */
static inline int64_t row_blocks(const uint64_t *args) {
    Item t = {.slot = args};
    int64_t group = length(&t, AT_heads) / length(&t, AT_kv_heads);
    return (group * length(&t, AT_seqlen_q) + ROWS - 1) / ROWS;
}

#endif
