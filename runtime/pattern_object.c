/* SPDX-License-Identifier: Apache-2.0
 * Patterns without a closed form as a launch reads them: which blocks of keys
 * each block of queries sees, made once, shared by equal requests. */
#include <stdlib.h>
#include <string.h>

#include "order.h"
#include "program_intern.h"
#include "runtime.h"

/* What was asked for and the blocks made of it, for all handles alike. */
struct PatternBlocks {
    const attnc_program *sparsity;
    attnc_pattern_lists lists; /* with arrays of its own */
    attnc_array array;         /* pattern_blocks */
    Loads *loads;              /* of bsr for one length; NULL: not counted */
    size_t bytes;
    int users;
    struct PatternBlocks *next; /* of the context's */
};
typedef struct PatternBlocks Blocks;

struct attnc_pattern {
    attnc_context *ctx;
    Blocks *blocks;
    void *device; /* where the blocks were uploaded to; NULL: not yet */
};

#define REFUSE(field, ...)                                                     \
    return err_set(e, ATTNC_E_REQUEST, "pattern", field, __VA_ARGS__)

static int no_memory(Err *e) {
    return err_set(e, ATTNC_E_MEMORY, "pattern", NULL, "no memory");
}

/* ---- the request -------------------------------------------------------- */

static bool is_bsr(const attnc_program *p) {
    return p->pattern.kind == PATTERN_BSR;
}

static int64_t row_blocks(const attnc_program *p, int64_t nq) {
    return (nq + p->pattern.block - 1) / p->pattern.block;
}

/* Numbers in indptr. */
static int64_t pointers(const attnc_program *p, const attnc_pattern_lists *x) {
    return x->list_heads * (row_blocks(p, x->seqlen_q) + 1);
}

static int check_sizes(const attnc_pattern_lists *x, Err *e) {
    const struct {
        const char *name;
        int64_t value, low;
    } sizes[] = {{"heads", x->heads, 1},
                 {"seqlen_q", x->seqlen_q, 1},
                 {"seqlen_k", x->seqlen_k, 1},
                 {"batch", x->batch, 0}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i].value < sizes[i].low || sizes[i].value > PROGRAM_FAR)
            REFUSE(sizes[i].name, "%lld is out of range; accepted: %lld..%d",
                   (long long)sizes[i].value, (long long)sizes[i].low,
                   PROGRAM_FAR);
    if (!x->cu_seqlens_q != !x->cu_seqlens_k || !x->cu_seqlens_q != !x->batch)
        REFUSE("cu_seqlens_q", "packed sequences are given by batch, "
                               "cu_seqlens_q and cu_seqlens_k together");
    return 0;
}

static int check_cu(const char *name, const int32_t *cu, int64_t batch,
                    int64_t longest, Err *e) {
    for (int64_t b = 0; cu && b < batch; b++)
        if (cu[b + 1] < cu[b] || (int64_t)cu[b + 1] - cu[b] > longest)
            REFUSE(name, "sequence %lld has %lld rows; accepted: 0..%lld",
                   (long long)b, (long long)cu[b + 1] - cu[b],
                   (long long)longest);
    return 0;
}

static int check_bsr(const attnc_program *p, const attnc_pattern_lists *x,
                     Err *e) {
    if (!is_bsr(p) && (x->indptr || x->indices || x->list_heads))
        REFUSE("indptr", "given, but the pattern is %s; accepted with bsr",
               p->text);
    if (!is_bsr(p))
        return 0;
    if (x->list_heads != 1 && x->list_heads != x->heads)
        REFUSE("list_heads", "%lld; accepted: 1, or heads = %lld",
               (long long)x->list_heads, (long long)x->heads);
    if (!x->indptr || !x->indices)
        REFUSE(x->indptr ? "indices" : "indptr", "NULL; a bsr pattern has it");
    if (x->index_count < 0 || x->index_count > INT32_MAX)
        REFUSE("index_count", "%lld is out of range; accepted: 0..%d",
               (long long)x->index_count, INT32_MAX);
    return 0;
}

