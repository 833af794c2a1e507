/* SPDX-License-Identifier: Apache-2.0
 * What a node is equal to already. Only what changes no result, not even its
 * last bit: int and bool algebra, float arithmetic that is exact. */
#include <float.h>
#include <math.h>

#include "program.h"

/* ---- int32 ------------------------------------------------------------- */

int32_t program_int_op(int op, int32_t a, int32_t b) {
    uint32_t x = (uint32_t)a, y = (uint32_t)b;
    switch (op) {
    case OP_ADD:
        return (int32_t)(x + y);
    case OP_SUB:
        return (int32_t)(x - y);
    case OP_MUL:
        return (int32_t)(x * y);
    case OP_DIV:
        return b ? (int32_t)((int64_t)a / b) : 0;
    case OP_MOD:
        return b ? (int32_t)((int64_t)a % b) : 0;
    case OP_SHL:
        return (int32_t)(x << (y & 31));
    case OP_SHR:
        return a >> (y & 31);
    case OP_BIT_AND:
        return a & b;
    case OP_BIT_XOR:
        return a ^ b;
    case OP_BIT_OR:
        return a | b;
    case OP_MIN:
        return a < b ? a : b;
    case OP_MAX:
        return a > b ? a : b;
    case OP_NEG:
        return (int32_t)(0 - x);
    case OP_ABS:
        return a < 0 ? (int32_t)(0 - x) : a;
    default:
        return ~a; /* OP_BIT_NOT */
    }
}

int32_t program_to_int(double x) {
    if (x != x)
        return 0;
    if (x >= INT32_MAX)
        return INT32_MAX;
    return x <= INT32_MIN ? INT32_MIN : (int32_t)x;
}

static bool orders(int op, double a, double b) {
    return op == OP_LT   ? a < b
           : op == OP_LE ? a <= b
           : op == OP_EQ ? a == b
                         : a != b;
}

/* ---- constants --------------------------------------------------------- */

/* x as f32 if it is one: normal, zero or infinite. */
static bool is_float(double x, float *out) {
    *out = (float)x;
    return *out == x && (x == 0 || fabs(x) >= FLT_MIN);
}

/* a op b if f32 arithmetic gives it without rounding. */
static bool exact(int op, double a, double b, float *out) {
    double r;
    switch (op) {
    case OP_ADD:
        r = a + b;
        return r - a == b && r - b == a && is_float(r, out);
    case OP_SUB:
        r = a - b;
        return r + b == a && a - r == b && is_float(r, out);
    case OP_MUL:
        r = a * b;
        return isfinite(r) && is_float(r, out) && (r != 0 || !a || !b);
    case OP_DIV:
        r = a / b;
        return b != 0 && isfinite(r) && r * b == a && is_float(r, out);
    case OP_NEG:
        *out = (float)-a;
        return true;
    case OP_ABS:
        *out = (float)(a < 0 ? -a : a);
        return true;
    case OP_MIN:
        *out = (float)(a < b ? a : b);
        return true;
    case OP_MAX:
        *out = (float)(a > b ? a : b);
        return true;
    case OP_FLOOR:
        *out = (float)floor(a);
        return true;
    default:
        return false;
    }
}

static int fold_floats(Program *p, int op, float a, float b) {
    float r;
    if (op == OP_TO_INT)
        return node_int(p, program_to_int(a));
    if (op >= OP_LT && op <= OP_NE)
        return node_bool(p, orders(op, a, b));
    return exact(op, a, b, &r) ? node_float(p, r) : -1;
}

static int fold_ints(Program *p, int op, int32_t a, int32_t b) {
    float r;
    if (op >= OP_LT && op <= OP_NE)
        return node_bool(p, orders(op, a, b));
    if (op == OP_TO_FLOAT)
        return is_float(a, &r) ? node_float(p, r) : -1;
    return node_int(p, program_int_op(op, a, b));
}

static int fold_bools(Program *p, int op, bool a, bool b) {
    switch (op) {
    case OP_AND:
        return node_bool(p, a && b);
    case OP_OR:
        return node_bool(p, a || b);
    case OP_NOT:
        return node_bool(p, !a);
    default:
        return node_bool(p, orders(op, a, b));
    }
}

static const Node *constant(const Program *p, int a) {
    return p->node[a].op == OP_CONST ? &p->node[a] : NULL;
}

/* All arguments constant; SELECT is not for here. */
static int fold_constants(Program *p, int op, int a, int b, bool binary) {
    const Node *x = constant(p, a), *y = binary ? constant(p, b) : x;
    if (!x || !y)
        return -1;
    if (x->type == TYPE_BOOL)
        return fold_bools(p, op, x->i, y->i);
    return x->type == TYPE_INT ? fold_ints(p, op, x->i, y->i)
                               : fold_floats(p, op, x->f, y->f);
}

