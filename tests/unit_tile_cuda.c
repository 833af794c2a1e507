/* SPDX-License-Identifier: Apache-2.0
 * Tiles for GPUs: legality from numbers alone, shared memory, the search. */
#include "gen_util.h"

static const char *const gpus[] = {"T4",   "A100", "RTX 3090", "RTX 4090",
                                   "H200", "B200", "RTX 5090"};
enum { GPUS = 7 };

static Tile tile(int family, const char *pairs) {
    Tile t = {.family = family};
    Err e = {0};
    if (tile_parse(pairs, &t, &e))
        fail_msg("%s", e.text);
    return t;
}

/* The tile FlashAttention-2 takes for d = 128 on an A100. */
static const char fa2[] = "block_q=128,block_k=64,warps=4,rows=32,stages=2,"
                          "blocks=2";

static void expect_illegal(const Device *d, const char *spec_text,
                           const char *changes, const char *reason) {
    attnc_spec s = spec(spec_text);
    Tile t = tile(TILE_mma_fwd, fa2);
    Err e = {0};
    char why[TILE_WHY];
    assert_int_equal(tile_parse(changes, &t, &e), 0);
    assert_false(tile_legal(&s, &ATTNC_SHAPE_DEFAULT, d, &t, why));
    assert_string_equal(why, reason);
}

static void a_known_good_tile_is_legal(void **state) {
    (void)state;
    attnc_spec s = spec("dtype=f16 head_dim=128");
    Device d = device("A100");
    Tile t = tile(TILE_mma_fwd, fa2);
    char why[TILE_WHY];
    if (!tile_legal(&s, &ATTNC_SHAPE_DEFAULT, &d, &t, why))
        fail_msg("%s", why);
}

static void reasons_name_the_limit(void **state) {
    (void)state;
    Device a100 = device("A100"), t4 = device("T4"), cpu = device("avx2");
    const char *s = "dtype=f16 head_dim=128";
    expect_illegal(&cpu, s, "", "family mma_fwd needs a GPU, not avx2");
    expect_illegal(&a100, s, "block_q=64",
                   "block_q=64 is not warps*rows = 128; nearest block_q=128");
    expect_illegal(&a100, s, "block_k=72",
                   "block_k=72 is not a multiple of 16; nearest 80");
    expect_illegal(&a100, s, "rows=24",
                   "rows=24 is not a multiple of 16; nearest 32");
    expect_illegal(&a100, s, "split_k=96",
                   "split_k=96 is not a multiple of block_k = 64; nearest 128");
    expect_illegal(&a100, s, "block_k=256",
                   "blocks=2 need 329728 bytes of SRAM, an SM has 167936");
    expect_illegal(&a100, s, "block_k=256,blocks=1",
                   "wants 498 registers a thread, there are 255 with blocks=1");
    expect_illegal(&a100, s, "blocks=33",
                   "blocks=33 is out of range; accepted 1..32");
    expect_illegal(&a100, s, "heads=2",
                   "heads=2, a warp for each, but warps=4; nearest heads=4");
    expect_illegal(&a100, s, "heads=4",
                   "block_q=128 is not rows = 32; nearest block_q=32");
    expect_illegal(&t4, s, "stages=3",
                   "stages=3 is out of range; accepted 2..2");
    expect_illegal(&t4, s, "block_q=256,warps=8,blocks=1",
                   "needs 98304 bytes of SRAM, a block has 65536");
    expect_illegal(&t4, "dtype=bf16", "",
                   "sm_75 has no mma.sync for bf16; nearest family fma_fwd");
    expect_illegal(&t4, "f32_math=tf32", "",
                   "sm_75 has no mma.sync for tf32; nearest family fma_fwd");
    expect_illegal(&a100, "dtype=f32", "",
                   "family mma_fwd rounds f32 to tf32, which f32_math=ieee "
                   "forbids; nearest fma_fwd");
}

