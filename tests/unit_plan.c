/* SPDX-License-Identifier: Apache-2.0
 * Plans: the strategy, the ladder of tiles, parameters, grids. */
#include "gen_util.h"

/* ---- one step ---------------------------------------------------------- */

static void a_dense_forward_is_one_step(void **state) {
    (void)state;
    Plan p = plan("mask=causal", "seqlen_q=4096 seqlen_k=4096", "avx2", NULL);
    const Step *s = &p.step[0];
    assert_int_equal(p.nstep, 1);
    assert_int_equal(p.nbuf, 0);
    assert_int_equal(s->role, ROLE_fwd);
    assert_int_equal(s->tile.from, FROM_MODEL);
    assert_int_equal(s->scratch_bytes % 64, 0);
    assert_true(s->scratch_bytes <= p.device.sram_bytes);
    char entry[64];
    snprintf(entry, sizeof entry, "attn_fwd_f32_d64_causal__avx2_%dx%d",
             s->tile.v[T_cpu_fwd_block_q], s->tile.v[T_cpu_fwd_block_k]);
    assert_string_equal(s->entry, entry);
}

static void entries_say_what_and_how(void **state) {
    (void)state;
    Pins pins = {.tile = "block_q=65536,block_k=1024,vecs=4,keys=4,dims=4"};
    Device d = device("avx512bf16");
    Plan p;
    d.sram_bytes = 1e9;
    Err e = try_plan("dtype=bf16 head_dim=200 head_dim_v=100 mask=window", "",
                     &d, &pins, &p);
    assert_int_equal(e.code, 0);
    assert_string_equal(p.step[0].entry, "attn_fwd_bf16_d200v100_window__"
                                         "avx512bf16_65536x1024");
}

static int64_t size(const Extent *x, int64_t b, int64_t h, int64_t hk,
                    int64_t nq, int64_t nk) {
    int64_t dims[DIM_COUNT] = {
        [DIM_ONE] = 1,       [DIM_BATCH] = b,          [DIM_HEADS] = h,
        [DIM_KV_HEADS] = hk, [DIM_GROUP] = h / hk,     [DIM_SEQLEN_Q] = nq,
        [DIM_SEQLEN_K] = nk, [DIM_ROWS] = h / hk * nq, [DIM_TOTAL_Q] = b * nq,
    };
    return extent_size(x, dims);
}

static void the_grid_counts_blocks_of_rows_of_kv_heads(void **state) {
    (void)state;
    Pins pins = {.tile = "block_q=96,vecs=3"};
    Plan p = plan("", "", "avx2", &pins);
    assert_int_equal(size(&p.step[0].grid, 3, 8, 2, 100, 50), 3 * 2 * 5);
    assert_int_equal(size(&p.step[0].grid, 3, 8, 2, 0, 50), 0);
    assert_int_equal(size(&p.step[0].grid, INT64_MAX / 2, 8, 8, 1, 1), -1);
    assert_int_equal(size(&p.step[0].grid, -1, 8, 8, 1, 1), -1);
}

/* ---- parameters -------------------------------------------------------- */

static bool takes(const Step *s, int id) {
    for (int i = 0; i < s->nparam; i++) {
        if (s->param[i].id == id)
            return true;
    }
    return false;
}

static void kernels_take_only_what_their_spec_uses(void **state) {
    (void)state;
    static const struct {
        const char *spec;
        int id;
    } rows[] = {
        {"lens_k=1", PARAM_lens_k},
        {"varlen=1", PARAM_cu_seqlens_q},
        {"varlen=1", PARAM_cu_seqlens_k},
        {"mask=window", PARAM_mask_left},
        {"mask=window", PARAM_mask_right},
        {"mask=prefix", PARAM_mask_prefix},
        {"mask=causal", PARAM_mask_offset},
        {"alibi=1", PARAM_mask_offset_mode},
        {"softcap=1", PARAM_softcap},
        {"alibi=1", PARAM_slopes},
        {"sink=1", PARAM_sink},
        {"dropout=1", PARAM_dropout_threshold},
        {"dropout=1", PARAM_dropout_seed},
    };
    Plan plain = plan("", "", "avx2", NULL);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        Plan p = plan(rows[i].spec, "", "avx2", NULL);
        assert_true(takes(&p.step[0], rows[i].id));
        assert_false(takes(&plain.step[0], rows[i].id));
    }
    assert_true(takes(&plain.step[0], PARAM_scale));
    assert_false(takes(&plain.step[0], PARAM_spec));
}

