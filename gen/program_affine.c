/* SPDX-License-Identifier: Apache-2.0
 * Loop bounds of a mask: its conditions that are linear in q and k, as facts
 * about k; and the keys that follow for a range of queries, in 64 bits. */
#include <stdlib.h>
#include <string.h>

#include "program_internal.h"

/* Factors stay below this, values below 2^31: no sum of ours overflows. */
enum { MOST_FACTOR = 1 << 24, MOST_ORS = 3 };

typedef struct Finder {
    const Program *p;
    const Range *range; /* over all a launch may hold, numbers read near */
    const Range *wide;  /* the same, numbers read anything */
} Finder;

/* ---- linear forms ------------------------------------------------------ */

/* The term's range is what makes the sums around it stay in int32. */
static bool add_term(const Finder *x, Affine *f, int node, int64_t mul) {
    int i = 0;
    while (i < f->nterm && f->term[i] != node)
        i++;
    if (i == AFFINE_TERMS)
        return false;
    f->term[i] = node;
    f->lo[i] = (int32_t)x->range[node].lo;
    f->hi[i] = (int32_t)x->range[node].hi;
    f->guard[i] = x->wide[node].lo < x->range[node].lo ||
                  x->wide[node].hi > x->range[node].hi;
    f->mul[i] = i < f->nterm ? f->mul[i] + mul : mul;
    f->nterm += i == f->nterm;
    return llabs(f->mul[i]) < MOST_FACTOR;
}

/* f += mul * node; false: not linear, or it may wrap. */
static bool add_linear(const Finder *x, int node, int64_t mul, Affine *f) {
    const Node *n = &x->p->node[node];
    const Node *b = &x->p->node[n->arg[1]];
    if (llabs(mul) >= MOST_FACTOR)
        return false;
    if (n->op == OP_CONST) {
        f->add += mul * n->i;
        return true;
    }
    if (!(n->deps & (DEP_Q | DEP_K)))
        return add_term(x, f, node, mul);
    if (n->op == OP_OPERAND) {
        *(n->i == OPERAND_q ? &f->q_mul : &f->k_mul) += mul;
        return true;
    }
    if (x->range[node].wraps)
        return false;
    switch (n->op) {
    case OP_ADD:
    case OP_SUB:
        return add_linear(x, n->arg[0], mul, f) &&
               add_linear(x, n->arg[1], n->op == OP_ADD ? mul : -mul, f);
    case OP_NEG:
        return add_linear(x, n->arg[0], -mul, f);
    case OP_MUL:
        if (b->op != OP_CONST)
            b = &x->p->node[n->arg[0]];
        return b->op == OP_CONST && llabs((int64_t)b->i) < MOST_FACTOR &&
               add_linear(x, n->arg[b == &x->p->node[n->arg[0]]], mul * b->i,
                          f);
    default:
        return false;
    }
}

/* ---- facts ------------------------------------------------------------- */

/* To every way; false: no room. */
static bool add_fact(ProgramBounds *b, const Affine *f) {
    for (int i = 0; i < b->nway; i++) {
        if (b->nfact[i] == AFFINE_FACTS)
            return false;
    }
    for (int i = 0; i < b->nway; i++)
        b->fact[i][b->nfact[i]++] = *f;
    return true;
}

/* sign * a + strict <= b, where a is a largest and b a smallest of several as
 * well; false: some of it is not said. */
static bool add_order(const Finder *x, int a, int sign, int b, bool strict,
                      ProgramBounds *out) {
    const Node *left = &x->p->node[a], *right = &x->p->node[b];
    Affine f = {.add = strict};
    bool said;
    if (right->op == OP_MIN) {
        said = add_order(x, a, sign, right->arg[0], strict, out);
        return add_order(x, a, sign, right->arg[1], strict, out) && said;
    }
    if (left->op == (sign > 0 ? OP_MAX : OP_MIN)) {
        said = add_order(x, left->arg[0], sign, b, strict, out);
        return add_order(x, left->arg[1], sign, b, strict, out) && said;
    }
    if (left->op == OP_ABS && sign > 0 && !x->range[a].wraps) {
        said = add_order(x, left->arg[0], 1, b, strict, out);
        return add_order(x, left->arg[0], -1, b, strict, out) && said;
    }
    return add_linear(x, a, sign, &f) && add_linear(x, b, -1, &f) &&
           llabs(f.q_mul) < MOST_FACTOR && llabs(f.k_mul) < MOST_FACTOR &&
           add_fact(out, &f);
}

/* A comparison, or its opposite; false: some of it is not said. */
static bool add_comparison(const Finder *x, const Node *n, bool opposite,
                           ProgramBounds *out) {
    int a = n->arg[0], b = n->arg[1], op = n->op;
    if (n->nargs != 2 || x->p->node[a].type != TYPE_INT)
        return false;
    if (opposite && (op == OP_LT || op == OP_LE))
        return add_order(x, b, 1, a, op == OP_LE, out);
    if (op == OP_LT || op == OP_LE)
        return add_order(x, a, 1, b, op == OP_LT, out);
    if (op != (opposite ? OP_NE : OP_EQ))
        return false;
    bool said = add_order(x, a, 1, b, false, out);
    return add_order(x, b, 1, a, false, out) && said;
}

/* ---- conditions -------------------------------------------------------- */

static void add_condition(const Finder *x, int node, bool opposite, int ors,
                          ProgramBounds *out);

