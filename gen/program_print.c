/* SPDX-License-Identifier: Apache-2.0
 * A program's graph as canonical text: shared and deep parts are `let`s, the
 * rest is written where it is used. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "program_internal.h"

int32_t *program_names(const Program *p, const int *roots, int nroots,
                       const ProgramC *c) {
    int32_t *uses = malloc((size_t)p->count * 2 * sizeof *uses);
    int32_t *height = uses ? uses + p->count : NULL;
    if (!uses)
        return NULL;
    program_uses(p, roots, nroots, uses);
    for (int i = 0; c && i < nroots; i++)
        uses[roots[i]] += program_stage(c, p->node[roots[i]].deps) < STAGE_PAIR;
    for (int i = 0; i < p->count; i++) {
        const Node *n = &p->node[i];
        height[i] = 0;
        for (int a = 0; a < n->nargs; a++) {
            /* Parts needed less often are values of their own. */
            int arg = n->arg[a];
            if (c && p->node[arg].nargs &&
                program_stage(c, p->node[arg].deps) !=
                    program_stage(c, n->deps))
                uses[arg] += uses[i] > 0;
            if (uses[arg] < 2 && height[arg] >= height[i])
                height[i] = height[arg] + 1;
        }
        if (uses[i] &&
            (height[i] > INLINE_HEIGHT || program_strip(p, c, i) >= 0))
            uses[i]++;
    }
    for (int i = 0, n = 0; i < p->count; i++)
        uses[i] = p->node[i].nargs && uses[i] > 1 ? ++n : -(uses[i] > 0);
    return uses;
}

void program_number(float value, Str *out) {
    Str text = {0};
    double back = 0;
    for (int digits = 6; digits <= 9 && (digits == 6 || back != value);
         digits++) {
        str_free(&text);
        str_addf(&text, "%.*g", digits, (double)value);
        if (text.bad || !slice_double((Slice){text.text, text.len}, &back))
            break;
        back = (float)back;
    }
    if (text.bad)
        out->bad = true;
    else
        str_addf(out, "%s%s", text.text, strpbrk(text.text, ".e") ? "" : ".0");
    str_free(&text);
}

/* ---- canonical text ---------------------------------------------------- */

typedef struct Printer {
    const Program *p;
    const int32_t *name; /* program_names */
    Str *out;
} Printer;

static void print_node(const Printer *x, int i, int precedence);

static void print_constant(const Node *n, Str *out) {
    if (n->type == TYPE_BOOL)
        str_addf(out, n->i ? "true" : "false");
    else if (n->type == TYPE_INT)
        str_addf(out, "%d", n->i);
    else if (isinf(n->f))
        str_addf(out, n->f < 0 ? "-inf" : "inf");
    else
        program_number(n->f, out);
}

static void print_list(const Printer *x, const Node *n, const char *open,
                       const char *close) {
    str_addf(x->out, "%s", open);
    for (int a = 0; a < n->nargs; a++) {
        str_addf(x->out, a ? ", " : "");
        print_node(x, n->arg[a], 0);
    }
    str_addf(x->out, "%s", close);
}

static void print_infix(const Printer *x, const Node *n, int precedence) {
    const OpRow *row = &program_ops[n->op];
    bool enclosed = row->precedence < precedence;
    str_addf(x->out, enclosed ? "(" : "");
    if (row->nargs > 1) {
        print_node(x, n->arg[0], row->precedence);
        str_addf(x->out, " %s ", row->spelling);
        print_node(x, n->arg[1], row->precedence + 1);
    } else {
        str_addf(x->out, "%s", row->spelling);
        print_node(x, n->arg[0], row->precedence);
    }
    str_addf(x->out, enclosed ? ")" : "");
}

/* The node's op written out, whether it has a name or not. */
static void print_op(const Printer *x, const Node *n, int precedence) {
    if (n->op == OP_CONST) {
        print_constant(n, x->out);
    } else if (n->op == OP_OPERAND) {
        str_addf(x->out, "%s", program_operands[n->i].name);
    } else if (n->op == OP_READ) {
        str_addf(x->out, "%s", x->p->tensor[n->i].name);
        if (n->nargs)
            print_list(x, n, "[", "]");
    } else if (program_ops[n->op].precedence) {
        print_infix(x, n, precedence);
    } else {
        str_addf(x->out, "%s", program_ops[n->op].spelling);
        print_list(x, n, "(", ")");
    }
}

static void print_node(const Printer *x, int i, int precedence) {
    if (x->name[i] > 0)
        str_addf(x->out, "_%d", x->name[i]);
    else
        print_op(x, &x->p->node[i], precedence);
}

/* "f32 bias[:,:]; " of each tensor that is read. */
static void print_tensors(const Printer *x) {
    bool read[PROGRAM_TENSORS] = {0};
    for (int i = 0; i < x->p->count; i++) {
        if (x->p->node[i].op == OP_READ && x->name[i])
            read[x->p->node[i].i] = true;
    }
    for (int t = 0; t < x->p->tensors; t++) {
        const ProgramTensor *tensor = &x->p->tensor[t];
        if (!read[t])
            continue;
        str_addf(x->out, "%s %s", program_dtype_name(tensor->dtype),
                 tensor->name);
        for (int d = 0; d < tensor->rank; d++)
            str_addf(x->out, d ? ",:" : "[:");
        str_addf(x->out, tensor->rank ? "]; " : "; ");
    }
}

void program_print(const Program *p, Str *out) {
    int32_t *name = program_names(p, &p->root, 1, NULL);
    Printer x = {p, name, out};
    if (!name) {
        out->bad = true;
        return;
    }
    print_tensors(&x);
    for (int i = 0; i < p->count; i++) {
        if (name[i] > 0) {
            str_addf(out, "let _%d = ", name[i]);
            print_op(&x, &p->node[i], 0);
            str_addf(out, "; ");
        }
    }
    print_node(&x, p->root, 0);
    free(name);
}
