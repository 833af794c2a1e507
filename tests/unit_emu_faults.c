/* SPDX-License-Identifier: Apache-2.0
 * Faults planted into a right kernel, and what the emulated device says of
 * each: the kind and the line, under every landing mode and several seeds. */
#include "emu/subject.h"

enum { NONE = -1, SEEDS = 6 };

typedef struct Plant {
    const char *macro;
    int kind;          /* fault expected; NONE: only the values are wrong */
    const char *line;  /* mark of the accused line */
    const char *other; /* and of the other party, or NULL */
    double error;      /* NONE: the relative error is at least this */
} Plant;

static const Plant plants[] = {
    /* waits and barriers */
    {"BUG_WAIT", EMU_IN_FLIGHT, "read_k", "load", 0},
    {"BUG_COMMIT", EMU_IN_FLIGHT, "read_v", "load", 0},
    {"BUG_SYNC_FIRST", EMU_RACE_READ, "read_v", "load", 0},
    {"BUG_NO_SYNC", EMU_RACE_READ, "read_v", "load", 0},
    {"BUG_NO_REUSE_SYNC", EMU_RACE_REUSE, "load", "read_v", 0},
    /* places */
    {"BUG_STAGE", EMU_BOUNDS, "load", NULL, 0},
    {"BUG_LOAD", EMU_BOUNDS, "load", NULL, 0},
    {"BUG_STORE", EMU_BOUNDS, "store", NULL, 0},
    {"BUG_STORE", EMU_TWICE, "store", NULL, 0},
    {"BUG_ARRAY", EMU_INDEX, "array", NULL, 0},
    {"BUG_DIVERGENT", EMU_DIVERGENCE, "shfl", NULL, 0},
    /* values */
    {"BUG_SWIZZLE", NONE, NULL, NULL, 0.3},
    {"BUG_B_SWAPPED", NONE, NULL, NULL, 0.3},
    {"BUG_TRANS", NONE, NULL, NULL, 0.3},
    {"BUG_NO_RESCALE", NONE, NULL, NULL, 0.05},
    {"BUG_CAUSAL", NONE, NULL, NULL, 0.05},
    {"BUG_ROW", NONE, NULL, NULL, 0.01},
    {"BUG_LANE_MAP", NONE, NULL, NULL, 0.05},
    {"BUG_L_UNSET", NONE, NULL, NULL, 0.05},
};

static void check_plant(const Plant *p, const Subject *s, const EmuReport *r) {
    double lse;
    if (p->kind == NONE) {
        double error = subject_error(s, &lse);
        if (error < p->error) /* NaN passes: that is wrong, too */
            fail_msg("%s: error %g", p->macro, error);
        expect_no_fault(r);
        return;
    }
    uint32_t other = p->other ? line_of(SUBJECT, p->other) : 0;
    expect_fault(r, p->kind, line_of(SUBJECT, p->line), other);
}

static void every_planted_fault_is_caught_where_it_is(void **state) {
    (void)state;
    Subject s = subject_new(2, 200, true);
    for (size_t i = 0; i < sizeof plants / sizeof *plants; i++) {
        Loaded k = kernel_load(SUBJECT, 800, plants[i].macro, "attn_fwd");
        for (int seed = 0; seed < SEEDS; seed++) {
            EmuConfig c = {(uint64_t)seed, seed % 3, true, false, 1 + seed / 3};
            EmuReport r = subject_run(&s, &k, &c, 2);
            check_plant(&plants[i], &s, &r);
            emu_report_free(&r);
        }
        kernel_unload(&k);
    }
    subject_free(&s);
}

/* Right values, and eight cycles where one would do. */
static void a_missing_swizzle_shows_in_the_counters(void **state) {
    (void)state;
    Subject s = subject_new(1, 128, false);
    Loaded k = kernel_load(SUBJECT, 800, "BUG_NO_SWIZZLE", "attn_fwd");
    EmuConfig c = {3, EMU_LATE, true, true, 1};
    EmuReport r = subject_run(&s, &k, &c, 2);
    double lse;
    expect_no_fault(&r);
    assert_true(subject_error(&s, &lse) < 6e-4);
    const EmuCount *read =
        &r.count[line_of(SUBJECT, "read_k")][EMU_COUNT_LDMATRIX];
    assert_int_equal(read->waves, 8 * read->ideal);
    emu_report_free(&r);
    kernel_unload(&k);
    subject_free(&s);
}

/* Values alone would not do: late landing hides reuse, eager landing hides
 * waits. Detection does not depend on either. */
static void detection_needs_no_luck(void **state) {
    (void)state;
    static const char *const macros[] = {"BUG_WAIT", "BUG_NO_REUSE_SYNC"};
    static const int hides[] = {EMU_EAGER, EMU_LATE};
    Subject s = subject_new(1, 200, false);
    for (int i = 0; i < 2; i++) {
        Loaded k = kernel_load(SUBJECT, 800, macros[i], "attn_fwd");
        for (uint64_t seed = 0; seed < 4; seed++) {
            EmuConfig c = {seed, hides[i], true, false, 1};
            EmuReport r = subject_run(&s, &k, &c, 2);
            assert_true(r.faults > 0);
            emu_report_free(&r);
        }
        kernel_unload(&k);
    }
    subject_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_planted_fault_is_caught_where_it_is),
        cmocka_unit_test(a_missing_swizzle_shows_in_the_counters),
        cmocka_unit_test(detection_needs_no_luck),
    };
    Compiler clang;
    if (!have_clang(&clang)) {
        print_message("skipped: no clang to compile kernels for the emulated "
                      "device\n");
        return SKIPPED;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
