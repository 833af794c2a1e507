/* SPDX-License-Identifier: Apache-2.0
 * What queries see: a tile is settled by intervals, or else divided until it
 * is, or so small that its pairs are asked one by one. */
#include "sight.h"

#include <stdlib.h>
#include <string.h>

enum { LEAF = 16, SCAN = 4096 /* elements looked at for a range */ };

int sight_open(const attnc_spec *s, const attnc_args *a, Sight *out, Err *e) {
    *out = (Sight){.p = {.s = s, .a = a}};
    ref_programs_make(&out->p.programs, s, a);
    const Program *keep = out->p.programs.keep.p;
    out->range = malloc(sizeof(Range) * (size_t)((keep ? keep->count : 0) + 1));
    out->deps = keep ? keep->node[keep->root].deps : 0;
    if (ref_eval_alloc(&out->eval, &out->p.programs) && out->range)
        return 0;
    sight_close(out);
    return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
}

void sight_close(Sight *s) {
    ref_eval_free(&s->eval);
    free(s->range);
    *s = (Sight){0};
}

void sight_head(Sight *s, int64_t b, int64_t h) {
    s->b = b;
    s->h = h;
    s->seq = ref_seq_at(&s->p, b);
}

/* ---- tiles ------------------------------------------------------------- */

/* Least and most of the elements in a box of a tensor. */
static Range scan(const ProgramArray *x, int rank, const int64_t *lo,
                  const int64_t *n, int64_t count) {
    Range r = {0};
    for (int64_t i = 0; i < count; i++) {
        int64_t index[PROGRAM_RANK], rest = i;
        for (int d = rank - 1; d >= 0; d--) {
            index[d] = lo[d] + rest % n[d];
            rest /= n[d];
        }
        double v = program_array_read(x, rank, index);
        r.nan = r.nan || v != v;
        r.lo = i == 0 || v < r.lo ? v : r.lo;
        r.hi = i == 0 || v > r.hi ? v : r.hi;
    }
    return r;
}

/* ProgramTile.read */
static bool range_of(void *user, int tensor, int rank, const Range *index,
                     Range *out) {
    const Sight *s = user;
    const ProgramArray *x = &s->p.programs.keep.array[tensor];
    int64_t lo[PROGRAM_RANK], n[PROGRAM_RANK], count = 1;
    for (int d = 0; d < rank; d++) {
        if (index[d].nan || index[d].hi - index[d].lo >= SCAN)
            return false;
        lo[d] = (int64_t)index[d].lo;
        n[d] = (int64_t)index[d].hi - lo[d] + 1;
        count *= n[d];
        if (count > SCAN)
            return false;
    }
    *out = scan(x, rank, lo, n, count);
    return true;
}

static Range between(int64_t lo, int64_t hi) {
    return (Range){.lo = (double)lo, .hi = (double)hi};
}

/* Both ends of what a row sees only grow from row to row. */
static int plain_verdict(const Sight *s, SightTile t) {
    int64_t lo0, hi0, lo1, hi1;
    ref_row_keys(&s->p, &s->seq, t.q0, &lo0, &hi0);
    ref_row_keys(&s->p, &s->seq, t.q1 - 1, &lo1, &hi1);
    if (t.k1 <= lo0 || t.k0 >= hi1)
        return VERDICT_EMPTY;
    return t.k0 >= lo1 && t.k1 <= hi0 ? VERDICT_FULL : VERDICT_PARTIAL;
}

int sight_verdict(Sight *s, SightTile t) {
    int plain = plain_verdict(s, t);
    if (plain == VERDICT_EMPTY || !s->p.programs.keep.p)
        return plain;
    ProgramTile tile = program_everywhere();
    tile.operand[OPERAND_b] = between(s->b, s->b);
    tile.operand[OPERAND_h] = between(s->h, s->h);
    tile.operand[OPERAND_q] = between(t.q0, t.q1 - 1);
    tile.operand[OPERAND_k] = between(t.k0, t.k1 - 1);
    tile.operand[OPERAND_nq] = between(s->seq.nq, s->seq.nq);
    tile.operand[OPERAND_nk] = between(s->seq.all, s->seq.all);
    tile.operand[OPERAND_off] = between(s->seq.offset, s->seq.offset);
    tile.read = range_of;
    tile.user = s;
    int kept = program_verdict(s->p.programs.keep.p, &tile, s->range);
    return kept == VERDICT_FULL ? plain : kept;
}

/* ---- division ---------------------------------------------------------- */

/* The larger half, in whole leaves. */
static int64_t half_of(int64_t n) {
    int64_t half = LEAF;
    while (2 * half < n)
        half *= 2;
    return half;
}

