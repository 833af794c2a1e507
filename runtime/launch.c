/* SPDX-License-Identifier: Apache-2.0
 * attnc_workspace, attnc_launch, attnc_run. */
#include <stdlib.h>

#include "runtime.h"

/* Rounding the hints of attnc_run keeps few plans for many lengths. */
enum { HINT_BITS = 3 };

static int take_args(attnc_args *to, const attnc_plan *plan,
                     const attnc_args *from, Err *e) {
    *to = (attnc_args)ATTNC_ARGS_INIT;
    if (!plan || !from)
        return err_set(e, ATTNC_E_REQUEST, "launch", plan ? "args" : "plan",
                       "NULL");
    return struct_copy(to, sizeof *to, from, "args", e);
}

/* ---- workspace ---------------------------------------------------------- */

static int workspace(const attnc_plan *plan, const attnc_args *a, size_t *bytes,
                     Err *e) {
    int64_t dims[DIM_COUNT];
    Layout l;
    if (args_check_sizes(a, e) || dims_fill(&plan->plan, a, dims, e) ||
        layout_make(&plan->plan, dims, plan->ctx->workers, &l, e))
        return e->code;
    *bytes = (size_t)l.total;
    return 0;
}

int attnc_workspace(const attnc_plan *plan, const attnc_args *sizes,
                    size_t *bytes) {
    Err e = {0};
    attnc_args a;
    int rc = take_args(&a, plan, sizes, &e);
    if (!rc && !bytes)
        rc = err_set(&e, ATTNC_E_REQUEST, "workspace", "bytes", "NULL");
    rc = rc ? rc : workspace(plan, &a, bytes, &e);
    return rc ? error_publish(&e, NULL, NULL) : ATTNC_OK;
}

/* ---- launch ------------------------------------------------------------- */

static int launch(const attnc_plan *p, const attnc_args *a, void *stream,
                  Err *e) {
    attnc_args with = *a;
    attnc_array room[SPEC_TENSORS];
    if (pattern_args(&p->plan, &with, room, e) ||
        args_check(&p->plan, &with, e))
        return e->code;
    const Kernel *k = &p->module->kernel;
    return k->backend->launch(p->ctx, &p->plan, k, &with, stream, e);
}

int attnc_launch(const attnc_plan *plan, const attnc_args *args, void *stream) {
    Err e = {0};
    attnc_args a;
    int rc = take_args(&a, plan, args, &e);
    rc = rc ? rc : launch(plan, &a, stream, &e);
    return rc ? error_publish(&e, NULL, NULL) : ATTNC_OK;
}

/* ---- run ---------------------------------------------------------------- */

/* At least 1, and rounded up to HINT_BITS significant bits. */
static int64_t hint(int64_t length) {
    if (length < 1)
        return 1;
    int shift = 64 - __builtin_clzll((unsigned long long)length) - HINT_BITS;
    if (shift <= 0)
        return length;
    int64_t unit = INT64_C(1) << shift;
    return (length + unit - 1) / unit * unit;
}

static int64_t multiple(int64_t length) {
    return length % 128 == 0  ? 128
           : length % 64 == 0 ? 64
           : length % 16 == 0 ? 16
                              : 1;
}

/* Largest power of two from 2 to 16 that divides every row address; addresses
 * at odd bytes are left for the launch to refuse. */
static int64_t alignment(const attnc_tensor *t, int bytes) {
    uint64_t bits =
        (uint64_t)(uintptr_t)t->data | (uint64_t)(t->stride_b * bytes) |
        (uint64_t)(t->stride_h * bytes) | (uint64_t)(t->stride_n * bytes) | 16;
    int64_t align = (int64_t)(bits & (~bits + 1));
    return align < 2 ? 2 : align;
}

/* Of a tensor and of its gradient, which shares the promise. */
static int64_t alignment_of(const attnc_spec *s, const attnc_tensor *t,
                            const attnc_tensor *gradient) {
    int bytes = dtype_bytes(s->dtype);
    int64_t align = alignment(t, bytes);
    if (s->pass != ATTNC_PASS_BWD)
        return align;
    int64_t other = alignment(gradient, bytes);
    return other < align ? other : align;
}

/* What these arguments keep, whatever the next ones will. */
static attnc_shape derive_shape(const attnc_spec *s, const attnc_args *a) {
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    h.batch = hint(a->batch);
    h.heads = a->heads;
    h.kv_heads = a->kv_heads;
    h.seqlen_q = hint(a->seqlen_q);
    h.seqlen_k = hint(a->seqlen_k);
    if (!s->varlen) {
        h.mult_q = multiple(a->seqlen_q);
        h.mult_k = multiple(a->seqlen_k);
    }
    h.align_q = alignment_of(s, &a->q, &a->dq);
    h.align_k = alignment_of(s, &a->k, &a->dk);
    h.align_v = alignment_of(s, &a->v, &a->dv);
    h.align_o = alignment_of(s, &a->o, &a->dout);
    return h;
}