/* ---- algebra ----------------------------------------------------------- */

static bool is_int(const Program *p, int a, int32_t value) {
    const Node *n = constant(p, a);
    return n && n->type == TYPE_INT && n->i == value;
}

static bool is_one(const Program *p, int a) {
    const Node *n = constant(p, a);
    return n && (n->type == TYPE_FLOAT ? n->f == 1 : n->i == 1);
}

/* Both arguments are the same node. */
static int fold_same(Program *p, int op, int a) {
    int type = p->node[a].type;
    switch (op) {
    case OP_AND:
    case OP_OR:
    case OP_MIN:
    case OP_MAX:
    case OP_BIT_AND:
    case OP_BIT_OR:
        return a;
    case OP_LT:
        return node_bool(p, false);
    case OP_SUB:
    case OP_BIT_XOR:
    case OP_MOD:
        return type == TYPE_INT ? node_int(p, 0) : -1;
    case OP_LE:
    case OP_EQ:
        return type != TYPE_FLOAT ? node_bool(p, true) : -1;
    case OP_NE:
        return type != TYPE_FLOAT ? node_bool(p, false) : -1;
    default:
        return -1;
    }
}

static int fold_int_algebra(Program *p, int op, int a, int b) {
    bool zero_a = is_int(p, a, 0), zero_b = is_int(p, b, 0);
    switch (op) {
    case OP_ADD:
    case OP_BIT_OR:
    case OP_BIT_XOR:
        return zero_a ? b : zero_b ? a : -1;
    case OP_SUB:
    case OP_SHL:
    case OP_SHR:
        return zero_b ? a : -1;
    case OP_MUL:
    case OP_BIT_AND:
    case OP_DIV:
        if (zero_a || zero_b)
            return node_int(p, 0);
        return -1;
    case OP_MOD:
        if (zero_a || zero_b || is_one(p, b))
            return node_int(p, 0);
        return -1;
    default:
        return -1;
    }
}

/* x * 1, 1 * x, x / 1: exact for floats, too. */
static int fold_one(const Program *p, int op, int a, int b) {
    if ((op == OP_MUL || op == OP_DIV) && is_one(p, b))
        return a;
    return op == OP_MUL && is_one(p, a) ? b : -1;
}

static int fold_logic(Program *p, int op, int a, int b) {
    const Node *x = constant(p, a), *y = constant(p, b);
    if (op != OP_AND && op != OP_OR)
        return -1;
    if (x)
        return x->i == (op == OP_AND) ? b : a;
    if (y)
        return y->i == (op == OP_AND) ? a : b;
    return -1;
}

/* !(a < b) is b <= a only where there is no NaN. */
static int fold_not(Program *p, int a) {
    const Node n = p->node[a];
    bool whole = n.nargs && p->node[n.arg[0]].type != TYPE_FLOAT;
    switch (n.op) {
    case OP_NOT:
        return n.arg[0];
    case OP_EQ:
        return node_make(p, OP_NE, n.arg[0], n.arg[1], 0);
    case OP_NE:
        return node_make(p, OP_EQ, n.arg[0], n.arg[1], 0);
    case OP_LT:
        return whole ? node_make(p, OP_LE, n.arg[1], n.arg[0], 0) : -1;
    case OP_LE:
        return whole ? node_make(p, OP_LT, n.arg[1], n.arg[0], 0) : -1;
    default:
        return -1;
    }
}

static int fold_select(Program *p, int c, int a, int b) {
    const Node *x = constant(p, c), *y = constant(p, a), *z = constant(p, b);
    if (x)
        return x->i ? a : b;
    if (a == b)
        return a;
    if (y && z && y->type == TYPE_BOOL)
        return y->i ? c : node_make(p, OP_NOT, c, 0, 0);
    if (p->node[c].op == OP_NOT)
        return node_make(p, OP_SELECT, p->node[c].arg[0], b, a);
    return -1;
}

int node_fold(Program *p, int op, int a, int b, int c) {
    int found;
    if (op == OP_SELECT)
        return fold_select(p, a, b, c);
    bool binary = op >= OP_ADD && op <= OP_MAX && op != OP_NEG &&
                  op != OP_NOT && op != OP_BIT_NOT;
    found = fold_constants(p, op, a, b, binary);
    if (found >= 0)
        return found;
    if (!binary)
        return op == OP_NOT ? fold_not(p, a) : -1;
    if (a == b && (found = fold_same(p, op, a)) >= 0)
        return found;
    if (p->node[a].type == TYPE_BOOL)
        return fold_logic(p, op, a, b);
    if (p->node[a].type == TYPE_INT &&
        (found = fold_int_algebra(p, op, a, b)) >= 0)
        return found;
    return fold_one(p, op, a, b);
}
