/* SPDX-License-Identifier: Apache-2.0
 * Samples of memory: the peak of a process beyond its tensors, and all that
 * forward and backward take in the cells of the paper's Table 21. */
#include "bench.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "gen.h"

enum { D = 64, TENSORS = 8, BATCH = 16, HEADS = 8 };
static const double MIB = 1024 * 1024;

/* ---- peaks ------------------------------------------------------------- */

/* Of this program alone: getrusage also counts the one it was started by. */
static double peak_mib(void) {
    char line[128];
    long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %ld", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return (double)kib / 1024.0;
}

/* What was freed goes back, and the peak starts anew from here. */
static double peak_anew(void) {
    malloc_trim(0);
    FILE *f = fopen("/proc/self/clear_refs", "w");
    if (f) {
        fputs("5\n", f);
        fclose(f);
    }
    return peak_mib();
}

/* ---- tensors ----------------------------------------------------------- */

/* Those of a backward, or of a forward the first four, then LSE; f32 or of
 * two bytes. */
typedef struct Tensors {
    attnc_args args;
    char *data;
    size_t bytes;
} Tensors;

static size_t tensor_bytes(int dtype, int64_t heads, int64_t n) {
    return (size_t)(heads * n * D * dtype_bytes(dtype));
}

static int tensors_make(Tensors *t, int used, int dtype, int64_t batch,
                        int64_t heads, int64_t n) {
    attnc_args *a = &t->args;
    size_t each = tensor_bytes(dtype, batch * heads, n);
    size_t lse = (size_t)(batch * heads * n) * sizeof(float);
    *a = (attnc_args)ATTNC_ARGS_INIT;
    t->bytes = (size_t)used * each + lse;
    t->data = malloc(t->bytes);
    if (!t->data)
        return -1;
    memset(t->data, 0x2d, t->bytes); /* pages of zeros may not exist */
    attnc_tensor *to[TENSORS] = {&a->q,    &a->k,  &a->v,  &a->o,
                                 &a->dout, &a->dq, &a->dk, &a->dv};
    for (int i = 0; i < used; i++)
        *to[i] =
            (attnc_tensor){t->data + (size_t)i * each, heads * n * D, n * D, D};
    a->lse = (float *)(t->data + (size_t)used * each);
    a->lse_stride_h = n;
    a->lse_stride_b = heads * n;
    a->batch = batch;
    a->heads = a->kv_heads = heads;
    a->seqlen_q = a->seqlen_k = n;
    return 0;
}

static int context_make(attnc_context **ctx) {
    attnc_options options = ATTNC_OPTIONS_INIT;
    options.target = "cpu";
    options.cache_dir = "";
    return attnc_context_create(&options, ctx) ? say_error("memory") : 0;
}

/* ---- beyond the tensors ------------------------------------------------ */

/* A causal forward or backward of n x 64 in a process that does nothing else;
 * the workspace counts as attnc's. */
static int beyond(int pass, int64_t n) {
    attnc_spec spec = ATTNC_SPEC_DEFAULT;
    attnc_context *ctx;
    Tensors t;
    if (tensors_make(&t, pass == ATTNC_PASS_BWD ? TENSORS : 4, ATTNC_F32, 1, 1,
                     n))
        return 4;
    double before = peak_mib();
    spec.mask = ATTNC_MASK_CAUSAL;
    spec.pass = pass;
    if (context_make(&ctx) || attnc_run(ctx, &spec, &t.args, NULL))
        return say_error("memory");
    attnc_context_destroy(ctx);
    printf("%.2f\n", peak_mib() - before);
    free(t.data);
    return 0;
}

/* ---- Table 21 ---------------------------------------------------------- */

/* Forward and backward of 16 batch entries, 8 heads of 64, no mask, and the
 * larger of their workspaces, in which the threads' scratch lies too. */
typedef struct Both {
    attnc_plan *plan[2];
    size_t workspace;
} Both;

