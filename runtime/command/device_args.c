/* SPDX-License-Identifier: Apache-2.0
 * The arguments of a run in the memory of a device that has its own. */
#include "command.h"

/* One array of a launch: where its address stands, its bytes, and whether the
 * kernel reads it. */
typedef struct Array {
    size_t place; /* in attnc_args */
    int64_t bytes;
    bool input;
} Array;

#define AT(field) offsetof(attnc_args, field)
enum { ARRAYS = 16 };

static void list_arrays(const Run *r, Array out[ARRAYS]) {
    const Problem *p = &r->problem;
    const attnc_args *a = &r->args;
    int64_t elem = dtype_bytes(p->spec.dtype), heads = a->heads * 4;
    int64_t ends = (a->batch + 1) * 4;
    const Array all[ARRAYS] = {
        {AT(q.data), problem_count(p, TENSOR_q) * elem, true},
        {AT(k.data), problem_count(p, TENSOR_k) * elem, true},
        {AT(v.data), problem_count(p, TENSOR_v) * elem, true},
        {AT(o.data), problem_count(p, TENSOR_o) * elem, true},
        {AT(lse), r->in.lse_count * 4, true},
        {AT(lens_k), a->batch * 4, true},
        {AT(cu_seqlens_q), ends, true},
        {AT(cu_seqlens_k), ends, true},
        {AT(slopes), heads, true},
        {AT(sink), heads, true},
        {AT(dout.data), problem_count(p, TENSOR_dout) * elem, true},
        {AT(dq.data), problem_count(p, TENSOR_dq) * elem, true},
        {AT(dk.data), problem_count(p, TENSOR_dk) * elem, true},
        {AT(dv.data), problem_count(p, TENSOR_dv) * elem, true},
        {AT(dsink), heads, true},
        {AT(workspace), (int64_t)a->workspace_bytes, false},
    };
    for (int i = 0; i < ARRAYS; i++)
        out[i] = all[i];
}

static void **place(attnc_args *a, const Array *x) {
    return (void **)((char *)a + x->place);
}

/* ---- tensors that programs read ---------------------------------------- */

/* Elements as far as strides reach, and of the dense gradient. */
static void array_bytes(const attnc_array *x, size_t *data, size_t *grad) {
    int64_t far = 1, n = 1;
    for (int d = 0; d < x->rank; d++) {
        far += x->n[d] > 1 ? (x->n[d] - 1) * x->stride[d] : 0;
        n *= x->n[d];
    }
    *data = (size_t)program_dtype_bytes(x->dtype, far);
    *grad = (size_t)n * sizeof(float);
}

static int move_in(const Kernel *k, const void *host, size_t bytes, void **to,
                   Err *e) {
    const Memory *m = k->backend->memory;
    int rc = m->alloc(k, bytes + 64, to, e);
    return rc ? rc : m->copy(k, *to, host, bytes, e);
}

static int make_tensors(Run *r, Err *e) {
    const Kernel *k = &r->plan->module->kernel;
    const Tensors *host = &r->in.tensors;
    Tensors *to = &r->device_tensors;
    *to = *host;
    for (int i = 0; i < to->count; i++) {
        to->of[i].data = NULL;
        to->of[i].grad = NULL;
    }
    for (int i = 0; i < host->count && !e->code; i++) {
        size_t data, grad;
        array_bytes(&host->of[i], &data, &grad);
        move_in(k, host->of[i].data, data, (void **)&to->of[i].data, e);
        if (!e->code && host->of[i].grad)
            move_in(k, host->of[i].grad, grad, (void **)&to->of[i].grad, e);
    }
    for (int i = 0; i < to->count; i++) {
        to->plain[i] = to->of[i];
        to->plain[i].grad = NULL;
    }
    r->device.tensors = to->of;
    return e->code;
}

static int fetch_tensors(Run *r, Err *e) {
    const Kernel *k = &r->plan->module->kernel;
    const Tensors *host = &r->in.tensors;
    for (int i = 0; i < host->count && !e->code; i++) {
        size_t data, grad;
        array_bytes(&host->of[i], &data, &grad);
        if (host->of[i].grad)
            k->backend->memory->copy(k, host->of[i].grad,
                                     r->device_tensors.of[i].grad, grad, e);
    }
    return e->code;
}

static void free_tensors(Run *r) {
    const Kernel *k = &r->plan->module->kernel;
    for (int i = 0; i < r->device_tensors.count; i++) {
        k->backend->memory->free(k, (void *)r->device_tensors.of[i].data);
        k->backend->memory->free(k, r->device_tensors.of[i].grad);
    }
}

/* ---- all --------------------------------------------------------------- */

/* Outputs go along: they hold NaN until they are written. */
int device_args_make(Run *r, Err *e) {
    const Kernel *k = &r->plan->module->kernel;
    const Memory *m = k->backend->memory;
    Array all[ARRAYS];
    int rc = 0;
    list_arrays(r, all);
    r->device = r->args;
    for (int i = 0; i < ARRAYS; i++)
        *place(&r->device, &all[i]) = NULL;
    for (int i = 0; i < ARRAYS && !rc; i++) {
        const void *host = *place(&r->args, &all[i]);
        void **to = place(&r->device, &all[i]);
        bool wanted = all[i].input ? host != NULL : all[i].bytes > 0;
        rc = wanted ? m->alloc(k, (size_t)all[i].bytes + 64, to, e) : 0;
        if (!rc && wanted && all[i].input)
            rc = m->copy(k, *to, host, (size_t)all[i].bytes, e);
    }
    return rc ? rc : make_tensors(r, e);
}

/* What a launch writes, as far as it is there. */
static bool is_result(const Array *x) {
    static const size_t places[] = {AT(o.data),  AT(lse),     AT(dq.data),
                                    AT(dk.data), AT(dv.data), AT(dsink)};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (x->place == places[i])
            return true;
    return false;
}

int device_args_fetch(Run *r, Err *e) {
    const Kernel *k = &r->plan->module->kernel;
    const Memory *m = k->backend->memory;
    Array all[ARRAYS];
    int rc = 0;
    list_arrays(r, all);
    for (int i = 0; i < ARRAYS && m && !rc; i++) {
        void *host = *place(&r->args, &all[i]);
        if (host && is_result(&all[i]))
            rc = m->copy(k, host, *place(&r->device, &all[i]),
                         (size_t)all[i].bytes, e);
    }
    return rc || !m ? rc : fetch_tensors(r, e);
}

void device_args_free(Run *r) {
    const Kernel *k = r->plan ? &r->plan->module->kernel : NULL;
    Array all[ARRAYS];
    if (!k || !k->backend->memory)
        return;
    list_arrays(r, all);
    for (int i = 0; i < ARRAYS; i++)
        k->backend->memory->free(k, *place(&r->device, &all[i]));
    free_tensors(r);
}
