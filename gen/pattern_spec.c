/* SPDX-License-Identifier: Apache-2.0
 * Block-sparse patterns from text and back; what arguments and lengths go
 * together. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pattern.h"

/* ---- tables ------------------------------------------------------------ */

enum grain { ELEMENT, BLOCK };

static const struct {
    const char *name, *doc;
    int grain;
} rows[PATTERNS] = {
#define PATTERN(kind, name, grain, doc) {name, doc, grain},
#include "pattern.def"
#undef PATTERN
};

typedef struct Argument {
    int kind;
    const char *name, *doc;
    size_t at; /* in PatternArgs */
    int64_t def, lo, hi;
} Argument;

static const Argument arguments[] = {
#define ARGUMENT(kind, name, def, lo, hi, doc)                                 \
    {PATTERN_##kind, #name, doc, offsetof(PatternArgs, name), def, lo, hi},
#include "pattern.def"
#undef ARGUMENT
};
enum { ARGUMENTS = sizeof arguments / sizeof *arguments };

static const struct {
    const char *name;
    int kind;
} aliases[] = {
#define ALIAS(name, kind) {name, PATTERN_##kind},
#include "pattern.def"
#undef ALIAS
};
enum { ALIASES = sizeof aliases / sizeof *aliases };

const char *pattern_name(int kind) {
    return rows[kind].name;
}

bool pattern_is_element(int kind) {
    return rows[kind].grain == ELEMENT;
}

static int64_t *argument(Pattern *p, const Argument *a) {
    return (int64_t *)((char *)&p->a + a->at);
}

void pattern_rows(void (*fn)(void *user, const char *pattern,
                             const char *argument, int64_t def, int64_t lo,
                             int64_t hi, const char *doc),
                  void *user) {
    for (int kind = 0; kind < PATTERNS; kind++) {
        fn(user, rows[kind].name, NULL, 0, 0, 0, rows[kind].doc);
        for (int i = 0; i < ARGUMENTS; i++) {
            const Argument *a = &arguments[i];
            if (a->kind == kind)
                fn(user, rows[kind].name, a->name, a->def, a->lo, a->hi,
                   a->doc);
        }
    }
}

/* ---- text -------------------------------------------------------------- */

static const char *word_of(Slice s, char out[32]) {
    snprintf(out, 32, "%.*s", (int)(s.len < 31 ? s.len : 31), s.p);
    return out;
}

static int find_kind(Slice name, Err *e) {
    const char *names[PATTERNS + ALIASES];
    char word[32];
    for (int i = 0; i < PATTERNS; i++) {
        if (slice_is(name, names[i] = rows[i].name))
            return i;
    }
    for (int i = 0; i < ALIASES; i++) {
        if (slice_is(name, names[PATTERNS + i] = aliases[i].name))
            return aliases[i].kind;
    }
    word_of(name, word);
    return err_set(e, ERR_REQUEST, "sparsity", NULL,
                   "unknown pattern '%s'; nearest: %s", word,
                   nearest_word(word, names, PATTERNS + ALIASES));
}

/* The argument of that name; of an empty one the kind's first. */
static const Argument *find_argument(int kind, Slice name, Err *e) {
    const char *names[ARGUMENTS];
    char word[32];
    int n = 0;
    for (int i = 0; i < ARGUMENTS; i++) {
        const Argument *a = &arguments[i];
        if (a->kind != kind)
            continue;
        if (!name.len || slice_is(name, a->name))
            return a;
        names[n++] = a->name;
    }
    if (n)
        err_set(e, ERR_REQUEST, "sparsity", rows[kind].name,
                "unknown argument '%s'; nearest: %s", word_of(name, word),
                nearest_word(word_of(name, word), names, n));
    else
        err_set(e, ERR_REQUEST, "sparsity", rows[kind].name,
                "takes no arguments");
    return NULL;
}

static int set_argument(Pattern *p, Slice name, Slice value, Err *e) {
    const Argument *a = find_argument(p->kind, name, e);
    char word[32];
    int64_t x;
    if (!a)
        return e->code;
    if (!slice_int(value, &x))
        return err_set(e, ERR_REQUEST, "sparsity", rows[p->kind].name,
                       "%s: '%s' is not a number; accepted: %lld..%lld",
                       a->name, word_of(value, word), (long long)a->lo,
                       (long long)a->hi);
    if (x < a->lo || x > a->hi)
        return err_set(e, ERR_REQUEST, "sparsity", rows[p->kind].name,
                       "%s: %lld is out of range; accepted %lld..%lld, "
                       "nearest %lld",
                       a->name, (long long)x, (long long)a->lo,
                       (long long)a->hi,
                       (long long)(x < a->lo ? a->lo : a->hi));
    *argument(p, a) = x;
    return 0;
}

static int set_block(Pattern *p, int64_t block, Err *e) {
    int64_t near = (block + 8) / 16 * 16;
    p->block = block ? block : 64;
    if (block && pattern_is_element(p->kind))
        return err_set(e, ERR_REQUEST, "sparsity", rows[p->kind].name,
                       "is element-wise and has no block size; nearest: leave "
                       "it out");
    if (p->block % 16 || p->block < PATTERN_LEAST_BLOCK ||
        p->block > PATTERN_MOST_BLOCK)
        return err_set(e, ERR_REQUEST, "sparsity", "block",
                       "%lld is not a multiple of 16 from %d to %d; nearest "
                       "%lld",
                       (long long)block, PATTERN_LEAST_BLOCK,
                       PATTERN_MOST_BLOCK,
                       (long long)(near < 16    ? 16
                                   : near > 256 ? 256
                                                : near));
    return 0;
}

/* Groups of columns must fit into their window. */
static int check_arguments(const Pattern *p, Err *e) {
    int64_t size = p->kind == PATTERN_FIXED ? p->a.vert : p->a.global;
    if (p->kind != PATTERN_FIXED && p->kind != PATTERN_DS_FIXED)
        return 0;
    if (size > p->a.stride || p->a.verts > p->a.stride / size)
        return err_set(
            e, ERR_REQUEST, "sparsity", rows[p->kind].name,
            "%lld groups of %lld columns do not fit a window of "
            "%lld blocks; nearest verts=%lld",
            (long long)p->a.verts, (long long)size, (long long)p->a.stride,
            (long long)(size > p->a.stride ? 1 : p->a.stride / size));
    return 0;
}

int pattern_parse(const char *text, int64_t block, Pattern *p, Err *e) {
    const char *colon = strchr(text, ':');
    Slice name = {text, colon ? (size_t)(colon - text) : strlen(text)};
    Slice key, value;
    int kind = find_kind(name, e);
    *p = (Pattern){.kind = kind};
    if (kind < 0)
        return e->code;
    for (int i = 0; i < ARGUMENTS; i++) {
        if (arguments[i].kind == kind)
            *argument(p, &arguments[i]) = arguments[i].def;
    }
    const char *cursor = colon ? colon + 1 : "";
    while (next_pair(&cursor, ",", &key, &value)) {
        bool bare = !value.len && !memchr(key.p, '=', key.len + 1);
        if (set_argument(p, bare ? (Slice){key.p, 0} : key, bare ? key : value,
                         e))
            return e->code;
    }
    if (p->kind == PATTERN_LOCAL_LUCID && p->a.causal)
        p->a.forward = 0;
    return check_arguments(p, e) ? e->code : set_block(p, block, e);
}

void pattern_print(const Pattern *p, Str *out) {
    const char *mark = ":";
    str_addf(out, "%s", rows[p->kind].name);
    for (int i = 0; i < ARGUMENTS; i++) {
        if (arguments[i].kind != p->kind)
            continue;
        str_addf(out, "%s%s=%lld", mark, arguments[i].name,
                 (long long)*argument((Pattern *)p, &arguments[i]));
        mark = ",";
    }
    if (!pattern_is_element(p->kind))
        str_addf(out, " block=%lld", (long long)p->block);
}

/* ---- lengths ----------------------------------------------------------- */

static int64_t log2_of(int64_t n) {
    int64_t log = 0;
    while (n > 1) {
        n /= 2;
        log++;
    }
    return log;
}

static int size_butterfly(const Pattern *p, Err *e) {
    int64_t nb = p->nbq < p->nbk ? p->nbq : p->nbk, most = log2_of(nb);
    if (p->nbq > PATTERN_MOST_BLOCKS || p->nbk > PATTERN_MOST_BLOCKS)
        return err_set(e, ERR_REQUEST, "sparsity", "butterfly",
                       "%lld blocks; at most %d; nearest: larger blocks",
                       (long long)(p->nbq > p->nbk ? p->nbq : p->nbk),
                       PATTERN_MOST_BLOCKS);
    if (p->a.m > most)
        return err_set(e, ERR_REQUEST, "sparsity", "butterfly",
                       "m=%lld, but %lld blocks have %lld factors; nearest "
                       "m=%lld, or 0 for all",
                       (long long)p->a.m, (long long)nb, (long long)most,
                       (long long)most);
    return 0;
}

/* Row a of list h: in range, no block twice. `seen`: of each block the row
 * that named it last. */
static int check_list(const Pattern *p, int64_t row, int64_t *seen, Err *e) {
    const int32_t *at = p->indptr + row;
    for (int32_t i = at[0]; i < at[1]; i++) {
        int32_t block = p->index[i];
        if (block < 0 || block >= p->nbk)
            return err_set(e, ERR_REQUEST, "sparsity", "bsr",
                           "indices[%d] is %d; accepted 0..%lld", i, block,
                           (long long)p->nbk - 1);
        if (seen[block] == row + 1)
            return err_set(e, ERR_REQUEST, "sparsity", "bsr",
                           "row %lld names block %d twice; nearest: once",
                           (long long)(row % (p->nbq + 1)), block);
        seen[block] = row + 1;
    }
    return 0;
}

/* Every row of every head begins where the one before ends, or later. */
static int check_rows(const Pattern *p, int64_t rows, Err *e) {
    int32_t last = p->indptr[rows - 1];
    for (int64_t i = 0; i < rows; i++) {
        if (p->indptr[i] < 0 || (i && p->indptr[i] < p->indptr[i - 1]))
            return err_set(e, ERR_REQUEST, "sparsity", "bsr",
                           "indptr falls at %lld; it must rise from row to "
                           "row",
                           (long long)(i ? i - 1 : 0));
    }
    if (last > p->indices)
        return err_set(e, ERR_REQUEST, "sparsity", "bsr",
                       "indptr ends at %d, but there are %lld indices", last,
                       (long long)p->indices);
    return 0;
}

static int size_bsr(const Pattern *p, Err *e) {
    int64_t rows = p->bsr_heads * (p->nbq + 1);
    if (!p->indptr || !p->index || p->bsr_heads < 1)
        return err_set(e, ERR_REQUEST, "sparsity", "bsr", "no lists given");
    if (check_rows(p, rows, e))
        return e->code;
    int64_t *seen = calloc((size_t)p->nbk + 1, sizeof *seen);
    if (!seen)
        return err_set(e, ERR_MEMORY, "sparsity", NULL, "out of memory");
    for (int64_t i = 0; i < rows && !e->code; i++) {
        if (i % (p->nbq + 1) < p->nbq) /* not the end of a head's rows */
            check_list(p, i, seen, e);
    }
    free(seen);
    return e->code;
}

int pattern_size(Pattern *p, int64_t nq, int64_t nk, Err *e) {
    p->nq = nq;
    p->nk = nk;
    p->nbq = (nq + p->block - 1) / p->block;
    p->nbk = (nk + p->block - 1) / p->block;
    switch (p->kind) {
    case PATTERN_BUTTERFLY:
        return size_butterfly(p, e);
    case PATTERN_BSR:
        return size_bsr(p, e);
    case PATTERN_ORIG_BIGBIRD:
        if (p->nbq != p->nbk)
            return err_set(e, ERR_REQUEST, "sparsity", "orig-bigbird",
                           "%lld blocks of queries and %lld of keys; it needs "
                           "as many; nearest: ds-bigbird",
                           (long long)p->nbq, (long long)p->nbk);
        return 0;
    default:
        return 0;
    }
}

int64_t pattern_heads(const Pattern *p) {
    switch (p->kind) {
    case PATTERN_DS_BIGBIRD:
    case PATTERN_ORIG_BIGBIRD:
        return p->a.random ? 0 : 1;
    case PATTERN_FIXED:
    case PATTERN_DS_FIXED:
        return p->a.verts;
    case PATTERN_BSR:
        return p->bsr_heads;
    default:
        return 1;
    }
}
