/* SPDX-License-Identifier: Apache-2.0
 * The command line -> Options: every value as text, with where it was met. */
#include <ctype.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"

static Option table[OPT_COUNT] = {
#define GROUP(title)
#define OPTION(id, kind, argument, verbs, doc)                                 \
    {#id, "", kind, argument, verbs, doc, NULL},
#include "options.def"
#undef GROUP
#undef OPTION
};

/* Flags and groups, which the table's macros cannot spell. */
static void fill_table(void) {
    static const struct {
        const char *group;
        int next; /* id of the option after it */
    } groups[] = {
#define GROUP(title) {title, -1},
#define OPTION(id, kind, argument, verbs, doc) {NULL, OPT_##id},
#include "options.def"
#undef GROUP
#undef OPTION
    };
    const char *group = "";
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++) {
        if (groups[i].group) {
            group = groups[i].group;
            continue;
        }
        Option *t = &table[groups[i].next];
        t->group = group;
        for (size_t j = 0; t->id[j] && j + 1 < sizeof t->flag; j++)
            t->flag[j] = t->id[j] == '_' ? '-' : t->id[j];
    }
}

const Option *option_at(int id) {
    if (!table[0].group)
        fill_table();
    return &table[id];
}

static const struct {
    const char *name, *doc;
    bool later;
} verbs[] = {
#define X(name, later, doc) {#name, doc, later},
    VERB_LIST(X)
#undef X
};

const char *verb_name(int verb) {
    return verbs[verb].name;
}

const char *verb_doc(int verb) {
    return verbs[verb].doc;
}

bool verb_later(int verb) {
    return verbs[verb].later;
}

int option_bad(const Options *o, int id, Err *e, const char *fmt, ...) {
    char text[ERR_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    const Given *g = &o->given[id];
    return err_set(e, ERR_REQUEST, "command", NULL, "%s %s: %s", g->where,
                   g->text, text);
}

int option_int(const Options *o, int id, int64_t lo, int64_t hi, int64_t *out,
               Err *e) {
    const char *text = o->given[id].text;
    if (!text)
        return 0;
    int64_t n;
    if (!slice_int((Slice){text, strlen(text)}, &n))
        return option_bad(o, id, e, "no whole number of 64 bits");
    if (n < lo || n > hi)
        return option_bad(o, id, e, "out of range, nearest accepted: %" PRId64,
                          n < lo ? lo : hi);
    *out = n;
    return 0;
}

/* One more of a list, or another value for a name that is there. */
static int add_tensor(Options *o, const Given *g, Err *e) {
    size_t len = strcspn(g->text, "=");
    int i = 0;
    while (i < o->ntensor && (strncmp(o->tensor[i].text, g->text, len + 1) ||
                              g->text[len] != '='))
        i++;
    if (i == SPEC_TENSORS)
        return err_set(e, ERR_REQUEST, "command", NULL,
                       "%s %s: more than %d tensors", g->where, g->text,
                       SPEC_TENSORS);
    o->tensor[i] = *g;
    o->ntensor += i == o->ntensor;
    return 0;
}

int option_give(Options *o, int id, const char *text, const char *where,
                Err *e) {
    const Option *t = option_at(id);
    Given *g = &o->given[id];
    if (!(t->verbs & 1u << o->verb))
        return err_set(e, ERR_REQUEST, "command", NULL,
                       "%s: no option of `attnc %s`", where,
                       verb_name(o->verb));
    if (id == OPT_spec && g->text)
        return err_set(e, ERR_REQUEST, "command", NULL,
                       "%s: given twice; accepted: one spec file", where);
    g->text = text;
    snprintf(g->where, sizeof g->where, "%s", where);
    if (t->kind == LIST)
        return add_tensor(o, g, e);
    return id == OPT_spec ? luaspec_read(text, o, e) : 0;
}

static int unknown(const Options *o, const char *word, Err *e) {
    const char *names[OPT_COUNT];
    int n = 0;
    for (int i = 0; i < OPT_COUNT; i++)
        if (table[i].verbs & 1u << o->verb)
            names[n++] = table[i].flag;
    const char *bare = word + strspn(word, "-");
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(bare, "="), bare);
    const char *nearest = nearest_word(name, names, n);
    for (int i = n - 1; name[0] && i >= 0; i--)
        if (strncmp(names[i], name, strlen(name)) == 0)
            nearest = names[i]; /* its beginning */
    return err_set(e, ERR_REQUEST, "command", NULL,
                   "%s: unknown option of `attnc %s`; nearest: --%s", word,
                   verb_name(o->verb), nearest);
}

