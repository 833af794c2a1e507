/* SPDX-License-Identifier: Apache-2.0
 * Growing text, first-failure errors, nearest words and strict numbers. Text
 * and numbers look the same in every locale. */
#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gen.h"

/* The host program may have set a locale whose decimal point is a comma; the
 * "C" locale is built in, so this allocates nothing. */
static locale_t plain_locale(void) {
    return newlocale(LC_ALL_MASK, "C", (locale_t)0);
}

static int plain_vsnprintf(char *to, size_t size, const char *fmt,
                           va_list args) {
    locale_t before = uselocale(plain_locale());
    int n = vsnprintf(to, size, fmt, args);
    uselocale(before);
    return n;
}

/* ---- growing text ------------------------------------------------------ */

/* Makes room for `more` characters and a NUL. */
static bool reserve(Str *s, size_t more) {
    if (s->bad)
        return false;
    if (s->len + more < s->cap)
        return true;
    size_t cap = s->cap ? s->cap : 256;
    while (cap <= s->len + more)
        cap *= 2;
    char *text = realloc(s->text, cap);
    if (!text) {
        s->bad = true;
        return false;
    }
    s->text = text;
    s->cap = cap;
    return true;
}

void str_add(Str *s, const char *text, size_t len) {
    if (!reserve(s, len))
        return;
    memcpy(s->text + s->len, text, len);
    s->len += len;
    s->text[s->len] = 0;
}

void str_addf(Str *s, const char *fmt, ...) {
    if (!reserve(s, 128))
        return;
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    size_t room = s->cap - s->len;
    int n = plain_vsnprintf(s->text + s->len, room, fmt, args);
    if (n < 0) {
        s->text[s->len] = 0;
        s->bad = true;
    } else if ((size_t)n < room) {
        s->len += (size_t)n;
    } else if (s->text[s->len] = 0, reserve(s, (size_t)n)) {
        plain_vsnprintf(s->text + s->len, (size_t)n + 1, fmt, again);
        s->len += (size_t)n;
    }
    va_end(again);
    va_end(args);
}

void str_number(Str *s, double value) {
    char text[40];
    snprintf(text, sizeof text, "%.15g", value);
    if (strtod(text, NULL) == value)
        str_addf(s, "%.15g", value);
    else
        str_addf(s, "%.17g", value);
}

void str_free(Str *s) {
    free(s->text);
    *s = (Str){0};
}

/* ---- errors ------------------------------------------------------------ */

/* In brackets: gen.h has a macro of the name, for the analyzer. */
int(err_set)(Err *e, int code, const char *stage, const char *field,
             const char *fmt, ...) {
    if (e->code)
        return code;
    e->code = code;
    snprintf(e->stage, sizeof e->stage, "%s", stage);
    snprintf(e->field, sizeof e->field, "%s", field ? field : "");
    int n = snprintf(e->text, sizeof e->text, "%s: %s%s", stage, e->field,
                     field ? ": " : "");
    va_list args;
    va_start(args, fmt);
    plain_vsnprintf(e->text + n, sizeof e->text - (size_t)n, fmt, args);
    va_end(args);
    return code;
}

/* ---- open structs ------------------------------------------------------ */

int struct_copy(void *to, size_t size, const void *from, const char *stage,
                Err *e) {
    size_t known;
    const char *bytes = from;
    memcpy(&known, from, sizeof known);
    if (known < sizeof known || known > 65536)
        return err_set(e, ERR_REQUEST, stage, "struct_size",
                       "%zu is not the size of attnc_%s; nearest %zu", known,
                       stage, size);
    for (size_t i = size; i < known; i++) {
        if (bytes[i])
            return err_set(e, ERR_REQUEST, stage, "struct_size",
                           "%zu: byte %zu is set, this version knows only %zu "
                           "bytes",
                           known, i, size);
    }
    memcpy(to, from, known < size ? known : size);
    memcpy(to, &size, sizeof size);
    return 0;
}

/* ---- words ------------------------------------------------------------- */

enum { WORD = 48 };

/* Insertions, deletions, substitutions and neighbours swapped, each 1; only
 * the first WORD - 1 characters count. */
static int edit_distance(const char *a, const char *b) {
    int d[WORD][WORD];
    int na = (int)strnlen(a, WORD - 1), nb = (int)strnlen(b, WORD - 1);
    for (int i = 0; i <= na; i++) {
        for (int j = 0; j <= nb; j++) {
            if (!i || !j) {
                d[i][j] = i + j;
                continue;
            }
            int best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            best = best < d[i - 1][j] + 1 ? best : d[i - 1][j] + 1;
            best = best < d[i][j - 1] + 1 ? best : d[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] &&
                a[i - 2] == b[j - 1] && d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    }
    return d[na][nb];
}

const char *nearest_word(const char *word, const char *const *names, int n) {
    const char *best = NULL;
    int least = 0;
    for (int i = 0; i < n; i++) {
        /* Of equals, one that only says more: sm_90 means sm_90a. */
        int distance = 2 * edit_distance(word, names[i]) -
                       !strncmp(word, names[i], strlen(word));
        if (!best || distance < least) {
            best = names[i];
            least = distance;
        }
    }
    return best;
}

/* ---- key=value text ---------------------------------------------------- */

bool next_pair(const char **cursor, const char *seps, Slice *key,
               Slice *value) {
    const char *p = *cursor + strspn(*cursor, seps);
    if (!*p)
        return false;
    size_t len = strcspn(p, seps);
    const char *eq = memchr(p, '=', len);
    size_t key_len = eq ? (size_t)(eq - p) : len;
    *key = (Slice){p, key_len};
    *value = eq ? (Slice){eq + 1, len - key_len - 1} : (Slice){p + len, 0};
    *cursor = p + len;
    return true;
}

bool slice_is(Slice s, const char *text) {
    return strlen(text) == s.len && !memcmp(s.p, text, s.len);
}

/* Copies a slice as a C string; false when it is empty, too long or holds
 * what strtoll or strtod might take and we do not (blanks, hex, inf). */
static bool number_text(Slice s, char out[64]) {
    if (!s.len || s.len > 63)
        return false;
    memcpy(out, s.p, s.len);
    out[s.len] = 0;
    return strspn(out, "+-.0123456789eE") == s.len;
}

bool slice_int(Slice s, int64_t *out) {
    char text[64], *end;
    if (!number_text(s, text))
        return false;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (*end || end == text || errno == ERANGE)
        return false;
    *out = value;
    return true;
}

bool slice_double(Slice s, double *out) {
    char text[64], *end;
    if (!number_text(s, text))
        return false;
    double value = strtod_l(text, &end, plain_locale());
    if (*end || end == text || !isfinite(value))
        return false;
    *out = value;
    return true;
}
