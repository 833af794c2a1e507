/* SPDX-License-Identifier: Apache-2.0
 * Where the cache lives, which directories it trusts, and what it does when
 * one is missing, hostile, read-only or full: one warning, never a failure. */
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "cache_util.h"

enum { BYTES = 3000 };

/* Unsets what could name a directory, then sets pairs up to NULL. */
static void environment(const char *name, ...) {
    va_list ap;
    unsetenv("ATTNC_CACHE_DIR");
    unsetenv("XDG_CACHE_HOME");
    unsetenv("HOME");
    va_start(ap, name);
    for (; name; name = va_arg(ap, const char *))
        setenv(name, va_arg(ap, const char *), 1);
    va_end(ap);
}

/* Opens the default directory, or `dir`, and closes it again: the directory
 * in use, or NULL after exactly one warning. */
static const char *used(const char *dir, Log *log) {
    *log = (Log){0};
    Cache *c = open_at(dir, log);
    const char *path = cache_dir(c) ? path_of("%s", cache_dir(c)) : NULL;
    put_number(c, 1, BYTES);
    assert_int_equal(has_number(c, 1, BYTES), path != NULL);
    assert_int_equal(log->warnings, path ? 0 : 1);
    if (!path)
        assert_non_null(strstr(log->last, "memory only"));
    cache_close(c);
    return path;
}

static unsigned mode_of(const char *path) {
    struct stat st;
    assert_int_equal(lstat(path, &st), 0);
    return st.st_mode & 07777;
}

/* ---- which directory --------------------------------------------------- */

static void the_directory_is_the_first_that_is_named(void **state) {
    Log log;
    const char *top = *state, *a = path_of("%s/a", top);
    const char *b = path_of("%s/b", top), *h = path_of("%s/h", top);
    mkdir(h, 0700);
    environment("ATTNC_CACHE_DIR", a, "XDG_CACHE_HOME", b, "HOME", h, NULL);
    assert_string_equal(used(path_of("%s/o/p", top), &log),
                        path_of("%s/o/p", top));
    assert_string_equal(used(NULL, &log), a);
    unsetenv("ATTNC_CACHE_DIR");
    assert_string_equal(used(NULL, &log), path_of("%s/attnc", b));
    setenv("XDG_CACHE_HOME", "relative", 1);
    assert_string_equal(used(NULL, &log), path_of("%s/.cache/attnc", h));
    assert_int_equal(mode_of(path_of("%s/.cache/attnc", h)), 0700);
    assert_int_equal(mode_of(path_of("%s/o", top)), 0700);
    assert_int_equal(mode_of(path_of("%s/o/p/v1/tmp", top)), 0700);
    assert_int_equal(mode_of(file_of(path_of("%s/o/p", top), 1)), 0600);
}

static void an_empty_name_asks_for_no_disk(void **state) {
    Log log = {0};
    environment("ATTNC_CACHE_DIR", "", "HOME", (char *)*state, NULL);
    Cache *c = open_at(NULL, &log);
    assert_null(cache_dir(c));
    assert_int_equal(log.warnings + log.infos, 0);
    cache_close(c);
}

static void a_relative_directory_stays_the_same_one(void **state) {
    Log log = {0};
    char before[4096];
    assert_non_null(getcwd(before, sizeof before));
    assert_int_equal(chdir(*state), 0);
    Cache *c = open_at("here//", &log);
    assert_int_equal(chdir(before), 0);
    assert_string_equal(cache_dir(c), path_of("%s/here", (char *)*state));
    put_number(c, 1, BYTES);
    assert_true(exists(file_of(cache_dir(c), 1)));
    cache_close(c);
}

static void a_home_that_is_missing_is_not_invented(void **state) {
    Log log;
    const char *home = path_of("%s/nobody", (char *)*state);
    environment("HOME", home, NULL);
    assert_null(used(NULL, &log));
    assert_false(exists(home));
}

/* Only looks: it must not write to the home of who runs the test. */
static void without_HOME_the_user_database_is_asked(void **state) {
    (void)state;
    Log log = {0};
    struct passwd *user = getpwuid(geteuid());
    if (!user || user->pw_dir[0] != '/')
        skip();
    environment(NULL);
    Cache *c = open_with((CacheOptions){.readonly = true}, &log);
    const char *want = path_of("%s/.cache/attnc", user->pw_dir);
    assert_non_null(strstr(cache_dir(c) ? cache_dir(c) : log.last, want));
    cache_close(c);
}

