/* SPDX-License-Identifier: Apache-2.0
 * Plans of a backward with gradients of tensors: what its items own, into how
 * many parts their work falls, which gradients have copies. */
#include "gen_util.h"
#include "program.h"

/* ---- how work is shared out -------------------------------------------- */

typedef struct Row {
    const char *spec;          /* of all its tensors the gradients */
    const char *owned, *split; /* letters of bhq */
    unsigned grads, parted;    /* bits of spec_tensors */
} Row;

static const Row rows[] = {
    {"score_program=\"f32 t[:]; s + t[abs(q - k)]\"", "", "bhq", 1, 1},
    {"score_program=\"f32 t[:,:]; s + t[abs(q - k), h]\"", "h", "bhq", 1, 1},
    {"score_program=\"f32 t[:]; s * t[0]\"", "", "bhq", 1, 1},
    {"bias=1", "", "bhq", 1, 1},
    {"bias=k", "", "bhq", 1, 1},
    {"bias=bk", "b", "bhq", 1, 1},
    {"bias=bhq", "bhq", "bhq", 1, 0},
    {"bias=qk", "q", "q", 1, 0},
    {"bias=hqk", "hq", "hq", 1, 0},
    {"bias=bhqk", "bhq", "bhq", 1, 0},
    /* a table beside a bias; two tensors that share no index */
    {"bias=hqk score_program=\"f32 t[:]; s + t[abs(q - k)]\"", "", "hq", 3, 2},
    {"score_program=\"f32 x[:]; f32 y[:]; s * x[b] + y[h]\"", "", "bhq", 3, 3},
    {"score_program=\"f32 x[:,:]; f32 y[:]; s * x[b, h] + y[b]\"", "b", "bhq",
     3, 3},
    /* a copy for each part would be too much */
    {"score_program=\"f32 t[:,:]; s + t[q, abs(q - k)]\"", "q", "q", 1, 0},
    {"score_program=\"f32 t[:,:]; s + t[k, abs(q - k)]\"", "", "", 1, 0},
    {"score_program=\"f32 t[:,:]; s + t[q, k] + t[k, q]\"", "", "", 1, 0},
};
enum { ROWS = sizeof rows / sizeof *rows };

static unsigned deps(const char *letters) {
    return (strchr(letters, 'b') ? DEP_B : 0u) |
           (strchr(letters, 'h') ? DEP_H : 0u) |
           (strchr(letters, 'q') ? DEP_Q : 0u);
}

static attnc_spec spec_of(const Row *r) {
    char text[512];
    snprintf(text, sizeof text, "pass=bwd %s tensor_grads=%u", r->spec,
             r->grads);
    return spec(text);
}

static void reads_say_how_work_is_shared(void **state) {
    (void)state;
    for (int i = 0; i < ROWS; i++) {
        attnc_spec s = spec_of(&rows[i]);
        GradShare share = grad_share(spec_score_grad(&s));
        if (share.owned != deps(rows[i].owned) ||
            share.split != deps(rows[i].split) ||
            spec_grads_parted(&s) != rows[i].parted)
            fail_msg("%s: %u %u %u", rows[i].spec, share.owned, share.split,
                     spec_grads_parted(&s));
    }
}

/* ---- plans ------------------------------------------------------------- */

static Plan plan_of(const char *target, const attnc_spec *s,
                    const char *sizes) {
    Plan p;
    Err e = {0};
    attnc_shape h = shape(sizes);
    Device d = device(target);
    if (plan_choose(s, &h, &d, NULL, &p, &e))
        fail_msg("%s: %s", target, e.text);
    return p;
}

static const Step *step_of(const Plan *p, int role) {
    for (int i = 0; i < p->nstep; i++)
        if (p->step[i].role == role)
            return &p->step[i];
    return NULL;
}

static bool takes(const Step *s, int id) {
    for (int i = 0; i < s->nparam; i++)
        if (s->param[i].id == id)
            return true;
    return false;
}

static const char *const targets[] = {"avx2", "portable", "T4", "H200"};
enum { TARGETS = sizeof targets / sizeof *targets };

