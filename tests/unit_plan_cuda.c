/* SPDX-License-Identifier: Apache-2.0
 * Plans for GPUs: families, splits, text and identity. */
#include <time.h>

#include "gen_util.h"

/* ---- one step ----------------------------------------------------------- */

static void a_dense_forward_is_one_step(void **state) {
    (void)state;
    Plan p = plan("dtype=bf16 head_dim=128",
                  "seqlen_q=4096 seqlen_k=4096 batch=8", "H200", NULL);
    const Step *s = &p.step[0];
    CudaSmem m;
    assert_int_equal(p.nstep, 1);
    assert_int_equal(s->tile.family, TILE_mma_fwd);
    assert_int_equal(s->tile.from, FROM_MODEL);
    cuda_smem(&p.spec, &p.device, &s->tile, &m);
    assert_int_equal(s->smem_bytes, m.total);
    assert_true(s->fig.sram_footprint == (double)m.total);
    assert_int_equal(s->threads, 32 * s->tile.v[T_mma_fwd_warps]);
    assert_int_equal(s->scratch_bytes, 0);
    const int64_t dims[DIM_COUNT] = {[DIM_ONE] = 1,
                                     [DIM_BATCH] = 70000,
                                     [DIM_KV_HEADS] = 8,
                                     [DIM_ROWS] = 1000};
    int block_q = s->tile.v[T_mma_fwd_block_q];
    assert_int_equal(extent_size(&s->grid, dims),
                     70000 * 8 * ((1000 + block_q - 1) / block_q));
    assert_non_null(strstr(s->entry, "attn_fwd_bf16_d128_none__sm_90a_"));
}

/* An SM holds fewer blocks than warps: tiny ones leave it idle. */
static void short_heads_share_blocks(void **state) {
    (void)state;
    const char *few = "seqlen_q=16 seqlen_k=16 heads=16 kv_heads=16 batch=999";
    const char *alone = "seqlen_q=16 seqlen_k=16 heads=8 kv_heads=1 batch=999";
    Plan p = plan("dtype=f16", few, "A100", NULL);
    const Step *s = &p.step[0];
    int heads = s->tile.v[T_mma_fwd_heads];
    assert_true(heads >= 2);
    assert_int_equal(s->threads, 32 * heads);
    assert_true(s->fig.items == 999 * 16 / heads);
    const int64_t dims[DIM_COUNT] = {[DIM_ONE] = 1,
                                     [DIM_BATCH] = 3,
                                     [DIM_KV_HEADS] = 2 * heads + 1,
                                     [DIM_ROWS] = 16};
    assert_int_equal(extent_size(&s->grid, dims), 3 * 3);
    p = plan("dtype=f16", alone, "A100", NULL);
    assert_int_equal(p.step[0].tile.v[T_mma_fwd_heads], 0);
    p = plan("dtype=f16", "seqlen_q=512 seqlen_k=512 batch=64", "A100", NULL);
    assert_int_equal(p.step[0].tile.v[T_mma_fwd_heads], 0);
}

/* The chips' figures, not their names, make the tiles differ. */
static void tiles_differ_between_chips(void **state) {
    (void)state;
    const char *spec = "dtype=f16 head_dim=128";
    const char *shape = "seqlen_q=4096 seqlen_k=4096 batch=4 heads=16 "
                        "kv_heads=16";
    Plan t4 = plan(spec, shape, "T4", NULL);
    Plan h200 = plan(spec, shape, "H200", NULL);
    assert_memory_not_equal(t4.step[0].tile.v, h200.step[0].tile.v,
                            sizeof t4.step[0].tile.v);
    assert_true(t4.step[0].smem_bytes <= 64 * 1024);
    assert_int_equal(t4.step[0].tile.v[T_mma_fwd_stages], 2);
}

static void every_spec_has_a_plan_on_every_chip(void **state) {
    (void)state;
    static const char *const specs[] = {
        "dtype=f32 head_dim=256",
        "dtype=f32 f32_math=tf32 head_dim=1",
        "dtype=f16 head_dim=20 head_dim_v=256 mask=prefix sink=1",
        "dtype=bf16 head_dim=96 mask=window softcap=1 alibi=1",
        "dtype=bf16 head_dim=64 varlen=1 mask=causal",
        "dtype=f16 head_dim=128 lens_k=1 batch_invariant=1"};
    static const char *const shapes[] = {
        "", "seqlen_q=1 seqlen_k=100000 heads=64 kv_heads=1",
        "seqlen_q=1 seqlen_k=1", "batch=1000 seqlen_q=777 seqlen_k=13"};
    for (int i = 0; i < device_count(); i++)
        for (int k = 0; k < 24 && device_at(i)->kind == DEVICE_CUDA; k++) {
            Plan p =
                plan(specs[k % 6], shapes[k / 6], device_at(i)->name, NULL);
            for (int j = 0; j < p.nstep; j++) {
                const Step *s = &p.step[j];
                assert_int_equal(s->tile.from, FROM_MODEL);
                assert_true(s->smem_bytes <= p.device.sram_bytes);
                assert_true(s->threads >= 32 && s->threads <= 1024);
                assert_true(s->fig.time_ms > 0 && s->fig.time_ms < 1e7);
            }
        }
}

