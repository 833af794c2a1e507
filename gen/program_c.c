/* SPDX-License-Identifier: Apache-2.0
 * A program's graph as C statements, for scalars and for vectors of lanes: the
 * one place that knows how an op is spelled. What is not an operator of C is a
 * helper, which the target's templates define. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "program_internal.h"

/* ---- spellings --------------------------------------------------------- */

/* $0 $1 $2: the arguments. `type` is that of the first argument, -1: any; of
 * SELECT that of the result. NULL: as the row before. An int op that may leave
 * int32 is written `wraps`. */
typedef struct Spelling {
    int op, type;
    const char *scalar, *lanes, *wraps;
} Spelling;

static const Spelling spellings[] = {
    {OP_ADD, TYPE_INT, "$0 + $1", "$0 + $1", "wrap_add"},
    {OP_SUB, TYPE_INT, "$0 - $1", "$0 - $1", "wrap_sub"},
    {OP_MUL, TYPE_INT, "$0 * $1", "$0 * $1", "wrap_mul"},
    {OP_NEG, TYPE_INT, "-$0", "-$0", "wrap_neg"},
    {OP_ADD, TYPE_FLOAT, "$0 + $1", "$0 + $1", NULL},
    {OP_SUB, TYPE_FLOAT, "$0 - $1", "$0 - $1", NULL},
    {OP_MUL, TYPE_FLOAT, "$0 * $1", "$0 * $1", NULL},
    {OP_NEG, TYPE_FLOAT, "-$0", "-$0", NULL},
    {OP_DIV, TYPE_FLOAT, "$0 / $1", "$0 / $1", NULL},
    {OP_DIV, TYPE_INT, "div_i32($0, $1)", "div_lanes($0, $1)", NULL},
    {OP_MOD, TYPE_INT, "mod_i32($0, $1)", "mod_lanes($0, $1)", NULL},
    {OP_SHL, TYPE_INT, "shl_i32($0, $1)", "shl_lanes($0, $1)", NULL},
    {OP_SHR, TYPE_INT, "$0 >> ($1 & 31)", "$0 >> ($1 & 31)", NULL},
    {OP_LT, -1, "$0 < $1", "$0 < $1", NULL},
    {OP_LE, -1, "$0 <= $1", "$0 <= $1", NULL},
    {OP_EQ, -1, "$0 == $1", "$0 == $1", NULL},
    {OP_NE, -1, "$0 != $1", "$0 != $1", NULL},
    {OP_BIT_AND, TYPE_INT, "$0 & $1", "$0 & $1", NULL},
    {OP_BIT_XOR, TYPE_INT, "$0 ^ $1", "$0 ^ $1", NULL},
    {OP_BIT_OR, TYPE_INT, "$0 | $1", "$0 | $1", NULL},
    {OP_AND, TYPE_BOOL, "$0 && $1", "$0 & $1", NULL},
    {OP_OR, TYPE_BOOL, "$0 || $1", "$0 | $1", NULL},
    {OP_NOT, TYPE_BOOL, "!$0", "~$0", NULL},
    {OP_BIT_NOT, TYPE_INT, "~$0", "~$0", NULL},
    {OP_MIN, TYPE_INT, "min_i32($0, $1)", "min_lanes_i32($0, $1)", NULL},
    {OP_MAX, TYPE_INT, "max_i32($0, $1)", "max_lanes_i32($0, $1)", NULL},
    {OP_ABS, TYPE_INT, "abs_i32($0)", "abs_lanes_i32($0)", NULL},
    {OP_MIN, TYPE_FLOAT, "less_f32($0, $1)", "less_lanes($0, $1)", NULL},
    {OP_MAX, TYPE_FLOAT, "more_f32($0, $1)", "more_lanes($0, $1)", NULL},
    {OP_ABS, TYPE_FLOAT, "size_f32($0)", "size_lanes($0)", NULL},
    {OP_EXP, TYPE_FLOAT, "exp_f32($0)", "exp_lanes($0)", NULL},
    {OP_LOG, TYPE_FLOAT, "log_f32($0)", "log_lanes($0)", NULL},
    {OP_TANH, TYPE_FLOAT, "tanh_f32($0)", "tanh_lanes($0)", NULL},
    {OP_FLOOR, TYPE_FLOAT, "floor_f32($0)", "floor_lanes($0)", NULL},
    {OP_TO_INT, TYPE_FLOAT, "to_i32($0)", "to_i32_lanes($0)", NULL},
    {OP_TO_FLOAT, TYPE_INT, "(float)$0", "to_f32_lanes($0)", NULL},
    {OP_SELECT, TYPE_FLOAT, "$0 ? $1 : $2", "select_lanes($0, $1, $2)", NULL},
    {OP_SELECT, -1, "$0 ? $1 : $2", "select_lanes_i32($0, $1, $2)", NULL},
};

