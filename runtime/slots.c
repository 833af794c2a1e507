/* SPDX-License-Identifier: Apache-2.0
 * From a launch's arguments to what kernels read: sizes, workspace layout and
 * the 8-byte slots. */
#include <string.h>

#include "dropout.h"
#include "runtime.h"

enum { LINE = 64, PAGE = 4096 };

/* a * b, INT64_MAX when that is more: layout_make then refuses. */
static int64_t times(int64_t a, int64_t b) {
    int64_t r;
    return __builtin_mul_overflow(a, b, &r) ? INT64_MAX : r;
}

/* The tensor of that name, or NULL. */
static const attnc_array *array_of(const Plan *p, int tensor,
                                   const attnc_args *a) {
    for (int64_t i = 0; tensor >= 0 && i < a->tensor_count; i++) {
        const char *name = a->tensors[i].name;
        if (name && !strcmp(name, p->tensor[tensor].name))
            return &a->tensors[i];
    }
    return NULL;
}

/* Elements of those tensors that `parted` names; -1: refused. */
static int64_t elements(const Plan *p, const attnc_args *a, Err *e) {
    int64_t sum = 0;
    for (int i = 0; i < p->ntensor; i++) {
        const attnc_array *t = array_of(p, i, a);
        int64_t n = 1;
        if (!(p->parted >> i & 1))
            continue;
        for (int d = 0; t && d < p->tensor[i].rank; d++)
            n = t->n[d] < 0 ? INT64_MAX : times(n, t->n[d]);
        if (!t || __builtin_add_overflow(sum, n, &sum)) {
            err_set(e, ATTNC_E_REQUEST, "launch", p->tensor[i].name,
                    t ? "its extents are no sizes"
                      : "not given; the workspace of its gradient depends on "
                        "its extents");
            return -1;
        }
    }
    return sum;
}

int dims_fill(const Plan *p, const attnc_args *a, int64_t dims[DIM_COUNT],
              Err *e) {
    int64_t group = a->kv_heads > 0 ? a->heads / a->kv_heads : 0;
    dims[DIM_ONE] = 1;
    dims[DIM_BATCH] = a->batch;
    dims[DIM_HEADS] = a->heads;
    dims[DIM_KV_HEADS] = a->kv_heads;
    dims[DIM_GROUP] = group;
    dims[DIM_SEQLEN_Q] = a->seqlen_q;
    dims[DIM_SEQLEN_K] = a->seqlen_k; /* 0: no splits, combine says zeros */
    dims[DIM_ROWS] = times(group, a->seqlen_q);
    /* varlen: an upper bound, for cu_seqlens may lie on a device. */
    dims[DIM_TOTAL_Q] = times(a->batch, a->seqlen_q);
    dims[DIM_PARTS] = MOST_PARTS;
    dims[DIM_TENSOR_PARTS] = p->tensor_parts;
    dims[DIM_TENSOR_ELEMENTS] = elements(p, a, e);
    return dims[DIM_TENSOR_ELEMENTS] < 0 ? e->code : 0;
}

/* Offset of the next array of `bytes` after *total; -1 on overflow. */
static int64_t place(int64_t *total, int64_t bytes) {
    int64_t at = *total, end;
    if (__builtin_add_overflow(at, bytes, &end) || end > INT64_MAX - LINE)
        return -1;
    *total = (end + LINE - 1) / LINE * LINE;
    return at;
}

static int64_t buf_bytes(const Buf *b, const int64_t dims[DIM_COUNT]) {
    int64_t n = extent_size(&b->extent, dims), bytes;
    if (n < 0 || __builtin_mul_overflow(n, b->fixed, &n) ||
        __builtin_mul_overflow(n, (int64_t)b->elem_bytes, &bytes))
        return -1;
    return bytes;
}

/* Workers' scratches share no line, and equal places in them differ modulo
 * 4 KiB, so that threads of one core do not meet in the same L1 sets. */
