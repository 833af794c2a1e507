/* SPDX-License-Identifier: Apache-2.0
 * Gradients of a score program, backwards through its graph, as further nodes
 * of the graph. */
#include <stdlib.h>
#include <string.h>

#include "program_internal.h"

typedef struct Backward {
    Program *p;
    int32_t *grad; /* of each node of the program: a node, or -1 */
    bool *active;  /* does a gradient asked for pass here? */
} Backward;

/* ---- what takes part --------------------------------------------------- */

static void find_active(const Backward *x, int last, unsigned wanted) {
    for (int i = 0; i <= last; i++) {
        const Node *n = &x->p->node[i];
        bool on = n->op == OP_OPERAND && n->i == OPERAND_s;
        if (n->op == OP_READ)
            on = wanted >> n->i & 1;
        for (int a = 0; a < n->nargs && n->op != OP_READ; a++)
            on = on || x->active[n->arg[a]];
        x->active[i] = on && n->type == TYPE_FLOAT && n->op != OP_FLOOR;
    }
}

/* ---- one node ---------------------------------------------------------- */

static int make(const Backward *x, int op, int a, int b) {
    return node_make(x->p, op, a, b, 0);
}

/* v where the condition holds (or does not), else 0. */
static int where(const Backward *x, int condition, bool holds, int v) {
    int zero = node_float(x->p, 0);
    return node_make(x->p, OP_SELECT, condition, holds ? v : zero,
                     holds ? zero : v);
}

/* Adds v to the gradient of node a. */
static void add_to(const Backward *x, int a, int v) {
    if (x->active[a])
        x->grad[a] = x->grad[a] < 0 ? v : make(x, OP_ADD, x->grad[a], v);
}

/* The gradient g of a choice goes to the argument taken. */
static void back_choice(const Backward *x, int condition, int yes, int no,
                        int g) {
    if (x->active[yes])
        add_to(x, yes, where(x, condition, true, g));
    if (x->active[no])
        add_to(x, no, where(x, condition, false, g));
}

static void back_quotient(const Backward *x, const Node *n, int i, int g) {
    int part = make(x, OP_DIV, g, n->arg[1]);
    add_to(x, n->arg[0], part);
    if (x->active[n->arg[1]])
        add_to(x, n->arg[1],
               make(x, OP_NEG, make(x, OP_MUL, part, i), 0));
}

static void back_product(const Backward *x, const Node *n, int g) {
    for (int a = 0; a < 2; a++) {
        if (x->active[n->arg[a]])
            add_to(x, n->arg[a], make(x, OP_MUL, g, n->arg[1 - a]));
    }
}

/* 1 - tanh^2 */
static int tanh_slope(const Backward *x, int i) {
    return make(x, OP_SUB, node_float(x->p, 1), make(x, OP_MUL, i, i));
}

/* Passes g, the gradient of node i, on to its arguments. */
static void back(const Backward *x, int i, int g) {
    const Node n = x->p->node[i]; /* a copy: new nodes may move the array */
    const int a = n.arg[0], b = n.arg[1];
    switch (n.op) {
    case OP_ADD:
        add_to(x, a, g);
        add_to(x, b, g);
        break;
    case OP_SUB:
        add_to(x, a, g);
        if (x->active[b])
            add_to(x, b, make(x, OP_NEG, g, 0));
        break;
    case OP_MUL: back_product(x, &n, g); break;
    case OP_DIV: back_quotient(x, &n, i, g); break;
    case OP_NEG: add_to(x, a, make(x, OP_NEG, g, 0)); break;
    case OP_MIN: back_choice(x, make(x, OP_LT, a, b), a, b, g); break;
    case OP_MAX: back_choice(x, make(x, OP_LT, b, a), a, b, g); break;
    case OP_ABS:
        add_to(x, a, node_make(x->p, OP_SELECT,
                               make(x, OP_LT, a, node_float(x->p, 0)),
                               make(x, OP_NEG, g, 0), g));
        break;
    case OP_EXP: add_to(x, a, make(x, OP_MUL, g, i)); break;
    case OP_LOG: add_to(x, a, make(x, OP_DIV, g, a)); break;
    case OP_TANH: add_to(x, a, make(x, OP_MUL, g, tanh_slope(x, i))); break;
    case OP_SELECT: back_choice(x, a, b, n.arg[2], g); break;
    default: break; /* s, a read */
    }
}