static int with_borrowed_rights(void *dir) {
    Log log = {0};
    if (geteuid() != 0)
        return 77;
    CHILD(seteuid(NOBODY) == 0);
    Cache *c = open_at(dir, &log);
    CHILD(cache_dir(c) == NULL && log.warnings == 1);
    cache_close(c);
    return 0;
}

static void borrowed_rights_switch_the_disk_off(void **state) {
    in_child(with_borrowed_rights, *state);
}

/* ---- trust ------------------------------------------------------------- */

static void a_link_is_not_followed_to_the_directory(void **state) {
    Log log;
    const char *top = *state;
    mkdir(path_of("%s/real", top), 0700);
    assert_int_equal(symlink("real", path_of("%s/link", top)), 0);
    assert_null(used(path_of("%s/link", top), &log));
    assert_non_null(strstr(log.last, "symbolic link"));
    assert_null(used(path_of("%s/link/", top), &log));
    assert_string_equal(used(path_of("%s/real", top), &log),
                        path_of("%s/real", top));
    /* A link on the way is judged by where it leads. */
    assert_non_null(used(path_of("%s/link/deeper", top), &log));
}

static void a_directory_others_may_write_is_not_used(void **state) {
    Log log;
    static const unsigned mode[] = {0770, 0707, 0777, 01777};
    const char *dir = path_of("%s/d", (char *)*state);
    mkdir(dir, 0700);
    for (int i = 0; i < 4; i++) {
        chmod(dir, mode[i]);
        assert_null(used(dir, &log));
        assert_non_null(strstr(log.last, dir));
        assert_non_null(strstr(log.last, "others may write"));
    }
    chmod(dir, 0755);
    assert_non_null(used(dir, &log));
}

static void a_directory_below_such_a_one_is_not_used(void **state) {
    Log log;
    const char *up = path_of("%s/up", (char *)*state);
    const char *dir = path_of("%s/mid/d", up);
    mkdir(up, 0700);
    chmod(up, 0777);
    assert_null(used(dir, &log));
    assert_non_null(strstr(log.last, up));
    chmod(up, 01777); /* like /tmp: nobody can rename what is ours */
    assert_non_null(used(dir, &log));
}

static void a_directory_of_another_user_is_not_used(void **state) {
    Log log;
    const char *dir = path_of("%s/mid/d", (char *)*state);
    const char *mid = path_of("%s/mid", (char *)*state);
    if (geteuid() != 0)
        skip();
    mkdir(mid, 0755);
    mkdir(dir, 0700);
    assert_int_equal(chown(dir, NOBODY, NOBODY), 0);
    assert_null(used(dir, &log));
    assert_int_equal(chown(dir, 0, 0), 0);
    assert_int_equal(chown(mid, NOBODY, NOBODY), 0);
    assert_null(used(dir, &log));
    assert_non_null(strstr(log.last, "belongs to user 65534"));
}

/* Root with the home of somebody else, as after sudo. */
static void nothing_is_made_where_nothing_could_be_used(void **state) {
    Log log;
    const char *home = path_of("%s/home", (char *)*state);
    mkdir(home, 0777);
    chmod(home, 0777);
    environment("HOME", home, NULL);
    assert_null(used(NULL, &log));
    assert_false(exists(path_of("%s/.cache", home)));
    assert_non_null(strstr(log.last, path_of("%s/.cache/attnc", home)));
    chmod(home, 0755);
    if (geteuid() == 0) {
        assert_int_equal(chown(home, NOBODY, NOBODY), 0);
        assert_null(used(NULL, &log));
        assert_false(exists(path_of("%s/.cache", home)));
        assert_int_equal(chown(home, 0, 0), 0);
    }
    assert_non_null(used(NULL, &log));
}

static void hostile_files_are_misses(void **state) {
    Log log = {0};
    Cache *c = open_at(*state, &log);
    char path[300], other[300];
    put_number(c, 1, BYTES);
    put_number(c, 2, BYTES);
    snprintf(path, sizeof path, "%s", file_of(*state, 1));
    snprintf(other, sizeof other, "%s/elsewhere", (char *)*state);
    chmod(path, 0602);
    assert_false(has_number(c, 1, BYTES));
    chmod(path, 0600);
    assert_true(has_number(c, 1, BYTES));
    if (geteuid() == 0) {
        assert_int_equal(chown(path, NOBODY, NOBODY), 0);
        assert_false(has_number(c, 1, BYTES));
        assert_int_equal(chown(path, 0, 0), 0);
    }
    assert_int_equal(rename(path, other), 0);
    assert_int_equal(symlink(other, path), 0);
    assert_false(has_number(c, 1, BYTES));
    put_number(c, 1, BYTES); /* replaces the link, not what it points to */
    assert_true(has_number(c, 1, BYTES));
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_false(has_number(c, 1, BYTES)); /* and does not hang */
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_false(has_number(c, 1, BYTES));
    assert_int_equal(log.warnings, 0);
    put_number(c, 1, BYTES);
    put_number(c, 1, BYTES);
    assert_int_equal(log.warnings, 1);
    assert_true(has_number(c, 2, BYTES));
    cache_close(c);
}

