/* SPDX-License-Identifier: Apache-2.0
 * The cache's entries: round trip, damage, recency, cap. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "cache_util.h"

enum { BYTES = 700 }; /* of a small kernel */

static void an_entry_comes_back_as_it_was_put(void **state) {
    Log log = {0};
    Cache *c = open_at(*state, &log);
    for (int n = 0; n < 20; n++)
        put_number(c, n, 1 + 1000 * n);
    for (int n = 0; n < 20; n++)
        assert_true(has_number(c, n, 1 + 1000 * n));
    assert_int_equal(log.warnings + log.infos, 0);
    cache_close(c);
    c = open_at(*state, &log);
    assert_true(has_number(c, 7, 7001));
    assert_string_equal(cache_dir(c), *state);
    cache_close(c);
}

static void an_unknown_key_or_identity_is_a_miss(void **state) {
    Cache *c = open_at(*state, NULL);
    CacheEntry got;
    CacheKey k = key_of(1);
    assert_false(has_number(c, 1, BYTES));
    put_number(c, 1, BYTES);
    assert_false(cache_find(c, &k, "kernel 2", &got));
    assert_null(got.identity);
    assert_true(has_number(c, 1, BYTES));
    cache_close(c);
}

static void a_second_put_replaces_the_first(void **state) {
    Cache *c = open_at(*state, NULL);
    put_number(c, 1, BYTES);
    put_number(c, 1, 2 * BYTES);
    assert_true(has_number(c, 1, 2 * BYTES));
    cache_close(c);
}

static void memory_only_never_hits_and_never_warns(void **state) {
    (void)state;
    Log log = {0};
    Cache *c = open_at("", &log);
    int64_t removed;
    Err e = {0};
    CacheKey k = key_of(1);
    put_number(c, 1, BYTES);
    assert_false(has_number(c, 1, BYTES));
    assert_null(cache_dir(c));
    assert_int_equal(cache_lock(c, &k, 1000), -1);
    assert_int_equal(cache_clear(c, &removed, &e), 0);
    assert_int_equal(log.warnings + log.infos, 0);
    cache_close(c);
}

static void the_key_depends_on_every_field(void **state) {
    static const char *const field[][3] = {
        {"identity", "hash", "kind"}, {"identitx", "hash", "kind"},
        {"identity", "hasi", "kind"}, {"identity", "hash", "kine"},
        {"identityh", "ash", "kind"}, {"identity", "hashk", "ind"},
        {"", "hash", "kind"},         {"hash", "identity", "kind"},
    };
    enum { N = sizeof field / sizeof *field };
    CacheKey key[N], again;
    (void)state;
    for (int i = 0; i < N; i++) {
        cache_key(field[i][0], field[i][1], field[i][2], &key[i]);
        cache_key(field[i][0], field[i][1], field[i][2], &again);
        assert_memory_equal(&key[i], &again, sizeof again);
        for (int j = 0; j < i; j++)
            assert_memory_not_equal(&key[i], &key[j], sizeof again);
    }
}

/* ---- damage ------------------------------------------------------------ */

static Blob encoded(int n) {
    Blob file;
    CacheKey k = key_of(n);
    CacheEntry e = entry_of(n, BYTES);
    assert_true(cache_file_encode(&k, &e, &file));
    cache_entry_free(&e);
    return file;
}

static void every_byte_flipped_is_a_miss(void **state) {
    Cache *c = open_at(*state, NULL);
    Blob file = encoded(1);
    uint8_t *bytes = file.data;
    put_number(c, 1, BYTES);
    for (size_t i = 0; i < file.len; i++) {
        bytes[i] ^= 0xff;
        write_file(file_of(*state, 1), bytes, file.len);
        assert_false(has_number(c, 1, BYTES));
        assert_false(exists(file_of(*state, 1)));
        bytes[i] ^= 0xff;
    }
    write_file(file_of(*state, 1), bytes, file.len);
    assert_true(has_number(c, 1, BYTES));
    free(file.data);
    cache_close(c);
}

static void every_bit_flipped_is_a_fault(void **state) {
    Blob file = encoded(1);
    CacheKey k = key_of(1);
    CacheEntry got;
    const char *fault;
    (void)state;
    for (size_t i = 0; i < 8 * file.len; i++) {
        ((uint8_t *)file.data)[i / 8] ^= 1 << i % 8;
        assert_int_equal(cache_file_decode(&file, &k, &got, &fault), LOAD_BAD);
        assert_non_null(fault);
        assert_null(got.binary.data);
        ((uint8_t *)file.data)[i / 8] ^= 1 << i % 8;
    }
    free(file.data);
}

static void every_other_length_is_a_miss(void **state) {
    Cache *c = open_at(*state, NULL);
    Blob file = encoded(1);
    file.data = realloc(file.data, file.len + 64);
    memset((char *)file.data + file.len, 0, 64);
    put_number(c, 1, BYTES);
    for (size_t len = 0; len < file.len + 64; len++) {
        write_file(file_of(*state, 1), file.data, len);
        assert_int_equal(has_number(c, 1, BYTES), len == file.len);
    }
    free(file.data);
    cache_close(c);
}

static void an_entry_under_another_name_is_a_miss(void **state) {
    Cache *c = open_at(*state, NULL);
    put_number(c, 1, BYTES);
    put_number(c, 2, BYTES);
    assert_int_equal(rename(file_of(*state, 1), file_of(*state, 2)), 0);
    assert_false(has_number(c, 2, BYTES));
    cache_close(c);
}

