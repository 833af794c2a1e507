/* SPDX-License-Identifier: Apache-2.0
 * --mask: the kind, which is structure, and its numbers, which are not. */
#include <inttypes.h>
#include <string.h>

#include "command.h"

/* Numbers a kind takes before the offset. */
static const struct {
    const char *name;
    int numbers;
    const char *form;
} kinds[] = {
    {"none", 0, "none"},
    {"causal", 0, "causal[:OFF]"},
    {"window", 2, "window:L,R[,OFF]"},
    {"prefix", 1, "prefix:P[,OFF]"},
    {"expr", 0, "expr:TEXT"}, /* ATTNC_MASK_PROGRAM */
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static int bad_kind(const Options *o, Slice kind, Err *e) {
    const char *names[KINDS];
    char word[32];
    for (int i = 0; i < KINDS; i++)
        names[i] = kinds[i].name;
    size_t len = kind.len < sizeof word - 1 ? kind.len : sizeof word - 1;
    memcpy(word, kind.p, len);
    word[len] = '\0';
    return option_bad(o, OPT_mask, e, "unknown mask, nearest: %s",
                      nearest_word(word, names, KINDS));
}

/* The next of a list separated by commas. */
static bool next_item(const char **cursor, Slice *item) {
    if (!*cursor)
        return false;
    size_t len = strcspn(*cursor, ",");
    *item = (Slice){*cursor, len};
    *cursor = (*cursor)[len] ? *cursor + len + 1 : NULL;
    return true;
}

static int number(const Options *o, Slice s, bool inf, int64_t *out, Err *e) {
    if (inf && slice_is(s, "inf")) {
        *out = INT64_MAX;
        return 0;
    }
    if (slice_int(s, out) && *out >= 0)
        return 0;
    return option_bad(o, OPT_mask, e, "`%.*s`: accepted: a number >= 0%s",
                      (int)(s.len < 32 ? s.len : 32), s.p,
                      inf ? " or inf" : "");
}

static int offset(const Options *o, Slice s, Problem *p, Err *e) {
    if (slice_is(s, "br")) {
        p->offset_mode = ATTNC_OFFSET_BR;
        return 0;
    }
    if (slice_is(s, "len")) {
        p->offset_mode = ATTNC_OFFSET_LEN;
        if (o->given[OPT_lens_k].text)
            return 0;
        return option_bad(o, OPT_mask, e,
                          "the offset len needs --lens-k; accepted without: a "
                          "whole number, br");
    }
    p->offset_mode = ATTNC_OFFSET_INT;
    if (slice_int(s, &p->offset))
        return 0;
    return option_bad(o, OPT_mask, e,
                      "offset `%.*s`: accepted: a whole number, br, len",
                      (int)(s.len < 32 ? s.len : 32), s.p);
}

int mask_parse(const Options *o, Problem *p, Err *e) {
    const char *text = o->given[OPT_mask].text;
    p->offset_mode = ATTNC_OFFSET_BR;
    if (!text)
        return 0;
    size_t len = strcspn(text, ":");
    const char *rest = text[len] ? text + len + 1 : NULL;
    int kind = 0, rc = 0;
    while (kind < KINDS && !slice_is((Slice){text, len}, kinds[kind].name))
        kind++;
    if (kind == KINDS)
        return bad_kind(o, (Slice){text, len}, e);
    if (kind == ATTNC_MASK_PROGRAM)
        return programs_mask(o, rest, p, e);
    int64_t *to[2] = {&p->left, &p->right};
    if (kind == ATTNC_MASK_PREFIX)
        to[0] = &p->prefix;
    Slice item;
    for (int i = 0; i < kinds[kind].numbers && rc == 0; i++)
        rc = next_item(&rest, &item)
                 ? number(o, item, kind == ATTNC_MASK_WINDOW, to[i], e)
                 : option_bad(o, OPT_mask, e, "accepted: %s", kinds[kind].form);
    if (rc == 0 && kind != ATTNC_MASK_NONE && next_item(&rest, &item))
        rc = offset(o, item, p, e);
    if (rc == 0 && rest)
        rc = option_bad(o, OPT_mask, e, "accepted: %s", kinds[kind].form);
    return rc ? rc : spec_set(&p->spec, "mask", kinds[kind].name, e);
}
