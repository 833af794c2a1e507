/* SPDX-License-Identifier: Apache-2.0
 * --mask expr:, --score, --tensor, --bias, --sparsity: what a spec says beyond
 * its plain fields. Files are opened first, since an expression's types are
 * those of the tensors that it reads. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"

/* ---- files ------------------------------------------------------------- */

/* A word that the language has not taken? */
static bool is_name(const char *name) {
    char text[PROGRAM_NAME + 16];
    Program p;
    Err e = {0};
    snprintf(text, sizeof text, "f32 %s; s", name);
    if (strcspn(name, ";/[ \n") != strlen(name))
        return false;
    bool good = program_parse(text, PROGRAM_SCORE, NULL, 0, &p, &e) == 0;
    program_free(&p);
    return good;
}

/* Rows of bits are whole words. */
static int check_bits(const Npy *n, Err *e) {
    char shape[160];
    int64_t row = n->rank ? n->dim[n->rank - 1] : 0;
    if (n->rank && row % 4 == 0)
        return 0;
    return err_set(e, ERR_REQUEST, "command", NULL,
                   "%s: shape %s of u8, which are bits; nearest: rows of %lld "
                   "bytes, whole words of 32 bits",
                   n->path, npy_shape(n, shape),
                   (long long)(row ? (row + 3) / 4 * 4 : 4));
}

static int open_tensor(const Options *o, int i, Problem *p, Err *e) {
    const Given *g = &o->tensor[i];
    size_t len = strcspn(g->text, "=");
    ProgramTensor *is = &p->tensor[i].is;
    char shape[160];
    p->tensor[i].file.fd = -1;
    p->ntensor = i + 1;
    if (!len || !g->text[len] || !g->text[len + 1] || len >= PROGRAM_NAME)
        return err_set(e, ERR_REQUEST, "command", NULL,
                       "%s %s: accepted: NAME=FILE.npy, a name of at most %d "
                       "characters",
                       g->where, g->text, PROGRAM_NAME - 1);
    memcpy(is->name, g->text, len);
    if (!is_name(is->name))
        return err_set(e, ERR_REQUEST, "command", NULL,
                       "%s %s: accepted: NAME=FILE.npy, a name of letters, "
                       "digits and _ that the language does not use",
                       g->where, g->text);
    Npy *n = &p->tensor[i].file;
    int rc = npy_open(g->text + len + 1, n, e);
    if (rc)
        return rc;
    if (n->rank > PROGRAM_RANK)
        return err_set(e, ERR_REQUEST, "command", NULL,
                       "%s: shape %s; accepted: at most %d dimensions", n->path,
                       npy_shape(n, shape), PROGRAM_RANK);
    is->dtype = npy_array_dtype(n->type);
    is->rank = n->rank;
    return n->type == NPY_U8 ? check_bits(n, e) : 0;
}

/* "INDPTR.npy,INDICES.npy" */
static int open_lists(const Options *o, const char *text, Problem *p, Err *e) {
    size_t len = strcspn(text, ",");
    if (!len || !text[len] || strchr(text + len + 1, ','))
        return option_bad(o, OPT_sparsity, e,
                          "accepted: bsr:INDPTR.npy,INDICES.npy");
    p->list_path = strndup(text, len);
    if (!p->list_path)
        return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    const char *const path[] = {p->list_path, text + len + 1};
    char shape[160];
    for (int i = 0; i < 2; i++) {
        Npy *n = &p->lists[i];
        int rc = npy_open(path[i], n, e);
        if (rc)
            return rc;
        if (n->type != NPY_I32 && n->type != NPY_I64)
            return err_set(e, ERR_REQUEST, "command", NULL,
                           "%s: %s data; accepted: i32 i64", n->path,
                           npy_type_name(n->type));
        if (n->rank != 1 && (i || n->rank != 2))
            return err_set(e, ERR_REQUEST, "command", NULL,
                           "%s: shape %s; accepted: %s", n->path,
                           npy_shape(n, shape),
                           i ? "[blocks]" : "[1 or H, rows of blocks + 1]");
    }
    return 0;
}

