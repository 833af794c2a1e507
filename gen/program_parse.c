/* SPDX-License-Identifier: Apache-2.0
 * Text of a program -> its graph: statements, expressions by precedence,
 * types. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "program_internal.h"

static int parse_expression(Parser *x);
static int parse_nested(Parser *x, int (*parse)(Parser *x));
static int parse_read(Parser *x, int tensor, Slice name);

/* ---- names ------------------------------------------------------------- */

static int find_let(const Parser *x, Slice name) {
    for (int i = 0; i < x->nlet; i++) {
        if (slice_is(name, x->let[i].name))
            return i;
    }
    return -1;
}

static int find_operand(const Parser *x, Slice name) {
    for (int i = 0; i < OPERANDS; i++) {
        if (slice_is(name, program_operands[i].name) &&
            (i != OPERAND_dout || x->p->kind == PROGRAM_GRADIENT))
            return i;
    }
    return -1;
}

static int find_function(Slice name) {
    for (int i = 0; i < OPS; i++) {
        if (program_ops[i].nargs && !program_ops[i].precedence &&
            slice_is(name, program_ops[i].spelling))
            return i;
    }
    return -1;
}

static int find_dtype(Slice name) {
    for (int i = ARRAY_F16; i < ARRAY_DTYPES; i++) {
        if (slice_is(name, program_dtype_name(i)))
            return i;
    }
    return -1;
}

static int unknown(Parser *x, Slice name, bool function) {
    const char *names[OPERANDS + OPS + PARSE_LETS + PROGRAM_TENSORS];
    char word[PROGRAM_NAME];
    int n = 0;
    snprintf(word, sizeof word, "%.*s", (int)name.len, name.p);
    for (int i = 0; function && i < OPS; i++) {
        if (program_ops[i].nargs && !program_ops[i].precedence)
            names[n++] = program_ops[i].spelling;
    }
    for (int i = 0; !function && i < OPERANDS; i++) {
        if (i != OPERAND_dout && (i || x->p->kind == PROGRAM_SCORE))
            names[n++] = program_operands[i].name;
    }
    for (int i = 0; !function && i < x->nlet; i++)
        names[n++] = x->let[i].name;
    for (int i = 0; !function && i < x->p->tensors; i++)
        names[n++] = x->p->tensor[i].name;
    return parse_fail(
        x, (size_t)(name.p - x->text), "unknown %s '%s'; nearest: %s",
        function ? "function" : "name", word, nearest_word(word, names, n));
}

/* May the word at hand name something new? */
static bool fresh(Parser *x, char out[PROGRAM_NAME]) {
    Slice w = x->word;
    if (x->token != TOKEN_NAME) {
        parse_fail(x, x->at, "expected a name, found %s", parse_found(x));
        return false;
    }
    if (w.len >= PROGRAM_NAME) {
        parse_fail(x, x->at, "a name has at most %d characters",
                   PROGRAM_NAME - 1);
        return false;
    }
    snprintf(out, PROGRAM_NAME, "%.*s", (int)w.len, w.p);
    if (find_operand(x, w) >= 0 || find_function(w) >= 0 ||
        find_dtype(w) >= 0 || find_let(x, w) >= 0 || slice_is(w, "let") ||
        slice_is(w, "inf") || slice_is(w, "true") || slice_is(w, "false") ||
        slice_is(w, "dout")) {
        parse_fail(x, x->at, "'%s' is taken", out);
        return false;
    }
    return true;
}

/* ---- leaves ------------------------------------------------------------ */

/* Value of the number at hand; false: too large for 64 bits. */
static bool int_word(const Parser *x, int64_t *out) {
    char text[32];
    if (x->word.len >= 20)
        return false;
    snprintf(text, sizeof text, "%.*s", (int)x->word.len, x->word.p);
    *out = strtoll(text, NULL, text[1] == 'x' || text[1] == 'X' ? 16 : 10);
    return true;
}

static int parse_int(Parser *x) {
    int64_t value;
    if (slice_is(x->word, "0x") || slice_is(x->word, "0X"))
        return parse_fail(x, x->at, "'0x' has no digits");
    if (!int_word(x, &value) || value > INT32_MAX)
        return parse_fail(x, x->at, "%s does not fit int32; nearest: %d",
                          parse_found(x), INT32_MAX);
    parse_next(x);
    return node_int(x->p, (int32_t)value);
}

