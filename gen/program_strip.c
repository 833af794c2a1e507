/* SPDX-License-Identifier: Apache-2.0
 * Which reads of tensors come from strips: those of the elements of a row of
 * keys, which kernels load together. */
#include "program.h"

/* Strips lie on the stack of a kernel. */
enum { MOST_STRIPS = 16 };

/* Do the read's indices take the row alone, but for one that is k? Bits are not
 * elements of their own. */
static int strip_dim(const Program *p, const ProgramC *c, const Node *n) {
    int dim = -1;
    if (n->op != OP_READ || !(n->deps & c->lanes) ||
        p->tensor[n->i].dtype == ARRAY_BITS)
        return -1;
    for (int a = 0; a < n->nargs; a++) {
        const Node *index = &p->node[n->arg[a]];
        bool key = index->op == OP_OPERAND && index->i == OPERAND_k;
        if (key ? dim >= 0 : index->deps & (DEP_K | DEP_S | DEP_D))
            return -1;
        dim = key ? a : dim;
    }
    return dim;
}

int program_strip(const Program *p, const ProgramC *c, int node) {
    int dim = c && c->strips ? strip_dim(p, c, &p->node[node]) : -1;
    for (int i = 0, n = 0; dim >= 0 && i < node; i++) {
        if (strip_dim(p, c, &p->node[i]) >= 0 && ++n == MOST_STRIPS)
            dim = -1;
    }
    return dim;
}
