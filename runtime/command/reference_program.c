/* SPDX-License-Identifier: Apache-2.0
 * Programs of a spec for the reference: what of a pair is the same for its
 * whole row is computed once a row. What is decided (a mask, an index, a
 * branch) has the values of f32, as the language says; scores are f64, and f32
 * beside them for unfused attention. */
#include "reference_rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LATE = DEP_K | DEP_S | DEP_D };

/* ---- what is read ------------------------------------------------------ */

static const attnc_array *find(const attnc_args *a, const char *name) {
    for (int64_t i = 0; i < a->tensor_count; i++)
        if (!strcmp(a->tensors[i].name, name))
            return &a->tensors[i];
    return NULL;
}

/* A tensor that is not given reads as one of no elements. */
static void open_graph(RefGraph *g, const Program *p, const attnc_args *a) {
    *g = (RefGraph){.p = p};
    for (int t = 0; p && t < p->tensors; t++) {
        const attnc_array *from = find(a, p->tensor[t].name);
        ProgramArray *to = &g->array[t];
        to->dtype = p->tensor[t].dtype;
        to->at = from ? from->data : NULL;
        for (int d = 0; from && d < p->tensor[t].rank; d++) {
            to->n[d] = from->n[d];
            to->stride[d] = from->stride[d];
        }
    }
}

void ref_programs_make(RefPrograms *x, const attnc_spec *s,
                       const attnc_args *a) {
    open_graph(&x->keep, spec_keep(s), a);
    open_graph(&x->score, spec_score(s), a);
    x->grads = s->pass == ATTNC_PASS_BWD ? spec_score_grad(s) : NULL;
    open_graph(&x->grad, x->grads ? &x->grads->p : NULL, a);
}

/* ---- values ------------------------------------------------------------ */

/* The last node of the gradients that is asked for. */
static int last_of(const RefPrograms *x, const RefGraph *g) {
    int last = g->p->root;
    if (g != &x->grad)
        return last;
    last = x->score.p->root > last ? x->score.p->root : last;
    for (int i = 0; i < x->grads->nread; i++)
        last = x->grads->read[i].grad > last ? x->grads->read[i].grad : last;
    return last;
}

static bool open_values(RefValues *v, const RefPrograms *x, const RefGraph *g,
                        bool narrow) {
    *v = (RefValues){.p = g->p};
    if (!g->p)
        return true;
    v->last = last_of(x, g);
    v->value = malloc(2 * sizeof(double) * (size_t)(v->last + 1));
    v->env.array = g->array;
    v->env.narrow = narrow;
    v->env.operand[OPERAND_dout] = 1;
    if (v->value && !narrow && program_decides(g->p, v->last))
        v->env.f32 = v->value + v->last + 1;
    return v->value != NULL;
}

bool ref_eval_alloc(RefEval *v, const RefPrograms *x) {
    v->x = x;
    bool keep = open_values(&v->keep, x, &x->keep, true);
    const RefGraph *score = x->grads ? &x->grad : &x->score;
    bool wide = open_values(&v->wide, x, score, false);
    return open_values(&v->f32, x, score, true) && keep && wide;
}

void ref_eval_free(RefEval *v) {
    free(v->keep.value);
    free(v->wide.value);
    free(v->f32.value);
}

static void open_row(RefValues *v, const RefPlace *at, const RefSeq *q) {
    double *x = v->env.operand;
    if (!v->p)
        return;
    x[OPERAND_b] = (double)at->b;
    x[OPERAND_h] = (double)at->h;
    x[OPERAND_q] = (double)at->i;
    x[OPERAND_nq] = (double)q->nq;
    x[OPERAND_nk] = (double)q->all;
    x[OPERAND_off] = (double)q->offset;
    program_eval_stage(v->p, &v->env, v->last, 0, LATE, v->value);
}

void ref_eval_row(RefEval *v, const RefSeq *q, int64_t b, int64_t h,
                  int64_t i) {
    RefPlace at = {.b = b, .h = h, .i = i};
    open_row(&v->keep, &at, q);
    open_row(&v->wide, &at, q);
    open_row(&v->f32, &at, q);
}

const double *ref_eval_values(RefValues *v, int64_t j, double s) {
    v->env.operand[OPERAND_k] = (double)j;
    v->env.operand[OPERAND_s] = s;
    program_eval_stage(v->p, &v->env, v->last, LATE, 0, v->value);
    return v->value;
}

bool ref_eval_keep(RefEval *v, int64_t j) {
    if (!v->keep.p)
        return true;
    return ref_eval_values(&v->keep, j, 0)[v->keep.p->root] != 0;
}

static double score(const RefEval *v, RefValues *values, int64_t j, double s,
                    double *slope) {
    const RefPrograms *x = v->x;
    *slope = 1;
    if (!values->p)
        return s;
    const double *value = ref_eval_values(values, j, s);
    if (x->grads)
        *slope = x->grads->ds < 0 ? 0 : value[x->grads->ds];
    return value[x->score.p->root];
}

double ref_eval_score(RefEval *v, int64_t j, double s, double *slope) {
    return score(v, &v->wide, j, s, slope);
}

float ref_eval_score32(RefEval *v, int64_t j, float s, float *slope) {
    double by;
    float x = (float)score(v, &v->f32, j, s, &by);
    *slope = (float)by;
    return x;
}

/* ---- tiles of the forward ---------------------------------------------- */

bool ref_tile_keep(RefWork *w, const RefGroup *g, int64_t j, int n, Lanes *s,
                   Lanes32 *s32) {
    bool any = !w->p->programs.keep.p;
    for (int t = 0; t < g->n && w->p->programs.keep.p; t++) {
        int64_t lo = g->lo[t] - j, hi = g->hi[t] - j;
        ref_eval_row(&w->eval, &g->seq, g->b, g->h, g->row[t]);
        for (int r = 0; r < n; r++) {
            bool in = r >= lo && r < hi;
            w->kept[r][t] = in && ref_eval_keep(&w->eval, j + r);
            any |= w->kept[r][t];
        }
    }
    for (int r = 0; r < n && !any; r++)
        for (int t = 0; t < REF_LANES; t++) {
            s[r][t] = -INFINITY;
            if (w->p->unfused)
                s32[r][t] = -INFINITY;
        }
    return any;
}

void ref_tile_bend(RefWork *w, const RefGroup *g, int64_t j, int n, Lanes *s,
                   Lanes32 *s32) {
    bool keep = w->p->programs.keep.p, score = w->p->programs.score.p;
    double slope;
    float slope32;
    for (int t = 0; t < g->n && (keep || score); t++) {
        ref_eval_row(&w->eval, &g->seq, g->b, g->h, g->row[t]);
        for (int r = 0; r < n; r++) {
            bool seen = j + r >= g->lo[t] && j + r < g->hi[t];
            seen = seen && (!keep || w->kept[r][t]);
            s[r][t] = seen ? ref_eval_score(&w->eval, j + r, s[r][t], &slope)
                           : -INFINITY;
            if (w->p->unfused)
                s32[r][t] = seen ? ref_eval_score32(&w->eval, j + r, s32[r][t],
                                                    &slope32)
                                 : -INFINITY;
        }
    }
}
