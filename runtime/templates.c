/* SPDX-License-Identifier: Apache-2.0
 * Templates of a directory, for those who write templates: the same names,
 * order and hash as the build gives the embedded ones (gen/embed.cmake). */
#include <dirent.h>
#include <errno.h>
#include <sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime.h"

enum { FILES_MAX = 512, FILE_MAX = 1 << 20, DEPTH_MAX = 8 };

/* What templates_read makes; `base` is what callers see. */
typedef struct Set {
    Templates base;
    Template t[FILES_MAX];
    char hash[SHA256_DIGEST_STRING_LENGTH];
} Set;

static int no_read(const char *path, Err *e) {
    return err_set(e, ATTNC_E_IO, "templates", "templates_dir",
                   "cannot read %s: %s", path, strerror(errno));
}

static int read_file(const char *path, Template *t, Err *e) {
    FILE *f = fopen(path, "re");
    if (!f)
        return no_read(path, e);
    char *text = malloc(FILE_MAX);
    size_t n = text ? fread(text, 1, FILE_MAX, f) : 0;
    bool failed = !text || ferror(f) || n == FILE_MAX;
    fclose(f);
    if (failed) {
        free(text);
        return err_set(e, ATTNC_E_IO, "templates", "templates_dir",
                       "cannot read %s, or it is 1 MiB long", path);
    }
    text[n] = 0;
    t->text = text;
    t->len = n;
    return 0;
}

static bool is_template(const char *name) {
    size_t n = strlen(name);
    return (n > 3 && !strcmp(name + n - 3, ".in")) ||
           (n > 4 && !strcmp(name + n - 4, ".lua"));
}

static int read_dir(Set *s, const char *root, const char *sub, int depth,
                    Err *e);

static int read_entry(Set *s, const char *root, const char *name, int depth,
                      Err *e) {
    char path[1024];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", root, name);
    if (stat(path, &st) != 0)
        return no_read(path, e);
    if (S_ISDIR(st.st_mode))
        return read_dir(s, root, name, depth + 1, e);
    if (!is_template(name))
        return 0;
    if (s->base.count == FILES_MAX)
        return err_set(e, ATTNC_E_REQUEST, "templates", "templates_dir",
                       "more than %d templates in %s", FILES_MAX, root);
    Template *t = &s->t[s->base.count];
    t->name = strdup(name);
    if (!t->name)
        return err_set(e, ATTNC_E_MEMORY, "templates", NULL, "no memory");
    s->base.count++;
    return read_file(path, t, e);
}

static int read_dir(Set *s, const char *root, const char *sub, int depth,
                    Err *e) {
    char path[1024], name[512];
    snprintf(path, sizeof path, "%s/%s", root, sub);
    DIR *d = depth < DEPTH_MAX ? opendir(path) : NULL;
    if (!d)
        return no_read(path, e);
    int rc = 0;
    for (struct dirent *f; !rc && (f = readdir(d));) {
        if (f->d_name[0] == '.')
            continue;
        snprintf(name, sizeof name, "%s%s%s", sub, *sub ? "/" : "", f->d_name);
        rc = read_entry(s, root, name, depth, e);
    }
    closedir(d);
    return rc;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const Template *)a)->name, ((const Template *)b)->name);
}

/* As gen/embed.cmake: "NAME HEX-OF-TEXT\n" of every file, in order. */
static void hash_set(Set *s) {
    static const char digits[] = "0123456789abcdef";
    SHA2_CTX sha;
    SHA256Init(&sha);
    for (size_t i = 0; i < s->base.count; i++) {
        const Template *t = &s->t[i];
        SHA256Update(&sha, (const uint8_t *)t->name, strlen(t->name));
        SHA256Update(&sha, (const uint8_t *)" ", 1);
        for (size_t n = 0; n < t->len; n++) {
            uint8_t byte = (uint8_t)t->text[n];
            uint8_t hex[2] = {(uint8_t)digits[byte >> 4],
                              (uint8_t)digits[byte & 15]};
            SHA256Update(&sha, hex, 2);
        }
        SHA256Update(&sha, (const uint8_t *)"\n", 1);
    }
    SHA256End(&sha, s->hash);
}

int templates_read(const char *dir, const Templates **out, Err *e) {
    Set *s = calloc(1, sizeof *s);
    *out = NULL;
    if (!s)
        return err_set(e, ATTNC_E_MEMORY, "templates", NULL, "no memory");
    s->base = (Templates){s->t, 0, s->hash};
    int rc = read_dir(s, dir, "", 0, e);
    if (!rc && !s->base.count)
        rc = err_set(e, ATTNC_E_REQUEST, "templates", "templates_dir",
                     "no *.in or *.lua file in %s", dir);
    if (rc) {
        templates_free(&s->base);
        return rc;
    }
    qsort(s->t, s->base.count, sizeof s->t[0], by_name);
    hash_set(s);
    *out = &s->base;
    return 0;
}

void templates_free(const Templates *t) {
    if (!t)
        return;
    Set *s = (Set *)(uintptr_t)t; /* base is its first member */
    for (size_t i = 0; i < s->base.count; i++) {
        free((char *)(uintptr_t)s->t[i].name);
        free((char *)(uintptr_t)s->t[i].text);
    }
    free(s);
}
