/* SPDX-License-Identifier: Apache-2.0
 * Gradients of the tensors that a score program reads: every pair adds to the
 * elements it read. A tensor whose reads all have q as one index is summed by
 * the worker whose row that is; of any other each worker has sums of its own,
 * which are added in their order. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "reference_grads.h"

/* ---- sizes ------------------------------------------------------------- */

static const attnc_array *array_of(const RefGrad *g, int tensor) {
    const attnc_args *a = g->p.a;
    for (int64_t i = 0; i < a->tensor_count; i++)
        if (!strcmp(a->tensors[i].name, g->known[tensor].name))
            return &a->tensors[i];
    return NULL;
}

static int64_t elements(const attnc_array *x) {
    int64_t n = 1;
    for (int d = 0; d < x->rank; d++)
        n *= x->n[d];
    return n;
}

static bool wanted(const RefGrad *g, int tensor) {
    return g->p.s->tensor_grads >> tensor & 1 && array_of(g, tensor);
}

/* Of the spec's tensors the one that a read of the gradient's graph reads. */
static int tensor_of(const RefGrad *g, const ReadGrad *r) {
    const char *name = g->p.programs.grads->p.tensor[r->tensor].name;
    int t = 0;
    while (strcmp(g->known[t].name, name))
        t++;
    return t;
}

/* Does each read have q as index of one and the same dim? */
static bool by_row(const RefGrad *g, int tensor) {
    const ProgramGrad *grads = g->p.programs.grads;
    bool own[PROGRAM_RANK] = {true, true, true, true};
    for (int i = 0; i < grads->nread; i++)
        for (int d = 0; d < PROGRAM_RANK; d++)
            if (g->read[i].tensor == tensor)
                own[d] = own[d] && d < g->known[tensor].rank &&
                         grads->read[i].index[d] == INDEX_Q;
    return own[0] || own[1] || own[2] || own[3];
}

static bool open_sums(RefTensor *t, int64_t n) {
    t->sum = calloc((size_t)n + 1, sizeof *t->sum);
    t->terms = calloc((size_t)n + 1, sizeof *t->terms);
    t->sum32 = calloc((size_t)n + 1, sizeof *t->sum32);
    return t->sum && t->terms && t->sum32;
}

bool ref_tensors_open(RefGrad *g) {
    bool memory = true;
    g->tensors = 0;
    if (!g->p.programs.grads || !g->p.s->tensor_grads || g->skip_tensors)
        return true;
    g->tensors = spec_tensors(g->p.s, g->known);
    for (int i = 0; i < g->p.programs.grads->nread; i++) {
        int t = tensor_of(g, &g->p.programs.grads->read[i]);
        g->read[i].tensor = t;
        g->read[i].array = array_of(g, t);
    }
    for (int t = 0; t < g->tensors && memory; t++)
        if (wanted(g, t))
            memory = open_sums(&g->tensor[t], elements(array_of(g, t)));
    return memory;
}

bool ref_tensors_open_worker(RefGradWork *w) {
    const RefGrad *g = w->g;
    bool memory = true;
    for (int t = 0; t < g->tensors && memory; t++)
        if (wanted(g, t) && !by_row(g, t))
            memory = open_sums(&w->tensor[t], elements(array_of(g, t)));
    return memory;
}

void ref_tensors_close(RefTensor tensor[SPEC_TENSORS]) {
    for (int t = 0; t < SPEC_TENSORS; t++) {
        free(tensor[t].sum);
        free(tensor[t].terms);
        free(tensor[t].sum32);
    }
}

/* ---- pairs ------------------------------------------------------------- */

/* The element that was read, in C order; -1: none, it lay outside. */
static int64_t element_of(const Program *p, const ReadGrad *r,
                          const attnc_array *x, const double *value) {
    int64_t at = 0;
    for (int d = 0; d < x->rank; d++) {
        int64_t i = (int64_t)value[p->node[r->read].arg[d]];
        if (i < 0 || i >= x->n[d])
            return -1;
        at = at * x->n[d] + i;
    }
    return at;
}

/* A derivative of 0 may be two parts that f32 lets differ. */
static const double ROUNDED = 0x1p-23;

/* 0 times what is infinitely steep is 0. */
static double product(double x, double y) {
    return x == 0 ? 0 : x * y;
}

