/* SPDX-License-Identifier: Apache-2.0
 * Gradients of a score program, backwards through its graph, as further nodes
 * of the graph. */
#include <stdlib.h>
#include <string.h>

#include "program_internal.h"

/* A gradient counts only where its condition holds (-1: always): the way
 * through a choice not taken may hold inf or NaN, which no 0 would undo. */
typedef struct Backward {
    Program *p;
    int32_t *grad;  /* of each node of the program: a node, or -1 */
    int32_t *where; /* its condition */
    bool *active;   /* does a gradient asked for pass here? */
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

/* v where the condition holds, else 0. */
static int guarded(const Backward *x, int v, int where) {
    return where < 0
               ? v
               : node_make(x->p, OP_SELECT, where, v, node_float(x->p, 0));
}

/* Adds v, where the condition holds, to the gradient of node a. */
static void add_where(const Backward *x, int a, int v, int where) {
    int other = x->grad[a], there = x->where[a];
    if (!x->active[a])
        return;
    if (other < 0) {
        x->grad[a] = v;
        x->where[a] = where;
    } else if (where == there) {
        x->grad[a] = make(x, OP_ADD, other, v);
    } else if (where >= 0 && make(x, OP_NOT, where, 0) == there) {
        x->grad[a] = node_make(x->p, OP_SELECT, there, other, v);
        x->where[a] = -1;
    } else {
        x->grad[a] =
            make(x, OP_ADD, guarded(x, other, there), guarded(x, v, where));
        x->where[a] =
            where < 0 || there < 0 ? -1 : make(x, OP_OR, there, where);
    }
}

/* The gradient g of choice i goes to the argument taken. */
static void back_choice(const Backward *x, int i, int condition, int yes,
                        int no, int g) {
    int where = x->where[i];
    int refused = make(x, OP_NOT, condition, 0);
    if (x->active[yes])
        add_where(x, yes, g,
                  where < 0 ? condition : make(x, OP_AND, where, condition));
    if (x->active[no])
        add_where(x, no, g,
                  where < 0 ? refused : make(x, OP_AND, where, refused));
}

/* 1 - tanh^2 */
static int tanh_slope(const Backward *x, int i) {
    return make(x, OP_SUB, node_float(x->p, 1), make(x, OP_MUL, i, i));
}

/* d i / d argument `which` times g: of the ops that are no choice. */
static int slope(const Backward *x, int i, int which, int g) {
    const Node n = x->p->node[i];
    const int a = n.arg[0], b = n.arg[1];
    switch (n.op) {
    case OP_SUB:
        return which ? make(x, OP_NEG, g, 0) : g;
    case OP_NEG:
        return make(x, OP_NEG, g, 0);
    case OP_MUL:
        return make(x, OP_MUL, g, which ? a : b);
    case OP_DIV:
        g = make(x, OP_DIV, g, b);
        return which ? make(x, OP_NEG, make(x, OP_MUL, g, i), 0) : g;
    case OP_ABS:
        return node_make(x->p, OP_SELECT,
                         make(x, OP_LT, a, node_float(x->p, 0)),
                         make(x, OP_NEG, g, 0), g);
    case OP_EXP:
        return make(x, OP_MUL, g, i);
    case OP_LOG:
        return make(x, OP_DIV, g, a);
    case OP_TANH:
        return make(x, OP_MUL, g, tanh_slope(x, i));
    default:
        return g; /* OP_ADD */
    }
}

/* Passes g, the gradient of node i, on to its arguments. */
static void back(const Backward *x, int i, int g) {
    const Node n = x->p->node[i]; /* a copy: new nodes may move the array */
    const int a = n.arg[0], b = n.arg[1];
    if (n.op == OP_SELECT) {
        back_choice(x, i, a, b, n.arg[2], g);
    } else if (n.op == OP_MIN) {
        back_choice(x, i, make(x, OP_LT, a, b), a, b, g);
    } else if (n.op == OP_MAX) {
        back_choice(x, i, make(x, OP_LT, b, a), a, b, g);
    } else if (n.op != OP_READ) {
        for (int which = 0; which < n.nargs; which++) {
            if (x->active[n.arg[which]])
                add_where(x, n.arg[which], slope(x, i, which, g), x->where[i]);
        }
    }
}

/* ---- reads ------------------------------------------------------------- */

static int index_kind(const Node *n) {
    if (n->op == OP_CONST)
        return INDEX_CONST;
    if (n->op != OP_OPERAND)
        return INDEX_EXPR;
    switch (n->i) {
    case OPERAND_b:
        return INDEX_B;
    case OPERAND_h:
        return INDEX_H;
    case OPERAND_q:
        return INDEX_Q;
    case OPERAND_k:
        return INDEX_K;
    default:
        return INDEX_EXPR;
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
    *r = (ReadGrad){.tensor = n->i,
                    .read = i,
                    .grad = grad,
                    .expr = -1,
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
                           "combinations",
                           r->expr, a);
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
        const Node n = x->p->node[i];
        if (x->grad[i] < 0)
            continue;
        if (n.op == OP_READ)
            add_read(g, i, guarded(x, x->grad[i], x->where[i]), e);
        else if (n.op == OP_OPERAND && n.i == OPERAND_s)
            g->ds = guarded(x, x->grad[i], x->where[i]);
    }
    g->p.root = g->ds >= 0 ? g->ds : node_float(&g->p, 0);
    return e->code;
}

int program_grad(const Program *p, unsigned wanted, ProgramGrad *g, Err *e) {
    const int last = p->root, n = p->root + 1;
    *g = (ProgramGrad){.ds = -1};
    if (check_wanted(p, wanted, e))
        return e->code;
    Backward x = {&g->p, malloc((size_t)n * 2 * sizeof *x.grad), NULL,
                  calloc((size_t)n, sizeof *x.active)};
    x.where = x.grad + n;
    if (!x.grad || !x.active || !program_copy(p, &g->p)) {
        free(x.grad);
        free(x.active);
        return err_set(e, ERR_MEMORY, "score", NULL, "out of memory");
    }
    g->p.kind = PROGRAM_GRADIENT;
    g->p.most = 16 * PROGRAM_NODES;
    memset(x.grad, -1, (size_t)n * 2 * sizeof *x.grad);
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

/* Dimensions in which all reads of a tensor have the index of that kind. */
static unsigned dims_by(const ProgramGrad *g, int tensor, int kind) {
    unsigned dims = ~0u;
    for (int i = 0; i < g->nread; i++) {
        const ReadGrad *r = &g->read[i];
        unsigned here = 0;
        for (int a = 0; a < g->p.node[r->read].nargs; a++)
            here |= (unsigned)(r->index[a] == kind) << a;
        dims &= r->tensor == tensor ? here : ~0u;
    }
    return dims;
}

static unsigned owned_in(const ProgramGrad *g, int tensor) {
    return (dims_by(g, tensor, INDEX_B) ? DEP_B : 0u) |
           (dims_by(g, tensor, INDEX_H) ? DEP_H : 0u) |
           (dims_by(g, tensor, INDEX_Q) ? DEP_Q : 0u);
}

/* Elements for each query or key, times those for the other or for values of
 * a computed index. */
static bool is_wide(const ReadGrad *r) {
    bool q = !(r->broadcast & DEP_Q), k = !(r->broadcast & DEP_K);
    return (q && k) || ((q || k) && r->expr >= 0);
}

GradShare grad_share(const ProgramGrad *g) {
    unsigned all = DEP_B | DEP_H | DEP_Q;
    GradShare share = {.owned = all, .split = all};
    for (int i = 0; i < g->nread; i++) {
        unsigned owned = owned_in(g, g->read[i].tensor);
        share.owned &= owned;
        share.split &= is_wide(&g->read[i]) ? owned : all;
    }
    for (int i = 0; i < g->nread; i++) {
        int t = g->read[i].tensor;
        if (share.split & ~owned_in(g, t))
            share.parted |= 1u << t;
    }
    return share;
}
