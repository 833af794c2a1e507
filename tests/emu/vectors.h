/* SPDX-License-Identifier: Apache-2.0
 * Golden vectors of the primitives: what one warp gets for inputs made from a
 * number. A GPU writes them to a file, the emulated device is held to it. */
#ifndef TEST_EMU_VECTORS_H
#define TEST_EMU_VECTORS_H

#include "kernel.h"

#include <jansson.h>
#include <math.h>

enum { WARP = 32, WORDS_IN = 16, WORDS_OUT = 8, CASES = 4 };
#define VECTORS_TEXT "vectors.cu.h"
#define VECTORS_FILE "tests/emu/vectors.json"

/* What the inputs are, and how results are compared. */
enum vector_input {
    BITS,
    FLOATS,
    F16_INT,
    F16_REAL,
    BF16_INT,
    BF16_REAL,
    TF32_INT,
    TF32_REAL
};
enum vector_rule {
    EXACT,
    NUMBERS, /* exact, but one NaN is as good as another */
    CLOSE,   /* 2^-21 of it and 2^-21: the approximate functions */
    SUMS     /* 1e-4: tensor cores round sums as they like */
};

/* X(entry, case's input, rule, first arch, words compared) */
#define VECTOR_LIST(X)                                                         \
    X(shared, BITS, EXACT, 750, 8)                                             \
    X(shared_parts, BITS, EXACT, 750, 4)                                       \
    X(global, BITS, EXACT, 750, 8)                                             \
    X(cp_async, BITS, EXACT, 800, 8)                                           \
    X(cp_async_ca, BITS, EXACT, 800, 4)                                        \
    X(shuffle, BITS, EXACT, 750, 6)                                            \
    X(vote, BITS, EXACT, 750, 3)                                               \
    X(ldmatrix_x1, BITS, EXACT, 750, 1)                                        \
    X(ldmatrix_x2, BITS, EXACT, 750, 2)                                        \
    X(ldmatrix_x4, BITS, EXACT, 750, 4)                                        \
    X(ldmatrix_x1_trans, BITS, EXACT, 750, 1)                                  \
    X(ldmatrix_x2_trans, BITS, EXACT, 750, 2)                                  \
    X(ldmatrix_x4_trans, BITS, EXACT, 750, 4)                                  \
    X(mma_m16n8k8_f16, F16_INT, EXACT, 750, 4)                                 \
    X(mma_m16n8k8_f16, F16_REAL, SUMS, 750, 4)                                 \
    X(mma_m16n8k16_f16, F16_INT, EXACT, 800, 4)                                \
    X(mma_m16n8k16_f16, F16_REAL, SUMS, 800, 4)                                \
    X(mma_m16n8k16_bf16, BF16_INT, EXACT, 800, 4)                              \
    X(mma_m16n8k16_bf16, BF16_REAL, SUMS, 800, 4)                              \
    X(mma_m16n8k8_tf32, TF32_INT, EXACT, 800, 4)                               \
    X(mma_m16n8k8_tf32, TF32_REAL, SUMS, 800, 4)                               \
    X(convert, FLOATS, EXACT, 750, 6)                                          \
    X(tf32, FLOATS, EXACT, 800, 1)                                             \
    X(choose, FLOATS, NUMBERS, 750, 4)                                         \
    X(exponential, FLOATS, CLOSE, 750, 1)                                      \
    X(logarithm, FLOATS, CLOSE, 750, 1)                                        \
    X(reciprocal, FLOATS, CLOSE, 750, 1)

