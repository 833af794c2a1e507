/* SPDX-License-Identifier: Apache-2.0
 * Mask and score programs: text -> typed expression graph -> text, C, bounds,
 * gradients, values. The language: docs/programs.md; its list: program.def. */
#ifndef ATTNC_PROGRAM_H
#define ATTNC_PROGRAM_H

#include "gen.h"

enum program_kind {
    PROGRAM_MASK,
    PROGRAM_SCORE,
    PROGRAM_GRADIENT,
    PROGRAM_PATTERN /* no program, but a pattern: pattern.h */
};
enum program_type { TYPE_BOOL, TYPE_INT, TYPE_FLOAT };

enum program_operand {
#define OPERAND(name, type, deps, doc) OPERAND_##name,
#include "program.def"
#undef OPERAND
    OPERANDS
};

enum program_op {
#define OP(name, spelling, args, rule, precedence, doc) OP_##name,
#include "program.def"
#undef OP
    OPS
};

/* What a value changes with. B: batch entry, its lengths and offset. */
enum program_deps {
    DEP_B = 1,
    DEP_H = 2,
    DEP_Q = 4,
    DEP_K = 8,
    DEP_S = 16,
    DEP_D = 32
};

/* Limits. Positions, lengths, heads and |off| of a launch with programs stay
 * below PROGRAM_FAR, so that q + off and its like cannot wrap. */
enum {
    PROGRAM_TEXT = 16384,
    PROGRAM_NODES = 1024, /* of a text; gradients may take 16 times that */
    PROGRAM_NESTING = 64,
    PROGRAM_TABLE = 65536, /* entries a computed index with gradient reaches */
    PROGRAM_FAR = 1 << 28
};

/* Arguments stand before their users, so index order is evaluation order. */
typedef struct Node {
    uint8_t op, type, deps, nargs; /* enum program_op, _type, _deps */
    int32_t arg[PROGRAM_RANK];     /* arguments; of a READ its indices */
    union {
        int32_t i; /* CONST bool, int; OPERAND: which; READ: tensor */
        float f;   /* CONST float */
    };
} Node;

/* Nodes are equal only if they are the same node. */
typedef struct Program {
    int kind, root;
    int count, cap, most; /* nodes; `most` there may be */
    Node *node;
    int32_t *bucket; /* node + 1 by hash, 2 * cap of them; 0: free */
    int tensors;
    ProgramTensor tensor[PROGRAM_TENSORS];
    bool full; /* `most` reached, or out of memory: the graph is not whole */
} Program;

/* ---- program_graph.c --------------------------------------------------- */

/* The rows of program.def. */
enum program_rule {
    RULE_LEAF,
    RULE_NUMBER,
    RULE_INTEGER,
    RULE_BITS,
    RULE_ORDER,
    RULE_EQUAL,
    RULE_LOGIC,
    RULE_REAL,
    RULE_TO_INT,
    RULE_CHOICE
};
typedef struct OpRow {
    const char *spelling, *doc;
    uint8_t nargs, rule, precedence;
} OpRow;
typedef struct OperandRow {
    const char *name, *doc;
    uint8_t type, deps;
} OperandRow;
extern const OpRow program_ops[OPS];
extern const OperandRow program_operands[OPERANDS];
const char *program_type_name(int type);   /* bool int float */
const char *program_dtype_name(int dtype); /* f16 f32 i32 bool bits */
int program_dtype_type(int dtype);
/* What so many elements in a row take; of bits whole words. */
int64_t program_dtype_bytes(int dtype, int64_t elements);
/* Index of the tensor of that name, or -1. */
int program_find_tensor(const Program *p, const char *name, size_t len);
void program_free(Program *p);
bool program_copy(const Program *from, Program *to);

/* Each finds or makes a node and returns its index; the arguments have the
 * types the op wants. Folds constants where that changes no result. */
