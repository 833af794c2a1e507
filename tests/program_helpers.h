/* SPDX-License-Identifier: Apache-2.0
 * The helpers that printed programs call, in plain C: what each means, for
 * scalars and for eight lanes. Included by the C that unit_program_c.c
 * compiles, with exact f32 functions. */
typedef long long i64;
typedef float vec __attribute__((vector_size(32)));
typedef int ivec __attribute__((vector_size(32)));
typedef unsigned uvec __attribute__((vector_size(32)));
enum { LANES = 8 };

double exp(double), log(double), tanh(double), floor(double);

/* An element is at[sum of index * step], 0 outside. */
struct tensor {
    const void *at;
    i64 n[4], step[4];
};

#define EACH(type, call)                                                       \
    type r;                                                                    \
    for (int lane = 0; lane < LANES; lane++)                                   \
        r[lane] = call;                                                        \
    return r;

/* ---- int --------------------------------------------------------------- */

static inline int wrap_add(int a, int b) {
    return (int)((unsigned)a + (unsigned)b);
}
static inline int wrap_sub(int a, int b) {
    return (int)((unsigned)a - (unsigned)b);
}
static inline int wrap_mul(int a, int b) {
    return (int)((unsigned)a * (unsigned)b);
}
static inline int wrap_neg(int a) {
    return (int)(0 - (unsigned)a);
}
static inline int div_i32(int a, int b) {
    return b == 0 ? 0 : b == -1 ? wrap_neg(a) : a / b;
}
static inline int mod_i32(int a, int b) {
    return b == 0 || b == -1 ? 0 : a % b;
}
static inline int shl_i32(int a, int b) {
    return (int)((unsigned)a << (b & 31));
}
static inline int min_i32(int a, int b) {
    return a < b ? a : b;
}
static inline int max_i32(int a, int b) {
    return a > b ? a : b;
}
static inline int abs_i32(int a) {
    return a < 0 ? wrap_neg(a) : a;
}
static inline ivec splat_i32(int a) {
    return (ivec){0} + a;
}
static inline ivec splat_bool(int a) {
    return (ivec){0} - a;
}
static inline ivec wrap_add_lanes(ivec a, ivec b) {
    return (ivec)((uvec)a + (uvec)b);
}
static inline ivec wrap_sub_lanes(ivec a, ivec b) {
    return (ivec)((uvec)a - (uvec)b);
}
static inline ivec wrap_mul_lanes(ivec a, ivec b) {
    return (ivec)((uvec)a * (uvec)b);
}
static inline ivec wrap_neg_lanes(ivec a) {
    return (ivec)((uvec){0} - (uvec)a);
}
static inline ivec div_lanes(ivec a, ivec b) {
    EACH(ivec, div_i32(a[lane], b[lane]))
}
static inline ivec mod_lanes(ivec a, ivec b) {
    EACH(ivec, mod_i32(a[lane], b[lane]))
}
static inline ivec shl_lanes(ivec a, ivec b) {
    return (ivec)((uvec)a << ((uvec)b & 31));
}
static inline ivec select_lanes_i32(ivec mask, ivec a, ivec b) {
    return (mask & a) | (~mask & b);
}
static inline ivec min_lanes_i32(ivec a, ivec b) {
    return select_lanes_i32(a < b, a, b);
}
static inline ivec max_lanes_i32(ivec a, ivec b) {
    return select_lanes_i32(a > b, a, b);
}
static inline ivec abs_lanes_i32(ivec a) {
    return select_lanes_i32(a < 0, wrap_neg_lanes(a), a);
}

/* ---- float ------------------------------------------------------------- */