/* Makes the whole-file checksum right again, as a forger would. */
static void seal(Blob *file) {
    uint8_t *bytes = file->data;
    XXH128_hash_t hash = XXH3_128bits(bytes, file->len - 16);
    for (int i = 0; i < 8; i++) {
        bytes[file->len - 16 + i] = (uint8_t)(hash.low64 >> (8 * i));
        bytes[file->len - 8 + i] = (uint8_t)(hash.high64 >> (8 * i));
    }
}

static void lengths_out_of_bounds_are_faults(void **state) {
    static const struct {
        int at, bytes;
        uint64_t value;
    } lie[] = {
        {8, 2, 2},                      /* another major */
        {12, 4, 71},                    /* header shorter than the table */
        {12, 4, UINT32_MAX},            /* header longer than the file */
        {16, 8, UINT64_MAX},            /* total length */
        {60, 4, 65},                    /* more sections than are allowed */
        {60, 4, UINT32_MAX},            /* more than the header holds */
        {72 + 8, 8, UINT64_MAX},        /* offset of the first section */
        {72 + 16, 8, UINT64_MAX},       /* its length */
        {72 + 16, 8, UINT64_MAX - 200}, /* offset + length wraps */
        {72 + 4 * 32 + 16, 8, 0},       /* no binary */
        {72 + 5 * 32 + 16, 8, 3},       /* numbers too short */
        {72 + 32, 4, 1},                /* identity twice */
    };
    (void)state;
    for (size_t i = 0; i < sizeof lie / sizeof *lie; i++) {
        Blob file = encoded(1);
        CacheKey k = key_of(1);
        CacheEntry got;
        const char *fault;
        for (int b = 0; b < lie[i].bytes; b++)
            ((uint8_t *)file.data)[lie[i].at + b] =
                (uint8_t)(lie[i].value >> (8 * b));
        seal(&file);
        assert_int_equal(cache_file_decode(&file, &k, &got, &fault), LOAD_BAD);
        free(file.data);
    }
}

/* A later minor version: one more section, and a longer header. */
static void unknown_sections_are_skipped(void **state) {
    enum { TABLE = 72, ROW = 32, OLD = TABLE + 6 * ROW, GROW = 2 * ROW };
    Blob old = encoded(1);
    Blob file = {calloc(1, old.len + GROW), old.len + GROW};
    uint8_t *to = file.data;
    const uint8_t *from = old.data;
    (void)state;
    memcpy(to, from, OLD);
    memcpy(to + OLD + GROW, from + OLD, old.len - OLD);
    to[10] = 1;     /* minor */
    to[12] += GROW; /* header length */
    to[60] = 7;     /* sections */
    to[16] = (uint8_t)file.len, to[17] = (uint8_t)(file.len >> 8);
    for (int i = 0; i < 6; i++) {
        uint16_t offset;
        memcpy(&offset, to + TABLE + i * ROW + 8, 2);
        offset += GROW;
        memcpy(to + TABLE + i * ROW + 8, &offset, 2);
    }
    memcpy(to + OLD, to + TABLE, ROW); /* the identity once more, as id 99 */
    to[OLD] = 99;
    seal(&file);
    CacheKey k = key_of(1);
    CacheEntry got, want = entry_of(1, BYTES);
    const char *fault = NULL;
    assert_int_equal(cache_file_decode(&file, &k, &got, &fault), LOAD_OK);
    assert_true(entry_equal(&got, &want));
    cache_entry_free(&got);
    cache_entry_free(&want);
    free(file.data);
    free(old.data);
}

/* Random bytes, mostly in the header, some sealed again so that they pass
 * the checksum: whatever comes, the reader stays inside the file. */
static void the_reader_survives_random_files(void **state) {
    Blob good = encoded(1);
    uint32_t seed = (uint32_t)time(NULL) | 1;
    time_t end = time(NULL) + 2;
    long runs = 0;
    (void)state;
    print_message("seed %u\n", seed);
    for (; time(NULL) <= end; runs++) {
        Blob file = {malloc(good.len), good.len};
        uint8_t *bytes = memcpy(file.data, good.data, good.len);
        for (uint32_t n = 1 + draw(&seed) % 8; n > 0; n--)
            bytes[draw(&seed) % (draw(&seed) % 4 ? 264 : good.len)] =
                (uint8_t)draw(&seed);
        if (draw(&seed) % 2)
            file.len = draw(&seed) % (good.len + 1);
        if (draw(&seed) % 2 && file.len >= 24) {
            memset(bytes + 16, 0, 8);
            bytes[16] = (uint8_t)file.len, bytes[17] = (uint8_t)(file.len >> 8);
        }
        if (draw(&seed) % 4 && file.len >= 16)
            seal(&file);
        bytes = realloc(file.data, file.len ? file.len : 1); /* for asan */
        file.data = bytes;
        CacheKey k = key_of(1);
        CacheEntry got;
        const char *fault;
        if (cache_file_decode(&file, &k, &got, &fault) == LOAD_OK)
            assert_true(strlen(got.identity) < good.len);
        else
            assert_non_null(fault);
        cache_entry_free(&got);
        free(file.data);
    }
    print_message("%ld files\n", runs);
    free(good.data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        T(an_entry_comes_back_as_it_was_put),
        T(an_unknown_key_or_identity_is_a_miss),
        T(a_second_put_replaces_the_first),
        T(memory_only_never_hits_and_never_warns),
        T(the_key_depends_on_every_field),
        T(every_byte_flipped_is_a_miss),
        T(every_bit_flipped_is_a_fault),
        T(every_other_length_is_a_miss),
        T(an_entry_under_another_name_is_a_miss),
        T(lengths_out_of_bounds_are_faults),
        T(unknown_sections_are_skipped),
        T(the_reader_survives_random_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