int node_int(Program *p, int32_t value);
int node_float(Program *p, float value);
int node_bool(Program *p, bool value);
int node_operand(Program *p, int operand);
int node_read(Program *p, int tensor, const int *index);
int node_make(Program *p, int op, int a, int b, int c);
/* As float or as the type given: int -> float only. */
int node_to_float(Program *p, int a);
/* How often each node is an argument of one that `roots` reach; the roots
 * count once more. `uses` has p->count elements. */
void program_uses(const Program *p, const int *roots, int nroots,
                  int32_t *uses);

/* ---- program_fold.c ---------------------------------------------------- */

/* The node that op of a, b, c equals, made or known; -1: no simpler one. */
int node_fold(Program *p, int op, int a, int b, int c);
/* int32 arithmetic as the language has it. */
int32_t program_int_op(int op, int32_t a, int32_t b);
int32_t program_to_int(double x);

/* ---- program_parse.c --------------------------------------------------- */

/* Text -> *p, which the caller frees, on failure too. `known` are tensors the
 * caller has; the text may declare more ("f32 slope[:];"). ERR_REQUEST: the
 * first line of e->text says it all, below it the place and a caret. */
int program_parse(const char *text, int kind, const ProgramTensor *known,
                  int nknown, Program *p, Err *e);

/* ---- program_print.c, program_c.c -------------------------------------- */

/* Canonical text, one line: declarations of the tensors read, shared parts as
 * `let`s, the result. Parses back to the same text: a program's identity. */
void program_print(const Program *p, Str *out);

/* Which statements of a C body to print: those for which a value is enough
 * per batch entry, per query row, per key, or per pair of them. */
enum program_stage {
    STAGE_ENTRY,
    STAGE_ROW,
    STAGE_KEY,
    STAGE_PAIR,
    STAGE_DOUT, /* pairs, once `dout` is known, too */
    STAGES
};

/* How C is written. A value that depends on a bit of `lanes` is a vector (vec,
 * ivec; bool: lanes of 0 and -1), any other a scalar; `rows` are the bits that
 * make a value one of a row (h too, where heads share a key head). */
typedef struct ProgramC {
    unsigned lanes, rows;
    bool strips; /* elements of rows of keys are read LANES keys at a time,
                    those being counted by j = 0, 1, .. */
    const char *prefix;            /* of the names of values: "t" */
    const char *operand[OPERANDS]; /* C for it; NULL: its own name */
} ProgramC;

int program_stage(const ProgramC *c, unsigned deps);
/* The dimension of k of a read that comes from a strip, or -1. */
int program_strip(const Program *p, const ProgramC *c, int node);
/* The statements of one stage, indented by four: "const f32 t4 = ...;". */
void program_c_part(const Program *p, const int *roots, int nroots,
                    const ProgramC *c, int stage, Str *out);
/* The value of a root after its statements, as an expression. */
void program_c_value(const Program *p, const int *roots, int nroots,
                     const ProgramC *c, int root, Str *out);

/* ---- program_eval.c ---------------------------------------------------- */

/* A tensor on the host; strides in elements: of bits, too, a multiple of 32
 * but in the last dim, where it is 1. */
typedef struct ProgramArray {
    const void *at;
    int dtype;
    int64_t n[PROGRAM_RANK], stride[PROGRAM_RANK];
} ProgramArray;

/* Values of operands, by enum program_operand. */
typedef struct ProgramEnv {
    double operand[OPERANDS];
    const ProgramArray *array; /* by tensor */
    bool narrow;               /* round every float to f32 */
    double *f32; /* room for a second value of each node, or NULL: what becomes
                    an int or a bool, or is floored, then has f32's value, as a
                    kernel would, the rest is f64 */
} ProgramEnv;

/* Every node up to `last`, in order: f64 (bools 0 and 1). */
void program_eval(const Program *p, const ProgramEnv *env, int last,
                  double *value);
/* Of these the ones that change with one of `with` (DEP_ bits; 0: all) but with
 * none of `without`; what they take is there. */
void program_eval_stage(const Program *p, const ProgramEnv *env, int last,
                        unsigned with, unsigned without, double *value);