static int check(const attnc_program *p, const attnc_pattern_lists *x, Err *e) {
    Str closed = {0};
    if (p->kind != PROGRAM_PATTERN)
        REFUSE("sparsity", "is no pattern; accepted: what "
                           "attnc_program_create makes with ATTNC_PATTERN");
    bool has_form = pattern_program(&p->pattern, &closed);
    str_free(&closed);
    if (has_form)
        REFUSE("sparsity",
               "%s has a closed form and takes no list; accepted: "
               "bsr, or a bigbird that draws blocks",
               p->text);
    int rc = check_sizes(x, e);
    rc = rc ? rc
            : check_cu("cu_seqlens_q", x->cu_seqlens_q, x->batch, x->seqlen_q,
                       e);
    rc = rc ? rc
            : check_cu("cu_seqlens_k", x->cu_seqlens_k, x->batch, x->seqlen_k,
                       e);
    return rc ? rc : check_bsr(p, x, e);
}

/* ---- equal requests ----------------------------------------------------- */

static bool same(const int32_t *x, const int32_t *y, int64_t n) {
    return !x == !y && (!x || !memcmp(x, y, (size_t)n * sizeof *x));
}

static bool is_for(const Blocks *b, const attnc_program *p,
                   const attnc_pattern_lists *x) {
    const attnc_pattern_lists *y = &b->lists;
    return b->sparsity == p && y->heads == x->heads &&
           y->seqlen_q == x->seqlen_q && y->seqlen_k == x->seqlen_k &&
           y->batch == x->batch && y->list_heads == x->list_heads &&
           y->index_count == x->index_count &&
           same(y->cu_seqlens_q, x->cu_seqlens_q, x->batch + 1) &&
           same(y->cu_seqlens_k, x->cu_seqlens_k, x->batch + 1) &&
           same(y->indptr, x->indptr, pointers(p, x)) &&
           same(y->indices, x->indices, x->index_count);
}

/* Held for the caller; NULL: there are none. */
static Blocks *find(attnc_context *c, const attnc_program *p,
                    const attnc_pattern_lists *x) {
    lock_take(&c->lock);
    Blocks *b = c->patterns;
    while (b && !is_for(b, p, x))
        b = b->next;
    if (b)
        b->users++;
    lock_give(&c->lock);
    return b;
}

static void blocks_drop(Blocks *b) {
    const attnc_pattern_lists *x = &b->lists;
    const int32_t *const own[] = {x->cu_seqlens_q, x->cu_seqlens_k, x->indptr,
                                  x->indices};
    for (int i = 0; i < 4; i++)
        free((int32_t *)(uintptr_t)own[i]);
    free((void *)(uintptr_t)b->array.data);
    free(b->loads);
    free(b);
}

static void leave(attnc_context *c, Blocks *b) {
    lock_take(&c->lock);
    Blocks **at = &c->patterns;
    bool last = --b->users == 0;
    while (last && *at != b)
        at = &(*at)->next;
    if (last)
        *at = b->next;
    lock_give(&c->lock);
    if (last)
        blocks_drop(b);
}

/* ---- making ------------------------------------------------------------- */

static bool copy(const int32_t **array, int64_t n) {
    if (!*array)
        return true;
    int32_t *own = malloc((size_t)n * sizeof *own + 1);
    if (own)
        memcpy(own, *array, (size_t)n * sizeof *own);
    *array = own;
    return own;
}

/* Arrays of its own; those not reached are NULL when memory runs out. */
static bool copy_lists(const attnc_program *p, attnc_pattern_lists *x) {
    const int32_t **const arrays[] = {&x->cu_seqlens_q, &x->cu_seqlens_k,
                                      &x->indptr, &x->indices};
    const int64_t n[] = {x->batch + 1, x->batch + 1, pointers(p, x),
                         x->index_count};
    bool good = true;
    for (int i = 0; i < 4; i++) {
        if (!good)
            *arrays[i] = NULL;
        good = good && copy(arrays[i], n[i]);
    }
    return good;
}

/* The array's shape: heads or entries that are alike share their blocks. */
static void shape_array(Blocks *b) {
    const attnc_pattern_lists *x = &b->lists;
    int64_t rows = row_blocks(b->sparsity, x->seqlen_q);
    int64_t block = b->sparsity->pattern.block;
    int64_t columns = (x->seqlen_k + block - 1) / block;
    int64_t width = (columns + 31) / 32 * 32; /* rows are whole words */
    bool alike = is_bsr(b->sparsity) && x->list_heads == 1;
    int64_t lists = alike ? 1 : x->heads;
    b->array = (attnc_array){
        .name = "pattern_blocks",
        .dtype = ATTNC_ARRAY_BITS,
        .rank = 4,
        .n = {x->batch ? x->batch : PROGRAM_FAR, x->heads, rows, columns},
        .stride = {x->batch ? lists * rows * width : 0,
                   lists > 1 ? rows * width : 0, width, 1}};
    b->bytes = (size_t)((x->batch ? x->batch : 1) * lists * rows * width / 8);
}