static void add_read(RefGradWork *w, int i, const RefPair *x,
                     const double *wide, const double *f32) {
    const RefGrad *g = w->g;
    const Program *p = &g->p.programs.grads->p;
    const ReadGrad *r = &g->p.programs.grads->read[i];
    int t = g->read[i].tensor;
    const attnc_array *a = g->read[i].array;
    const RefTensor *to = w->tensor[t].sum ? &w->tensor[t] : &g->tensor[t];
    int64_t at = element_of(p, r, a, wide);
    if (at >= 0 && x->size != 0) {
        /* A long sum in f32 also rounds itself, at every term. */
        double rounded = to->sum[at] * 0x1p-25 / ref_eps(g->p.s->dtype);
        to->sum[at] += product(x->ds, wide[r->grad]);
        to->terms[at] +=
            pow(product(x->size, fabs(wide[r->grad]) + ROUNDED), 2);
        to->terms[at] += rounded * rounded;
    }
    at = g->p.unfused ? element_of(p, r, a, f32) : -1;
    if (at >= 0)
        to->sum32[at] +=
            (float)product(ref_round(g->p.s->dtype, x->ds32), f32[r->grad]);
}

void ref_tensors_add(RefGradWork *w, const RefRow *r, int64_t lo, int64_t n) {
    const RefGrad *g = w->g;
    const ProgramGrad *grads = g->p.programs.grads;
    for (int64_t j = 0; j < n && g->tensors; j++) {
        const RefCell *c = &w->cell[j];
        RefPair x = ref_grad_pair(g, r->state, c);
        if (c->out || (x.size == 0 && x.ds32 == 0))
            continue;
        const double *wide = ref_eval_values(&w->eval.wide, lo + j, c->raw);
        const double *f32 = ref_eval_values(&w->eval.f32, lo + j, c->raw32);
        for (int i = 0; i < grads->nread; i++)
            add_read(w, i, &x, wide, f32);
    }
}

/* ---- results ----------------------------------------------------------- */

static RefPlace place_of(const attnc_array *x, int64_t at) {
    int64_t index[PROGRAM_RANK] = {0};
    for (int d = x->rank - 1; d >= 0; d--) {
        index[d] = at % x->n[d];
        at /= x->n[d];
    }
    return (RefPlace){
        .b = index[0], .h = index[1], .i = index[2], .c = index[3]};
}

/* An element to which nothing was added owes an exact zero. */
static void compare(const RefTensor *t, const attnc_array *x, RefSums *sums) {
    int64_t n = elements(x), width = x->rank ? x->n[x->rank - 1] : 1;
    RefSquares row = {0};
    for (int64_t i = 0; i < n; i++) {
        RefPlace at = place_of(x, i);
        ref_compare(sums, &row, at, x->grad[i], t->sum32[i], t->sum[i]);
        row.terms += isfinite(t->terms[i]) ? t->terms[i] : 0;
        if (t->terms[i] == 0 && isfinite(x->grad[i]) && x->grad[i] != 0)
            ref_mismatch(sums, at, x->grad[i], 0);
        if (i % width == width - 1) {
            ref_row_end(sums, row, at);
            row = (RefSquares){0};
        }
    }
}

static void gather(RefGrad *g, RefGradWork *w, int t, int64_t n) {
    for (int k = 0; k < g->workers; k++) {
        const RefTensor *from = &w[k].tensor[t], *to = &g->tensor[t];
        for (int64_t i = 0; i < n && from->sum; i++) {
            to->sum[i] += from->sum[i];
            to->terms[i] += from->terms[i];
            to->sum32[i] += from->sum32[i];
        }
    }
}

static void judge(const RefGrad *g, int t, RefCheck *out) {
    const attnc_array *x = array_of(g, t);
    RefSums sums = {0};
    int k = out->tensors++;
    snprintf(out->tensor[k].name, sizeof out->tensor[k].name, "d%s", x->name);
    compare(&g->tensor[t], x, &sums);
    bool ok = ref_judge(out->tensor[k].name, &sums, ref_eps(g->p.s->dtype),
                        true, &out->tensor[k].err, &out->tensor[k].unfused,
                        &out->tensor[k].limit, out->why);
    out->ok = out->ok && ok;
}

void ref_tensors_finish(RefGrad *g, RefGradWork *w, RefCheck *out) {
    for (int t = 0; t < g->tensors; t++) {
        if (!wanted(g, t))
            continue;
        int64_t n = elements(array_of(g, t));
        gather(g, w, t, n);
        if (g->to_tensor && g->to_tensor[t])
            memcpy(g->to_tensor[t], g->tensor[t].sum, (size_t)n * 8);
        if (out)
            judge(g, t, out);
    }
}