static void slots_stand_in_the_order_of_the_list(void **state) {
    (void)state;
    Plan p = plan("lens_k=1 varlen=1 mask=prefix softcap=1 alibi=1 sink=1 "
                  "dropout=1",
                  "seqlen_q=1 seqlen_k=100000", "avx2",
                  &(Pins){.tile = "split_k=1024"});
    for (int i = 0; i < p.nstep; i++) {
        for (int k = 1; k < p.step[i].nparam; k++)
            assert_true(p.step[i].param[k].id > p.step[i].param[k - 1].id);
    }
}

static void the_builtin_kernel_takes_everything(void **state) {
    (void)state;
    Plan p = plan("", "heads=8 kv_heads=2", "avx2", &(Pins){.builtin = true});
    const Step *s = &p.step[0];
    assert_int_equal(p.nstep, 1);
    assert_int_equal(s->tile.family, TILE_builtin);
    assert_int_equal(s->nparam, PARAM_COUNT - 7); /* not the buffers */
    assert_true(takes(s, PARAM_spec));
    assert_true(s->scratch_bytes >= builtin_scratch(&p.spec));
    assert_int_equal(size(&s->grid, 1, 8, 2, 1024, 9),
                     2 * 4 * 1024 / BUILTIN_ROWS);
    /* Few rows, many keys: still one step. */
    p = plan("", "seqlen_q=1 seqlen_k=100000", "avx2",
             &(Pins){.builtin = true});
    assert_int_equal(p.nstep, 1);
}

/* ---- split ------------------------------------------------------------- */

static int split_of(const Plan *p) {
    return p->nstep == 2 ? p->step[0].tile.v[T_cpu_fwd_split_k] : 0;
}

static void few_rows_and_many_keys_are_split(void **state) {
    (void)state;
    Plan p = plan("sink=1 mask=causal",
                  "seqlen_q=1 seqlen_k=65536 heads=8 "
                  "kv_heads=2",
                  "avx2", NULL);
    int split_k = split_of(&p), block_k = p.step[0].tile.v[T_cpu_fwd_block_k];
    assert_int_equal(p.nstep, 2);
    assert_int_equal(p.step[0].role, ROLE_fwd_split);
    assert_int_equal(p.step[1].role, ROLE_combine);
    assert_true(split_k > 0 && split_k % block_k == 0);
    assert_int_equal(p.step[1].tile.v[T_cpu_combine_split_k], split_k);
    int64_t splits = (65536 + split_k - 1) / split_k;
    assert_true(2 * splits >= 2 * p.device.cores);
    assert_int_equal(size(&p.step[0].grid, 1, 8, 2, 1, 65536), 2 * splits);
    assert_int_equal(p.nbuf, 2);
    assert_string_equal(p.buf[0].name, "part_o");
    assert_string_equal(p.buf[1].name, "part_lse");
    assert_int_equal(p.buf[0].fixed, 64);
    assert_int_equal(size(&p.buf[1].extent, 1, 8, 2, 1, 65536), 2 * splits * 4);
    assert_false(takes(&p.step[0], PARAM_o) || takes(&p.step[0], PARAM_sink));
    assert_true(takes(&p.step[1], PARAM_o) && takes(&p.step[1], PARAM_sink));
    assert_false(takes(&p.step[1], PARAM_q) || takes(&p.step[1], PARAM_scale));
    for (int i = 0; i < 2; i++) {
        const Step *s = &p.step[i];
        assert_true(takes(s, PARAM_part_o));
        assert_int_equal(s->param[s->nparam - 2].buf, 0);
        assert_int_equal(s->param[s->nparam - 1].buf, 1);
    }
}