static int64_t scratch_stride(const Plan *p) {
    int64_t bytes = 0;
    for (int i = 0; i < p->nstep; i++)
        if (p->step[i].scratch_bytes > bytes)
            bytes = p->step[i].scratch_bytes;
    return bytes ? (bytes + PAGE - 1) / PAGE * PAGE + 5 * LINE : 0;
}

int layout_make(const Plan *p, const int64_t dims[DIM_COUNT], int workers,
                Layout *out, Err *e) {
    *out = (Layout){0};
    for (int i = 0; i < p->nbuf; i++) {
        int64_t bytes = buf_bytes(&p->buf[i], dims);
        out->buf[i] = bytes < 0 ? -1 : place(&out->total, bytes);
        if (out->buf[i] < 0)
            return err_set(e, ATTNC_E_REQUEST, "launch", p->buf[i].name,
                           "buffer %s of these lengths does not fit 63 bits",
                           p->buf[i].name);
    }
    out->scratch_stride = scratch_stride(p);
    out->scratch = place(&out->total, times(out->scratch_stride, workers));
    if (out->scratch < 0)
        return err_set(e, ATTNC_E_REQUEST, "launch", "workspace",
                       "the workspace for these lengths does not fit 63 bits");
    return 0;
}

int layout_check(const Layout *l, const attnc_args *a, Err *e) {
    if (!l->total)
        return 0;
    if (!a->workspace || (uintptr_t)a->workspace % LINE)
        return err_set(e, ATTNC_E_WORKSPACE, "launch", "workspace",
                       "%p; accepted: %lld bytes at a multiple of %d",
                       a->workspace, (long long)l->total, LINE);
    if (a->workspace_bytes < (size_t)l->total)
        return err_set(e, ATTNC_E_WORKSPACE, "launch", "workspace_bytes",
                       "%zu; this launch needs %lld", a->workspace_bytes,
                       (long long)l->total);
    return 0;
}

static uint64_t float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float scale_of(const Plan *p, const attnc_args *a) {
    return isnan(a->scale) ? 1.0f / sqrtf((float)p->spec.head_dim) : a->scale;
}

static int64_t heads_total(const attnc_args *a) {
    return a->dropout_heads ? a->dropout_heads : a->heads;
}

static uint64_t address(const void *p) {
    return (uint64_t)(uintptr_t)p;
}

