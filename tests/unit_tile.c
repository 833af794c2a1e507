/* SPDX-License-Identifier: Apache-2.0
 * Tiles: names, text, the one body of legality, the search space. */
#include "gen_util.h"

static void expect_illegal(const char *changes, const char *spec_text,
                           const char *reason) {
    attnc_spec s = spec(spec_text);
    Device d = device("avx2");
    Tile t = avx2_tile(changes);
    char why[120];
    assert_false(tile_legal(&s, &ATTNC_SHAPE_DEFAULT, &d, &t, why));
    assert_string_equal(why, reason);
}

static void names_are_those_of_the_list(void **state) {
    (void)state;
    assert_string_equal(tile_family_name(TILE_cpu_fwd), "cpu_fwd");
    assert_string_equal(tile_field_name(TILE_cpu_fwd, 0), "block_q");
    assert_int_equal(T_cpu_fwd_split_k, 6);
    assert_string_equal(tile_field_name(TILE_cpu_fwd, 6), "split_k");
    assert_null(tile_field_name(TILE_cpu_fwd, 7));
    assert_int_equal(T_cpu_combine_rows, 0);
    assert_string_equal(tile_field_name(TILE_cpu_combine, 0), "rows");
    assert_string_equal(tile_from_name(FROM_PIN), "pin");
}

static void text_reads_back(void **state) {
    (void)state;
    Tile t = avx2_tile("split_k=128,copy_kv=1"),
         again = {.family = TILE_cpu_fwd};
    Err e = {0};
    Str s = {0};
    tile_print(&t, &s);
    assert_string_equal(s.text, "cpu_fwd block_q=384 block_k=64 vecs=3 keys=4 "
                                "dims=4 copy_kv=1 split_k=128");
    assert_int_equal(tile_parse(s.text + strlen("cpu_fwd "), &again, &e), 0);
    assert_memory_equal(&t, &again, sizeof t);
    str_free(&s);
}

