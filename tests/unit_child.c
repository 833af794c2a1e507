/* SPDX-License-Identifier: Apache-2.0
 * Child processes: what they start with, what is kept of what they say, and
 * how they end. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime.h"

/* Runs a shell line; its output is in *log. */
static int shell(const char *line, Str *log) {
    char *argv[] = {"/bin/sh", "-c", (char *)line, NULL};
    Err e = {0};
    *log = (Str){0};
    return child_run(argv, -1, NULL, log, &e);
}

static void a_child_starts_with_nothing_of_the_host(void **state) {
    (void)state;
    Str log;
    sigset_t all, old;
    int fd = open("/etc/passwd", O_RDONLY); /* not close-on-exec */
    assert_true(fd >= 0);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    signal(SIGPIPE, SIG_IGN);
    int status = shell("grep -E 'SigBlk|SigIgn' /proc/self/status;"
                       "ls /proc/self/fd | wc -l; env | sort",
                       &log);
    signal(SIGPIPE, SIG_DFL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    close(fd);
    assert_int_equal(status, 0);
    assert_non_null(strstr(log.text, "SigBlk:\t0000000000000000"));
    const char *ignored = strstr(log.text, "SigIgn:\t");
    assert_non_null(ignored); /* 32 and 33 are the C library's own */
    assert_int_equal(strtoull(ignored + 8, NULL, 16) & 0x7fffffff, 0);
    assert_non_null(strstr(log.text, "\n4\n")); /* 0 1 2, and that of ls */
    assert_non_null(strstr(log.text, "LC_ALL=C\n"));
    assert_null(strstr(log.text, "HOME="));
    str_free(&log);
}

static void output_is_kept_up_to_a_bound(void **state) {
    (void)state;
    Str log;
    assert_int_equal(shell("yes | head -c 3000000; exit 4", &log), 4 << 8);
    assert_true(log.len > 100000 && log.len < 1000000);
    str_free(&log);
}

static void a_child_that_cannot_start_is_an_error(void **state) {
    (void)state;
    char *argv[] = {"/nowhere/cc", NULL};
    Str log = {0};
    Err e = {0};
    assert_int_equal(child_run(argv, -1, NULL, &log, &e), -1);
    assert_int_equal(e.code, ATTNC_E_COMPILE);
    assert_non_null(strstr(e.text, "/nowhere/cc"));
}

static void how_a_child_ends_is_told(void **state) {
    (void)state;
    Str log;
    assert_int_equal(shell("exit 7", &log), 7 << 8);
    int status = shell("echo last words; kill -9 $$", &log);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == 9);
    assert_string_equal(log.text, "last words\n");
    str_free(&log);
    signal(SIGCHLD, SIG_IGN); /* the host's way not to wait for any child */
    status = shell("echo hello", &log);
    signal(SIGCHLD, SIG_DFL);
    assert_int_equal(status, CHILD_STOLEN);
    assert_string_equal(log.text, "hello\n");
    str_free(&log);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_child_starts_with_nothing_of_the_host),
        cmocka_unit_test(output_is_kept_up_to_a_bound),
        cmocka_unit_test(a_child_that_cannot_start_is_an_error),
        cmocka_unit_test(how_a_child_ends_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