/* The pattern with its lists, still without lengths. */
static Pattern listed(const Blocks *b) {
    const attnc_pattern_lists *x = &b->lists;
    Pattern p = b->sparsity->pattern;
    p.indptr = x->indptr;
    p.index = x->indices;
    p.indices = x->index_count;
    p.bsr_heads = x->list_heads;
    return p;
}

/* Without memory for it work items keep their order. */
static void count_loads(Blocks *b) {
    const attnc_pattern_lists *x = &b->lists;
    Pattern p = listed(b);
    Err e = {0};
    if (is_bsr(b->sparsity) && !x->batch &&
        !pattern_size(&p, x->seqlen_q, x->seqlen_k, &e))
        b->loads = loads_make(&p, ATTNC_MASK_NONE, x->list_heads);
}

/* Blocks of entry i, the sequence's own lengths. */
static int mark_entry(const Blocks *b, int64_t i, uint32_t *to, Err *e) {
    const attnc_pattern_lists *x = &b->lists;
    int64_t step = b->array.stride[1], lists = step ? x->heads : 1;
    int64_t nq =
        x->batch ? x->cu_seqlens_q[i + 1] - x->cu_seqlens_q[i] : x->seqlen_q;
    int64_t nk =
        x->batch ? x->cu_seqlens_k[i + 1] - x->cu_seqlens_k[i] : x->seqlen_k;
    Pattern p = listed(b);
    if (!nq || !nk || pattern_size(&p, nq, nk, e))
        return e->code;
    for (int64_t h = 0; h < lists; h++)
        pattern_mark(&p, h, to + h * step / 32, b->array.stride[2]);
    return 0;
}

static int fill(Blocks *b, const attnc_program *p, const attnc_pattern_lists *x,
                Err *e) {
    b->sparsity = p;
    b->lists = *x;
    b->users = 1;
    if (!copy_lists(p, &b->lists))
        return no_memory(e);
    shape_array(b);
    uint32_t *to = calloc(b->bytes + 4, 1);
    b->array.data = to;
    if (!to)
        return no_memory(e);
    for (int64_t i = 0; i < (x->batch ? x->batch : 1) && !e->code; i++)
        mark_entry(b, i, to + i * b->array.stride[0] / 32, e);
    if (!e->code)
        count_loads(b);
    return e->code;
}

static Blocks *make(attnc_context *c, const attnc_program *p,
                    const attnc_pattern_lists *x, Err *e) {
    Blocks *b = calloc(1, sizeof *b);
    if (!b)
        no_memory(e);
    else if (fill(b, p, x, e))
        blocks_drop(b);
    if (e->code)
        return NULL;
    lock_take(&c->lock);
    b->next = c->patterns;
    c->patterns = b;
    lock_give(&c->lock);
    return b;
}

/* ---- public ------------------------------------------------------------- */

static int create(attnc_context *c, const attnc_program *p,
                  const attnc_pattern_lists *lists, attnc_pattern **out,
                  Err *e) {
    attnc_pattern_lists x = ATTNC_PATTERN_LISTS_INIT;
    if (struct_copy(&x, sizeof x, lists, "pattern", e) || check(p, &x, e))
        return e->code;
    attnc_pattern *handle = calloc(1, sizeof *handle);
    if (!handle)
        return no_memory(e);
    Blocks *b = find(c, p, &x);
    b = b ? b : make(c, p, &x, e);
    if (!b) {
        free(handle);
        return e->code;
    }
    *handle = (attnc_pattern){.ctx = c, .blocks = b};
    atomic_fetch_add(&c->refs, 1);
    *out = handle;
    return 0;
}

int attnc_pattern_create(attnc_context *ctx, const attnc_program *sparsity,
                         const attnc_pattern_lists *lists,
                         attnc_pattern **out) {
    Err e = {0};
    if (out)
        *out = NULL;
    if (!ctx || !sparsity || !lists || !out)
        err_set(&e, ATTNC_E_REQUEST, "pattern",
                !ctx        ? "ctx"
                : !sparsity ? "sparsity"
                : !lists    ? "lists"
                            : "out",
                "NULL");
    else
        create(ctx, sparsity, lists, out, &e);
    return e.code ? error_publish(&e, NULL, NULL) : ATTNC_OK;
}