/* A chip nobody knows is served by its numbers. */
static void numbers_decide_not_names(void **state) {
    (void)state;
    attnc_spec s = spec("dtype=bf16 head_dim=128");
    Device d = device("T4");
    Err e = {0};
    char why[TILE_WHY];
    Tile t = tile(TILE_mma_fwd, fa2);
    assert_false(tile_legal(&s, &ATTNC_SHAPE_DEFAULT, &d, &t, why));
    assert_int_equal(device_override(&d,
                                     "mma_k=16,cp_async=1,sram_bytes=2e5,"
                                     "sram_core_bytes=3e5,bf16_tflops=65",
                                     &e),
                     0);
    assert_true(tile_legal(&s, &ATTNC_SHAPE_DEFAULT, &d, &t, why));
    assert_int_equal(device_override(&d, "mma_k=4", &e), ERR_REQUEST);
    assert_string_equal(e.text, "device: mma_k: 4 is not accepted; accepted: "
                                "0 8 16");
}

static const char *const specs[] = {
    "dtype=f16 head_dim=1",
    "dtype=f16 head_dim=256",
    "dtype=bf16 head_dim=80 head_dim_v=256",
    "dtype=f32 head_dim=256",
    "dtype=f32 head_dim=3 head_dim_v=250",
    "dtype=f32 f32_math=tf32 head_dim=256",
    "dtype=bf16 head_dim=256 mask=window alibi=1 softcap=1",
};
enum { SPECS = 7 };

static void the_safe_tile_is_legal_for_every_spec(void **state) {
    (void)state;
    for (int i = 0; i < GPUS; i++) {
        for (int k = 0; k < SPECS; k++) {
            attnc_spec s = spec(specs[k]);
            Device d = device(gpus[i]);
            char why[TILE_WHY];
            const int families[] = {cuda_family(&s, &d), TILE_cuda_combine};
            for (int f = 0; f < 2; f++) {
                Tile t = tile_safe(&d, families[f]);
                if (!tile_legal(&s, &ATTNC_SHAPE_DEFAULT, &d, &t, why))
                    fail_msg("%s %s: %s", gpus[i], specs[k], why);
            }
        }
    }
}

static void families_follow_from_dtype_and_units(void **state) {
    (void)state;
    static const struct {
        const char *gpu, *spec;
        int family;
    } rows[] = {
        {"T4", "dtype=f16", TILE_mma_fwd},
        {"T4", "dtype=f16 head_dim=256", TILE_mma_fwd},
        {"T4", "dtype=bf16", TILE_fma_fwd},
        {"T4", "dtype=f32 f32_math=tf32", TILE_fma_fwd},
        {"A100", "dtype=bf16", TILE_mma_fwd},
        {"A100", "dtype=f32", TILE_fma_fwd},
        {"A100", "dtype=f32 f32_math=tf32", TILE_mma_fwd},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        attnc_spec s = spec(rows[i].spec);
        Device d = device(rows[i].gpu);
        assert_int_equal(cuda_family(&s, &d), rows[i].family);
    }
}

/* ---- shared memory ------------------------------------------------------ */

