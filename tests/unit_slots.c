/* SPDX-License-Identifier: Apache-2.0
 * From launch arguments to what kernels read: sizes, workspace, slots, and
 * every refusal of a launch. */
#include <limits.h>

#include "gen_util.h"
#include "runtime.h"

enum { B = 2, H = 6, HK = 2, NQ = 5, NK = 7, D = 8, DV = 12 };

static float q_data[B * H * NQ * D], k_data[B * HK * NK * D];
static float v_data[B * HK * NK * DV], o_data[B * H * NQ * DV];
static const int32_t lens[B] = {7, 0};
static const int32_t cu_q[B + 1] = {0, 5, 8}, cu_k[B + 1] = {0, 0, 7};
static const float numbers[H] = {1, 2, 3, 4, 5, 6};

/* A plan for a spec of head dims D and DV, and a shape's promises. */
static Plan plan_of(const char *spec_text, const char *shape_text) {
    char text[160];
    snprintf(text, sizeof text, "head_dim=%d head_dim_v=%d %s", D, DV,
             spec_text);
    return plan(text, shape_text, "avx2", NULL);
}

static attnc_tensor packed(void *data, int64_t heads, int64_t rows,
                           int64_t dim) {
    return (attnc_tensor){data, heads * rows * dim, rows * dim, dim};
}

/* Arguments that a spec without extras accepts. */
static attnc_args good(void) {
    attnc_args a = ATTNC_ARGS_INIT;
    a.batch = B;
    a.heads = H;
    a.kv_heads = HK;
    a.seqlen_q = NQ;
    a.seqlen_k = NK;
    a.q = packed(q_data, H, NQ, D);
    a.k = packed(k_data, HK, NK, D);
    a.v = packed(v_data, HK, NK, DV);
    a.o = packed(o_data, H, NQ, DV);
    return a;
}

static attnc_args good_varlen(void) {
    attnc_args a = good();
    attnc_tensor *t[] = {&a.q, &a.k, &a.v, &a.o};
    for (int i = 0; i < 4; i++)
        t[i]->stride_b = INT64_MAX; /* not used */
    a.q.stride_h = D * 8;
    a.o.stride_h = DV * 8;
    a.cu_seqlens_q = cu_q;
    a.cu_seqlens_k = cu_k;
    return a;
}

/* The launch is refused with this status; field and text name the fault. */
static void refused(const Plan *p, const attnc_args *a, int status,
                    const char *field, const char *text) {
    Err e = {0};
    assert_int_equal(args_check(p, a, &e), status);
    assert_int_equal(e.code, status);
    assert_string_equal(e.field, field);
    assert_null(strchr(e.text, '\n'));
    if (!strstr(e.text, text))
        fail_msg("'%s' does not say '%s'", e.text, text);
}

static void accepted(const Plan *p, const attnc_args *a) {
    Err e = {0};
    if (args_check(p, a, &e))
        fail_msg("refused: %s", e.text);
}

/* ---- sizes and workspace ------------------------------------------------ */

/* A plan of two buffers and two steps, made up. */
static Plan made_up(void) {
    return (Plan){
        .nstep = 2,
        .nbuf = 2,
        .step = {{.scratch_bytes = 100}, {.scratch_bytes = 8192}},
        .buf = {{.name = "a",
                 .elem_bytes = 4,
                 .fixed = 3,
                 .extent = {{{DIM_ROWS, 4}, {DIM_ONE, 1}}}},
                {.name = "b",
                 .elem_bytes = 2,
                 .fixed = 1,
                 .extent = {{{DIM_BATCH, 1}, {DIM_ONE, 1}}}}},
    };
}

static void dims_follow_the_lengths(void **state) {
    (void)state;
    int64_t dims[DIM_COUNT];
    attnc_args a = good();
    Plan p = made_up();
    Err e = {0};
    assert_int_equal(dims_fill(&p, &a, dims, &e), 0);
    assert_int_equal(dims[DIM_ONE], 1);
    assert_int_equal(dims[DIM_BATCH], B);
    assert_int_equal(dims[DIM_HEADS], H);
    assert_int_equal(dims[DIM_KV_HEADS], HK);
    assert_int_equal(dims[DIM_GROUP], H / HK);
    assert_int_equal(dims[DIM_SEQLEN_Q], NQ);
    assert_int_equal(dims[DIM_SEQLEN_K], NK);
    assert_int_equal(dims[DIM_ROWS], H / HK * NQ);
    assert_int_equal(dims[DIM_TOTAL_Q], B * NQ);
    a.seqlen_k = 0;
    assert_int_equal(dims_fill(&p, &a, dims, &e), 0);
    assert_int_equal(dims[DIM_SEQLEN_K], 0); /* no splits */
}