/* getopt also takes unique beginnings; a script that used one would break
 * with the next option, so only whole names are accepted. */
static bool whole_name(const char *word, const char *flag) {
    size_t len = strcspn(word, "=");
    return strncmp(word, "--", 2) == 0 && len == strlen(flag) + 2 &&
           strncmp(word + 2, flag, len - 2) == 0;
}

static int take(Options *o, int id, const char *word, int argc, char **argv,
                Err *e) {
    const Option *t = option_at(id);
    bool is_short = strncmp(word, "-o", 2) == 0;
    if (!is_short && !whole_name(word, t->flag))
        return unknown(o, word, e);
    char where[80];
    snprintf(where, sizeof where, "--%s", t->flag);
    const char *text = optarg ? optarg : "";
    if (t->kind == MAYBE && !optarg && optind < argc && argv[optind][0] != '-')
        text = argv[optind++];
    return option_give(o, id, text, where, e);
}

enum { ID_BASE = 256, ID_HELP = ID_BASE + OPT_COUNT };

static void long_options(struct option *out) {
    for (int i = 0; i < OPT_COUNT; i++) {
        const Option *t = option_at(i);
        out[i] = (struct option){t->flag,
                                 t->kind == FLAG    ? no_argument
                                 : t->kind == MAYBE ? optional_argument
                                                    : required_argument,
                                 NULL, ID_BASE + i};
    }
    out[OPT_COUNT] = (struct option){"help", no_argument, NULL, ID_HELP};
    out[OPT_COUNT + 1] = (struct option){0};
}

static int positional(Options *o, const char *word, Err *e) {
    int most = o->verb == VERB_cache ? 1 : 0;
    if (o->nword >= most)
        return err_set(e, ERR_REQUEST, "command", NULL,
                       "%s: `attnc %s` takes options only, see `attnc %s "
                       "--help`",
                       word, verb_name(o->verb), verb_name(o->verb));
    o->word[o->nword++] = word;
    return 0;
}

static int misuse(const Options *o, int c, const char *word, Err *e) {
    for (int i = 0; i < OPT_COUNT; i++)
        if (whole_name(word, table[i].flag))
            return err_set(e, ERR_REQUEST, "command", NULL,
                           c == ':' ? "%s: its value %s is missing"
                                    : "%s: it takes no value%.0s",
                           word, table[i].argument);
    if (strcmp(word, "-o") == 0)
        return err_set(e, ERR_REQUEST, "command", NULL,
                       "-o: its value DIR is missing");
    return unknown(o, word, e);
}

int options_parse(int verb, int argc, char **argv, Options *o, Err *e) {
    struct option longs[OPT_COUNT + 2];
    *o = (Options){.verb = verb};
    long_options(longs);
    opterr = 0;
    optind = 1;
    int rc = 0;
    while (rc == 0 && optind < argc) {
        const char *word = argv[optind];
        int c = getopt_long(argc, argv, "+:ho:", longs, NULL);
        if (c == -1 && strcmp(word, "--") == 0)
            continue;
        if (c == -1) {
            rc = positional(o, word, e);
            optind++;
        } else if (c == 'h' || c == ID_HELP) {
            o->help = true;
            return 0;
        } else if (c == ':' || c == '?') {
            rc = misuse(o, c, word, e);
        } else {
            rc = take(o, c == 'o' ? OPT_out : c - ID_BASE, word, argc, argv, e);
        }
    }
    return rc;
}

void options_free(Options *o) {
    str_free(&o->lua);
}