static void check_layout(const attnc_spec *s, const Device *d, const Tile *t) {
    CudaSmem m;
    bool mma = t->family == TILE_mma_fwd;
    int elem = mma ? dtype_bytes(s->dtype) : 4;
    int rows = t->v[0], keys = t->v[1], stages = t->v[4];
    cuda_smem(s, d, t, &m);
    assert_true(m.dim >= s->head_dim && m.dim_v >= s->head_dim_v);
    assert_true(m.dim < s->head_dim + (mma ? 16 : 4));
    assert_true(m.dim_v < s->head_dim_v + 8);
    assert_int_equal(m.k_stages + m.v_stages, stages);
    assert_true(m.k_stages - m.v_stages == 0 || m.k_stages - m.v_stages == 1);
    assert_true(m.k_bytes >= keys * m.dim * elem);
    assert_true(m.v_bytes >= keys * m.dim_v * elem);
    assert_int_equal(m.v, m.k + m.k_stages * m.k_bytes);
    assert_true(m.v + m.v_stages * m.v_bytes <= m.team);
    assert_true(m.q + rows * m.dim * elem <= m.team);
    assert_true(m.o + rows * m.dim_v * elem <= m.team);
    if (mma && t->v[T_mma_fwd_q_regs])
        assert_true(m.q >= m.k + m.k_bytes); /* the first K arrives with Q */
    else
        assert_true(m.q + rows * m.dim * elem <= m.k);
    int heads = t->v[mma ? T_mma_fwd_heads : T_fma_fwd_heads];
    assert_int_equal(m.total, m.team * (heads ? heads : 1));
    if (mma)
        assert_true(m.q % 1024 == 0 && m.k % 1024 == 0 && m.v % 1024 == 0);
    else
        assert_true(m.q_pitch / 16 % 2 == 1 && m.p_pitch % 128 == 32);
    assert_int_equal(m.total % 16, 0);
}

typedef struct Each {
    const attnc_spec *s;
    const Device *d;
    int legal, all;
} Each;

static void visit(void *user, const Tile *t) {
    Each *e = user;
    char why[TILE_WHY];
    e->all++;
    if (!tile_legal(e->s, &ATTNC_SHAPE_DEFAULT, e->d, t, why)) {
        assert_true(strlen(why) > 10);
        return;
    }
    e->legal++;
    check_layout(e->s, e->d, t);
}

static void every_legal_tile_has_a_sound_layout(void **state) {
    (void)state;
    for (int i = 0; i < GPUS; i++) {
        for (int k = 0; k < SPECS; k++) {
            attnc_spec s = spec(specs[k]);
            Device d = device(gpus[i]);
            Each e = {&s, &d, 0, 0};
            tile_each(&s, &ATTNC_SHAPE_DEFAULT, &d, cuda_family(&s, &d), visit,
                      &e);
            if (e.legal < 1)
                fail_msg("%s %s: none of %d", gpus[i], specs[k], e.all);
        }
    }
}

static void known_sizes(void **state) {
    (void)state;
    attnc_spec s = spec("dtype=f16 head_dim=128");
    Device d = device("RTX 5090");
    CudaSmem m;
    Tile t = tile(TILE_mma_fwd, fa2);
    cuda_smem(&s, &d, &t, &m);
    assert_int_equal(m.total, 64 * 1024);
    t = tile(TILE_mma_fwd, "block_q=64,block_k=64,warps=4,rows=16,stages=3,"
                           "q_regs=1,blocks=2");
    cuda_smem(&s, &d, &t, &m);
    assert_int_equal(m.total, 48 * 1024);
    assert_int_equal(m.q, 32 * 1024);
    s = spec("dtype=f16 head_dim=40 head_dim_v=72");
    cuda_smem(&s, &d, &t, &m);
    assert_int_equal(m.dim, 48);
    assert_int_equal(m.dim_v, 72);
}

/* ---- the search --------------------------------------------------------- */

enum { MANY = 8000 };
static Candidate found[MANY];

