/* SPDX-License-Identifier: Apache-2.0
 * The spec: text in, every field checked, canonical text out. All of it reads
 * one table, made from spec.def. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "program_intern.h"

enum field_kind { FIELD_ENUM, FIELD_INT, FIELD_BOOL, FIELD_TEXT };
enum { SPELLINGS = 18 };

typedef struct Field {
    const char *name;
    int kind; /* enum field_kind */
    size_t offset;
    int def, lo, hi;                 /* accepted: lo..hi; FIELD_TEXT: kind */
    const char *spelling[SPELLINGS]; /* FIELD_ENUM: also those above hi */
    const char *doc;
} Field;

#define SPELLING(suffix, spelling) spelling,
#define AT(name) offsetof(attnc_spec, name)
#define ATTNC_ENUM(name, values, def, count, doc)                              \
    {#name, FIELD_ENUM, AT(name), def, 0, count - 1, {values(SPELLING)}, doc},
#define ATTNC_INT(name, def, lo, hi, doc)                                      \
    {#name, FIELD_INT, AT(name), def, lo, hi, {0}, doc},
#define ATTNC_BOOL(name, def, hi, doc)                                         \
    {#name, FIELD_BOOL, AT(name), def, 0, hi, {0}, doc},
#define ATTNC_TEXT(name, kind, doc)                                            \
    {#name, FIELD_TEXT, AT(name), kind, 0, 0, {0}, doc},
static const Field fields[] = {
#include "spec.def"
};
#undef ATTNC_ENUM
#undef ATTNC_INT
#undef ATTNC_BOOL
#undef ATTNC_TEXT

enum { FIELDS = sizeof fields / sizeof *fields };

static int32_t *place(const attnc_spec *s, const Field *f) {
    return (int32_t *)((char *)s + f->offset);
}

static const attnc_program **text_place(const attnc_spec *s, const Field *f) {
    return (const attnc_program **)((char *)s + f->offset);
}

static const Field *find(const char *name) {
    for (int i = 0; i < FIELDS; i++) {
        if (!strcmp(fields[i].name, name))
            return &fields[i];
    }
    return NULL;
}

/* Number of spellings, accepted or not. */
static int spellings(const Field *f) {
    int n = 0;
    while (n < SPELLINGS && f->spelling[n])
        n++;
    return n;
}

/* "f32 f16 bf16", "1..256", "0 1". */
static void accepted(const Field *f, char out[80]) {
    size_t n = 0;
    if (f->kind == FIELD_TEXT)
        snprintf(out, 80, "none \"TEXT\"");
    else if (f->kind == FIELD_INT)
        snprintf(out, 80, "%d..%d", f->lo, f->hi);
    else if (f->kind == FIELD_BOOL)
        snprintf(out, 80, f->hi ? "0 1" : "0");
    else
        for (int i = 0; i <= f->hi; i++)
            n += (size_t)snprintf(out + n, 80 - n, "%s%s", i ? " " : "",
                                  f->spelling[i]);
}

/* ---- errors ------------------------------------------------------------ */

static int unknown_field(const char *name, Err *e) {
    const char *names[FIELDS];
    for (int i = 0; i < FIELDS; i++)
        names[i] = fields[i].name;
    return err_set(e, ERR_REQUEST, "spec", NULL,
                   "unknown field '%.40s'; nearest: %s", name,
                   nearest_word(name, names, FIELDS));
}

static int unknown_value(const Field *f, const char *value, Err *e) {
    char all[80];
    accepted(f, all);
    if (f->kind != FIELD_ENUM)
        return err_set(e, ERR_REQUEST, "spec", f->name,
                       "'%.40s' is not a number; accepted: %s, default %d",
                       value, all, f->def);
    return err_set(e, ERR_REQUEST, "spec", f->name,
                   "unknown value '%.40s'; nearest: %s; accepted: %s", value,
                   nearest_word(value, f->spelling, f->hi + 1), all);
}

/* Checks one value by itself. */
static int check(const Field *f, int64_t value, Err *e) {
    char all[80];
    if (value >= f->lo && value <= f->hi)
        return 0;
    accepted(f, all);
    int64_t nearest = value < f->lo ? f->lo : f->hi;
    if (f->kind == FIELD_ENUM && value > 0 && value < spellings(f))
        return err_set(e, ERR_REQUEST, "spec", f->name,
                       "%s is not in this version; accepted: %s",
                       f->spelling[value], all);
    if (f->kind == FIELD_BOOL && value == 1)
        return err_set(e, ERR_REQUEST, "spec", f->name,
                       "1 is not in this version; accepted: %s", all);
    return err_set(e, ERR_REQUEST, "spec", f->name,
                   "%lld is out of range; accepted %s, nearest %s%lld",
                   (long long)value, all,
                   f->kind == FIELD_ENUM ? "number " : "", (long long)nearest);
}

/* ---- text -> spec ------------------------------------------------------ */

/* value as spelled -> number; false: not a value of this field at all. */
static bool read_value(const Field *f, const char *value, int64_t *out) {
    for (int i = 0; i < spellings(f); i++) {
        if (!strcmp(f->spelling[i], value)) {
            *out = i;
            return true;
        }
    }
    return f->kind != FIELD_ENUM &&
           slice_int((Slice){value, strlen(value)}, out);
}

/* Digits that do not fit 64 bits are out of range, not "not a number". */
static bool is_integer(const char *value) {
    value += *value == '-' || *value == '+';
    return *value && strspn(value, "0123456789") == strlen(value);
}

/* "none" is none. */
static int set_text(attnc_spec *s, const Field *f, const char *value, Err *e) {
    const attnc_program **at = text_place(s, f);
    *at = NULL;
    return strcmp(value, "none") ? program_intern(value, f->def, NULL, 0, at, e)
                                 : 0;
}

int spec_set(attnc_spec *s, const char *field, const char *value, Err *e) {
    const Field *f = find(field);
    int64_t v;
    if (!f)
        return unknown_field(field, e);
    if (f->kind == FIELD_TEXT)
        return set_text(s, f, value, e);
    if (!read_value(f, value, &v)) {
        if (f->kind == FIELD_ENUM || !is_integer(value))
            return unknown_value(f, value, e);
        v = *value == '-' ? INT64_MIN : INT64_MAX;
    }
    int code = check(f, v, e);
    if (!code)
        *place(s, f) = (int32_t)v;
    return code;
}

/* NAME="TEXT", which a program or pattern is; *text steps over it. */
static int parse_text(const char **text, const Field *f, const char *quoted,
                      attnc_spec *s, Err *e) {
    const char *end = strchr(quoted + 1, '"');
    if (!end)
        return err_set(e, ERR_REQUEST, "spec", f->name,
                       "no closing \"; write %s=\"TEXT\"", f->name);
    char *copy = strndup(quoted + 1, (size_t)(end - quoted - 1));
    if (!copy)
        return err_set(e, ERR_MEMORY, "spec", f->name, "out of memory");
    set_text(s, f, copy, e);
    free(copy);
    *text = end + 1;
    return e->code;
}

int spec_parse(const char *text, attnc_spec *s, Err *e) {
    Slice key, value;
    char name[64], word[64];
    while (next_pair(&text, " \t\r\n", &key, &value)) {
        snprintf(name, sizeof name, "%.*s", (int)key.len, key.p);
        snprintf(word, sizeof word, "%.*s", (int)value.len, value.p);
        if (!value.len && find(name))
            return err_set(e, ERR_REQUEST, "spec", name,
                           "no value; write %s=VALUE", name);
        const Field *f = find(name);
        bool quoted = f && f->kind == FIELD_TEXT && *value.p == '"';
        int code = quoted ? parse_text(&text, f, value.p, s, e)
                          : spec_set(s, name, word, e);
        if (code)
            return code;
    }
    return 0;
}

/* ---- checking ---------------------------------------------------------- */

static bool is_set(const attnc_spec *s, const Field *f) {
    return f->kind == FIELD_TEXT ? *text_place(s, f) != NULL
                                 : *place(s, f) != f->def;
}

/* What a merge has nothing to do with: all that says which scores there are. */
static int check_merge(const attnc_spec *s, Err *e) {
    static const char *const read[] = {
        "pass",   "dtype", "head_dim",      "head_dim_v",
        "varlen", "sink",  "deterministic", "batch_invariant"};
    enum { READ = sizeof read / sizeof *read };
    for (int i = 0; i < FIELDS; i++) {
        int n = 0;
        while (n < READ && strcmp(fields[i].name, read[n]))
            n++;
        if (n == READ && is_set(s, &fields[i]))
            return err_set(e, ERR_REQUEST, "spec", fields[i].name,
                           "pass=merge does not read it; accepted: its default "
                           "(attnc_merge takes the spec of the parts)");
    }
    if (s->head_dim == s->head_dim_v)
        return 0;
    return err_set(e, ERR_REQUEST, "spec", "head_dim",
                   "%d; pass=merge has rows of O alone, nearest: head_dim_v = "
                   "%d",
                   s->head_dim, s->head_dim_v);
}

int spec_check(const attnc_spec *in, attnc_spec *out, Err *e) {
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    int code = struct_copy(&s, sizeof s, in, "spec", e);
    for (int i = 0; !code && i < FIELDS; i++)
        if (fields[i].kind != FIELD_TEXT)
            code = check(&fields[i], *place(&s, &fields[i]), e);
    code = code ? code : spec_check_programs(&s, e);
    if (code)
        return code;
    if (s.f32_math == ATTNC_MATH_TF32 && s.dtype != ATTNC_F32)
        return err_set(e, ERR_REQUEST, "spec", "f32_math",
                       "tf32 needs dtype=f32, not %s; nearest: ieee",
                       spec_spelling(&s, "dtype"));
    if (!s.head_dim_v)
        s.head_dim_v = s.head_dim;
    *out = s;
    return s.pass == ATTNC_PASS_MERGE ? check_merge(&s, e) : 0;
}

/* ---- spec -> text ------------------------------------------------------ */

void spec_print(const attnc_spec *s, Str *out) {
    for (int i = 0; i < FIELDS; i++) {
        const Field *f = &fields[i];
        str_addf(out, "%s%s=", i ? " " : "", f->name);
        if (f->kind == FIELD_TEXT) {
            const attnc_program *p = *text_place(s, f);
            str_addf(out, p ? "\"%s\"" : "%s", p ? p->text : "none");
            continue;
        }
        int v = *place(s, f);
        if (f->kind == FIELD_ENUM && v >= 0 && v < spellings(f))
            str_addf(out, "%s", f->spelling[v]);
        else
            str_addf(out, "%d", v);
    }
}

const char *spec_spelling(const attnc_spec *s, const char *field) {
    const Field *f = find(field);
    if (!f || f->kind != FIELD_ENUM)
        return NULL;
    int v = *place(s, f);
    return v >= 0 && v < spellings(f) ? f->spelling[v] : NULL;
}

void spec_fields(void (*fn)(void *user, const char *name, const char *def,
                            const char *accepted, const char *doc),
                 void *user) {
    for (int i = 0; i < FIELDS; i++) {
        const Field *f = &fields[i];
        char def[32], all[80];
        if (f->kind == FIELD_TEXT)
            snprintf(def, sizeof def, "none");
        else if (f->kind == FIELD_ENUM)
            snprintf(def, sizeof def, "%s", f->spelling[f->def]);
        else
            snprintf(def, sizeof def, "%d", f->def);
        accepted(f, all);
        fn(user, f->name, def, all, f->doc);
    }
}

int dtype_bytes(int dtype) {
    return dtype == ATTNC_F32 ? 4 : 2;
}

bool spec_has_mask(const attnc_spec *s) {
    return s->mask != ATTNC_MASK_NONE && s->mask != ATTNC_MASK_PROGRAM;
}
