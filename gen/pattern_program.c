/* SPDX-License-Identifier: Apache-2.0
 * Patterns as mask programs: those with a closed form need no list in memory,
 * and get verdicts, loop bounds and code as any mask does. */
#include "pattern.h"

/* Positions are below 2^28: a bound beyond says nothing. */
static int64_t near(int64_t x) {
    return x < INT32_MAX ? x : INT32_MAX;
}

static void let_blocks(const Pattern *p, Str *out) {
    str_addf(out, "let a = q / %lld; let e = k / %lld; ", (long long)p->block,
             (long long)p->block);
}

/* Names for the numbers of blocks of queries and keys. */
static void let_counts(const Pattern *p, Str *out) {
    str_addf(out, "let na = (nq + %lld) / %lld; let ne = (nk + %lld) / %lld; ",
             (long long)p->block - 1, (long long)p->block,
             (long long)p->block - 1, (long long)p->block);
}

static void lucid(const Pattern *p, Str *out) {
    const PatternArgs *x = &p->a;
    str_addf(out, "let d = k / %lld - q / %lld; -%lld <= d && d <= %lld",
             (long long)x->w, (long long)x->w, (long long)x->back,
             (long long)x->forward);
    str_addf(out, x->causal ? " && k <= q" : "");
    if (x->exact)
        str_addf(out, " && q - k <= %lld && k - q <= %lld",
                 (long long)near(x->w * x->back),
                 (long long)near(x->w * x->forward));
}

static void longformer(const Pattern *p, Str *out) {
    let_blocks(p, out);
    str_addf(out, p->a.causal ? "k <= q && (" : "(");
    str_addf(out, "abs(a - e) <= %lld || a < %lld || e < %lld)",
             (long long)p->a.window / 2, (long long)p->a.global,
             (long long)p->a.global);
}

static void bigbird(const Pattern *p, Str *out) {
    let_blocks(p, out);
    let_counts(p, out);
    str_addf(out, "a == 0 || a == na - 1 || e == 0 || e == ne - 1 || "
                  "abs(a - e) <= 1");
}

/* "let f = ...": the first column of a window for this head. */
static void let_first(int64_t stride, int64_t verts, int64_t size, Str *out) {
    if (verts == 1)
        str_addf(out, "let f = %lld; ", (long long)(stride - size));
    else
        str_addf(out, "let f = %lld - (h %% %lld + 1) * %lld; ",
                 (long long)stride, (long long)verts, (long long)size);
}

static void fixed(const Pattern *p, Str *out) {
    long long l = p->a.stride;
    let_blocks(p, out);
    let_first(l, p->a.verts, p->a.vert, out);
    str_addf(out,
             "k <= q && (a / %lld == e / %lld || e %% %lld >= f && "
             "e %% %lld < f + %lld)",
             l, l, l, l, (long long)p->a.vert);
}

/* "let NAME = is block x of n global;" */
static void let_global(const Pattern *p, const char *name, char x,
                       const char *n, Str *out) {
    long long l = p->a.stride, g = p->a.global;
    str_addf(out,
             "let end_%c = %s / %lld * %lld; let tail_%c = "
             "max(min(end_%c + f, %s - %lld), 0); ",
             x, n, l, l, x, x, n, g);
    str_addf(out,
             "let %s = %c < end_%c && %c %% %lld >= f && %c %% %lld < "
             "f + %lld || end_%c < %s && tail_%c <= %c && %c < tail_%c + "
             "%lld; ",
             name, x, x, x, l, x, l, g, x, n, x, x, x, x, g);
}

static void ds_fixed(const Pattern *p, Str *out) {
    long long l = p->a.stride;
    let_blocks(p, out);
    let_counts(p, out);
    let_first(l, p->a.verts, p->a.global, out);
    let_global(p, "column", 'e', "ne", out);
    if (p->a.horizontal)
        let_global(p, "line", 'a', "na", out);
    str_addf(out, "%s(a / %lld == e / %lld || column%s)",
             p->a.causal ? "k <= q && " : "", l, l,
             p->a.horizontal ? " || line" : "");
}

/* n: the largest power of 2 not above the number of blocks. */
static void let_power(Str *out) {
    str_addf(out, "let n0 = min(na, ne); ");
    for (int i = 0; i < 5; i++)
        str_addf(out, "let n%d = n%d | n%d >> %d; ", i + 1, i, i, 1 << i);
    str_addf(out, "let n = n5 - (n5 >> 1); ");
}

static void butterfly(const Pattern *p, Str *out) {
    long long g = p->a.global;
    let_blocks(p, out);
    let_counts(p, out);
    let_power(out);
    str_addf(out,
             "let x = (a * n / na) ^ (e * n / ne); %s((x & x - 1) == 0 "
             "&& x < ",
             p->a.causal ? "k <= q && " : "");
    if (p->a.m)
        str_addf(out, "%lld", 1LL << p->a.m);
    else
        str_addf(out, "n");
    if (g)
        str_addf(out, " || a < %lld || e < %lld", g, g);
    str_addf(out, ")");
}

bool pattern_program(const Pattern *p, Str *out) {
    const PatternArgs *x = &p->a;
    switch (p->kind) {
    case PATTERN_LOCAL_FT:
        str_addf(out, "q - k <= %lld && k - q < %lld", (long long)x->c / 2,
                 (long long)(x->c + 1) / 2);
        return true;
    case PATTERN_LOCAL_LUCID:
        lucid(p, out);
        return true;
    case PATTERN_ORIG_LONGFORMER:
        str_addf(out, "abs(q - k) <= %lld || q < %lld || k < %lld",
                 (long long)x->w, (long long)x->global, (long long)x->global);
        return true;
    case PATTERN_STRIDED:
        str_addf(out, "k <= q && (q - k) %% %lld == 0", (long long)x->stride);
        return true;
    case PATTERN_DS_LONGFORMER:
        longformer(p, out);
        return true;
    case PATTERN_DS_BIGBIRD:
        if (!x->random)
            longformer(p, out);
        return !x->random;
    case PATTERN_ORIG_BIGBIRD:
        if (!x->random)
            bigbird(p, out);
        return !x->random;
    case PATTERN_FIXED:
        fixed(p, out);
        return true;
    case PATTERN_DS_FIXED:
        ds_fixed(p, out);
        return true;
    case PATTERN_BUTTERFLY:
        butterfly(p, out);
        return true;
    default:
        return false;
    }
}
