/* SPDX-License-Identifier: Apache-2.0
 * Cases of patterns and mask programs: against dense attention by the share of
 * blocks they keep, and against the built-in mask they say the same as. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

#include "pattern.h"

/* What a pattern that keeps a share s of the blocks may take: 1.15 s of the
 * dense time, 0.5 % of it for what is skipped, 20 us to start. */
static const double MORE = 1.15, SKIP = 0.005, START_US = 20;

/* The list that a bigbird's drawn blocks need, for `fewer` keys less. */
static int make_list(Bench *b, Case *c, int fewer) {
    attnc_pattern_lists x = ATTNC_PATTERN_LISTS_INIT;
    x.heads = c->shape.heads;
    x.seqlen_q = c->shape.seqlen_q;
    x.seqlen_k = c->shape.seqlen_k - fewer;
    attnc_pattern_release(c->pattern);
    return attnc_pattern_create(b->ctx, c->spec.sparsity, &x, &c->pattern)
               ? say_error(c->name)
               : 0;
}

/* How long making the list takes, held against a hundredth of the forward that
 * stands before it. Other lengths each time: equal requests share a list. */
static double sample_list(Bench *b, Case *c) {
    const Series *forward = &c[-1].value;
    double start = seconds_now();
    if (make_list(b, c, ++c->part))
        return -1;
    double us = (seconds_now() - start) * 1e6;
    if (forward->n)
        c->bound = 0.01 * forward->v[forward->n - 1];
    return us;
}

double sample_allowed(Bench *b, Case *c) {
    const Case *dense = c - c->part;
    const Series *s = &dense->value;
    if (c->listed && !c->pattern && make_list(b, c, 0))
        return -1;
    double us = sample_us(b, c);
    if (us >= 0 && s->n)
        c->bound = c->share * s->v[s->n - 1] + c->start_us;
    return us;
}

/* Kept blocks of all blocks; < 0: no pattern of that text and length. */
static double density_of(const char *text, int64_t block, int64_t n) {
    Pattern p;
    BlockList list;
    Err e = {0};
    if (pattern_parse(text, block, &p, &e) || pattern_size(&p, n, n, &e) ||
        pattern_list(&p, 0, &list, &e))
        return -1;
    double density = blocks_density(&list);
    blocks_free(&list);
    return density;
}

static bool set_pattern(Case *c, const char *text, int block, int64_t n) {
    char whole[96];
    double density = density_of(text, block, n);
    c->share = MORE * density + SKIP;
    c->start_us = START_US;
    snprintf(whole, sizeof whole, "%s block=%d", text, block);
    return density > 0 &&
           !attnc_program_create(whole, ATTNC_PATTERN, &c->spec.sparsity);
}

static const char *const texts[] = {"butterfly:m=3", "longformer:window=7",
                                    "fixed:stride=8", "bigbird"};

/* Making the lists of the case before. */
static void list_of(Bench *b, const Case *of) {
    char name[48];
    snprintf(name, sizeof name, "%.40s, list", of->name);
    Case *c = case_add(b, "sparse", "us", sample_list, name);
    if (!c)
        return;
    c->spec = of->spec;
    c->shape = of->shape;
}

/* The dense case under a pattern, named after it; NULL: it is left out, or the
 * pattern does not fit its length. */
static Case *under(Bench *b, const Case *dense, const char *what,
                   const char *text, int block) {
    char name[48];
    snprintf(name, sizeof name, "%.*s%s", (int)strcspn(dense->name, "d"),
             dense->name, what);
    Case *c = case_add(b, "sparse", "us", sample_allowed, name);
    if (!c)
        return NULL;
    c->spec = dense->spec;
    c->shape = dense->shape;
    c->part = (int)(c - dense);
    if (set_pattern(c, text, block, c->shape.seqlen_q))
        return c;
    b->ncase--;
    return NULL;
}

