/* SPDX-License-Identifier: Apache-2.0
 * The precompiled backward, in two passes that share no sums: bwd_dkdv has a
 * block of keys and goes over the rows, bwd_dq has a block of rows and goes
 * over the keys. Each recomputes P and dS from Q, K, V, dO, LSE; so does a
 * third for the tensors that a score program reads. */
#include "builtin_item.h"

/* An item beside its gradients. K and V lie as in the forward; rows of a
 * sub-block [lane][d4], [lane][dv4] serve dK and dV. */
typedef struct Back {
    Item t;
    int d4;
    float *dot, *dqt;        /* [sub][dim][lane] */
    float *q, *dout;         /* [row][d4], [row][dv4] */
    float *dk, *dv;          /* [key][d4], [key][dv4] */
    float *dp, *z;           /* [key][lane]; what dropout multiplies by */
    bool finite[SUBS];       /* Q and dO of a sub-block */
    bool seen[KEYS * LANES]; /* [key][lane]: pairs of the sub-block at hand */
    bool tensors;            /* dS is that of the score that programs made of */
    float raw[KEYS * LANES]; /* these scores */
    _Alignas(64) float lse[ROWS], delta[ROWS];
} Back;

static void carve(Back *b, char *scratch) {
    Item *t = &b->t;
    float *at = (float *)open_programs(t, scratch);
    const struct {
        float **to;
        int floats;
    } parts[] = {{&t->qt, ROWS * b->d4},    {&b->dot, ROWS * t->dv4},
                 {&b->dqt, ROWS * b->d4},   {&b->q, ROWS * b->d4},
                 {&b->dout, ROWS * t->dv4}, {&b->dk, KEYS * b->d4},
                 {&b->dv, KEYS * t->dv4},   {&t->v, KEYS * t->dv4},
                 {&t->k, KEYS * b->d4},     {&t->s, KEYS * LANES},
                 {&b->dp, KEYS * LANES},    {&b->z, KEYS * LANES},
                 {&t->bend, KEYS * LANES}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        *parts[i].to = at;
        at += parts[i].floats;
    }
}

static int64_t open_back(Back *b, const uint64_t *args, char *scratch,
                         int64_t item, int64_t blocks, int64_t *block) {
    int64_t offset = open_item(&b->t, args, item, blocks, block);
    b->tensors = false;
    b->d4 = (b->t.d + 3) / 4 * 4;
    carve(b, scratch);
    return offset;
}

/* ---- rows -------------------------------------------------------------- */

static int64_t lse_place(const Item *t, int64_t h, int64_t n) {
    int64_t at = h * length(t, AT_lse_stride_h) + n;
    return t->spec->varlen ? at : at + t->b * length(t, AT_lse_stride_b);
}

/* rowsum(O dO) - dLSE; dout: the row in f32. */
static float delta_of(const Item *t, int64_t h, int64_t n, const float *dout) {
    float o[256], sum = 0;
    load(t->spec->dtype, row_ptr(t, AT_o, AT_o_stride_b, h, n), t->dv, o);
    for (int c = 0; c < t->dv; c++)
        sum += o[c] * dout[c];
    return pointer(t, AT_dlse) ? sum - float_at(t, AT_dlse, lse_place(t, h, n))
                               : sum;
}

/* One row of Q or dO, as it is and transposed; zeros behind its end. */
static void load_row(const Item *t, const char *from, int d, int d4, int r,
                     float *row, float *transposed) {
    float *to = transposed + r / LANES * d * LANES + r % LANES;
    memset(row, 0, (size_t)d4 * 4);
    if (from)
        load(t->spec->dtype, from, d, row);
    for (int c = 0; c < d; c++)
        to[c * LANES] = row[c];
}

/* Idle lanes, and rows without a weight, get P = 0. */
static void load_rows(Back *b) {
    Item *t = &b->t;
    for (int r = 0; r < ROWS; r++) {
        bool there = r < t->rows;
        int64_t h = t->hk * t->group + t->row[r] % t->group;
        int64_t n = t->q0 + t->row[r] / t->group;
        float *q = b->q + r * b->d4, *dout = b->dout + r * t->dv4;
        load_row(t, there ? row_ptr(t, AT_q, AT_q_stride_b, h, n) : NULL, t->d,
                 b->d4, r, q, t->qt);
        load_row(t, there ? row_ptr(t, AT_dout, AT_dout_stride_b, h, n) : NULL,
                 t->dv, t->dv4, r, dout, b->dot);
        float lse = there ? float_at(t, AT_lse, lse_place(t, h, n)) : -INFINITY;
        b->lse[r] = lse == -INFINITY ? FLT_MAX : lse;
        b->delta[r] = there ? delta_of(t, h, n, dout) : 0;
        bool finite = all_finite(q, t->d) && all_finite(dout, t->dv);
        b->finite[r / LANES] =
            finite && (r % LANES == 0 || b->finite[r / LANES]);
    }
}

