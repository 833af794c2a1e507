/* SPDX-License-Identifier: Apache-2.0
 * Training through a merge of parts with dropout: in f64 against finite
 * differences, then the kernels against that. */
#include "dropout.h"
#include "merge_case.h"

/* ---- the model ----------------------------------------------------------- */

enum { N = 9, D = 4, E = 3, THREE = 3, KEYS = 28 };
static const int first_of[THREE + 1] = {0, 5, 12, KEYS};
static const double SCALE = 0.5;

/* One head in f64; each part's dropout has an offset of its own and counts
 * that part's keys from 0. */
typedef struct Model {
    double q[N][D], k[KEYS][D], v[KEYS][E];
    double dout[N][E], dlse[N];
    double keep[N][KEYS]; /* 0, or 1 / (1 - p) */
} Model;

static const Dropout drawn = {.seed = 77, .threshold = 65536 / 4, .heads = 1};

static void model_fill(Model *m) {
    double *x = &m->q[0][0];
    for (size_t i = 0; i < offsetof(Model, keep) / sizeof *x; i++)
        x[i] = (double)random_float(); /* exact in f32 */
    for (int i = 0; i < N; i++)
        for (int s = 0; s < THREE; s++)
            for (int j = first_of[s]; j < first_of[s + 1]; j++) {
                uint16_t numbers[DROPOUT_PATCH];
                Dropout d = drawn;
                int at = j - first_of[s];
                d.offset = (uint32_t)s;
                dropout_numbers(&d, 0, 0, i, at / DROPOUT_PATCH, numbers);
                bool kept = numbers[at % DROPOUT_PATCH] >= d.threshold;
                m->keep[i][j] = kept ? 1 / 0.75 : 0;
            }
}

static double dot(const double *x, const double *y, int n) {
    double sum = 0;
    for (int e = 0; e < n; e++)
        sum += x[e] * y[e];
    return sum;
}

/* Row i of the merge of the parts' own O and LSE (P3). */
static void model_row(const Model *m, int i, double o[E], double *lse) {
    double total = 0;
    memset(o, 0, sizeof(double) * E);
    for (int s = 0; s < THREE; s++) {
        double sum = 0, own[E] = {0};
        for (int j = first_of[s]; j < first_of[s + 1]; j++) {
            double w = exp(SCALE * dot(m->q[i], m->k[j], D));
            sum += w;
            for (int e = 0; e < E; e++)
                own[e] += w * m->keep[i][j] * m->v[j][e];
        }
        total += exp(log(sum));
        for (int e = 0; e < E; e++)
            o[e] += exp(log(sum)) * (own[e] / sum);
    }
    for (int e = 0; e < E; e++)
        o[e] /= total;
    *lse = log(total);
}

static double model_loss(const Model *m) {
    double loss = 0, o[E], lse;
    for (int i = 0; i < N; i++) {
        model_row(m, i, o, &lse);
        loss += dot(o, m->dout[i], E) + lse * m->dlse[i];
    }
    return loss;
}

/* P4: every part's ordinary backward with the merged O and LSE, summed. */
static void model_grad(const Model *m, Model *g) {
    *g = (Model){0};
    for (int i = 0; i < N; i++) {
        double o[E], lse;
        model_row(m, i, o, &lse);
        double delta = dot(o, m->dout[i], E) - m->dlse[i];
        for (int j = 0; j < KEYS; j++) {
            double p = exp(SCALE * dot(m->q[i], m->k[j], D) - lse);
            double dp = m->keep[i][j] * dot(m->dout[i], m->v[j], E);
            double ds = p * (dp - delta) * SCALE;
            for (int e = 0; e < D; e++) {
                g->q[i][e] += ds * m->k[j][e];
                g->k[j][e] += ds * m->q[i][e];
            }
            for (int e = 0; e < E; e++)
                g->v[j][e] += p * m->keep[i][j] * m->dout[i][e];
        }
    }
}

static void a_merge_has_the_gradients_of_finite_differences(void **state) {
    (void)state;
    static const double step[4] = {-2, -1, 1, 2}, by[4] = {1, -8, 8, -1};
    Model m, g;
    double h = 1e-3, worst = 0;
    model_fill(&m);
    model_grad(&m, &g);
    double *x = &m.q[0][0];
    const double *grad = &g.q[0][0];
    for (size_t i = 0; i < offsetof(Model, dout) / sizeof *x; i++) {
        double old = x[i], slope = 0;
        for (int k = 0; k < 4; k++) {
            x[i] = old + step[k] * h;
            slope += by[k] * model_loss(&m) / (12 * h);
        }
        x[i] = old;
        worst = fmax(worst, fabs(slope - grad[i]));
    }
    print_message("worst difference %.2g\n", worst);
    assert_true(worst < 1e-8);
}