static void the_workspace_is_aligned_and_does_not_overlap(void **state) {
    (void)state;
    int64_t dims[DIM_COUNT];
    attnc_args a = good();
    Plan p = made_up();
    Layout l;
    Err e = {0};
    assert_int_equal(dims_fill(&p, &a, dims, &e), 0);
    assert_int_equal(layout_make(&p, dims, 3, &l, &e), 0);
    assert_int_equal(l.buf[0], 0); /* ceil(15 / 4) * 3 * 4 = 48 bytes */
    assert_int_equal(l.buf[1], 64);
    assert_int_equal(l.scratch, 128);
    assert_true(l.scratch_stride >= 8192 + 64);
    assert_int_equal(l.scratch_stride % 64, 0);
    assert_true(l.scratch_stride % 4096 != 0);
    assert_int_equal(l.total, l.scratch + 3 * l.scratch_stride);
}

static void a_workspace_beyond_63_bits_is_refused(void **state) {
    (void)state;
    int64_t dims[DIM_COUNT];
    attnc_args a = good();
    Layout l;
    Plan p = made_up();
    p.buf[0].fixed = INT64_MAX / 8;
    Err e = {0};
    assert_int_equal(dims_fill(&p, &a, dims, &e), 0);
    assert_int_equal(layout_make(&p, dims, 1, &l, &e), ATTNC_E_REQUEST);
    p = made_up();
    p.step[1].scratch_bytes = INT64_MAX / 2;
    e = (Err){0};
    assert_int_equal(layout_make(&p, dims, 3, &l, &e), ATTNC_E_REQUEST);
    p = made_up();
    a.heads = a.seqlen_q = INT64_MAX;
    e = (Err){0};
    assert_int_equal(dims_fill(&p, &a, dims, &e), 0);
    assert_int_equal(layout_make(&p, dims, 1, &l, &e), ATTNC_E_REQUEST);
}

/* ---- slots -------------------------------------------------------------- */

static uint64_t slot(int id, const Plan *p, const attnc_args *a) {
    const Layout l = {.buf = {64, 128}};
    Param param = {id, -1};
    if (param_kind(id) == WORK)
        param.buf = id == PARAM_part_o ? 0 : 1;
    return slot_value(p, &param, a, &l);
}

static float slot_float(int id, const Plan *p, const attnc_args *a) {
    uint64_t bits = slot(id, p, a);
    uint32_t low = (uint32_t)bits;
    float x;
    assert_int_equal(bits >> 32, 0);
    memcpy(&x, &low, 4);
    return x;
}

