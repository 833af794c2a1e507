/* SPDX-License-Identifier: Apache-2.0
 * What a spec's programs, bias and pattern come to: one mask and one score
 * program, put together once for each combination. */
#include <stdlib.h>
#include <string.h>

#include "program_intern.h"

/* ---- graph into graph -------------------------------------------------- */

/* The tensor of `to` that is `t` of another program; -1: it clashes, or there
 * are too many. */
static int graft_tensor(Program *to, const ProgramTensor *t) {
    int i = program_find_tensor(to, t->name, strlen(t->name));
    if (i >= 0)
        return to->tensor[i].dtype == t->dtype && to->tensor[i].rank == t->rank
                   ? i
                   : -1;
    if (to->tensors == PROGRAM_TENSORS)
        return -1;
    to->tensor[to->tensors] = *t;
    return to->tensors++;
}

/* A node of `from` in `to`; at: where its arguments went; s: what stands for
 * the operand s, or -1. */
static int graft_node(Program *to, const Program *from, const Node *n,
                      const int *at, int s) {
    int arg[PROGRAM_RANK] = {0};
    for (int a = 0; a < n->nargs; a++)
        arg[a] = at[n->arg[a]];
    switch (n->op) {
    case OP_CONST:
        return n->type == TYPE_FLOAT  ? node_float(to, n->f)
               : n->type == TYPE_BOOL ? node_bool(to, n->i)
                                      : node_int(to, n->i);
    case OP_OPERAND:
        return n->i == OPERAND_s && s >= 0 ? s : node_operand(to, n->i);
    case OP_READ:
        return node_read(to, graft_tensor(to, &from->tensor[n->i]), arg);
    default:
        return node_make(to, n->op, arg[0], arg[1], arg[2]);
    }
}

/* Root of `from` as a node of `to`; -1: *e says why not. */
static int graft(Program *to, const Program *from, int s, Err *e) {
    int *at = calloc((size_t)from->root + 1, sizeof *at);
    for (int i = 0; i < from->tensors; i++) {
        if (graft_tensor(to, &from->tensor[i]) < 0)
            err_set(e, ERR_REQUEST, "spec", from->tensor[i].name,
                    "two tensors of this name, or more than %d",
                    PROGRAM_TENSORS);
    }
    for (int i = 0; at && !e->code && i <= from->root; i++)
        at[i] = graft_node(to, from, &from->node[i], at, s);
    int root = at ? at[from->root] : -1;
    free(at);
    if (root < 0 || to->full)
        err_set(e, ERR_REQUEST, "spec", NULL,
                "programs and pattern together take more than %d operations",
                to->most);
    return e->code ? -1 : root;
}

static int graft_text(Program *to, const char *text, int kind, Err *e) {
    Program p;
    int root =
        program_parse(text, kind, NULL, 0, &p, e) ? -1 : graft(to, &p, -1, e);
    program_free(&p);
    return root;
}

static bool open_program(Program *p, int kind, Err *e) {
    *p = (Program){.kind = kind, .most = PROGRAM_NODES};
    node_bool(p, false);
    return !p->full || !err_set(e, ERR_MEMORY, "spec", NULL, "out of memory");
}

/* ---- keys of combinations ---------------------------------------------- */

static char *key_of(const attnc_spec *s, int kind) {
    Str key = {0};
    const attnc_program *score = s->score_program;
    if (kind == PROGRAM_SPEC_KEEP)
        str_addf(&key, "%s\n%s", s->mask_program ? s->mask_program->text : "",
                 s->sparsity->text);
    else
        str_addf(&key, "%d\n%s", s->bias, score ? score->text : "");
    if (kind == PROGRAM_SPEC_GRAD) {
        str_addf(&key, "\n%d\n%s\n%s", s->tensor_grads,
                 s->mask_program ? s->mask_program->text : "",
                 s->sparsity ? s->sparsity->text : "");
    }
    if (key.bad)
        str_free(&key);
    return key.text;
}

/* The combination's entry, made by `make` the first time. */
static const attnc_program *combined(const attnc_spec *s, int kind,
                                     void (*make)(const attnc_spec *s,
                                                  attnc_program *p, Err *e),
                                     Err *e) {
    attnc_program p = {.kind = kind, .text = key_of(s, kind)};
    const attnc_program *found = p.text ? intern_find(p.text, kind) : NULL;
    if (found) {
        intern_drop(&p);
        return found;
    }
    if (p.text)
        make(s, &p, e);
    if (e->code) {
        intern_drop(&p);
        return NULL;
    }
    return intern_add(&p, e);
}

/* ---- mask -------------------------------------------------------------- */

/* A pattern without a closed form comes as blocks that an object lists. */
static void pattern_text_of(const Pattern *p, Str *text) {
    if (pattern_program(p, text))
        return;
    long long block = p->block;
    str_addf(text,
             "bits pattern_blocks[:,:,:,:]; "
             "pattern_blocks[b, h, q / %lld, k / %lld]%s",
             block, block, p->a.causal ? " && k <= q" : "");
}

