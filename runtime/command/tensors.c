/* SPDX-License-Identifier: Apache-2.0
 * What programs read, in memory: tensors and bias from their files, the blocks
 * of a pattern that has no closed form; and room for their gradients. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "values.h"

/* ---- lists of a bsr pattern -------------------------------------------- */

void problem_lengths(const Problem *p, int64_t b, int64_t *nq, int64_t *nk) {
    *nq = p->size[SIZE_seqlen_q].n;
    *nk = p->size[SIZE_seqlen_k].n;
    if (!p->cu_q)
        return;
    *nq = (int64_t)p->cu_q[b + 1] - p->cu_q[b];
    *nk = (int64_t)p->cu_k[b + 1] - p->cu_k[b];
}

/* indptr must have a row for each row of blocks of every sequence. */
static int check_rows(const Problem *p, Err *e) {
    const Npy *n = &p->lists[0];
    int64_t rows = n->dim[n->rank - 1], block = p->pattern.block;
    int64_t lists = n->rank == 2 ? n->dim[0] : 1, heads = p->size[SIZE_heads].n;
    char shape[160];
    if (lists != 1 && lists != heads)
        return err_set(e, ERR_REQUEST, "command", NULL,
                       "%s: shape %s; accepted: 1 or %" PRId64 " lists (heads)",
                       n->path, npy_shape(n, shape), heads);
    for (int64_t b = 0; b < p->size[SIZE_batch].n; b++) {
        int64_t nq, nk;
        problem_lengths(p, b, &nq, &nk);
        int64_t want = (nq + block - 1) / block + 1;
        if (rows != want)
            return err_set(e, ERR_REQUEST, "command", NULL,
                           "%s: shape %s; accepted: %" PRId64
                           " numbers a list, for %" PRId64
                           " queries in blocks of %" PRId64,
                           n->path, npy_shape(n, shape), want, nq, block);
    }
    return 0;
}

static int32_t *read_list(Npy *n, Err *e) {
    int32_t *out = malloc((size_t)n->count * sizeof *out + 1);
    if (!out)
        err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    else
        npy_read_array(n, out, e);
    return out;
}

int pattern_read_lists(Problem *p, Err *e) {
    Npy *at = &p->lists[0], *index = &p->lists[1];
    int rc = check_rows(p, e);
    if (rc)
        return rc;
    p->pattern_at = read_list(at, e);
    p->pattern_index = e->code ? NULL : read_list(index, e);
    p->pattern.indptr = p->pattern_at;
    p->pattern.index = p->pattern_index;
    p->pattern.indices = index->count;
    p->pattern.bsr_heads = at->rank == 2 ? at->dim[0] : 1;
    return e->code;
}

/* ---- blocks of a pattern ----------------------------------------------- */

/* [b, h, block of queries, block of keys]: one list for all heads or entries
 * where they are alike. */
static int make_blocks(const Problem *p, attnc_array *x, Err *e) {
    int64_t block = p->pattern.block, heads = p->size[SIZE_heads].n;
    int64_t rows = (p->size[SIZE_seqlen_q].n + block - 1) / block;
    int64_t columns = (p->size[SIZE_seqlen_k].n + block - 1) / block;
    int64_t width = (columns + 31) / 32 * 32; /* rows are whole words */
    int64_t entries = p->cu_q ? p->size[SIZE_batch].n : 1;
    int64_t lists = pattern_heads(&p->pattern) == 1 ? 1 : heads;
    uint32_t *to = calloc((size_t)(entries * lists * rows * width / 32) + 1, 4);
    if (!to)
        return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    *x = (attnc_array){.name = "pattern_blocks",
                       .data = to,
                       .dtype = ARRAY_BITS,
                       .rank = 4,
                       .n = {p->size[SIZE_batch].n, heads, rows, columns},
                       .stride = {p->cu_q ? lists * rows * width : 0,
                                  lists > 1 ? rows * width : 0, width, 1}};
    for (int64_t i = 0; i < entries * lists && !e->code; i++) {
        Pattern sized = p->pattern;
        int64_t nq, nk;
        problem_lengths(p, i / lists, &nq, &nk);
        if (!pattern_size(&sized, nq, nk, e))
            pattern_mark(&sized, i % lists, to + i * rows * width / 32, width);
    }
    return e->code;
}

