/* SPDX-License-Identifier: Apache-2.0
 * Cases with programs on emulated devices: programs of every kind, tensors for
 * what they read, laid out in any way and ending where their memory ends. */
#ifndef TEST_EMU_PROGRAM_H
#define TEST_EMU_PROGRAM_H

#include "../array_case.h"
#include "../grad_case.h"
#include "forward.h"

/* ---- texts ------------------------------------------------------------- */

/* Bounds that say all (also by heads), tensors asked for over tiles, verdicts
 * of arithmetic, pairs alone. */
static const char *const masks[] = {
    "k <= q",
    "k <= q + off && q + off - k < 40",
    "i32 wide[:]; q - k < wide[h] && k - q <= h",
    "i32 prefix[:]; k < prefix[b] * 9 || k <= q",
    "i32 doc[:,:]; doc[b, q] == doc[b, k] && k <= q",
    "i32 doc[:,:]; doc[k, b] == doc[q, b]",
    "(q / 16 ^ k / 16) < 2 || k < 5",
    "k / 16 % 3 == (q / 16 + h) % 3",
    "bool on[:,:]; on[q, k]",
    "bits on[:,:]; on[q, k]",
    "bits on[:,:,:,:]; on[b, h, q / 16, k / 16] && k <= q + off",
    "bits on[:,:,:]; on[k / 32, h, q / 2] || on[q / 8, 0, k / 8]",
    "bool on[:,:,:,:]; on[b, h, q / 16, k / 16] && k <= q",
    "f32 at[:]; at[q] * 0.5 < at[k] || nk - k <= nq - q",
    "false",
    "nk - k > 20 || q == k",
};
static const char *const scores[] = {
    "f32 slope[:]; s - slope[h] * abs(q + off - k)",
    "30.0 * tanh(s / 30.0)",
    "f32 table[:,:]; let d = k - q; let n = abs(d); s + table[(d > 0 ? 16 : 0)"
    " + (n < 8 ? n : min(8 + int(log(max(n, 1) / 8.0) / log(16.0) * 8), 15)), "
    "h]",
    "f32 gate[:]; s * tanh(gate[h])",
    "f16 half[:,:]; f32 x[:]; max(s, x[k] - 20.0) + half[b, q] * s",
    "k % 3 == 1 && q > 2 ? -inf : s + exp(0.1 * s)",
    "f32 one; s * one + floor(s) * 0.01 - q / 64.0 + k / (nk + 1)",
    "f32 both[:,:]; f32 gate[:]; s * gate[h] + both[q, k] - both[k, q]",
};
static const char *const patterns[] = {
    "butterfly:m=2 block=16",
    "ds-longformer:window=3 block=16",
    "orig-longformer:w=20,global=3",
    "fixed:stride=4 block=16",
    "ds-fixed:stride=4 block=32",
    "strided:stride=7",
    "local-ft:c=30",
};
enum {
    MASKS = sizeof masks / sizeof *masks,
    SCORES = sizeof scores / sizeof *scores,
    PATTERNS = sizeof patterns / sizeof *patterns
};

static inline void set_mask(Case *c, const char *text) {
    c->spec.mask = text ? ATTNC_MASK_PROGRAM : c->spec.mask;
    c->spec.mask_program = program_of(text, ATTNC_MASK);
}

/* ---- tensors ----------------------------------------------------------- */

/* Arrays of any sizes and strides; of[i].data has memory of its own. */
/* The sizes of the case for a bias; else any, so that reads go beyond. */
static inline void laid_sizes(const Case *c, attnc_array *x) {
    const int64_t sizes[] = {c->batch, c->heads, c->nq, c->nk};
    const char *index = spec_spelling(&c->spec, "bias");
    bool bias = !strcmp(x->name, "bias") && c->spec.bias > ATTNC_BIAS_1;
    int64_t most = c->nq > c->nk ? c->nq : c->nk;
    for (int d = 0; d < x->rank; d++) {
        x->n[d] = x->rank > 3 ? PICK(1, 2, 9) : PICK(6, most, most + 1);
        if (bias)
            x->n[d] = sizes[strchr("bhqk", index[d]) - "bhqk"];
    }
}