/* The workspace kept from the last run, or a new one. NULL: no memory. */
static void *spare_take(attnc_context *c, size_t bytes, size_t *have) {
    lock_take(&c->lock);
    void *spare = c->spare;
    *have = c->spare_bytes;
    c->spare = NULL;
    c->spare_bytes = 0;
    lock_give(&c->lock);
    if (spare && *have >= bytes)
        return spare;
    free(spare);
    *have = (bytes + 63) / 64 * 64;
    return aligned_alloc(64, *have);
}

static void spare_give(attnc_context *c, void *spare, size_t bytes) {
    lock_take(&c->lock);
    if (!c->spare || c->spare_bytes < bytes) {
        void *old = c->spare;
        c->spare = spare;
        c->spare_bytes = bytes;
        spare = old;
    }
    lock_give(&c->lock);
    free(spare);
}

/* Launches with memory of the device's, in the order of the stream. */
static int launch_with_taken(const attnc_plan *p, attnc_args *a, size_t bytes,
                             void *stream, Err *e) {
    const Kernel *k = &p->module->kernel;
    int rc = k->backend->take(k, bytes, stream, &a->workspace, e);
    if (rc)
        return rc;
    a->workspace_bytes = bytes;
    rc = launch(p, a, stream, e);
    k->backend->give(k, a->workspace, stream);
    return rc;
}

/* Launches with a workspace of the context's. */
static int launch_with_spare(const attnc_plan *p, attnc_args *a, void *stream,
                             Err *e) {
    size_t bytes = 0, have = 0;
    int rc = workspace(p, a, &bytes, e);
    if (rc || !bytes)
        return rc ? rc : launch(p, a, stream, e);
    if (p->module->kernel.backend->take)
        return launch_with_taken(p, a, bytes, stream, e);
    a->workspace = spare_take(p->ctx, bytes, &have);
    if (!a->workspace)
        return err_set(e, ATTNC_E_MEMORY, "launch", "workspace",
                       "no memory for %zu bytes", bytes);
    a->workspace_bytes = have;
    rc = launch(p, a, stream, e);
    spare_give(p->ctx, a->workspace, have);
    return rc;
}

int attnc_run(attnc_context *ctx, const attnc_spec *spec,
              const attnc_args *args, void *stream) {
    Err e = {0};
    attnc_args a = ATTNC_ARGS_INIT;
    attnc_spec s;
    attnc_plan *plan;
    int rc = 0;
    if (!ctx || !spec || !args)
        rc = err_set(&e, ATTNC_E_REQUEST, "run",
                     !ctx    ? "ctx"
                     : !spec ? "spec"
                             : "args",
                     "NULL");
    rc = rc ? rc : spec_check(spec, &s, &e);
    rc = rc ? rc : struct_copy(&a, sizeof a, args, "args", &e);
    rc = rc ? rc : args_check_sizes(&a, &e);
    if (rc)
        return error_publish(&e, NULL, NULL);
    attnc_shape shape = derive_shape(&s, &a);
    rc = attnc_prepare(ctx, &s, &shape, &plan);
    if (rc)
        return rc;
    rc = a.workspace ? launch(plan, &a, stream, &e)
                     : launch_with_spare(plan, &a, stream, &e);
    attnc_plan_release(plan);
    return rc ? error_publish(&e, NULL, NULL) : ATTNC_OK;
}

/* What of the parts' spec and arguments a merge reads. */
static attnc_spec merge_spec(const attnc_spec *s) {
    attnc_spec m = ATTNC_SPEC_DEFAULT;
    m.pass = ATTNC_PASS_MERGE;
    m.dtype = s->dtype;
    m.head_dim = m.head_dim_v = s->head_dim_v;
    m.varlen = s->varlen;
    m.sink = s->sink;
    m.deterministic = s->deterministic;
    m.batch_invariant = s->batch_invariant;
    return m;
}

static attnc_args merge_args(const attnc_args *a, const attnc_part *parts,
                             int64_t count) {
    attnc_args m = ATTNC_ARGS_INIT;
    m.batch = a->batch;
    m.heads = a->heads;
    m.kv_heads = a->kv_heads;
    m.seqlen_q = a->seqlen_q;
    m.cu_seqlens_q = a->cu_seqlens_q;
    m.sink = a->sink;
    m.o = a->o;
    m.lse = a->lse;
    m.lse_stride_b = a->lse_stride_b;
    m.lse_stride_h = a->lse_stride_h;
    m.workspace = a->workspace;
    m.workspace_bytes = a->workspace_bytes;
    m.parts = parts;
    m.part_count = count;
    return m;
}

int attnc_merge(attnc_context *ctx, const attnc_spec *spec,
                const attnc_args *args, const attnc_part *parts, int64_t count,
                void *stream) {
    Err e = {0};
    attnc_args a = ATTNC_ARGS_INIT;
    attnc_spec s;
    int rc = 0;
    if (!spec || !args)
        rc = err_set(&e, ATTNC_E_REQUEST, "merge", spec ? "args" : "spec",
                     "NULL");
    rc = rc ? rc : spec_check(spec, &s, &e);
    rc = rc ? rc : struct_copy(&a, sizeof a, args, "args", &e);
    if (rc)
        return error_publish(&e, NULL, NULL);
    s = merge_spec(&s);
    a = merge_args(&a, parts, count);
    return attnc_run(ctx, &s, &a, stream);
}
