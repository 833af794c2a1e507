/* SPDX-License-Identifier: Apache-2.0
 * Plans of the backward on GPUs: every dtype and head dim has one on every
 * chip, of legal tiles, with figures, in 8 bytes of workspace a row. */
#include "gen_util.h"

static const char *const chips[] = {"T4",   "A100", "RTX 3090",
                                    "H200", "B200", "emu:sm_120"};
static const int dims[] = {1, 8, 40, 64, 80, 128, 160, 256};
enum { CHIPS = 6, DIMS = 8, DTYPES = 3 };

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
    static const int roles[] = {ROLE_delta, ROLE_bwd_dkdv, ROLE_bwd_dq,
                                ROLE_dsink};
    assert_int_equal(p->nstep, 3 + p->spec.sink);
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

static void workspace_is_8_bytes_a_row(void **state) {
    (void)state;
    Plan p = plan_for("A100", ATTNC_F16, 64, false);
    const Buf *b = &p.buf[0];
    int64_t sizes[DIM_COUNT] = {[DIM_BATCH] = 3, [DIM_KV_HEADS] = 2};
    sizes[DIM_ROWS] = 4 * 100;
    assert_int_equal(p.nbuf, 1);
    assert_int_equal(extent_size(&b->extent, sizes) * b->fixed * b->elem_bytes,
                     3 * 2 * 4 * 100 * 8);
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
        cmocka_unit_test(workspace_is_8_bytes_a_row),
        cmocka_unit_test(plans_parse_back),
        cmocka_unit_test(warps_share_keys_where_sums_fill_registers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
