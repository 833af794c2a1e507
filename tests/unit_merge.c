/* SPDX-License-Identifier: Apache-2.0
 * Merging results of parts of the keys, forward and backward: built-in and
 * compiled kernels, emulated GPUs. */
#include "merge_case.h"

/* ---- segments ------------------------------------------------------------ */

static Case random_case(void) {
    Case c = case_of((int)random_int(0, 2), (int)random_int(1, 72),
                     (int)random_int(0, 70), (int)random_int(0, 3));
    attnc_spec *s = &c.spec;
    s->lens_k = random_int(0, 2) == 0;
    s->softcap = random_int(0, 3) == 0;
    s->alibi = random_int(0, 2) == 0;
    s->sink = random_int(0, 1);
    c.mode = (int32_t)random_int(0, 1);
    c.offset = random_int(-9, 40);
    c.left = s->mask == ATTNC_MASK_WINDOW ? random_int(0, 30) : 0;
    c.right = s->mask == ATTNC_MASK_WINDOW ? random_int(0, 9) : 0;
    c.prefix = s->mask == ATTNC_MASK_PREFIX ? random_int(0, 60) : 0;
    return c;
}

/* small: for targets that are slow */
static void sizes_of(Case *c, bool small) {
    c->batch = random_int(1, small ? 2 : 3);
    c->kv_heads = random_int(1, 2);
    c->heads = c->kv_heads * random_int(1, small ? 2 : 3);
    c->nq = random_int(1, small ? 20 : 40);
    c->nk = random_int(0, 3) ? random_int(1, small ? 60 : 150) : 0;
    c->layout = (int)random_int(0, LAYOUTS - 1);
    c->layout = c->layout == SHARED ? BNHD : c->layout;
}

static void keys_in_segments_are_one_attention(void **state) {
    (void)state;
    for (int t = 0; t < TARGETS; t++)
        for (int i = 0; i < targets[t].cases; i++) {
            Case c = random_case();
            for (int k = t > 1 ? 2 : 0; k < 4; k++) {
                sizes_of(&c, t > 1);
                segments_check(targets[t].ctx, &c, 1 + k);
            }
        }
}

/* ---- merging alone ------------------------------------------------------- */

enum { B = 2, H = 3, NQ = 5, DV = 21, MOST = 40 };
enum { ROWS = B * H * NQ };

typedef struct Part {
    float o[ROWS][DV], lse[ROWS];
} Part;

static void part_fill(Part *p) {
    for (int r = 0; r < ROWS; r++) {
        p->lse[r] = 4 * random_float();
        for (int e = 0; e < DV; e++)
            p->o[r][e] = random_float();
    }
}

static attnc_tensor dense(float (*o)[DV]) {
    return (attnc_tensor){o, H * NQ * DV, NQ * DV, DV};
}

static attnc_part listed(Part *p) {
    return (attnc_part){dense(p->o), p->lse, H * NQ, NQ, 1};
}

static attnc_args merged_args(Part *out) {
    attnc_args a = ATTNC_ARGS_INIT;
    memset(out, 0x5a, sizeof *out);
    a.batch = B;
    a.heads = a.kv_heads = H;
    a.seqlen_q = NQ;
    a.o = dense(out->o);
    a.lse = out->lse;
    a.lse_stride_b = H * NQ;
    a.lse_stride_h = NQ;
    return a;
}

static attnc_spec f32_spec(void) {
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    s.head_dim = DV;
    return s;
}

static void merge_into(attnc_context *ctx, Part *out, Part *const *in, int n) {
    attnc_spec s = f32_spec();
    attnc_args a = merged_args(out);
    attnc_part parts[MOST];
    for (int i = 0; i < n; i++)
        parts[i] = listed(in[i]);
    if (attnc_merge(ctx, &s, &a, parts, n, NULL))
        fail_msg("merge: %s\n%s", attnc_last_error()->text,
                 attnc_last_error()->log);
}

static void same_within(const Part *x, const Part *y, double limit) {
    for (int r = 0; r < ROWS; r++) {
        if (x->lse[r] != y->lse[r] && !(fabs(x->lse[r] - y->lse[r]) <= limit))
            fail_msg("lse %g, %g", (double)x->lse[r], (double)y->lse[r]);
        for (int e = 0; e < DV; e++)
            if (!(fabs(x->o[r][e] - y->o[r][e]) <= limit))
                fail_msg("o %g, %g", (double)x->o[r][e], (double)y->o[r][e]);
    }
}

static void any_number_of_parts_agrees_with_f64(void **state) {
    (void)state;
    static Part p[MOST], out, want;
    Part *in[MOST];
    for (int t = 0; t < TARGETS; t++)
        for (int n = 1; n <= MOST; n += 13) {
            for (int i = 0; i < n; i++)
                part_fill(in[i] = &p[i]);
            for (int r = 0; r < ROWS; r++) {
                double sum = 0, o[DV] = {0};
                for (int i = 0; i < n; i++)
                    sum += exp((double)p[i].lse[r]);
                for (int i = 0; i < n; i++)
                    for (int e = 0; e < DV; e++)
                        o[e] += exp((double)p[i].lse[r]) / sum *
                                (double)p[i].o[r][e];
                want.lse[r] = (float)log(sum);
                for (int e = 0; e < DV; e++)
                    want.o[r][e] = (float)o[e];
            }
            merge_into(targets[t].ctx, &out, in, n);
            same_within(&out, &want, 3e-6);
        }
}