static void full_chips_long_queries_and_short_keys_are_not_split(void **state) {
    (void)state;
    static const char *const shapes[] = {
        "batch=64 seqlen_q=1 seqlen_k=65536", "seqlen_q=512 seqlen_k=65536",
        "seqlen_q=1 seqlen_k=300", "seqlen_q=1024 seqlen_k=1024"};
    for (int i = 0; i < 4; i++) {
        Plan p = plan("", shapes[i], "avx2", NULL);
        assert_int_equal(p.nstep, 1);
    }
}

/* Decoding plans anew for each token must not mean compiling anew. */
static void growing_keys_share_few_kernels(void **state) {
    (void)state;
    int kernels = 1;
    Plan before = plan("", "seqlen_q=1 seqlen_k=1000", "avx2", NULL);
    for (int n = 1000; n < 9000; n += 37) {
        char shape[64];
        snprintf(shape, sizeof shape, "seqlen_q=1 seqlen_k=%d", n);
        Plan p = plan("", shape, "avx2", NULL);
        kernels += !same_identity(&before, &p);
        before = p;
    }
    assert_in_range(kernels, 1, 8);
}

static void varying_lengths_share_few_kernels(void **state) {
    (void)state;
    int kernels = 1;
    Plan before =
        plan("mask=causal", "seqlen_q=512 seqlen_k=512", "avx2", NULL);
    for (int n = 513; n <= 4096; n += 61) {
        char shape[64];
        snprintf(shape, sizeof shape, "batch=%d seqlen_q=%d seqlen_k=%d",
                 n / 500, n, n);
        Plan p = plan("mask=causal", shape, "avx2", NULL);
        kernels += !same_identity(&before, &p);
        before = p;
    }
    assert_in_range(kernels, 1, 12);
}

static void a_pin_decides_on_splitting(void **state) {
    (void)state;
    Plan p = plan("", "", "avx2", &(Pins){.tile = "split_k=512,block_k=64"});
    assert_int_equal(split_of(&p), 512);
    assert_int_equal(p.step[0].tile.from, FROM_PIN);
    p = plan("", "seqlen_q=1 seqlen_k=65536", "avx2",
             &(Pins){.tile = "split_k=0"});
    assert_int_equal(p.nstep, 1);
    p = plan("", "", "avx2", &(Pins){.tile = "split_k=512,rows=3"});
    assert_int_equal(p.step[1].tile.v[T_cpu_combine_rows], 3);
}

/* ---- batch invariance -------------------------------------------------- */

static void batch_invariant_bits_do_not_depend_on_the_batch(void **state) {
    (void)state;
    static const char *const alone[] = {"seqlen_q=1 seqlen_k=4096",
                                        "seqlen_q=777 seqlen_k=777",
                                        "seqlen_q=4096 seqlen_k=9"};
    static const char *const specs[] = {
        "batch_invariant=1", "batch_invariant=1 lens_k=1 mask=causal",
        "batch_invariant=1 varlen=1 head_dim=128"};
    for (int i = 0; i < 9; i++) {
        char many[96];
        snprintf(many, sizeof many, "%s batch=64", alone[i % 3]);
        Plan p = plan(specs[i / 3], alone[i % 3], "avx2", NULL);
        Plan q = plan(specs[i / 3], many, "avx2", NULL);
        assert_int_equal(p.step[0].tile.v[T_cpu_fwd_block_k],
                         q.step[0].tile.v[T_cpu_fwd_block_k]);
        assert_int_equal(split_of(&p), split_of(&q));
    }
}