/* ---- P and dS ---------------------------------------------------------- */

/* z: what dropout multiplies each weight by. */
static void draw(Back *b, int u, int64_t j, int n) {
    const Item *t = &b->t;
    uint16_t numbers[DROPOUT_PATCH];
    for (int x = 0; x < LANES; x++) {
        int64_t row = t->row[u * LANES + x];
        int64_t h = t->hk * t->group + row % t->group;
        for (int r = 0; r < n; r++) {
            int64_t at = j + r;
            if (r == 0 || at % DROPOUT_PATCH == 0)
                dropout_numbers(&t->drop, t->b, h, row / t->group,
                                at / DROPOUT_PATCH, numbers);
            bool kept = numbers[at % DROPOUT_PATCH] >= t->drop.threshold;
            b->z[r * LANES + x] = kept ? t->grow : 0;
        }
    }
}

/* s becomes P as dropped, dp becomes dS; hidden pairs get exact zeros. */
static void weights(Back *b, int u, int n) {
    const Item *t = &b->t;
    for (int half = 0; half < LANES; half += HALF) {
        f4 lse = *(const f4 *)(b->lse + u * LANES + half);
        f4 delta = *(const f4 *)(b->delta + u * LANES + half);
        for (int r = 0; r < n; r++) {
            int at = r * LANES + half;
            f4 *s = (f4 *)(t->s + at), *dp = (f4 *)(b->dp + at), x = *s;
            f4 z = (f4){0} + 1, p = exp4(x - lse);
            if (t->drop.threshold)
                z = *(const f4 *)(b->z + at);
            f4 ds = p * (*dp * z - delta);
            if (!b->tensors && (t->spec->softcap || t->programs.score))
                ds *= *(const f4 *)(t->bend + at);
            *s = pick(x == -INFINITY, (f4){0}, p * z);
            *dp = pick(x == -INFINITY, (f4){0}, ds);
        }
    }
}

/* Which pairs see each other; the slope of their scores begins as 1. */
static void open_slopes(Back *b, int n) {
    Item *t = &b->t;
    for (int i = 0; i < n * LANES && !t->spec->softcap; i++)
        t->bend[i] = 1;
}

static void find_seen(Back *b, int n) {
    for (int i = 0; i < n * LANES; i++)
        b->seen[i] = b->t.s[i] != -INFINITY;
}

/* P and dS of sub-block u against keys [j, j + n); false: none is seen.
 * *all: every pair sees each other. */
static bool recompute(Back *b, int u, int64_t j, int n, bool *all) {
    Item *t = &b->t;
    bool any = false;
    *all = true;
    for (int x = u * LANES; x < (u + 1) * LANES; x++) {
        any |= t->lo[x] < j + n && t->hi[x] > j;
        *all &= t->lo[x] <= j && t->hi[x] >= j + n;
    }
    if (!any)
        return false;
    dots(t->k, t->d, t->d, t->qt + u * t->d * LANES, n, t->s);
    dots(t->v, t->dv4, t->dv, b->dot + u * t->dv * LANES, n, b->dp);
    open_slopes(b, n);
    score(t, u, j, n);
    if (!*all)
        mask(t, u, j, n);
    if (b->tensors)
        memcpy(b->raw, t->s, (size_t)n * LANES * 4);
    if (t->has_programs)
        bend_scores(t, u, j, n);
    find_seen(b, n);
    *all = *all && !t->has_programs;
    if (t->drop.threshold)
        draw(b, u, j, n);
    weights(b, u, n);
    return true;
}

/* ---- dQ ---------------------------------------------------------------- */

/* dQ^T += K^T dS^T; `each`: hidden keys take no part, not even as 0 times. */
static void add_dq(Back *b, int u, int n, bool each) {
    const Item *t = &b->t;
    float *dqt = b->dqt + u * t->d * LANES;
    for (int r = 0; r < n; r++) {
        const float *k = t->k + r * t->d, *ds = b->dp + r * LANES;
        f4 d0 = *(const f4 *)ds, d1 = *(const f4 *)(ds + HALF);
        for (int c = 0; c < t->d && !each; c++) {
            *(f4 *)(dqt + c * LANES) += k[c] * d0;
            *(f4 *)(dqt + c * LANES + HALF) += k[c] * d1;
        }
        for (int x = 0; x < LANES && each; x++)
            for (int c = 0; c < t->d && b->seen[r * LANES + x]; c++)
                dqt[c * LANES + x] += k[c] * ds[x];
    }
}