/* Does a float become an int or a bool, or is one floored? */
bool program_decides(const Program *p, int last);
/* The element, as f64; 0 outside. */
double program_array_read(const ProgramArray *a, int rank,
                          const int64_t *index);

/* ---- program_bound.c --------------------------------------------------- */

/* lo <= x <= hi; of bools 0 and 1. nan: may also be NaN. wraps: an int op may
 * have left int32 on the way here. */
typedef struct Range {
    double lo, hi;
    bool nan, wraps;
} Range;

typedef struct ProgramTile {
    Range operand[OPERANDS];
    /* What reading a tensor gives for indices in ranges, with the 0 read
     * outside if they may lie there; false: not known. May be NULL. */
    bool (*read)(void *user, int tensor, int rank, const Range *index,
                 Range *out);
    void *user;
} ProgramTile;

enum verdict { VERDICT_EMPTY, VERDICT_PARTIAL, VERDICT_FULL };

/* Operands over all a launch may hold. */
ProgramTile program_everywhere(void);
/* Every node up to `last`; sound for f32 and f64 evaluation alike. */
void program_ranges(const Program *p, const ProgramTile *tile, int last,
                    Range *range);
/* Of a mask over a tile. `range`: scratch of p->count. */
int program_verdict(const Program *p, const ProgramTile *tile, Range *range);

/* ---- program_affine.c -------------------------------------------------- */

/* k_mul * k + q_mul * q + add + sum of mul[i] * value of node term[i] <= 0, if
 * every such value lies in lo[i] .. hi[i]; else nothing is said. */
enum { AFFINE_TERMS = 4, AFFINE_FACTS = 8, AFFINE_WAYS = 4 };
typedef struct Affine {
    int64_t k_mul, q_mul, add;
    int nterm;
    int32_t term[AFFINE_TERMS], lo[AFFINE_TERMS], hi[AFFINE_TERMS];
    int64_t mul[AFFINE_TERMS];
    bool guard[AFFINE_TERMS]; /* may the value lie elsewhere? */
} Affine;

/* What a mask says of k in closed form: some way holds, a way being all its
 * facts. exact: the mask is this and nothing more. */
typedef struct ProgramBounds {
    int nway;
    int nfact[AFFINE_WAYS];
    Affine fact[AFFINE_WAYS][AFFINE_FACTS];
    bool exact;
} ProgramBounds;

/* false: out of memory; *out then says nothing. */
bool program_bounds(const Program *p, ProgramBounds *out);
/* Keys [*lo, *hi) of [0, nk) hold every key any query of q0 .. q1 sees; value:
 * of the term nodes, by node. */
void bounds_some(const ProgramBounds *x, const double *value, int64_t q0,
                 int64_t q1, int64_t nk, int64_t *lo, int64_t *hi);
/* Keys [*lo, *hi) that all of them see; for exact bounds of one way. */
void bounds_all(const ProgramBounds *x, const double *value, int64_t q0,
                int64_t q1, int64_t nk, int64_t *lo, int64_t *hi);

/* ---- program_c_bound.c ------------------------------------------------- */

/* The nodes whose values the facts take: roots for program_c_part. */
int bounds_terms(const ProgramBounds *x, int *node, int most);
/* Statements that set i64 lo, hi to what bounds_some and all_lo, all_hi to
 * what bounds_all gives for i64 q0, q1, nk; after those of the terms' stage,
 * which is STAGE_ENTRY unless heads are rows (c->rows) and a term takes h. */
void program_c_bounds(const Program *p, const int *roots, int nroots,
                      const ProgramC *c, const ProgramBounds *b, Str *out);

/* ---- program_c_verdict.c ----------------------------------------------- */

/* Nodes with one value for a tile that the verdict takes: roots for
 * program_c_part. -1: out of memory. */
int verdict_roots(const Program *p, const ProgramC *c, int *node, int most);
/* Statements that set `verdict` (enum verdict) of a tile: first and last query
 * q0, q1, key k0, k1, head h0, h1 where heads are rows. */