/* Where the 8 bytes of a plain argument stand in attnc_args, plus one. */
#define AT(field) (uint16_t)(offsetof(attnc_args, field) + 1)
static const uint16_t place_of[PARAM_COUNT] = {
    [PARAM_q] = AT(q.data),
    [PARAM_k] = AT(k.data),
    [PARAM_v] = AT(v.data),
    [PARAM_o] = AT(o.data),
    [PARAM_lse] = AT(lse),
    [PARAM_q_stride_b] = AT(q.stride_b),
    [PARAM_q_stride_h] = AT(q.stride_h),
    [PARAM_q_stride_n] = AT(q.stride_n),
    [PARAM_k_stride_b] = AT(k.stride_b),
    [PARAM_k_stride_h] = AT(k.stride_h),
    [PARAM_k_stride_n] = AT(k.stride_n),
    [PARAM_v_stride_b] = AT(v.stride_b),
    [PARAM_v_stride_h] = AT(v.stride_h),
    [PARAM_v_stride_n] = AT(v.stride_n),
    [PARAM_o_stride_b] = AT(o.stride_b),
    [PARAM_o_stride_h] = AT(o.stride_h),
    [PARAM_o_stride_n] = AT(o.stride_n),
    [PARAM_lse_stride_b] = AT(lse_stride_b),
    [PARAM_lse_stride_h] = AT(lse_stride_h),
    [PARAM_batch] = AT(batch),
    [PARAM_heads] = AT(heads),
    [PARAM_kv_heads] = AT(kv_heads),
    [PARAM_seqlen_q] = AT(seqlen_q),
    [PARAM_seqlen_k] = AT(seqlen_k),
    [PARAM_lens_k] = AT(lens_k),
    [PARAM_cu_seqlens_q] = AT(cu_seqlens_q),
    [PARAM_cu_seqlens_k] = AT(cu_seqlens_k),
    [PARAM_mask_left] = AT(mask_left),
    [PARAM_mask_right] = AT(mask_right),
    [PARAM_mask_prefix] = AT(mask_prefix),
    [PARAM_mask_offset] = AT(mask_offset),
    [PARAM_slopes] = AT(slopes),
    [PARAM_sink] = AT(sink),
    [PARAM_dout] = AT(dout.data),
    [PARAM_dout_stride_b] = AT(dout.stride_b),
    [PARAM_dout_stride_h] = AT(dout.stride_h),
    [PARAM_dout_stride_n] = AT(dout.stride_n),
    [PARAM_dq] = AT(dq.data),
    [PARAM_dq_stride_b] = AT(dq.stride_b),
    [PARAM_dq_stride_h] = AT(dq.stride_h),
    [PARAM_dq_stride_n] = AT(dq.stride_n),
    [PARAM_dk] = AT(dk.data),
    [PARAM_dk_stride_b] = AT(dk.stride_b),
    [PARAM_dk_stride_h] = AT(dk.stride_h),
    [PARAM_dk_stride_n] = AT(dk.stride_n),
    [PARAM_dv] = AT(dv.data),
    [PARAM_dv_stride_b] = AT(dv.stride_b),
    [PARAM_dv_stride_h] = AT(dv.stride_h),
    [PARAM_dv_stride_n] = AT(dv.stride_n),
    [PARAM_dlse] = AT(dlse),
    [PARAM_dsink] = AT(dsink),
    [PARAM_parts] = AT(parts),
    [PARAM_part_count] = AT(part_count),
    [PARAM_dropout_seed] = AT(dropout_seed),
    [PARAM_dropout_offset] = AT(dropout_offset),
};
#undef AT

static uint64_t tensor_value(const Plan *p, const Param *param,
                             const attnc_args *a) {
    const attnc_array *t = array_of(p, param->tensor, a);
    if (!t)
        return 0;
    switch (param->id) {
    case PARAM_tensor:
        return address(t->data);
    case PARAM_dtensor:
        return address(t->grad);
    case PARAM_tensor_n:
        return (uint64_t)t->n[param->dim];
    default:
        return (uint64_t)t->stride[param->dim];
    }
}

uint64_t slot_value(const Plan *p, const Param *param, const attnc_args *a,
                    const Layout *l) {
    uint64_t value = 0;
    if (param->buf >= 0)
        return address((char *)a->workspace + l->buf[param->buf]);
    switch (param->id) {
    case PARAM_scale:
        return float_bits(scale_of(p, a));
    case PARAM_softcap:
        return float_bits(a->softcap);
    case PARAM_mask_offset_mode:
        return (uint64_t)a->mask_offset_mode;
    case PARAM_dropout_threshold:
        return dropout_threshold(a->dropout_p);
    case PARAM_dropout_scale:
        return float_bits(dropout_scale(dropout_threshold(a->dropout_p)));
    case PARAM_dropout_first:
        return (uint64_t)(a->dropout_b0 * heads_total(a) + a->dropout_h0);
    case PARAM_dropout_heads:
        return (uint64_t)heads_total(a);
    case PARAM_tensor_parts:
        return (uint64_t)p->tensor_parts;
    case PARAM_tensor:
    case PARAM_tensor_n:
    case PARAM_tensor_step:
    case PARAM_dtensor:
        return tensor_value(p, param, a);
    case PARAM_spec:
        return address(&p->spec);
    case PARAM_args:
        return address(a);
    }
    if (place_of[param->id])
        memcpy(&value, (const char *)a + place_of[param->id] - 1, 8);
    return value;
}