/* Dims in any order, with gaps; returns the elements from first to last. Rows
 * of bits are whole words, side by side. */
static inline int64_t laid_out(attnc_array *x) {
    int order[4] = {0, 1, 2, 3};
    bool bits = x->dtype == ATTNC_ARRAY_BITS;
    int64_t stride = bits ? 1 : PICK(1, 1, 2);
    for (int d = 3; d > 0; d--) {
        int with = (int)random_int(0, 1) ? d : (int)random_int(0, d), t;
        t = order[d], order[d] = order[with], order[with] = t;
    }
    for (int d = 0; bits && d < 4; d++) /* the last dim innermost */
        order[d] = d < x->rank ? d : 3;
    int64_t last = 0;
    for (int i = 3; i >= 0; i--) {
        int d = order[i];
        if (d >= x->rank)
            continue;
        x->stride[d] = stride;
        last += (x->n[d] - 1) * stride;
        stride *= x->n[d] + random_int(0, 1);
        stride = bits ? (stride + 31) / 32 * 32 : stride;
    }
    return last + 1;
}

static inline void laid_fill(attnc_array *x, int64_t elements) {
    char *to = (char *)x->data;
    int run = (int)PICK(1, 7, 40);
    for (int64_t i = 0; i < elements; i++) {
        float f = (float)random_int(-2048, 2048) * 0x1p-10f;
        uint16_t h = f32_to_f16(f);
        int32_t v = (int32_t)(i / run % 9);
        uint32_t w =
            (uint32_t)random_int(0, 0xffffffff) | (i / 32 % 3 ? 0 : ~0u);
        if (x->dtype == ATTNC_ARRAY_F32)
            memcpy(to + i * 4, &f, 4);
        else if (x->dtype == ATTNC_ARRAY_F16)
            memcpy(to + i * 2, &h, 2);
        else if (x->dtype == ATTNC_ARRAY_I32)
            memcpy(to + i * 4, &v, 4);
        else if (x->dtype == ATTNC_ARRAY_BITS)
            memcpy(to + i / 32 * 4, &w, 4);
        else
            to[i] = random_int(0, 4) != 0;
    }
}

static inline void laid_make(const Case *c, attnc_args *a, Arrays *x) {
    ProgramTensor all[SPEC_TENSORS];
    *x = (Arrays){.count = spec_tensors(&c->spec, all)};
    for (int i = 0; i < x->count; i++) {
        attnc_array *t = &x->of[i];
        *t = (attnc_array){.name = strdup(all[i].name),
                           .dtype = all[i].dtype,
                           .rank = all[i].rank};
        laid_sizes(c, t);
        int64_t n = array_elements(t), span = n ? laid_out(t) : 0;
        t->data = malloc((size_t)program_dtype_bytes(t->dtype, span) + 1);
        laid_fill(t, span);
        if (!(c->spec.tensor_grads >> i & 1))
            continue;
        t->grad = malloc((size_t)n * 4 + 1);
        for (int64_t k = 0; k < n; k++)
            t->grad[k] = NAN;
    }
    a->tensors = x->of;
    a->tensor_count = x->count;
}

/* ---- any mix ----------------------------------------------------------- */

static inline void program_features(Case *c) {
    attnc_spec *s = &c->spec;
    s->mask = (int32_t)PICK(0, 0, 1, 2, 3);
    if (random_int(0, 1))
        set_mask(c, masks[random_int(0, MASKS - 1)]);
    if (random_int(0, 2) == 0)
        s->sparsity =
            program_of(patterns[random_int(0, PATTERNS - 1)], ATTNC_PATTERN);
    if (random_int(0, 2) == 0)
        s->score_program =
            program_of(scores[random_int(0, SCORES - 1)], ATTNC_SCORE);
    s->bias = random_int(0, 2) ? 0 : (int32_t)random_int(1, 16);
    s->varlen = random_int(0, 3) == 0;
    s->lens_k = random_int(0, 3) == 0;
    s->softcap = random_int(0, 3) == 0;
    s->alibi = random_int(0, 3) == 0;
    s->sink = random_int(0, 3) == 0;
    s->dropout = random_int(0, 3) == 0;
    s->batch_invariant = random_int(0, 3) == 0;
    c->left = s->mask == ATTNC_MASK_WINDOW ? PICK(0, 9, 70, INT64_MAX) : 0;
    c->right = s->mask == ATTNC_MASK_WINDOW ? PICK(0, 4, INT64_MAX) : 0;
    c->prefix = s->mask == ATTNC_MASK_PREFIX ? PICK(0, 3, 90) : 0;
}

