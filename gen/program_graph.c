/* SPDX-License-Identifier: Apache-2.0
 * The expression graph of a program: nodes found or made by hash, so that a
 * common part stands once. */
#include <stdlib.h>
#include <string.h>

#include "program.h"

/* ---- names ------------------------------------------------------------- */

const OpRow program_ops[OPS] = {
#define OP(name, spelling, args, rule, precedence, doc)                        \
    {spelling, doc, args, RULE_##rule, precedence},
#include "program.def"
#undef OP
};

const OperandRow program_operands[OPERANDS] = {
#define OPERAND(name, type, deps, doc) {#name, doc, TYPE_##type, deps},
#include "program.def"
#undef OPERAND
};

const char *program_type_name(int type) {
    static const char *const names[] = {"bool", "int", "float"};
    return names[type];
}

const char *program_dtype_name(int dtype) {
    static const char *const names[] = {"f16", "f32", "i32", "bool", "bits"};
    return names[dtype];
}

int program_dtype_type(int dtype) {
    return dtype >= ARRAY_BOOL  ? TYPE_BOOL
           : dtype == ARRAY_I32 ? TYPE_INT
                                : TYPE_FLOAT;
}

int64_t program_dtype_bytes(int dtype, int64_t elements) {
    static const int bytes[ARRAY_DTYPES] = {
        [ARRAY_F16] = 2, [ARRAY_F32] = 4, [ARRAY_I32] = 4, [ARRAY_BOOL] = 1};
    return dtype == ARRAY_BITS ? (elements + 31) / 32 * 4
                               : elements * bytes[dtype];
}

int program_find_tensor(const Program *p, const char *name, size_t len) {
    for (int i = 0; i < p->tensors; i++) {
        if (strlen(p->tensor[i].name) == len &&
            !memcmp(p->tensor[i].name, name, len))
            return i;
    }
    return -1;
}

/* ---- storage ----------------------------------------------------------- */

void program_free(Program *p) {
    free(p->node);
    free(p->bucket);
    *p = (Program){0};
}

static uint32_t hash(const Node *n) {
    const unsigned char *bytes = (const unsigned char *)n;
    uint32_t h = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < sizeof *n; i++)
        h = (h ^ bytes[i]) * 16777619u;
    return h ^ h >> 15;
}

/* The bucket that holds the node, or the free one where it belongs. */
static int32_t *bucket_of(const Program *p, const Node *n) {
    uint32_t mask = (uint32_t)p->cap * 2 - 1, at = hash(n) & mask;
    while (p->bucket[at] && memcmp(&p->node[p->bucket[at] - 1], n, sizeof *n))
        at = (at + 1) & mask;
    return &p->bucket[at];
}

/* cap is a power of 2; the new nodes are zero. */
static bool resize(Program *p, int cap) {
    Node *node = calloc((size_t)cap, sizeof *node);
    int32_t *bucket = calloc((size_t)cap * 2, sizeof *bucket);
    if (!node || !bucket) {
        free(node);
        free(bucket);
        return false;
    }
    if (p->count)
        memcpy(node, p->node, (size_t)p->count * sizeof *node);
    free(p->node);
    free(p->bucket);
    p->node = node;
    p->bucket = bucket;
    p->cap = cap;
    for (int i = 0; i < p->count; i++)
        *bucket_of(p, &p->node[i]) = i + 1;
    return true;
}

bool program_copy(const Program *from, Program *to) {
    *to = *from;
    to->node = NULL;
    to->bucket = NULL;
    to->count = 0;
    if (!resize(to, from->cap))
        return false;
    memcpy(to->node, from->node, (size_t)from->count * sizeof *to->node);
    memcpy(to->bucket, from->bucket,
           (size_t)from->cap * 2 * sizeof *to->bucket);
    to->count = from->count;
    return true;
}

