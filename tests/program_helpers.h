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
        EACH(lanes, TRUE * read_##name##_1(t, i[lane]))                        \
    }                                                                          \
    static inline lanes read_##name##_lanes_2(const struct tensor *t, ivec i,  \
                                              ivec j) {                        \
        EACH(lanes, TRUE * read_##name##_2(t, i[lane], j[lane]))               \
    }                                                                          \
    static inline lanes read_##name##_lanes_3(const struct tensor *t, ivec i,  \
                                              ivec j, ivec k) {                \
        EACH(lanes, TRUE * read_##name##_3(t, i[lane], j[lane], k[lane]))      \
    }
READS(f32, float, vec, F32, 1)
READS(f16, float, vec, F16, 1)
READS(i32, int, ivec, I32, 1)
READS(bool, int, ivec, BOOL, -1)

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
