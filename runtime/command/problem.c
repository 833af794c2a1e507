/* SPDX-License-Identifier: Apache-2.0
 * Options and file headers -> one whole, checked request. A size may be said
 * by a flag, a list or a file: all must agree, and what nobody says gets its
 * default. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"

enum { THREADS_MAX = 4096 };

static const char *const size_names[] = {
#define X(name) #name,
    SIZE_LIST(X)
#undef X
};

int problem_meet(Problem *p, int id, int64_t n, const char *from, Err *e) {
    Size *s = &p->size[id];
    if (!s->from[0]) {
        s->n = n;
        snprintf(s->from, sizeof s->from, "%s", from);
        return 0;
    }
    if (s->n == n)
        return 0;
    return err_set(e, ERR_REQUEST, "command", NULL,
                   "%s: %s is %" PRId64 ", but %s says %" PRId64, from,
                   size_names[id], n, s->from, s->n);
}

static bool known(const Problem *p, int id) {
    return p->size[id].from[0] != '\0';
}

/* ---- flags ------------------------------------------------------------- */

/* A training step is two specs; only a run takes both at once. */
static int take_pass(const Options *o, Problem *p, Err *e) {
    const char *text = o->given[OPT_pass].text;
    p->both = text && strcmp(text, "fwd+bwd") == 0;
    if (p->both && o->verb != VERB_run)
        return option_bad(o, OPT_pass, e,
                          "it is two plans; accepted: fwd, bwd, or `run`");
    if (text && !p->both && strcmp(text, "fwd") && strcmp(text, "bwd"))
        return option_bad(o, OPT_pass, e, "accepted: fwd bwd fwd+bwd");
    if (text && strcmp(text, "fwd"))
        p->spec.pass = ATTNC_PASS_BWD;
    if (o->given[OPT_do].text && p->spec.pass == ATTNC_PASS_FWD)
        return option_bad(o, OPT_do, e, "it needs --pass bwd or fwd+bwd");
    return 0;
}

static int take_fields(const Options *o, Problem *p, Err *e) {
    static const struct {
        int option, size;
    } dims[] = {{OPT_head_dim, SIZE_head_dim},
                {OPT_head_dim_v, SIZE_head_dim_v}};
    int rc = 0;
    for (int i = 0; i < OPT_COUNT && rc == 0; i++)
        if (i != OPT_pass && o->given[i].text && option_at(i)->kind == FIELD)
            rc = spec_set(&p->spec, option_at(i)->id, o->given[i].text, e);
    for (int i = 0; i < 2 && rc == 0; i++) {
        int64_t n = i ? p->spec.head_dim_v : p->spec.head_dim;
        if (o->given[dims[i].option].text && n)
            rc = problem_meet(p, dims[i].size, n,
                              o->given[dims[i].option].where, e);
    }
    return rc;
}

static int take_sizes(const Options *o, Problem *p, Err *e) {
    static const struct {
        int option, size;
    } flags[] = {{OPT_batch, SIZE_batch},
                 {OPT_heads, SIZE_heads},
                 {OPT_kv_heads, SIZE_kv_heads},
                 {OPT_seqlen, SIZE_seqlen_q},
                 {OPT_seqlen_k, SIZE_seqlen_k}};
    int rc = 0;
    for (size_t i = 0; i < sizeof flags / sizeof flags[0] && rc == 0; i++) {
        int64_t n = 0;
        rc = option_int(o, flags[i].option, 1, INT32_MAX, &n, e);
        if (rc == 0 && n)
            rc = problem_meet(p, flags[i].size, n,
                              o->given[flags[i].option].where, e);
    }
    return rc;
}

/* A finite number; `above` 0: greater than 0. */
static int take_number(const Options *o, int id, double above, double *out,
                       Err *e) {
    const char *text = o->given[id].text;
    if (!text)
        return 0;
    if (!slice_double((Slice){text, strlen(text)}, out) || !isfinite(*out))
        return option_bad(o, id, e, "no finite number");
    if (fabs(*out) > 3e38)
        return option_bad(o, id, e, "out of range, nearest accepted: 3e38");
    if (*out <= above)
        return option_bad(o, id, e, "accepted: a number > %g", above);
    return 0;
}

static int take_layout(const Options *o, Problem *p, Err *e) {
    const Given *g = &o->given[OPT_layout];
    p->layout = o->given[OPT_cu_seqlens_q].text ? PACKED : BHND;
    if (!g->text)
        return 0;
    if (p->layout == PACKED)
        return option_bad(o, OPT_layout, e,
                          "packed sequences are [total,H,d]; accepted: no "
                          "--layout with --cu-seqlens-q");
    if (strcmp(g->text, "bnhd") == 0)
        p->layout = BNHD;
    else if (strcmp(g->text, "bhnd") != 0)
        return option_bad(o, OPT_layout, e, "accepted: bhnd, bnhd");
    return 0;
}

