/* SPDX-License-Identifier: Apache-2.0
 * The verdict of a mask over a tile as C: interval arithmetic on ints and
 * bools, a helper call for every operation. Floats count as unknown. */
#include <stdlib.h>
#include <string.h>

#include "program_internal.h"

typedef struct Printer {
    const Program *p;
    const int *roots;
    int nroots;
    const ProgramC *c;
    Str *out;
} Printer;

static const char *const helper[OPS] = {
    [OP_ADD] = "add",         [OP_SUB] = "sub",         [OP_MUL] = "mul",
    [OP_DIV] = "div",         [OP_MOD] = "mod",         [OP_NEG] = "neg",
    [OP_SHL] = "shl",         [OP_SHR] = "shr",         [OP_LT] = "lt",
    [OP_LE] = "le",           [OP_EQ] = "eq",           [OP_NE] = "ne",
    [OP_BIT_AND] = "bit_and", [OP_BIT_XOR] = "bit_xor", [OP_BIT_OR] = "bit_or",
    [OP_AND] = "and",         [OP_OR] = "or",           [OP_NOT] = "not",
    [OP_BIT_NOT] = "bit_not", [OP_MIN] = "min",         [OP_MAX] = "max",
    [OP_ABS] = "abs",         [OP_SELECT] = "select"};

/* Has the node one value for the whole tile? */
static bool is_single(const ProgramC *c, const Node *n) {
    return program_stage(c, n->deps) == STAGE_ENTRY;
}

static bool is_known(const Program *p, const Node *n) {
    for (int a = 0; a < n->nargs; a++) {
        if (p->node[n->arg[a]].type == TYPE_FLOAT)
            return false;
    }
    return n->type != TYPE_FLOAT;
}

/* Marks the nodes whose ranges are needed: 1, or 2 where single. */
static char *find_needed(const Program *p, const ProgramC *c) {
    char *need = calloc((size_t)p->root + 1, 1);
    if (!need)
        return NULL;
    need[p->root] = 1;
    for (int i = p->root; i >= 0; i--) {
        const Node *n = &p->node[i];
        if (!need[i])
            continue;
        if (is_single(c, n)) {
            need[i] = 2;
            continue;
        }
        for (int a = 0; a < n->nargs && is_known(p, n); a++)
            need[n->arg[a]] = 1;
    }
    return need;
}

int verdict_roots(const Program *p, const ProgramC *c, int *node, int most) {
    char *need = find_needed(p, c);
    int n = 0;
    for (int i = 0; need && i <= p->root; i++) {
        if (need[i] == 2 && p->node[i].nargs && n < most)
            node[n++] = i;
    }
    n = need ? n : -1;
    free(need);
    return n;
}

static void print_read(const Printer *x, const Node *n) {
    const ProgramTensor *t = &x->p->tensor[n->i];
    str_addf(x->out, "range_read_%s_%d(tensor_%s", program_dtype_name(t->dtype),
             t->rank, t->name);
    for (int a = 0; a < n->nargs; a++)
        str_addf(x->out, ", r%d", n->arg[a]);
    str_addf(x->out, ")");
}

static void print_range(const Printer *x, int i, bool single) {
    const Node *n = &x->p->node[i];
    if (single) {
        str_addf(x->out, "range_of(");
        for (int end = 0; end < 2; end++) {
            program_c_value(x->p, x->roots, x->nroots, x->c, i, x->out);
            str_addf(x->out, end ? ")" : ", ");
        }
    } else if (!is_known(x->p, n)) {
        str_addf(x->out,
                 n->type == TYPE_BOOL ? "range_of(0, 1)" : "range_any()");
    } else if (n->op == OP_OPERAND) {
        const char *name = program_operands[n->i].name;
        str_addf(x->out, "range_of((int)%s0, (int)%s1)", name, name);
    } else if (n->op == OP_READ) {
        print_read(x, n);
    } else {
        str_addf(x->out, "range_%s(", helper[n->op]);
        for (int a = 0; a < n->nargs; a++)
            str_addf(x->out, a ? ", r%d" : "r%d", n->arg[a]);
        str_addf(x->out, ")");
    }
}

void program_c_verdict(const Program *p, const int *roots, int nroots,
                       const ProgramC *c, Str *out) {
    const Printer x = {p, roots, nroots, c, out};
    char *need = find_needed(p, c);
    out->bad = out->bad || !need;
    for (int i = 0; need && i <= p->root; i++) {
        if (!need[i])
            continue;
        str_addf(out, "    const struct range r%d = ", i);
        print_range(&x, i, need[i] == 2);
        str_addf(out, ";\n");
    }
    str_addf(out, "    const int verdict = r%d.lo ? 2 : r%d.hi;\n", p->root,
             p->root);
    free(need);
}
