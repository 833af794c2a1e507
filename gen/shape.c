/* SPDX-License-Identifier: Apache-2.0
 * The shape: sizes that steer the choice of tiles (hints) and sizes that
 * kernels may rely on (promises). One table, made from shape.def. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gen.h"

typedef struct Field {
    const char *name;
    size_t offset;
    const char *values; /* of a promise; NULL: a hint */
} Field;

#define AT(name) offsetof(attnc_shape, name)
#define ATTNC_HINT(name, def, doc) {#name, AT(name), NULL},
#define ATTNC_PROMISE(name, def, values, doc) {#name, AT(name), values},
static const Field fields[] = {
#include "shape.def"
};
#undef ATTNC_HINT
#undef ATTNC_PROMISE

enum { FIELDS = sizeof fields / sizeof *fields };

static int64_t *place(const attnc_shape *s, const Field *f) {
    return (int64_t *)((char *)s + f->offset);
}

/* ---- text -> shape ----------------------------------------------------- */

static int unknown_field(Slice key, Err *e) {
    const char *names[FIELDS];
    char name[48];
    for (int i = 0; i < FIELDS; i++)
        names[i] = fields[i].name;
    snprintf(name, sizeof name, "%.*s", (int)key.len, key.p);
    return err_set(e, ERR_REQUEST, "shape", NULL,
                   "unknown field '%s'; nearest: %s", name,
                   nearest_word(name, names, FIELDS));
}

int shape_parse(const char *text, attnc_shape *s, Err *e) {
    Slice key, value;
    while (next_pair(&text, " \t\r\n", &key, &value)) {
        int i = 0;
        while (i < FIELDS && !slice_is(key, fields[i].name))
            i++;
        if (i == FIELDS)
            return unknown_field(key, e);
        if (!slice_int(value, place(s, &fields[i])))
            return err_set(e, ERR_REQUEST, "shape", fields[i].name,
                           "'%.*s' is not a whole number of 64 bits; "
                           "accepted: %s",
                           value.len > 40 ? 40 : (int)value.len, value.p,
                           fields[i].values ? fields[i].values : "1 and up");
    }
    return 0;
}

/* ---- checking ---------------------------------------------------------- */

/* Positions are 32-bit inside kernels; counts are held to the same. */
static int check_hint(const Field *f, int64_t v, Err *e) {
    if (v >= 1 && v <= INT32_MAX)
        return 0;
    return err_set(e, ERR_REQUEST, "shape", f->name,
                   "%lld is out of range; accepted 1..%d, nearest %d",
                   (long long)v, INT32_MAX, v < 1 ? 1 : INT32_MAX);
}

/* Accepted: one of the listed numbers; "0 or any length" for max_seqlen. */
static int check_promise(const Field *f, int64_t v, Err *e) {
    if (strstr(f->values, "any")) {
        if (v >= 0 && v <= INT32_MAX)
            return 0;
        return err_set(e, ERR_REQUEST, "shape", f->name,
                       "%lld is out of range; accepted 0..%d, nearest %d",
                       (long long)v, INT32_MAX, v < 0 ? 0 : INT32_MAX);
    }
    /* The nearest promise that this number keeps is the next smaller one. */
    int64_t nearest = strtoll(f->values, NULL, 10);
    char *at = (char *)f->values;
    while (*at) {
        int64_t one = strtoll(at, &at, 10);
        if (one == v)
            return 0;
        if (one < v)
            nearest = one;
    }
    return err_set(e, ERR_REQUEST, "shape", f->name,
                   "%lld is not accepted; accepted: %s; nearest: %lld",
                   (long long)v, f->values, (long long)nearest);
}

/* Elements of any tensor at head dim 256 must count in 62 bits. */
static int check_product(const attnc_shape *s, Err *e) {
    int64_t n = s->seqlen_q > s->seqlen_k ? s->seqlen_q : s->seqlen_k;
    int64_t most = INT64_MAX / 2 / 256 / 4;
    if (n <= most / s->batch && n * s->batch <= most / s->heads)
        return 0;
    return err_set(
        e, ERR_REQUEST, "shape", NULL,
        "batch %lld x heads %lld x length %lld overflows; nearest "
        "batch %lld",
        (long long)s->batch, (long long)s->heads, (long long)n,
        (long long)(most / s->heads / n > 1 ? most / s->heads / n : 1));
}

/* The largest divisor of n that is at most `limit` >= 1. */
static int64_t divisor_below(int64_t n, int64_t limit) {
    int64_t best = 1;
    for (int64_t i = 1; i * i <= n; i++) {
        if (n % i)
            continue;
        if (i <= limit && i > best)
            best = i;
        if (n / i <= limit && n / i > best)
            best = n / i;
    }
    return best;
}

int shape_check(const attnc_shape *in, attnc_shape *out, Err *e) {
    attnc_shape s = ATTNC_SHAPE_DEFAULT;
    int code = struct_copy(&s, sizeof s, in, "shape", e);
    for (int i = 0; !code && i < FIELDS; i++) {
        int64_t v = *place(&s, &fields[i]);
        code = fields[i].values ? check_promise(&fields[i], v, e)
                                : check_hint(&fields[i], v, e);
    }
    if (!code)
        code = check_product(&s, e);
    if (code)
        return code;
    if (s.heads % s.kv_heads)
        return err_set(e, ERR_REQUEST, "shape", "kv_heads",
                       "heads %lld is not a multiple of %lld; nearest %lld",
                       (long long)s.heads, (long long)s.kv_heads,
                       (long long)divisor_below(s.heads, s.kv_heads));
    *out = s;
    return 0;
}

/* ---- shape -> text ----------------------------------------------------- */

static void print(const attnc_shape *s, bool hints, Str *out) {
    bool first = true;
    for (int i = 0; i < FIELDS; i++) {
        if (!fields[i].values && !hints)
            continue;
        str_addf(out, "%s%s=%lld", first ? "" : " ", fields[i].name,
                 (long long)*place(s, &fields[i]));
        first = false;
    }
}

void shape_print(const attnc_shape *s, Str *out) {
    print(s, true, out);
}

void shape_print_promises(const attnc_shape *s, Str *out) {
    print(s, false, out);
}