/* Not inlined: its copies would sit in every level of a long chain. */
__attribute__((noinline)) static void add_either(const Finder *x, const Node *n,
                                                 bool opposite, int ors,
                                                 ProgramBounds *out) {
    ProgramBounds second = *out;
    if (ors == MOST_ORS || 2 * out->nway > AFFINE_WAYS) {
        out->exact = false;
        return;
    }
    ProgramBounds first = *out;
    add_condition(x, n->arg[0], opposite, ors + 1, &first);
    add_condition(x, n->arg[1], opposite, ors + 1, &second);
    if (first.nway + second.nway > AFFINE_WAYS) {
        out->exact = false;
        return;
    }
    for (int i = 0; i < second.nway; i++) {
        first.nfact[first.nway] = second.nfact[i];
        memcpy(first.fact[first.nway++], second.fact[i], sizeof second.fact[i]);
    }
    first.exact = first.exact && second.exact;
    *out = first;
}

/* What node, or its opposite, says, to every way. */
static void add_condition(const Finder *x, int node, bool opposite, int ors,
                          ProgramBounds *out) {
    const Node *n = &x->p->node[node];
    while (n->op == OP_NOT) {
        opposite = !opposite;
        n = &x->p->node[n->arg[0]];
    }
    if (n->op == (opposite ? OP_OR : OP_AND)) {
        add_condition(x, n->arg[0], opposite, ors, out);
        add_condition(x, n->arg[1], opposite, ors, out);
    } else if (n->op == OP_OR || n->op == OP_AND) {
        add_either(x, n, opposite, ors, out);
    } else if (n->op == OP_CONST) {
        const Affine never = {.add = 1};
        if (!n->i != opposite && !add_fact(out, &never))
            out->exact = false;
    } else if (!add_comparison(x, n, opposite, out)) {
        out->exact = false;
    }
}

/* Numbers read are taken to be as near as positions; who evaluates a fact
 * checks it by the ranges of its terms. */
static bool read_near(void *user, int tensor, int rank, const Range *index,
                      Range *out) {
    const Program *p = user;
    (void)rank;
    (void)index;
    *out = (Range){-PROGRAM_FAR, PROGRAM_FAR, false, false};
    return p->tensor[tensor].dtype == ARRAY_I32;
}

bool program_bounds(const Program *p, ProgramBounds *out) {
    ProgramTile all = program_everywhere();
    Range *known = malloc((size_t)p->count * 2 * sizeof *known);
    *out = (ProgramBounds){.nway = 1, .exact = true};
    if (!known)
        return false;
    program_ranges(p, &all, p->root, known + p->count);
    all.read = read_near;
    all.user = (void *)p;
    program_ranges(p, &all, p->root, known);
    const Finder x = {p, known, known + p->count};
    add_condition(&x, p->root, false, 0, out);
    free(known);
    return true;
}

/* ---- keys of a range of queries ---------------------------------------- */

static int64_t floor_div(int64_t a, int64_t b) {
    int64_t q = a / b;
    return q - (a % b != 0 && (a < 0) != (b < 0));
}

/* Are the terms what the fact was made for? */
static bool applies(const Affine *f, const double *value) {
    for (int i = 0; i < f->nterm; i++) {
        if (value[f->term[i]] < f->lo[i] || value[f->term[i]] > f->hi[i])
            return false;
    }
    return true;
}

/* The fact without k, at the query where it is least, or most. */
static int64_t rest_of(const Affine *f, const double *value, int64_t q0,
                       int64_t q1, bool most) {
    int64_t x = f->q_mul * q0, y = f->q_mul * q1;
    int64_t sum = f->add + ((x > y) == most ? x : y);
    for (int i = 0; i < f->nterm; i++)
        sum += f->mul[i] * (int64_t)value[f->term[i]];
    return sum;
}

/* Cuts [*lo, *hi) down to the keys for which k_mul * k + rest <= 0. */
static void cut(int64_t k_mul, int64_t rest, int64_t *lo, int64_t *hi) {
    if (k_mul > 0) {
        int64_t end = floor_div(-rest, k_mul) + 1;
        *hi = end < *hi ? end : *hi;
    } else if (k_mul < 0) {
        int64_t begin = -floor_div(-rest, -k_mul);
        *lo = begin > *lo ? begin : *lo;
    } else if (rest > 0) {
        *hi = *lo;
    }
}

/* A fact that does not apply says nothing: no key is cut off for that, and of
 * none is it known that every query sees it. */
static void cut_way(const ProgramBounds *x, int way, const double *value,
                    int64_t q0, int64_t q1, bool every, int64_t *lo,
                    int64_t *hi) {
    for (int i = 0; i < x->nfact[way]; i++) {
        const Affine *f = &x->fact[way][i];
        if (applies(f, value))
            cut(f->k_mul, rest_of(f, value, q0, q1, every), lo, hi);
        else if (every)
            *hi = *lo;
    }
}

void bounds_some(const ProgramBounds *x, const double *value, int64_t q0,
                 int64_t q1, int64_t nk, int64_t *lo, int64_t *hi) {
    *lo = *hi = 0;
    for (int i = 0; i < x->nway; i++) {
        int64_t begin = 0, end = nk;
        cut_way(x, i, value, q0, q1, false, &begin, &end);
        if (begin >= end)
            continue;
        bool first = *lo == *hi;
        *lo = first || begin < *lo ? begin : *lo;
        *hi = first || end > *hi ? end : *hi;
    }
}

void bounds_all(const ProgramBounds *x, const double *value, int64_t q0,
                int64_t q1, int64_t nk, int64_t *lo, int64_t *hi) {
    *lo = 0;
    *hi = nk;
    if (x->exact && x->nway == 1)
        cut_way(x, 0, value, q0, q1, true, lo, hi);
    else
        *hi = 0;
    *lo = *lo < *hi ? *lo : *hi;
}