static int parse_float(Parser *x) {
    double value;
    if (!slice_double(x->word, &value) || fabs(value) > FLT_MAX)
        return parse_fail(x, x->at, "a number beyond f32; nearest: inf");
    parse_next(x);
    return node_float(x->p, (float)value);
}

/* Operand, let, tensor or constant of that name; reads take indices. */
static int parse_name(Parser *x) {
    Slice name = x->word;
    Program *p = x->p;
    int let = find_let(x, name), operand = find_operand(x, name);
    int tensor = program_find_tensor(p, name.p, name.len);
    if (operand == OPERAND_s && p->kind == PROGRAM_MASK)
        return parse_fail(x, x->at,
                          "a mask does not know s; nearest: a score "
                          "select(condition, s, -inf)");
    parse_next(x);
    if (let >= 0)
        return x->let[let].node;
    if (operand >= 0)
        return node_operand(p, operand);
    if (tensor >= 0)
        return parse_read(x, tensor, name);
    if (slice_is(name, "inf"))
        return node_float(p, INFINITY);
    if (slice_is(name, "true") || slice_is(name, "false"))
        return node_bool(p, name.len == 4);
    if (find_function(name) >= 0)
        return parse_fail(x, x->at, "expected '(', found %s", parse_found(x));
    return unknown(x, name, parse_at(x, "("));
}

/* ---- expressions ------------------------------------------------------- */

/* "(a, b, ...)" or "[a, b, ...]" after its opening sign; at most `most` are
 * kept. Returns how many there are, -1 on a fault. */
static int parse_list(Parser *x, const char *close, int *arg, int most) {
    int n = 0;
    while (!n || parse_at(x, ",")) {
        if (n)
            parse_next(x);
        int node = parse_expression(x);
        if (node < 0)
            return -1;
        if (n < most)
            arg[n] = node;
        n++;
    }
    return parse_expect(x, close) ? n : -1;
}

static int parse_read(Parser *x, int tensor, Slice name) {
    const ProgramTensor *t = &x->p->tensor[tensor];
    size_t at = (size_t)(name.p - x->text);
    int index[PROGRAM_RANK] = {0}, n = 0;
    if (parse_at(x, "[")) {
        parse_next(x);
        n = parse_list(x, "]", index, PROGRAM_RANK);
        if (n < 0)
            return -1;
    }
    if (n != t->rank)
        return parse_fail(x, at, "tensor %s has %d dimension%s, not %d",
                          t->name, t->rank, t->rank == 1 ? "" : "s", n);
    for (int i = 0; i < n; i++) {
        if (!parse_is(x, index[i], TYPE_INT))
            return parse_wrong_type(x, at, "an index", "int", index[i]);
    }
    return node_read(x->p, tensor, index);
}

static int parse_call(Parser *x, int op, size_t at) {
    int arg[3] = {0}, wanted = program_ops[op].nargs;
    parse_next(x);
    int n = parse_list(x, ")", arg, 3);
    if (n < 0)
        return -1;
    if (n != wanted)
        return parse_fail(x, at, "%s takes %d argument%s, not %d",
                          program_ops[op].spelling, wanted,
                          wanted == 1 ? "" : "s", n);
    if (op == OP_SELECT)
        return parse_choose(x, at, arg[0], arg[1], arg[2]);
    return parse_apply(x, at, op, arg[0], wanted > 1 ? arg[1] : arg[0]);
}

static int parse_primary(Parser *x) {
    size_t at = x->at;
    int op, node;
    switch (x->token) {
    case TOKEN_INT:
        return parse_int(x);
    case TOKEN_FLOAT:
        return parse_float(x);
    case TOKEN_NAME:
        op = find_function(x->word);
        if (op >= 0 && parse_peek(x) == '(') {
            parse_next(x);
            return parse_call(x, op, at);
        }
        return parse_name(x);
    default:
        break;
    }
    if (!parse_at(x, "("))
        return parse_fail(x, at, "expected a value, found %s", parse_found(x));
    parse_next(x);
    node = parse_expression(x);
    return node >= 0 && parse_expect(x, ")") ? node : -1;
}

