/* SPDX-License-Identifier: Apache-2.0
 * Plans of the backward on GPUs: every dtype and head dim has one on every
 * chip, of legal tiles, with figures; how dQ is summed, by whose choice, and
 * what that takes of workspace. */
#include "gen_util.h"

static const char *const chips[] = {"T4",   "A100", "RTX 3090",
                                    "H200", "B200", "emu:sm_120"};
static const int dims[] = {1, 8, 40, 64, 80, 128, 160, 256};
enum { CHIPS = 6, DIMS = 8, DTYPES = 3 };

static const char *const BWD = "pass=bwd dtype=f16 ";

/* Of a spec and a shape as text, with a pinned tile. */
static int plan_of(const char *chip, const char *spec, const char *shape,
                   const char *tile, Plan *p, Err *e) {
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    Device d;
    *e = (Err){0};
    if (spec_parse(BWD, &s, e) || spec_parse(spec, &s, e) ||
        shape_parse(shape, &h, e) || device_find(chip, &d, e))
        fail_msg("%s", e->text);
    return plan_choose(&s, &h, &d, &(Pins){.tile = tile}, p, e);
}

static Plan plan_for(const char *chip, int dtype, int dim, bool sink) {
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    Device d;
    Plan p;
    Err e = {0};
    s.pass = ATTNC_PASS_BWD;
    s.dtype = dtype;
    s.head_dim = dim;
    s.sink = sink;
    s.mask = ATTNC_MASK_CAUSAL;
    if (device_find(chip, &d, &e) || plan_choose(&s, &h, &d, NULL, &p, &e))
        fail_msg("%s d %d: %s", chip, dim, e.text);
    return p;
}

static void check_plan(const Plan *p) {
    char why[TILE_WHY];
    int roles[PLAN_STEPS];
    int n = cuda_bwd_roles(&p->spec, &p->step[1].tile, roles);
    assert_int_equal(p->nstep, n);
    for (int i = 0; i < p->nstep; i++) {
        const Step *s = &p->step[i];
        assert_int_equal(s->role, roles[i]);
        if (!tile_legal(&p->spec, &p->shape, &p->device, &s->tile, why))
            fail_msg("%s: %s", role_name(s->role), why);
        assert_true(s->fig.time_ms > 0 && s->fig.time_ms < 1e6);
        assert_true(s->fig.registers <=
                    tile_cuda_register_limit(&p->device, &s->tile));
        assert_true(s->smem_bytes <= p->device.sram_bytes);
    }
}

static void every_spec_has_a_plan_on_every_chip(void **state) {
    (void)state;
    for (int c = 0; c < CHIPS; c++)
        for (int i = 0; i < DIMS; i++)
            for (int t = 0; t < DTYPES; t++) {
                Plan p = plan_for(chips[c], t, dims[i], i % 2);
                check_plan(&p);
            }
}

/* Of 3 entries, 2 key heads, 4 * 128 rows each. */
static int64_t workspace_of(const char *tile, const char *shape) {
    Plan p;
    Err e;
    int64_t sizes[DIM_COUNT] = {[DIM_BATCH] = 3, [DIM_KV_HEADS] = 2}, sum = 0;
    sizes[DIM_ROWS] = 4 * 128;
    if (plan_of("A100", "deterministic=0", shape, tile, &p, &e))
        fail_msg("%s: %s", tile, e.text);
    for (int i = 0; i < p.nbuf; i++)
        sum += extent_size(&p.buf[i].extent, sizes) * p.buf[i].fixed *
               p.buf[i].elem_bytes;
    return sum;
}

/* delta and LSE of a row; its dQ in f32; turns, one for 32 rows, and the
 * ticket. */
