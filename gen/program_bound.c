/* SPDX-License-Identifier: Apache-2.0
 * Interval arithmetic over a tile: what every node of a program may be there.
 * Sound for exact values and for f32 ones, rounded, contracted or flushed. */
#include <math.h>
#include <string.h>

#include "program_internal.h"

static Range range(double lo, double hi) {
    return (Range){.lo = lo, .hi = hi};
}

static Range truth(bool always, bool sometimes) {
    return range(always, sometimes);
}

static bool single(Range a) {
    return a.lo == a.hi && !a.nan;
}

static double least(double a, double b) {
    return a < b ? a : b;
}

static double most(double a, double b) {
    return a > b ? a : b;
}

static bool holds(Range a, double x) {
    return a.lo <= x && x <= a.hi;
}

Range range_hull(Range a, Range b) {
    return (Range){least(a.lo, b.lo), most(a.hi, b.hi), a.nan || b.nan, false};
}

/* ---- int32 ------------------------------------------------------------- */

static const Range any_int = {INT32_MIN, INT32_MAX, false, true};

/* Beyond int32 anything may come back. */
static Range wrapped(double lo, double hi) {
    return lo < INT32_MIN || hi > INT32_MAX ? any_int : range(lo, hi);
}

typedef double (*Corner)(double a, double b);

static double times(double a, double b) {
    double r = a * b;
    return r == r ? r : 0; /* 0 * inf: the other corners bound the rest */
}

static double truncated(double a, double b) {
    return trunc(a / b);
}

/* Least and most of f at the corners, where f is monotone on each side. */
static Range corners(Corner f, Range a, Range b) {
    double w = f(a.lo, b.lo), x = f(a.lo, b.hi);
    double y = f(a.hi, b.lo), z = f(a.hi, b.hi);
    return range(least(least(w, x), least(y, z)), most(most(w, x), most(y, z)));
}

/* A divisor of 0 gives 0. */
static Range int_div(Range a, Range b) {
    Range out = {0};
    bool any = holds(b, 0);
    if (b.lo < 0) {
        Range part = corners(truncated, a, range(b.lo, least(b.hi, -1)));
        out = any ? range_hull(out, part) : part;
        any = true;
    }
    if (b.hi > 0) {
        Range part = corners(truncated, a, range(most(b.lo, 1), b.hi));
        out = any ? range_hull(out, part) : part;
    }
    return wrapped(out.lo, out.hi);
}

/* The sign is that of a, the size below that of b. */
static Range int_mod(Range a, Range b) {
    double most_b = most(fabs(b.lo), fabs(b.hi));
    double least_b = holds(b, 0) ? 0 : least(fabs(b.lo), fabs(b.hi));
    if (!most_b)
        return range(0, 0);
    if (least_b > most(fabs(a.lo), fabs(a.hi)))
        return a;
    if (most_b == least_b && trunc(a.lo / most_b) == trunc(a.hi / most_b))
        return range(fmod(a.lo, most_b), fmod(a.hi, most_b));
    return range(a.lo < 0 ? -least(most_b - 1, -a.lo) : 0,
                 a.hi > 0 ? least(most_b - 1, a.hi) : 0);
}

static Range int_shift(int op, Range a, Range b) {
    if (!single(b) || b.lo < 0 || b.lo > 31) {
        if (op == OP_SHL)
            return any_int;
        return range(least(a.lo, 0), a.hi < 0 ? -1 : a.hi);
    }
    double by = ldexp(1, (int)b.lo);
    return op == OP_SHL ? wrapped(a.lo * by, a.hi * by)
                        : range(floor(a.lo / by), floor(a.hi / by));
}

/* 2^n - 1 that covers x >= 0. */
static double bits_below(double x) {
    double top = 1;
    while (top <= x)
        top *= 2;
    return top - 1;
}

/* Bits above the first in which the ends of a range differ are those of all
 * its numbers. */