/* ---- running ----------------------------------------------------------- */

/* Fresh data, launches with late, eager and random copies, all checks. */
static inline void program_check(const Case *c, attnc_plan *plan, int times) {
    for (int mode = 0; mode < times; mode++) {
        EmuReport reports[PLAN_STEPS] = {{.nfault = 0}};
        EmuConfig config = {.seed = random_bits(),
                            .async_mode = mode % 3,
                            .race = true,
                            .resident = (int)random_int(1, 2)};
        Data d;
        Arrays x;
        Err e = {0};
        data_make(c, &d);
        laid_make(c, &d.args, &x);
        workspace_make(plan, &d);
        if (emulated_run(plan, &d.args, &config, reports, &e)) {
            case_print(c);
            fail_msg("launch, mode %d: %s", mode, e.text);
        }
        RefCheck r;
        if (reference_check(&c->spec, &d.args, 1, NULL, NULL, &r, &e))
            fail_msg("reference: %s", e.text);
        if (!r.ok) {
            case_print(c);
            fail_msg("%s (o %.3g, unfused %.3g; lse %.3g, unfused %.3g)", r.why,
                     r.o, r.unfused_o, r.lse, r.unfused_lse);
        }
        check_kept(c, &d);
        for (int i = 0; i < plan->plan.nstep; i++)
            emu_report_free(&reports[i]);
        arrays_free(&x);
        data_free(&d);
    }
}

/* ---- gradients --------------------------------------------------------- */

/* The forward, then the backward, each with a schedule of its own. */
static inline void program_grad_launch(const Case *c, attnc_plan *fwd,
                                       attnc_plan *bwd, GradData *g,
                                       Arrays *x) {
    float *grad[SPEC_TENSORS];
    for (int i = 0; i < x->count; i++) { /* a forward takes none */
        grad[i] = x->of[i].grad;
        x->of[i].grad = NULL;
    }
    case_launch(c, fwd, &g->d);
    memcpy(g->d.o.kept, g->d.o.base, g->d.o.bytes);
    memcpy(g->d.lse.kept, g->d.lse.base, g->d.lse.bytes);
    for (int i = 0; i < x->count; i++)
        x->of[i].grad = grad[i];
    case_launch(c, bwd, &g->d);
}

static inline void program_grad_check(const Case *c, attnc_plan *fwd,
                                      attnc_plan *bwd) {
    GradData g;
    Arrays x;
    grad_make(c, &g);
    laid_make(c, &g.d.args, &x);
    program_grad_launch(c, fwd, bwd, &g, &x);
    grad_check_results(c, &g);
    grad_check_kept(c, &g);
    arrays_free(&x);
    grad_free(&g);
}

/* Plans for both passes: the forward's tile is the model's. Hints that may be
 * wrong say into how many parts work falls. */
static inline void program_backward(const Case *c, int target, const char *tile,
                                    int times) {
    attnc_shape hints = shape_of(c);
    hints.batch = PICK(1, hints.batch, 9);
    hints.seqlen_q = PICK(1, hints.seqlen_q, hints.seqlen_q, 4000);
    Case there = *c, back = *c;
    there.spec.tensor_grads = 0;
    back.spec = grad_spec(c);
    attnc_plan *fwd = prepare(&there, target, NULL, NULL);
    attnc_plan *bwd = prepare(&back, target, tile, &hints);
    for (int i = 0; i < times; i++)
        program_grad_check(c, fwd, bwd);
    attnc_plan_release(fwd);
    attnc_plan_release(bwd);
}

#endif