static int take_scalars(const Options *o, Problem *p, Err *e) {
    int64_t seed = 0, threads = 0;
    int rc = take_number(o, OPT_scale, -INFINITY, &p->scale, e);
    rc = rc ? rc : take_number(o, OPT_softcap, 0, &p->softcap, e);
    rc = rc ? rc : option_int(o, OPT_data_seed, 0, INT64_MAX, &seed, e);
    rc = rc ? rc : option_int(o, OPT_threads, 1, THREADS_MAX, &threads, e);
    p->seed = (uint64_t)seed;
    p->threads = (int)threads;
    p->spec.softcap = o->given[OPT_softcap].text != NULL;
    p->spec.alibi = o->given[OPT_alibi].text != NULL;
    p->spec.sink = o->given[OPT_sink].text != NULL;
    p->spec.lens_k = o->given[OPT_lens_k].text != NULL;
    p->spec.varlen = o->given[OPT_cu_seqlens_q].text != NULL;
    return rc;
}

/* ---- lists ------------------------------------------------------------- */

/* "A,B,.." -> *list (owned by the caller) and its length. */
static int parse_list(const Options *o, int id, int32_t **list, int64_t *count,
                      Err *e) {
    const char *p = o->given[id].text;
    size_t most = 1;
    for (const char *c = p; *c; c++)
        most += *c == ',';
    int32_t *v = *list = malloc(most * sizeof *v);
    if (!v)
        return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    for (*count = 0; *count < (int64_t)most; ++*count) {
        size_t len = strcspn(p, ",");
        int64_t n;
        if (!slice_int((Slice){p, len}, &n) || n < 0 || n > INT32_MAX)
            return err_set(e, ERR_REQUEST, "command", NULL,
                           "%s: entry %" PRId64 ", `%.*s`: accepted: 0 .. "
                           "2147483647",
                           o->given[id].where, *count,
                           (int)(len < 32 ? len : 32), p);
        v[*count] = (int32_t)n;
        p += len + 1;
    }
    return 0;
}

/* Bounds of packed sequences: says the batch, the total and the longest. */
static int take_bounds(const Options *o, Problem *p, int id, int total,
                       int longest, int32_t **list, Err *e) {
    int64_t n, most = 0;
    const char *where = o->given[id].where;
    int rc = parse_list(o, id, list, &n, e);
    if (rc)
        return rc;
    const int32_t *v = *list;
    if (n < 2 || v[0] != 0)
        return err_set(e, ERR_REQUEST, "command", NULL,
                       "%s: accepted: 0, then the end of each sequence", where);
    for (int64_t i = 1; i < n; i++) {
        int64_t len = (int64_t)v[i] - v[i - 1];
        if (len < 0)
            return err_set(e, ERR_REQUEST, "command", NULL,
                           "%s: entry %" PRId64 ", %d: nearest accepted: %d",
                           where, i, v[i], v[i - 1]);
        most = len > most ? len : most;
    }
    rc = problem_meet(p, SIZE_batch, n - 1, where, e);
    rc = rc ? rc : problem_meet(p, total, v[n - 1], where, e);
    return rc ? rc : problem_meet(p, longest, most, where, e);
}

static int take_lists(const Options *o, Problem *p, Err *e) {
    int rc = 0;
    int64_t n;
    bool own_k = o->given[OPT_cu_seqlens_k].text;
    if (o->given[OPT_cu_seqlens_q].text) {
        rc = take_bounds(o, p, OPT_cu_seqlens_q, SIZE_total_q, SIZE_seqlen_q,
                         &p->cu_q, e);
        rc = rc ? rc
                : take_bounds(o, p, own_k ? OPT_cu_seqlens_k : OPT_cu_seqlens_q,
                              SIZE_total_k, SIZE_seqlen_k, &p->cu_k, e);
    } else if (own_k) {
        rc = option_bad(o, OPT_cu_seqlens_k, e, "it needs --cu-seqlens-q");
    }
    if (rc || !o->given[OPT_lens_k].text)
        return rc;
    rc = parse_list(o, OPT_lens_k, &p->lens_k, &n, e);
    return rc ? rc
              : problem_meet(p, SIZE_batch, n, o->given[OPT_lens_k].where, e);
}

/* ---- files ------------------------------------------------------------- */

