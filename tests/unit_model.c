/* SPDX-License-Identifier: Apache-2.0
 * The IO model: what it counts is exact, what it predicts has the shape the
 * paper proves. */
#include <math.h>

#include "gen_util.h"

/* ---- visible pairs ----------------------------------------------------- */

static bool sees(int mask, int64_t q, int64_t k, int64_t nq, int64_t nk) {
    int64_t off = nk - nq, part = nk / 8;
    switch (mask) {
    case ATTNC_MASK_CAUSAL:
        return k <= q + off;
    case ATTNC_MASK_WINDOW:
        return q + off - part <= k && k <= q + off;
    case ATTNC_MASK_PREFIX:
        return k < part || k <= q + off;
    default:
        return true;
    }
}

static void visible_pairs_are_exact(void **state) {
    (void)state;
    static const int sizes[] = {1, 2, 3, 7, 8, 9, 16, 31, 64, 100};
    enum { N = sizeof sizes / sizeof *sizes };
    for (int mask = ATTNC_MASK_NONE; mask <= ATTNC_MASK_PREFIX; mask++) {
        for (int i = 0; i < N * N; i++) {
            int64_t nq = sizes[i / N], nk = sizes[i % N], count = 0;
            attnc_spec s = ATTNC_SPEC_DEFAULT;
            attnc_shape h = ATTNC_SHAPE_DEFAULT;
            s.mask = mask;
            h.seqlen_q = nq;
            h.seqlen_k = nk;
            for (int64_t q = 0; q < nq; q++) {
                for (int64_t k = 0; k < nk; k++)
                    count += sees(mask, q, k, nq, nk);
            }
            assert_true(model_visible(&s, &h) == (double)count);
        }
    }
}

static void visible_pairs_do_not_overflow(void **state) {
    (void)state;
    attnc_spec s = spec("mask=causal");
    attnc_shape h = shape("seqlen_q=2147483647 seqlen_k=2147483647");
    double n = 2147483647.0;
    assert_true(fabs(model_visible(&s, &h) / (n * (n + 1) / 2) - 1) < 1e-12);
}

/* ---- counts ------------------------------------------------------------ */

static Figures figures(const char *spec_text, const char *shape_text,
                       const Device *d, const Tile *t) {
    attnc_spec s = spec(spec_text);
    attnc_shape h = shape(shape_text);
    Figures f;
    model_figures(&s, &h, d, t, &f);
    return f;
}

static void flops_and_compulsory_bytes_are_exact(void **state) {
    (void)state;
    Device d = device("avx2");
    Tile t = avx2_tile("copy_kv=1");
    Figures f =
        figures("dtype=f16 head_dim=40 head_dim_v=72",
                "batch=3 heads=6 kv_heads=2 seqlen_q=100 seqlen_k=70", &d, &t);
    assert_true(f.flops == 2.0 * (40 + 72) * 3 * 6 * 100 * 70);
    assert_true(f.exp2s == 3.0 * 6 * 100 * 70);
    assert_true(f.dram_bytes == 3.0 * 6 * 100 * (40 + 72) * 2 +
                                    3.0 * 2 * 70 * (40 + 72) * 2 +
                                    3.0 * 6 * 100 * 4);
    assert_true(f.items == 3.0 * 2 * 1); /* 300 rows of a kv head: one block */
}

/* K and V once per block of rows, Q and O once: by hand. */
static void sram_traffic_is_that_of_the_loop_order(void **state) {
    (void)state;
    Device d = device("avx2");
    Tile t = avx2_tile("block_q=384");
    Figures f =
        figures("", "heads=2 kv_heads=2 seqlen_q=3840 seqlen_k=1000", &d, &t);
    double kv = 2 * 10 * 1000.0 * 128 * 4, qo = 2 * 3840.0 * 128 * 4;
    assert_true(f.sram_bytes == kv + qo + 2 * 3840 * 4);
    assert_true(f.items == 20);
    Figures causal = figures("mask=causal",
                             "heads=2 kv_heads=2 seqlen_q=3840 "
                             "seqlen_k=3840",
                             &d, &t);
    double blocks = 0; /* block i reads up to its last row's key */
    for (int i = 1; i <= 10; i++)
        blocks += i * 384.0;
    double exact = 2 * blocks * 128 * 4 + qo + 2 * 3840 * 4;
    assert_true(fabs(causal.sram_bytes / exact - 1) < 0.02);
}