int programs_open(const Options *o, Problem *p, Err *e) {
    const char *bias = o->given[OPT_bias].text;
    const char *sparsity = o->given[OPT_sparsity].text;
    int rc = 0;
    for (int i = 0; i < o->ntensor && rc == 0; i++)
        rc = open_tensor(o, i, p, e);
    if (rc == 0 && bias)
        rc = npy_open(bias, &p->file[FILE_bias], e);
    if (rc == 0 && sparsity && !strncmp(sparsity, "bsr:", 4))
        rc = open_lists(o, sparsity + 4, p, e);
    return rc;
}

/* ---- expressions ------------------------------------------------------- */

/* The fault of a text, told where it was met: its first line names the kind. */
static int tell_where(const Given *g, Err *e) {
    char text[ERR_TEXT];
    snprintf(text, sizeof text, "%s", e->text);
    const char *colon = strstr(text, ": ");
    snprintf(e->text, sizeof e->text, "%s: %.420s", g->where,
             colon ? colon + 2 : text);
    return e->code;
}

static int intern(const Options *o, int option, const char *text, int kind,
                  const Problem *p, const attnc_program **out, Err *e) {
    ProgramTensor known[SPEC_TENSORS];
    int n = 0;
    for (int i = 0; i < p->ntensor; i++)
        known[n++] = p->tensor[i].is;
    if (program_intern(text, kind, known, n, out, e))
        return tell_where(&o->given[option], e);
    return 0;
}

int programs_mask(const Options *o, const char *text, Problem *p, Err *e) {
    p->spec.mask = ATTNC_MASK_PROGRAM;
    return intern(o, OPT_mask, text ? text : "", PROGRAM_MASK, p,
                  &p->spec.mask_program, e);
}

/* ---- bias -------------------------------------------------------------- */

/* The dims of its file that are not 1 are indices it has, and say a size. */
static int take_bias(Problem *p, Err *e) {
    static const int sizes[] = {SIZE_batch, SIZE_heads, SIZE_seqlen_q,
                                SIZE_seqlen_k};
    const Npy *n = &p->file[FILE_bias];
    char shape[160];
    unsigned index = 0;
    if (n->fd < 0)
        return 0;
    if (n->type > NPY_F64)
        return err_set(e, ERR_REQUEST, "command", NULL,
                       "%s: %s data; accepted: f16 f32 f64", n->path,
                       npy_type_name(n->type));
    if (n->rank > 4 || !n->count)
        return err_set(
            e, ERR_REQUEST, "command", NULL,
            "%s: shape %s; accepted: [B or 1, H or 1, Nq or 1, Nk or "
            "1], or fewer of the last",
            n->path, npy_shape(n, shape));
    for (int i = 0; i < n->rank; i++) {
        int at = 4 - n->rank + i;
        if (n->dim[i] == 1)
            continue;
        index |= 1u << at;
        int rc = problem_meet(p, sizes[at], n->dim[i], n->path, e);
        if (rc)
            return rc;
    }
    p->spec.bias = ATTNC_BIAS_1 + (int)index;
    return 0;
}

/* ---- patterns ---------------------------------------------------------- */

static int take_pattern(const Options *o, Problem *p, Err *e) {
    const char *text = o->given[OPT_sparsity].text;
    int64_t block = 0;
    Str canonical = {0};
    int rc = option_int(o, OPT_sparsity_block, 1, INT32_MAX, &block, e);
    if (rc == 0 && !text && o->given[OPT_sparsity_block].text)
        return option_bad(o, OPT_sparsity_block, e, "it needs --sparsity");
    if (rc || !text)
        return rc;
    bool lists = p->lists[0].fd >= 0;
    if (!lists && strcmp(text, "bsr") == 0)
        return option_bad(o, OPT_sparsity, e,
                          "accepted: bsr:INDPTR.npy,INDICES.npy");
    if (pattern_parse(lists ? "bsr" : text, block, &p->pattern, e))
        return tell_where(&o->given[OPT_sparsity], e);
    pattern_print(&p->pattern, &canonical);
    if (canonical.bad)
        rc = err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    rc = rc ? rc
            : intern(o, OPT_sparsity, canonical.text, PROGRAM_PATTERN, p,
                     &p->spec.sparsity, e);
    str_free(&canonical);
    return rc;
}