typedef struct Vector {
    const char *entry, *name; /* "v_tf32", "tf32 FLOATS" */
    int input, rule, arch, words;
} Vector;
static const Vector vectors[] = {
#define X(entry, input, rule, arch, words)                                     \
    {"v_" #entry, #entry " " #input, input, rule, arch, words},
    VECTOR_LIST(X)
#undef X
};
enum { VECTORS = sizeof vectors / sizeof *vectors };

typedef struct VectorIn {
    u32 word[WARP][WORDS_IN];
} VectorIn;
typedef struct VectorOut {
    u32 word[WARP][WORDS_OUT];
} VectorOut;

/* ---- inputs ----------------------------------------------------------- */

/* splitmix64: the file holds results only, so this must never change. */
static inline u32 vector_random(u64 *state) {
    u64 z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return (u32)(z >> 32 ^ z);
}

static inline u32 vector_bits(float x) {
    u32 u;
    memcpy(&u, &x, 4);
    return u;
}

/* -8 .. 8, or as good as normal. */
static inline float vector_number(u64 *state, bool whole) {
    float sum = -3;
    if (whole)
        return (float)(int)(vector_random(state) % 17) - 8;
    for (int i = 0; i < 6; i++)
        sum += (float)(vector_random(state) >> 8) * 0x1p-24f;
    return sum * 1.4142135f;
}

/* Numbers of every size, and what is none. */
static inline u32 vector_float(u64 *state) {
    static const u32 odd[] = {0,          0x80000000, 0x7f800000, 0xff800000,
                              0x7fffffff, 1,          0x807fffff, 0x3f800000,
                              0x477ff000, 0x33000000, 0x3f801000, 0xbf803000};
    u32 kind = vector_random(state) % 8, bits = vector_random(state);
    if (kind == 0)
        return odd[bits % (sizeof odd / sizeof *odd)];
    if (kind < 5) /* of moderate size */
        return vector_bits(vector_number(state, false) *
                           (float)(1 << bits % 8));
    return (bits & 0x7f800000) == 0x7f800000 ? 0x3fc00000 : bits;
}

static inline u32 vector_word(int input, int at, u64 *state) {
    bool whole = input == F16_INT || input == BF16_INT || input == TF32_INT;
    if (input == BITS)
        return vector_random(state);
    if (input == FLOATS)
        return vector_float(state);
    float x = vector_number(state, whole), y = vector_number(state, whole);
    if (at >= 6) /* accumulators */
        return vector_bits(x);
    if (input == TF32_INT || input == TF32_REAL)
        return vector_bits(x) & 0xffffe000u;
    if (input == F16_INT || input == F16_REAL)
        return half_of_float(x) | (u32)half_of_float(y) << 16;
    return vector_bits(x) >> 16 | (vector_bits(y) & 0xffff0000u);
}

static inline VectorIn vector_input(const Vector *v, int number) {
    VectorIn in;
    u64 state = (u64)number * 1000003 + (u64)v->input;
    for (int l = 0; l < WARP; l++)
        for (int i = 0; i < WORDS_IN; i++)
            in.word[l][i] = vector_word(v->input, i, &state);
    return in;
}

/* ---- on the emulated device -------------------------------------------- */

static inline VectorOut vector_emulate(const Vector *v, const Loaded *k,
                                       int number) {
    VectorIn in = vector_input(v, number);
    VectorOut out;
    struct {
        const u32 *in;
        u32 *out;
    } args = {in.word[0], out.word[0]};
    EmuConfig config = {.seed = (u64)number, number % 3, .race = true};
    EmuReport r = {0};
    Emu *e = emu_create();
    EmuEntry entry = (EmuEntry)(uintptr_t)dlsym(k->handle, v->entry);
    assert_non_null(e);
    assert_non_null(entry);
    emu_buffer(e, &in, sizeof in, "in", EMU_READ);
    emu_buffer(e, &out, sizeof out, "out", EMU_WRITE_ONCE);
    assert_int_equal(emu_launch(e, &config, entry, &args, (EmuDim){1, 1, 1},
                                (EmuDim){WARP, 1, 1}, WARP * 16, &r),
                     0);
    expect_no_fault(&r);
    emu_report_free(&r);
    emu_destroy(e);
    return out;
}

/* ---- the file ----------------------------------------------------------- */

/* {"chip", "arch", "by", "vectors": {NAME: [one text for each case]}}: words
 * of 8 hex digits, those of lane 0 first. */
static inline json_t *vector_json(const Vector *v, const VectorOut *out) {
    char text[WARP * WORDS_OUT * 8 + 1];
    int n = 0;
    for (int l = 0; l < WARP; l++)
        for (int i = 0; i < v->words; i++)
            n += sprintf(text + n, "%08x", out->word[l][i]);
    return json_string(text);
}

static inline bool vector_parse(const Vector *v, const char *text,
                                VectorOut *out) {
    if (!text || strlen(text) != (size_t)(WARP * v->words * 8))
        return false;
    for (int l = 0; l < WARP; l++)
        for (int i = 0; i < v->words; i++, text += 8)
            if (sscanf(text, "%8x", &out->word[l][i]) != 1)
                return false;
    return true;
}

static inline bool vector_same(int rule, u32 got, u32 want) {
    float x, y;
    memcpy(&x, &got, 4);
    memcpy(&y, &want, 4);
    if (got == want || (rule != EXACT && x != x && y != y))
        return true;
    double off = fabs((double)x - (double)y);
    return rule == CLOSE  ? off <= 0x1p-21 * (fabs((double)y) + 1)
           : rule == SUMS ? off <= 1e-4
                          : false;
}

/* Words of the emulated device that are not the file's; -1: not in the file. */
static inline int vector_compare(const Vector *v, const Loaded *k, int number,
                                 const json_t *file, bool tell) {
    const json_t *all =
        json_object_get(json_object_get(file, "vectors"), v->name);
    VectorOut want, got;
    int wrong = 0;
    if (!vector_parse(v, json_string_value(json_array_get(all, (size_t)number)),
                      &want))
        return -1;
    got = vector_emulate(v, k, number);
    for (int l = 0; l < WARP; l++)
        for (int i = 0; i < v->words; i++) {
            if (vector_same(v->rule, got.word[l][i], want.word[l][i]))
                continue;
            if (tell && !wrong++)
                print_message("%s, case %d, lane %d, word %d: emulated %08x, "
                              "recorded %08x\n",
                              v->name, number, l, i, got.word[l][i],
                              want.word[l][i]);
            wrong += !tell;
        }
    return wrong;
}

#endif
