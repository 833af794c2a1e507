/* SPDX-License-Identifier: Apache-2.0
 * The device row of this machine, what is kept of it, and targets by name. */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime.h"

static char dir[40];

static int enter(void **state) {
    (void)state;
    strcpy(dir, "/tmp/attnc-probe-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int leave(void **state) {
    (void)state;
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

static Device probed(const char *target, const char *where) {
    Device d;
    Err e = {0};
    if (probe_target(target, where, &d, &e))
        fail_msg("%s: %s", target, e.text);
    return d;
}

/* Output of a shell line, without its newline. */
static const char *shell(const char *line) {
    static char text[4096];
    FILE *f = popen(line, "r");
    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    text[strcspn(text, "\n")] = 0;
    pclose(f);
    return text;
}

static char *note_text(void) {
    char line[128];
    snprintf(line, sizeof line, "cat %s/machine-*.txt", dir);
    return strdup(shell(line));
}

static void the_row_is_complete_and_prints(void **state) {
    (void)state;
    Device d = probed("cpu", dir), back;
    Str text = {0};
    Err e = {0};
    assert_int_equal(d.kind, DEVICE_CPU);
    assert_true(probe_runs(d.arch));
    assert_true(*d.name);
    assert_in_range((int)d.cores, 1, probe_cpus());
    assert_true(d.clock_ghz > 0.2 && d.clock_ghz < 10);
    assert_true(d.dram_gbs > 0.1 && d.dram_gbs < 10000);
    assert_true(d.l1_bytes >= 8192 && d.sram_bytes > d.l1_bytes);
    assert_true(d.llc_bytes >= d.sram_bytes);
    assert_true(fabs(d.f32_tflops - d.cores * d.clock_ghz * d.fma_per_cycle *
                                        d.vector_bytes / 4 * 2 / 1000) <
                0.02 * d.f32_tflops);
    device_print(&d, &text);
    assert_int_equal(device_parse(text.text, &back, &e), 0);
    assert_memory_equal(&d.cores, &back.cores,
                        sizeof d - offsetof(Device, cores));
    str_free(&text);
}

static void the_instruction_set_is_what_the_kernel_says(void **state) {
    (void)state;
#if defined(__x86_64__)
    const struct {
        const char *arch, *flags;
    } isa[] = {{"avx2", "avx2 fma f16c bmi2"},
               {"avx512", "avx512f avx512bw avx512dq avx512vl"},
               {"avx512bf16", "avx512f avx512bw avx512dq avx512vl "
                              "avx512_bf16"}};
    for (int i = 0; i < 3; i++) {
        char line[256];
        snprintf(line, sizeof line,
                 "for f in %s; do grep -qw $f /proc/cpuinfo || echo no; done",
                 isa[i].flags);
        assert_int_equal(probe_runs(isa[i].arch), !*shell(line));
    }
#endif
    assert_true(probe_runs("portable"));
    assert_false(probe_runs("sm_80"));
    assert_false(probe_runs(""));
#if defined(__aarch64__)
    assert_true(probe_runs("neon"));
#else
    assert_false(probe_runs("neon"));
#endif
}

static void measurements_are_kept_and_used_again(void **state) {
    (void)state;
    Device first = probed("cpu", dir);
    char *note = note_text();
    assert_non_null(strstr(note, "dram_gbs="));
    /* Another figure in the note shows that it is read. */
    char line[256];
    snprintf(line, sizeof line,
             "sed -i 's/dram_gbs=[0-9.]*/dram_gbs=77/' "
             "%s/machine-*.txt",
             dir);
    shell(line);
    Device second = probed("cpu", dir);
    assert_true(second.dram_gbs == 77);
    assert_true(second.clock_ghz == first.clock_ghz);
    assert_true(second.f32_tflops == first.f32_tflops);
    free(note);
}

/* Changes the note: its memory rate, its count, its age. */
static void edit_note(const char *dram_gbs, int count, int hours) {
    char line[256];
    snprintf(line, sizeof line,
             "for f in %s/machine-*.txt; do sed -i -e "
             "'1s/dram_gbs=[0-9.]*/dram_gbs=%s/' -e 2s/.*/%d/ $f && "
             "touch -d '-%d hours' $f; done",
             dir, dram_gbs, count, hours);
    shell(line);
}

static int note_count(void) {
    char line[128];
    snprintf(line, sizeof line, "tail -n 1 %s/machine-*.txt", dir);
    return atoi(shell(line));
}

static void a_busy_machines_figures_are_bettered_later(void **state) {
    (void)state;
    static const struct {
        const char *gbs;
        int count, hours, after;
    } cases[] = {
        {"0.1", 1, 0, 1},    /* not yet */
        {"0.1", 1, 2, 2},    /* bettered */
        {"99999", 2, 50, 3}, /* nothing better was found */
        {"0.1", 4, 5000, 4}, /* often enough */
    };
    probed("cpu", dir);
    assert_int_equal(note_count(), 1);
    for (int i = 0; i < 4; i++) {
        edit_note(cases[i].gbs, cases[i].count, cases[i].hours);
        double gbs = probed("cpu", dir).dram_gbs;
        if (i == 1)
            assert_true(gbs > 0.1);
        else
            assert_true(gbs == atof(cases[i].gbs));
        assert_int_equal(note_count(), cases[i].after);
    }
}

static void a_note_that_cannot_be_renewed_is_used(void **state) {
    (void)state;
    Device d;
    Err e = {0};
    probed("cpu", dir);
    edit_note("0.1", 1, 2);
    assert_int_equal(probe_readonly("cpu", dir, &d, &e), 0);
    assert_true(d.dram_gbs == 0.1);
    assert_int_equal(note_count(), 1);
}

static void a_bad_note_is_measured_again(void **state) {
    (void)state;
    const char *bad[] = {"junk", "", "arch=avx2 dram_gbs=-4 name=x",
                         "arch=portable cores=1 clock_ghz=9999"};
    Device first = probed("cpu", dir);
    for (int i = 0; i < 4; i++) {
        char line[256];
        snprintf(line, sizeof line,
                 "for f in %s/machine-*; do echo '%s' > "
                 "$f; done",
                 dir, bad[i]);
        shell(line);
        Device d = probed("cpu", dir);
        assert_true(d.dram_gbs > 0.1 && d.dram_gbs < 10000);
        assert_string_equal(d.name, first.name);
        char *note = note_text();
        assert_non_null(strstr(note, first.name));
        free(note);
    }
}

static void readonly_and_no_directory_write_nothing(void **state) {
    (void)state;
    Device d;
    Err e = {0};
    char line[64];
    assert_int_equal(probe_readonly("cpu", dir, &d, &e), 0);
    assert_int_equal(probe_target("cpu", NULL, &d, &e), 0);
    assert_int_equal(probe_target("cpu", "/nowhere", &d, &e), 0);
    assert_true(d.dram_gbs > 0);
    snprintf(line, sizeof line, "ls -A %s", dir);
    assert_string_equal(shell(line), "");
}

static void affinity_decides_the_cores(void **state) {
    (void)state;
    cpu_set_t old, one;
    assert_int_equal(sched_getaffinity(0, sizeof old, &old), 0);
    assert_int_equal(probe_cpus(), CPU_COUNT(&old));
    int last = CPU_SETSIZE - 1;
    while (!CPU_ISSET(last, &old))
        last--;
    CPU_ZERO(&one);
    CPU_SET(last, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    assert_int_equal(probe_cpus(), 1);
    assert_true(probed("cpu", dir).cores == 1);
    sched_setaffinity(0, sizeof old, &old);
}

static void targets_are_found_by_name(void **state) {
    (void)state;
    assert_int_equal(probed("auto", dir).kind, DEVICE_CPU);
    assert_string_equal(probed("neon", dir).arch, "neon");
    assert_string_equal(probed("H200", dir).arch, "sm_90a");
    assert_true(probed("cpu@cores=3,dram_gbs=50", dir).cores == 3);
    assert_true(probed("avx2@sram_bytes=262144", dir).sram_bytes == 262144);
}

static void wrong_targets_are_refused_with_a_reason(void **state) {
    (void)state;
    const struct {
        const char *target, *text;
    } cases[] = {
        {"", "accepted: auto, cpu"},      {"@cores=2", "accepted: auto, cpu"},
        {"emu:avx2", "nearest: emu"},     {"avx3", "nearest: avx2"},
        {"cpu@core=2", "nearest: cores"}, {"cpu@cores=x", "cores"},
        {"cpu@cores=-1", "cores"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Device d;
        Err e = {0};
        assert_int_equal(probe_target(cases[i].target, dir, &d, &e),
                         ATTNC_E_REQUEST);
        if (!strstr(e.text, cases[i].text))
            fail_msg("'%s' does not say '%s'", e.text, cases[i].text);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, enter, leave)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(the_row_is_complete_and_prints),
        TEST(the_instruction_set_is_what_the_kernel_says),
        TEST(measurements_are_kept_and_used_again),
        TEST(a_busy_machines_figures_are_bettered_later),
        TEST(a_note_that_cannot_be_renewed_is_used),
        TEST(a_bad_note_is_measured_again),
        TEST(readonly_and_no_directory_write_nothing),
        TEST(affinity_decides_the_cores),
        TEST(targets_are_found_by_name),
        TEST(wrong_targets_are_refused_with_a_reason),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