/* Division by a constant other than 0 and -1 is C's. */
static const Spelling plain_div = {OP_DIV, TYPE_INT, "$0 / $1", "$0 / $1",
                                   NULL};
static const Spelling plain_mod = {OP_MOD, TYPE_INT, "$0 % $1", "$0 % $1",
                                   NULL};

static const Spelling *spelling_of(const Program *p, const Node *n) {
    int type = n->op == OP_SELECT ? n->type : p->node[n->arg[0]].type;
    const Node *by = &p->node[n->arg[1]];
    if ((n->op == OP_DIV || n->op == OP_MOD) && by->op == OP_CONST &&
        by->type == TYPE_INT && (by->i > 0 || by->i < -1))
        return n->op == OP_DIV ? &plain_div : &plain_mod;
    for (size_t i = 0; i < sizeof spellings / sizeof *spellings; i++) {
        const Spelling *s = &spellings[i];
        if (s->op == n->op && (s->type == type || s->type < 0))
            return s;
    }
    return NULL;
}

/* ---- values ------------------------------------------------------------ */

typedef struct Printer {
    const Program *p;
    const ProgramC *c;
    int32_t *name; /* program_names */
    Range *range;  /* over all a launch may hold */
    Str *out;
} Printer;

int program_stage(const ProgramC *c, unsigned deps) {
    bool row = deps & c->rows, key = deps & DEP_K;
    if (deps & DEP_D)
        return STAGE_DOUT;
    if (deps & DEP_S || (row && key))
        return STAGE_PAIR;
    return row ? STAGE_ROW : key ? STAGE_KEY : STAGE_ENTRY;
}

static bool in_lanes(const Printer *x, const Node *n) {
    return n->deps & x->c->lanes;
}

static void print_value(const Printer *x, int i, bool lanes, bool bare);

static void print_constant(const Node *n, Str *out) {
    if (n->type != TYPE_FLOAT) {
        if (n->i == INT32_MIN)
            str_addf(out, "(-2147483647 - 1)");
        else
            str_addf(out, n->i < 0 ? "(%d)" : "%d", n->i);
    } else if (isinf(n->f)) {
        str_addf(out, n->f < 0 ? "(-__builtin_inff())" : "__builtin_inff()");
    } else {
        str_addf(out, signbit(n->f) ? "(" : "");
        program_number(n->f, out);
        str_addf(out, signbit(n->f) ? "f)" : "f");
    }
}

static void print_operand(const Printer *x, const Node *n) {
    const char *name = x->c->operand[n->i];
    str_addf(x->out, "%s", name ? name : program_operands[n->i].name);
}

/* "struct strip t1_strip; open_strip_f32_2(&t1_strip, 1, tensor_bias, q,
 * splat_i32(0));": the rows of a read. */
static void print_open(const Printer *x, int i) {
    const Node *n = &x->p->node[i];
    const ProgramTensor *t = &x->p->tensor[n->i];
    int dim = program_strip(x->p, x->c, i), name = x->name[i];
    str_addf(x->out, "    struct strip %s%d_strip;\n    open_strip_%s_%d(",
             x->c->prefix, name, program_dtype_name(t->dtype), t->rank);
    str_addf(x->out, "&%s%d_strip, %d, tensor_%s", x->c->prefix, name, dim,
             t->name);
    for (int a = 0; a < n->nargs; a++) {
        str_addf(x->out, a == dim ? ", splat_i32(0)" : ", ");
        if (a != dim)
            print_value(x, n->arg[a], true, true);
    }
    str_addf(x->out, ");\n");
}

/* "if (j % LANES == 0) fill_f32(&t1_strip, k);": their next keys. */
static void print_fill(const Printer *x, int i) {
    const Node *n = &x->p->node[i];
    str_addf(x->out, "    if (j %% LANES == 0)\n        fill_%s(&%s%d_strip, ",
             program_dtype_name(x->p->tensor[n->i].dtype), x->c->prefix,
             x->name[i]);
    print_value(x, n->arg[program_strip(x->p, x->c, i)], false, true);
    str_addf(x->out, ");\n");
}

/* "read_f32_2(tensor_bias, q, k)": its element, 0 outside. */
static void print_read(const Printer *x, const Node *n) {
    const ProgramTensor *t = &x->p->tensor[n->i];
    int i = (int)(n - x->p->node);
    if (program_strip(x->p, x->c, i) >= 0) {
        str_addf(x->out, "(%s)%s%d_strip.near[j %% LANES]",
                 n->type == TYPE_FLOAT ? "vec" : "ivec", x->c->prefix,
                 x->name[i]);
        return;
    }
    str_addf(x->out, "read_%s%s_%d(tensor_%s", program_dtype_name(t->dtype),
             in_lanes(x, n) ? "_lanes" : "", t->rank, t->name);
    for (int a = 0; a < n->nargs; a++) {
        str_addf(x->out, ", ");
        print_value(x, n->arg[a], in_lanes(x, n), true);
    }
    str_addf(x->out, ")");
}

