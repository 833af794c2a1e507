/* SPDX-License-Identifier: Apache-2.0
 * Programs for callers: made from text, their tensors checked at a launch. */
#include <string.h>

#include "program_intern.h"
#include "runtime.h"

int attnc_program_create(const char *text, int kind,
                         const attnc_program **out) {
    Err e = {0};
    if (!text || !out)
        err_set(&e, ATTNC_E_REQUEST, "program", text ? "out" : "text", "NULL");
    else if (kind != PROGRAM_MASK && kind != PROGRAM_SCORE &&
             kind != PROGRAM_PATTERN)
        err_set(&e, ATTNC_E_REQUEST, "program", "kind",
                "%d; accepted: ATTNC_MASK, ATTNC_SCORE, ATTNC_PATTERN", kind);
    else
        program_intern(text, kind, NULL, 0, out, &e);
    return e.code ? error_publish(&e, NULL, NULL) : ATTNC_OK;
}

const char *attnc_program_text(const attnc_program *program) {
    return program ? program->text : "";
}

/* ---- tensors of a launch ----------------------------------------------- */

#define REFUSE(field, ...)                                                     \
    return err_set(e, ATTNC_E_REQUEST, "launch", field, __VA_ARGS__)

static const attnc_array *find(const attnc_args *a, const char *name) {
    for (int64_t i = 0; i < a->tensor_count; i++)
        if (!strcmp(a->tensors[i].name, name))
            return &a->tensors[i];
    return NULL;
}

/* Every tensor given is read, and stands once. */
static int check_names(const Plan *p, const attnc_args *a, Err *e) {
    const char *known[SPEC_TENSORS];
    for (int i = 0; i < p->ntensor; i++)
        known[i] = p->tensor[i].name;
    if (a->tensor_count < 0 || (a->tensor_count && !a->tensors))
        REFUSE("tensors", "NULL, or tensor_count %lld",
               (long long)a->tensor_count);
    for (int64_t i = 0; i < a->tensor_count; i++) {
        const char *name = a->tensors[i].name;
        int n = 0;
        if (!name)
            REFUSE("tensors", "[%lld] has no name", (long long)i);
        while (n < p->ntensor && strcmp(known[n], name))
            n++;
        if (n == p->ntensor)
            REFUSE("tensors", "'%.40s' is read by no program of the spec%s%s",
                   name, n ? "; nearest: " : "",
                   n ? nearest_word(name, known, n) : "");
        if (find(a, name) != &a->tensors[i])
            REFUSE("tensors", "'%s' is given twice", name);
    }
    return 0;
}

/* Offsets of elements fit 62 bits. */
static bool reaches(const attnc_array *t) {
    __int128 far = 0;
    for (int d = 0; d < t->rank; d++)
        if (t->n[d] > 1)
            far += (__int128)(t->n[d] - 1) *
                   (t->stride[d] < 0 ? -(__int128)t->stride[d] : t->stride[d]);
    return far * 4 < ((__int128)1 << 62);
}

/* Rows of bits are whole words. */
static int check_bits(const attnc_array *t, Err *e) {
    for (int d = 0; d < t->rank; d++) {
        bool last = d == t->rank - 1;
        int64_t x = t->stride[d];
        if (t->n[d] > 1 && (last ? x != 1 : x % 32 != 0))
            REFUSE(t->name, "stride[%d] is %lld; accepted: %s", d, (long long)x,
                   last ? "1, the last dimension of bits"
                        : "a multiple of 32, as rows of bits are whole words");
    }
    if ((uintptr_t)t->data % 4)
        REFUSE(t->name, "data is at %p; accepted: a multiple of 4", t->data);
    return 0;
}

static int check_tensor(const Plan *p, int i, const attnc_args *a, Err *e) {
    const ProgramTensor *want = &p->tensor[i];
    const attnc_array *t = find(a, want->name);
    bool empty = false, grad = p->spec.tensor_grads >> i & 1;
    if (!t)
        REFUSE(want->name, "not given; the spec's programs read it");
    if (t->dtype != want->dtype)
        REFUSE(want->name, "is %s; the program reads %s",
               t->dtype >= 0 && t->dtype < ARRAY_DTYPES
                   ? program_dtype_name(t->dtype)
                   : "of no dtype",
               program_dtype_name(want->dtype));
    if (t->rank != want->rank)
        REFUSE(want->name, "has %d dimensions; the program reads %d", t->rank,
               want->rank);
    for (int d = 0; d < t->rank; d++) {
        if (t->n[d] < 0 || t->n[d] > INT32_MAX)
            REFUSE(want->name, "n[%d] is %lld; accepted: 0..%d", d,
                   (long long)t->n[d], INT32_MAX);
        empty |= !t->n[d];
    }
    if (!t->data && !empty)
        REFUSE(want->name, "data is NULL");
    if (!reaches(t))
        REFUSE(want->name, "its strides reach beyond 62 bits");
    if (grad && !t->grad && !empty)
        REFUSE(want->name, "grad is NULL, but the spec's tensor_grads asks");
    if (!grad && t->grad)
        REFUSE(want->name, "grad is given, but the spec's tensor_grads does "
                           "not ask for it");
    return t->dtype == ARRAY_BITS ? check_bits(t, e) : 0;
}

/* A bias of other sizes would be read as 0 where it ends. */
static int check_bias(const Plan *p, const attnc_args *a, Err *e) {
    const int64_t sizes[] = {a->batch, a->heads, a->seqlen_q, a->seqlen_k};
    static const char letters[] = "bhqk";
    const attnc_array *t = find(a, "bias");
    const char *index = spec_spelling(&p->spec, "bias");
    if (p->spec.bias <= ATTNC_BIAS_1)
        return 0;
    for (int d = 0; index[d]; d++) {
        int64_t want = sizes[strchr(letters, index[d]) - letters];
        if (t->n[d] != want)
            REFUSE("bias", "n[%d] is %lld; spec.bias=%s: %lld", d,
                   (long long)t->n[d], index, (long long)want);
    }
    return 0;
}

/* q + off and its like must not wrap. */
static int check_reach(const attnc_args *a, Err *e) {
    const struct {
        const char *name;
        int64_t value;
    } sizes[] = {{"batch", a->batch},
                 {"heads", a->heads},
                 {"seqlen_q", a->seqlen_q},
                 {"seqlen_k", a->seqlen_k},
                 {"mask_offset", a->mask_offset}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        if (sizes[i].value > PROGRAM_FAR || sizes[i].value < -PROGRAM_FAR)
            REFUSE(sizes[i].name, "%lld; a spec with programs takes at most %d",
                   (long long)sizes[i].value, PROGRAM_FAR);
    return 0;
}

int args_check_tensors(const Plan *p, const attnc_args *a, Err *e) {
    if (check_names(p, a, e))
        return e->code;
    for (int i = 0; i < p->ntensor; i++)
        if (check_tensor(p, i, a, e))
            return e->code;
    if (!spec_has_programs(&p->spec))
        return 0;
    return check_reach(a, e) ? e->code : check_bias(p, a, e);
}