static int parse_unary(Parser *x) {
    size_t at = x->at;
    int64_t value;
    int op = parse_at(x, "-")   ? OP_NEG
             : parse_at(x, "!") ? OP_NOT
             : parse_at(x, "~") ? OP_BIT_NOT
                                : -1;
    if (op < 0)
        return parse_primary(x);
    parse_next(x);
    if (op == OP_NEG && x->token == TOKEN_INT && int_word(x, &value) &&
        value == -(int64_t)INT32_MIN) {
        parse_next(x);
        return node_int(x->p, INT32_MIN);
    }
    int node = parse_nested(x, parse_unary);
    return node < 0 ? -1 : parse_apply(x, at, op, node, node);
}

/* The op of the sign at hand; *turned: its arguments change places. */
static int find_infix(const Parser *x, bool *turned) {
    *turned = parse_at(x, ">") || parse_at(x, ">=");
    if (*turned)
        return parse_at(x, ">") ? OP_LT : OP_LE;
    for (int i = 0; i < OPS; i++) {
        if (program_ops[i].nargs == 2 && program_ops[i].precedence &&
            parse_at(x, program_ops[i].spelling))
            return i;
    }
    return -1;
}

static int parse_binary(Parser *x, int precedence) {
    int a = parse_unary(x);
    while (a >= 0) {
        bool turned;
        size_t at = x->at;
        int op = find_infix(x, &turned);
        if (op < 0 || program_ops[op].precedence < precedence)
            break;
        parse_next(x);
        int b = parse_binary(x, program_ops[op].precedence + 1);
        if (b < 0)
            return -1;
        a = parse_apply(x, at, op, turned ? b : a, turned ? a : b);
    }
    return a;
}

/* A condition, then perhaps "? a : b". */
static int parse_choice(Parser *x) {
    int c = parse_binary(x, 1);
    size_t at = x->at;
    if (c < 0 || !parse_at(x, "?"))
        return c;
    parse_next(x);
    int a = parse_expression(x);
    if (a < 0 || !parse_expect(x, ":"))
        return -1;
    int b = parse_expression(x);
    return b < 0 ? -1 : parse_choose(x, at, c, a, b);
}

static int parse_nested(Parser *x, int (*parse)(Parser *x)) {
    if (x->depth == PROGRAM_NESTING)
        return parse_fail(x, x->at, "nested deeper than %d; nearest: a let",
                          PROGRAM_NESTING);
    x->depth++;
    int node = parse(x);
    x->depth--;
    if (node >= 0 && x->p->full)
        return parse_fail(x, x->at, "too long");
    return node;
}

static int parse_expression(Parser *x) {
    return parse_nested(x, parse_choice);
}

/* ---- statements -------------------------------------------------------- */

/* "let name = value;" after its first word. */
static bool parse_let(Parser *x) {
    char name[PROGRAM_NAME];
    parse_next(x);
    if (x->nlet == PARSE_LETS) {
        parse_fail(x, x->at, "more than %d lets", PARSE_LETS);
        return false;
    }
    if (!fresh(x, name))
        return false;
    if (program_find_tensor(x->p, name, strlen(name)) >= 0) {
        parse_fail(x, x->at, "'%s' is taken", name);
        return false;
    }
    parse_next(x);
    if (!parse_expect(x, "="))
        return false;
    int node = parse_expression(x);
    if (node < 0 || !parse_expect(x, ";"))
        return false;
    memcpy(x->let[x->nlet].name, name, sizeof name);
    x->let[x->nlet++].node = node;
    return true;
}

/* "[:,:]", one colon a dimension; nothing: no dimension. */
static bool parse_rank(Parser *x, int *rank) {
    *rank = 0;
    if (!parse_at(x, "["))
        return true;
    do {
        parse_next(x);
        if (++*rank > PROGRAM_RANK) {
            parse_fail(x, x->at, "a tensor has at most %d dimensions",
                       PROGRAM_RANK);
            return false;
        }
        if (!parse_expect(x, ":"))
            return false;
    } while (parse_at(x, ","));
    return parse_expect(x, "]");
}

