/* SPDX-License-Identifier: Apache-2.0
 * Random programs, compiled for CPUs, agree with plain f64, value and gradient:
 * many of them in one kernel, which a number among its tensors chooses from. */
#include "program_truth.h"

#include "fuzz/program_random.h"

enum { KERNELS = 17, EACH = 12 };

/* ---- programs ---------------------------------------------------------- */

/* Texts of one kernel's masks and scores, without their declarations. */
typedef struct Texts {
    char *mask[EACH], *score[EACH];
} Texts;

static char *body_of(uint64_t *seed, int type, int depth) {
    Str s = {0};
    random_expr(seed, type, depth, type == TYPE_FLOAT, &s);
    assert_false(s.bad);
    return s.text;
}

static Texts texts_make(uint64_t *seed) {
    Texts t;
    for (int i = 0; i < EACH; i++) {
        t.mask[i] = body_of(seed, TYPE_BOOL, 1 + i % 4);
        t.score[i] = body_of(seed, TYPE_FLOAT, 1 + i % 4);
    }
    return t;
}

static void texts_free(Texts *t) {
    for (int i = 0; i < EACH; i++) {
        free(t->mask[i]);
        free(t->score[i]);
    }
}

static const attnc_program *interned(const Str *text, int kind) {
    const attnc_program *p = NULL;
    Err e = {0};
    if (program_intern(text->text, kind, NULL, 0, &p, &e))
        fail_msg("%s", e.text);
    return p;
}

static const attnc_program *single(const char *body, int kind) {
    Str s = {0};
    str_addf(&s, RANDOM_TENSORS "%s", body);
    const attnc_program *p = interned(&s, kind);
    str_free(&s);
    return p;
}

/* "which == 0 ? first : which == 1 ? second : ..". */
static const attnc_program *choice(char *const *body, int kind) {
    Str s = {0};
    str_addf(&s, RANDOM_TENSORS "i32 which; ");
    for (int i = 0; i < EACH; i++)
        str_addf(&s, "which == %d ? %s : ", i, body[i]);
    str_addf(&s, kind == PROGRAM_MASK ? "false" : "s");
    const attnc_program *p = interned(&s, kind);
    str_free(&s);
    return p;
}

/* ---- comparison -------------------------------------------------------- */

/* Rows of a launched tensor, as a Truth has them. */
static double *gather(const Case *c, const attnc_tensor *x, const int32_t *cu,
                      int64_t heads, int64_t n, int dim) {
    double *out = zeros(c->batch * heads * n * dim);
    for (int64_t b = 0; b < c->batch; b++) {
        int64_t from, to;
        rows_of(c, cu, n, b, &from, &to);
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = from; i < to; i++)
                for (int e = 0; e < dim; e++)
                    out[((b * heads + h) * n + i - from) * dim + e] =
                        number(c, x, b, h, i, e);
    }
    return out;
}

/* x against what is expected for scores as they are, and nudged both ways. */
static void expect_close(const char *name, const double *x, int64_t n,
                         double *const want[3], const char *text) {
    double size = 0;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(want[0][i]))
            size = fmax(size, fabs(want[0][i]));
    for (int64_t i = 0; i < n; i++) {
        double a = want[0][i], up = want[1][i], down = want[2][i];
        double slack = fmax(fabs(up - a), fabs(down - a));
        if (!isfinite(slack) && (isfinite(up) || isfinite(a) || isfinite(down)))
            continue; /* on the edge */
        if (isnan(a) ? isnan(x[i]) || slack > 0
                     : x[i] == a || fabs(x[i] - a) <=
                                        8 * slack + 1e-3 * (fabs(a) + 1e-2) +
                                            1e-4 * size)
            continue;
        fail_msg("%s[%lld]: %.9g, expected %.9g (%.9g, %.9g)\n%s", name,
                 (long long)i, x[i], a, up, down, text);
    }
}

static void expect_tensor(const Case *c, const char *name,
                          const attnc_tensor *x, const int32_t *cu,
                          int64_t heads, int64_t n, int dim,
                          double *const want[3], const char *text) {
    double *got = gather(c, x, cu, heads, n, dim);
    expect_close(name, got, c->batch * heads * n * dim, want, text);
    free(got);
}

#define OF(field) ((double *const[3]){t[0].field, t[1].field, t[2].field})