static void a_linked_shard_is_not_followed(void **state) {
    Log log = {0};
    Cache *c = open_at(*state, &log);
    char shard[300], moved[300];
    put_number(c, 1, BYTES);
    snprintf(shard, sizeof shard, "%s", file_of(*state, 1));
    *strrchr(shard, '/') = '\0';
    snprintf(moved, sizeof moved, "%s/moved", (char *)*state);
    assert_int_equal(rename(shard, moved), 0);
    assert_int_equal(symlink(moved, shard), 0);
    assert_false(has_number(c, 1, BYTES));
    put_number(c, 1, BYTES);
    assert_int_equal(log.warnings, 1);
    cache_close(c);
}

/* ---- read-only --------------------------------------------------------- */

static void the_readonly_option_writes_nothing(void **state) {
    Log log = {0};
    const char *dir = path_of("%s/d", (char *)*state);
    CacheOptions o = {.dir = dir, .readonly = true};
    Cache *c = open_with(o, &log);
    assert_null(cache_dir(c));
    assert_false(exists(dir));
    assert_int_equal(log.warnings, 1);
    cache_close(c);

    c = open_at(dir, &log);
    put_number(c, 1, BYTES);
    put_number(c, 2, BYTES);
    cache_close(c);
    assert_int_equal(truncate(file_of(dir, 2), 100), 0);
    set_age(file_of(dir, 1), 100000);

    log = (Log){0};
    c = open_with(o, &log);
    int64_t removed;
    Err e = {0};
    CacheKey k = key_of(1);
    assert_true(has_number(c, 1, BYTES));
    assert_false(has_number(c, 2, BYTES));
    put_number(c, 3, BYTES);
    assert_false(exists(file_of(dir, 3)));
    assert_true(exists(file_of(dir, 2)));
    assert_true(age_of(file_of(dir, 1)) > 90000);
    assert_int_equal(cache_lock(c, &k, 100), -1);
    assert_int_equal(cache_clear(c, &removed, &e), ATTNC_E_IO);
    assert_int_equal(log.warnings, 0);
    cache_close(c);
}

/* As a user who may only read: hits, and one warning in all. */
static int reading_only(void *dir) {
    Log log = {0};
    CHILD(geteuid() != 0 || setresgid(NOBODY, NOBODY, NOBODY) == 0);
    CHILD(geteuid() != 0 || setresuid(NOBODY, NOBODY, NOBODY) == 0);
    Cache *c = open_at(dir, &log);
    CHILD(cache_dir(c) != NULL);
    CHILD(has_number(c, 1, BYTES));
    put_number(c, 2, BYTES);
    put_number(c, 3, BYTES);
    CHILD(!has_number(c, 2, BYTES));
    CHILD(log.warnings == 1 && strstr(log.last, "reading only"));
    cache_close(c);
    return 0;
}

static int to_nobody(const char *path, const struct stat *st, int type,
                     struct FTW *at) {
    (void)st, (void)type, (void)at;
    return geteuid() == 0 ? chown(path, NOBODY, NOBODY) : 0;
}

static void an_unwritable_directory_is_read(void **state) {
    const char *dir = path_of("%s/d", (char *)*state);
    Cache *c = open_at(dir, NULL);
    put_number(c, 1, BYTES);
    cache_close(c);
    nftw(dir, to_nobody, 8, FTW_PHYS);
    chmod(path_of("%s/v1/tmp", dir), 0500);
    chmod(path_of("%s/v1", dir), 0500);
    in_child(reading_only, (void *)dir);
    chmod(path_of("%s/v1", dir), 0700);
    chmod(path_of("%s/v1/tmp", dir), 0700);
}