static void every_parameter_reaches_its_slot(void **state) {
    (void)state;
    attnc_args a = good();
    /* Each 8-byte field gets a value of its own. */
    int64_t *fields[] = {
        &a.q.stride_b,
        &a.q.stride_h,
        &a.q.stride_n,
        &a.k.stride_b,
        &a.k.stride_h,
        &a.k.stride_n,
        &a.v.stride_b,
        &a.v.stride_h,
        &a.v.stride_n,
        &a.o.stride_b,
        &a.o.stride_h,
        &a.o.stride_n,
        &a.lse_stride_b,
        &a.lse_stride_h,
        &a.batch,
        &a.heads,
        &a.kv_heads,
        &a.seqlen_q,
        &a.seqlen_k,
        NULL,
        NULL,
        NULL,
        &a.mask_left,
        &a.mask_right,
        &a.mask_prefix,
        &a.mask_offset,
    };
    Plan p = plan_of("", "");
    for (int i = 0; i <= PARAM_mask_offset - PARAM_q_stride_b; i++)
        if (fields[i])
            *fields[i] = -1000 - i;
    for (int i = 0; i <= PARAM_mask_offset - PARAM_q_stride_b; i++)
        if (fields[i])
            assert_int_equal((int64_t)slot(PARAM_q_stride_b + i, &p, &a),
                             -1000 - i);
    a.lse = o_data;
    a.lens_k = lens;
    a.cu_seqlens_q = cu_q;
    a.cu_seqlens_k = cu_k;
    a.slopes = a.sink = numbers;
    a.workspace = q_data;
    a.mask_offset_mode = 2;
    a.dropout_p = 0.25;
    a.dropout_seed = UINT64_MAX;
    a.dropout_offset = 77;
    a.dropout_b0 = 3;
    a.dropout_h0 = 5;
    a.dropout_heads = 1000;
    assert_int_equal(slot(PARAM_dropout_threshold, &p, &a), 16384);
    assert_true(slot_float(PARAM_dropout_scale, &p, &a) == 1 / 0.75f);
    assert_int_equal(slot(PARAM_dropout_seed, &p, &a), UINT64_MAX);
    assert_int_equal(slot(PARAM_dropout_offset, &p, &a), 77);
    assert_int_equal(slot(PARAM_dropout_first, &p, &a), 3005);
    assert_int_equal(slot(PARAM_dropout_heads, &p, &a), 1000);
    assert_ptr_equal(slot(PARAM_q, &p, &a), q_data);
    assert_ptr_equal(slot(PARAM_k, &p, &a), k_data);
    assert_ptr_equal(slot(PARAM_v, &p, &a), v_data);
    assert_ptr_equal(slot(PARAM_o, &p, &a), o_data);
    assert_ptr_equal(slot(PARAM_lse, &p, &a), o_data);
    assert_ptr_equal(slot(PARAM_lens_k, &p, &a), lens);
    assert_ptr_equal(slot(PARAM_cu_seqlens_q, &p, &a), cu_q);
    assert_ptr_equal(slot(PARAM_cu_seqlens_k, &p, &a), cu_k);
    assert_ptr_equal(slot(PARAM_slopes, &p, &a), numbers);
    assert_ptr_equal(slot(PARAM_sink, &p, &a), numbers);
    assert_ptr_equal(slot(PARAM_spec, &p, &a), &p.spec);
    assert_ptr_equal(slot(PARAM_part_o, &p, &a), (char *)q_data + 64);
    assert_ptr_equal(slot(PARAM_part_lse, &p, &a), (char *)q_data + 128);
    assert_int_equal(slot(PARAM_mask_offset_mode, &p, &a), 2);
}

static void no_scale_means_one_over_root_of_head_dim(void **state) {
    (void)state;
    attnc_args a = good();
    Plan p = plan_of("", "");
    assert_true(slot_float(PARAM_scale, &p, &a) == 1 / sqrtf(D));
    a.scale = -0.25f;
    a.softcap = 30;
    assert_true(slot_float(PARAM_scale, &p, &a) == -0.25f);
    assert_true(slot_float(PARAM_softcap, &p, &a) == 30);
}

/* ---- checks ------------------------------------------------------------- */

static void good_arguments_are_accepted(void **state) {
    (void)state;
    Plan p = plan_of("", "");
    attnc_args a = good();
    accepted(&p, &a);
    a.k.stride_h = a.v.stride_b = 0; /* broadcast */
    a.q.data = (char *)q_data + 2;   /* odd alignment is legal */
    accepted(&p, &a);
    p = plan_of("varlen=1", "");
    a = good_varlen();
    accepted(&p, &a);
}

static void empty_tensors_need_no_memory(void **state) {
    (void)state;
    Plan p = plan_of("", "");
    attnc_args a = good();
    a.seqlen_k = 0;
    a.k.data = a.v.data = a.q.data = NULL;
    accepted(&p, &a);
    a.o.data = NULL;
    refused(&p, &a, ATTNC_E_REQUEST, "o", "NULL");
    a.seqlen_q = 0;
    accepted(&p, &a);
    a = good();
    a.batch = 0;
    a.q.data = a.k.data = a.v.data = a.o.data = NULL;
    accepted(&p, &a);
}

