/* SPDX-License-Identifier: Apache-2.0
 * Intervals of float operations. Ends are rounded outward to f32, so that the
 * exact value and every f32 evaluation of it lie inside. */
#include <float.h>
#include <math.h>

#include "program_internal.h"

/* exp, log and tanh of a kernel are approximations; far more than the error
 * of any: relative, and absolute. */
static const double slack = 1e-3;

static double down(double x) {
    if (x < -FLT_MAX)
        return -INFINITY;
    if (x > 0 && x < FLT_MIN)
        return 0; /* may be flushed */
    if (x < 0 && x > -FLT_MIN)
        return -FLT_MIN;
    if (x > FLT_MAX)
        return isinf(x) ? x : FLT_MAX;
    float f = (float)x;
    return f <= x ? f : nextafterf(f, -INFINITY);
}

static double up(double x) {
    return -down(-x);
}

Range range_outward(Range a) {
    return (Range){down(a.lo), up(a.hi), a.nan, false};
}

static bool holds(Range a, double x) {
    return a.lo <= x && x <= a.hi;
}

static bool infinite(Range a) {
    return isinf(a.lo) || isinf(a.hi);
}

static double or_else(double x, double instead) {
    return x == x ? x : instead;
}

static Range sum(Range a, Range b) {
    bool nan = (a.lo == -INFINITY && b.hi == INFINITY) ||
               (a.hi == INFINITY && b.lo == -INFINITY);
    return (Range){or_else(a.lo + b.lo, -INFINITY),
                   or_else(a.hi + b.hi, INFINITY), a.nan || b.nan || nan,
                   false};
}

static Range opposite(Range a) {
    return (Range){-a.hi, -a.lo, a.nan, false};
}

/* Least and most of four products; 0 * inf is NaN, elsewhere bounded by 0. */
static Range product(Range a, Range b, bool same) {
    const double x[4] = {or_else(a.lo * b.lo, 0), or_else(a.lo * b.hi, 0),
                         or_else(a.hi * b.lo, 0), or_else(a.hi * b.hi, 0)};
    bool nan =
        !same && ((holds(a, 0) && infinite(b)) || (holds(b, 0) && infinite(a)));
    Range r = {x[0], x[0], a.nan || b.nan || nan, false};
    for (int i = 1; i < 4; i++) {
        r.lo = fmin(r.lo, x[i]);
        r.hi = fmax(r.hi, x[i]);
    }
    if (same && holds(a, 0))
        r.lo = 0;
    else if (same)
        r.lo = fmin(x[0], x[3]);
    return r;
}

static Range quotient(Range a, Range b) {
    bool nan = a.nan || b.nan || (holds(a, 0) && holds(b, 0)) ||
               (infinite(a) && infinite(b));
    if (holds(b, 0))
        return (Range){-INFINITY, INFINITY, nan, false};
    const double x[4] = {or_else(a.lo / b.lo, 0), or_else(a.lo / b.hi, 0),
                         or_else(a.hi / b.lo, 0), or_else(a.hi / b.hi, 0)};
    Range r = {x[0], x[0], nan, false};
    for (int i = 1; i < 4; i++) {
        r.lo = fmin(r.lo, x[i]);
        r.hi = fmax(r.hi, x[i]);
    }
    return r;
}

/* a < b ? a : b, which is b where either is NaN. */
static Range smaller(Range a, Range b) {
    return (Range){fmin(a.lo, b.lo), a.nan ? b.hi : fmin(a.hi, b.hi), b.nan,
                   false};
}

static Range size(Range a) {
    if (a.lo >= 0)
        return a;
    return (Range){holds(a, 0) ? 0 : -a.hi, fmax(-a.lo, a.hi), a.nan, false};
}

/* What an approximation of the values between lo and hi may give. */
static Range about(double lo, double hi, bool nan) {
    return (Range){or_else(lo - slack * (1 + fabs(lo)), FLT_MAX),
                   or_else(hi + slack * (1 + fabs(hi)), -FLT_MAX), nan, false};
}

static Range exponential(Range a) {
    Range r = about(exp(a.lo), exp(a.hi), a.nan);
    r.lo = fmax(r.lo, 0);
    return r;
}

static Range logarithm(Range a) {
    bool nan = a.nan || a.lo < 0;
    if (a.hi < 0)
        return (Range){-INFINITY, INFINITY, true, false};
    double lo = a.lo > 0 ? log(a.lo) : -INFINITY;
    return about(lo, log(a.hi), nan);
}

Range range_float_op(int op, Range a, Range b, bool same) {
    switch (op) {
    case OP_ADD:
        a = sum(a, b);
        break;
    case OP_SUB:
        a = sum(a, opposite(b));
        break;
    case OP_MUL:
        a = product(a, b, same);
        break;
    case OP_DIV:
        a = quotient(a, b);
        break;
    case OP_NEG:
        a = opposite(a);
        break;
    case OP_MIN:
        a = smaller(a, b);
        break;
    case OP_MAX:
        a = opposite(smaller(opposite(a), opposite(b)));
        break;
    case OP_ABS:
        a = size(a);
        break;
    case OP_EXP:
        a = exponential(a);
        break;
    case OP_LOG:
        a = logarithm(a);
        break;
    case OP_TANH:
        a = about(tanh(a.lo), tanh(a.hi), a.nan);
        break;
    case OP_FLOOR:
        a.lo = floor(a.lo);
        a.hi = floor(a.hi);
        break;
    default:
        break; /* OP_TO_FLOAT */
    }
    return range_outward(a);
}
