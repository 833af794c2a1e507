/* SPDX-License-Identifier: Apache-2.0
 * Random tensors for whatever the programs of a case read. */
#ifndef ARRAY_CASE_H
#define ARRAY_CASE_H

#include "case.h"
#include "program.h"

typedef struct Arrays {
    attnc_array of[SPEC_TENSORS];
    int count;
} Arrays;

static inline const attnc_program *program_of(const char *text, int kind) {
    const attnc_program *p = NULL;
    if (text && attnc_program_create(text, kind, &p))
        fail_msg("%s: %s", text, attnc_last_error()->text);
    return p;
}

static inline int64_t array_elements(const attnc_array *x) {
    int64_t n = 1;
    for (int d = 0; d < x->rank; d++)
        n *= x->n[d];
    return n;
}

/* A bias has the case's sizes; of others a dim is 6 long, so that reads go
 * beyond its end, where they find 0. */
static inline void array_sizes(const Case *c, attnc_array *x) {
    const int64_t sizes[] = {c->batch, c->heads, c->nq, c->nk};
    const char *index = spec_spelling(&c->spec, "bias");
    for (int d = 0; d < x->rank; d++)
        x->n[d] = strcmp(x->name, "bias")
                      ? 6
                      : sizes[strchr("bhqk", index[d]) - "bhqk"];
    int64_t stride = 1;
    for (int d = x->rank - 1; d >= 0; d--) {
        x->stride[d] = stride;
        stride *= x->n[d];
        if (x->dtype == ARRAY_BITS)
            stride = (stride + 31) / 32 * 32;
    }
}

/* What lies between the first and the last element, both included. */
static inline int64_t array_span(const attnc_array *x) {
    int64_t last = array_elements(x) ? 0 : -1;
    for (int d = 0; d < x->rank && last >= 0; d++)
        last += (x->n[d] - 1) * x->stride[d];
    return last + 1;
}

/* Floats are multiples of 2^-10 between -2 and 2. */
static inline void array_fill(attnc_array *x) {
    char *to = (char *)x->data;
    for (int64_t i = 0; i < array_span(x); i++) {
        float f = (float)random_int(-2048, 2048) * 0x1p-10f;
        if (x->dtype == ARRAY_F32)
            ((float *)to)[i] = f;
        else if (x->dtype == ARRAY_F16)
            ((uint16_t *)to)[i] = f32_to_f16(f);
        else if (x->dtype == ARRAY_I32)
            ((int32_t *)to)[i] = (int32_t)random_int(0, 3);
        else if (x->dtype == ARRAY_BITS)
            ((uint32_t *)to)[i / 32] = (uint32_t)random_int(0, 0xffffffff);
        else
            to[i] = random_int(0, 4) != 0;
    }
}

/* Of the case's spec, whose tensor_grads get room for their gradients, full of
 * NaN; free them with arrays_free. */
static inline void arrays_make(const Case *c, attnc_args *a, Arrays *x) {
    ProgramTensor all[SPEC_TENSORS];
    x->count = spec_tensors(&c->spec, all);
    for (int i = 0; i < x->count; i++) {
        char *name = strdup(all[i].name);
        attnc_array *t = &x->of[i];
        *t = (attnc_array){
            .name = name, .dtype = all[i].dtype, .rank = all[i].rank};
        array_sizes(c, t);
        size_t n = (size_t)array_elements(t);
        t->data = malloc((size_t)array_span(t) * 4 + 4);
        array_fill(t);
        if (!(c->spec.tensor_grads >> i & 1))
            continue;
        t->grad = malloc(n * 4 + 1);
        for (size_t k = 0; k < n; k++)
            t->grad[k] = NAN;
    }
    a->tensors = x->of;
    a->tensor_count = x->count;
}

static inline void arrays_free(Arrays *x) {
    for (int i = 0; i < x->count; i++) {
        free((char *)x->of[i].name);
        free((void *)x->of[i].data);
        free(x->of[i].grad);
    }
}

#endif
