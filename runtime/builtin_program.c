/* SPDX-License-Identifier: Apache-2.0
 * Mask and score programs for the precompiled kernels: their graphs evaluated
 * pair by pair, floats rounded to f32; what a row's pairs share once a row. */
#include "builtin_item.h"

enum { LATE = DEP_K | DEP_S | DEP_D };

/* ---- which programs ---------------------------------------------------- */

/* Putting a spec's programs together takes a search; a thread remembers the
 * last one. Pointers alone: a library loaded late has little room for what is
 * each thread's own. */
static Programs find(const attnc_spec *s) {
    static _Thread_local struct {
        const attnc_program *mask, *score, *sparsity;
        int32_t bias, grads, pass;
        const Program *keep, *scores;
        const ProgramGrad *gradients;
    } last;
    if (last.mask != s->mask_program || last.score != s->score_program ||
        last.sparsity != s->sparsity || last.bias != s->bias ||
        last.grads != s->tensor_grads || last.pass != s->pass) {
        last.mask = s->mask_program;
        last.score = s->score_program;
        last.sparsity = s->sparsity;
        last.bias = s->bias;
        last.grads = s->tensor_grads;
        last.pass = s->pass;
        last.keep = spec_keep(s);
        last.scores = spec_score(s);
        last.gradients = s->pass == ATTNC_PASS_BWD ? spec_score_grad(s) : NULL;
    }
    return (Programs){
        .keep = last.keep, .score = last.scores, .grads = last.gradients};
}

/* args_check has seen that every tensor is there. */
static void open_arrays(const Program *p, const attnc_args *a,
                        ProgramArray out[PROGRAM_TENSORS]) {
    for (int t = 0; t < p->tensors; t++) {
        const attnc_array *from = a->tensors;
        while (strcmp(from->name, p->tensor[t].name))
            from++;
        out[t] = (ProgramArray){.at = from->data, .dtype = from->dtype};
        memcpy(out[t].n, from->n, sizeof from->n);
        memcpy(out[t].stride, from->stride, sizeof from->stride);
    }
}

/* The last value of the score's graph that is asked for. */
static int last_of(const Programs *x) {
    int last = x->score->root;
    for (int i = 0; x->grads && i < x->grads->nread; i++)
        last = x->grads->read[i].grad > last ? x->grads->read[i].grad : last;
    return x->grads && x->grads->ds > last ? x->grads->ds : last;
}

char *open_programs(Item *t, char *scratch) {
    const attnc_args *a = pointer(t, AT_args);
    t->has_programs = spec_has_programs(t->spec);
    if (!t->has_programs)
        return scratch;
    Programs *x = &t->programs;
    *x = find(t->spec);
    double *value = (double *)scratch;
    if (x->keep) {
        x->keep_values = (Values){x->keep, x->keep->root, value, {.narrow = 1}};
        open_arrays(x->keep, a, x->keep_values.array);
        value += x->keep->count;
    }
    if (x->score) {
        const Program *p = x->grads ? &x->grads->p : x->score;
        x->score_values = (Values){p, last_of(x), value, {.narrow = 1}};
        x->score_values.env.operand[OPERAND_dout] = 1;
        open_arrays(p, a, x->score_values.array);
    }
    return scratch + spec_values_bytes(t->spec);
}

/* ---- values ------------------------------------------------------------ */

static void open_row(const Item *t, Values *v, int64_t h, int64_t i) {
    double *x = v->env.operand;
    v->env.array = v->array;
    x[OPERAND_b] = (double)t->b;
    x[OPERAND_h] = (double)h;
    x[OPERAND_q] = (double)i;
    x[OPERAND_nq] = (double)t->nq;
    x[OPERAND_nk] = (double)t->all;
    x[OPERAND_off] = (double)t->offset;
    program_eval_stage(v->p, &v->env, v->last, 0, LATE, v->value);
}

const double *pair_values(Values *v, int64_t j, float s) {
    v->env.operand[OPERAND_k] = (double)j;
    v->env.operand[OPERAND_s] = (double)s;
    program_eval_stage(v->p, &v->env, v->last, LATE, 0, v->value);
    return v->value;
}

void open_pairs(Item *t, int64_t h, int64_t i) {
    if (t->programs.keep)
        open_row(t, &t->programs.keep_values, h, i);
    if (t->programs.score)
        open_row(t, &t->programs.score_values, h, i);
}

bool pair_kept(Item *t, int64_t j) {
    Programs *x = &t->programs;
    return !x->keep || pair_values(&x->keep_values, j, 0)[x->keep->root] != 0;
}

/* The score of a pair, and its slope times that of the softcap. */
static float bend_pair(Item *t, int64_t j, float s, float *bend) {
    Programs *x = &t->programs;
    if (!x->score)
        return s;
    const double *value = pair_values(&x->score_values, j, s);
    if (x->grads)
        *bend *= x->grads->ds < 0 ? 0 : (float)value[x->grads->ds];
    return (float)value[x->score->root];
}

/* Idle lanes see nothing: what they would see may hold NaN. */
static void close_lane(Item *t, int x, int n) {
    for (int r = 0; r < n; r++)
        t->s[r * LANES + x] = -INFINITY;
}

void bend_scores(Item *t, int u, int64_t j, int n) {
    for (int x = 0; x < LANES; x++) {
        if (u * LANES + x >= t->rows) {
            close_lane(t, x, n);
            continue;
        }
        int64_t row = t->row[u * LANES + x];
        open_pairs(t, t->hk * t->group + row % t->group, row / t->group);
        for (int r = 0; r < n; r++) {
            float *s = t->s + r * LANES + x, none = 1;
            if (*s == -INFINITY)
                continue;
            *s = pair_kept(t, j + r)
                     ? bend_pair(t, j + r, *s,
                                 t->bend ? t->bend + r * LANES + x : &none)
                     : -INFINITY;
        }
    }
}
