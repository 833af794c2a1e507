/* SPDX-License-Identifier: Apache-2.0
 * attnc cache: ls, stat, verify, prune, clear. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "command.h"

/* One pass over the entries. */
typedef struct Pass {
    Cache *cache;
    json_t *items; /* with --json */
    Str text;
    int64_t count, bytes, bad, stale;
    double saved_ms;   /* compiling that the entries save */
    char compiler[96]; /* the one that would be used now */
} Pass;

/* The name of its kernel, from the plan's "... entry=NAME". */
static void entry_name(const CacheEntry *entry, char out[64]) {
    const char *name = strstr(entry->plan, " entry=attn_bwd");
    name = name ? name : strstr(entry->plan, " entry=");
    name = name ? name + strlen(" entry=") : entry->plan;
    snprintf(out, 64, "%.*s", (int)strcspn(name, " \n"), name);
}

/* "clang 14.0.6" of an entry, "Debian clang version 14.0.6" of a compiler. */
static bool same_compiler(const char *made, const char *line) {
    char name[16];
    size_t len = strcspn(made, " ");
    snprintf(name, sizeof name, "%.*s", (int)len, made);
    return made[len] && strstr(line, name) && strstr(line, made + len);
}

static json_t *json_item(const CacheItem *item) {
    json_t *j = json_object();
    json_object_set_new(j, "name", json_text(item->name));
    json_object_set_new(j, "bytes", json_integer(item->bytes));
    json_object_set_new(j, "used", json_integer(item->used));
    if (item->entry) {
        json_object_set_new(j, "identity", json_text(item->entry->identity));
        json_object_set_new(j, "compiler", json_text(item->entry->compiler));
        json_object_set_new(j, "compile_ms",
                            json_number(item->entry->compile_ms));
        json_object_set_new(j, "created", json_integer(item->entry->created));
    }
    if (item->fault)
        json_object_set_new(j, "fault", json_text(item->fault));
    return j;
}

static void count(Pass *p, const CacheItem *item) {
    p->count++;
    p->bytes += item->bytes;
    p->bad += item->fault != NULL;
    p->saved_ms += item->entry ? item->entry->compile_ms : 0;
    if (p->items)
        json_array_append_new(p->items, json_item(item));
}

static void on_ls(void *user, const CacheItem *item) {
    Pass *p = user;
    char brief[64] = "", when[24] = "";
    time_t used = (time_t)item->used;
    struct tm tm;
    count(p, item);
    if (item->entry)
        entry_name(item->entry, brief);
    if (localtime_r(&used, &tm))
        strftime(when, sizeof when, "%Y-%m-%d %H:%M", &tm);
    str_addf(&p->text, "%.12s %9s  %s  %s\n", item->name,
             text_bytes((double)item->bytes).s, when,
             item->fault ? item->fault : brief);
}

static void on_stat(void *user, const CacheItem *item) {
    count(user, item);
}

static void on_verify(void *user, const CacheItem *item) {
    Pass *p = user;
    count(p, item);
    if (item->fault)
        str_addf(&p->text, "%.12s damaged: %s\n", item->name, item->fault);
    if (!item->entry || !p->compiler[0] ||
        same_compiler(item->entry->compiler, p->compiler))
        return;
    p->stale++;
    str_addf(&p->text, "%.12s made by another compiler: %s\n", item->name,
             item->entry->compiler);
}

/* ---- the words --------------------------------------------------------- */

static int say_ls(Pass *p, Str *out, Err *e) {
    int rc = cache_each(p->cache, on_ls, p, e);
    if (rc == 0 && p->count == 0)
        str_addf(out, "the cache is empty\n");
    else if (rc == 0)
        str_add(out, p->text.text, p->text.len);
    return rc;
}

static int say_stat(Pass *p, Str *out, Err *e) {
    int rc = cache_each(p->cache, on_stat, p, e);
    str_addf(out,
             "directory %s\nentries   %" PRId64
             "%s\nsize      %s\nsaved     %s "
             "of compiling each time all are used\n",
             cache_dir(p->cache), p->count, p->bad ? ", some damaged" : "",
             text_bytes((double)p->bytes).s, text_ms(p->saved_ms).s);
    return rc;
}