static void workspace_is_that_of_the_way_dq_is_summed(void **state) {
    (void)state;
    const int64_t rows = 3 * 2 * 4 * 128;
    assert_int_equal(workspace_of("dq=0", ""), rows * 8);
    assert_int_equal(workspace_of("dq=1,block_k=64", "max_seqlen=64"),
                     rows * 8);
    assert_int_equal(workspace_of("dq=3", ""), rows * (8 + 4 * 64));
    assert_int_equal(workspace_of("dq=2,block_q=32", ""),
                     rows * (8 + 4 * 64) + rows / 32 * 4 + 4);
}

/* ---- how dQ is summed ---------------------------------------------------- */

static int way_of(const char *chip, const char *spec, const char *shape) {
    Plan p;
    Err e;
    if (plan_of(chip, spec, shape, NULL, &p, &e))
        fail_msg("%s", e.text);
    return p.step[1].tile.v[T_mma_dkdv_dq];
}

/* Five products instead of seven where that pays for the sums in memory: in
 * the block that holds all keys always, in order for long launches, and in
 * any order only for who allows it. */
static void the_model_chooses_how_dq_is_summed(void **state) {
    (void)state;
    const char *small = "batch=256 seqlen_q=64 seqlen_k=64 max_seqlen=64";
    const char *large = "batch=8 heads=16 kv_heads=16 seqlen_q=16384 "
                        "seqlen_k=16384";
    assert_int_equal(way_of("A100", "", small), DQ_BLOCK);
    assert_int_equal(way_of("A100", "mask=causal", large), DQ_ORDERED);
    assert_int_equal(way_of("A100", "mask=causal deterministic=0", large),
                     DQ_ATOMIC);
    assert_int_equal(way_of("A100", "", "seqlen_q=256 seqlen_k=256"), DQ_APART);
}

/* The same for a sequence alone and in any batch. */
static void batch_invariant_ways_are_those_of_the_spec(void **state) {
    (void)state;
    const char *spec = "mask=causal batch_invariant=1";
    int way = way_of("A100", spec, "batch=1 seqlen_q=128 seqlen_k=128");
    assert_int_equal(way_of("A100", spec, "batch=64 seqlen_q=16384"), way);
}

static void refused(const char *spec, const char *tile, const char *says) {
    Plan p;
    Err e;
    assert_int_equal(plan_of("A100", spec, "", tile, &p, &e), ERR_REQUEST);
    if (!strstr(e.text, says))
        fail_msg("%s: %s", tile, e.text);
}

static void a_way_that_cannot_be_is_refused(void **state) {
    (void)state;
    refused("", "dq=1", "promise max_seqlen");
    refused("", "dq=3", "nearest dq=2");
    refused("", "dq=4", "dq");
    refused("dtype=f32", "dq=2", "dq");
    refused("", "dq=2,dq_rows=16", "pin dq=0 too");
}

static void plans_parse_back(void **state) {
    (void)state;
    for (int t = 0; t < DTYPES; t++) {
        Plan p = plan_for("A100", t, 64, t), q;
        Str text = {0};
        Err e = {0};
        plan_print(&p, &text);
        if (plan_parse(text.text, &q, &e))
            fail_msg("%s", e.text);
        str_free(&text);
    }
}

/* Both dims' sums in one warp would need 256 registers. */
static void warps_share_keys_where_sums_fill_registers(void **state) {
    (void)state;
    Plan p = plan_for("A100", ATTNC_F16, 256, false);
    assert_int_equal(p.step[1].tile.family, TILE_mma_dkdv);
    assert_int_equal(p.step[1].tile.v[T_mma_dkdv_split], 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_spec_has_a_plan_on_every_chip),
        cmocka_unit_test(workspace_is_that_of_the_way_dq_is_summed),
        cmocka_unit_test(the_model_chooses_how_dq_is_summed),
        cmocka_unit_test(batch_invariant_ways_are_those_of_the_spec),
        cmocka_unit_test(a_way_that_cannot_be_is_refused),
        cmocka_unit_test(plans_parse_back),
        cmocka_unit_test(warps_share_keys_where_sums_fill_registers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