/* ---- tensors ----------------------------------------------------------- */

/* Dense, of the file's dims, of bits those of their bytes; `drop`: those of 1
 * are none. */
static void set_dims(attnc_array *x, const Npy *n, bool drop) {
    int64_t stride = 1;
    for (int i = 0; i < n->rank; i++)
        if (!drop || n->dim[i] != 1)
            x->n[x->rank++] = n->dim[i];
    if (x->dtype == ARRAY_BITS)
        x->n[x->rank - 1] *= 8;
    for (int i = x->rank - 1; i >= 0; i--) {
        x->stride[i] = stride;
        stride *= x->n[i];
    }
}

static int read_tensor(Problem *p, int file, attnc_array *x, Err *e) {
    Npy *n = &p->tensor[file].file;
    x->dtype = p->tensor[file].is.dtype;
    set_dims(x, n, false);
    int64_t elements = x->dtype == ARRAY_BITS ? 8 * n->count : n->count;
    void *data = malloc((size_t)program_dtype_bytes(x->dtype, elements) + 1);
    x->data = data;
    if (!data)
        return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    return npy_read_array(n, data, e);
}

/* Rounded to the spec's dtype, as the other inputs. */
static int read_bias(Problem *p, attnc_array *x, Err *e) {
    Npy *n = &p->file[FILE_bias];
    int dtype = p->spec.dtype;
    x->dtype = ARRAY_F32;
    set_dims(x, n, true);
    void *raw = malloc((size_t)n->count * 4 + 1);
    float *data = malloc((size_t)n->count * 4 + 1);
    x->data = data;
    if (!raw || !data)
        err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    else
        npy_read(n, dtype, raw, e);
    for (int64_t i = 0; i < n->count && !e->code; i++)
        data[i] = value_get(dtype, raw, i);
    free(raw);
    return e->code;
}

/* The array of a tensor; one without data is not there. */
static int make_array(Problem *p, const ProgramTensor *is, attnc_array *x,
                      Err *e) {
    int file = problem_tensor_file(p, is->name);
    *x = (attnc_array){0};
    if (p->spec.sparsity && !strcmp(is->name, "pattern_blocks"))
        return make_blocks(p, x, e);
    if (p->spec.bias && !strcmp(is->name, "bias"))
        return read_bias(p, x, e);
    return file < 0 ? 0 : read_tensor(p, file, x, e);
}

static int make_grad(attnc_array *x, Err *e) {
    int64_t n = 1;
    for (int d = 0; d < x->rank; d++)
        n *= x->n[d];
    x->grad = malloc((size_t)n * sizeof(float) + 1);
    if (!x->grad)
        return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    value_poison(ATTNC_F32, x->grad, n);
    return 0;
}

int tensors_make(Problem *p, Tensors *t, Err *e) {
    ProgramTensor all[SPEC_TENSORS];
    int n = spec_tensors(&p->spec, all);
    *t = (Tensors){0};
    for (int i = 0; i < n && !e->code; i++) {
        attnc_array *x = &t->of[t->count];
        int rc = make_array(p, &all[i], x, e);
        t->missing = t->missing || (!rc && !x->data);
        if (!x->data)
            continue;
        memcpy(t->name[t->count], all[i].name, PROGRAM_NAME);
        x->name = t->name[t->count++];
        if (!rc && p->spec.tensor_grads >> i & 1)
            make_grad(x, e);
    }
    for (int i = 0; i < t->count; i++) {
        t->plain[i] = t->of[i];
        t->plain[i].grad = NULL;
    }
    return e->code;
}

void tensors_free(Tensors *t) {
    for (int i = 0; i < t->count; i++) {
        free((void *)t->of[i].data);
        free(t->of[i].grad);
    }
}