/* ---- the kernels --------------------------------------------------------- */

static void to_f32(float *to, const double *from, int n) {
    for (int i = 0; i < n; i++)
        to[i] = (float)from[i];
}

static void agrees(const char *what, const float *x, const double *want,
                   int n) {
    double off = 0, all = 0;
    for (int i = 0; i < n; i++) {
        off += pow((double)x[i] - want[i], 2);
        all += want[i] * want[i];
    }
    if (!(sqrt(off / all) < 3e-6))
        fail_msg("%s is off by %g", what, sqrt(off / all));
}

static attnc_tensor rows(float *data, int dim) {
    return (attnc_tensor){data, 0, 0, dim};
}

typedef struct Three {
    float q[N * D], k[KEYS * D], v[KEYS * E], dout[N * E], dlse[N];
    float o[THREE + 1][N * E], lse[THREE + 1][N];
    float dq[THREE][N * D], dk[KEYS * D], dv[KEYS * E];
    attnc_args args;
} Three;

static void three_fill(Three *x, const Model *m) {
    attnc_args *a = &x->args;
    to_f32(x->q, &m->q[0][0], N * D);
    to_f32(x->k, &m->k[0][0], KEYS * D);
    to_f32(x->v, &m->v[0][0], KEYS * E);
    to_f32(x->dout, &m->dout[0][0], N * E);
    to_f32(x->dlse, m->dlse, N);
    *a = (attnc_args)ATTNC_ARGS_INIT;
    a->batch = a->heads = a->kv_heads = 1;
    a->seqlen_q = N;
    a->scale = (float)SCALE;
    a->q = rows(x->q, D);
    a->dout = rows(x->dout, E);
    a->dlse = x->dlse;
    a->dropout_p = 0.25;
    a->dropout_seed = drawn.seed;
}

/* The part's keys, and offset of its dropout. */
static attnc_args three_part(Three *x, int s) {
    attnc_args a = x->args;
    int j = first_of[s];
    a.seqlen_k = first_of[s + 1] - j;
    a.k = rows(x->k + j * D, D);
    a.v = rows(x->v + j * E, E);
    a.dk = rows(x->dk + j * D, D);
    a.dv = rows(x->dv + j * E, E);
    a.dropout_offset = (uint64_t)s;
    return a;
}

static void three_run(attnc_context *ctx, Three *x) {
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    attnc_part parts[THREE];
    s.dropout = 1;
    s.head_dim = D;
    s.head_dim_v = E;
    for (int i = 0; i < THREE; i++) {
        attnc_args a = three_part(x, i);
        a.o = rows(x->o[i], E);
        a.lse = x->lse[i];
        run_or_fail(ctx, &s, &a);
        parts[i] = (attnc_part){a.o, a.lse, 0, 0, 0};
    }
    x->args.o = rows(x->o[THREE], E);
    x->args.lse = x->lse[THREE];
    assert_int_equal(attnc_merge(ctx, &s, &x->args, parts, THREE, NULL), 0);
    s.pass = ATTNC_PASS_BWD;
    for (int i = 0; i < THREE; i++) {
        attnc_args a = three_part(x, i);
        a.dq = rows(x->dq[i], D);
        run_or_fail(ctx, &s, &a);
    }
    for (int i = 0; i < N * D; i++)
        x->dq[0][i] += x->dq[1][i] + x->dq[2][i];
}

static void kernels_have_the_same_gradients_with_dropout(void **state) {
    (void)state;
    static Three x;
    Model m, g;
    model_fill(&m);
    model_grad(&m, &g);
    for (int t = 0; t < TARGETS; t++) {
        three_fill(&x, &m);
        three_run(targets[t].ctx, &x);
        double o[N][E], lse[N];
        for (int i = 0; i < N; i++)
            model_row(&m, i, o[i], &lse[i]);
        agrees("o", x.o[THREE], &o[0][0], N * E);
        agrees("lse", x.lse[THREE], lse, N);
        agrees("dq", x.dq[0], &g.q[0][0], N * D);
        agrees("dk", x.dk, &g.k[0][0], KEYS * D);
        agrees("dv", x.dv, &g.v[0][0], KEYS * E);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_merge_has_the_gradients_of_finite_differences),
        cmocka_unit_test(kernels_have_the_same_gradients_with_dropout),
    };
    return cmocka_run_group_tests(tests, open_contexts, close_contexts);
}