int64_t spec_listed(const attnc_spec *s) {
    Str closed = {0};
    bool listed =
        s->sparsity && !pattern_program(&s->sparsity->pattern, &closed);
    str_free(&closed);
    return listed ? s->sparsity->pattern.block : 0;
}

static void make_keep(const attnc_spec *s, attnc_program *p, Err *e) {
    Program *g = &p->graph;
    Str text = {0};
    int root = -1;
    if (!open_program(g, PROGRAM_MASK, e))
        return;
    pattern_text_of(&s->sparsity->pattern, &text);
    if (text.bad)
        err_set(e, ERR_MEMORY, "spec", NULL, "out of memory");
    if (s->mask_program)
        root = graft(g, &s->mask_program->graph, -1, e);
    int kept = e->code ? -1 : graft_text(g, text.text, PROGRAM_MASK, e);
    str_free(&text);
    if (!e->code)
        g->root = root < 0 ? kept : node_make(g, OP_AND, root, kept, 0);
}

static const Program *keep_of(const attnc_spec *s, Err *e) {
    if (!s->sparsity)
        return s->mask_program ? &s->mask_program->graph : NULL;
    const attnc_program *p = combined(s, PROGRAM_SPEC_KEEP, make_keep, e);
    return p ? &p->graph : NULL;
}

/* ---- score ------------------------------------------------------------- */

/* "s + bias[h,q,k]". */
static void bias_text(const attnc_spec *s, Str *text) {
    const char *index = spec_spelling(s, "bias");
    if (s->bias == ATTNC_BIAS_1) {
        str_addf(text, "f32 bias; s + bias");
        return;
    }
    str_addf(text, "f32 bias[:");
    for (size_t i = 1; i < strlen(index); i++)
        str_addf(text, ",:");
    str_addf(text, "]; s + bias[");
    for (const char *c = index; *c; c++)
        str_addf(text, c == index ? "%c" : ", %c", *c);
    str_addf(text, "]");
}

static void make_score(const attnc_spec *s, attnc_program *p, Err *e) {
    Str text = {0};
    if (!open_program(&p->graph, PROGRAM_SCORE, e))
        return;
    bias_text(s, &text);
    if (text.bad)
        err_set(e, ERR_MEMORY, "spec", NULL, "out of memory");
    int root =
        e->code ? -1 : graft_text(&p->graph, text.text, PROGRAM_SCORE, e);
    if (!e->code && s->score_program)
        root = graft(&p->graph, &s->score_program->graph, root, e);
    p->graph.root = e->code ? 0 : node_to_float(&p->graph, root);
    str_free(&text);
}

static const Program *score_of(const attnc_spec *s, Err *e) {
    if (s->bias == ATTNC_BIAS_NONE)
        return s->score_program ? &s->score_program->graph : NULL;
    const attnc_program *p = combined(s, PROGRAM_SPEC_SCORE, make_score, e);
    return p ? &p->graph : NULL;
}

/* ---- tensors ----------------------------------------------------------- */

static int tensors_of(const Program *keep, const Program *score,
                      ProgramTensor out[SPEC_TENSORS], Err *e) {
    const Program *programs[] = {keep, score};
    int n = 0;
    for (int i = 0; i < 2; i++) {
        for (int t = 0; programs[i] && t < programs[i]->tensors; t++) {
            const ProgramTensor *x = &programs[i]->tensor[t];
            int k = 0;
            while (k < n && strcmp(out[k].name, x->name))
                k++;
            if (k == n)
                out[n++] = *x;
            else if (out[k].dtype != x->dtype || out[k].rank != x->rank)
                err_set(e, ERR_REQUEST, "spec", x->name,
                        "is %s of rank %d in the mask and %s of rank %d in "
                        "the score; accepted: the same",
                        program_dtype_name(out[k].dtype), out[k].rank,
                        program_dtype_name(x->dtype), x->rank);
        }
    }
    return n;
}

/* Bits of spec_tensors as bits of the score program's own. */
static unsigned wanted_of(const attnc_spec *s, const Program *score) {
    ProgramTensor all[SPEC_TENSORS];
    unsigned wanted = 0;
    int n = spec_tensors(s, all);
    for (int i = 0; i < n; i++) {
        int own = program_find_tensor(score, all[i].name, strlen(all[i].name));
        if (own >= 0 && s->tensor_grads >> i & 1)
            wanted |= 1u << own;
    }
    return wanted;
}

/* ---- gradient ---------------------------------------------------------- */

static void make_grad(const attnc_spec *s, attnc_program *p, Err *e) {
    const Program *score = score_of(s, e);
    if (score)
        program_grad(score, wanted_of(s, score), &p->grad, e);
}

static const ProgramGrad *grad_of(const attnc_spec *s, Err *e) {
    if (s->bias == ATTNC_BIAS_NONE && !s->score_program)
        return NULL;
    const attnc_program *p = combined(s, PROGRAM_SPEC_GRAD, make_grad, e);
    return p ? &p->grad : NULL;
}

/* ---- the public view --------------------------------------------------- */

const Program *spec_keep(const attnc_spec *s) {
    Err e = {0};
    return keep_of(s, &e);
}

