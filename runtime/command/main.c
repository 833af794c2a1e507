/* SPDX-License-Identifier: Apache-2.0
 * The attnc command: finds the verb, prints what it made or one line of what
 * went wrong, and turns statuses into exit codes. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "command.h"

static int (*const verbs[VERB_COUNT])(const Options *, Str *, Err *) = {
    [VERB_run] = verb_run,     [VERB_explain] = verb_explain,
    [VERB_emit] = verb_emit,   [VERB_devices] = verb_devices,
    [VERB_cache] = verb_cache,
};

static int exit_status(int rc) {
    switch (rc) {
#define X(suffix, value, exit_status, sentence)                                \
    case value:                                                                \
        return exit_status;
        ATTNC_STATUS_LIST(X)
#undef X
    case EXIT_CHECK:
        return EXIT_CHECK;
    }
    return EXIT_SYSTEM;
}

/* A fault of an expression shows the place in further lines, which hold only
 * what can be printed. */
static void clean(const Err *e, char *text) {
    bool marked = !strcmp(e->stage, "mask") || !strcmp(e->stage, "score");
    char *end = marked ? strchr(text, '\n') : NULL;
    if (end)
        *end = '\0';
    text_clean(text);
    if (end)
        *end = '\n';
}

/* One line, whatever was in the names it quotes. */
static void print_error(const Err *e) {
    char line[2 * ERR_TEXT];
    const char *text = e->text[0] ? e->text : attnc_status_text(e->code);
    if (strncmp(text, "command: ", 9) == 0)
        text += 9;
    /* What the API reported brings its hint; a log is no hint here. */
    const char *hint = e->code == ATTNC_E_COMPILE ? "" : error_hint(e);
    bool add = *hint && !strstr(text, hint);
    snprintf(line, sizeof line, "%s%s%s", text, add ? "; " : "",
             add ? hint : "");
    clean(e, line);
    fprintf(stderr, "attnc: %s\n", line);
}

/* A file opened later must not become stdout. */
static void hold_streams(void) {
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) == -1 && errno == EBADF)
            (void)!open("/dev/null", O_RDONLY);
}

static int write_out(const Str *out, Err *e) {
    size_t done = 0;
    if (out->bad)
        return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    while (done < out->len) {
        ssize_t n = write(STDOUT_FILENO, out->text + done, out->len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(e, ATTNC_E_IO, "command", NULL,
                           "standard output: %s", strerror(errno));
        done += (size_t)n;
    }
    if (close(STDOUT_FILENO) != 0)
        return err_set(e, ATTNC_E_IO, "command", NULL, "standard output: %s",
                       strerror(errno));
    return 0;
}

static int find_verb(const char *word, Err *e) {
    const char *names[VERB_COUNT];
    for (int i = 0; i < VERB_COUNT; i++) {
        names[i] = verb_name(i);
        if (strcmp(word, names[i]) == 0 && !verb_later(i))
            return i;
        if (strcmp(word, names[i]) == 0)
            return err_set(e, ERR_REQUEST, "command", NULL,
                           "%s: not in this version; accepted: run explain "
                           "emit devices cache",
                           word);
    }
    return err_set(e, ERR_REQUEST, "command", NULL,
                   "%s: unknown verb; nearest: %s", word,
                   nearest_word(word, names, VERB_tune));
}

static int run_verb(int verb, int argc, char **argv, Str *out, Err *e) {
    Options o;
    int rc = options_parse(verb, argc, argv, &o, e);
    if (rc == 0 && o.help)
        help_verb(verb, out);
    else if (rc == 0)
        rc = verbs[verb](&o, out, e);
    options_free(&o);
    return rc;
}

static int command(int argc, char **argv, Str *out, Err *e) {
    const char *word = argc > 1 ? argv[1] : "--help";
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 ||
        strcmp(word, "help") == 0) {
        help_overview(out);
        return 0;
    }
    if (strcmp(word, "--version") == 0) {
        str_addf(out, "attnc %d.%d.%d\n", ATTNC_VERSION_MAJOR,
                 ATTNC_VERSION_MINOR, ATTNC_VERSION_PATCH);
        return 0;
    }
    int verb = find_verb(word, e);
    return verb < 0 ? verb : run_verb(verb, argc - 1, argv + 1, out, e);
}

int main(int argc, char **argv) {
    Str out = {0};
    Err e = {0};
    hold_streams();
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is a failed write, */
    signal(SIGXFSZ, SIG_IGN); /* and so is a file that may not grow */
    int rc = command(argc, argv, &out, &e);
    if (rc >= 0 && session_warnings.len)
        fprintf(stderr, "%s", session_warnings.text);
    if (rc >= 0) {
        int wrote = write_out(&out, &e);
        rc = wrote ? wrote : rc;
    }
    if (rc < 0)
        print_error(&e);
    str_free(&out);
    str_free(&session_warnings);
    return exit_status(rc);
}