/* ---- split -------------------------------------------------------------- */

static void decoding_is_split_and_combined(void **state) {
    (void)state;
    Plan p =
        plan("dtype=f16 head_dim=128 sink=1",
             "seqlen_q=1 seqlen_k=65536 heads=32 kv_heads=8", "A100", NULL);
    assert_int_equal(p.nstep, 2);
    assert_int_equal(p.step[0].role, ROLE_fwd_split);
    assert_int_equal(p.step[1].tile.family, TILE_cuda_combine);
    int split_k = p.step[0].tile.v[T_mma_fwd_split_k];
    assert_true(split_k > 0);
    assert_int_equal(split_k % p.step[0].tile.v[T_mma_fwd_block_k], 0);
    assert_int_equal(p.step[1].tile.v[T_cuda_combine_split_k], split_k);
    assert_true(p.step[0].fig.items >= p.device.cores);
    assert_string_equal(p.buf[0].name, "part_o");
    const int64_t dims[DIM_COUNT] = {[DIM_ONE] = 1,
                                     [DIM_BATCH] = 1,
                                     [DIM_KV_HEADS] = 8,
                                     [DIM_ROWS] = 4,
                                     [DIM_SEQLEN_K] = 65536};
    int64_t splits = (65536 + split_k - 1) / split_k;
    assert_int_equal(extent_size(&p.step[0].grid, dims), 8 * splits);
    assert_int_equal(extent_size(&p.buf[1].extent, dims), 8 * splits * 4);
}

static void full_chips_are_not_split(void **state) {
    (void)state;
    static const char *const shapes[] = {"batch=64 seqlen_q=1 seqlen_k=65536",
                                         "seqlen_q=16384 seqlen_k=16384",
                                         "seqlen_q=1 seqlen_k=300"};
    for (int i = 0; i < 3; i++) {
        Plan p = plan("dtype=f16", shapes[i], "A100", NULL);
        assert_int_equal(p.nstep, 1);
    }
}

static void growing_keys_share_few_kernels(void **state) {
    (void)state;
    int kernels = 1;
    Plan before = plan("dtype=f16", "seqlen_q=1 seqlen_k=1000", "A100", NULL);
    for (int n = 1000; n < 9000; n += 111) {
        char shape[64];
        snprintf(shape, sizeof shape, "seqlen_q=1 seqlen_k=%d", n);
        Plan p = plan("dtype=f16", shape, "A100", NULL);
        kernels += !same_identity(&before, &p);
        before = p;
    }
    if (kernels > 16)
        fail_msg("%d kernels", kernels);
}

static void batch_invariant_bits_do_not_depend_on_the_batch(void **state) {
    (void)state;
    static const char *const alone[] = {"seqlen_q=1 seqlen_k=4096",
                                        "seqlen_q=777 seqlen_k=777"};
    static const char *const specs[] = {"dtype=f16 batch_invariant=1",
                                        "dtype=f32 batch_invariant=1 varlen=1"};
    for (int i = 0; i < 4; i++) {
        char many[96];
        snprintf(many, sizeof many, "%s batch=64", alone[i % 2]);
        Plan p = plan(specs[i / 2], alone[i % 2], "H200", NULL);
        Plan q = plan(specs[i / 2], many, "H200", NULL);
        const Tile *t = &p.step[0].tile, *u = &q.step[0].tile;
        int split = tile_field_index(t->family, "split_k");
        assert_int_equal(p.nstep, q.nstep);
        assert_int_equal(t->v[1], u->v[1]);
        assert_int_equal(t->v[split], u->v[split]);
    }
}

/* ---- the ladder --------------------------------------------------------- */

static void pins_and_avoided_tiles(void **state) {
    (void)state;
    Device d = device("A100");
    Plan p = plan_on(&d, "dtype=f16", "", &(Pins){.tile = "rows=32,warps=2"});
    assert_int_equal(p.step[0].tile.from, FROM_PIN);
    assert_int_equal(p.step[0].tile.v[T_mma_fwd_block_q], 64);
    Tile seen[4];
    for (int i = 0; i < 4; i++) {
        p = plan_on(&d, "dtype=f16", "", &(Pins){.avoid = seen, .navoid = i});
        seen[i] = p.step[0].tile;
        for (int k = 0; k < i; k++) {
            attnc_spec s = p.spec;
            int wants = tile_cuda_registers(&s, &d, &seen[i]);
            assert_true(wants != tile_cuda_registers(&s, &d, &seen[k]) ||
                        tile_cuda_register_limit(&d, &seen[i]) >
                            tile_cuda_register_limit(&d, &seen[k]));
        }
    }
    p = plan_on(&d, "dtype=f16", "",
                &(Pins){.tile = "split_k=512,"
                                "merge_rows=3"});
    assert_int_equal(p.step[1].tile.v[T_cuda_combine_merge_rows], 3);
}