/* ---- reads ------------------------------------------------------------- */

static int index_kind(const Node *n) {
    if (n->op == OP_CONST)
        return INDEX_CONST;
    if (n->op != OP_OPERAND)
        return INDEX_EXPR;
    switch (n->i) {
    case OPERAND_b: return INDEX_B;
    case OPERAND_h: return INDEX_H;
    case OPERAND_q: return INDEX_Q;
    case OPERAND_k: return INDEX_K;
    default: return INDEX_EXPR;
    }
}

/* How the element of READ i is chosen. */
static int add_read(ProgramGrad *g, int i, int grad, Err *e) {
    const Node *n = &g->p.node[i];
    const char *name = g->p.tensor[n->i].name;
    if (g->nread == PROGRAM_READS)
        return err_set(e, ERR_REQUEST, "score", name,
                       "gradients of more than %d reads", PROGRAM_READS);
    ReadGrad *r = &g->read[g->nread++];
    *r = (ReadGrad){.tensor = n->i, .read = i, .grad = grad, .expr = -1,
                    .broadcast = DEP_B | DEP_H | DEP_Q | DEP_K};
    for (int a = 0; a < n->nargs; a++) {
        r->index[a] = index_kind(&g->p.node[n->arg[a]]);
        if (r->index[a] <= INDEX_K)
            r->broadcast &= ~(1u << r->index[a]);
        if (r->index[a] != INDEX_EXPR)
            continue;
        if (r->expr >= 0)
            return err_set(e, ERR_REQUEST, "score", name,
                           "its gradient needs each index to be b, h, q, k, a "
                           "constant, or one computed index; dimensions %d "
                           "and %d are computed; nearest: one table of their "
                           "combinations", r->expr, a);
        r->expr = a;
    }
    return 0;
}

static int check_wanted(const Program *p, unsigned wanted, Err *e) {
    for (int t = 0; t < p->tensors; t++) {
        if (wanted >> t & 1 &&
            program_dtype_type(p->tensor[t].dtype) != TYPE_FLOAT)
            return err_set(e, ERR_REQUEST, "score", p->tensor[t].name,
                           "%s tensors have no gradient; nearest: f32",
                           program_dtype_name(p->tensor[t].dtype));
    }
    return 0;
}

/* ---- the whole --------------------------------------------------------- */

static int collect(const Backward *x, int last, ProgramGrad *g, Err *e) {
    for (int i = 0; i <= last && !e->code; i++) {
        const Node *n = &x->p->node[i];
        if (x->grad[i] < 0)
            continue;
        if (n->op == OP_READ)
            add_read(g, i, x->grad[i], e);
        else if (n->op == OP_OPERAND && n->i == OPERAND_s)
            g->ds = x->grad[i];
    }
    g->p.root = g->ds >= 0 ? g->ds : node_float(&g->p, 0);
    return e->code;
}

int program_grad(const Program *p, unsigned wanted, ProgramGrad *g, Err *e) {
    const int last = p->root, n = p->root + 1;
    *g = (ProgramGrad){.ds = -1};
    if (check_wanted(p, wanted, e))
        return e->code;
    Backward x = {&g->p, malloc((size_t)n * sizeof *x.grad),
                  calloc((size_t)n, sizeof *x.active)};
    if (!x.grad || !x.active || !program_copy(p, &g->p)) {
        free(x.grad);
        free(x.active);
        return err_set(e, ERR_MEMORY, "score", NULL, "out of memory");
    }
    g->p.kind = PROGRAM_GRADIENT;
    g->p.most = 16 * PROGRAM_NODES;
    memset(x.grad, -1, (size_t)n * sizeof *x.grad);
    find_active(&x, last, wanted);
    if (x.active[last])
        x.grad[last] = node_operand(&g->p, OPERAND_dout);
    for (int i = last; i >= 0; i--) {
        if (x.grad[i] >= 0)
            back(&x, i, x.grad[i]);
    }
    collect(&x, last, g, e);
    if (g->p.full)
        err_set(e, ERR_REQUEST, "score", NULL,
                "its gradient takes more than %d operations", g->p.most);
    free(x.grad);
    free(x.active);
    return e->code;
}
