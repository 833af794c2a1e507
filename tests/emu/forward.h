/* SPDX-License-Identifier: Apache-2.0
 * For tests of CUDA kernels on emulated devices: a context of each, plans for
 * cases. Every launch takes another schedule and another landing of copies;
 * any fault fails it. */
#ifndef TEST_EMU_FORWARD_H
#define TEST_EMU_FORWARD_H

#include "../case.h"

#include "emulated/emulated.h"

enum { TARGETS = 4, OLD = 0 /* sm_75: no cp.async, no bf16, no tf32 */ };
static const char *const targets[TARGETS] = {"emu:sm_75", "emu:sm_80",
                                             "emu:sm_89", "emu:sm_120"};
static attnc_context *contexts[TARGETS];

static inline attnc_context *device(int target) {
    if (!contexts[target])
        contexts[target] = context_make(KERNEL_COMPILED, targets[target], 1);
    return contexts[target];
}

static inline int close_contexts(void **state) {
    (void)state;
    for (int i = 0; i < TARGETS; i++)
        attnc_context_destroy(contexts[i]);
    return 0;
}

/* Without clang there is nothing to run. */
static inline bool can_emulate(void) {
    Compiler clang;
    if (compiler_find(NULL, &clang) && clang.clang)
        return true;
    print_message("skipped: no clang to compile kernels for the emulated "
                  "device\n");
    return false;
}

/* Hints that tell the case's own sizes; no promises. */
static inline attnc_shape shape_of(const Case *c) {
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    h.batch = c->batch;
    h.heads = c->heads;
    h.kv_heads = c->kv_heads;
    h.seqlen_q = c->nq > 0 ? c->nq : 1;
    h.seqlen_k = c->nk > 0 ? c->nk : 1;
    return h;
}

/* A plan for the case, with a pinned tile (or NULL) and a shape (or NULL: its
 * own). A tile that is not legal for it gives way to the model's. */
static inline attnc_plan *prepare(const Case *c, int target, const char *tile,
                                  const attnc_shape *shape) {
    attnc_prepare_options o = {.struct_size = sizeof o, .tile = tile};
    attnc_shape h = shape ? *shape : shape_of(c);
    attnc_plan *plan = NULL;
    int rc = attnc_prepare_with(device(target), &c->spec, &h, &o, &plan);
    if (rc == ATTNC_E_REQUEST && tile) {
        o.tile = NULL;
        rc = attnc_prepare_with(device(target), &c->spec, &h, &o, &plan);
    }
    if (rc) {
        const attnc_error *e = attnc_last_error();
        case_print(c);
        fail_msg("prepare for %s: %s: %s\n%s", targets[target], e->stage,
                 e->text, e->log);
    }
    return plan;
}

static inline void check(const Case *c, int target, const char *tile,
                         const attnc_shape *shape, int times) {
    attnc_plan *plan = prepare(c, target, tile, shape);
    for (int i = 0; i < times; i++)
        case_check(c, plan);
    attnc_plan_release(plan);
}

static inline Case simple(int dtype, int dim, int64_t nq, int64_t nk) {
    Case c = case_of(dtype, dim, 0, ATTNC_MASK_NONE);
    c.nq = nq;
    c.nk = nk;
    return c;
}

static inline int64_t pick(const int64_t *of, int n) {
    return of[random_int(0, n - 1)];
}
#define PICK(...)                                                              \
    pick((const int64_t[]){__VA_ARGS__},                                       \
         sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))

static inline bool full(void) {
    return getenv("FULL") != NULL;
}

#endif