static void footprint_is_the_emitted_scratch(void **state) {
    (void)state;
    attnc_spec s = spec("head_dim=72 alibi=1");
    Device d = device("avx512");
    Tile t = avx2_tile("vecs=4,block_q=256,copy_kv=1");
    CpuScratch c;
    cpu_scratch(&s, &d, &t, &c);
    assert_int_equal(model_scratch_bytes(&s, &d, &t), c.total);
    assert_true(figures("head_dim=72 alibi=1", "", &d, &t).sram_footprint ==
                (double)c.total);
    t = tile_safe(&d, TILE_builtin);
    assert_int_equal(model_scratch_bytes(&s, &d, &t), builtin_scratch(&s));
}

/* ---- the paper's leading term ------------------------------------------ */

/* Traffic of the tile that is chosen for a device with this much SRAM. */
static double chosen_traffic(const char *spec_text, const char *shape_text,
                             double sram) {
    attnc_spec s = spec(spec_text);
    attnc_shape h = shape(shape_text);
    Device d = device("avx2");
    Plan p;
    Err e = {0};
    d.cores = 1;
    d.sram_bytes = sram;
    /* A memory-bound machine: what it chooses is what moves least. */
    d.llc_gbs = 2;
    d.dram_gbs = 1;
    if (plan_choose(&s, &h, &d, NULL, &p, &e))
        fail_msg("%s", e.text);
    return p.step[0].fig.sram_bytes;
}

/* Slope of log(traffic) over log(x), by least squares. */
static double slope(const double *x, const double *y, int n) {
    double sx = 0, sy = 0, sxx = 0, sxy = 0;
    for (int i = 0; i < n; i++) {
        double lx = log(x[i]), ly = log(y[i]);
        sx += lx;
        sy += ly;
        sxx += lx * lx;
        sxy += lx * ly;
    }
    return (n * sxy - sx * sy) / (n * sxx - sx * sx);
}

/* Theta(N^2 d^2 / M): halves when M doubles, with Q and O taken off. */
static void traffic_falls_as_one_over_sram(void **state) {
    (void)state;
    static const char *const masks[] = {"mask=none", "mask=causal"};
    double once = 8 * 65536.0 * (128 * 4 + 4);
    for (int m = 0; m < 2; m++) {
        double x[12], y[12];
        int n = 0;
        for (double sram = 128 * 1024; sram <= 4 << 20; sram *= 2) {
            x[n] = sram;
            y[n++] = chosen_traffic(masks[m], "seqlen_q=65536 seqlen_k=65536",
                                    sram) -
                     once;
        }
        assert_true(fabs(slope(x, y, n) + 1) < 0.1);
    }
}

static void traffic_grows_as_the_square_of_lengths_and_dims(void **state) {
    (void)state;
    static const char *const shapes[] = {
        "seqlen_q=16384 seqlen_k=16384", "seqlen_q=32768 seqlen_k=32768",
        "seqlen_q=65536 seqlen_k=65536", "seqlen_q=131072 seqlen_k=131072"};
    static const char *const specs[] = {"head_dim=32", "head_dim=64",
                                        "head_dim=128", "head_dim=256"};
    double n[4], d[4], by_n[4], by_d[4];
    for (int i = 0; i < 4; i++) {
        n[i] = 16384 << i;
        by_n[i] = chosen_traffic("", shapes[i], 1 << 20);
        d[i] = 32 << i;
        by_d[i] = chosen_traffic(specs[i], shapes[2], 1 << 20) -
                  8 * 65536.0 * (2 * d[i] * 4 + 4);
    }
    assert_true(fabs(slope(n, by_n, 4) - 2) < 0.1);
    assert_true(fabs(slope(d, by_d, 4) - 2) < 0.15);
}

/* ---- times ------------------------------------------------------------- */

