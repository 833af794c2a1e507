/* SPDX-License-Identifier: Apache-2.0
 * Cases with programs: the tensors they read. */
#ifndef PROGRAM_CASE_H
#define PROGRAM_CASE_H

#include "grad_case.h"
#include "program.h"

/* ---- tensors ----------------------------------------------------------- */

/* Extents of tensors by name: letters of b h q k, or a digit string; "p": the
 * longer of queries and keys. */
static const char *const tensor_dims[][2] = {
    {"doc", "bp"},  {"len", "b"},  {"slope", "h"},  {"row", "p"},
    {"on", "q5"},   {"gate", "h"}, {"table", "9h"}, {"left", ""},
    {"keep", "qk"}, {"pos", "p"},  {"half", "hp"},  {"far", "9"},
    {"which", ""},  {"lit", "qp"}, {"mark", "qk"},
};

typedef struct Arrays {
    ProgramTensor known[SPEC_TENSORS];
    attnc_array array[SPEC_TENSORS];
    ProgramArray host[SPEC_TENSORS];
    void *data[SPEC_TENSORS];
    float *grad[SPEC_TENSORS];
    double *expect[SPEC_TENSORS];
    int64_t size[SPEC_TENSORS];
    int n;
} Arrays;

static inline const char *dims_of(const Case *c, const ProgramTensor *t) {
    const char *index = spec_spelling(&c->spec, "bias");
    if (!strcmp(t->name, "bias"))
        return c->spec.bias == ATTNC_BIAS_NONE ? "hqk"
               : c->spec.bias == ATTNC_BIAS_1  ? ""
                                               : index;
    for (size_t i = 0; i < sizeof tensor_dims / sizeof *tensor_dims; i++)
        if (!strcmp(tensor_dims[i][0], t->name))
            return tensor_dims[i][1];
    fail_msg("no extents for tensor %s", t->name);
    return "";
}

static inline int64_t extent_of(const Case *c, char letter) {
    switch (letter) {
    case 'b':
        return c->batch;
    case 'h':
        return c->heads;
    case 'q':
        return c->nq;
    case 'k':
        return c->nk;
    case 'p':
        return c->nq > c->nk ? c->nq : c->nk;
    default:
        return letter - '0';
    }
}

static inline void put_array(int dtype, void *data, int64_t i) {
    float x = random_float();
    switch (dtype) {
    case ARRAY_F32:
        ((float *)data)[i] = random_int(0, 15) ? x : x * 3;
        break;
    case ARRAY_F16:
        ((uint16_t *)data)[i] = f32_to_f16(x);
        break;
    case ARRAY_I32:
        ((int32_t *)data)[i] = (int32_t)(i / 7 % 5 + random_int(0, 1));
        break;
    case ARRAY_BITS: /* words of many, some, all and none */
        ((uint32_t *)data)[i / 32] &= ~(1u << i % 32);
        ((uint32_t *)data)[i / 32] |= (uint32_t)(random_int(0, 3) < i / 32 % 5)
                                      << i % 32;
        break;
    default:
        ((uint8_t *)data)[i] = random_int(0, 3) != 0;
    }
}

/* Dims in memory in C order or the other way round, the last padded, maybe
 * with gaps between elements. */
static inline void array_make(const Case *c, Arrays *a, int i) {
    const ProgramTensor *t = &a->known[i];
    const char *dims = dims_of(c, t);
    bool bits = t->dtype == ARRAY_BITS, turned = !bits && random_int(0, 1);
    int64_t span = bits ? 1 : random_int(1, 2), pad = random_int(0, 2);
    attnc_array *x = &a->array[i];
    *x = (attnc_array){.name = t->name, .dtype = t->dtype, .rank = t->rank};
    assert_int_equal(strlen(dims), t->rank);
    a->size[i] = 1;
    for (int at = t->rank - 1; at >= 0; at--) {
        int d = turned ? t->rank - 1 - at : at;
        x->n[d] = extent_of(c, dims[d]);
        x->stride[d] = span;
        span *= x->n[d] + (at == t->rank - 1 ? pad : 0);
        if (bits)
            span = (span + 31) / 32 * 32;
        a->size[i] *= x->n[d];
    }
    a->data[i] = malloc((size_t)span * 4 + 4);
    for (int64_t e = 0; e < span; e++)
        put_array(t->dtype, a->data[i], e);
    x->data = a->data[i];
    a->host[i] = (ProgramArray){.at = x->data, .dtype = t->dtype};
    memcpy(a->host[i].n, x->n, sizeof x->n);
    memcpy(a->host[i].stride, x->stride, sizeof x->stride);
}

static inline void arrays_make(const Case *c, Arrays *a, attnc_args *args) {
    attnc_spec s = grad_spec(c);
    a->n = spec_tensors(&s, a->known);
    for (int i = 0; i < a->n; i++) {
        array_make(c, a, i);
        a->grad[i] = NULL;
        a->expect[i] = calloc((size_t)a->size[i] + 1, sizeof(double));
        if (!(s.tensor_grads >> i & 1))
            continue;
        a->grad[i] = malloc(sizeof(float) * (size_t)(a->size[i] + 1));
        memset(a->grad[i], 0x5a, sizeof(float) * (size_t)(a->size[i] + 1));
    }
    args->tensors = a->array;
    args->tensor_count = a->n;
}

/* Gradients go with a backward alone. */
static inline void arrays_ask(Arrays *a) {
    for (int i = 0; i < a->n; i++)
        a->array[i].grad = a->grad[i];
}

static inline void arrays_free(Arrays *a) {
    for (int i = 0; i < a->n; i++) {
        free(a->data[i]);
        free(a->grad[i]);
        free(a->expect[i]);
    }
}

#endif
