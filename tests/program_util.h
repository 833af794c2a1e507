/* SPDX-License-Identifier: Apache-2.0
 * What the tests of programs share: parsing that must succeed, random
 * programs, tensors for them to read. */
#ifndef PROGRAM_UTIL_H
#define PROGRAM_UTIL_H

#include <math.h>

#include "fuzz/program_random.h"
#include "gen_util.h"

static inline Program program(const char *text, int kind) {
    Program p;
    Err e = {0};
    if (program_parse(text, kind, NULL, 0, &p, &e))
        fail_msg("%s", e.text);
    return p;
}

static inline char *canonical(const Program *p) {
    Str s = {0};
    program_print(p, &s);
    assert_false(s.bad);
    return s.text;
}

/* ---- conditions that are linear in q and k ----------------------------- */

static inline void random_line(uint64_t *seed, Str *out) {
    static const char *const free_of_qk[] = {"off", "len[b]", "h * 3",     "nk",
                                             "7",   "0 - b",  "len[b] - h"};
    switch (below(seed, 4)) {
    case 0:
        str_addf(out, "k");
        break;
    case 1:
        str_addf(out, "%d * k + %s", below(seed, 7) - 3,
                 free_of_qk[below(seed, 7)]);
        break;
    case 2:
        str_addf(out, "q - k * %d", below(seed, 3));
        break;
    default:
        str_addf(out, "%d * q + %s - (k - q)", below(seed, 5) - 2,
                 free_of_qk[below(seed, 7)]);
    }
}

static inline void random_lines(uint64_t *seed, int depth, Str *out) {
    static const char *const compare[] = {"<", "<=", ">", ">=", "=="};
    static const char *const call[] = {"", "abs", "min", "max"};
    str_addf(out, "(");
    if (depth && below(seed, 3)) {
        str_addf(out, below(seed, 4) ? "" : "!");
        random_lines(seed, depth - 1, out);
        str_addf(out, below(seed, 3) ? " && " : " || ");
        random_lines(seed, depth - 1, out);
    } else {
        int which = below(seed, 8);
        which = which < 4 ? which : 0;
        str_addf(out, "%s(", call[which]);
        random_line(seed, out);
        if (which > 1) {
            str_addf(out, ", ");
            random_line(seed, out);
        }
        str_addf(out, ") %s ", compare[below(seed, 5)]);
        random_line(seed, out);
    }
    str_addf(out, ")");
}

/* ---- tensors ----------------------------------------------------------- */

/* Lengths of the sequences the random tensors are for. */
enum { MANY_B = 2, MANY_H = 3, MANY_Q = 24, MANY_K = 29 };

typedef struct Data {
    int32_t doc[MANY_B * MANY_K], len[MANY_B];
    float slope[MANY_H], bias[MANY_H * MANY_Q * MANY_K];
    uint16_t row[MANY_K];
    uint8_t on[MANY_Q * 5];
    uint32_t lit[MANY_Q * 2];
    ProgramArray array[RANDOM_ARRAYS];
} Data;

static inline void data_fill(Data *d, uint64_t *seed) {
    uint64_t lit = *seed;
    for (int i = 0; i < MANY_B * MANY_K; i++)
        d->doc[i] = i % MANY_K / (3 + below(seed, 3));
    for (int i = 0; i < MANY_B; i++)
        d->len[i] = below(seed, MANY_K);
    for (int i = 0; i < MANY_H; i++)
        d->slope[i] = (float)below(seed, 64) / 16 - 2;
    for (int i = 0; i < MANY_H * MANY_Q * MANY_K; i++)
        d->bias[i] = (float)below(seed, 4096) / 512 - 4;
    for (int i = 0; i < MANY_K; i++) /* 0.5 to 2 in eighths, as f16 */
        d->row[i] = (uint16_t)(0x3800 + 0x80 * below(seed, 16));
    for (int i = 0; i < MANY_Q * 5; i++)
        d->on[i] = below(seed, 3) != 0;
    for (int i = 0; i < MANY_Q * 2; i++) /* rows of many and of few */
        d->lit[i] = i % 3 ? roll(&lit) & roll(&lit) : roll(&lit) | roll(&lit);
    const ProgramArray array[RANDOM_ARRAYS] = {
        {d->doc, ARRAY_I32, {MANY_B, MANY_K}, {MANY_K, 1}},
        {d->len, ARRAY_I32, {MANY_B}, {1}},
        {d->slope, ARRAY_F32, {MANY_H}, {1}},
        {d->bias,
         ARRAY_F32,
         {MANY_H, MANY_Q, MANY_K},
         {MANY_Q * MANY_K, MANY_K, 1}},
        {d->row, ARRAY_F16, {MANY_K}, {1}},
        {d->on, ARRAY_BOOL, {MANY_Q, 5}, {5, 1}},
        {d->lit, ARRAY_BITS, {MANY_Q, 43}, {64, 1}},
    };
    memcpy(d->array, array, sizeof array);
}

/* Places of a pair in the sequences above; s and dout are the caller's. */
static inline ProgramEnv env_at(const Data *d, int b, int h, int q, int k) {
    return (ProgramEnv){.operand = {[OPERAND_b] = b,
                                    [OPERAND_h] = h,
                                    [OPERAND_q] = q,
                                    [OPERAND_k] = k,
                                    [OPERAND_nq] = MANY_Q,
                                    [OPERAND_nk] = MANY_K,
                                    [OPERAND_off] = MANY_K - MANY_Q},
                        .array = d->array};
}

static inline double value_at(const Program *p, const ProgramEnv *env) {
    static double value[16 * PROGRAM_NODES];
    program_eval(p, env, p->root, value);
    return value[p->root];
}

#endif