static void expect_all(const Case *c, const GradData *g, const Arrays *x,
                       double *const (*expect)[3], const Truth t[3],
                       const char *text) {
    const attnc_args *a = &g->d.args;
    const int32_t *cu_q = g->d.cu_q, *cu_k = g->d.cu_k;
    int d = c->spec.head_dim, dv = case_dv(c);
    expect_tensor(c, "o", &a->o, cu_q, c->heads, c->nq, dv, OF(o), text);
    expect_tensor(c, "dq", &a->dq, cu_q, c->heads, c->nq, d, OF(dq), text);
    expect_tensor(c, "dk", &a->dk, cu_k, c->kv_heads, c->nk, d, OF(dk), text);
    expect_tensor(c, "dv", &a->dv, cu_k, c->kv_heads, c->nk, dv, OF(dv), text);
    for (int i = 0; i < x->n; i++) {
        double *got = zeros(x->size[i]);
        for (int64_t e = 0; x->grad[i] && e < x->size[i]; e++)
            got[e] = (double)x->grad[i][e];
        if (x->grad[i])
            expect_close(x->known[i].name, got, x->size[i], expect[i], text);
        free(got);
    }
}

/* ---- running ----------------------------------------------------------- */

static Case case_of_kernel(int i, const Texts *t) {
    Case c = CASE_INIT;
    c.spec.head_dim = 8;
    c.spec.mask = ATTNC_MASK_PROGRAM;
    c.spec.mask_program = choice(t->mask, PROGRAM_MASK);
    c.spec.score_program = choice(t->score, PROGRAM_SCORE);
    c.spec.dropout = i % 3 == 1;
    c.spec.varlen = i % 4 == 2;
    c.spec.sink = i % 5 == 3;
    c.spec.softcap = i % 7 == 4;
    c.spec.alibi = i % 6 == 5;
    c.batch = 1 + i % 2;
    c.kv_heads = 1 + i % 2;
    c.heads = 2;
    c.nq = 17 + i % 3;
    c.nk = 21 + i % 9;
    c.mode = ATTNC_OFFSET_BR;
    attnc_spec bwd = grad_spec(&c);
    c.spec.tensor_grads = (int32_t)spec_grads_possible(&bwd);
    return c;
}

/* The same case with the which-th program alone. */
static Case alone(const Case *c, const Texts *t, int which) {
    Case one = *c;
    one.spec.mask_program = single(t->mask[which], PROGRAM_MASK);
    one.spec.score_program = single(t->score[which], PROGRAM_SCORE);
    one.spec.tensor_grads = 0;
    attnc_spec bwd = grad_spec(&one);
    one.spec.tensor_grads = (int32_t)spec_grads_possible(&bwd);
    return one;
}

static void choose(Arrays *x, int which) {
    for (int i = 0; i < x->n; i++)
        if (!strcmp(x->known[i].name, "which"))
            *(int32_t *)x->data[i] = which;
}

static void check_program(const Case *c, const Texts *texts, int which,
                          attnc_plan *fwd, attnc_plan *bwd) {
    static const double nudges[] = {0, 4e-6, -4e-6};
    double *expect[SPEC_TENSORS][3];
    GradData g;
    Arrays x;
    Truth t[3];
    Case one = alone(c, texts, which);
    char text[8192];
    snprintf(text, sizeof text, "mask %s\nscore %s", texts->mask[which],
             texts->score[which]);
    grad_make(c, &g);
    arrays_make(c, &x, &g.d.args);
    choose(&x, which);
    for (int i = 0; i < 3; i++) {
        nudge = nudges[i];
        truth_make(&one, &g, &x, true, &t[i]);
        for (int k = 0; k < x.n; k++) {
            expect[k][i] = x.expect[k];
            x.expect[k] = zeros(x.size[k]);
        }
    }
    case_launch(c, fwd, &g.d);
    arrays_ask(&x);
    case_launch(c, bwd, &g.d);
    expect_all(c, &g, &x, expect, t, text);
    for (int i = 0; i < 3; i++) {
        truth_free(&t[i]);
        for (int k = 0; k < x.n; k++)
            free(expect[k][i]);
    }
    arrays_free(&x);
    grad_free(&g);
}

static void random_programs_agree_with_f64(void **state) {
    (void)state;
    attnc_context *ctx = context_make(KERNEL_COMPILED, NULL, 2);
    uint64_t seed = 4;
    for (int i = 0; i < KERNELS; i++) {
        Texts texts = texts_make(&seed);
        Case c = case_of_kernel(i, &texts);
        attnc_shape shape = ATTNC_SHAPE_DEFAULT;
        attnc_spec first = c.spec, second = grad_spec(&c);
        first.tensor_grads = 0;
        attnc_plan *fwd = plan_make(ctx, &first, &shape);
        attnc_plan *bwd = plan_make(ctx, &second, &shape);
        for (int which = 0; which < EACH; which++)
            check_program(&c, &texts, which, fwd, bwd);
        attnc_plan_release(fwd);
        attnc_plan_release(bwd);
        texts_free(&texts);
    }
    attnc_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_programs_agree_with_f64),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
