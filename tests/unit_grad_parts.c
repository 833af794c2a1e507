/* SPDX-License-Identifier: Apache-2.0
 * Gradients of keys that lie in several places: each place runs forward and
 * backward over its own keys, O and LSE merged between, as over a ring. */
#include <math.h>

#include "grad_case.h"

enum { H = 4, HK = 2, NQ = 70, NK = 150, DIM = 40, DIM_V = 24, PLACES = 3 };
static const int64_t bounds[PLACES + 1] = {0, 64, 65, NK};

typedef struct Rows {
    float q[H * NQ * DIM], k[HK * NK * DIM], v[HK * NK * DIM_V];
    float dout[H * NQ * DIM_V], o[H * NQ * DIM_V], lse[H * NQ], dlse[H * NQ];
    float dq[H * NQ * DIM], dk[HK * NK * DIM], dv[HK * NK * DIM_V];
} Rows;

static attnc_tensor at(float *x, int64_t first, int64_t rows, int64_t dim) {
    return (attnc_tensor){x + first * dim, 0, rows * dim, dim};
}

static float softcap; /* of the spec at hand; 0: none */

/* The arguments for the keys lo .. hi - 1, with all queries. */
static attnc_args args_of(Rows *r, int64_t lo, int64_t hi) {
    attnc_args a = ATTNC_ARGS_INIT;
    a.batch = 1;
    a.heads = H;
    a.kv_heads = HK;
    a.seqlen_q = NQ;
    a.seqlen_k = hi - lo;
    a.mask_offset = NK - NQ - lo;
    a.softcap = softcap;
    a.q = at(r->q, 0, NQ, DIM);
    a.k = at(r->k, lo, NK, DIM);
    a.v = at(r->v, lo, NK, DIM_V);
    a.o = at(r->o, 0, NQ, DIM_V);
    a.dout = at(r->dout, 0, NQ, DIM_V);
    a.dq = at(r->dq, 0, NQ, DIM);
    a.dk = at(r->dk, lo, NK, DIM);
    a.dv = at(r->dv, lo, NK, DIM_V);
    a.lse = r->lse;
    a.dlse = r->dlse;
    a.lse_stride_h = NQ;
    return a;
}

static void rows_make(Rows *r) {
    float *all[] = {r->q, r->k, r->v, r->dout, r->dlse};
    const size_t n[] = {sizeof r->q, sizeof r->k, sizeof r->v, sizeof r->dout,
                        sizeof r->dlse};
    for (int t = 0; t < 5; t++)
        for (size_t i = 0; i < n[t] / sizeof(float); i++)
            all[t][i] = random_float();
}

/* r->o and r->lse, of which no key was seen so far, and those of a place. */
static void merge(Rows *r, const float *o, const float *lse) {
    for (int n = 0; n < H * NQ; n++) {
        float top = fmaxf(r->lse[n], lse[n]);
        if (top == -INFINITY)
            continue;
        float mine = expf(r->lse[n] - top), its = expf(lse[n] - top);
        for (int e = 0; e < DIM_V; e++) {
            float *x = &r->o[n * DIM_V + e];
            *x = (*x * mine + o[n * DIM_V + e] * its) / (mine + its);
        }
        r->lse[n] = top + logf(mine + its);
    }
}

static void run(attnc_context *ctx, const attnc_spec *s, const attnc_args *a) {
    if (attnc_run(ctx, s, a, NULL))
        fail_msg("%s", attnc_last_error()->text);
}

static void forward(attnc_context *ctx, const attnc_spec *s, Rows *r) {
    static float o[H * NQ * DIM_V], lse[H * NQ];
    memset(r->o, 0, sizeof r->o);
    for (int n = 0; n < H * NQ; n++)
        r->lse[n] = -INFINITY;
    for (int p = 0; p < PLACES; p++) {
        attnc_args a = args_of(r, bounds[p], bounds[p + 1]);
        a.o = at(o, 0, NQ, DIM_V);
        a.lse = lse;
        run(ctx, s, &a);
        merge(r, o, lse);
    }
}

/* Each place gives dK and dV of its keys, and dQ to be added up. */
static void backward(attnc_context *ctx, const attnc_spec *s, Rows *r) {
    static float dq[H * NQ * DIM];
    memset(r->dq, 0, sizeof r->dq);
    for (int p = 0; p < PLACES; p++) {
        attnc_args a = args_of(r, bounds[p], bounds[p + 1]);
        a.dq = at(dq, 0, NQ, DIM);
        run(ctx, s, &a);
        for (int i = 0; i < H * NQ * DIM; i++)
            r->dq[i] += dq[i];
    }
}

static void places_give_the_gradients_of_the_whole(void **state) {
    attnc_context *ctx = context_make(*(int *)*state, NULL, 2);
    static Rows r;
    for (int i = 0; i < 4; i++) {
        attnc_spec s = ATTNC_SPEC_DEFAULT;
        RefCheck found;
        Err e = {0};
        s.head_dim = DIM;
        s.head_dim_v = DIM_V;
        s.mask = i & 1 ? ATTNC_MASK_CAUSAL : ATTNC_MASK_NONE;
        s.softcap = s.alibi = i >> 1;
        softcap = s.softcap ? 3 : 0;
        rows_make(&r);
        forward(ctx, &s, &r);
        s.pass = ATTNC_PASS_BWD;
        backward(ctx, &s, &r);
        attnc_args whole = args_of(&r, 0, NK);
        if (reference_check_bwd(&s, &whole, 1, NULL, NULL, &found, &e))
            fail_msg("reference: %s", e.text);
        if (!found.ok)
            fail_msg("%s", found.why);
    }
    attnc_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_BOTH(places_give_the_gradients_of_the_whole),
    };
    random_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