static void wrong_sizes_are_refused(void **state) {
    (void)state;
    Plan p = plan_of("", "");
    const struct {
        const char *field;
        size_t offset;
        int64_t value;
        const char *text;
    } cases[] = {
        {"batch", offsetof(attnc_args, batch), -1, "accepted: 0.."},
        {"heads", offsetof(attnc_args, heads), 0, "accepted: 1.."},
        {"kv_heads", offsetof(attnc_args, kv_heads), -4, "accepted: 1.."},
        {"kv_heads", offsetof(attnc_args, kv_heads), 4, "not a multiple"},
        {"seqlen_q", offsetof(attnc_args, seqlen_q), -5, "accepted: 0.."},
        {"seqlen_k", offsetof(attnc_args, seqlen_k), INT64_MAX, "1073741824"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        attnc_args a = good();
        memcpy((char *)&a + cases[i].offset, &cases[i].value, 8);
        refused(&p, &a, ATTNC_E_REQUEST, cases[i].field, cases[i].text);
    }
}

static void bad_tensors_are_refused(void **state) {
    (void)state;
    Plan p = plan_of("", "");
    attnc_args a = good();
    a.k.data = NULL;
    refused(&p, &a, ATTNC_E_REQUEST, "k", "NULL");
    a = good();
    a.q.stride_b = INT64_MAX;
    refused(&p, &a, ATTNC_E_REQUEST, "q", "62 bits");
    a.q.stride_b = INT64_MIN;
    refused(&p, &a, ATTNC_E_REQUEST, "q", "62 bits");
    a = good();
    a.o.stride_h = 0;
    refused(&p, &a, ATTNC_E_REQUEST, "o", "overlap");
    a = good();
    a.o.stride_n = DV - 1;
    refused(&p, &a, ATTNC_E_REQUEST, "o", "overlap");
    a.o.stride_n = -DV;
    accepted(&p, &a);
}

static void lengths_match_the_spec_and_the_bounds(void **state) {
    (void)state;
    Plan plain = plan_of("", ""), p = plan_of("lens_k=1", "");
    attnc_args a = good();
    refused(&p, &a, ATTNC_E_REQUEST, "lens_k", "lens_k=1");
    a.lens_k = lens;
    accepted(&p, &a);
    refused(&plain, &a, ATTNC_E_REQUEST, "lens_k", "lens_k=0");
    const int32_t long_one[B] = {7, 8}, negative[B] = {-1, 2};
    a.lens_k = long_one;
    refused(&p, &a, ATTNC_E_REQUEST, "lens_k", "[1] is 8; accepted: 0..7");
    a.lens_k = negative;
    refused(&p, &a, ATTNC_E_REQUEST, "lens_k", "[0] is -1");
}

static void sequences_ascend_from_zero(void **state) {
    (void)state;
    Plan p = plan_of("varlen=1", ""), plain = plan_of("", "");
    attnc_args a = good_varlen();
    const int32_t late[B + 1] = {1, 5, 8}, down[B + 1] = {0, 5, 4},
                           far[B + 1] = {0, 6, 8};
    a.cu_seqlens_q = late;
    refused(&p, &a, ATTNC_E_REQUEST, "cu_seqlens_q", "[0] is 1");
    a.cu_seqlens_q = down;
    refused(&p, &a, ATTNC_E_REQUEST, "cu_seqlens_q", "sequence 1 has -1");
    a.cu_seqlens_q = far;
    refused(&p, &a, ATTNC_E_REQUEST, "cu_seqlens_q", "0..5 (seqlen_q)");
    a.cu_seqlens_q = NULL;
    refused(&p, &a, ATTNC_E_REQUEST, "cu_seqlens_q", "varlen=1");
    a = good();
    a.cu_seqlens_k = cu_k;
    refused(&plain, &a, ATTNC_E_REQUEST, "cu_seqlens_k", "varlen=0");
}

static void broken_promises_are_named(void **state) {
    (void)state;
    attnc_args a = good();
    Plan p = plan_of("", "mult_q=16");
    refused(&p, &a, ATTNC_E_PROMISE, "mult_q", "seqlen_q is 5");
    p = plan_of("", "mult_k=64");
    refused(&p, &a, ATTNC_E_PROMISE, "mult_k", "seqlen_k is 7");
    p = plan_of("", "max_seqlen=6");
    refused(&p, &a, ATTNC_E_PROMISE, "max_seqlen", "sequence is 7");
    p = plan_of("varlen=1", "mult_q=16");
    a = good_varlen();
    a.seqlen_q = 16;
    refused(&p, &a, ATTNC_E_PROMISE, "mult_q", "seqlen_q is 5");
}

static void rows_start_where_promised(void **state) {
    (void)state;
    Plan p = plan_of("", "align_q=16 align_k=16 align_v=16 align_o=16");
    attnc_args a = good();
    attnc_tensor *t[] = {&a.q, &a.k, &a.v, &a.o};
    const char *names[] = {"q", "k", "v", "o"};
    char *base = (char *)(((uintptr_t)q_data + 15) & ~(uintptr_t)15);
    for (int i = 0; i < 4; i++)
        t[i]->data = base;
    accepted(&p, &a);
    for (int i = 0; i < 4; i++) {
        attnc_tensor keep = *t[i];
        t[i]->data = base + 4;
        refused(&p, &a, ATTNC_E_PROMISE, names[i], "= 16 is promised");
        *t[i] = keep;
        t[i]->stride_n += 1;
        refused(&p, &a, ATTNC_E_PROMISE, names[i], "= 16 is promised");
        *t[i] = keep;
    }
    a.q.stride_n = 9; /* of a single row, so it does not matter */
    a.seqlen_q = 1;
    accepted(&p, &a);
    a.q.data = base + 1;
    refused(&p, &a, ATTNC_E_PROMISE, "q", "promised");
}

static void mask_numbers_belong_to_their_mask(void **state) {
    (void)state;
    attnc_args a = good();
    Plan none = plan_of("", ""), window = plan_of("mask=window", ""),
         prefix = plan_of("mask=prefix", "");
    a.mask_left = INT64_MAX;
    accepted(&window, &a);
    refused(&none, &a, ATTNC_E_REQUEST, "mask_left", "mask=none");
    refused(&prefix, &a, ATTNC_E_REQUEST, "mask_left", "mask=prefix");
    a.mask_left = -1;
    refused(&window, &a, ATTNC_E_REQUEST, "mask_left", "negative");
    a = good();
    a.mask_prefix = 3;
    accepted(&prefix, &a);
    refused(&window, &a, ATTNC_E_REQUEST, "mask_prefix", "mask=window");
    a = good();
    a.mask_offset_mode = 3;
    refused(&window, &a, ATTNC_E_REQUEST, "mask_offset_mode", "0..2");
    a.mask_offset_mode = ATTNC_OFFSET_LEN;
    refused(&window, &a, ATTNC_E_REQUEST, "mask_offset_mode", "lens_k=1");
}

static void score_arguments_belong_to_their_spec(void **state) {
    (void)state;
    attnc_args a = good();
    Plan plain = plan_of("", ""), cap = plan_of("softcap=1", ""),
         sink = plan_of("sink=1", ""), alibi = plan_of("alibi=1", "");
    a.scale = INFINITY;
    refused(&plain, &a, ATTNC_E_REQUEST, "scale", "infinite");
    a = good();
    const float bad[] = {0, -1, INFINITY, NAN};
    for (int i = 0; i < 4; i++) {
        a.softcap = bad[i];
        refused(&cap, &a, ATTNC_E_REQUEST, "softcap", "finite number > 0");
    }
    a.softcap = 20;
    accepted(&cap, &a);
    refused(&plain, &a, ATTNC_E_REQUEST, "softcap", "softcap=0");
    a = good();
    a.sink = numbers;
    accepted(&sink, &a);
    refused(&plain, &a, ATTNC_E_REQUEST, "sink", "sink=0");
    a = good();
    refused(&sink, &a, ATTNC_E_REQUEST, "sink", "sink=1");
    accepted(&alibi, &a); /* default slopes */
    a.slopes = numbers;
    accepted(&alibi, &a);
    refused(&plain, &a, ATTNC_E_REQUEST, "slopes", "alibi=0");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dims_follow_the_lengths),
        cmocka_unit_test(the_workspace_is_aligned_and_does_not_overlap),
        cmocka_unit_test(a_workspace_beyond_63_bits_is_refused),
        cmocka_unit_test(every_parameter_reaches_its_slot),
        cmocka_unit_test(no_scale_means_one_over_root_of_head_dim),
        cmocka_unit_test(good_arguments_are_accepted),
        cmocka_unit_test(empty_tensors_need_no_memory),
        cmocka_unit_test(wrong_sizes_are_refused),
        cmocka_unit_test(bad_tensors_are_refused),
        cmocka_unit_test(lengths_match_the_spec_and_the_bounds),
        cmocka_unit_test(sequences_ascend_from_zero),
        cmocka_unit_test(broken_promises_are_named),
        cmocka_unit_test(rows_start_where_promised),
        cmocka_unit_test(mask_numbers_belong_to_their_mask),
        cmocka_unit_test(score_arguments_belong_to_their_spec),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