/* In two, along the longer side. */
static void divide(SightTile t, SightTile part[2]) {
    part[0] = part[1] = t;
    if (t.q1 - t.q0 >= t.k1 - t.k0)
        part[0].q1 = part[1].q0 = t.q0 + half_of(t.q1 - t.q0);
    else
        part[0].k1 = part[1].k0 = t.k0 + half_of(t.k1 - t.k0);
}

static bool is_leaf(SightTile t) {
    return t.q1 - t.q0 <= LEAF && t.k1 - t.k0 <= LEAF;
}

static int64_t area(SightTile t) {
    return (t.q1 - t.q0) * (t.k1 - t.k0);
}

static int64_t leaf_pairs(Sight *s, SightTile t) {
    int64_t pairs = 0;
    for (int64_t q = t.q0; q < t.q1; q++) {
        int64_t lo, hi;
        ref_row_keys(&s->p, &s->seq, q, &lo, &hi);
        lo = lo > t.k0 ? lo : t.k0;
        hi = hi < t.k1 ? hi : t.k1;
        ref_eval_row(&s->eval, &s->seq, s->b, s->h, q);
        for (int64_t k = lo; k < hi; k++)
            pairs += ref_eval_keep(&s->eval, k);
    }
    return pairs;
}

int64_t sight_pairs(Sight *s, SightTile t) {
    int verdict = sight_verdict(s, t);
    SightTile part[2];
    if (verdict != VERDICT_PARTIAL)
        return verdict == VERDICT_FULL ? area(t) : 0;
    if (is_leaf(t))
        return leaf_pairs(s, t);
    divide(t, part);
    return sight_pairs(s, part[0]) + sight_pairs(s, part[1]);
}

int sight_state(Sight *s, SightTile t) {
    int verdict = sight_verdict(s, t);
    SightTile part[2];
    if (verdict != VERDICT_PARTIAL)
        return verdict;
    if (is_leaf(t)) {
        int64_t pairs = leaf_pairs(s, t);
        return !pairs             ? VERDICT_EMPTY
               : pairs == area(t) ? VERDICT_FULL
                                  : VERDICT_PARTIAL;
    }
    divide(t, part);
    int one = sight_state(s, part[0]);
    return one == VERDICT_PARTIAL || sight_state(s, part[1]) != one
               ? VERDICT_PARTIAL
               : one;
}

double sight_all_pairs(Sight *s) {
    const attnc_args *a = s->p.a;
    bool entries = s->deps & DEP_B || s->p.s->varlen || s->p.s->lens_k;
    bool heads = s->deps & DEP_H;
    double pairs = 0;
    for (int64_t b = 0; b < (entries ? a->batch : 1); b++)
        for (int64_t h = 0; h < (heads ? a->heads : 1); h++) {
            sight_head(s, b, h);
            SightTile all = {0, s->seq.nq, 0, s->seq.nk};
            if (area(all))
                pairs += (double)sight_pairs(s, all);
        }
    return pairs * (double)(entries ? 1 : a->batch) *
           (double)(heads ? 1 : a->heads);
}

/* ---- blocks ------------------------------------------------------------ */

static bool alloc_blocks(BlockList *x, int64_t rows, int64_t columns) {
    size_t all = (size_t)(rows * columns) + 1;
    *x = (BlockList){.rows = rows, .columns = columns};
    x->full_at = calloc((size_t)rows + 1, sizeof *x->full_at);
    x->part_at = calloc((size_t)rows + 1, sizeof *x->part_at);
    x->full = malloc(all * sizeof *x->full);
    x->part = malloc(all * sizeof *x->part);
    return x->full_at && x->part_at && x->full && x->part;
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

int sight_blocks(Sight *s, int64_t side, BlockList *out, Err *e) {
    int64_t nq = s->seq.nq, nk = s->seq.all, full = 0, part = 0;
    int64_t rows = (nq + side - 1) / side, columns = (nk + side - 1) / side;
    if (!alloc_blocks(out, rows, columns)) {
        blocks_free(out);
        return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    }
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < columns; c++) {
            SightTile t = {r * side, least(nq, (r + 1) * side), c * side,
                           least(nk, (c + 1) * side)};
            int state = sight_state(s, t);
            if (state == VERDICT_FULL)
                out->full[full++] = (int32_t)c;
            if (state == VERDICT_PARTIAL)
                out->part[part++] = (int32_t)c;
        }
        out->full_at[r + 1] = full;
        out->part_at[r + 1] = part;
    }
    return 0;
}