static void store_dq(const Back *b) {
    const Item *t = &b->t;
    int size = dtype_bytes(t->spec->dtype);
    for (int r = 0; r < t->rows; r++) {
        int64_t h = t->hk * t->group + t->row[r] % t->group;
        const float *from = b->dqt + r / LANES * t->d * LANES + r % LANES;
        char *to =
            row_ptr(t, AT_dq, AT_dq_stride_b, h, t->q0 + t->row[r] / t->group);
        for (int c = 0; c < t->d; c++)
            store(t->spec->dtype, from[c * LANES] * t->scale, to + c * size);
    }
}

void builtin_bwd_dq(const uint64_t *args, char *scratch, int64_t item) {
    Back b;
    Item *t = &b.t;
    int64_t blocks = row_blocks(args), block;
    int64_t offset = open_back(&b, args, scratch, item, blocks, &block);
    if (!open_rows(t, (blocks - 1 - block) * ROWS, offset))
        return;
    load_rows(&b);
    memset(b.dqt, 0, (size_t)(ROWS * t->d) * 4);
    for (int64_t j = t->begin; j < t->end; j += KEYS) {
        int n = (int)(t->end - j < KEYS ? t->end - j : KEYS);
        bool all;
        load_block(t, j, n);
        bool finite = all_finite(t->k, n * t->d);
        for (int u = 0; u * LANES < t->rows; u++)
            if (recompute(&b, u, j, n, &all))
                add_dq(&b, u, n, !finite && !all);
    }
    store_dq(&b);
}

/* ---- dK and dV --------------------------------------------------------- */

static void add_row(float *to, const float *row, int width4, float x) {
    for (int c = 0; c < width4; c += 4)
        *(f4 *)(to + c) += x * *(const f4 *)(row + c);
}

static void add_dkdv(Back *b, int u, int n, bool each) {
    const Item *t = &b->t;
    for (int r = 0; r < n; r++) {
        for (int x = 0; x < LANES; x++) {
            int row = u * LANES + x, at = r * LANES + x;
            if (each && !b->seen[at])
                continue;
            add_row(b->dk + r * b->d4, b->q + row * b->d4, b->d4, b->dp[at]);
            add_row(b->dv + r * t->dv4, b->dout + row * t->dv4, t->dv4,
                    t->s[at]);
        }
    }
}

static void store_keys(const Back *b, int64_t j, int n) {
    const Item *t = &b->t;
    int dtype = t->spec->dtype, size = dtype_bytes(dtype);
    for (int r = 0; r < n; r++) {
        char *k = row_ptr(t, AT_dk, AT_dk_stride_b, t->hk, t->k0 + j + r);
        char *v = row_ptr(t, AT_dv, AT_dv_stride_b, t->hk, t->k0 + j + r);
        for (int c = 0; c < t->d; c++)
            store(dtype, b->dk[r * b->d4 + c] * t->scale, k + c * size);
        for (int c = 0; c < t->dv; c++)
            store(dtype, b->dv[r * t->dv4 + c], v + c * size);
    }
}

/* Keys of the entry, those behind lens_k too. */
static int64_t all_keys(const Item *t) {
    if (!t->spec->varlen)
        return length(t, AT_seqlen_k);
    return int_at(t, AT_cu_seqlens_k, t->b + 1) -
           int_at(t, AT_cu_seqlens_k, t->b);
}

void builtin_bwd_dkdv(const uint64_t *args, char *scratch, int64_t item) {
    Back b;
    Item *t = &b.t;
    t->slot = args;
    int64_t blocks = (length(t, AT_seqlen_k) + KEYS - 1) / KEYS, block;
    int64_t offset = open_back(&b, args, scratch, item, blocks, &block);
    int64_t j = block * KEYS, left = all_keys(t) - j;
    if (left <= 0)
        return;
    int all_n = (int)(left < KEYS ? left : KEYS);
    int n = (int)(t->nk - j < all_n ? t->nk - j : all_n); /* may be < 0 */
    memset(b.dk, 0, (size_t)(KEYS * b.d4) * 4);
    memset(b.dv, 0, (size_t)(KEYS * t->dv4) * 4);
    if (n > 0)
        load_block(t, j, n);
    for (int64_t r0 = 0; n > 0 && open_rows(t, r0, offset); r0 += ROWS) {
        bool all;
        if (t->begin >= j + n || t->end <= j)
            continue;
        load_rows(&b);
        for (int u = 0; u * LANES < t->rows; u++)
            if (recompute(&b, u, j, n, &all))
                add_dkdv(&b, u, n, !b.finite[u] && !all);
    }
    store_keys(&b, j, all_n);
}

/* ---- dsink ------------------------------------------------------------- */

