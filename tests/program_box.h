/* SPDX-License-Identifier: Apache-2.0
 * What the tests of tiles share: random boxes of places, their tile, a visit
 * to every place. */
#ifndef PROGRAM_BOX_H
#define PROGRAM_BOX_H

#include "program_util.h"

/* Range of a tensor's elements over index ranges, by looking at them all. */
static inline bool read_box(void *user, int tensor, int rank,
                            const Range *index, Range *out) {
    const ProgramArray *a = &((const Data *)user)->array[tensor];
    int64_t lo[PROGRAM_RANK], hi[PROGRAM_RANK], at[PROGRAM_RANK];
    *out = (Range){INFINITY, -INFINITY, false, false};
    for (int i = 0; i < rank; i++) { /* one step outside stands for all */
        lo[i] = (int64_t)fmax(index[i].lo, -1);
        hi[i] = (int64_t)fmin(index[i].hi, (double)a->n[i]);
        lo[i] = lo[i] < a->n[i] ? lo[i] : a->n[i];
        hi[i] = hi[i] > -1 ? hi[i] : -1;
        at[i] = lo[i];
    }
    for (;;) {
        double x = program_array_read(a, rank, at);
        out->lo = fmin(out->lo, x);
        out->hi = fmax(out->hi, x);
        int d = rank - 1;
        while (d >= 0 && at[d] == hi[d]) {
            at[d] = lo[d];
            d--;
        }
        if (d < 0)
            return true;
        at[d]++;
    }
}

typedef struct Box {
    int b[2], h[2], q[2], k[2]; /* first and last */
} Box;

static inline void pick(uint64_t *seed, int n, int most, int out[2]) {
    out[0] = below(seed, n);
    out[1] = out[0] + below(seed, most);
    out[1] = out[1] < n ? out[1] : n - 1;
}

static inline Box random_box(uint64_t *seed) {
    Box x;
    pick(seed, MANY_B, 2, x.b);
    pick(seed, MANY_H, 2, x.h);
    pick(seed, MANY_Q, 6, x.q);
    pick(seed, MANY_K, 6, x.k);
    return x;
}

static inline ProgramTile tile_of(const Box *x, Data *data) {
    ProgramEnv env = env_at(data, 0, 0, 0, 0);
    ProgramTile t = {.read = data ? read_box : NULL, .user = data};
    for (int i = 0; i < OPERANDS; i++)
        t.operand[i] = (Range){env.operand[i], env.operand[i], false, false};
    t.operand[OPERAND_s] = (Range){-3, 3, false, false};
    t.operand[OPERAND_b] = (Range){x->b[0], x->b[1], false, false};
    t.operand[OPERAND_h] = (Range){x->h[0], x->h[1], false, false};
    t.operand[OPERAND_q] = (Range){x->q[0], x->q[1], false, false};
    t.operand[OPERAND_k] = (Range){x->k[0], x->k[1], false, false};
    return t;
}

/* Calls fn at every place of the box. */
typedef void (*Visit)(void *user, ProgramEnv *env);

static inline void visit(const Box *x, const Data *data, Visit fn, void *user) {
    for (int b = x->b[0]; b <= x->b[1]; b++)
        for (int h = x->h[0]; h <= x->h[1]; h++)
            for (int q = x->q[0]; q <= x->q[1]; q++)
                for (int k = x->k[0]; k <= x->k[1]; k++) {
                    ProgramEnv env = env_at(data, b, h, q, k);
                    fn(user, &env);
                }
}

/* Places of a mask that see. */
typedef struct Count {
    const Program *p;
    int seen, all;
} Count;

static inline void count(void *user, ProgramEnv *env) {
    Count *x = user;
    x->seen += value_at(x->p, env) != 0;
    x->all++;
}

#endif
