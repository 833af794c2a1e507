/* SPDX-License-Identifier: Apache-2.0
 * The IO model of GPUs: bytes by hand, orders that must hold, and published
 * measurements within a factor. */
#include <math.h>

#include "gen_util.h"

static Figures figures(const Device *d, const char *spec_text,
                       const char *shape_text, const char *pairs) {
    attnc_spec s = spec(spec_text);
    attnc_shape h = shape(shape_text);
    Err e = {0};
    Figures f;
    char why[TILE_WHY];
    Tile t = {.family = cuda_family(&s, d)};
    assert_int_equal(tile_parse(pairs, &t, &e), 0);
    if (!tile_legal(&s, &h, d, &t, why))
        fail_msg("%s: %s", pairs, why);
    model_figures(&s, &h, d, &t, &f);
    return f;
}

#define FA2 "block_q=128,block_k=64,warps=4,rows=32,stages=2,blocks=2"
#define LONG "batch=2 heads=16 kv_heads=16 seqlen_q=8192 seqlen_k=8192"

static void bytes_by_hand(void **state) {
    (void)state;
    Device d = device("A100");
    Figures f = figures(&d, "dtype=f16 head_dim=128", LONG, FA2);
    double rows = 2 * 16 * 8192.0;
    assert_true(f.dram_bytes == rows * (4 * 128 * 2 + 4));
    /* Q, O, LSE once; K, V once for each of the 64 blocks of rows. */
    assert_true(f.sram_bytes ==
                rows * (2 * 128 * 2 + 4) + 64 * rows * 2 * 128 * 2);
    assert_true(f.flops == 4.0 * rows * 8192 * 128);
    assert_true(f.exp2s == rows * 8192);
    assert_true(f.items == 2 * 16 * 64);
    assert_true(f.sram_footprint == 65536);
    assert_true(f.occupancy == 256.0 / 2048);
}

/* Heads that share keys share their blocks: K and V are read less often. */
static void shared_heads_save_traffic(void **state) {
    (void)state;
    Device d = device("A100");
    const char *few = "heads=32 kv_heads=4 seqlen_q=1024 seqlen_k=1024";
    const char *all = "heads=32 kv_heads=32 seqlen_q=1024 seqlen_k=1024";
    Figures a = figures(&d, "dtype=f16 head_dim=128", few, FA2);
    Figures b = figures(&d, "dtype=f16 head_dim=128", all, FA2);
    assert_true(a.dram_bytes < 0.6 * b.dram_bytes);
    assert_true(a.items == b.items);
}

/* 32 rows a warp read K and V half as often as 16. */
static void rows_per_warp_halve_shared_memory_reads(void **state) {
    (void)state;
    Device d = device("A100");
    Figures wide = figures(&d, "dtype=f16 head_dim=64", LONG,
                           "block_q=128,block_k=64,warps=4,rows=32,stages=2,"
                           "q_regs=1,blocks=1");
    Figures thin = figures(&d, "dtype=f16 head_dim=64", LONG,
                           "block_q=128,block_k=64,warps=8,rows=16,stages=2,"
                           "q_regs=1,blocks=1");
    double ratio = thin.smem_ms / wide.smem_ms;
    assert_true(ratio > 1.7 && ratio < 2);
    assert_true(fabs(thin.product_ms / wide.product_ms - 1) < 1e-9);
}

/* Every better figure helps or does not matter. */
static void better_chips_are_never_slower(void **state) {
    (void)state;
    static const char *const better[] = {"dram_gbs=4000",  "llc_gbs=9000",
                                         "f16_tflops=400", "exp2_gops=9000",
                                         "clock_ghz=1.7",  "sram_width=256"};
    Device d = device("A100");
    Figures f = figures(&d, "dtype=f16 head_dim=64 mask=causal", LONG, FA2);
    for (size_t i = 0; i < sizeof better / sizeof *better; i++) {
        Device e = d;
        Err err = {0};
        assert_int_equal(device_override(&e, better[i], &err), 0);
        Figures g = figures(&e, "dtype=f16 head_dim=64 mask=causal", LONG, FA2);
        if (g.time_ms > f.time_ms * 1.0001)
            fail_msg("%s: %g ms, was %g", better[i], g.time_ms, f.time_ms);
    }
}