void attnc_pattern_release(attnc_pattern *p) {
    if (!p)
        return;
    attnc_context *c = p->ctx;
    leave(c, p->blocks);
    free(p);
    context_release(c);
}

size_t attnc_pattern_bytes(const attnc_pattern *p) {
    return p ? p->blocks->bytes : 0;
}

int attnc_pattern_upload(attnc_pattern *pattern, void *to, void *stream) {
    Err e = {0};
    const attnc_context *c = pattern ? pattern->ctx : NULL;
    if (!pattern || !to)
        err_set(&e, ATTNC_E_REQUEST, "pattern", pattern ? "to" : "pattern",
                "NULL");
    else if (!c->backend || !c->backend->send)
        err_set(&e, ATTNC_E_REQUEST, "pattern", "to",
                "%s reads the blocks where they are; accepted: no upload",
                c->device.arch);
    else if (!c->backend->send(to, pattern->blocks->array.data,
                               pattern->blocks->bytes, stream, &e))
        pattern->device = to;
    return e.code ? error_publish(&e, NULL, NULL) : ATTNC_OK;
}

/* ---- a launch ----------------------------------------------------------- */

/* A launch's sequences must be those the blocks were made for. */
static int check_launch(const Plan *p, const attnc_args *a, Err *e) {
    const attnc_pattern *x = a->pattern;
    const attnc_pattern_lists *made = &x->blocks->lists;
    const struct {
        const char *name;
        int64_t made, given;
    } sizes[] = {{"heads", made->heads, a->heads},
                 {"seqlen_q", made->seqlen_q, a->seqlen_q},
                 {"seqlen_k", made->seqlen_k, a->seqlen_k},
                 {"batch", p->spec.varlen ? made->batch : 0,
                  p->spec.varlen ? a->batch : 0}};
    if (x->blocks->sparsity != p->spec.sparsity)
        return err_set(e, ATTNC_E_REQUEST, "launch", "pattern",
                       "is of %s; the spec says sparsity=%s",
                       x->blocks->sparsity->text,
                       p->spec.sparsity ? p->spec.sparsity->text : "none");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i].made != sizes[i].given)
            return err_set(e, ATTNC_E_REQUEST, "launch", "pattern",
                           "was made for %s = %lld; this launch has %lld",
                           sizes[i].name, (long long)sizes[i].made,
                           (long long)sizes[i].given);
    bool read = p->device.kind != DEVICE_CUDA && made->batch;
    if (read && !(same(made->cu_seqlens_q, a->cu_seqlens_q, a->batch + 1) &&
                  same(made->cu_seqlens_k, a->cu_seqlens_k, a->batch + 1)))
        return err_set(e, ATTNC_E_REQUEST, "launch", "pattern",
                       "was made for other cu_seqlens");
    if (p->device.kind == DEVICE_CUDA && !x->device)
        return err_set(
            e, ATTNC_E_REQUEST, "launch", "pattern",
            "is not in the GPU's memory; attnc_pattern_upload first");
    return 0;
}

int pattern_args(const Plan *p, attnc_args *a, attnc_array *room, Err *e) {
    if (!a->pattern)
        return 0;
    if (check_launch(p, a, e))
        return e->code;
    if (a->tensor_count < 0 || a->tensor_count >= SPEC_TENSORS ||
        (a->tensor_count && !a->tensors))
        return err_set(e, ATTNC_E_REQUEST, "launch", "tensors",
                       "NULL, or tensor_count %lld beside a pattern",
                       (long long)a->tensor_count);
    if (a->tensor_count)
        memcpy(room, a->tensors, (size_t)a->tensor_count * sizeof *room);
    attnc_array *own = &room[a->tensor_count];
    *own = a->pattern->blocks->array;
    own->data = a->pattern->device ? a->pattern->device : own->data;
    own->n[0] = a->batch;
    a->tensors = room;
    a->tensor_count++;
    return 0;
}

const Loads *pattern_loads(const Plan *p, const attnc_args *a) {
    const Loads *own = a->pattern ? a->pattern->blocks->loads : NULL;
    return own ? own : spec_loads(&p->spec, a->seqlen_q, a->seqlen_k);
}
