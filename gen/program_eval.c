/* SPDX-License-Identifier: Apache-2.0
 * Values of a program in f64 and int32: what the language means, op by op;
 * the base of references. */
#include <math.h>
#include <string.h>

#include "program.h"

static double half_value(uint16_t u) {
    int exponent = u >> 10 & 31, mantissa = u & 1023;
    double x = exponent == 31 ? (mantissa ? NAN : INFINITY)
               : exponent     ? ldexp(1024 + mantissa, exponent - 25)
                              : ldexp(mantissa, -24);
    return u >> 15 ? -x : x;
}

double program_array_read(const ProgramArray *a, int rank,
                          const int64_t *index) {
    int64_t at = 0;
    for (int i = 0; i < rank; i++) {
        if (index[i] < 0 || index[i] >= a->n[i])
            return 0;
        at += index[i] * a->stride[i];
    }
    switch (a->dtype) {
    case ARRAY_F16:
        return half_value(((const uint16_t *)a->at)[at]);
    case ARRAY_F32:
        return (double)((const float *)a->at)[at];
    case ARRAY_I32:
        return ((const int32_t *)a->at)[at];
    case ARRAY_BITS:
        return ((const uint32_t *)a->at)[at >> 5] >> (at & 31) & 1;
    default:
        return ((const uint8_t *)a->at)[at] != 0;
    }
}

static double compare(int op, double a, double b) {
    return op == OP_LT   ? a < b
           : op == OP_LE ? a <= b
           : op == OP_EQ ? a == b
                         : a != b;
}

static double float_op(int op, double a, double b) {
    switch (op) {
    case OP_ADD:
        return a + b;
    case OP_SUB:
        return a - b;
    case OP_MUL:
        return a * b;
    case OP_DIV:
        return a / b;
    case OP_NEG:
        return -a;
    case OP_MIN:
        return a < b ? a : b;
    case OP_MAX:
        return a > b ? a : b;
    case OP_ABS:
        return a < 0 ? -a : a;
    case OP_EXP:
        return exp(a);
    case OP_LOG:
        return log(a);
    case OP_TANH:
        return tanh(a);
    case OP_FLOOR:
        return floor(a);
    default:
        return a; /* OP_TO_FLOAT */
    }
}

static double read_tensor(const Program *p, const ProgramEnv *env,
                          const Node *n, const double *value) {
    int64_t index[PROGRAM_RANK];
    for (int i = 0; i < n->nargs; i++)
        index[i] = (int64_t)value[n->arg[i]];
    return program_array_read(&env->array[n->i], p->tensor[n->i].rank, index);
}

static double constant(const Node *n) {
    return n->type == TYPE_FLOAT ? (double)n->f : n->i;
}

/* The value of an op on arguments a, b, c. */
static double result(const Program *p, const Node *n, double a, double b,
                     double c) {
    switch (n->op) {
    case OP_LT:
    case OP_LE:
    case OP_EQ:
    case OP_NE:
        return compare(n->op, a, b);
    case OP_AND:
        return a && b;
    case OP_OR:
        return a || b;
    case OP_NOT:
        return !a;
    case OP_SELECT:
        return a ? b : c;
    case OP_TO_INT:
        return program_to_int(a);
    default:
        break;
    }
    if (n->type == TYPE_INT && p->node[n->arg[0]].type == TYPE_INT)
        return program_int_op(n->op, (int32_t)a, (int32_t)b);
    return float_op(n->op, a, b);
}

/* Of node i, whose arguments are in `value`. */
static double evaluate(const Program *p, const ProgramEnv *env, int i,
                       const double *value) {
    const Node *n = &p->node[i];
    switch (n->op) {
    case OP_CONST:
        return constant(n);
    case OP_OPERAND:
        return env->operand[n->i];
    case OP_READ:
        return read_tensor(p, env, n, value);
    default:
        return result(p, n, value[n->arg[0]], value[n->arg[1]],
                      value[n->arg[2]]);
    }
}

void program_eval_stage(const Program *p, const ProgramEnv *env, int last,
                        unsigned with, unsigned without, double *value) {
    for (int i = 0; i <= last; i++) {
        const Node *n = &p->node[i];
        bool real = n->type == TYPE_FLOAT;
        if ((with && !(n->deps & with)) || n->deps & without)
            continue;
        if (env->f32) {
            double x = evaluate(p, env, i, env->f32);
            env->f32[i] = real ? (float)x : x;
            if (!real || n->op == OP_FLOOR) {
                value[i] = env->f32[i];
                continue;
            }
        }
        value[i] = evaluate(p, env, i, value);
        if (env->narrow && real)
            value[i] = (float)value[i];
    }
}

void program_eval(const Program *p, const ProgramEnv *env, int last,
                  double *value) {
    program_eval_stage(p, env, last, 0, 0, value);
}

bool program_decides(const Program *p, int last) {
    for (int i = 0; i <= last; i++) {
        const Node *n = &p->node[i];
        bool real = n->nargs && n->op != OP_READ &&
                    p->node[n->arg[n->nargs - 1]].type == TYPE_FLOAT;
        if (real && (n->type != TYPE_FLOAT || n->op == OP_FLOOR))
            return true;
    }
    return false;
}
