/* SPDX-License-Identifier: Apache-2.0
 * Types of a program's operations: what goes where, what becomes float, and
 * what to write instead. */
#include <stdio.h>
#include <string.h>

#include "program_internal.h"

static const char *type_of(const Parser *x, int node) {
    return program_type_name(x->p->node[node].type);
}

/* What to write where a value of this type does not go. */
int parse_wrong_type(Parser *x, size_t at, const char *what, const char *wanted,
                     int node) {
    int type = x->p->node[node].type;
    const char *hint = type == TYPE_BOOL         ? "select(x, 1, 0)"
                       : !strcmp(wanted, "bool") ? "x != 0"
                                                 : "int(x)";
    return parse_fail(x, at, "%s takes %s, not %s; nearest: %s", what, wanted,
                      type_of(x, node), hint);
}

bool parse_is(const Parser *x, int node, int type) {
    return x->p->node[node].type == type;
}

/* Both int, or both made float. false: one is bool. */
static bool meet(Parser *x, int *a, int *b) {
    if (parse_is(x, *a, TYPE_BOOL) || parse_is(x, *b, TYPE_BOOL))
        return false;
    if (!parse_is(x, *a, TYPE_INT) || !parse_is(x, *b, TYPE_INT)) {
        *a = node_to_float(x->p, *a);
        *b = node_to_float(x->p, *b);
    }
    return true;
}

static bool both(const Parser *x, int a, int b, int type) {
    return parse_is(x, a, type) && parse_is(x, b, type);
}

/* Makes the arguments what the op wants; false: they cannot be. */
static bool suit(Parser *x, int rule, int *a, int *b) {
    switch (rule) {
    case RULE_NUMBER:
    case RULE_ORDER:
        return meet(x, a, b);
    case RULE_EQUAL:
        return both(x, *a, *b, TYPE_BOOL) || meet(x, a, b);
    case RULE_LOGIC:
        return both(x, *a, *b, TYPE_BOOL);
    case RULE_REAL:
        if (parse_is(x, *a, TYPE_BOOL))
            return false;
        *a = node_to_float(x->p, *a);
        return true;
    case RULE_TO_INT:
        return !parse_is(x, *a, TYPE_BOOL);
    default:
        return both(x, *a, *b, TYPE_INT); /* RULE_INTEGER, RULE_BITS */
    }
}

/* Of a and b the one that does not fit, told. */
static int refuse(Parser *x, size_t at, const OpRow *row, int a, int b) {
    char what[20];
    bool logic = row->rule == RULE_LOGIC;
    bool whole = row->rule == RULE_INTEGER || row->rule == RULE_BITS;
    bool first = logic   ? !parse_is(x, a, TYPE_BOOL)
                 : whole ? !parse_is(x, a, TYPE_INT)
                         : parse_is(x, a, TYPE_BOOL);
    snprintf(what, sizeof what, "'%s'", row->spelling);
    return parse_wrong_type(x, at, what,
                            logic   ? "bool"
                            : whole ? "int"
                                    : "numbers",
                            first ? a : b);
}

int parse_apply(Parser *x, size_t at, int op, int a, int b) {
    const OpRow *row = &program_ops[op];
    if (row->rule == RULE_BITS && both(x, a, b, TYPE_BOOL))
        op = op == OP_BIT_AND ? OP_AND : op == OP_BIT_OR ? OP_OR : OP_NE;
    else if (!suit(x, row->rule, &a, &b))
        return refuse(x, at, row, a, b);
    if (op == OP_TO_FLOAT || (op == OP_TO_INT && parse_is(x, a, TYPE_INT)))
        return a; /* it is one already, or suit made it one */
    return node_make(x->p, op, a, row->nargs > 1 ? b : 0, 0);
}

int parse_choose(Parser *x, size_t at, int c, int a, int b) {
    if (!parse_is(x, c, TYPE_BOOL))
        return parse_wrong_type(x, at, "a choice", "bool", c);
    if (!both(x, a, b, TYPE_BOOL) && !meet(x, &a, &b))
        return parse_fail(x, at,
                          "a choice between %s and %s; nearest: "
                          "select(x, 1, 0) for a bool",
                          type_of(x, a), type_of(x, b));
    return node_make(x->p, OP_SELECT, c, a, b);
}