static int say_verify(Pass *p, Str *out, Err *e) {
    Compiler compiler;
    Err none = {0};
    if (session_compiler(&compiler))
        compiler_version(&compiler, p->compiler, &none);
    int rc = cache_each(p->cache, on_verify, p, e);
    if (rc)
        return rc;
    str_add(out, p->text.text ? p->text.text : "", p->text.len);
    str_addf(out,
             "%" PRId64 " entries, %" PRId64 " damaged, %" PRId64
             " made by another compiler\n",
             p->count, p->bad, p->stale);
    return p->bad ? EXIT_CHECK : 0;
}

/* "500M": bytes with K, M, G. */
static int parse_bytes(const Options *o, int64_t *out, Err *e) {
    const char *text = o->given[OPT_max_bytes].text;
    static const char units[] = "KMG";
    *out = INT64_C(1) << 30;
    if (!text)
        return 0;
    size_t len = strlen(text);
    const char *unit = len ? strchr(units, text[len - 1]) : NULL;
    int64_t n, scale = 1;
    for (const char *u = units; unit && u <= unit; u++)
        scale *= 1024;
    if (!slice_int((Slice){text, len - (unit != NULL)}, &n) || n < 0 ||
        __builtin_mul_overflow(n, scale, out))
        return option_bad(o, OPT_max_bytes, e,
                          "accepted: a number of bytes >= 0, or with K, M, G");
    return 0;
}

static int say_removed(int64_t removed, bool json, Str *out, Err *e) {
    if (!json) {
        str_addf(out, "%" PRId64 " entries removed\n", removed);
        return 0;
    }
    json_t *j = json_object();
    json_object_set_new(j, "removed", json_integer(removed));
    return json_finish(j, out, e);
}

static int remove_some(const Options *o, Pass *p, bool all, Str *out, Err *e) {
    int64_t keep = 0, removed = 0;
    int rc =
        all ? cache_clear(p->cache, &removed, e) : parse_bytes(o, &keep, e);
    if (rc == 0 && !all)
        rc = cache_prune(p->cache, keep, &removed, e);
    return rc ? rc : say_removed(removed, o->given[OPT_json].text, out, e);
}

static int finish_json(const Pass *p, Str *out, Err *e) {
    json_t *j = json_object();
    json_object_set_new(j, "directory", json_text(cache_dir(p->cache)));
    json_object_set_new(j, "entries", json_integer(p->count));
    json_object_set_new(j, "bytes", json_integer(p->bytes));
    json_object_set_new(j, "damaged", json_integer(p->bad));
    json_object_set_new(j, "stale", json_integer(p->stale));
    json_object_set_new(j, "saved_ms", json_number(p->saved_ms));
    json_object_set(j, "items", p->items);
    return json_finish(j, out, e);
}

static int read_pass(const Options *o, Pass *p,
                     int (*say)(Pass *, Str *, Err *), Str *out, Err *e) {
    bool json = o->given[OPT_json].text;
    Str text = {0};
    p->items = json ? json_array() : NULL;
    int rc = say(p, &text, e);
    if (rc >= 0 && json) {
        int made = finish_json(p, out, e);
        rc = made ? made : rc;
    } else if (rc >= 0) {
        str_add(out, text.text ? text.text : "", text.len);
    }
    json_decref(p->items);
    str_free(&text);
    return rc;
}

static int act(const Options *o, Pass *p, Str *out, Err *e) {
    static const char *const words[] = {"ls", "stat", "verify", "prune",
                                        "clear"};
    static int (*const says[])(Pass *, Str *, Err *) = {say_ls, say_stat,
                                                        say_verify};
    const char *word = o->nword ? o->word[0] : "";
    for (int i = 0; i < 5; i++)
        if (strcmp(word, words[i]) == 0)
            return i < 3 ? read_pass(o, p, says[i], out, e)
                         : remove_some(o, p, i == 4, out, e);
    return err_set(
        e, ERR_REQUEST, "command", NULL,
        "cache %s: nearest: %s; accepted: ls stat verify prune clear", word,
        nearest_word(word, words, 5));
}

int verb_cache(const Options *o, Str *out, Err *e) {
    Pass p = {0};
    int rc = session_cache(&p.cache, e);
    if (rc == 0 && !cache_dir(p.cache))
        rc = err_set(e, ATTNC_E_MISSING, "command", NULL,
                     "there is no cache directory that can be used; set "
                     "ATTNC_CACHE_DIR");
    rc = rc ? rc : act(o, &p, out, e);
    str_free(&p.text);
    cache_close(p.cache);
    return rc;
}