static void the_search_holds_what_others_measured_best(void **state) {
    (void)state;
    static const struct {
        const char *gpu, *spec, *tile;
    } rows[] = {
        {"A100", "dtype=f16 head_dim=128", fa2},
        {"A100", "dtype=f16 head_dim=64",
         "block_q=128,block_k=128,warps=4,rows=32,stages=2,blocks=1"},
        {"RTX 5090", "dtype=bf16 head_dim=128",
         "block_q=64,block_k=64,warps=4,rows=16,stages=3,q_regs=1,blocks=2"},
        {"RTX 4090", "dtype=f16 head_dim=128",
         "block_q=128,block_k=128,warps=8,rows=16,stages=2,q_regs=1,blocks=1"},
        {"T4", "dtype=f16 head_dim=128",
         "block_q=128,block_k=64,warps=8,rows=16,stages=2,q_regs=1,blocks=1"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        attnc_spec s = spec(rows[i].spec);
        Device d = device(rows[i].gpu);
        attnc_shape h = ATTNC_SHAPE_DEFAULT;
        Tile want = tile(TILE_mma_fwd, rows[i].tile);
        h.seqlen_q = h.seqlen_k = 8192;
        int n = tile_enumerate(&s, &h, &d, TILE_mma_fwd, found, MANY);
        bool among = false;
        assert_true(n > 100 && n < MANY);
        for (int k = 0; k < n; k++)
            among |= found[k].legal &&
                     !memcmp(found[k].tile.v, want.v, sizeof want.v);
        if (!among)
            fail_msg("%s: %s", rows[i].gpu, rows[i].tile);
    }
}

static int by_tile(const void *a, const void *b) {
    return memcmp(((const Candidate *)a)->tile.v,
                  ((const Candidate *)b)->tile.v, sizeof found->tile.v);
}

static void the_search_has_no_tile_twice(void **state) {
    (void)state;
    for (int i = 0; i < GPUS; i++) {
        for (int k = 0; k < SPECS; k++) {
            attnc_spec s = spec(specs[k]);
            Device d = device(gpus[i]);
            int n = tile_enumerate(&s, &ATTNC_SHAPE_DEFAULT, &d,
                                   cuda_family(&s, &d), found, MANY);
            qsort(found, (size_t)n, sizeof *found, by_tile);
            for (int c = 1; c < n; c++)
                assert_int_not_equal(by_tile(&found[c - 1], &found[c]), 0);
        }
    }
}

/* Products of one warp in one step and registers of O: 1 to 2 ms of compiling
 * each. */
static void short_launches_get_short_loops(void **state) {
    (void)state;
    attnc_spec s = spec("dtype=f16 head_dim=128");
    Device d = device("A100");
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    int longest[2] = {0};
    for (int i = 0; i < 2; i++) {
        h.seqlen_q = h.seqlen_k = i ? 16384 : 1024;
        int n = tile_enumerate(&s, &h, &d, TILE_mma_fwd, found, MANY);
        for (int k = 0; k < n; k++) {
            const int32_t *v = found[k].tile.v;
            int each = v[T_mma_fwd_block_k] / 8 * 16 + 64;
            int body = v[T_mma_fwd_rows] / 16 * each;
            longest[i] = body > longest[i] ? body : longest[i];
        }
    }
    assert_in_range(longest[0], 96, 128);
    assert_in_range(longest[1], 320, 448);
}

/* The untuned first pick compiles fast, unless the launches will be long. */
static void peeling_waits_for_long_launches(void **state) {
    (void)state;
    attnc_spec s = spec("dtype=f16 head_dim=128 mask=causal");
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    Device d = device("A100");
    int peeled[2] = {0};
    for (int i = 0; i < 2; i++) {
        h.seqlen_q = h.seqlen_k = i ? 65536 : 1024;
        int n = tile_enumerate(&s, &h, &d, TILE_mma_fwd, found, MANY);
        for (int k = 0; k < n; k++)
            peeled[i] += found[k].tile.v[T_mma_fwd_peel];
    }
    assert_int_equal(peeled[0], 0);
    assert_true(peeled[1] > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_known_good_tile_is_legal),
        cmocka_unit_test(reasons_name_the_limit),
        cmocka_unit_test(numbers_decide_not_names),
        cmocka_unit_test(the_safe_tile_is_legal_for_every_spec),
        cmocka_unit_test(families_follow_from_dtype_and_units),
        cmocka_unit_test(every_legal_tile_has_a_sound_layout),
        cmocka_unit_test(known_sizes),
        cmocka_unit_test(the_search_holds_what_others_measured_best),
        cmocka_unit_test(the_search_has_no_tile_twice),
        cmocka_unit_test(short_launches_get_short_loops),
        cmocka_unit_test(peeling_waits_for_long_launches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