static Range int_xor(int32_t a, int32_t a_hi, int32_t b, int32_t b_hi) {
    int32_t open = (int32_t)bits_below((a ^ a_hi) | (b ^ b_hi));
    int32_t known = (a ^ b) & ~open;
    return range(known, known | open);
}

static Range int_bits(int op, Range a, Range b) {
    if (op == OP_BIT_AND) {
        double m = b.hi + 1;
        if (single(b) && b.lo >= 0 && bits_below(b.hi) == b.hi &&
            floor(a.lo / m) == floor(a.hi / m)) /* as a modulo m */
            return range(a.lo - floor(a.lo / m) * m,
                         a.hi - floor(a.hi / m) * m);
        if (a.lo < 0 && b.lo < 0)
            return range(INT32_MIN, INT32_MAX);
        return range(0, a.lo < 0 ? b.hi : b.lo < 0 ? a.hi : least(a.hi, b.hi));
    }
    if (a.lo < 0 || b.lo < 0)
        return range(INT32_MIN, INT32_MAX);
    if (op == OP_BIT_XOR)
        return int_xor((int32_t)a.lo, (int32_t)a.hi, (int32_t)b.lo,
                       (int32_t)b.hi);
    return range(most(a.lo, b.lo), bits_below(most(a.hi, b.hi)));
}

static Range size_of(Range a) {
    if (a.lo >= 0)
        return a;
    return range(holds(a, 0) ? 0 : -a.hi, most(-a.lo, a.hi));
}

static Range int_range(const Node *n, Range a, Range b) {
    bool same = n->arg[0] == n->arg[1];
    Range r;
    if (single(a) && (n->nargs < 2 || single(b))) {
        int32_t x = (int32_t)a.lo, y = (int32_t)b.lo;
        r.lo = program_int_op(n->op, x, y);
        r = range(r.lo, r.lo); /* ranges over one value wrap nowhere else */
        r.wraps = n->op == OP_ADD || n->op == OP_SUB || n->op == OP_MUL ||
                  n->op == OP_NEG;
        r.wraps = r.wraps && (n->op == OP_ADD   ? a.lo + b.lo
                              : n->op == OP_SUB ? a.lo - b.lo
                              : n->op == OP_MUL ? a.lo * b.lo
                                                : -a.lo) != r.lo;
        return r;
    }
    switch (n->op) {
    case OP_ADD:
        return wrapped(a.lo + b.lo, a.hi + b.hi);
    case OP_SUB:
        return wrapped(a.lo - b.hi, a.hi - b.lo);
    case OP_MUL:
        r = corners(times, a, b);
        return wrapped(same ? size_of(r).lo : r.lo, r.hi);
    case OP_NEG:
        return wrapped(-a.hi, -a.lo);
    case OP_DIV:
        return int_div(a, b);
    case OP_MOD:
        return int_mod(a, b);
    case OP_SHL:
    case OP_SHR:
        return int_shift(n->op, a, b);
    case OP_BIT_AND:
        return int_bits(n->op, single(a) ? b : a, single(a) ? a : b);
    case OP_BIT_XOR:
    case OP_BIT_OR:
        return int_bits(n->op, a, b);
    case OP_BIT_NOT:
        return range(-1 - a.hi, -1 - a.lo);
    case OP_MIN:
        return range(least(a.lo, b.lo), least(a.hi, b.hi));
    case OP_MAX:
        return range(most(a.lo, b.lo), most(a.hi, b.hi));
    default: /* OP_ABS */
        r = size_of(a);
        return wrapped(r.lo, r.hi);
    }
}

/* ---- bool -------------------------------------------------------------- */

