/* SPDX-License-Identifier: Apache-2.0
 * The rules of block-sparse patterns, each as close to its source as C allows;
 * what follows for blocks. */
#include "pattern.h"

/* ---- rules of blocks --------------------------------------------------- */

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static bool drawn(const Pattern *p, int64_t h, int64_t a, int64_t e) {
    int64_t draw[PATTERN_DRAWS];
    int n = pattern_draw(p, h, a, draw);
    for (int i = 0; i < n; i++) {
        if (draw[i] == e)
            return true;
    }
    return false;
}

static bool keep_longformer(const Pattern *p, int64_t a, int64_t e) {
    int64_t apart = a > e ? a - e : e - a;
    return apart <= p->a.window / 2 || a < p->a.global || e < p->a.global;
}

static bool keep_bigbird(const Pattern *p, int64_t h, int64_t a, int64_t e) {
    int64_t last = p->nbq - 1, apart = a > e ? a - e : e - a;
    return !a || a == last || !e || e == last || apart <= 1 ||
           drawn(p, h, a, e);
}

static bool keep_fixed(const Pattern *p, int64_t h, int64_t a, int64_t e) {
    int64_t l = p->a.stride, t = h % p->a.verts;
    int64_t first = l - (t + 1) * p->a.vert, at = e % l;
    return a / l == e / l || (first <= at && at < first + p->a.vert);
}

/* Every whole window has its own; a short last one has them at the same place,
 * but not beyond nb. */
bool pattern_ds_global(const Pattern *p, int64_t h, int64_t x, int64_t nb) {
    int64_t l = p->a.stride, g = p->a.global, end = nb / l * l;
    int64_t first = l - (1 + h % p->a.verts) * g;
    int64_t tail = most(least(end + first, nb - g), 0);
    bool whole = x < end && first <= x % l && x % l < first + g;
    return whole || (end < nb && tail <= x && x < tail + g);
}

static bool keep_ds_fixed(const Pattern *p, int64_t h, int64_t a, int64_t e) {
    return a / p->a.stride == e / p->a.stride ||
           pattern_ds_global(p, h, e, p->nbk) ||
           (p->a.horizontal && pattern_ds_global(p, h, a, p->nbq));
}

static int64_t butterfly_size(const Pattern *p) {
    int64_t n = 1, nb = least(p->nbq, p->nbk);
    while (2 * n <= nb)
        n *= 2;
    return n;
}

static bool keep_butterfly(const Pattern *p, int64_t a, int64_t e) {
    int64_t n = butterfly_size(p);
    int64_t x = (a * n / p->nbq) ^ (e * n / p->nbk);
    int64_t reach = p->a.m ? (int64_t)1 << p->a.m : n;
    return a < p->a.global || e < p->a.global || (!(x & (x - 1)) && x < reach);
}

static bool keep_listed(const Pattern *p, int64_t h, int64_t a, int64_t e) {
    const int32_t *at = p->indptr + (h % p->bsr_heads) * (p->nbq + 1) + a;
    for (int32_t i = at[0]; i < at[1]; i++) {
        if (p->index[i] == e)
            return true;
    }
    return false;
}

/* Is the rule j <= i within blocks, too? */
static bool is_causal(const Pattern *p) {
    return p->a.causal || p->kind == PATTERN_FIXED;
}

/* Of block-wise kinds. */
static bool keep_block(const Pattern *p, int64_t h, int64_t a, int64_t e) {
    if (is_causal(p) && e > a)
        return false;
    switch (p->kind) {
    case PATTERN_DS_LONGFORMER:
        return keep_longformer(p, a, e);
    case PATTERN_DS_BIGBIRD:
        return keep_longformer(p, a, e) || drawn(p, h, a, e);
    case PATTERN_ORIG_BIGBIRD:
        return keep_bigbird(p, h, a, e);
    case PATTERN_FIXED:
        return keep_fixed(p, h, a, e);
    case PATTERN_DS_FIXED:
        return keep_ds_fixed(p, h, a, e);
    case PATTERN_BUTTERFLY:
        return keep_butterfly(p, a, e);
    default:
        return keep_listed(p, h, a, e);
    }
}

/* ---- rules of elements ------------------------------------------------- */

static bool see_lucid(const Pattern *p, int64_t i, int64_t j) {
    int64_t w = p->a.w, windows = j / w - i / w;
    return -p->a.back <= windows && windows <= p->a.forward &&
           (!p->a.causal || j <= i) &&
           (!p->a.exact ||
            (i - j <= w * p->a.back && j - i <= w * p->a.forward));
}