static void pattern(Bench *b, const Case *dense, const char *text, int block) {
    char what[40];
    snprintf(what, sizeof what, "%s block %d", text, block);
    Case *c = under(b, dense, what, text, block);
    if (!c)
        return;
    c->listed = strstr(text, "bigbird") != NULL;
    if (c->listed && c->spec.pass == ATTNC_PASS_FWD)
        list_of(b, c);
}

/* Milliseconds of FlashAttention and Block-Sparse FlashAttention in tables 18
 * and 19 of the paper, neither mask nor dropout, from 1024 keys on: these are
 * the butterfly of min(n / 8, 256) keys a row. */
enum { PAPER_FIRST = 1024 };
static const struct {
    double flash, sparse;
} paper[][2] = {{{0.68, 0.61}, {1.62, 0.38}},
                {{2.40, 0.61}, {5.45, 1.20}},
                {{8.42, 0.96}, {21.57, 2.34}},
                {{35.54, 1.69}, {84.75, 4.69}},
                {{134.03, 3.02}, {336.00, 9.10}}};

/* May take the share of the dense time that it takes in the paper. */
static void as_the_paper(Bench *b, const Case *dense) {
    char what[40], text[16];
    int64_t n = dense->shape.seqlen_q, keys = n / 8 < 256 ? n / 8 : 256;
    int row = __builtin_ctzll((uint64_t)(n / PAPER_FIRST));
    int back = dense->spec.pass == ATTNC_PASS_BWD;
    snprintf(text, sizeof text, "butterfly:m=%d", (int)(keys / 64 - 1));
    snprintf(what, sizeof what, "the paper's %s", text);
    Case *c = under(b, dense, what, text, 64);
    if (!c)
        return;
    c->share = paper[row][back].sparse / paper[row][back].flash;
    c->start_us = 0;
}

/* The dense case first, for the bound of the others. */
static void patterns(Bench *b, int pass, int64_t n, int least_block) {
    char name[48];
    snprintf(name, sizeof name, "%s n%lld dense",
             pass == ATTNC_PASS_BWD ? "BWD" : "FWD", (long long)n);
    Case *dense = case_add(b, "sparse", "us", sample_us, name);
    if (!dense)
        return;
    case_sizes(dense, ATTNC_F32, 64, ATTNC_MASK_NONE, n);
    dense->spec.pass = pass;
    as_the_paper(b, dense);
    for (int block = 64; block >= least_block; block /= 2)
        for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
            pattern(b, dense, texts[i], block);
}

/* A mask that is built in, then the same as a program. */
static void programs(Bench *b, int d, int64_t n) {
    for (int i = 0; i < 2; i++) {
        char name[48];
        snprintf(name, sizeof name, "d%d n%lld causal, %s", d, (long long)n,
                 i ? "as a program" : "built in");
        Case *c = case_add(b, "programs", "us", sample_us, name);
        if (!c)
            continue;
        case_sizes(c, ATTNC_F32, d, ATTNC_MASK_CAUSAL, n);
        c->rivals = i;
        c->spec.mask = i ? ATTNC_MASK_PROGRAM : ATTNC_MASK_CAUSAL;
        if (i &&
            attnc_program_create("k <= q", ATTNC_MASK, &c->spec.mask_program))
            b->ncase--;
    }
}

void sparse_cases(Bench *b) {
    static const int only_the_papers = 128;
    for (int64_t n = PAPER_FIRST; n <= 16384; n *= 2)
        patterns(b, ATTNC_PASS_FWD, n,
                 n < 4096    ? only_the_papers
                 : n == 4096 ? 16
                             : 64);
    for (int64_t n = PAPER_FIRST; n <= 8192; n *= 2)
        patterns(b, ATTNC_PASS_BWD, n, n == 4096 ? 64 : only_the_papers);
    for (int d = 64; d <= 128; d += 64)
        programs(b, d, 4096);
}
