/* SPDX-License-Identifier: Apache-2.0
 * The words of a program's text, and faults told with their place. */
#include <stdio.h>
#include <string.h>

#include "program_internal.h"

/* ---- faults ------------------------------------------------------------ */

enum { SHOWN = 72 };

/* The line around the place, at most SHOWN characters, a caret under it. */
static void show_place(const char *text, size_t at, Str *out) {
    size_t begin = at, end = at;
    while (begin && text[begin - 1] != '\n' && at - begin < SHOWN / 2)
        begin--;
    while (text[end] && text[end] != '\n' && end - begin < SHOWN)
        end++;
    str_addf(out, "\n  ");
    for (size_t i = begin; i < end; i++) {
        unsigned char c = (unsigned char)text[i];
        str_addf(out, "%c", c < ' ' || c > '~' ? ' ' : c);
    }
    str_addf(out, "\n  %*s^", (int)(at - begin), "");
}

int parse_fail(Parser *x, size_t at, const char *fmt, ...) {
    static const char *const stages[] = {"mask", "score", "gradient"};
    char text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    /* A graph that could not grow holds wrong nodes: no other fault counts. */
    if (x->p->full && x->p->count < x->p->most)
        return err_set(x->e, ERR_MEMORY, "program", NULL, "out of memory");
    if (x->p->full)
        snprintf(text, sizeof text, "more than %d operations", x->p->most);
    size_t line = 1, column = 1;
    for (size_t i = 0; i < at; i++) {
        column = x->text[i] == '\n' ? 1 : column + 1;
        line += x->text[i] == '\n';
    }
    Str place = {0};
    show_place(x->text, at, &place);
    err_set(x->e, ERR_REQUEST, stages[x->p->kind], NULL,
            "line %zu column %zu: %s%s", line, column, text,
            place.bad ? "" : place.text);
    str_free(&place);
    return -1;
}

/* ---- words ------------------------------------------------------------- */

static bool letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static bool digit(char c) {
    return c >= '0' && c <= '9';
}

static size_t skip_blanks(const char *text, size_t at) {
    for (;;) {
        at += strspn(text + at, " \t\r\n");
        if (text[at] != '/' || text[at + 1] != '/')
            return at;
        at += strcspn(text + at, "\n");
    }
}

/* Length of the number at p; *whole: it is an int. */
static size_t number_length(const char *p, bool *whole) {
    size_t n = 0;
    *whole = true;
    if (p[0] == '0' && (p[1] == 'x' || p[1] == 'X'))
        return 2 + strspn(p + 2, "0123456789abcdefABCDEF");
    n += strspn(p, "0123456789");
    if (p[n] == '.') {
        *whole = false;
        n += 1 + strspn(p + n + 1, "0123456789");
    }
    if (p[n] == 'e' || p[n] == 'E') {
        size_t sign = p[n + 1] == '-' || p[n + 1] == '+';
        size_t digits = strspn(p + n + 1 + sign, "0123456789");
        if (digits) {
            *whole = false;
            n += 1 + sign + digits;
        }
    }
    return n;
}

static size_t sign_length(const char *p) {
    static const char *const two[] = {
        "<<", ">>", "<=", ">=", "==", "!=", "&&", "||"};
    for (size_t i = 0; i < sizeof two / sizeof *two; i++) {
        if (!strncmp(p, two[i], 2))
            return 2;
    }
    return *p && strchr("+-*/%<>&|^~!?:;,()[]=", *p) ? 1 : 0;
}

void parse_next(Parser *x) {
    bool whole;
    x->at = skip_blanks(x->text, x->at + x->word.len);
    const char *p = x->text + x->at;
    x->word = (Slice){p, 0};
    if (!*p) {
        x->token = TOKEN_END;
    } else if (letter(*p)) {
        x->token = TOKEN_NAME;
        while (letter(p[x->word.len]) || digit(p[x->word.len]))
            x->word.len++;
    } else if (digit(*p) || (*p == '.' && digit(p[1]))) {
        x->word.len = number_length(p, &whole);
        x->token = whole ? TOKEN_INT : TOKEN_FLOAT;
    } else {
        x->word.len = sign_length(p);
        x->token = x->word.len ? TOKEN_SIGN : TOKEN_BAD;
    }
}

char parse_peek(const Parser *x) {
    return x->text[skip_blanks(x->text, x->at + x->word.len)];
}

bool parse_at(const Parser *x, const char *sign) {
    return x->token == TOKEN_SIGN && slice_is(x->word, sign);
}

/* What stands here, for messages. */
const char *parse_found(Parser *x) {
    size_t n = x->token == TOKEN_BAD ? 1 : x->word.len;
    n = n < PROGRAM_NAME ? n : PROGRAM_NAME;
    if (x->token == TOKEN_END)
        return "the end";
    snprintf(x->found, sizeof x->found, "'%.*s'", (int)n, x->text + x->at);
    return x->found;
}

bool parse_expect(Parser *x, const char *sign) {
    if (!parse_at(x, sign)) {
        parse_fail(x, x->at, "expected '%s', found %s", sign, parse_found(x));
        return false;
    }
    parse_next(x);
    return true;
}