/* What ends up limiting, where it is known. */
static void the_bound_is_named(void **state) {
    (void)state;
    Device h200 = device("H200"), t4 = device("T4");
    Figures f = figures(&h200, "dtype=f16 head_dim=128", LONG, FA2);
    assert_string_equal(f.bound, "smem");
    h200.sram_width = 256;
    f = figures(&h200, "dtype=f16 head_dim=128", LONG, FA2);
    assert_string_equal(f.bound, "tensor");
    f = figures(&t4, "dtype=bf16 head_dim=64", LONG,
                "block_q=64,block_k=32,warps=4,rows=16,stages=2,blocks=1");
    assert_true(f.product_ms > 0 && f.registers > 0);
    f = figures(&h200, "dtype=f16 head_dim=128",
                "batch=64 heads=32 kv_heads=32 seqlen_q=1 seqlen_k=8192",
                "block_q=16,block_k=64,warps=1,rows=16,stages=4,blocks=3");
    assert_string_equal(f.bound, "dram");
}

/* FlashAttention-2's own tiles against its published rates, and a hand-made
 * kernel on the RTX 5090: within a factor of 1.4. */
static void published_rates_are_near(void **state) {
    (void)state;
    static const struct {
        const char *gpu, *spec, *tile;
        double tflops;
    } rows[] = {
        {"A100", "dtype=f16 head_dim=128", FA2, 204},
        {"A100", "dtype=f16 head_dim=128 mask=causal", FA2, 186},
        {"RTX 4090", "dtype=f16 head_dim=64",
         "block_q=128,block_k=128,warps=4,rows=32,stages=2,blocks=1", 167},
        {"RTX 5090", "dtype=bf16 head_dim=128",
         "block_q=64,block_k=64,warps=4,rows=16,stages=3,q_regs=1,blocks=2",
         198},
        {"H100", "dtype=f16 head_dim=128", FA2, 370},
        {"H100", "dtype=f16 head_dim=64",
         "block_q=128,block_k=128,warps=4,rows=32,stages=2,blocks=1", 322},
        {"RTX 3090", "dtype=f16 head_dim=128",
         "block_q=128,block_k=32,warps=4,rows=32,stages=2,blocks=2", 71},
        {"T4", "dtype=f16 head_dim=128",
         "block_q=128,block_k=64,warps=8,rows=16,stages=2,q_regs=1,blocks=1",
         42},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        Device d = device(rows[i].gpu);
        Figures f = figures(&d, rows[i].spec, LONG, rows[i].tile);
        double tflops = f.flops / f.time_ms * 1e-9;
        print_message("%-9s %-36s %4.0f predicted, %4.0f published\n",
                      rows[i].gpu, rows[i].spec, tflops, rows[i].tflops);
        assert_true(tflops < 1.4 * rows[i].tflops);
        assert_true(tflops > rows[i].tflops / 1.4);
    }
}

/* Longer, then more: never faster. */
static void more_work_takes_longer(void **state) {
    (void)state;
    Device d = device("RTX 4090");
    double before = 0;
    for (int n = 64; n <= 65536; n *= 2) {
        char shape[64];
        snprintf(shape, sizeof shape, "seqlen_q=%d seqlen_k=%d", n, n);
        Figures f = figures(&d, "dtype=f16 mask=causal", shape, FA2);
        assert_true(f.time_ms >= before);
        before = f.time_ms;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_by_hand),
        cmocka_unit_test(shared_heads_save_traffic),
        cmocka_unit_test(rows_per_warp_halve_shared_memory_reads),
        cmocka_unit_test(better_chips_are_never_slower),
        cmocka_unit_test(the_bound_is_named),
        cmocka_unit_test(published_rates_are_near),
        cmocka_unit_test(more_work_takes_longer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