/* dtensor_zero where something is not parted, dtensor_sum and copies where
 * something is; printed and read back. */
static void a_plan_has_the_steps_its_gradients_need(void **state) {
    (void)state;
    for (int i = 0; i < ROWS * TARGETS; i++) {
        const Row *r = &rows[i / TARGETS];
        attnc_spec s = spec_of(r);
        Plan p = plan_of(targets[i % TARGETS], &s, ""), again;
        const Step *zero = step_of(&p, ROLE_dtensor_zero);
        const Step *sum = step_of(&p, ROLE_dtensor_sum);
        const Step *main = step_of(&p, ROLE_dtensor);
        Err e = {0};
        Str text = {0};
        assert_non_null(main);
        assert_int_equal(zero != NULL, (r->grads & ~r->parted) != 0);
        assert_int_equal(sum != NULL, r->parted != 0);
        assert_int_equal(takes(main, PARAM_part_tensor), r->parted != 0);
        assert_int_equal(!strcmp(p.buf[p.nbuf - 1].name, "part_tensor"),
                         r->parted != 0);
        plan_print(&p, &text);
        if (plan_parse(text.text, &again, &e))
            fail_msg("%s: %s\n%s", r->spec, e.text, text.text);
        assert_int_equal(again.tensor_parts, p.tensor_parts);
        str_free(&text);
    }
}

static int parts(const char *target, const char *text, const char *sizes) {
    attnc_spec s = spec(text);
    return plan_of(target, &s, sizes).tensor_parts;
}

static void parts_fill_the_machine_and_no_more(void **state) {
    (void)state;
    const char *table = "pass=bwd tensor_grads=1 "
                        "score_program=\"f32 t[:]; s + t[abs(q - k)]\"";
    const char *heads = "pass=bwd tensor_grads=1 "
                        "score_program=\"f32 t[:]; s + t[h]\"";
    const char *large = "batch=8 heads=32 kv_heads=32 seqlen_q=8192";
    Device chip = device("H200");
    /* three for each SM; no more than there are cells; of what heads own */
    int most = parts("H200", table, large);
    assert_int_equal(most, 3 * (int)chip.cores);
    assert_int_equal(parts("H200", heads, large), (most + 31) / 32);
    assert_int_equal(
        parts("H200", table, "batch=3 heads=2 kv_heads=1 seqlen_q=1"), 6);
    assert_int_equal(
        parts("avx2", table, "batch=3 heads=2 kv_heads=1 seqlen_q=1"), 3);
    assert_int_equal(parts("H200", heads,
                           "batch=1 heads=9 kv_heads=9 "
                           "seqlen_q=1"),
                     1);
    assert_true(parts("avx2", table, large) > 1);
}

static void the_batch_does_not_decide_where_it_must_not(void **state) {
    (void)state;
    const char *text = "pass=bwd tensor_grads=1 batch_invariant=1 "
                       "score_program=\"f32 t[:]; s + t[abs(q - k)]\"";
    for (int i = 0; i < TARGETS; i++)
        assert_int_equal(parts(targets[i], text, "batch=1 seqlen_q=500"),
                         parts(targets[i], text, "batch=64 seqlen_q=500"));
}

static void the_builtin_kernel_has_no_parts(void **state) {
    (void)state;
    attnc_spec s = spec_of(&rows[0]);
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    Device d = device("avx2");
    Plan p;
    Err e = {0};
    assert_int_equal(plan_choose(&s, &h, &d, &(Pins){.builtin = true}, &p, &e),
                     0);
    assert_int_equal(p.nbuf, 0);
    assert_int_equal(p.parted, 0);
    assert_int_equal(p.step[p.nstep - 1].role, ROLE_dtensor);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_say_how_work_is_shared),
        cmocka_unit_test(a_plan_has_the_steps_its_gradients_need),
        cmocka_unit_test(parts_fill_the_machine_and_no_more),
        cmocka_unit_test(the_batch_does_not_decide_where_it_must_not),
        cmocka_unit_test(the_builtin_kernel_has_no_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