static Range compared(int op, Range a, Range b) {
    bool nan = a.nan || b.nan;
    bool met = single(a) && single(b) && a.lo == b.lo;
    bool apart = a.hi < b.lo || b.hi < a.lo;
    switch (op) {
    case OP_LT:
        return truth(a.hi < b.lo && !nan, a.lo < b.hi);
    case OP_LE:
        return truth(a.hi <= b.lo && !nan, a.lo <= b.hi);
    case OP_EQ:
        return truth(met, !apart);
    default:
        return truth(apart, !met);
    }
}

static Range chosen(Range c, Range a, Range b) {
    return c.lo ? a : !c.hi ? b : range_hull(a, b);
}

/* ---- reading ----------------------------------------------------------- */

static Range read_range(const Program *p, const Node *n,
                        const ProgramTile *tile, const Range *known) {
    static const Range any[] = {
        {0, 1, false, false},
        {INT32_MIN, INT32_MAX, false, false},
        {-INFINITY, INFINITY, true, false},
    };
    Range index[PROGRAM_RANK], out = any[n->type];
    for (int i = 0; i < n->nargs; i++)
        index[i] = known[n->arg[i]];
    if (tile->read &&
        !tile->read(tile->user, n->i, p->tensor[n->i].rank, index, &out))
        out = any[n->type];
    return n->type == TYPE_FLOAT ? range_outward(out) : out;
}

static Range leaf_range(const Node *n, const ProgramTile *tile) {
    if (n->op == OP_OPERAND)
        return tile->operand[n->i];
    double x = n->type == TYPE_FLOAT ? (double)n->f : n->i;
    return range(x, x);
}

/* ---- graphs ------------------------------------------------------------ */

static Range node_range(const Program *p, const Node *n, const Range *known) {
    Range a = known[n->arg[0]], b = known[n->arg[1]], c = known[n->arg[2]];
    switch (n->op) {
    case OP_LT:
    case OP_LE:
    case OP_EQ:
    case OP_NE:
        return compared(n->op, a, b);
    case OP_AND:
        return truth(a.lo && b.lo, a.hi && b.hi);
    case OP_OR:
        return truth(a.lo || b.lo, a.hi || b.hi);
    case OP_NOT:
        return truth(!a.hi, !a.lo);
    case OP_SELECT:
        return chosen(a, b, c);
    case OP_TO_INT:
        b = range(program_to_int(a.lo), program_to_int(a.hi));
        return a.nan ? range_hull(b, range(0, 0)) : b;
    default:
        break;
    }
    if (n->type == TYPE_INT && p->node[n->arg[0]].type == TYPE_INT)
        return int_range(n, a, b);
    return range_float_op(n->op, a, b, n->arg[0] == n->arg[1]);
}

void program_ranges(const Program *p, const ProgramTile *tile, int last,
                    Range *out) {
    for (int i = 0; i <= last; i++) {
        const Node *n = &p->node[i];
        if (n->op == OP_CONST || n->op == OP_OPERAND)
            out[i] = leaf_range(n, tile);
        else if (n->op == OP_READ)
            out[i] = read_range(p, n, tile, out);
        else
            out[i] = node_range(p, n, out);
    }
}

ProgramTile program_everywhere(void) {
    const Range place = range(0, PROGRAM_FAR - 1),
                any = {-INFINITY, INFINITY, true, false};
    const double far = PROGRAM_FAR;
    return (ProgramTile){.operand = {
                             [OPERAND_s] = any,
                             [OPERAND_dout] = any,
                             [OPERAND_b] = place,
                             [OPERAND_h] = place,
                             [OPERAND_q] = place,
                             [OPERAND_k] = place,
                             [OPERAND_nq] = {0, far, false, false},
                             [OPERAND_nk] = {0, far, false, false},
                             [OPERAND_off] = {-far, far, false, false},
                         }};
}

int program_verdict(const Program *p, const ProgramTile *tile, Range *known) {
    program_ranges(p, tile, p->root, known);
    Range r = known[p->root];
    return r.lo ? VERDICT_FULL : r.hi ? VERDICT_PARTIAL : VERDICT_EMPTY;
}
