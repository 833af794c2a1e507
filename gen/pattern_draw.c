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

/* What row a of head h draws. */
typedef struct Draw {
    const Pattern *p;
    int64_t h, a;
    int64_t *out;
    int n;         /* drawn */
    uint32_t x[4]; /* words n / 4 * 4 .. */
} Draw;

static uint32_t next_word(Draw *d) {
    if (d->n % 4 == 0) {
        uint32_t x[4] = {(uint32_t)d->n / 4, (uint32_t)d->a, (uint32_t)d->h, 0};
        philox(x, (uint64_t)d->p->a.seed, PHILOX_ROUNDS);
        memcpy(d->x, x, sizeof x);
    }
    return d->x[d->n % 4];
}

/* At most `count` of lo .. hi - 1 but those gone. */
static void sample(Draw *d, int64_t lo, int64_t hi, int64_t count, Gone *gone) {
    int64_t left = hi - lo;
    for (int i = 0; i < gone->n; i++)
        left -= lo <= gone->block[i] && gone->block[i] < hi;
    for (; count > 0 && left > 0; count--, left--) {
        int64_t pick = (int64_t)((uint64_t)next_word(d) * (uint64_t)left >> 32);
        int64_t block = lo + pick;
        for (int i = 0; i < gone->n; i++) {
            if (lo <= gone->block[i] && gone->block[i] <= block)
                block++;
        }
        if (count > 1)
            remove_block(gone, block);
        d->out[d->n++] = block;
    }
}

/* From the segment [lo, hi): not the window, the first block of all, the last
 * of the segment, and what a row beside those would read twice. */
static void sample_segment(Draw *d, int64_t lo, int64_t hi, int64_t count) {
    Gone gone;
    gone.n = 0;
    for (int64_t e = d->a - 1; e <= d->a + 1; e++)
        remove_block(&gone, e);
    remove_block(&gone, 0);
    remove_block(&gone, hi - 1);
    if (d->a == 1)
        remove_block(&gone, hi - 2);
    if (d->a == hi - 2)
        remove_block(&gone, 1);
    sample(d, lo, hi, count, &gone);
}

static void draw_bigbird(Draw *d) {
    int64_t nb = d->p->nbk, r = d->p->a.random;
    if (d->a < 1 || d->a > nb - 2)
        return;
    if (2 * r + 5 < nb) {
        sample_segment(d, 0, 2 * r + 5, r);
    } else if (r + 5 < nb) {
        sample_segment(d, 0, r + 5, r / 2);
        sample_segment(d, r + 5, nb, r - r / 2);
    } else {
        sample_segment(d, 0, nb, r);
    }
}

int pattern_draw(const Pattern *p, int64_t h, int64_t a,
                 int64_t out[PATTERN_DRAWS]) {
    Draw d = {.p = p, .h = h, .a = a, .out = out};
    if (p->kind == PATTERN_ORIG_BIGBIRD)
        draw_bigbird(&d);
    if (p->kind == PATTERN_DS_BIGBIRD) {
        Gone gone;
        gone.n = 0;
        int64_t end = p->a.causal && a + 1 < p->nbk ? a + 1 : p->nbk;
        sample(&d, 0, end, p->a.random, &gone);
    }
    return d.n;
}
