/* SPDX-License-Identifier: Apache-2.0
 * Kernels with programs compile by NVRTC and keep to their registers: masks
 * with and without verdicts, tensors, scores, a pattern, gradients. What
 * spills gives way to the next tile, as at a prepare. Skipped without NVRTC. */
#include "crowd.h"
#include "cubin_make.h"

static const char *const archs[] = {"sm_80", "sm_90a", "sm_120"};
static const char *const specs[] = {
    "dtype=f16 head_dim=128 mask=program mask_program=\"k <= q\"",
    "dtype=bf16 head_dim=64 mask=program mask_program=\"i32 doc[:,:]; "
    "doc[b, q] == doc[b, k] && k <= q\"",
    "dtype=f16 head_dim=128 sparsity=\"butterfly:m=2 block=64\"",
    "dtype=bf16 head_dim=128 mask=causal bias=hqk",
    "dtype=f16 head_dim=64 pass=bwd mask=causal bias=hqk tensor_grads=1 "
    "score_program=\"30.0 * tanh(s / 30.0)\"",
    "dtype=bf16 head_dim=64 pass=bwd mask=causal tensor_grads=1 "
    "score_program=\"f32 t[:,:]; s + t[min(abs(q - k), 99), h]\"",
    /* in the long form */
    "dtype=f16 head_dim=64 score_program=\"f32 t[:,:]; let d = k - q; let n = "
    "abs(d); s + t[(d > 0 ? 16 : 0) + (n < 8 ? n : min(8 + int(log(max(n, 1) "
    "/ 8.0) / log(16.0) * 8), 15)), h] * exp(0.1 * s)\"",
    "dtype=f16 head_dim=128 pass=bwd sparsity=\"fixed:stride=4 block=64\"",
    "dtype=f32 head_dim=64 sparsity=\"ds-longformer:window=3 block=64\""};
enum { ARCHS = 3, FEW = 6, SPECS = 9, TRIES = 4 };

static Plan plan_for(const char *arch, const char *spec, const Pins *pins) {
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    Device d;
    Plan p;
    Err e = {0};
    h.batch = 8;
    h.seqlen_q = h.seqlen_k = 4096;
    if (spec_parse(spec, &s, &e) || device_find(arch, &d, &e) ||
        plan_choose(&s, &h, &d, pins, &p, &e))
        fail_msg("%s %s: %s", arch, spec, e.text);
    return p;
}

/* The step that spills, or -1. */
static int spilling(const Plan *p, const Blob *cubin, const char *log) {
    int bad = -1;
    for (int k = 0; k < p->nstep; k++) {
        const Step *s = &p->step[k];
        Usage u;
        Cubin made;
        assert_true(usage_read(log, s->entry, &u));
        assert_true(cubin_read(cubin, s->entry, &made));
        print_message("  %-44s %3d registers, %3d estimated, %d instructions,"
                      " %lld spilled\n",
                      s->entry, made.registers,
                      tile_cuda_registers(&p->spec, &p->device, &s->tile),
                      made.instructions, (long long)u.spill_bytes);
        if (bad < 0 && (u.spill_bytes || made.local_accesses))
            bad = k;
    }
    return bad;
}

static bool settles(const char *arch, const char *spec) {
    Tile spilled[TRIES];
    for (int i = 0; i < TRIES; i++) {
        const Pins pins = {.avoid = spilled, .navoid = i};
        Plan p = plan_for(arch, spec, &pins);
        Str log = {0};
        double ms;
        Blob cubin = cubin_make(&p, arch, &log, &ms);
        int bad = spilling(&p, &cubin, log.text);
        str_free(&log);
        free(cubin.data);
        if (bad < 0)
            return true;
        spilled[i] = p.step[bad].tile;
    }
    return false;
}

static void kernels_with_programs_do_not_spill(void **state) {
    (void)state;
    for (int i = 0; i < (getenv("FULL") ? SPECS : FEW); i++)
        for (int a = i % 2; a < ARCHS; a += getenv("FULL") ? 1 : 2) {
            print_message("%s %s\n", archs[a], specs[i]);
            if (!settles(archs[a], specs[i]))
                fail_msg("%s %s: every tile spills", archs[a], specs[i]);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kernels_with_programs_do_not_spill)};
    return nvrtc_is_here() ? cmocka_run_group_tests(tests, NULL, NULL) : 77;
}