/* A mount of our own, seen by this process alone; false: not possible here. */
static bool mount_here(const char *dir, const char *type, unsigned long flags,
                       const char *data) {
    return unshare(CLONE_NEWNS) == 0 &&
           mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount(type ? "none" : dir, dir, type, type ? flags : MS_BIND,
                 data) == 0 &&
           (type || mount("none", dir, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY,
                          NULL) == 0);
}

static int on_readonly_system(void *dir) {
    Log log = {0};
    Cache *c = open_at(dir, NULL);
    put_number(c, 1, BYTES);
    cache_close(c);
    if (!mount_here(dir, NULL, 0, NULL))
        return 77;
    c = open_at(dir, &log);
    CHILD(has_number(c, 1, BYTES));
    put_number(c, 2, BYTES);
    CHILD(log.warnings == 1 && strstr(log.last, "Read-only file system"));
    cache_close(c);
    return 0;
}

static void a_readonly_file_system_is_read(void **state) {
    in_child(on_readonly_system, *state);
}

/* ---- full -------------------------------------------------------------- */

static bool tmp_is_empty(const char *dir) {
    return rmdir(path_of("%s/v1/tmp", dir)) == 0;
}

static int on_full_disk(void *dir) {
    Log log = {0};
    if (!mount_here(dir, "tmpfs", 0, "size=256k,mode=0700"))
        return 77;
    Cache *c = open_at(dir, &log);
    CHILD(cache_dir(c) != NULL);
    for (int n = 0; n < 40; n++)
        put_number(c, n, 40000);
    CHILD(log.warnings == 1 && strstr(log.last, "No space left"));
    CHILD(has_number(c, 0, 40000));
    CHILD(!has_number(c, 39, 40000));
    CHILD(tmp_is_empty(dir));
    put_number(c, 50, 10);
    CHILD(has_number(c, 50, 10)); /* room again for a small one */
    cache_close(c);
    return 0;
}

static void a_full_disk_costs_only_the_saving(void **state) {
    in_child(on_full_disk, *state);
}

static int on_size_limit(void *dir) {
    Log log = {0};
    Cache *c = open_at(dir, &log);
    signal(SIGXFSZ, SIG_IGN);
    CHILD(setrlimit(RLIMIT_FSIZE, &(struct rlimit){10000, 10000}) == 0);
    put_number(c, 1, 40000);
    put_number(c, 2, 40000);
    put_number(c, 3, 4000);
    CHILD(!has_number(c, 1, 40000));
    CHILD(has_number(c, 3, 4000));
    CHILD(log.warnings == 1 && strstr(log.last, "not saved"));
    CHILD(tmp_is_empty(dir));
    cache_close(c);
    return 0;
}

static void a_write_cut_short_leaves_nothing(void **state) {
    in_child(on_size_limit, *state);
}

static void a_directory_removed_in_use_is_one_warning(void **state) {
    Log log = {0};
    const char *dir = path_of("%s/d", (char *)*state);
    Cache *c = open_at(dir, &log);
    put_number(c, 1, BYTES);
    nftw(path_of("%s/v1/tmp", dir), remove_one, 8, FTW_DEPTH | FTW_PHYS);
    put_number(c, 2, BYTES); /* tmp is made again */
    assert_true(has_number(c, 2, BYTES));
    nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    assert_false(has_number(c, 1, BYTES));
    put_number(c, 3, BYTES);
    put_number(c, 4, BYTES);
    assert_int_equal(log.warnings, 1);
    CacheKey k = key_of(1);
    assert_int_equal(cache_lock(c, &k, 100), -1);
    cache_close(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        T(the_directory_is_the_first_that_is_named),
        T(an_empty_name_asks_for_no_disk),
        T(a_relative_directory_stays_the_same_one),
        T(a_home_that_is_missing_is_not_invented),
        T(without_HOME_the_user_database_is_asked),
        T(borrowed_rights_switch_the_disk_off),
        T(a_link_is_not_followed_to_the_directory),
        T(a_directory_others_may_write_is_not_used),
        T(a_directory_below_such_a_one_is_not_used),
        T(a_directory_of_another_user_is_not_used),
        T(nothing_is_made_where_nothing_could_be_used),
        T(hostile_files_are_misses),
        T(a_linked_shard_is_not_followed),
        T(the_readonly_option_writes_nothing),
        T(an_unwritable_directory_is_read),
        T(a_readonly_file_system_is_read),
        T(a_full_disk_costs_only_the_saving),
        T(a_write_cut_short_leaves_nothing),
        T(a_directory_removed_in_use_is_one_warning),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