static void times_are_finite_and_below_the_peak(void **state) {
    (void)state;
    static const char *const archs[] = {"avx2", "avx512", "avx512bf16", "neon",
                                        "portable"};
    static const char *const specs[] = {
        "head_dim=1", "head_dim=256 mask=window", "dtype=bf16 mask=causal",
        "dtype=f16 head_dim=8 head_dim_v=256 mask=prefix softcap=1 alibi=1"};
    static const char *const shapes[] = {
        "seqlen_q=1 seqlen_k=1", "seqlen_q=1000 seqlen_k=3",
        "seqlen_q=3 seqlen_k=1000000", "batch=1000 heads=32 kv_heads=2"};
    for (int i = 0; i < 5 * 4 * 4; i++) {
        attnc_spec s = spec(specs[i / 4 % 4]);
        attnc_shape h = shape(shapes[i % 4]);
        Device d = device(archs[i / 16]);
        Plan p;
        Err e = {0};
        assert_int_equal(plan_choose(&s, &h, &d, NULL, &p, &e), 0);
        const Figures *f = &p.step[0].fig;
        double peak = s.dtype == ATTNC_BF16 && d.bf16_tflops ? d.bf16_tflops
                                                             : d.f32_tflops;
        assert_true(isfinite(f->time_ms) && f->time_ms > 0);
        assert_true(f->flops <= f->time_ms * 1e9 * peak);
        assert_true(f->time_ms >= f->dram_ms && f->time_ms >= f->sram_ms);
        assert_non_null(f->bound);
    }
}

/* Measured on Zen 3 and Zen 5: see docs/io-model.md. */
static void dense_forward_is_near_the_measured_share_of_peak(void **state) {
    (void)state;
    attnc_spec s = spec("");
    attnc_shape h = shape("seqlen_q=4096 seqlen_k=4096");
    Device d = device("avx2");
    Plan p;
    Err e = {0};
    assert_int_equal(plan_choose(&s, &h, &d, NULL, &p, &e), 0);
    const Figures *f = &p.step[0].fig;
    double share = f->flops / (f->time_ms * 1e9 * d.f32_tflops);
    assert_true(share > 0.80 && share < 0.95);
    assert_string_equal(f->bound, "compute");
}

static void bounds_are_named(void **state) {
    (void)state;
    Device d = device("avx2");
    Tile one = avx2_tile("vecs=1,keys=8,dims=8,block_q=8");
    assert_string_equal(
        figures("", "seqlen_q=1 seqlen_k=100000", &d, &one).bound, "dram");
    Tile big = avx2_tile("");
    assert_string_equal(figures("",
                                "heads=9 kv_heads=9 seqlen_q=384 "
                                "seqlen_k=4096",
                                &d, &big)
                            .bound,
                        "waves");
    d.llc_gbs = d.dram_gbs = 0.01;
    assert_string_equal(
        figures("", "seqlen_q=4096 seqlen_k=4096", &d, &big).bound, "sram");
}

static void more_cores_are_never_slower(void **state) {
    (void)state;
    double before = INFINITY;
    for (int cores = 1; cores <= 64; cores *= 2) {
        attnc_spec s = spec("mask=causal");
        attnc_shape h = shape("heads=4 kv_heads=4 seqlen_q=2048 "
                              "seqlen_k=2048");
        Device d = device("avx2");
        Plan p;
        Err e = {0};
        d.f32_tflops *= cores / d.cores;
        d.cores = cores;
        assert_int_equal(plan_choose(&s, &h, &d, NULL, &p, &e), 0);
        assert_true(p.step[0].fig.time_ms <= before);
        before = p.step[0].fig.time_ms;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(visible_pairs_are_exact),
        cmocka_unit_test(visible_pairs_do_not_overflow),
        cmocka_unit_test(flops_and_compulsory_bytes_are_exact),
        cmocka_unit_test(sram_traffic_is_that_of_the_loop_order),
        cmocka_unit_test(footprint_is_the_emitted_scratch),
        cmocka_unit_test(traffic_falls_as_one_over_sram),
        cmocka_unit_test(traffic_grows_as_the_square_of_lengths_and_dims),
        cmocka_unit_test(times_are_finite_and_below_the_peak),
        cmocka_unit_test(dense_forward_is_near_the_measured_share_of_peak),
        cmocka_unit_test(bounds_are_named),
        cmocka_unit_test(more_cores_are_never_slower),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