static int both_make(attnc_context *ctx, int dtype, int64_t n, Both *both) {
    attnc_args sizes = ATTNC_ARGS_INIT;
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    h.batch = sizes.batch = BATCH;
    h.heads = h.kv_heads = sizes.heads = sizes.kv_heads = HEADS;
    h.seqlen_q = h.seqlen_k = sizes.seqlen_q = sizes.seqlen_k = n;
    *both = (Both){{NULL}};
    for (int pass = 0; pass < 2; pass++) {
        attnc_spec spec = ATTNC_SPEC_DEFAULT;
        size_t bytes;
        spec.dtype = dtype;
        spec.pass = pass ? ATTNC_PASS_BWD : ATTNC_PASS_FWD;
        if (attnc_prepare(ctx, &spec, &h, &both->plan[pass]) ||
            attnc_workspace(both->plan[pass], &sizes, &bytes))
            return say_error("memory");
        both->workspace = bytes > both->workspace ? bytes : both->workspace;
    }
    return 0;
}

static void both_free(Both *both) {
    attnc_plan_release(both->plan[0]);
    attnc_plan_release(both->plan[1]);
}

/* What tensors and workspace raise the peak by, once the kernels are there. */
static int table_child(int dtype, int64_t n) {
    attnc_context *ctx;
    Both both;
    Tensors t;
    if (context_make(&ctx) || both_make(ctx, dtype, n, &both))
        return -1;
    double before = peak_anew();
    if (tensors_make(&t, TENSORS, dtype, BATCH, HEADS, n))
        return 4;
    size_t room = (both.workspace + 63) / 64 * 64 + 64;
    t.args.workspace = aligned_alloc(64, room);
    t.args.workspace_bytes = both.workspace;
    for (int i = 0; i < 2; i++)
        if (attnc_launch(both.plan[i], &t.args, NULL))
            return say_error("memory");
    printf("%.2f\n", peak_mib() - before);
    free(t.args.workspace);
    free(t.data);
    both_free(&both);
    attnc_context_destroy(ctx);
    return 0;
}

double sample_counted(Bench *b, Case *c) {
    const int64_t n = c->part;
    Both both;
    if (both_make(b->ctx, c->spec.dtype, n, &both))
        return -1;
    double tensors =
        TENSORS * (double)tensor_bytes(c->spec.dtype, BATCH * HEADS, n) +
        (double)(BATCH * HEADS * n) * sizeof(float);
    both_free(&both);
    return (tensors + (double)both.workspace) / MIB;
}

/* ---- processes --------------------------------------------------------- */

int memory_child(const char *what, int64_t n) {
    if (!strcmp(what, "f16") || !strcmp(what, "bf16"))
        return table_child(what[0] == 'f' ? ATTNC_F16 : ATTNC_BF16, n);
    return beyond(strcmp(what, "bwd") ? ATTNC_PASS_FWD : ATTNC_PASS_BWD, n);
}

static double sample_child(const Bench *b, const Case *c, const char *what) {
    char out[sizeof b->scratch + 8], n[24], kind[8];
    char *argv[] = {"/proc/self/exe", "--memory-child", kind, n, NULL};
    double mib = -1;
    snprintf(out, sizeof out, "%s/rss", b->scratch);
    snprintf(n, sizeof n, "%d", c->part);
    snprintf(kind, sizeof kind, "%s", what);
    int status = process_run(argv, out);
    FILE *f = status ? NULL : fopen(out, "r");
    if (!f || fscanf(f, "%lf", &mib) != 1)
        fprintf(stderr, "attnc-bench: %s: no answer\n", c->name);
    if (f)
        fclose(f);
    return mib;
}

double sample_rss(Bench *b, Case *c) {
    return sample_child(b, c, c->spec.pass == ATTNC_PASS_BWD ? "bwd" : "fwd");
}

double sample_table(Bench *b, Case *c) {
    return sample_child(b, c, c->spec.dtype == ATTNC_F16 ? "f16" : "bf16");
}