static void there_is_no_built_in_kernel(void **state) {
    (void)state;
    Device d = device("A100");
    Err e = {0};
    Plan p;
    assert_int_equal(plan_choose(&ATTNC_SPEC_DEFAULT, &ATTNC_SHAPE_DEFAULT, &d,
                                 &(Pins){.builtin = true}, &p, &e),
                     ERR_REQUEST);
    assert_string_equal(e.text, "plan: target: sm_80 has no built-in kernel; "
                                "nearest: cpu");
}

/* ---- text --------------------------------------------------------------- */

static void plans_read_back(void **state) {
    (void)state;
    static const char *const names[] = {"T4", "H200", "emu:sm_80"};
    for (int i = 0; i < 6; i++) {
        Plan p =
            plan("dtype=f16 mask=causal",
                 i / 3 ? "seqlen_q=1 seqlen_k=9000" : "", names[i % 3], NULL);
        Plan again;
        Err e = {0};
        Str a = {0}, b = {0};
        plan_print(&p, &a);
        if (plan_parse(a.text, &again, &e))
            fail_msg("%s", e.text);
        plan_print(&again, &b);
        assert_string_equal(a.text, b.text);
        assert_int_equal(again.device.kind, p.device.kind);
        str_free(&a);
        str_free(&b);
    }
}

static void what_templates_read_is_identity(void **state) {
    (void)state;
    const char *pin = "block_q=64,block_k=64,warps=4,rows=16,stages=2,"
                      "q_regs=0,blocks=1,split_k=0";
    Pins pins = {.tile = pin};
    Device d = device("sm_80"), emu = device("emu:sm_80"), old = d;
    old.cp_async = 0;
    Plan p = plan_on(&d, "dtype=f16", "", &pins);
    Plan promise = plan_on(&d, "dtype=f16", "mult_k=64", &pins);
    Plan hint = plan_on(&d, "dtype=f16", "seqlen_k=512", &pins);
    Plan emulated = plan_on(&emu, "dtype=f16", "", &pins);
    Plan without = plan_on(&old, "dtype=f16", "", &pins);
    assert_true(same_identity(&p, &hint));
    assert_false(same_identity(&p, &promise));
    assert_false(same_identity(&p, &emulated));
    assert_false(same_identity(&p, &without));
}

static void only_gpus_are_emulated(void **state) {
    (void)state;
    Device d;
    Err e = {0};
    assert_int_equal(device_find("emu:avx2", &d, &e), ERR_REQUEST);
    assert_string_equal(e.text, "device: emu:avx2: only GPUs are emulated; "
                                "nearest: emu:sm_80");
    d = device("emu:T4");
    assert_int_equal(d.kind, DEVICE_EMULATED);
    assert_string_equal(d.arch, "sm_75");
}

static void a_plan_takes_little_time(void **state) {
    (void)state;
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < 10; i++)
        plan("dtype=bf16 head_dim=128 mask=causal",
             "seqlen_q=2048 seqlen_k=32768", "H200", NULL);
    clock_gettime(CLOCK_MONOTONIC, &b);
    double ms = (double)(b.tv_sec - a.tv_sec) * 1e2 +
                (double)(b.tv_nsec - a.tv_nsec) * 1e-7;
    print_message("%.2f ms a plan\n", ms);
    assert_true(ms < 200); /* 5 ms and less; slow with sanitizers */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_dense_forward_is_one_step),
        cmocka_unit_test(short_heads_share_blocks),
        cmocka_unit_test(tiles_differ_between_chips),
        cmocka_unit_test(every_spec_has_a_plan_on_every_chip),
        cmocka_unit_test(decoding_is_split_and_combined),
        cmocka_unit_test(full_chips_are_not_split),
        cmocka_unit_test(growing_keys_share_few_kernels),
        cmocka_unit_test(batch_invariant_bits_do_not_depend_on_the_batch),
        cmocka_unit_test(pins_and_avoided_tiles),
        cmocka_unit_test(there_is_no_built_in_kernel),
        cmocka_unit_test(plans_read_back),
        cmocka_unit_test(what_templates_read_is_identity),
        cmocka_unit_test(only_gpus_are_emulated),
        cmocka_unit_test(a_plan_takes_little_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
