/* SPDX-License-Identifier: Apache-2.0
 * A problem's launch arguments, and how many pairs its mask lets see. */
#include <inttypes.h>

#include "command.h"

/* Strides in elements of a dense tensor. */
static attnc_tensor strides(const Problem *p, int tensor) {
    int axes[4], rank = problem_axes(p, tensor, axes);
    int64_t stride = 1, of[4];
    for (int i = rank - 1; i >= 0; i--) {
        of[i] = stride;
        stride *= p->size[axes[i]].n;
    }
    int first = rank - 3; /* after the batch */
    bool rows_last = p->layout == BHND;
    return (attnc_tensor){.stride_b = rank == 4 ? of[0] : 0,
                          .stride_h = of[first + !rows_last],
                          .stride_n = of[first + rows_last]};
}

void problem_args(const Problem *p, attnc_args *a) {
    const Size *s = p->size;
    *a = (attnc_args)ATTNC_ARGS_INIT;
    a->batch = s[SIZE_batch].n;
    a->heads = s[SIZE_heads].n;
    a->kv_heads = s[SIZE_kv_heads].n;
    a->seqlen_q = s[SIZE_seqlen_q].n;
    a->seqlen_k = s[SIZE_seqlen_k].n;
    a->q = strides(p, TENSOR_q);
    a->k = strides(p, TENSOR_k);
    a->v = strides(p, TENSOR_v);
    a->o = strides(p, TENSOR_o);
    a->dout = a->o;
    a->dq = a->q;
    a->dk = a->k;
    a->dv = a->v;
    a->lse_stride_h = p->layout == PACKED ? s[SIZE_total_q].n : a->seqlen_q;
    a->lse_stride_b = p->layout == PACKED ? 0 : a->heads * a->seqlen_q;
    a->lens_k = p->lens_k;
    a->cu_seqlens_q = p->cu_q;
    a->cu_seqlens_k = p->cu_k;
    a->mask_left = p->left;
    a->mask_right = p->right;
    a->mask_prefix = p->prefix;
    a->mask_offset = p->offset;
    a->mask_offset_mode = p->offset_mode;
    a->scale = (float)p->scale;
    a->softcap = (float)p->softcap;
    a->dropout_p = p->dropout_p;
    a->dropout_seed = p->dropout_seed;
    a->dropout_offset = p->dropout_offset;
}

/* ---- visible pairs ----------------------------------------------------- */

typedef __int128 Wide; /* offsets and limits may be any int64 */

static Wide clamp(Wide x, Wide lo, Wide hi) {
    return x < lo ? lo : x > hi ? hi : x;
}

/* Keys that query q of a sequence sees. */
static Wide visible(const Problem *p, Wide q, Wide off, Wide keys) {
    Wide here = clamp(q + off + 1, 0, keys);
    switch (p->spec.mask) {
    case ATTNC_MASK_CAUSAL:
        return here;
    case ATTNC_MASK_PREFIX:
        return here > p->prefix ? here : clamp(p->prefix, 0, keys);
    case ATTNC_MASK_WINDOW: {
        Wide lo = p->left == INT64_MAX ? 0 : q + off - p->left;
        Wide hi = p->right == INT64_MAX ? keys : q + off + p->right + 1;
        lo = clamp(lo, 0, keys);
        hi = clamp(hi, 0, keys);
        return hi > lo ? hi - lo : 0;
    }
    default:
        return keys;
    }
}

double problem_pairs(const Problem *p) {
    double pairs = 0;
    for (int64_t b = 0; b < p->size[SIZE_batch].n; b++) {
        int64_t nq = p->size[SIZE_seqlen_q].n, nk = p->size[SIZE_seqlen_k].n;
        if (p->cu_q) {
            nq = (int64_t)p->cu_q[b + 1] - p->cu_q[b];
            nk = (int64_t)p->cu_k[b + 1] - p->cu_k[b];
        }
        int64_t keys = p->lens_k && p->lens_k[b] < nk ? p->lens_k[b] : nk;
        int64_t off = p->offset_mode == ATTNC_OFFSET_INT ? p->offset
                      : p->offset_mode == ATTNC_OFFSET_BR
                          ? nk - nq
                          : (int64_t)p->lens_k[b] - nq;
        Wide sum = 0;
        for (int64_t q = 0; q < nq; q++)
            sum += visible(p, q, off, keys);
        pairs += (double)sum;
    }
    return pairs * (double)p->size[SIZE_heads].n;
}

static void add_limit(int64_t n, Str *out) {
    if (n == INT64_MAX)
        str_addf(out, "inf");
    else
        str_addf(out, "%" PRId64, n);
}

void problem_mask_text(const Problem *p, Str *out) {
    str_addf(out, "%s", spec_spelling(&p->spec, "mask"));
    if (p->spec.mask == ATTNC_MASK_NONE)
        return;
    str_addf(out, ":");
    if (p->spec.mask == ATTNC_MASK_WINDOW) {
        add_limit(p->left, out);
        str_addf(out, ",");
        add_limit(p->right, out);
        str_addf(out, ",");
    }
    if (p->spec.mask == ATTNC_MASK_PREFIX)
        str_addf(out, "%" PRId64 ",", p->prefix);
    if (p->offset_mode == ATTNC_OFFSET_INT)
        str_addf(out, "%" PRId64, p->offset);
    else
        str_addf(out, p->offset_mode == ATTNC_OFFSET_BR ? "br" : "len");
}
