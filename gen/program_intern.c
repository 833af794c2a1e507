/* SPDX-License-Identifier: Apache-2.0
 * Programs and patterns by their text: each is made once and stays as long as
 * the process, so that a spec can hold a pointer and be compared by it. The
 * table only ever grows, by one store of a chain's head. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "program_intern.h"

enum { CHAINS = 256 };

typedef struct Entry {
    struct Entry *next;
    attnc_program value; /* text: what it was found by */
} Entry;

static _Atomic(Entry *) chains[CHAINS];

static _Atomic(Entry *) *chain_of(const char *text, int kind) {
    uint32_t h = 2166136261u + (uint32_t)kind; /* FNV-1a */
    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * 16777619u;
    return &chains[(h ^ h >> 15) % CHAINS];
}

/* Among those from `e` to before `end`. */
static const attnc_program *find(const Entry *e, const Entry *end,
                                 const char *text, int kind) {
    for (; e != end; e = e->next) {
        if (e->value.kind == kind && !strcmp(e->value.text, text))
            return &e->value;
    }
    return NULL;
}

const attnc_program *intern_find(const char *text, int kind) {
    return find(atomic_load(chain_of(text, kind)), NULL, text, kind);
}

void intern_drop(attnc_program *p) {
    program_free(&p->graph);
    program_free(&p->grad.p);
    free((char *)p->text);
}

const attnc_program *intern_add(attnc_program *p, Err *e) {
    Entry *mine = p->text ? malloc(sizeof *mine) : NULL;
    if (!mine) {
        intern_drop(p);
        err_set(e, ERR_MEMORY, "program", NULL, "out of memory");
        return NULL;
    }
    _Atomic(Entry *) *chain = chain_of(p->text, p->kind);
    Entry *head = atomic_load(chain), *seen = NULL;
    mine->value = *p;
    for (;;) { /* what others entered meanwhile comes first */
        const attnc_program *first = find(head, seen, p->text, p->kind);
        if (first) {
            intern_drop(p);
            free(mine);
            return first;
        }
        seen = mine->next = head;
        if (atomic_compare_exchange_weak(chain, &head, mine))
            return &mine->value;
    }
}

/* ---- from text --------------------------------------------------------- */

/* "butterfly:m=2 block=64": the block stands behind the arguments. */
static int parse_pattern(const char *text, Pattern *p, Err *e) {
    char name[256];
    size_t len = strcspn(text, " ");
    Slice key, value = {0};
    int64_t block = 0;
    const char *rest = text + len;
    if (len >= sizeof name)
        return err_set(e, ERR_REQUEST, "sparsity", NULL,
                       "longer than %zu characters", sizeof name - 1);
    memcpy(name, text, len);
    name[len] = 0;
    while (next_pair(&rest, " ", &key, &value)) {
        if (!slice_is(key, "block") || !slice_int(value, &block) || block <= 0)
            return err_set(e, ERR_REQUEST, "sparsity", NULL,
                           "'%.*s' after the pattern; accepted: block=N",
                           (int)(key.len + value.len + 1), key.p);
    }
    return pattern_parse(name, block, p, e);
}

/* Tensors that nobody reads are in no canonical text: two programs that share
 * it must not differ in them. */
static void keep_what_is_read(const char *canonical, attnc_program *p, Err *e) {
    program_free(&p->graph);
    program_parse(canonical, p->kind, NULL, 0, &p->graph, e);
}

int program_intern(const char *text, int kind, const ProgramTensor *known,
                   int nknown, const attnc_program **out, Err *e) {
    attnc_program p = {.kind = kind};
    Str canonical = {0};
    if (kind == PROGRAM_PATTERN)
        parse_pattern(text, &p.pattern, e);
    else
        program_parse(text, kind, known, nknown, &p.graph, e);
    if (e->code) {
        program_free(&p.graph);
        return e->code;
    }
    if (kind == PROGRAM_PATTERN)
        pattern_print(&p.pattern, &canonical);
    else
        program_print(&p.graph, &canonical);
    if (canonical.bad)
        str_free(&canonical);
    else if (kind != PROGRAM_PATTERN)
        keep_what_is_read(canonical.text, &p, e);
    p.text = canonical.text;
    *out = intern_add(&p, e);
    return e->code;
}