/* Adds a tensor, or finds it declared alike. */
static bool add_tensor(Parser *x, size_t at, const ProgramTensor *t) {
    Program *p = x->p;
    int known = program_find_tensor(p, t->name, strlen(t->name));
    if (known >= 0) {
        const ProgramTensor *o = &p->tensor[known];
        if (o->dtype == t->dtype && o->rank == t->rank)
            return true;
        parse_fail(x, at, "tensor %s is %s of %d dimensions, not %s of %d",
                   t->name, program_dtype_name(o->dtype), o->rank,
                   program_dtype_name(t->dtype), t->rank);
        return false;
    }
    if (p->tensors == PROGRAM_TENSORS) {
        parse_fail(x, at, "more than %d tensors", PROGRAM_TENSORS);
        return false;
    }
    p->tensor[p->tensors++] = *t;
    return true;
}

/* "f32 name[:];" */
static bool parse_declaration(Parser *x, int dtype) {
    ProgramTensor t = {.dtype = dtype};
    parse_next(x);
    size_t at = x->at;
    if (!fresh(x, t.name))
        return false;
    parse_next(x);
    if (!parse_rank(x, &t.rank) || !parse_expect(x, ";"))
        return false;
    if (dtype == ARRAY_BITS && !t.rank) {
        parse_fail(x, at,
                   "bits have a dimension, which is packed; nearest: "
                   "bits %s[:]",
                   t.name);
        return false;
    }
    return add_tensor(x, at, &t);
}

static int parse_statements(Parser *x) {
    for (;;) {
        int dtype = x->token == TOKEN_NAME ? find_dtype(x->word) : -1;
        if (x->token == TOKEN_NAME && slice_is(x->word, "let")) {
            if (!parse_let(x))
                return -1;
        } else if (dtype >= 0) {
            if (!parse_declaration(x, dtype))
                return -1;
        } else {
            break;
        }
    }
    size_t at = x->at;
    int node = parse_expression(x);
    if (node < 0)
        return -1;
    if (parse_at(x, ";"))
        parse_next(x);
    if (x->token != TOKEN_END)
        return parse_fail(x, x->at, "expected the end, found %s",
                          parse_found(x));
    if (x->p->kind == PROGRAM_MASK)
        return parse_is(x, node, TYPE_BOOL)
                   ? node
                   : parse_wrong_type(x, at, "a mask", "bool", node);
    if (parse_is(x, node, TYPE_BOOL))
        return parse_fail(x, at,
                          "a score is a number, not bool; nearest: "
                          "select(x, s, -inf)");
    return node_to_float(x->p, node);
}

/* Tensors the caller knows carry names that the language allows. */
static bool add_known(Parser *x, const ProgramTensor *known, int n) {
    for (int i = 0; i < n; i++) {
        char name[PROGRAM_NAME];
        Parser y = *x;
        y.text = known[i].name;
        y.at = 0;
        y.word = (Slice){0};
        parse_next(&y);
        if (!fresh(&y, name) || y.word.len != strlen(known[i].name) ||
            known[i].dtype < ARRAY_F16 || known[i].dtype >= ARRAY_DTYPES ||
            known[i].rank < (known[i].dtype == ARRAY_BITS) ||
            known[i].rank > PROGRAM_RANK) {
            err_set(x->e, ERR_REQUEST, "tensor", known[i].name,
                    "a name is letters, digits and _; dtypes f16 f32 i32 "
                    "bool bits; 0 (bits: 1) to %d dimensions",
                    PROGRAM_RANK);
            return false;
        }
        if (!add_tensor(&y, 0, &known[i]))
            return false;
    }
    return true;
}

int program_parse(const char *text, int kind, const ProgramTensor *known,
                  int nknown, Program *p, Err *e) {
    Parser x = {.text = text, .p = p, .e = e};
    *p = (Program){.kind = kind};
    p->most = kind == PROGRAM_GRADIENT ? 16 * PROGRAM_NODES : PROGRAM_NODES;
    size_t len = strnlen(text, PROGRAM_TEXT + 1);
    if (len > PROGRAM_TEXT)
        return err_set(e, ERR_REQUEST, "program", NULL,
                       "longer than %d characters", PROGRAM_TEXT);
    node_bool(p, false); /* so that node 0 always exists */
    if (p->full)
        return err_set(e, ERR_MEMORY, "program", NULL, "out of memory");
    if (!add_known(&x, known, nknown))
        return e->code;
    parse_next(&x);
    p->root = parse_statements(&x);
    return p->root < 0 ? e->code : 0;
}
