/* SPDX-License-Identifier: Apache-2.0
 * What the tests of patterns share: patterns and lists that must succeed,
 * random patterns. */
#ifndef PATTERN_UTIL_H
#define PATTERN_UTIL_H

#include "pattern.h"
#include "program_util.h"

static inline Pattern pattern(const char *text, int64_t block, int64_t nq,
                              int64_t nk) {
    Pattern p;
    Err e = {0};
    if (pattern_parse(text, block, &p, &e) || pattern_size(&p, nq, nk, &e))
        fail_msg("%s: %s", text, e.text);
    return p;
}

static inline BlockList list(const Pattern *p, int64_t h) {
    BlockList x;
    Err e = {0};
    if (pattern_list(p, h, &x, &e))
        fail_msg("%s", e.text);
    return x;
}

typedef struct Made {
    char text[128];
    int64_t block, nq, nk;
} Made;

/* A random pattern, one kind after the other. */
static inline Made random_pattern(uint64_t *seed, int i) {
    static const int blocks[] = {16, 32, 48};
    Made m = {.block = blocks[below(seed, 3)]};
    const int w = 1 + below(seed, 90), stride = 1 + below(seed, 6);
    const int size = 1 + below(seed, stride), two = below(seed, 2);
    m.nq = 1 + below(seed, 400);
    m.nk = below(seed, 2) ? m.nq : 1 + below(seed, 400);
    switch (i % PATTERNS) {
    case PATTERN_LOCAL_FT:
        sprintf(m.text, "local-ft:%d", w);
        break;
    case PATTERN_LOCAL_LUCID:
        sprintf(m.text,
                "local-lucid:w=%d,back=%d,forward=%d,causal=%d,"
                "exact=%d",
                w, below(seed, 3), below(seed, 3), below(seed, 2), two);
        break;
    case PATTERN_DS_LONGFORMER:
        sprintf(m.text, "longformer:window=%d,global=%d,causal=%d", stride,
                below(seed, 4), two);
        break;
    case PATTERN_ORIG_LONGFORMER:
        sprintf(m.text, "orig-longformer:w=%d,global=%d", w, below(seed, 40));
        break;
    case PATTERN_DS_BIGBIRD:
        sprintf(m.text, "bigbird:random=%d,global=%d,seed=%d,causal=%d",
                below(seed, 4), below(seed, 3), below(seed, 100), two);
        break;
    case PATTERN_ORIG_BIGBIRD:
        sprintf(m.text, "orig-bigbird:random=%d,seed=%d", below(seed, 5),
                below(seed, 100));
        m.nk = m.nq;
        break;
    case PATTERN_STRIDED:
        sprintf(m.text, "strided:%d", w);
        break;
    case PATTERN_FIXED:
        sprintf(m.text, "fixed:stride=%d,vert=%d,verts=%d", stride, size,
                1 + below(seed, stride / size));
        break;
    case PATTERN_DS_FIXED:
        sprintf(m.text,
                "ds-fixed:stride=%d,global=%d,verts=%d,horizontal=%d,"
                "causal=%d",
                stride, size, 1 + below(seed, stride / size), below(seed, 2),
                two);
        break;
    default:
        sprintf(m.text, "butterfly:m=%d,global=%d,causal=%d", below(seed, 2),
                below(seed, 3), two);
        m.nq += 48; /* so that there is a factor */
        m.nk += 48;
    }
    return m;
}

#endif