/* Index of the node, made if there is none like it. */
static int intern(Program *p, const Node *n) {
    if (p->full ||
        (p->count == p->cap &&
         (p->cap >= p->most || !resize(p, p->cap ? 2 * p->cap : 64)))) {
        p->full = true;
        return 0;
    }
    int32_t *bucket = bucket_of(p, n);
    if (!*bucket) {
        p->node[p->count] = *n;
        *bucket = ++p->count;
    }
    return *bucket - 1;
}

/* ---- nodes ------------------------------------------------------------- */

static Node blank(int op, int type) {
    Node n;
    memset(&n, 0, sizeof n);
    n.op = (uint8_t)op;
    n.type = (uint8_t)type;
    return n;
}

int node_int(Program *p, int32_t value) {
    Node n = blank(OP_CONST, TYPE_INT);
    n.i = value;
    return intern(p, &n);
}

int node_float(Program *p, float value) {
    Node n = blank(OP_CONST, TYPE_FLOAT);
    n.f = value;
    return intern(p, &n);
}

int node_bool(Program *p, bool value) {
    Node n = blank(OP_CONST, TYPE_BOOL);
    n.i = value;
    return intern(p, &n);
}

int node_operand(Program *p, int operand) {
    Node n = blank(OP_OPERAND, program_operands[operand].type);
    n.deps = program_operands[operand].deps;
    n.i = operand;
    return intern(p, &n);
}

int node_read(Program *p, int tensor, const int *index) {
    const ProgramTensor *t = &p->tensor[tensor];
    Node n = blank(OP_READ, program_dtype_type(t->dtype));
    n.i = tensor;
    n.nargs = (uint8_t)t->rank;
    for (int i = 0; i < t->rank; i++) {
        n.arg[i] = index[i];
        n.deps |= p->node[index[i]].deps;
    }
    return intern(p, &n);
}

static int result_type(const Program *p, int op, int a, int b) {
    switch (program_ops[op].rule) {
    case RULE_NUMBER:
        return p->node[a].type;
    case RULE_CHOICE:
        return p->node[b].type;
    case RULE_INTEGER:
    case RULE_BITS:
    case RULE_TO_INT:
        return TYPE_INT;
    case RULE_REAL:
        return TYPE_FLOAT;
    default:
        return TYPE_BOOL;
    }
}

static bool commutes(int op) {
    return op == OP_ADD || op == OP_MUL || op == OP_EQ || op == OP_NE ||
           op == OP_BIT_AND || op == OP_BIT_OR || op == OP_BIT_XOR ||
           op == OP_AND || op == OP_OR;
}

int node_make(Program *p, int op, int a, int b, int c) {
    if (p->full)
        return 0;
    int known = node_fold(p, op, a, b, c);
    if (known >= 0 || p->full)
        return known >= 0 ? known : 0;
    const int arg[3] = {a, b, c};
    Node n = blank(op, result_type(p, op, a, b));
    n.nargs = program_ops[op].nargs;
    for (int i = 0; i < n.nargs; i++) {
        n.arg[i] = arg[i];
        n.deps |= p->node[arg[i]].deps;
    }
    if (commutes(op)) { /* the other order counts as found, too */
        Node turned = n;
        turned.arg[0] = b;
        turned.arg[1] = a;
        int32_t found = *bucket_of(p, &turned);
        if (found)
            return found - 1;
    }
    return intern(p, &n);
}

int node_to_float(Program *p, int a) {
    return p->node[a].type == TYPE_INT ? node_make(p, OP_TO_FLOAT, a, 0, 0) : a;
}

void program_uses(const Program *p, const int *roots, int nroots,
                  int32_t *uses) {
    memset(uses, 0, (size_t)p->count * sizeof *uses);
    for (int i = 0; i < nroots; i++)
        uses[roots[i]]++;
    for (int i = p->count - 1; i >= 0; i--) {
        for (int a = 0; uses[i] && a < p->node[i].nargs; a++)
            uses[p->node[i].arg[a]]++;
    }
}