/* Of lengths only the number of query rows counts, and none in varlen. */
static void batch_invariant_bits_do_not_depend_on_others_lengths(void **state) {
    (void)state;
    Plan p = plan("batch_invariant=1 lens_k=1", "seqlen_q=1 seqlen_k=100",
                  "avx2", NULL);
    Plan q = plan("batch_invariant=1 lens_k=1", "seqlen_q=1 seqlen_k=99999",
                  "avx2", NULL);
    assert_int_equal(split_of(&p), split_of(&q));
    assert_true(split_of(&p) >= 1024);
    p = plan("batch_invariant=1 varlen=1", "seqlen_q=1 seqlen_k=100", "avx2",
             NULL);
    q = plan("batch_invariant=1 varlen=1", "seqlen_q=9999 seqlen_k=99999",
             "avx2", NULL);
    assert_int_equal(split_of(&p), 0);
    assert_int_equal(split_of(&q), 0);
    assert_int_equal(p.step[0].tile.v[T_cpu_fwd_block_k],
                     q.step[0].tile.v[T_cpu_fwd_block_k]);
}

/* ---- the ladder -------------------------------------------------------- */

static void pins_lead_and_the_model_fills_the_rest(void **state) {
    (void)state;
    Pins pins = {.tile = "block_k=96,keys=2",
                 .table = "block_q=48,block_k=32,vecs=3,keys=4,dims=4"};
    Plan p = plan("", "", "avx2", &pins);
    const Tile *t = &p.step[0].tile;
    assert_int_equal(t->from, FROM_PIN);
    assert_int_equal(t->v[T_cpu_fwd_block_k], 96);
    assert_int_equal(t->v[T_cpu_fwd_keys], 2);
    assert_int_not_equal(t->v[T_cpu_fwd_block_q], 0);
}

static void a_tuned_row_comes_before_the_model(void **state) {
    (void)state;
    Pins pins = {.table = "block_q=48,block_k=32,vecs=3,keys=4,dims=4"};
    Plan p = plan("", "", "avx2", &pins);
    assert_int_equal(p.step[0].tile.from, FROM_TABLE);
    assert_int_equal(p.step[0].tile.v[T_cpu_fwd_block_q], 48);
    assert_string_equal(p.note, "");
}

static void a_bad_tuned_row_is_skipped_with_a_reason(void **state) {
    (void)state;
    static const struct {
        const char *row, *note;
    } bad[] = {
        {"block_q=47,block_k=32,vecs=3,keys=4,dims=4",
         "tuned row skipped: block_q=47 is not a multiple of lanes*vecs = 24; "
         "nearest 48"},
        {"block=47", "tuned row skipped: tile: unknown field 'block' of "
                     "cpu_fwd; nearest: block_q"},
    };
    Plan chosen = plan("", "", "avx2", NULL);
    for (int i = 0; i < 2; i++) {
        Plan p = plan("", "", "avx2", &(Pins){.table = bad[i].row});
        assert_string_equal(p.note, bad[i].note);
        assert_int_equal(p.step[0].tile.from, FROM_MODEL);
        assert_true(same_identity(&p, &chosen));
    }
}

static void expect_fault(const char *spec, const Device *d, const Pins *pins,
                         const char *text) {
    Plan p;
    Err e = try_plan(spec, "", d, pins, &p);
    assert_int_equal(e.code, ERR_REQUEST);
    assert_string_equal(e.text, text);
}

static void a_bad_pin_is_an_error(void **state) {
    (void)state;
    Device d = device("avx2");
    expect_fault("", &d, &(Pins){.tile = "block_q=380"},
                 "tile: block_q=380 is not a multiple of lanes*vecs = 24; "
                 "nearest 384");
    expect_fault("", &d, &(Pins){.tile = "keys=5,vecs=3"},
                 "tile: keys=5 x vecs=3 needs 19 vector registers, avx2 has "
                 "16; nearest keys=4");
    expect_fault("dtype=f16", &d, &(Pins){.tile = "copy_kv=0"},
                 "tile: copy_kv=0 reads K and V in place, which needs "
                 "dtype=f32, not f16; nearest copy_kv=1");
    expect_fault("", &d, &(Pins){.tile = "blok_q=4"},
                 "tile: unknown field 'blok_q' of cpu_fwd; nearest: block_q");
    expect_fault("", &d, &(Pins){.tile = "keys=4,keys=4"},
                 "tile: keys: is given twice");
    expect_fault("", &d, &(Pins){.tile = "rows=4"},
                 "tile: a field of cpu_combine is pinned, but the keys are "
                 "not split; pin split_k too");
    expect_fault("", &d, &(Pins){.tile = "block_q=48", .builtin = true},
                 "tile: unknown field 'block_q' of builtin; nearest: rows");
    expect_fault("", &d, &(Pins){.tile = "rows=4", .builtin = true},
                 "tile: rows=4 is out of range; accepted 64..64");
}

