/* SPDX-License-Identifier: Apache-2.0
 * The backward's kernels compile by NVRTC for every chip, none of which is
 * here: no spills up to head dim 128, registers within their bound, shared
 * memory as planned. Skipped without NVRTC. */
#include "cubin_make.h"

static const char *const archs[] = {"sm_75",  "sm_80",  "sm_86", "sm_89",
                                    "sm_90a", "sm_100", "sm_120"};
/* A pinned tile where it can be: sm_75 has no mma for bf16 and tf32. */
static const struct {
    const char *text, *tile;
} specs[] = {{"dtype=f16 head_dim=64 mask=causal", "dq=2"},
             {"dtype=f16 head_dim=128 mask=none", NULL},
             {"dtype=bf16 head_dim=128 mask=window softcap=1 alibi=1", NULL},
             /* in the long form */
             {"dtype=f16 head_dim=64 mask=causal", NULL},
             {"dtype=bf16 head_dim=128 mask=causal", "dq=2"},
             {"dtype=bf16 head_dim=128 mask=causal dropout=1", NULL},
             {"dtype=f16 head_dim=64 mask=none", NULL},
             {"dtype=bf16 head_dim=96 mask=prefix", NULL},
             {"dtype=f16 head_dim=80 mask=causal alibi=1", "dq=2"},
             {"dtype=f16 head_dim=256 mask=causal", NULL},
             {"dtype=f16 head_dim=256 mask=none", "dq=2"},
             {"dtype=f32 f32_math=tf32 head_dim=64 mask=causal", NULL},
             {"dtype=f32 f32_math=tf32 head_dim=128 mask=none", NULL},
             {"dtype=f32 head_dim=64 mask=causal", NULL},
             {"dtype=f32 head_dim=128 mask=none", NULL}};
enum { ARCHS = 7, FEW = 3, SPECS = 15 };

static Plan plan_for(const char *arch, const char *spec, const char *tile) {
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    Device d;
    Plan p;
    Err e = {0};
    h.batch = 8;
    s.pass = ATTNC_PASS_BWD;
    if (spec_parse(spec, &s, &e) || device_find(arch, &d, &e) ||
        (plan_choose(&s, &h, &d, &(Pins){.tile = tile}, &p, &e) &&
         (e = (Err){0}, plan_choose(&s, &h, &d, NULL, &p, &e))))
        fail_msg("%s %s: %s", arch, spec, e.text);
    return p;
}

static void check_step(const Plan *p, int k, const Blob *cubin, const char *log,
                       const char *what) {
    const Step *s = &p->step[k];
    Usage u;
    Cubin made;
    assert_true(usage_read(log, s->entry, &u));
    assert_true(cubin_read(cubin, s->entry, &made));
    assert_int_equal(made.registers, u.registers);
    assert_in_range(made.registers, 16,
                    tile_cuda_register_limit(&p->device, &s->tile));
    assert_true(s->smem_bytes <= p->device.sram_bytes);
    if (p->spec.head_dim <= 128 &&
        (u.spill_bytes || u.stack_bytes || made.local_accesses))
        fail_msg("%s %s: %lld bytes spilled, %lld of stack, %d accesses", what,
                 s->entry, (long long)u.spill_bytes, (long long)u.stack_bytes,
                 made.local_accesses);
}

static void none_spills_up_to_128(void **state) {
    (void)state;
    for (int a = 0; a < ARCHS; a++)
        for (int i = 0; i < (getenv("FULL") ? SPECS : FEW); i++) {
            const char *spec = specs[i].text;
            Plan p = plan_for(archs[a], spec, specs[i].tile);
            Str log = {0};
            double ms;
            Blob cubin = cubin_make(&p, archs[a], &log, &ms);
            print_message("%s %s %s: %.0f ms\n", archs[a], spec,
                          specs[i].tile ? specs[i].tile : "", ms);
            for (int k = 0; k < p.nstep; k++)
                check_step(&p, k, &cubin, log.text, spec);
            str_free(&log);
            free(cubin.data);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(none_spills_up_to_128),
    };
    if (!nvrtc_is_here())
        return 77;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