static void merging_is_associative_and_doubles_what_comes_twice(void **state) {
    (void)state;
    static Part p[3], left, right, some;
    for (int t = 0; t < TARGETS; t++) {
        attnc_context *c = targets[t].ctx;
        for (int i = 0; i < 3; i++)
            part_fill(&p[i]);
        merge_into(c, &some, (Part *[]){&p[0], &p[1]}, 2);
        merge_into(c, &left, (Part *[]){&some, &p[2]}, 2);
        merge_into(c, &some, (Part *[]){&p[1], &p[2]}, 2);
        merge_into(c, &right, (Part *[]){&p[0], &some}, 2);
        same_within(&left, &right, 3e-6);
        merge_into(c, &some, (Part *[]){&p[0], &p[0]}, 2);
        for (int r = 0; r < ROWS; r++)
            some.lse[r] -= (float)log(2);
        same_within(&some, &p[0], 1e-6);
    }
}

/* What saw no key may hold anything. */
static void parts_without_keys_take_no_part(void **state) {
    (void)state;
    static Part p[2], out;
    for (int t = 0; t < TARGETS; t++) {
        part_fill(&p[0]);
        memset(&p[1], 0xff, sizeof p[1]);
        for (int r = 0; r < ROWS; r++)
            p[1].lse[r] = -INFINITY;
        merge_into(targets[t].ctx, &out, (Part *[]){&p[1], &p[0], &p[1]}, 3);
        same_within(&out, &p[0], 1e-6);
        merge_into(targets[t].ctx, &out, (Part *[]){&p[1], &p[1]}, 2);
        for (int r = 0; r < ROWS; r++) {
            assert_true(out.lse[r] == -INFINITY);
            for (int e = 0; e < DV; e++)
                assert_true(out.o[r][e] == 0);
        }
    }
}

/* Packed sequences; a mask's two sides as the parts. */
static void packed_sequences_merge(void **state) {
    (void)state;
    for (int t = 0; t < TARGETS; t++) {
        Case c = case_of(ATTNC_F32, 24, 0, ATTNC_MASK_NONE);
        Data d;
        float o[2][2 * 20 * 2 * 24], lse[2][2 * 40];
        attnc_part parts[2];
        c.spec.varlen = c.spec.sink = 1;
        c.batch = c.heads = 2;
        c.nq = 20;
        c.nk = 30;
        c.layout = BNHD;
        data_make(&c, &d);
        for (int i = 0; i < 2; i++) { /* k <= q + 3; k >= q + 4 */
            attnc_spec s = c.spec;
            attnc_args a = d.args;
            s.sink = 0;
            s.mask = ATTNC_MASK_WINDOW;
            a.sink = NULL;
            a.mask_offset = 3 + i;
            a.mask_left = i ? 0 : INT64_MAX;
            a.mask_right = i ? INT64_MAX : 0;
            a.o = (attnc_tensor){o[i], 0, 24, 48};
            a.lse = lse[i];
            a.lse_stride_h = 40;
            run_or_fail(targets[t].ctx, &s, &a);
            parts[i] = (attnc_part){a.o, a.lse, 0, 40, 0};
        }
        assert_int_equal(
            attnc_merge(targets[t].ctx, &c.spec, &d.args, parts, 2, NULL), 0);
        check_results(&c, &d);
        check_kept(&c, &d);
        data_free(&d);
    }
}

/* ---- what is refused ----------------------------------------------------- */

static void refused(attnc_context *ctx, const attnc_spec *s,
                    const attnc_args *a, const attnc_part *p, int64_t n,
                    const char *field) {
    assert_int_equal(attnc_merge(ctx, s, a, p, n, NULL), ATTNC_E_REQUEST);
    assert_string_equal(attnc_last_error()->field, field);
}

static void bad_parts_are_refused(void **state) {
    (void)state;
    static Part in, out;
    attnc_context *ctx = targets[0].ctx;
    attnc_spec s = f32_spec();
    attnc_args a = merged_args(&out);
    attnc_part good = listed(&in), bad = good;
    refused(ctx, &s, &a, NULL, 1, "parts");
    refused(ctx, &s, &a, &good, 0, "part_count");
    refused(ctx, NULL, &a, &good, 1, "spec");
    refused(ctx, &s, NULL, &good, 1, "args");
    refused(NULL, &s, &a, &good, 1, "ctx");
    bad.lse = NULL;
    refused(ctx, &s, &a, &bad, 1, "parts");
    bad = good;
    bad.o.data = NULL;
    refused(ctx, &s, &a, &bad, 1, "parts");
    bad = good;
    bad.f32 = 2;
    refused(ctx, &s, &a, &bad, 1, "parts");
    s.sink = 1;
    refused(ctx, &s, &a, &good, 1, "sink");
    s = f32_spec();
    s.pass = ATTNC_PASS_MERGE; /* strict where it is asked for itself */
    s.mask = ATTNC_MASK_CAUSAL;
    a.parts = &good;
    a.part_count = 1;
    assert_int_equal(attnc_run(ctx, &s, &a, NULL), ATTNC_E_REQUEST);
    assert_string_equal(attnc_last_error()->field, "mask");
    s = f32_spec();
    assert_int_equal(attnc_run(ctx, &s, &a, NULL), ATTNC_E_REQUEST);
}

int main(void) {
    const struct CMUnitTest tests[] = {

        cmocka_unit_test(keys_in_segments_are_one_attention),
        cmocka_unit_test(any_number_of_parts_agrees_with_f64),
        cmocka_unit_test(merging_is_associative_and_doubles_what_comes_twice),
        cmocka_unit_test(parts_without_keys_take_no_part),
        cmocka_unit_test(packed_sequences_merge),
        cmocka_unit_test(bad_parts_are_refused),
    };
    return cmocka_run_group_tests(tests, open_contexts, close_contexts);
}