static inline float less_f32(float a, float b) {
    return a < b ? a : b;
}
static inline float more_f32(float a, float b) {
    return a > b ? a : b;
}
static inline float size_f32(float a) {
    return a < 0 ? -a : a;
}
static inline float exp_f32(float a) {
    return (float)exp(a);
}
static inline float log_f32(float a) {
    return (float)log(a);
}
static inline float tanh_f32(float a) {
    return (float)tanh(a);
}
static inline float floor_f32(float a) {
    return (float)floor(a);
}
static inline int to_i32(float a) {
    if (a != a)
        return 0;
    if (a >= 2147483648.0f)
        return 2147483647;
    return a <= -2147483648.0f ? -2147483647 - 1 : (int)a;
}
static inline vec splat_f32(float a) {
    return a - (vec){0};
}
static inline vec select_lanes(ivec mask, vec a, vec b) {
    return (vec)((mask & (ivec)a) | (~mask & (ivec)b));
}
static inline vec less_lanes(vec a, vec b) {
    return select_lanes(a < b, a, b);
}
static inline vec more_lanes(vec a, vec b) {
    return select_lanes(a > b, a, b);
}
static inline vec size_lanes(vec a) {
    return select_lanes(a < 0, -a, a);
}
static inline vec exp_lanes(vec a) {
    EACH(vec, exp_f32(a[lane]))
}
static inline vec log_lanes(vec a) {
    EACH(vec, log_f32(a[lane]))
}
static inline vec tanh_lanes(vec a) {
    EACH(vec, tanh_f32(a[lane]))
}
static inline vec floor_lanes(vec a) {
    EACH(vec, floor_f32(a[lane]))
}
static inline ivec to_i32_lanes(vec a) {
    EACH(ivec, to_i32(a[lane]))
}
static inline vec to_f32_lanes(ivec a) {
    return __builtin_convertvector(a, vec);
}

/* ---- tensors ----------------------------------------------------------- */

static inline i64 place(const struct tensor *t, int rank, const int *index) {
    i64 at = 0;
    for (int i = 0; i < rank; i++) {
        if (index[i] < 0 || index[i] >= t->n[i])
            return -1;
        at += index[i] * t->step[i];
    }
    return at;
}

static inline float half_f32(unsigned u) {
    union {
        unsigned u;
        float f;
    } x = {(u & 0x7fff) << 13};
    x.f *= 0x1p112f; /* no infinities here */
    return u >> 15 ? -x.f : x.f;
}

#define F32(at, i) ((const float *)at)[i]
#define F16(at, i) half_f32(((const unsigned short *)at)[i])
#define I32(at, i) ((const int *)at)[i]
#define BOOL(at, i) (((const unsigned char *)at)[i] != 0)
#define BITS(at, i) (((const unsigned *)at)[i / 32] >> i % 32 & 1)