static void the_smallest_tile_is_the_last_resort(void **state) {
    (void)state;
    Device d = device("avx2");
    Plan p;
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    Tile safe = tile_safe(&d, TILE_cpu_fwd);
    s.dtype = ATTNC_F16; /* K and V must be copied, in blocks of 32 or more */
    s.head_dim = s.head_dim_v = 256;
    d.sram_bytes = (double)model_scratch_bytes(&s, &d, &safe);
    Err e = try_plan("dtype=f16 head_dim=256", "", &d, NULL, &p);
    assert_int_equal(e.code, 0);
    assert_int_equal(p.step[0].tile.from, FROM_SAFE);
    d.sram_bytes--;
    e = try_plan("dtype=f16 head_dim=256", "", &d, NULL, &p);
    assert_int_equal(e.code, ERR_REQUEST);
    assert_non_null(strstr(e.text, "no legal tile on avx2: needs "));
}

/* ---- candidates -------------------------------------------------------- */

enum { MANY = 4000 };
static Candidate list[MANY];

static void candidates_are_ranked_and_rejected_ones_last(void **state) {
    (void)state;
    Plan p = plan("", "seqlen_q=65536", "avx2", NULL);
    int n = plan_candidates(&p, 0, list, MANY), legal = 0;
    assert_true(n > 100 && n < MANY);
    assert_memory_equal(list[0].tile.v, p.step[0].tile.v,
                        sizeof p.step[0].tile.v);
    while (legal < n && list[legal].legal)
        legal++;
    for (int i = 1; i < legal; i++)
        assert_true(list[i].fig.time_ms >= list[i - 1].fig.time_ms);
    for (int i = legal; i < n; i++)
        assert_true(!list[i].legal && *list[i].why);
    assert_int_equal(plan_candidates(&p, 0, list, 8), 8);
    assert_true(list[5].legal && !list[6].legal && !list[7].legal);
    assert_int_equal(plan_candidates(&p, 0, list, 0), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_dense_forward_is_one_step),
        cmocka_unit_test(entries_say_what_and_how),
        cmocka_unit_test(the_grid_counts_blocks_of_rows_of_kv_heads),
        cmocka_unit_test(kernels_take_only_what_their_spec_uses),
        cmocka_unit_test(slots_stand_in_the_order_of_the_list),
        cmocka_unit_test(the_builtin_kernel_takes_everything),
        cmocka_unit_test(few_rows_and_many_keys_are_split),
        cmocka_unit_test(full_chips_long_queries_and_short_keys_are_not_split),
        cmocka_unit_test(growing_keys_share_few_kernels),
        cmocka_unit_test(varying_lengths_share_few_kernels),
        cmocka_unit_test(a_pin_decides_on_splitting),
        cmocka_unit_test(batch_invariant_bits_do_not_depend_on_the_batch),
        cmocka_unit_test(batch_invariant_bits_do_not_depend_on_others_lengths),
        cmocka_unit_test(pins_lead_and_the_model_fills_the_rest),
        cmocka_unit_test(a_tuned_row_comes_before_the_model),
        cmocka_unit_test(a_bad_tuned_row_is_skipped_with_a_reason),
        cmocka_unit_test(a_bad_pin_is_an_error),
        cmocka_unit_test(the_smallest_tile_is_the_last_resort),
        cmocka_unit_test(candidates_are_ranked_and_rejected_ones_last),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