/* Patterns that begin so are calls; "(float)$0" binds as tightly. */
static bool calls(const char *pattern) {
    return pattern[0] >= 'a' && pattern[0] <= 'z';
}

static void print_pattern(const Printer *x, const Node *n, const char *pattern,
                          bool call) {
    for (const char *s = pattern; *s; s++) {
        if (*s == '$')
            print_value(x, n->arg[*++s - '0'], in_lanes(x, n), call);
        else
            str_add(x->out, s, 1);
    }
}

static void print_op(const Printer *x, const Node *n) {
    const Spelling *s = spelling_of(x->p, n);
    bool lanes = in_lanes(x, n);
    if (s->wraps && x->range[n - x->p->node].wraps) {
        str_addf(x->out, "%s%s", s->wraps, lanes ? "_lanes" : "");
        print_pattern(x, n, n->nargs > 1 ? "($0, $1)" : "($0)", true);
    } else {
        const char *pattern = lanes ? s->lanes : s->scalar;
        print_pattern(x, n, pattern, calls(pattern));
    }
}

/* The node where it stands alone. */
static void print_whole(const Printer *x, int i) {
    const Node *n = &x->p->node[i];
    switch (n->op) {
    case OP_CONST:
        print_constant(n, x->out);
        break;
    case OP_OPERAND:
        print_operand(x, n);
        break;
    case OP_READ:
        print_read(x, n);
        break;
    default:
        print_op(x, n);
    }
}

static bool is_call(const Printer *x, const Node *n) {
    if (n->op == OP_CONST || n->op == OP_OPERAND || n->op == OP_READ)
        return true;
    const Spelling *s = spelling_of(x->p, n);
    const char *text = in_lanes(x, n) ? s->lanes : s->scalar;
    return (s->wraps && x->range[n - x->p->node].wraps) || calls(text) ||
           text[0] == '(';
}

/* A node inside another, as a vector if `lanes`; bare: an argument. */
static void print_value(const Printer *x, int i, bool lanes, bool bare) {
    const Node *n = &x->p->node[i];
    bool widen = lanes && !in_lanes(x, n);
    bool enclosed = !widen && !bare && x->name[i] <= 0 && !is_call(x, n);
    static const char *const splat[] = {"splat_bool(", "splat_i32(",
                                        "splat_f32("};
    str_addf(x->out, "%s", widen ? splat[n->type] : enclosed ? "(" : "");
    if (x->name[i] > 0)
        str_addf(x->out, "%s%d", x->c->prefix, x->name[i]);
    else
        print_whole(x, i);
    str_addf(x->out, widen || enclosed ? ")" : "");
}

/* ---- statements -------------------------------------------------------- */

static bool open_printer(Printer *x, const int *roots, int nroots) {
    ProgramTile all = program_everywhere();
    x->name = program_names(x->p, roots, nroots, x->c);
    x->range = malloc((size_t)x->p->count * sizeof *x->range);
    if (!x->name || !x->range) {
        free(x->name);
        free(x->range);
        x->out->bad = true;
        return false;
    }
    program_ranges(x->p, &all, x->p->count - 1, x->range);
    return true;
}

static void close_printer(Printer *x) {
    free(x->name);
    free(x->range);
}

void program_c_part(const Program *p, const int *roots, int nroots,
                    const ProgramC *c, int stage, Str *out) {
    Printer x = {p, c, NULL, NULL, out};
    if (!open_printer(&x, roots, nroots))
        return;
    for (int i = 0; i < p->count; i++) {
        const Node *n = &p->node[i];
        bool strip = x.name[i] > 0 && program_strip(p, c, i) >= 0;
        if (strip && stage == STAGE_ROW)
            print_open(&x, i);
        if (strip && stage == STAGE_PAIR)
            print_fill(&x, i);
        if (x.name[i] <= 0 || program_stage(c, n->deps) != stage)
            continue;
        const char *type = n->type == TYPE_FLOAT
                               ? (in_lanes(&x, n) ? "vec" : "float")
                               : (in_lanes(&x, n) ? "ivec" : "int");
        str_addf(out, "    const %s %s%d = ", type, c->prefix, x.name[i]);
        print_whole(&x, i);
        str_addf(out, ";\n");
    }
    close_printer(&x);
}

void program_c_value(const Program *p, const int *roots, int nroots,
                     const ProgramC *c, int root, Str *out) {
    Printer x = {p, c, NULL, NULL, out};
    if (!open_printer(&x, roots, nroots))
        return;
    if (x.name[root] > 0)
        str_addf(out, "%s%d", c->prefix, x.name[root]);
    else
        print_whole(&x, root);
    close_printer(&x);
}
