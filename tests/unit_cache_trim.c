/* SPDX-License-Identifier: Apache-2.0
 * The cache over time: recency, cap, pruning, listing, what dead writers
 * left, and a clock that was set back. */
#include "cache_util.h"

enum { BYTES = 3000, HOUR = 3600 };

static int count_files(const char *dir) {
    int count = 0;
    for (int n = 0; n < 100; n++)
        count += exists(file_of(dir, n));
    return count;
}

/* What an entry of BYTES takes on this disk. */
static int64_t block(Cache *c, const char *dir) {
    struct stat st;
    put_number(c, 0, BYTES);
    assert_int_equal(stat(file_of(dir, 0), &st), 0);
    return st.st_blocks * 512;
}

static void a_hit_marks_its_use_once_an_hour(void **state) {
    Cache *c = open_at(*state, NULL);
    put_number(c, 1, BYTES);
    set_age(file_of(*state, 1), HOUR / 2);
    assert_true(has_number(c, 1, BYTES));
    assert_in_range(age_of(file_of(*state, 1)), HOUR / 2, HOUR / 2 + 60);
    set_age(file_of(*state, 1), 2 * HOUR);
    assert_true(has_number(c, 1, BYTES));
    assert_in_range(age_of(file_of(*state, 1)), 0, 60);
    cache_close(c);
}

static void a_clock_set_back_costs_no_hit(void **state) {
    Cache *c = open_at(*state, NULL);
    put_number(c, 1, BYTES);
    set_age(file_of(*state, 1), -1000 * HOUR);
    assert_true(has_number(c, 1, BYTES));
    assert_in_range(age_of(file_of(*state, 1)), 0, 60);
    cache_close(c);
}

static void pruning_takes_the_least_recently_used(void **state) {
    Cache *c = open_at(*state, NULL);
    int64_t removed, each = block(c, *state);
    Err e = {0};
    for (int n = 0; n < 10; n++) {
        put_number(c, n, BYTES);
        set_age(file_of(*state, n), (n * 7 % 10) * 60);
    }
    assert_int_equal(cache_prune(c, 4 * each, &removed, &e), 0);
    assert_int_equal(removed, 6);
    for (int n = 0; n < 10; n++)
        assert_int_equal(exists(file_of(*state, n)), n * 7 % 10 < 4);
    cache_close(c);
}

/* After the clock was set back a file may claim a use that is to come. */
static void pruning_takes_uses_ahead_of_the_clock_first(void **state) {
    Cache *c = open_at(*state, NULL);
    int64_t removed;
    Err e = {0};
    int64_t each = block(c, *state);
    for (int n = 0; n < 3; n++)
        put_number(c, n, BYTES);
    set_age(file_of(*state, 0), 100 * HOUR);
    set_age(file_of(*state, 1), -100 * HOUR);
    assert_int_equal(cache_prune(c, 2 * each, &removed, &e), 0);
    assert_int_equal(removed, 1);
    assert_false(exists(file_of(*state, 1)));
    cache_close(c);
}

static void the_cap_holds_by_itself(void **state) {
    Cache *c = open_at(*state, NULL);
    CacheOptions o = {.dir = *state, .max_bytes = 10 * block(c, *state)};
    cache_close(c);
    c = open_with(o, NULL);
    for (int n = 0; n < 40; n++) {
        put_number(c, n, BYTES);
        set_age(file_of(*state, n), (100 - n) * 10);
        assert_in_range(count_files(*state), n < 9 ? n + 1 : 9, 10);
    }
    assert_true(has_number(c, 39, BYTES));
    assert_false(has_number(c, 0, BYTES));
    cache_close(c);
}

static void clearing_leaves_what_is_not_the_cache_s(void **state) {
    Cache *c = open_at(*state, NULL);
    int64_t removed;
    Err e = {0};
    for (int n = 0; n < 5; n++)
        put_number(c, n, BYTES);
    char shard[300], path[5][400];
    snprintf(shard, sizeof shard, "%s", file_of(*state, 0));
    *strrchr(shard, '/') = '\0';
    snprintf(path[0], sizeof *path, "%s/notes.txt", (char *)*state);
    snprintf(path[1], sizeof *path, "%s/v1/notes.txt", (char *)*state);
    snprintf(path[2], sizeof *path, "%s/notes.txt", shard);
    snprintf(path[3], sizeof *path, "%s/%062d.o", shard, 0);
    snprintf(path[4], sizeof *path, "%s/%061dA", shard, 0);
    for (int i = 0; i < 5; i++)
        write_file(path[i], "x", 1);
    assert_int_equal(cache_clear(c, &removed, &e), 0);
    assert_int_equal(removed, 5);
    assert_int_equal(count_files(*state), 0);
    for (int i = 0; i < 5; i++)
        assert_true(exists(path[i]));
    put_number(c, 1, BYTES);
    assert_true(has_number(c, 1, BYTES));
    cache_close(c);
}

typedef struct Seen {
    int good, bad;
    int64_t bytes;
    char fault[200], name[65];
} Seen;

