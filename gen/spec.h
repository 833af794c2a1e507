/* SPDX-License-Identifier: Apache-2.0
 * Public plain data: what is asked for (attnc_spec) and the sizes it is asked
 * for (attnc_shape). Every field is listed once, in spec.def and shape.def. */
#ifndef ATTNC_SPEC_H
#define ATTNC_SPEC_H

#include <stddef.h>
#include <stdint.h>

/* X(enumerator suffix, spelling) */
#define ATTNC_PASS_LIST(X)                                                     \
    X(PASS_FWD, "fwd") X(PASS_BWD, "bwd") X(PASS_MERGE, "merge")
#define ATTNC_DTYPE_LIST(X) X(F32, "f32") X(F16, "f16") X(BF16, "bf16")
#define ATTNC_F32_MATH_LIST(X) X(MATH_IEEE, "ieee") X(MATH_TF32, "tf32")
#define ATTNC_MASK_LIST(X)                                                     \
    X(MASK_NONE, "none")                                                       \
    X(MASK_CAUSAL, "causal")                                                   \
    X(MASK_WINDOW, "window")                                                   \
    X(MASK_PREFIX, "prefix")                                                   \
    X(MASK_PROGRAM, "program")
/* Which of batch entry, head, query and key index a bias: bits 1, 2, 4, 8,
 * less 1. */
#define ATTNC_BIAS_LIST(X)                                                     \
    X(BIAS_NONE, "none")                                                       \
    X(BIAS_1, "1")                                                             \
    X(BIAS_B, "b")                                                             \
    X(BIAS_H, "h")                                                             \
    X(BIAS_BH, "bh")                                                           \
    X(BIAS_Q, "q")                                                             \
    X(BIAS_BQ, "bq")                                                           \
    X(BIAS_HQ, "hq")                                                           \
    X(BIAS_BHQ, "bhq")                                                         \
    X(BIAS_K, "k")                                                             \
    X(BIAS_BK, "bk")                                                           \
    X(BIAS_HK, "hk")                                                           \
    X(BIAS_BHK, "bhk")                                                         \
    X(BIAS_QK, "qk")                                                           \
    X(BIAS_BQK, "bqk")                                                         \
    X(BIAS_HQK, "hqk")                                                         \
    X(BIAS_BHQK, "bhqk")

#define ATTNC_ENUMERATOR(suffix, spelling) ATTNC_##suffix,
enum attnc_pass { ATTNC_PASS_LIST(ATTNC_ENUMERATOR) };
enum attnc_dtype { ATTNC_DTYPE_LIST(ATTNC_ENUMERATOR) };
enum attnc_f32_math { ATTNC_F32_MATH_LIST(ATTNC_ENUMERATOR) };
enum attnc_mask { ATTNC_MASK_LIST(ATTNC_ENUMERATOR) };
enum attnc_bias { ATTNC_BIAS_LIST(ATTNC_ENUMERATOR) };
#undef ATTNC_ENUMERATOR

/* A text of the expression language or a pattern's, checked: made by
 * attnc_program_create, alive as long as the process, one for equal texts. */
typedef struct attnc_program attnc_program;

/* The structure of an attention: part of a kernel's identity. Start
 * from ATTNC_SPEC_DEFAULT, then set what differs. Fields: spec.def,
 * docs/spec.md. */
typedef struct attnc_spec {
    size_t struct_size;
#define ATTNC_ENUM(name, values, def, count, doc) int32_t name;
#define ATTNC_INT(name, def, lo, hi, doc) int32_t name;
#define ATTNC_BOOL(name, def, hi, doc) int32_t name;
#define ATTNC_TEXT(name, kind, doc) const attnc_program *name;
#include "spec.def"
#undef ATTNC_ENUM
#undef ATTNC_INT
#undef ATTNC_BOOL
#undef ATTNC_TEXT
} attnc_spec;

/* Sizes. Hints steer the choice of tiles and never validity; promises are
 * checked at every launch. Fields: shape.def. */
typedef struct attnc_shape {
    size_t struct_size;
#define ATTNC_HINT(name, def, doc) int64_t name;
#define ATTNC_PROMISE(name, def, values, doc) int64_t name;
#include "shape.def"
#undef ATTNC_HINT
#undef ATTNC_PROMISE
} attnc_shape;

#define ATTNC_ENUM(name, values, def, count, doc) .name = def,
#define ATTNC_INT(name, def, lo, hi, doc) .name = def,
#define ATTNC_BOOL(name, def, hi, doc) .name = def,
#define ATTNC_TEXT(name, kind, doc) .name = NULL,
#define ATTNC_HINT(name, def, doc) .name = def,
#define ATTNC_PROMISE(name, def, values, doc) .name = def,
static const attnc_spec ATTNC_SPEC_DEFAULT = {
    .struct_size = sizeof(attnc_spec),
#include "spec.def"
};
static const attnc_shape ATTNC_SHAPE_DEFAULT = {
    .struct_size = sizeof(attnc_shape),
#include "shape.def"
};
#undef ATTNC_ENUM
#undef ATTNC_INT
#undef ATTNC_BOOL
#undef ATTNC_TEXT
#undef ATTNC_HINT
#undef ATTNC_PROMISE

#endif
