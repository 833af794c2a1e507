/* SPDX-License-Identifier: Apache-2.0
 * Memory of a run: tensors from files or random, outputs full of NaN. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"
#include "values.h"

/* More than the machine has would be granted and then kill the process. */
static int check_memory(const Problem *p, Err *e) {
    double have = (double)sysconf(_SC_PHYS_PAGES) * (double)getpagesize();
    double bytes = 0;
    for (int t = 0; t < problem_tensors(p); t++)
        bytes += (double)problem_count(p, t) * dtype_bytes(p->spec.dtype);
    if (bytes <= have)
        return 0;
    return err_set(e, ERR_MEMORY, "command", NULL,
                   "the tensors need %s, this machine has %s",
                   text_bytes(bytes).s, text_bytes(have).s);
}

/* 64-byte aligned; at least one line, so that NULL means failure. */
static void *allocate(int64_t bytes, Err *e) {
    void *p = aligned_alloc(64, ((size_t)bytes / 64 + 1) * 64);
    if (!p)
        err_set(e, ERR_MEMORY, "command", NULL, "out of memory: %s",
                text_bytes((double)bytes).s);
    return p;
}

static int make_tensor(Problem *p, int tensor, Inputs *in, Err *e) {
    int dtype = p->spec.dtype;
    int64_t n = problem_count(p, tensor);
    void *data = in->data[tensor] = allocate(n * dtype_bytes(dtype), e);
    if (!data)
        return e->code;
    bool input = tensor <= TENSOR_v || tensor == TENSOR_dout;
    int file = tensor == TENSOR_dout ? FILE_dout : tensor;
    if (!input)
        value_poison(dtype, data, n);
    else if (p->file[file].fd >= 0)
        return npy_read(&p->file[file], dtype, data, e);
    else
        value_random(dtype, data, n, p->seed, (uint64_t)tensor);
    return 0;
}

static int make_lse(const Problem *p, Inputs *in, const attnc_args *a, Err *e) {
    int64_t rows =
        p->layout == PACKED ? p->size[SIZE_total_q].n : a->batch * a->seqlen_q;
    in->lse_count = rows * a->heads;
    in->lse = allocate(in->lse_count * 4, e);
    if (!in->lse)
        return e->code;
    value_poison(ATTNC_F32, in->lse, in->lse_count);
    return 0;
}

static int make_dsink(const Problem *p, Inputs *in, const attnc_args *a,
                      Err *e) {
    if (p->spec.pass != ATTNC_PASS_BWD || !p->spec.sink)
        return 0;
    in->dsink = allocate(a->heads * 4, e);
    if (!in->dsink)
        return e->code;
    value_poison(ATTNC_F32, in->dsink, a->heads);
    return 0;
}

/* One f32 per head, rounded to `dtype` first. */
static int make_vector(Problem *p, int file, int dtype, float **out, Err *e) {
    Npy *n = &p->file[file];
    if (n->fd < 0)
        return 0;
    void *raw = allocate(n->count * 4, e);
    *out = allocate(n->count * 4, e);
    int rc = raw && *out ? npy_read(n, dtype, raw, e) : e->code;
    for (int64_t i = 0; i < n->count && rc == 0; i++)
        (*out)[i] = value_get(dtype, raw, i);
    free(raw);
    return rc;
}

int inputs_make(Problem *p, Inputs *in, attnc_args *a, Err *e) {
    *in = (Inputs){0};
    problem_args(p, a);
    int rc = check_memory(p, e);
    for (int t = 0; t < problem_tensors(p) && rc == 0; t++)
        rc = make_tensor(p, t, in, e);
    rc = rc ? rc : make_lse(p, in, a, e);
    rc = rc ? rc : make_dsink(p, in, a, e);
    rc = rc ? rc : make_vector(p, FILE_sink, p->spec.dtype, &in->sink, e);
    rc = rc ? rc : make_vector(p, FILE_alibi, ATTNC_F32, &in->slopes, e);
    rc = rc ? rc : tensors_make(p, &in->tensors, e);
    a->tensors = in->tensors.of;
    a->tensor_count = in->tensors.count;
    a->q.data = in->data[TENSOR_q];
    a->k.data = in->data[TENSOR_k];
    a->v.data = in->data[TENSOR_v];
    a->o.data = in->data[TENSOR_o];
    a->dout.data = in->data[TENSOR_dout];
    a->dq.data = in->data[TENSOR_dq];
    a->dk.data = in->data[TENSOR_dk];
    a->dv.data = in->data[TENSOR_dv];
    a->dsink = in->dsink;
    a->lse = in->lse;
    a->sink = in->sink;
    a->slopes = in->slopes;
    return rc;
}

void inputs_free(Inputs *in) {
    for (int t = 0; t < TENSORS; t++)
        free(in->data[t]);
    free(in->lse);
    free(in->sink);
    free(in->dsink);
    free(in->slopes);
    tensors_free(&in->tensors);
}