static void bad_text_changes_nothing(void **state) {
    (void)state;
    static const struct {
        const char *pairs, *text;
    } bad[] = {
        {"blok_q=3",
         "tile: unknown field 'blok_q' of cpu_fwd; nearest: block_q"},
        {"vecs=2,keys=x", "tile: keys: 'x' is not a number of 0..2147483647"},
        {"vecs=2,keys=-1", "tile: keys: '-1' is not a number of 0..2147483647"},
        {"vecs=2,keys", "tile: keys: '' is not a number of 0..2147483647"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Tile t = avx2_tile(""), before = t;
        Err e = {0};
        assert_int_equal(tile_parse(bad[i].pairs, &t, &e), ERR_REQUEST);
        assert_string_equal(e.text, bad[i].text);
        assert_memory_equal(&t, &before, sizeof t);
    }
}

static void an_illegal_tile_has_a_reason(void **state) {
    (void)state;
    expect_illegal("block_q=380", "",
                   "block_q=380 is not a multiple of "
                   "lanes*vecs = 24; nearest 384");
    expect_illegal("block_q=388", "",
                   "block_q=388 is not a multiple of "
                   "lanes*vecs = 24; nearest 384");
    expect_illegal("block_q=0", "",
                   "block_q=0 is out of range; accepted 1..65536");
    expect_illegal("block_k=4", "",
                   "block_k=4 is out of range; accepted 8..1024");
    expect_illegal("block_k=60", "",
                   "block_k=60 is not a multiple of 8; nearest 64");
    expect_illegal("split_k=100", "",
                   "split_k=100 is not a multiple of "
                   "block_k = 64; nearest 128");
    expect_illegal("keys=5", "",
                   "keys=5 x vecs=3 needs 19 vector registers, "
                   "avx2 has 16; nearest keys=4");
    expect_illegal("dims=6", "",
                   "dims=6 x vecs=3 needs 22 vector registers, "
                   "avx2 has 16; nearest dims=4");
    expect_illegal("vecs=8,keys=1,dims=1", "",
                   "vecs=8 needs 17 vector registers, avx2 has 16; nearest "
                   "vecs=7");
    expect_illegal("copy_kv=0", "dtype=f16",
                   "copy_kv=0 reads K and V in place, which needs dtype=f32, "
                   "not f16; nearest copy_kv=1");
}

static void a_tile_must_fit_the_sram(void **state) {
    (void)state;
    attnc_spec s = spec("");
    Device d = device("avx2");
    Tile t = avx2_tile("block_q=2400");
    char why[120];
    assert_false(tile_legal(&s, &ATTNC_SHAPE_DEFAULT, &d, &t, why));
    assert_non_null(strstr(why, " bytes of SRAM, there are 524288"));
    d.sram_bytes = (double)model_scratch_bytes(&s, &d, &t);
    assert_true(tile_legal(&s, &ATTNC_SHAPE_DEFAULT, &d, &t, why));
    d.sram_bytes--;
    assert_false(tile_legal(&s, &ATTNC_SHAPE_DEFAULT, &d, &t, why));
}

static void a_cpu_tile_needs_a_cpu(void **state) {
    (void)state;
    attnc_spec s = spec("");
    Device d = device("H200");
    Tile t = avx2_tile("");
    char why[120];
    assert_false(tile_legal(&s, &ATTNC_SHAPE_DEFAULT, &d, &t, why));
    assert_string_equal(why, "family cpu_fwd needs a CPU, not sm_90a");
}

static void the_safe_tile_is_legal_for_every_spec(void **state) {
    (void)state;
    static const char *const archs[] = {"avx2", "avx512", "avx512bf16", "neon",
                                        "portable"};
    static const char *const specs[] = {"head_dim=1", "head_dim=256",
                                        "dtype=f16 head_dim=256 alibi=1",
                                        "dtype=bf16 head_dim=1 head_dim_v=256"};
    for (size_t i = 0; i < 5; i++) {
        for (size_t k = 0; k < 4; k++) {
            attnc_spec s = spec(specs[k]);
            Device d = device(archs[i]);
            char why[120];
            for (int f = 0; f <= TILE_builtin; f++) {
                Tile t = tile_safe(&d, f);
                if (!tile_legal(&s, &ATTNC_SHAPE_DEFAULT, &d, &t, why))
                    fail_msg("%s %s: %s", archs[i], specs[k], why);
            }
        }
    }
}

enum { MANY = 8000 };
static Candidate found[MANY];

static bool among(const Candidate *c, int n, const char *changes) {
    Tile want = avx2_tile(changes);
    for (int i = 0; i < n; i++) {
        if (c[i].legal && !memcmp(c[i].tile.v, want.v, sizeof want.v))
            return true;
    }
    return false;
}

static void the_search_holds_what_was_measured_best(void **state) {
    (void)state;
    attnc_spec s = spec("");
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    Device d = device("avx2");
    h.seqlen_q = h.seqlen_k = 4096;
    int n = tile_enumerate(&s, &h, &d, TILE_cpu_fwd, found, MANY);
    assert_true(n > 100 && n < MANY);
    assert_true(among(found, n, ""));
    assert_true(among(found, n, "copy_kv=1,block_k=128"));
    d = device("avx512");
    n = tile_enumerate(&s, &h, &d, TILE_cpu_fwd, found, MANY);
    assert_true(n > 100 && n < MANY);
    assert_true(among(found, n, "block_q=384,vecs=4,keys=4,dims=4"));
    assert_true(among(found, n, "block_q=384,vecs=4,keys=6,dims=6,block_k=96"));
}

static void the_search_has_no_tile_twice_and_shows_limits(void **state) {
    (void)state;
    attnc_spec s = spec("");
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    Device d = device("avx2");
    h.seqlen_q = 65536;
    int n = tile_enumerate(&s, &h, &d, TILE_cpu_fwd, found, MANY);
    int sram = 0, registers = 0;
    for (int i = 0; i < n; i++) {
        const Candidate *c = &found[i];
        assert_int_equal(c->legal, !*c->why);
        sram += !!strstr(c->why, "SRAM");
        registers += !!strstr(c->why, "registers");
        for (int k = 0; k < i; k++)
            assert_memory_not_equal(c->tile.v, found[k].tile.v,
                                    sizeof c->tile.v);
    }
    assert_true(sram > 0 && registers > 0);
}

static void reduced_types_are_always_copied(void **state) {
    (void)state;
    static const char *const specs[] = {"dtype=f16", "dtype=bf16"};
    for (int k = 0; k < 2; k++) {
        attnc_spec s = spec(specs[k]);
        Device d = device("avx512bf16");
        int n = tile_enumerate(&s, &ATTNC_SHAPE_DEFAULT, &d, TILE_cpu_fwd,
                               found, MANY);
        assert_true(n > 0);
        for (int i = 0; i < n; i++)
            assert_int_equal(found[i].tile.v[T_cpu_fwd_copy_kv], 1);
    }
}

/* The planner meets SRAM of every size with a tile that fits or a reason. */
static void every_sram_size_is_met(void **state) {
    (void)state;
    attnc_spec s = spec("head_dim=128");
    for (int kb = 8; kb <= 4096; kb += kb / 4 + 3) {
        Device d = device("avx2");
        d.sram_bytes = kb * 1024.0;
        int n = tile_enumerate(&s, &ATTNC_SHAPE_DEFAULT, &d, TILE_cpu_fwd,
                               found, MANY);
        for (int i = 0; i < n; i++) {
            if (found[i].legal)
                assert_true(found[i].fig.sram_footprint <= d.sram_bytes);
            else
                assert_true(strlen(found[i].why) > 10);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_those_of_the_list),
        cmocka_unit_test(text_reads_back),
        cmocka_unit_test(bad_text_changes_nothing),
        cmocka_unit_test(an_illegal_tile_has_a_reason),
        cmocka_unit_test(a_tile_must_fit_the_sram),
        cmocka_unit_test(a_cpu_tile_needs_a_cpu),
        cmocka_unit_test(the_safe_tile_is_legal_for_every_spec),
        cmocka_unit_test(the_search_holds_what_was_measured_best),
        cmocka_unit_test(the_search_has_no_tile_twice_and_shows_limits),
        cmocka_unit_test(reduced_types_are_always_copied),
        cmocka_unit_test(every_sram_size_is_met),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
