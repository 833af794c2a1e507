/* SPDX-License-Identifier: Apache-2.0
 * The files of a run: O, LSE and gradients as f32, all of them or none. */
#include <stdio.h>
#include <string.h>

#include "command.h"
#include "values.h"

/* n elements of dtype as the f32 of a .npy file. */
static int write_array(OutFile *f, const int64_t *dim, int rank, int dtype,
                       const void *data, Err *e) {
    enum { CHUNK = 16384 };
    char header[512];
    float part[CHUNK];
    int64_t n = 1;
    for (int i = 0; i < rank; i++)
        n *= dim[i];
    int rc = outfile_write(f, header, npy_header(header, dim, rank), e);
    for (int64_t i = 0; i < n && rc == 0; i += CHUNK) {
        int64_t m = n - i < CHUNK ? n - i : CHUNK;
        for (int64_t j = 0; j < m; j++)
            part[j] = value_get(dtype, data, i + j);
        rc = outfile_write(f, part, (size_t)m * sizeof *part, e);
    }
    return rc;
}

/* One file: a name, a shape, numbers. */
typedef struct Result {
    char name[PROGRAM_NAME + 8];
    int64_t dim[4];
    int rank, dtype;
    const void *data;
} Result;

static Result tensor_result(const Run *r, const char *name, int tensor,
                            const void *data) {
    const Problem *p = &r->problem;
    int axes[4];
    Result x = {.dtype = p->spec.dtype, .data = data};
    snprintf(x.name, sizeof x.name, "%s", name);
    x.rank = problem_axes(p, tensor, axes);
    for (int i = 0; i < x.rank; i++)
        x.dim[i] = p->size[axes[i]].n;
    return x;
}

static Result lse_result(const Run *r) {
    const Problem *p = &r->problem;
    const attnc_args *a = &r->args;
    if (p->layout == PACKED)
        return (Result){"lse.npy",
                        {a->heads, p->size[SIZE_total_q].n},
                        2,
                        ATTNC_F32,
                        a->lse};
    return (Result){
        "lse.npy", {a->batch, a->heads, a->seqlen_q}, 3, ATTNC_F32, a->lse};
}

enum { RESULTS = 6 + SPEC_TENSORS };

/* The gradient of a tensor, in the shape of its file. */
static Result array_result(const Run *r, const attnc_array *a) {
    const Problem *p = &r->problem;
    int file = problem_tensor_file(p, a->name);
    const Npy *n = file < 0 ? &p->file[FILE_bias] : &p->tensor[file].file;
    Result x = {.rank = n->rank, .dtype = ATTNC_F32, .data = a->grad};
    snprintf(x.name, sizeof x.name, "d%s.npy", a->name);
    memcpy(x.dim, n->dim, (size_t)n->rank * sizeof *x.dim);
    return x;
}

static int list_results(const Run *r, Result out[RESULTS]) {
    const attnc_args *a = &r->args;
    int n = 0;
    out[n++] = tensor_result(r, "o.npy", TENSOR_o, a->o.data);
    out[n++] = lse_result(r);
    if (r->problem.spec.pass == ATTNC_PASS_FWD)
        return n;
    out[n++] = tensor_result(r, "dq.npy", TENSOR_dq, a->dq.data);
    out[n++] = tensor_result(r, "dk.npy", TENSOR_dk, a->dk.data);
    out[n++] = tensor_result(r, "dv.npy", TENSOR_dv, a->dv.data);
    if (a->dsink)
        out[n++] = (Result){"dsink.npy", {a->heads}, 1, ATTNC_F32, a->dsink};
    for (int i = 0; i < r->in.tensors.count; i++)
        if (r->in.tensors.of[i].grad)
            out[n++] = array_result(r, &r->in.tensors.of[i]);
    return n;
}

int results_write(const char *dir, const Run *r, Err *e) {
    OutFile f[RESULTS];
    Result x[RESULTS];
    int n = list_results(r, x), rc = 0;
    for (int i = 0; i < n; i++)
        f[i] = (OutFile){.fd = -1};
    for (int i = 0; i < n && rc == 0; i++) {
        rc = outfile_open(dir, x[i].name, &f[i], e);
        rc = rc ? rc
                : write_array(&f[i], x[i].dim, x[i].rank, x[i].dtype, x[i].data,
                              e);
    }
    if (rc == 0)
        return outfile_publish(f, n, e);
    for (int i = 0; i < n; i++)
        outfile_drop(&f[i]);
    return rc;
}

void results_say(const char *dir, const Run *r, Str *out) {
    Result x[RESULTS];
    int n = list_results(r, x);
    str_addf(out, "written   ");
    for (int i = 0; i < n; i++)
        str_addf(out, "%s%s/%s", i ? ", " : "", dir, x[i].name);
    str_addf(out, "\n");
}
