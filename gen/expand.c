/* SPDX-License-Identifier: Apache-2.0
 * Template text -> Lua chunk, line for line: line n of the template is line n
 * of the chunk, so that Lua's own messages point into the template. */
#include <string.h>

#include "gen.h"

/* A place in a template: for messages, and for the chunk's own record of
 * which line made an output line. */
typedef struct Place {
    const Template *t;
    int line;
} Place;

static int fail(const Place *at, Err *e, const char *what) {
    return err_set(e, ERR_INTERNAL, "expand", NULL, "%s:%d: %s", at->t->name,
                   at->line, what);
}

/* Appends text as the inside of a Lua string literal. */
static void add_quoted(Str *out, const char *text, size_t len) {
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\')
            str_addf(out, "\\%c", c);
        else if (c < ' ' || c == 127)
            str_addf(out, "\\%03d", c);
        else
            str_add(out, text + i, 1);
    }
}

/* The `}` that closes a `${` whose expression starts at p; NULL if none. */
static const char *value_end(const char *p, const char *end) {
    int depth = 1;
    for (; p < end; p++) {
        depth += *p == '{';
        depth -= *p == '}';
        if (!depth)
            return p;
    }
    return NULL;
}

static const char *value_start(const char *p, const char *end) {
    for (; p + 1 < end; p++)
        if (p[0] == '$' && p[1] == '{')
            return p;
    return NULL;
}

/* `a ${x} b` -> `__(line,"a ",(x)," b")` */
static int add_text(const Place *at, const char *p, const char *end, Str *chunk,
                    Err *e) {
    str_addf(chunk, "__(%d", at->line);
    while (p < end) {
        const char *mark = value_start(p, end);
        const char *stop = mark ? mark : end;
        if (stop > p) {
            str_addf(chunk, ",\"");
            add_quoted(chunk, p, (size_t)(stop - p));
            str_addf(chunk, "\"");
        }
        if (!mark)
            break;
        const char *close = value_end(mark + 2, end);
        if (!close)
            return fail(at, e, "`${` without its `}` on the same line");
        if (close == mark + 2)
            return fail(at, e, "`${}` holds no expression");
        str_addf(chunk, ",(%.*s)", (int)(close - mark - 2), mark + 2);
        p = close + 1;
    }
    str_addf(chunk, ")");
    return 0;
}

int expand_chunk(const Template *t, Str *chunk, Err *e) {
    Place at = {t, 1};
    const char *end = t->text + t->len;
    for (const char *p = t->text; p < end; at.line++) {
        const char *newline = memchr(p, '\n', (size_t)(end - p));
        const char *stop = newline ? newline : end;
        bool lua = *p == '$' && (stop - p < 2 || p[1] != '{');
        if (lua)
            str_add(chunk, p + 1, (size_t)(stop - p - 1));
        else if (add_text(&at, p, stop, chunk, e))
            return e->code;
        str_add(chunk, "\n", 1);
        p = stop + 1;
    }
    if (chunk->bad)
        return err_set(e, ERR_MEMORY, "expand", NULL, "out of memory");
    return 0;
}