/* TRUE: 1, or of lanes -1. */
#define READS(name, type, lanes, load, TRUE)                                   \
    static inline type read_##name##_0(const struct tensor *t) {               \
        return load(t->at, 0);                                                 \
    }                                                                          \
    static inline type read_##name##_1(const struct tensor *t, int i) {        \
        i64 at = place(t, 1, &i);                                              \
        return at < 0 ? 0 : load(t->at, at);                                   \
    }                                                                          \
    static inline type read_##name##_2(const struct tensor *t, int i, int j) { \
        i64 at = place(t, 2, (int[]){i, j});                                   \
        return at < 0 ? 0 : load(t->at, at);                                   \
    }                                                                          \
    static inline type read_##name##_3(const struct tensor *t, int i, int j,   \
                                       int k) {                                \
        i64 at = place(t, 3, (int[]){i, j, k});                                \
        return at < 0 ? 0 : load(t->at, at);                                   \
    }                                                                          \
    static inline lanes read_##name##_lanes_1(const struct tensor *t,          \
                                              ivec i) {                        \
        EACH(lanes, TRUE *read_##name##_1(t, i[lane]))                         \
    }                                                                          \
    static inline lanes read_##name##_lanes_2(const struct tensor *t, ivec i,  \
                                              ivec j) {                        \
        EACH(lanes, TRUE *read_##name##_2(t, i[lane], j[lane]))                \
    }                                                                          \
    static inline lanes read_##name##_lanes_3(const struct tensor *t, ivec i,  \
                                              ivec j, ivec k) {                \
        EACH(lanes, TRUE *read_##name##_3(t, i[lane], j[lane], k[lane]))       \
    }
READS(f32, float, vec, F32, 1)
READS(f16, float, vec, F16, 1)
READS(i32, int, ivec, I32, 1)
READS(bool, int, ivec, BOOL, -1)
READS(bits, int, ivec, BITS, -1)

/* ---- loop bounds ------------------------------------------------------- */

/* Cuts [*lo, *hi) down to the keys k for which k_mul * k + rest <= 0. */
static inline void cut_keys(i64 k_mul, i64 rest, i64 *lo, i64 *hi) {
    i64 by = k_mul < 0 ? -k_mul : k_mul;
    if (!by) {
        if (rest > 0)
            *hi = *lo;
        return;
    }
    i64 at = -rest / by - (-rest % by < 0); /* rounded down */
    if (k_mul > 0)
        *hi = at + 1 < *hi ? at + 1 : *hi;
    else
        *lo = -at > *lo ? -at : *lo;
}

/* [*lo, *hi) grows to hold [begin, end), too. */
static inline void join_keys(i64 begin, i64 end, i64 *lo, i64 *hi) {
    if (begin >= end)
        return;
    int first = *lo == *hi;
    *lo = first || begin < *lo ? begin : *lo;
    *hi = first || end > *hi ? end : *hi;
}

/* ---- ranges of a tile -------------------------------------------------- */

struct range {
    int lo, hi;
};

static inline i64 least(i64 a, i64 b) {
    return a < b ? a : b;
}
static inline i64 most(i64 a, i64 b) {
    return a > b ? a : b;
}
static inline i64 size(i64 a) {
    return a < 0 ? -a : a;
}
static inline struct range range_of(int lo, int hi) {
    return (struct range){lo, hi};
}
static inline struct range range_any(void) {
    return range_of(-2147483647 - 1, 2147483647);
}
/* Beyond int32 anything may come back. */
static inline struct range range_fit(i64 lo, i64 hi) {
    return lo < -2147483648LL || hi > 2147483647LL ? range_any()
                                                   : range_of(lo, hi);
}
static inline struct range range_add(struct range a, struct range b) {
    return range_fit((i64)a.lo + b.lo, (i64)a.hi + b.hi);
}
static inline struct range range_sub(struct range a, struct range b) {
    return range_fit((i64)a.lo - b.hi, (i64)a.hi - b.lo);
}
static inline struct range range_mul(struct range a, struct range b) {
    i64 w = (i64)a.lo * b.lo, x = (i64)a.lo * b.hi;
    i64 y = (i64)a.hi * b.lo, z = (i64)a.hi * b.hi;
    return range_fit(least(least(w, x), least(y, z)),
                     most(most(w, x), most(y, z)));
}
static inline struct range range_neg(struct range a) {
    return range_fit(-(i64)a.hi, -(i64)a.lo);
}
/* A divisor of 0 gives 0. */
static inline struct range range_div(struct range a, struct range b) {
    i64 lo = 0, hi = 0;
    int any = b.lo <= 0 && b.hi >= 0;
    for (int side = 0; side < 2; side++) {
        i64 from = side ? most(b.lo, 1) : b.lo;
        i64 to = side ? b.hi : least(b.hi, -1);
        if (from > to)
            continue;
        i64 w = a.lo / from, x = a.lo / to, y = a.hi / from, z = a.hi / to;
        i64 low = least(least(w, x), least(y, z));
        i64 high = most(most(w, x), most(y, z));
        lo = any ? least(lo, low) : low;
        hi = any ? most(hi, high) : high;
        any = 1;
    }
    return range_fit(lo, hi);
}
static inline struct range range_mod(struct range a, struct range b) {
    i64 top = most(size(b.lo), size(b.hi));
    i64 low = b.lo <= 0 && b.hi >= 0 ? 0 : least(size(b.lo), size(b.hi));
    if (!top)
        return range_of(0, 0);
    if (low > most(size(a.lo), size(a.hi)))
        return a;
    if (top == low && a.lo / top == a.hi / top)
        return range_of(a.lo % top, a.hi % top);
    return range_of(a.lo < 0 ? -least(top - 1, -(i64)a.lo) : 0,
                    a.hi > 0 ? least(top - 1, a.hi) : 0);
}
static inline struct range range_shl(struct range a, struct range b) {
    if (a.lo == a.hi && b.lo == b.hi)
        return range_of(shl_i32(a.lo, b.lo), shl_i32(a.lo, b.lo));
    if (b.lo != b.hi || b.lo < 0 || b.lo > 31)
        return range_any();
    return range_fit(a.lo * (1LL << b.lo), a.hi * (1LL << b.lo));
}
static inline struct range range_shr(struct range a, struct range b) {
    if (b.lo == b.hi)
        return range_of(a.lo >> (b.lo & 31), a.hi >> (b.lo & 31));
    return range_of(a.lo < 0 ? a.lo : 0, a.hi < 0 ? -1 : a.hi);
}
static inline struct range range_lt(struct range a, struct range b) {
    return range_of(a.hi < b.lo, a.lo < b.hi);
}
static inline struct range range_le(struct range a, struct range b) {
    return range_of(a.hi <= b.lo, a.lo <= b.hi);
}
static inline struct range range_eq(struct range a, struct range b) {
    return range_of(a.lo == a.hi && b.lo == b.hi && a.lo == b.lo,
                    a.hi >= b.lo && b.hi >= a.lo);
}
static inline struct range range_not(struct range a) {
    return range_of(!a.hi, !a.lo);
}
static inline struct range range_ne(struct range a, struct range b) {
    return range_not(range_eq(a, b));
}
static inline struct range range_and(struct range a, struct range b) {
    return range_of(a.lo & b.lo, a.hi & b.hi);
}
static inline struct range range_or(struct range a, struct range b) {
    return range_of(a.lo | b.lo, a.hi | b.hi);
}
/* 2^n - 1 that covers x >= 0. */
static inline int bits_below(int x) {
    x |= x >> 1;
    x |= x >> 2;
    x |= x >> 4;
    x |= x >> 8;
    return x | x >> 16;
}
static inline struct range range_bit_and(struct range a, struct range b) {
    if (a.lo == a.hi) {
        struct range c = a;
        a = b;
        b = c;
    }
    if (b.lo == b.hi && a.lo == a.hi)
        return range_of(a.lo & b.lo, a.lo & b.lo);
    if (b.lo == b.hi && b.lo >= 0 && bits_below(b.lo) == b.lo &&
        (a.lo & ~b.lo) == (a.hi & ~b.lo)) /* as a modulo 2^n */
        return range_of(a.lo & b.lo, a.hi & b.lo);
    if (a.lo < 0 && b.lo < 0)
        return range_any();
    return range_of(0, a.lo < 0 ? b.hi : b.lo < 0 ? a.hi : least(a.hi, b.hi));
}
static inline struct range range_bit_or(struct range a, struct range b) {
    if (a.lo == a.hi && b.lo == b.hi)
        return range_of(a.lo | b.lo, a.lo | b.lo);
    if (a.lo < 0 || b.lo < 0)
        return range_any();
    return range_of(most(a.lo, b.lo), bits_below(most(a.hi, b.hi)));
}
static inline struct range range_bit_xor(struct range a, struct range b) {
    if (a.lo == a.hi && b.lo == b.hi)
        return range_of(a.lo ^ b.lo, a.lo ^ b.lo);
    if (a.lo < 0 || b.lo < 0)
        return range_any();
    /* Bits above the first in which the ends of a range differ are fixed. */
    int open = bits_below((a.lo ^ a.hi) | (b.lo ^ b.hi));
    return range_of((a.lo ^ b.lo) & ~open, (a.lo ^ b.lo) | open);
}
static inline struct range range_bit_not(struct range a) {
    return range_of(~a.hi, ~a.lo);
}
static inline struct range range_min(struct range a, struct range b) {
    return range_of(least(a.lo, b.lo), least(a.hi, b.hi));
}
static inline struct range range_max(struct range a, struct range b) {
    return range_of(most(a.lo, b.lo), most(a.hi, b.hi));
}
static inline struct range range_abs(struct range a) {
    if (a.lo >= 0)
        return a;
    return range_fit(a.hi >= 0 ? 0 : -(i64)a.hi, most(-(i64)a.lo, a.hi));
}
static inline struct range range_select(struct range c, struct range a,
                                        struct range b) {
    if (c.lo)
        return a;
    return c.hi ? range_of(least(a.lo, b.lo), most(a.hi, b.hi)) : b;
}

/* All elements in a box of indices; one step outside stands for all. */
#define RANGE_READS(name)                                                      \
    static inline struct range range_read_##name##_1(const struct tensor *t,   \
                                                     struct range i) {         \
        struct range r = {2147483647, -2147483647 - 1};                        \
        for (i64 x = most(i.lo, -1); x <= least(i.hi, t->n[0]); x++) {         \
            int y = read_##name##_1(t, x);                                     \
            r = range_of(least(r.lo, y), most(r.hi, y));                       \
        }                                                                      \
        return r.lo > r.hi ? range_of(0, 0) : r;                               \
    } static inline struct range range_read_##name##_2(                        \
        const struct tensor *t, struct range i, struct range j) {              \
        struct range r = {2147483647, -2147483647 - 1};                        \
        for (i64 x = most(i.lo, -1); x <= least(i.hi, t->n[0]); x++) {         \
            for (i64 z = most(j.lo, -1); z <= least(j.hi, t->n[1]); z++) {     \
                int y = read_##name##_2(t, x, z);                              \
                r = range_of(least(r.lo, y), most(r.hi, y));                   \
            }                                                                  \
        }                                                                      \
        return r.lo > r.hi ? range_of(0, 0) : r;                               \
    }
RANGE_READS(i32)
RANGE_READS(bool)
RANGE_READS(bits)