/* -sum over batch and queries of exp(sink - LSE) delta; items: query heads. */
void builtin_dsink(const uint64_t *args, char *scratch, int64_t item) {
    Item t;
    int64_t block, heads = 1;
    double sum = 0;
    open_item(&t, args, 0, heads, &block);
    float sink = float_at(&t, AT_sink, item), dout[256];
    for (t.b = 0; t.b < length(&t, AT_batch); t.b++) {
        open_entry(&t);
        for (int64_t i = 0; i < t.nq; i++) {
            int64_t n = t.q0 + i;
            double lse = float_at(&t, AT_lse, lse_place(&t, item, n));
            load(t.spec->dtype, row_ptr(&t, AT_dout, AT_dout_stride_b, item, n),
                 t.dv, dout);
            if (sink != -INFINITY)
                sum -= exp(sink - lse) * delta_of(&t, item, n, dout);
        }
    }
    float x = (float)sum;
    memcpy((char *)(uintptr_t)t.slot[AT_dsink] + 4 * item, &x, 4);
    (void)scratch;
}

/* ---- gradients of tensors ---------------------------------------------- */

/* Each read of a score: its tensor in the launch's arguments. */
typedef struct Reads {
    const ProgramGrad *grads;
    const attnc_array *array[PROGRAM_READS];
} Reads;

static Reads open_reads(const Item *t) {
    const attnc_args *a = pointer(t, AT_args);
    Reads x = {.grads = spec_score_grad(t->spec)};
    for (int i = 0; i < x.grads->nread; i++) {
        const char *name = x.grads->p.tensor[x.grads->read[i].tensor].name;
        x.array[i] = a->tensors;
        while (strcmp(x.array[i]->name, name))
            x.array[i]++;
    }
    return x;
}

static void zero_grads(const attnc_args *a) {
    for (int64_t i = 0; i < a->tensor_count; i++) {
        const attnc_array *x = &a->tensors[i];
        int64_t n = 1;
        for (int d = 0; d < x->rank; d++)
            n *= x->n[d];
        if (x->grad)
            memset(x->grad, 0, (size_t)n * sizeof(float));
    }
}

/* The element that was read; NULL: it lay outside. */
static float *element_of(const Reads *x, int i, const double *value) {
    const ReadGrad *r = &x->grads->read[i];
    const attnc_array *a = x->array[i];
    int64_t at = 0;
    for (int d = 0; d < a->rank; d++) {
        double index = value[x->grads->p.node[r->read].arg[d]];
        if (index < 0 || index >= (double)a->n[d])
            return NULL;
        at = at * a->n[d] + (int64_t)index;
    }
    return a->grad + at;
}

static void add_pair(const Reads *x, const double *value, float ds) {
    for (int i = 0; i < x->grads->nread; i++) {
        float *to = element_of(x, i, value);
        if (to)
            *to += ds * (float)value[x->grads->read[i].grad];
    }
}

static void add_tensors(Back *b, const Reads *reads, int u, int64_t j, int n) {
    Item *t = &b->t;
    for (int x = 0; x < LANES && u * LANES + x < t->rows; x++) {
        int64_t row = t->row[u * LANES + x];
        open_pairs(t, t->hk * t->group + row % t->group, row / t->group);
        for (int r = 0; r < n; r++) {
            int at = r * LANES + x;
            if (b->seen[at] && b->dp[at] != 0)
                add_pair(
                    reads,
                    pair_values(&t->programs.score_values, j + r, b->raw[at]),
                    b->dp[at]);
        }
    }
}

/* One entry's rows of a key head against its keys. */
static void tensor_entry(Back *b, const Reads *reads, int64_t offset) {
    Item *t = &b->t;
    for (int64_t r0 = 0; open_rows(t, r0, offset); r0 += ROWS) {
        load_rows(b);
        for (int64_t j = t->begin; j < t->end; j += KEYS) {
            int n = (int)(t->end - j < KEYS ? t->end - j : KEYS);
            bool all;
            load_block(t, j, n);
            for (int u = 0; u * LANES < t->rows; u++)
                if (recompute(b, u, j, n, &all))
                    add_tensors(b, reads, u, j, n);
        }
    }
}

/* All in one item: every pair may add to any element, in one order. */
void builtin_dtensor(const uint64_t *args, char *scratch, int64_t item) {
    Back b = {.t = {.slot = args}};
    int64_t heads = length(&b.t, AT_kv_heads), block;
    b.t.spec = pointer(&b.t, AT_spec);
    zero_grads(pointer(&b.t, AT_args));
    Reads reads = open_reads(&b.t);
    for (int64_t i = 0; i < length(&b.t, AT_batch) * heads; i++) {
        int64_t offset = open_back(&b, args, scratch, i, 1, &block);
        b.tensors = true;
        tensor_entry(&b, &reads, offset);
    }
    (void)item;
}