void program_c_verdict(const Program *p, const int *roots, int nroots,
                       const ProgramC *c, Str *out);

/* ---- program_grad.c ---------------------------------------------------- */

enum program_index {
    INDEX_B,
    INDEX_H,
    INDEX_Q,
    INDEX_K,
    INDEX_CONST,
    INDEX_EXPR
};

/* Gradient with respect to one read of a float tensor: at every (b, h, q, k)
 * `grad` is added to the element read. */
typedef struct ReadGrad {
    int tensor, read;        /* the READ node in the program and in *out */
    int grad;                /* node of *out */
    int index[PROGRAM_RANK]; /* enum program_index */
    int expr;                /* the dimension with INDEX_EXPR, or -1 */
    unsigned broadcast;      /* DEP_ bits summed over: not an index */
} ReadGrad;

enum { PROGRAM_READS = 16 };
typedef struct ProgramGrad {
    Program p; /* PROGRAM_GRADIENT: the program's nodes, then more */
    int ds;    /* node: dout * d result / d s; -1: none of it depends on s */
    int nread;
    ReadGrad read[PROGRAM_READS];
} ProgramGrad;

/* Of a score program; `wanted`: bit per tensor whose gradient is asked for.
 * The caller frees g->p, on failure too. Values equal to -inf are excluded
 * keys: their gradients are not to be used. */
int program_grad(const Program *p, unsigned wanted, ProgramGrad *g, Err *e);
/* How the work on gradients may be shared out, in DEP_B, _H, _Q: pairs that
 * differ in one which a tensor owns never read the same element of it, for
 * every read has it as its index in one and the same dimension. */
typedef struct GradShare {
    unsigned owned;  /* of every tensor */
    unsigned split;  /* of every wide one: with so many elements that no part
                        of the work could have a copy of its own */
    unsigned parted; /* bits of those of g->p that do not own all of `split` */
} GradShare;
GradShare grad_share(const ProgramGrad *g);

/* ---- program_intern.c -------------------------------------------------- */

/* The program of that text (pattern: "butterfly:m=2 block=64"), which equal
 * texts share and nobody frees. Safe among threads. */
int program_intern(const char *text, int kind, const ProgramTensor *known,
                   int nknown, const attnc_program **out, Err *e);

/* ---- spec_program.c ---------------------------------------------------- */

/* Of a checked spec. What a query sees beside the built-in mask: the mask
 * program and the pattern; NULL: all. */
const Program *spec_keep(const attnc_spec *s);
/* The bias, then the score program; NULL: neither. */
const Program *spec_score(const attnc_spec *s);
/* Of spec_score, with the tensors of tensor_grads. */
const ProgramGrad *spec_score_grad(const attnc_spec *s);
/* The tensors, those of the mask first: their order is that of the bits of
 * tensor_grads. Returns how many. */
int spec_tensors(const attnc_spec *s, ProgramTensor out[SPEC_TENSORS]);
/* Bits of those that have a gradient. */
unsigned spec_grads_possible(const attnc_spec *s);
/* Of tensor_grads those whose gradient is a sum of parts: grad_share. */
unsigned spec_grads_parted(const attnc_spec *s);
bool spec_has_programs(const attnc_spec *s);
/* Does a program read this operand (enum program_operand)? */
bool spec_reads(const attnc_spec *s, int operand);
/* Shares of the tiles of queries x keys that the spec's pattern meets at all,
 * and only in part, at the hinted lengths; 1 and 0 without a pattern. */
void spec_share(const attnc_spec *s, const attnc_shape *h, int64_t queries,
                int64_t keys, double *any, double *part);
/* Side of the blocks of a pattern without a closed form, which spec_keep reads
 * from the tensor pattern_blocks: nothing beside those listed is seen; 0: there
 * is none. */
int64_t spec_listed(const attnc_spec *s);
/* Part of spec_check. */
int spec_check_programs(const attnc_spec *s, Err *e);

#endif