int problem_axes(const Problem *p, int tensor, int axes[4]) {
    static const int like[TENSORS] = {
        [TENSOR_q] = TENSOR_q,    [TENSOR_k] = TENSOR_k,
        [TENSOR_v] = TENSOR_v,    [TENSOR_o] = TENSOR_o,
        [TENSOR_dout] = TENSOR_o, [TENSOR_dq] = TENSOR_q,
        [TENSOR_dk] = TENSOR_k,   [TENSOR_dv] = TENSOR_v};
    static const struct {
        int heads, rows, dim;
    } shapes[] = {{SIZE_heads, SIZE_seqlen_q, SIZE_head_dim},
                  {SIZE_kv_heads, SIZE_seqlen_k, SIZE_head_dim},
                  {SIZE_kv_heads, SIZE_seqlen_k, SIZE_head_dim_v},
                  {SIZE_heads, SIZE_seqlen_q, SIZE_head_dim_v}};
    int h = shapes[like[tensor]].heads, n = shapes[like[tensor]].rows;
    int d = shapes[like[tensor]].dim, rank = 0;
    if (p->layout == PACKED)
        n = n == SIZE_seqlen_q ? SIZE_total_q : SIZE_total_k;
    else
        axes[rank++] = SIZE_batch;
    axes[rank++] = p->layout == BHND ? h : n;
    axes[rank++] = p->layout == BHND ? n : h;
    axes[rank++] = d;
    return rank;
}

static int open_file(const Options *o, Problem *p, int file, Err *e) {
    static const int options[] = {OPT_q,  OPT_k,    OPT_v,
                                  OPT_do, OPT_sink, OPT_alibi};
    static const char *const layouts[] = {"[B,H,N,d] (bhnd)",
                                          "[B,N,H,d] (bnhd)", "[total,H,d]"};
    const char *path = o->given[options[file]].text;
    int axes[4] = {SIZE_heads};
    if (!path || !path[0])
        return 0;
    Npy *n = &p->file[file];
    int rc = npy_open(path, n, e);
    if (rc)
        return rc;
    if (n->type > NPY_F64)
        return err_set(e, ERR_REQUEST, "command", NULL,
                       "%s: %s data; accepted: f16 f32 f64", path,
                       npy_type_name(n->type));
    int tensor = file == FILE_dout ? TENSOR_dout : file;
    int rank = file <= FILE_dout ? problem_axes(p, tensor, axes) : 1;
    char shape[160];
    if (n->rank != rank)
        return err_set(e, ERR_REQUEST, "command", NULL,
                       "%s: shape %s; accepted: %s", path, npy_shape(n, shape),
                       rank == 1 ? "[H]" : layouts[p->layout]);
    for (int i = 0; i < rank && rc == 0; i++) {
        if (n->dim[i] == 0 && p->layout != PACKED)
            return err_set(e, ERR_REQUEST, "command", NULL,
                           "%s: shape %s has a 0; accepted: sizes >= 1", path,
                           npy_shape(n, shape));
        rc = problem_meet(p, axes[i], n->dim[i], path, e);
    }
    return rc;
}

/* ---- defaults and the whole -------------------------------------------- */

static void fill_defaults(Problem *p) {
    const struct {
        int id, like; /* SIZE_COUNT: the number */
        int64_t n;
    } defaults[] = {{SIZE_batch, SIZE_COUNT, 1},
                    {SIZE_heads, SIZE_COUNT, 8},
                    {SIZE_kv_heads, SIZE_heads, 0},
                    {SIZE_seqlen_q, SIZE_COUNT, 1024},
                    {SIZE_seqlen_k, SIZE_seqlen_q, 0},
                    {SIZE_head_dim, SIZE_COUNT, p->spec.head_dim},
                    {SIZE_head_dim_v, SIZE_head_dim, 0}};
    Err none = {0};
    for (size_t i = 0; i < sizeof defaults / sizeof defaults[0]; i++) {
        int like = defaults[i].like;
        if (!known(p, defaults[i].id))
            problem_meet(p, defaults[i].id,
                         like == SIZE_COUNT ? defaults[i].n : p->size[like].n,
                         "the default", &none);
    }
}

/* head_dim may come from a file: through the spec's own check. */
static int set_dim(Problem *p, const char *field, int size, Err *e) {
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, p->size[size].n);
    return spec_set(&p->spec, field, text, e);
}

static int check_lens(const Problem *p, const Options *o, Err *e) {
    int64_t most = p->size[SIZE_seqlen_k].n;
    for (int64_t b = 0; p->lens_k && b < p->size[SIZE_batch].n; b++)
        if (p->lens_k[b] > most)
            return err_set(e, ERR_REQUEST, "command", NULL,
                           "%s: entry %" PRId64 ", %d: nearest accepted: "
                           "%" PRId64 " (seqlen_k)",
                           o->given[OPT_lens_k].where, b, p->lens_k[b], most);
    return 0;
}

