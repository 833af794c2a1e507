/* SPDX-License-Identifier: Apache-2.0
 * A whole attention kernel on the emulated device: right under every schedule
 * and landing of copies, and never accused falsely. */
#include "emu/subject.h"

#include <time.h>

static const int64_t lengths[] = {1, 63, 64, 65, 100, 129, 200};
enum { LENGTHS = sizeof lengths / sizeof *lengths };

static void run_all(const Loaded *k, int stages, int seeds) {
    for (int n = 0; n < LENGTHS; n++)
        for (int causal = 0; causal < 2; causal++) {
            Subject s = subject_new(2, lengths[n], causal);
            for (int seed = 0; seed < seeds; seed++) {
                EmuConfig c = {(uint64_t)seed, seed % 3, true, seed % 2,
                               1 + seed % 4};
                EmuReport r = subject_run(&s, k, &c, stages);
                double lse, error = subject_error(&s, &lse);
                expect_no_fault(&r);
                if (!(error < 6e-4 && lse < 1e-5))
                    fail_msg("n %lld causal %d: error %g, lse %g",
                             (long long)s.n, causal, error, lse);
                emu_report_free(&r);
            }
            subject_free(&s);
        }
}

static void sm80_is_right_under_every_schedule(void **state) {
    (void)state;
    Loaded k = kernel_load(SUBJECT, 800, "", "attn_fwd");
    run_all(&k, 2, 12);
    kernel_unload(&k);
}

static void sm75_is_right_under_every_schedule(void **state) {
    (void)state;
    Loaded k = kernel_load(SUBJECT, 750, "", "attn_fwd");
    run_all(&k, 1, 3);
    kernel_unload(&k);
}

/* Same seed: same schedule; the result depends on no schedule. */
static void a_seed_reproduces_a_run(void **state) {
    (void)state;
    Loaded k = kernel_load(SUBJECT, 800, "BUG_NO_REUSE_SYNC", "attn_fwd");
    Subject s = subject_new(2, 200, true);
    for (uint64_t seed = 0; seed < 4; seed++) {
        EmuConfig c = {seed, EMU_RANDOM, true, false, 2};
        EmuReport a = subject_run(&s, &k, &c, 2);
        EmuReport b = subject_run(&s, &k, &c, 2);
        assert_int_equal(a.switches, b.switches);
        assert_int_equal(a.faults, b.faults);
        assert_memory_equal(a.fault, b.fault, sizeof a.fault);
        emu_report_free(&a);
        emu_report_free(&b);
    }
    subject_free(&s);
    kernel_unload(&k);
}

static const EmuCount *count_of(const EmuReport *r, const char *mark,
                                int class) {
    uint32_t line = line_of(SUBJECT, mark);
    assert_true(line < r->lines);
    return &r->count[line][class];
}

/* 4 x 4 tiles of one head; every operand known by hand. */
static void counters_tell_what_a_line_costs(void **state) {
    (void)state;
    Loaded k = kernel_load(SUBJECT, 800, "", "attn_fwd");
    Subject s = subject_new(1, 256, false);
    EmuConfig c = {1, EMU_LATE, true, true, 1};
    EmuReport r = subject_run(&s, &k, &c, 2);
    const EmuCount *read = count_of(&r, "read_k", EMU_COUNT_LDMATRIX);
    const EmuCount *load = count_of(&r, "load", EMU_COUNT_CP_ASYNC);
    const EmuCount *store = count_of(&r, "store", EMU_COUNT_ST_GLOBAL);
    assert_int_equal(read->instructions, 16 * 4 * 16);
    assert_int_equal(read->ideal, 4 * read->instructions);
    assert_int_equal(read->waves, read->ideal);
    /* Q once per block, K and V for each of its four key tiles. */
    assert_int_equal(load->lanes, 4 * (1 + 2 * 4) * 512);
    assert_int_equal(load->waves, load->ideal);
    assert_true(load->dram_bytes >= 3 * 256 * 128 &&
                load->dram_bytes <= 3 * 256 * 128 + 96);
    assert_int_equal(store->instructions, 4 * 4 * 2 * 8);
    assert_true(store->dram_bytes >= 256 * 128 &&
                store->dram_bytes <= 256 * 128 + 32);
    assert_int_equal(r.mma_flops, 4ll * 64 * 256 * 256);
    emu_report_free(&r);
    subject_free(&s);
    kernel_unload(&k);
}

static double thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Printed, not judged: a busy or instrumented machine is slower. */
static void a_tile_costs_about_a_millisecond(void **state) {
    (void)state;
    Loaded k = kernel_load(SUBJECT, 800, "", "attn_fwd");
    Subject s = subject_new(1, 1024, false);
    double best = 1e9;
    for (int i = 0; i < 3; i++) {
        EmuConfig c = {1, EMU_LATE, true, false, 1};
        double start = thread_seconds();
        EmuReport r = subject_run(&s, &k, &c, 2);
        double ms = 1e3 * (thread_seconds() - start) / 256;
        best = ms < best ? ms : best;
        expect_no_fault(&r);
        emu_report_free(&r);
    }
    print_message("%.2f ms of CPU time per 64 x 64 x 64 tile\n", best);
    subject_free(&s);
    kernel_unload(&k);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sm80_is_right_under_every_schedule),
        cmocka_unit_test(sm75_is_right_under_every_schedule),
        cmocka_unit_test(a_seed_reproduces_a_run),
        cmocka_unit_test(counters_tell_what_a_line_costs),
        cmocka_unit_test(a_tile_costs_about_a_millisecond),
    };
    Compiler clang;
    if (!have_clang(&clang)) {
        print_message("skipped: no clang to compile kernels for the emulated "
                      "device\n");
        return SKIPPED;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