const Program *spec_score(const attnc_spec *s) {
    Err e = {0};
    return score_of(s, &e);
}

const ProgramGrad *spec_score_grad(const attnc_spec *s) {
    Err e = {0};
    return grad_of(s, &e);
}

int spec_tensors(const attnc_spec *s, ProgramTensor out[SPEC_TENSORS]) {
    Err e = {0};
    return tensors_of(keep_of(s, &e), score_of(s, &e), out, &e);
}

bool spec_has_programs(const attnc_spec *s) {
    return s->mask_program || s->score_program || s->sparsity || s->bias;
}

static bool reads(const Program *p, int operand) {
    for (int i = 0; p && i <= p->root; i++) {
        const Node *n = &p->node[i];
        if (n->op == OP_OPERAND && n->i == operand)
            return true;
    }
    return false;
}

bool spec_reads(const attnc_spec *s, int operand) {
    return reads(spec_keep(s), operand) || reads(spec_score(s), operand);
}

unsigned spec_grads_possible(const attnc_spec *s) {
    ProgramTensor all[SPEC_TENSORS];
    int n = spec_tensors(s, all);
    const Program *score = spec_score(s);
    unsigned possible = 0;
    for (int i = 0; score && i < n; i++) {
        attnc_spec one = *s;
        one.tensor_grads = 1 << i;
        if (wanted_of(&one, score) && spec_score_grad(&one))
            possible |= 1u << i;
    }
    return possible;
}

unsigned spec_grads_parted(const attnc_spec *s) {
    ProgramTensor all[SPEC_TENSORS];
    const ProgramGrad *g = s->tensor_grads ? spec_score_grad(s) : NULL;
    unsigned own = g ? grad_share(g).parted : 0, parted = 0;
    int n = own ? spec_tensors(s, all) : 0;
    for (int i = 0; i < n; i++) {
        int t = program_find_tensor(&g->p, all[i].name, strlen(all[i].name));
        if (t >= 0 && own >> t & 1)
            parted |= 1u << i;
    }
    return parted;
}

int64_t spec_values_bytes(const attnc_spec *s) {
    const Program *keep = spec_keep(s), *score = spec_score(s);
    const ProgramGrad *grads =
        s->pass == ATTNC_PASS_BWD ? spec_score_grad(s) : NULL;
    int64_t n = keep ? keep->count : 0;
    n += grads ? grads->p.count : score ? score->count : 0;
    return (n * (int64_t)sizeof(double) + 63) / 64 * 64;
}

/* ---- checks ------------------------------------------------------------ */

static int check_kind(const attnc_program *p, int kind, const char *field,
                      Err *e) {
    static const char *const names[] = {[PROGRAM_MASK] = "mask",
                                        [PROGRAM_SCORE] = "score",
                                        [PROGRAM_PATTERN] = "pattern"};
    if (!p || p->kind == kind)
        return 0;
    return err_set(e, ERR_REQUEST, "spec", field,
                   "made as a %s; accepted: a %s", names[p->kind], names[kind]);
}

static int check_grads(const attnc_spec *s, Err *e) {
    ProgramTensor all[SPEC_TENSORS];
    int n = spec_tensors(s, all), bits = s->tensor_grads;
    if (bits && s->pass != ATTNC_PASS_BWD)
        return err_set(e, ERR_REQUEST, "spec", "tensor_grads",
                       "%d, but pass=fwd gives none; nearest: 0", bits);
    for (int i = 0; bits >> i; i++) {
        bool score = i < n && spec_score(s) &&
                     program_find_tensor(spec_score(s), all[i].name,
                                         strlen(all[i].name)) >= 0;
        if (bits >> i & 1 && !score)
            return err_set(e, ERR_REQUEST, "spec", "tensor_grads",
                           "bit %d is no tensor that the score reads; nearest: "
                           "%u",
                           i, spec_grads_possible(s));
    }
    if (s->pass == ATTNC_PASS_BWD)
        grad_of(s, e);
    return e->code;
}

int spec_check_programs(const attnc_spec *s, Err *e) {
    ProgramTensor all[SPEC_TENSORS];
    if (!spec_has_programs(s) && s->mask != ATTNC_MASK_PROGRAM &&
        !s->tensor_grads)
        return 0; /* soon: every prepare asks */
    if (!s->mask_program != (s->mask != ATTNC_MASK_PROGRAM))
        return err_set(e, ERR_REQUEST, "spec", "mask_program",
                       s->mask_program
                           ? "given, but mask is not program"
                           : "none, but the spec says mask=program");
    if (check_kind(s->mask_program, PROGRAM_MASK, "mask_program", e) ||
        check_kind(s->score_program, PROGRAM_SCORE, "score_program", e) ||
        check_kind(s->sparsity, PROGRAM_PATTERN, "sparsity", e))
        return e->code;
    const Program *keep = keep_of(s, e);
    const Program *score = e->code ? NULL : score_of(s, e);
    if (!e->code)
        tensors_of(keep, score, all, e);
    return e->code ? e->code : check_grads(s, e);
}