int programs_parse(const Options *o, Problem *p, Err *e) {
    const char *score = o->given[OPT_score].text;
    int rc = take_bias(p, e);
    if (rc == 0 && score)
        rc = intern(o, OPT_score, score, PROGRAM_SCORE, p,
                    &p->spec.score_program, e);
    return rc ? rc : take_pattern(o, p, e);
}

/* ---- the whole --------------------------------------------------------- */

/* The command's own: not from a file of --tensor. */
static bool is_own(const Problem *p, const char *name) {
    return (p->spec.bias && !strcmp(name, "bias")) ||
           (p->spec.sparsity && !strcmp(name, "pattern_blocks"));
}

int problem_tensor_file(const Problem *p, const char *name) {
    for (int i = 0; i < p->ntensor && !is_own(p, name); i++)
        if (!strcmp(p->tensor[i].is.name, name))
            return i;
    return -1;
}

static int check_read(const Options *o, const Problem *p,
                      const ProgramTensor *all, int n, Err *e) {
    const char *names[SPEC_TENSORS];
    int count = 0;
    for (int i = 0; i < n; i++)
        if (!is_own(p, all[i].name))
            names[count++] = all[i].name;
    for (int i = 0; i < p->ntensor; i++) {
        const char *name = p->tensor[i].is.name;
        int k = 0;
        while (k < count && strcmp(names[k], name))
            k++;
        if (k == count)
            return err_set(e, ERR_REQUEST, "command", NULL,
                           "%s %s: no expression reads %s; nearest: %s",
                           o->tensor[i].where, o->tensor[i].text, name,
                           count ? nearest_word(name, names, count)
                                 : "leave it out");
    }
    return 0;
}

int programs_missing(const Problem *p, Err *e) {
    ProgramTensor all[SPEC_TENSORS];
    int n = spec_tensors(&p->spec, all);
    for (int i = 0; i < n; i++) {
        const ProgramTensor *t = &all[i];
        if (is_own(p, t->name) || problem_tensor_file(p, t->name) >= 0)
            continue;
        return err_set(e, ERR_REQUEST, "command", NULL,
                       "--tensor: an expression reads %s, %s of %d dimensions; "
                       "accepted: --tensor %s=FILE.npy",
                       t->name, program_dtype_name(t->dtype), t->rank, t->name);
    }
    return 0;
}

/* Does the pattern go with every length it is used for? */
static int check_pattern(const Options *o, Problem *p, Err *e) {
    int rc =
        p->spec.sparsity && p->lists[0].fd >= 0 ? pattern_read_lists(p, e) : 0;
    for (int64_t b = 0; b < p->size[SIZE_batch].n && !rc; b++) {
        Pattern sized = p->pattern;
        int64_t nq, nk;
        problem_lengths(p, b, &nq, &nk);
        if (p->spec.sparsity && pattern_size(&sized, nq, nk, e))
            rc = tell_where(&o->given[OPT_sparsity], e);
    }
    return rc;
}

int programs_finish(const Options *o, Problem *p, Err *e) {
    ProgramTensor all[SPEC_TENSORS];
    attnc_spec s;
    int rc = spec_check(&p->spec, &s, e);
    if (rc)
        return rc;
    int n = spec_tensors(&s, all);
    rc = check_read(o, p, all, n, e);
    if (rc == 0 && o->verb == VERB_run)
        rc = programs_missing(p, e);
    rc = rc ? rc : check_pattern(o, p, e);
    if (p->spec.pass == ATTNC_PASS_BWD)
        p->spec.tensor_grads = (int32_t)spec_grads_possible(&s);
    return rc;
}
