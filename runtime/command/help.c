/* SPDX-License-Identifier: Apache-2.0
 * --help, made from the tables of verbs, options and spec fields. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "command.h"

enum { COLUMN = 26, WIDTH = 79 };

static void drop_spaces(Str *out) {
    while (out->len && out->text[out->len - 1] == ' ')
        out->text[--out->len] = '\0';
}

/* Adds text from column `at` on, wrapped with a hanging indent. */
static void wrap(Str *out, int at, int indent, const char *text) {
    while (*text) {
        int len = (int)strcspn(text, " ");
        if (at + len > WIDTH && at > indent) {
            drop_spaces(out);
            str_addf(out, "\n%*s", indent, "");
            at = indent;
        }
        str_add(out, text, (size_t)len);
        at += len;
        text += len;
        if (*text == ' ' && at < WIDTH) {
            str_add(out, " ", 1);
            at++;
        }
        text += *text == ' ';
    }
    drop_spaces(out);
    str_add(out, "\n", 1);
}

static void entry(Str *out, const char *left, const char *text) {
    str_addf(out, "  %-*s", COLUMN - 2, left);
    int at = 2 + (int)strlen(left);
    if (at >= COLUMN) {
        str_addf(out, "\n%*s", COLUMN, "");
        at = COLUMN;
    }
    wrap(out, at > COLUMN ? at : COLUMN, COLUMN, text);
}

/* What the command reads of the environment; the library reads the last. */
static const struct {
    const char *name, *doc;
} variables[] = {
    {"ATTNC_COMPILERS", "compilers to try, `clang-16:gcc`; empty: none, use "
                        "the built-in kernel"},
    {"ATTNC_NO_COMPILE", "1: what is not in the cache is an error (exit 3)"},
    {"ATTNC_TEMPLATES", "directory of kernel templates instead of the "
                        "embedded ones"},
    {"ATTNC_CACHE_DIR", "the kernel cache (default $XDG_CACHE_HOME/attnc, "
                        "~/.cache/attnc); empty: none on disk"},
};

static void environment(Str *out) {
    str_addf(out, "\nEnvironment\n");
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++)
        entry(out, variables[i].name, variables[i].doc);
}

static void exit_codes(Str *out) {
    str_addf(out,
             "\nExit status\n"
             "  0 success   1 a check failed   2 a bad request   3 the machine "
             "lacks\n  something   4 the system failed (on 2-4 stdout stays "
             "empty)\n");
}

void help_overview(Str *out) {
    str_addf(out,
             "attnc %d.%d.%d: attention kernels, generated, compiled and "
             "cached at run time\n\nusage: attnc VERB [options]\n\n",
             ATTNC_VERSION_MAJOR, ATTNC_VERSION_MINOR, ATTNC_VERSION_PATCH);
    for (int i = 0; i < VERB_COUNT; i++)
        if (!verb_later(i))
            str_addf(out, "  %-9s %s\n", verb_name(i), verb_doc(i));
    str_addf(out, "\nnot in this version:");
    for (int i = 0; i < VERB_COUNT; i++)
        if (verb_later(i))
            str_addf(out, " %s", verb_name(i));
    str_addf(out,
             "\n\nTry\n"
             "  attnc run --mask causal --seqlen 4096 --check\n"
             "  attnc run --q q.npy --k k.npy --v v.npy --out result\n"
             "  attnc explain --dtype bf16 --head-dim 128 --target avx512\n"
             "  attnc VERB --help\n");
    environment(out);
    exit_codes(out);
}

typedef struct Field {
    const char *want;
    char text[256];
} Field;

static void find_field(void *user, const char *name, const char *def,
                       const char *accepted, const char *doc) {
    Field *f = user;
    if (strcmp(name, f->want) == 0)
        snprintf(f->text, sizeof f->text, "%s: %s (default %s)", doc, accepted,
                 def);
}

static void option_help(const Option *t, Str *out) {
    char left[48];
    Field f = {.want = t->id};
    bool maybe = t->kind == MAYBE;
    snprintf(left, sizeof left, "--%s%s%s%s%s", t->flag,
             t->argument[0] ? " " : "", maybe ? "[" : "", t->argument,
             maybe ? "]" : "");
    if (t->kind == FIELD)
        spec_fields(find_field, &f);
    entry(out, left, t->kind == FIELD ? f.text : t->doc);
}

static const char notes[] =
    "\nMasks: which keys k a query q sees, both counted from 0\n"
    "  causal[:OFF]        k <= q+OFF\n"
    "  window:L,R[,OFF]    q+OFF-L <= k <= q+OFF+R; L, R >= 0 or inf\n"
    "  prefix:P[,OFF]      k < P or k <= q+OFF\n"
    "  expr:TEXT           a condition on b h q k nq nk off and tensors: "
    "\"k <= q\"\n"
    "  OFF: a whole number, br (default: keys - queries, of the tensors or of "
    "the\n  packed sequence; --lens-k does not change it) or len (lens_k[b] - "
    "queries)\n"
    "\nSizes that are not given come from the files; what disagrees is "
    "refused.\n"
    "\nA spec file names flags with _ for -, and may compute:\n"
    "  return { head_dim = 64, mask = \"causal:br\", lens_k = { 70, 64 } }\n";

/* Every pattern with its first arguments. */
static void add_pattern(void *user, const char *pattern, const char *argument,
                        int64_t def, int64_t lo, int64_t hi, const char *doc) {
    char left[48];
    (void)lo;
    (void)hi;
    if (argument)
        snprintf(left, sizeof left, "  %s=%" PRId64, argument, def);
    entry(user, argument ? left : pattern, doc);
}

static void patterns(Str *out) {
    str_addf(out,
             "\nPatterns: which blocks e of keys a block a of queries sees; "
             "i, j positions\n");
    pattern_rows(add_pattern, out);
}

static const char cache_notes[] =
    "\n  ls       the entries\n"
    "  stat     where, how many, how large\n"
    "  verify   read every entry whole; exit 1 if one is damaged\n"
    "  prune    delete what was not used for longest, down to --max-bytes\n"
    "  clear    delete all entries\n";

void help_verb(int verb, Str *out) {
    const char *group = "";
    unsigned bit = 1u << verb;
    str_addf(out, "attnc %s: %s\n\nusage: attnc %s %s[options]\n",
             verb_name(verb), verb_doc(verb), verb_name(verb),
             verb == VERB_cache  ? "ls|stat|verify|prune|clear "
             : verb == VERB_emit ? "-o DIR "
                                 : "");
    if (verb == VERB_cache)
        str_addf(out, "%s", cache_notes);
    for (int i = 0; i < OPT_COUNT; i++) {
        const Option *t = option_at(i);
        if (!(t->verbs & bit))
            continue;
        if (strcmp(group, t->group) != 0)
            str_addf(out, "\n%s\n", t->group);
        group = t->group;
        option_help(t, out);
    }
    if (COMMON & bit)
        str_addf(out, "%s", notes);
    if (COMMON & bit)
        patterns(out);
    environment(out);
    exit_codes(out);
}
