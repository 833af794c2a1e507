/* SPDX-License-Identifier: Apache-2.0
 * Checks a launch's arguments against its plan: one line for each fault. */
#include <stdlib.h>
#include <string.h>

#include "dropout.h"
#include "runtime.h"

#define REFUSE(field, ...)                                                     \
    return err_set(e, ATTNC_E_REQUEST, "launch", field, __VA_ARGS__)

/* Positions inside a sequence fit int32 in every kernel, with room for the
 * sum of two. */
enum { LENGTH_MAX = 1 << 30, PARTS_MAX = 1 << 20 };

int args_check_sizes(const attnc_args *a, Err *e) {
    const struct {
        const char *name;
        int64_t value, low;
    } sizes[] = {
        {"batch", a->batch, 0},       {"heads", a->heads, 1},
        {"kv_heads", a->kv_heads, 1}, {"seqlen_q", a->seqlen_q, 0},
        {"seqlen_k", a->seqlen_k, 0},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        if (sizes[i].value < sizes[i].low || sizes[i].value > LENGTH_MAX)
            REFUSE(sizes[i].name, "%lld is out of range; accepted: %lld..%d",
                   (long long)sizes[i].value, (long long)sizes[i].low,
                   LENGTH_MAX);
    if (a->heads % a->kv_heads)
        REFUSE("kv_heads", "heads = %lld is not a multiple of kv_heads = %lld",
               (long long)a->heads, (long long)a->kv_heads);
    return 0;
}

/* One tensor as the checks see it. */
typedef struct View {
    const char *name;
    const attnc_tensor *t;
    int64_t heads, rows, dim; /* rows of one batch entry; varlen: of all */
    int64_t align;            /* promised */
    const char *promise;      /* as the tensor of that shape */
    bool empty, output;
} View;

/* Does the byte offset of the last element fit 62 bits? */
static bool reaches(const View *v, int64_t batch, int bytes) {
    const int64_t n[] = {batch, v->heads, v->rows};
    const int64_t stride[] = {v->t->stride_b, v->t->stride_h, v->t->stride_n};
    __int128 far = v->dim;
    for (int i = 0; i < 3; i++)
        if (n[i] > 1)
            far += (__int128)(n[i] - 1) *
                   (stride[i] < 0 ? -(__int128)stride[i] : stride[i]);
    return far * bytes < ((__int128)1 << 62);
}

static bool aligned(const View *v, int64_t batch, int bytes) {
    int64_t bits = (int64_t)(uintptr_t)v->t->data;
    if (v->rows > 1)
        bits |= v->t->stride_n * bytes;
    if (v->heads > 1)
        bits |= v->t->stride_h * bytes;
    if (batch > 1)
        bits |= v->t->stride_b * bytes;
    return (bits & (v->align - 1)) == 0;
}

static int check_tensor(const Plan *p, const View *v, int64_t batch, Err *e) {
    int bytes = dtype_bytes(p->spec.dtype);
    if (v->empty)
        return 0;
    if (!v->t->data)
        REFUSE(v->name, "data is NULL");
    if (!reaches(v, batch, bytes))
        REFUSE(v->name, "strides %lld, %lld, %lld reach beyond 62 bits",
               (long long)v->t->stride_b, (long long)v->t->stride_h,
               (long long)v->t->stride_n);
    if (!aligned(v, batch, bytes))
        return err_set(e, ATTNC_E_PROMISE, "launch", v->name,
                       "%s = %lld is promised, but a row starts elsewhere "
                       "(address %p, strides %lld, %lld, %lld)",
                       v->promise, (long long)v->align, v->t->data,
                       (long long)v->t->stride_b, (long long)v->t->stride_h,
                       (long long)v->t->stride_n);
    return 0;
}

/* Rows of an output that share memory would be written by several threads. */
static int check_output(const View *o, int64_t batch, Err *e) {
    const attnc_tensor *t = o->t;
    const struct {
        const char *name;
        int64_t n, stride;
    } dims[] = {{"stride_b", batch, t->stride_b},
                {"stride_h", o->heads, t->stride_h},
                {"stride_n", o->rows, t->stride_n}};
    for (int i = 0; i < 3 && !o->empty; i++) {
        if (dims[i].n > 1 && llabs(dims[i].stride) < o->dim)
            REFUSE(o->name, "%s is %lld: rows of %lld elements would overlap",
                   dims[i].name, (long long)dims[i].stride, (long long)o->dim);
    }
    return 0;
}

/* Lengths of a GPU's launch lie in its memory: not read here. */
static bool readable(const Plan *p) {
    return p->device.kind != DEVICE_CUDA;
}

/* Rows of one batch entry; varlen: of all sequences, or as many as there can
 * be when that cannot be read. */
static int64_t rows_of(const Plan *p, const int32_t *cu, int64_t batch,
                       int64_t length) {
    int64_t all;
    if (!p->spec.varlen)
        return length;
    if (readable(p))
        return cu[batch];
    return __builtin_mul_overflow(batch, length, &all) ? INT64_MAX : all;
}

/* An input without a row to read may be NULL; so may an output without one. */
static int check_tensors(const Plan *p, const attnc_args *a, Err *e) {
    const attnc_spec *s = &p->spec;
    const attnc_shape *h = &p->shape;
    int64_t batch = s->varlen ? 1 : a->batch;
    bool merge = s->pass == ATTNC_PASS_MERGE;
    int64_t nq = rows_of(p, a->cu_seqlens_q, a->batch, a->seqlen_q);
    int64_t nk = merge ? 0 : rows_of(p, a->cu_seqlens_k, a->batch, a->seqlen_k);
    int64_t hq = a->heads, hk = a->kv_heads, d = s->head_dim;
    int64_t dv = s->head_dim_v;
    bool bwd = s->pass == ATTNC_PASS_BWD;
    bool no_q = !a->batch || !nq, no_k = !a->batch || !nk, none = no_q || no_k;
    const View views[] = {
        {"q", &a->q, hq, nq, d, h->align_q, "align_q", none, false},
        {"k", &a->k, hk, nk, d, h->align_k, "align_k", none, false},
        {"v", &a->v, hk, nk, dv, h->align_v, "align_v", none, false},
        {"o", &a->o, hq, nq, dv, h->align_o, "align_o", no_q, !bwd},
        {"dout", &a->dout, hq, nq, dv, h->align_o, "align_o", no_q, false},
        {"dq", &a->dq, hq, nq, d, h->align_q, "align_q", no_q, true},
        {"dk", &a->dk, hk, nk, d, h->align_k, "align_k", no_k, true},
        {"dv", &a->dv, hk, nk, dv, h->align_v, "align_v", no_k, true},
    };
    for (int i = merge ? 3 : 0; i < (bwd ? 8 : 4); i++)
        if (check_tensor(p, &views[i], batch, e) ||
            (views[i].output && check_output(&views[i], batch, e)))
            return e->code;
    if (bwd && !no_q && !a->lse)
        REFUSE("lse", "NULL; pass=bwd reads the forward's");
    return 0;
}

static int check_cu_seqlens(const char *name, const int32_t *cu, int64_t batch,
                            int64_t max, Err *e) {
    if (cu[0] != 0)
        REFUSE(name, "[0] is %d; accepted: 0", cu[0]);
    for (int64_t b = 0; b < batch; b++) {
        int64_t n = (int64_t)cu[b + 1] - cu[b];
        if (n < 0 || n > max)
            REFUSE(name,
                   "sequence %lld has %lld rows; accepted: 0..%lld "
                   "(seqlen_%c)",
                   (long long)b, (long long)n, (long long)max,
                   name[strlen(name) - 1]);
    }
    return 0;
}

/* Lengths in memory: present as the spec says, and within bounds. */
static int check_lengths(const Plan *p, const attnc_args *a, Err *e) {
    const attnc_spec *s = &p->spec;
    const struct {
        const char *name, *field;
        const int32_t *given;
        bool wanted;
    } lists[] = {{"lens_k", "lens_k", a->lens_k, s->lens_k},
                 {"cu_seqlens_q", "varlen", a->cu_seqlens_q, s->varlen},
                 {"cu_seqlens_k", "varlen", a->cu_seqlens_k, s->varlen}};
    bool merge = s->pass == ATTNC_PASS_MERGE; /* has no keys */
    for (int i = 0; i < (merge ? 2 : 3); i++)
        if (!lists[i].given != !lists[i].wanted)
            REFUSE(lists[i].name, "%s, but the spec says %s=%d",
                   lists[i].given ? "given" : "NULL", lists[i].field,
                   lists[i].wanted);
    if (!readable(p))
        return 0;
    for (int64_t b = 0; s->lens_k && b < a->batch; b++)
        if (a->lens_k[b] < 0 || a->lens_k[b] > a->seqlen_k)
            REFUSE("lens_k", "[%lld] is %d; accepted: 0..%lld", (long long)b,
                   a->lens_k[b], (long long)a->seqlen_k);
    if (!s->varlen)
        return 0;
    int rc = check_cu_seqlens("cu_seqlens_q", a->cu_seqlens_q, a->batch,
                              a->seqlen_q, e);
    return rc || merge ? rc
                       : check_cu_seqlens("cu_seqlens_k", a->cu_seqlens_k,
                                          a->batch, a->seqlen_k, e);
}

static int broken(const char *promise, int64_t promised, const char *what,
                  int64_t value, Err *e) {
    return err_set(e, ATTNC_E_PROMISE, "launch", promise,
                   "%lld is promised, but %s is %lld", (long long)promised,
                   what, (long long)value);
}

/* Every length is a multiple of the promised number. */
static int check_multiple(const char *promise, int64_t mult, const char *what,
                          int64_t length, const int32_t *cu, int64_t batch,
                          Err *e) {
    if (!cu)
        return length % mult ? broken(promise, mult, what, length, e) : 0;
    for (int64_t b = 0; b < batch; b++)
        if ((cu[b + 1] - cu[b]) % mult)
            return broken(promise, mult, what, cu[b + 1] - cu[b], e);
    return 0;
}

static int check_promises(const Plan *p, const attnc_args *a, Err *e) {
    const attnc_shape *h = &p->shape;
    int64_t longest = a->seqlen_q > a->seqlen_k ? a->seqlen_q : a->seqlen_k;
    if (h->max_seqlen && longest > h->max_seqlen)
        return broken("max_seqlen", h->max_seqlen, "a sequence", longest, e);
    if (p->spec.varlen && !readable(p))
        return 0;
    int rc = check_multiple("mult_q", h->mult_q, "seqlen_q", a->seqlen_q,
                            a->cu_seqlens_q, a->batch, e);
    return rc ? rc
              : check_multiple("mult_k", h->mult_k, "seqlen_k", a->seqlen_k,
                               a->cu_seqlens_k, a->batch, e);
}

/* Of the list that a GPU's memory holds nothing is read here. */
static int check_part(const Plan *p, const attnc_args *a, int64_t i, Err *e) {
    const attnc_part *x = &a->parts[i];
    const attnc_spec *s = &p->spec;
    Plan own = {.spec.dtype = x->f32 ? ATTNC_F32 : s->dtype};
    int64_t rows = rows_of(p, a->cu_seqlens_q, a->batch, a->seqlen_q);
    View v = {"parts",
              &x->o,
              a->heads,
              rows,
              s->head_dim_v,
              dtype_bytes(own.spec.dtype),
              "alignment to elements",
              !a->batch || !rows,
              false};
    if (x->f32 != 0 && x->f32 != 1)
        REFUSE("parts", "[%lld].f32 is %lld; accepted: 0 1", (long long)i,
               (long long)x->f32);
    if (!v.empty && !x->lse)
        REFUSE("parts", "[%lld].lse is NULL", (long long)i);
    return check_tensor(&own, &v, s->varlen ? 1 : a->batch, e);
}

static int check_parts(const Plan *p, const attnc_args *a, Err *e) {
    bool merge = p->spec.pass == ATTNC_PASS_MERGE;
    if (!merge && (a->parts || a->part_count))
        REFUSE(a->parts ? "parts" : "part_count",
               "given, but the spec says pass=%s",
               spec_spelling(&p->spec, "pass"));
    if (!merge)
        return 0;
    if (!a->parts)
        REFUSE("parts", "NULL; pass=merge reads them");
    if (a->part_count < 1 || a->part_count > PARTS_MAX)
        REFUSE("part_count", "%lld; accepted: 1..%d", (long long)a->part_count,
               PARTS_MAX);
    for (int64_t i = 0; i < a->part_count && readable(p); i++)
        if (check_part(p, a, i, e))
            return e->code;
    return 0;
}

/* A number that the spec's mask does not read would be ignored: refused. */
static int check_mask(const attnc_spec *s, const attnc_args *a, Err *e) {
    const struct {
        const char *name;
        int64_t value;
        int mask;
    } numbers[] = {{"mask_left", a->mask_left, ATTNC_MASK_WINDOW},
                   {"mask_right", a->mask_right, ATTNC_MASK_WINDOW},
                   {"mask_prefix", a->mask_prefix, ATTNC_MASK_PREFIX}};
    for (int i = 0; i < 3; i++) {
        if (numbers[i].value < 0)
            REFUSE(numbers[i].name, "%lld is negative; accepted: 0 and more",
                   (long long)numbers[i].value);
        if (numbers[i].value && s->mask != numbers[i].mask)
            REFUSE(numbers[i].name, "%lld, but the spec says mask=%s",
                   (long long)numbers[i].value, spec_spelling(s, "mask"));
    }
    if (a->mask_offset_mode < ATTNC_OFFSET_INT ||
        a->mask_offset_mode > ATTNC_OFFSET_LEN)
        REFUSE("mask_offset_mode", "%d is none of %d..%d", a->mask_offset_mode,
               ATTNC_OFFSET_INT, ATTNC_OFFSET_LEN);
    if (a->mask_offset_mode == ATTNC_OFFSET_LEN && !s->lens_k)
        REFUSE("mask_offset_mode",
               "ATTNC_OFFSET_LEN needs a spec with lens_k=1");
    return 0;
}

/* Kernels count ALiBi's |i + off - j| in 31 bits. */
static int check_distance(const attnc_spec *s, const attnc_args *a, Err *e) {
    int64_t off = a->mask_offset, first = a->seqlen_k - LENGTH_MAX;
    int64_t last = LENGTH_MAX - a->seqlen_q;
    if (!s->alibi || a->mask_offset_mode != ATTNC_OFFSET_INT ||
        (off >= first && off <= last))
        return 0;
    REFUSE("mask_offset",
           "%lld puts keys further than 2^30 away, the most that alibi=1 "
           "counts; nearest accepted: %lld",
           (long long)off, (long long)(off < first ? first : last));
}

/* Arguments of the score. */
static int check_score(const attnc_spec *s, const attnc_args *a, Err *e) {
    if (isinf(a->scale))
        REFUSE("scale",
               "infinite; accepted: finite, or NaN for 1/sqrt(head_dim)");
    if (s->softcap && !(a->softcap > 0 && isfinite(a->softcap)))
        REFUSE("softcap", "%g; accepted: a finite number > 0",
               (double)a->softcap);
    if (!s->softcap && a->softcap != 0)
        REFUSE("softcap", "%g, but the spec says softcap=0",
               (double)a->softcap);
    if (!s->alibi && a->slopes)
        REFUSE("slopes", "given, but the spec says alibi=0");
    if (s->pass == ATTNC_PASS_BWD && !s->sink != !a->dsink)
        REFUSE("dsink", "%s, but the spec says sink=%d",
               a->dsink ? "given" : "NULL", s->sink);
    if (!s->sink != !a->sink)
        REFUSE("sink", "%s, but the spec says sink=%d",
               a->sink ? "given" : "NULL", s->sink);
    return 0;
}

/* Heads are told apart by 32 bits. */
static int check_shard(const attnc_args *a, Err *e) {
    const int64_t most = (int64_t)1 << 32;
    int64_t heads = a->dropout_heads ? a->dropout_heads : a->heads;
    if (a->dropout_b0 < 0 || a->dropout_b0 > most)
        REFUSE("dropout_b0", "%lld is out of range; accepted: 0..%lld",
               (long long)a->dropout_b0, (long long)most);
    if (a->dropout_h0 < 0 || a->dropout_h0 > most)
        REFUSE("dropout_h0", "%lld is out of range; accepted: 0..%lld",
               (long long)a->dropout_h0, (long long)most);
    if (heads < 0 || heads > most || a->dropout_h0 + a->heads > heads)
        REFUSE("dropout_heads",
               "%lld; accepted: dropout_h0 + heads = %lld and more",
               (long long)heads, (long long)(a->dropout_h0 + a->heads));
    if (heads > most / (a->dropout_b0 + a->batch + (a->batch == 0)))
        REFUSE("dropout_b0",
               "(%lld + %lld batch entries) * %lld heads; accepted: at most "
               "%lld",
               (long long)a->dropout_b0, (long long)a->batch, (long long)heads,
               (long long)most);
    return 0;
}

static int check_dropout(const attnc_spec *s, const attnc_args *a, Err *e) {
    const struct {
        const char *name;
        bool given;
    } numbers[] = {{"dropout_p", a->dropout_p != 0},
                   {"dropout_seed", a->dropout_seed != 0},
                   {"dropout_offset", a->dropout_offset != 0},
                   {"dropout_b0", a->dropout_b0 != 0},
                   {"dropout_h0", a->dropout_h0 != 0},
                   {"dropout_heads", a->dropout_heads != 0}};
    for (int i = 0; i < 6 && !s->dropout; i++)
        if (numbers[i].given)
            REFUSE(numbers[i].name, "given, but the spec says dropout=0");
    if (!s->dropout)
        return 0;
    if (!(a->dropout_p >= 0 && a->dropout_p < 1) ||
        dropout_threshold(a->dropout_p) > UINT16_MAX)
        REFUSE("dropout_p", "%.9g; accepted: 0 <= dropout_p < 1, nearest %.6g",
               a->dropout_p, a->dropout_p > 0.5 ? 65535 / 65536.0 : 0);
    if (a->dropout_offset > UINT32_MAX)
        REFUSE("dropout_offset", "%llu; nearest accepted: %u",
               (unsigned long long)a->dropout_offset, UINT32_MAX);
    return check_shard(a, e);
}

/* Kernels of GPUs count the rows that share a key head in 31 bits. */
static int check_rows(const Plan *p, const attnc_args *a, Err *e) {
    int64_t group = a->heads / a->kv_heads;
    if (p->device.kind != DEVICE_CPU && a->seqlen_q > LENGTH_MAX / group)
        REFUSE("seqlen_q",
               "%lld queries of %lld heads share keys; accepted: %lld queries",
               (long long)a->seqlen_q, (long long)group,
               (long long)(LENGTH_MAX / group));
    return 0;
}

int args_check(const Plan *p, const attnc_args *a, Err *e) {
    int rc = args_check_sizes(a, e);
    rc = rc ? rc : check_rows(p, a, e);
    rc = rc ? rc : check_lengths(p, a, e);
    rc = rc ? rc : check_tensors(p, a, e);
    rc = rc ? rc : check_parts(p, a, e);
    rc = rc ? rc : check_promises(p, a, e);
    rc = rc ? rc : check_mask(&p->spec, a, e);
    rc = rc ? rc : check_distance(&p->spec, a, e);
    rc = rc ? rc : check_score(&p->spec, a, e);
    rc = rc ? rc : check_dropout(&p->spec, a, e);
    return rc ? rc : args_check_tensors(p, a, e);
}