static void see(void *user, const CacheItem *item) {
    Seen *seen = user;
    seen->bytes += item->bytes;
    assert_int_equal(!item->entry, !!item->fault);
    if (item->entry) {
        seen->good++;
        assert_string_equal(item->entry->compiler, "clang 14.0.6");
        return;
    }
    seen->bad++;
    snprintf(seen->fault, sizeof seen->fault, "%s", item->fault);
    snprintf(seen->name, sizeof seen->name, "%s", item->name);
}

static void listing_names_the_bad_and_why(void **state) {
    Cache *c = open_at(*state, NULL);
    Seen seen = {0};
    Err e = {0};
    for (int n = 0; n < 5; n++)
        put_number(c, n, BYTES);
    int fd = open(file_of(*state, 3), O_RDWR);
    assert_int_equal(pwrite(fd, "\xff\xfe", 2, 1500), 2);
    close(fd);
    assert_int_equal(cache_each(c, see, &seen, &e), 0);
    assert_int_equal(seen.good, 4);
    assert_int_equal(seen.bad, 1);
    assert_int_equal(seen.bytes, 5 * block(c, *state));
    assert_string_equal(seen.fault, "wrong checksum of section binary");
    CacheKey k = key_of(3);
    CachePath p = cache_path(&k);
    assert_int_equal(strlen(seen.name), 64);
    assert_memory_equal(seen.name, p.text, 2);
    assert_string_equal(seen.name + 2, p.text + 3);
    assert_true(exists(file_of(*state, 3))); /* looking deletes nothing */
    cache_close(c);
}

static void opening_sweeps_what_dead_writers_left(void **state) {
    cache_close(open_at(*state, NULL));
    const char *tmp = path_of("%s/v%d/tmp", (char *)*state, CACHE_FORMAT);
    const struct {
        const char *path;
        int age;
        bool stays;
    } left[] = {
        {path_of("%s/0123456789abcdef.tmp", tmp), 2 * HOUR, false},
        {path_of("%s/1123456789abcdef.tmp", tmp), -2 * HOUR, false},
        {path_of("%s/2123456789abcdef.tmp", tmp), HOUR / 2, true},
        {path_of("%s/3123456789abcdefg.tmp", tmp), 2 * HOUR, true},
        {path_of("%s/thesis.tmp", tmp), 2 * HOUR, true},
    };
    for (int i = 0; i < 5; i++) {
        write_file(left[i].path, "half", 4);
        set_age(left[i].path, left[i].age);
    }
    cache_close(open_at(*state, NULL));
    for (int i = 0; i < 5; i++)
        assert_int_equal(exists(left[i].path), left[i].stays);
}

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

static void ten_thousand_entries_are_pruned(void **state) {
    enum { N = 10000 };
    Cache *c = open_at(*state, NULL);
    int64_t removed;
    Err e = {0};
    for (int n = 0; n < N; n++) {
        char shard[300];
        snprintf(shard, sizeof shard, "%s", file_of(*state, n));
        *strrchr(shard, '/') = '\0';
        mkdir(shard, 0700);
        write_file(file_of(*state, n), "not an entry", 12);
        set_age(file_of(*state, n), N - n);
    }
    struct stat st;
    assert_int_equal(stat(file_of(*state, 0), &st), 0);
    if (st.st_blocks == 0) {
        cache_close(c);
        skip(); /* a file system that counts blocks later */
    }
    double begin = now_ms();
    assert_int_equal(cache_prune(c, 1000 * st.st_blocks * 512, &removed, &e),
                     0);
    print_message("pruned %d of %d in %.0f ms\n", (int)removed, N,
                  now_ms() - begin);
    assert_int_equal(removed, 9000);
    assert_false(exists(file_of(*state, 8999)));
    assert_true(exists(file_of(*state, 9000)));
    cache_close(c);
}

/* A figure to read, not a limit: timed limits belong to the benchmark. */
static void a_find_of_50_kb_is_timed(void **state) {
    Cache *c = open_at(*state, NULL);
    CacheKey k = key_of(1);
    put_number(c, 1, 50000);
    double begin = now_ms();
    for (int i = 0; i < 200; i++) {
        CacheEntry got;
        assert_true(cache_find(c, &k, "kernel 1", &got));
        cache_entry_free(&got);
    }
    print_message("find: %.0f us\n", (now_ms() - begin) * 1e3 / 200);
    begin = now_ms();
    for (int n = 0; n < 20; n++)
        put_number(c, n, 50000);
    print_message("put: %.0f us\n", (now_ms() - begin) * 1e3 / 20);
    cache_close(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        T(a_hit_marks_its_use_once_an_hour),
        T(a_clock_set_back_costs_no_hit),
        T(pruning_takes_the_least_recently_used),
        T(pruning_takes_uses_ahead_of_the_clock_first),
        T(the_cap_holds_by_itself),
        T(clearing_leaves_what_is_not_the_cache_s),
        T(listing_names_the_bad_and_why),
        T(opening_sweeps_what_dead_writers_left),
        T(ten_thousand_entries_are_pruned),
        T(a_find_of_50_kb_is_timed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