int64_t problem_count(const Problem *p, int tensor) {
    int axes[4], rank = problem_axes(p, tensor, axes);
    int64_t n = 1;
    for (int i = 0; i < rank; i++)
        if (__builtin_mul_overflow(n, p->size[axes[i]].n, &n))
            return -1;
    return n;
}

int problem_tensors(const Problem *p) {
    return p->spec.pass == ATTNC_PASS_BWD ? TENSORS : TENSOR_o + 1;
}

static int check_counts(const Problem *p, Err *e) {
    for (int t = 0; t <= TENSOR_o; t++) {
        int64_t n = problem_count(p, t);
        if (n < 0 || n > INT64_MAX / 64)
            return err_set(e, ERR_REQUEST, "command", NULL,
                           "the sizes overflow: %c has more than 2^57 elements",
                           "qkvo"[t]);
    }
    return 0;
}

/* Largest of the powers of two `list` (ascending, 0-ended) that divides n. */
static int64_t divisor(int64_t n, const int *list) {
    int64_t best = 1;
    for (; *list; list++)
        if (n % *list == 0)
            best = *list;
    return best;
}

/* Hints, and the promises that dense tensors keep. */
static void fill_shape(Problem *p) {
    static const int mults[] = {1, 16, 64, 128, 0}, aligns[] = {2, 4, 8, 16, 0};
    attnc_shape *s = &p->shape;
    bool packed = p->layout == PACKED;
    int64_t row = p->size[SIZE_head_dim].n * dtype_bytes(p->spec.dtype);
    int64_t row_v = p->size[SIZE_head_dim_v].n * dtype_bytes(p->spec.dtype);
    s->batch = p->size[SIZE_batch].n;
    s->heads = p->size[SIZE_heads].n;
    s->kv_heads = p->size[SIZE_kv_heads].n;
    s->seqlen_q = p->size[SIZE_seqlen_q].n;
    s->seqlen_k = p->size[SIZE_seqlen_k].n;
    if (packed) { /* sequences of no rows at all: a hint of 1 */
        s->seqlen_q += s->seqlen_q == 0;
        s->seqlen_k += s->seqlen_k == 0;
    }
    s->mult_q = packed ? 1 : divisor(s->seqlen_q, mults);
    s->mult_k = packed ? 1 : divisor(s->seqlen_k, mults);
    s->align_q = s->align_k = divisor(row, aligns);
    s->align_v = s->align_o = divisor(row_v, aligns);
}

static int finish(const Options *o, Problem *p, Err *e) {
    attnc_spec spec;
    attnc_shape shape;
    fill_defaults(p);
    int rc = set_dim(p, "head_dim", SIZE_head_dim, e);
    rc = rc ? rc : set_dim(p, "head_dim_v", SIZE_head_dim_v, e);
    rc = rc ? rc : check_lens(p, o, e);
    rc = rc ? rc : check_counts(p, e);
    rc = rc ? rc : programs_finish(o, p, e);
    rc = rc ? rc : spec_check(&p->spec, &spec, e);
    if (rc)
        return rc;
    p->spec = spec;
    fill_shape(p);
    rc = shape_check(&p->shape, &shape, e);
    if (rc == 0)
        p->shape = shape;
    return rc;
}

int problem_make(const Options *o, Problem *p, Err *e) {
    *p = (Problem){
        .spec = ATTNC_SPEC_DEFAULT, .shape = ATTNC_SHAPE_DEFAULT, .scale = NAN};
    for (int i = 0; i < FILES; i++)
        p->file[i].fd = -1;
    p->lists[0].fd = p->lists[1].fd = -1;
    int rc = take_pass(o, p, e);
    rc = rc ? rc : take_fields(o, p, e);
    rc = rc ? rc : take_layout(o, p, e);
    rc = rc ? rc : programs_open(o, p, e);
    rc = rc ? rc : mask_parse(o, p, e);
    rc = rc ? rc : take_sizes(o, p, e);
    rc = rc ? rc : take_scalars(o, p, e);
    rc = rc ? rc : dropout_parse(o, p, e);
    rc = rc ? rc : take_lists(o, p, e);
    for (int i = 0; i < FILE_bias && rc == 0; i++)
        rc = open_file(o, p, i, e);
    rc = rc ? rc : programs_parse(o, p, e);
    return rc ? rc : finish(o, p, e);
}

void problem_free(Problem *p) {
    for (int i = 0; i < FILES; i++)
        npy_close(&p->file[i]);
    for (int i = 0; i < p->ntensor; i++)
        npy_close(&p->tensor[i].file);
    for (int i = 0; i < 2; i++)
        npy_close(&p->lists[i]);
    free(p->list_path);
    free(p->pattern_at);
    free(p->pattern_index);
    free(p->lens_k);
    free(p->cu_q);
    free(p->cu_k);
}