bool pattern_visible(const Pattern *p, int64_t h, int64_t i, int64_t j) {
    int64_t d = j - i;
    switch (p->kind) {
    case PATTERN_LOCAL_FT:
        return -(p->a.c / 2) <= d && d < (p->a.c + 1) / 2;
    case PATTERN_LOCAL_LUCID:
        return see_lucid(p, i, j);
    case PATTERN_ORIG_LONGFORMER:
        return (-p->a.w <= d && d <= p->a.w) || i < p->a.global ||
               j < p->a.global;
    case PATTERN_STRIDED:
        return d <= 0 && -d % p->a.stride == 0;
    default:
        return keep_block(p, h, i / p->block, j / p->block) &&
               (!is_causal(p) || d <= 0);
    }
}

/* ---- pairs of a block -------------------------------------------------- */

static int64_t overlap(int64_t lo, int64_t hi, int64_t j0, int64_t j1) {
    lo = most(lo, j0);
    hi = least(hi, j1);
    return hi > lo ? hi - lo : 0;
}

static int64_t row_lucid(const Pattern *p, int64_t i, int64_t j0, int64_t j1) {
    int64_t w = p->a.w, lo = (i / w - p->a.back) * w;
    int64_t hi = (i / w + p->a.forward + 1) * w;
    if (p->a.causal)
        hi = least(hi, i + 1);
    if (p->a.exact) {
        lo = most(lo, i - w * p->a.back);
        hi = least(hi, i + w * p->a.forward + 1);
    }
    return overlap(lo, hi, j0, j1);
}

static int64_t row_longformer(const Pattern *p, int64_t i, int64_t j0,
                              int64_t j1) {
    int64_t g = p->a.global;
    if (i < g)
        return j1 - j0;
    return overlap(0, g, j0, j1) +
           overlap(most(i - p->a.w, g), i + p->a.w + 1, j0, j1);
}

/* Keys j0 .. min(j1 - 1, i) that are a multiple of the stride before i. */
static int64_t row_strided(const Pattern *p, int64_t i, int64_t j0,
                           int64_t j1) {
    int64_t l = p->a.stride, top = least(j1 - 1, i);
    if (top < j0)
        return 0;
    return (i - j0) / l - (i - top + l - 1) / l + 1;
}

/* Keys of [j0, j1), in block e, that query i, in block a, sees. */
static int64_t row_pairs(const Pattern *p, int64_t i, int64_t j0, int64_t j1) {
    switch (p->kind) {
    case PATTERN_LOCAL_FT:
        return overlap(i - p->a.c / 2, i + (p->a.c + 1) / 2, j0, j1);
    case PATTERN_LOCAL_LUCID:
        return row_lucid(p, i, j0, j1);
    case PATTERN_ORIG_LONGFORMER:
        return row_longformer(p, i, j0, j1);
    case PATTERN_STRIDED:
        return row_strided(p, i, j0, j1);
    default: /* kept, and causal */
        return overlap(0, i + 1, j0, j1);
    }
}

int64_t pattern_pairs(const Pattern *p, int64_t h, int64_t a, int64_t e) {
    int64_t i0 = a * p->block, i1 = least(i0 + p->block, p->nq);
    int64_t j0 = e * p->block, j1 = least(j0 + p->block, p->nk), n = 0;
    if (!pattern_is_element(p->kind)) {
        if (!keep_block(p, h, a, e))
            return 0;
        if (!is_causal(p) || e < a)
            return (i1 - i0) * (j1 - j0);
    }
    for (int64_t i = i0; i < i1; i++)
        n += row_pairs(p, i, j0, j1);
    return n;
}

bool pattern_keep(const Pattern *p, int64_t h, int64_t a, int64_t e) {
    return pattern_is_element(p->kind) ? pattern_pairs(p, h, a, e) > 0
                                       : keep_block(p, h, a, e);
}

int pattern_verdict(const Pattern *p, int64_t h, int64_t a, int64_t e) {
    int64_t rows = least(p->block, p->nq - a * p->block);
    int64_t columns = least(p->block, p->nk - e * p->block);
    int64_t pairs = pattern_pairs(p, h, a, e);
    return !pairs                   ? BLOCK_EMPTY
           : pairs < rows * columns ? BLOCK_PARTIAL
                                    : BLOCK_FULL;
}
