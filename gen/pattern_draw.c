/* SPDX-License-Identifier: Apache-2.0
 * The random blocks of BigBird, the same in every build. */
#include <string.h>

#include "pattern.h"
#include "philox.h"

/* Blocks that cannot be drawn (any more), ascending. */
typedef struct Gone {
    int n;
    int64_t block[PATTERN_DRAWS + 8];
} Gone;

static void remove_block(Gone *g, int64_t block) {
    int i = g->n;
    for (int k = 0; k < g->n; k++) {
        if (g->block[k] == block)
            return;
    }
    for (; i && g->block[i - 1] > block; i--)
        g->block[i] = g->block[i - 1];
    g->block[i] = block;
    g->n++;
}

static uint32_t word(const Pattern *p, int64_t h, int64_t a, int t) {
    uint32_t x[4] = {(uint32_t)t / 4, (uint32_t)a, (uint32_t)h, 0};
    philox(x, (uint64_t)p->a.seed, PHILOX_ROUNDS);
    return x[t % 4];
}

/* At most `count` of lo .. hi - 1 but those gone, to out[*n]. */
static void sample(const Pattern *p, int64_t h, int64_t a, int64_t lo,
                   int64_t hi, int64_t count, Gone *gone, int64_t *out,
                   int *n) {
    int64_t left = hi - lo;
    for (int i = 0; i < gone->n; i++)
        left -= lo <= gone->block[i] && gone->block[i] < hi;
    for (; count > 0 && left > 0; count--, left--) {
        int64_t pick =
            (int64_t)((uint64_t)word(p, h, a, *n) * (uint64_t)left >> 32);
        int64_t block = lo + pick;
        for (int i = 0; i < gone->n; i++) {
            if (lo <= gone->block[i] && gone->block[i] <= block)
                block++;
        }
        remove_block(gone, block);
        out[(*n)++] = block;
    }
}

/* From the segment [lo, hi): not the window, the first block of all, the last
 * of the segment, and what a row beside those would read twice. */
static void sample_segment(const Pattern *p, int64_t h, int64_t a, int64_t lo,
                           int64_t hi, int64_t count, int64_t *out, int *n) {
    Gone gone = {0};
    for (int64_t e = a - 1; e <= a + 1; e++)
        remove_block(&gone, e);
    remove_block(&gone, 0);
    remove_block(&gone, hi - 1);
    if (a == 1)
        remove_block(&gone, hi - 2);
    if (a == hi - 2)
        remove_block(&gone, 1);
    sample(p, h, a, lo, hi, count, &gone, out, n);
}

static int draw_bigbird(const Pattern *p, int64_t h, int64_t a, int64_t *out) {
    int64_t nb = p->nbk, r = p->a.random;
    int n = 0;
    if (a < 1 || a > nb - 2)
        return 0;
    if (2 * r + 5 < nb) {
        sample_segment(p, h, a, 0, 2 * r + 5, r, out, &n);
    } else if (r + 5 < nb) {
        sample_segment(p, h, a, 0, r + 5, r / 2, out, &n);
        sample_segment(p, h, a, r + 5, nb, r - r / 2, out, &n);
    } else {
        sample_segment(p, h, a, 0, nb, r, out, &n);
    }
    return n;
}

int pattern_draw(const Pattern *p, int64_t h, int64_t a,
                 int64_t out[PATTERN_DRAWS]) {
    int n = 0;
    if (p->kind == PATTERN_ORIG_BIGBIRD)
        return draw_bigbird(p, h, a, out);
    if (p->kind == PATTERN_DS_BIGBIRD) {
        Gone none = {0};
        int64_t end = p->a.causal && a + 1 < p->nbk ? a + 1 : p->nbk;
        sample(p, h, a, 0, end, p->a.random, &none, out, &n);
    }
    return n;
}
