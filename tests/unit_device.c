/* SPDX-License-Identifier: Apache-2.0
 * Devices: the table, finding a row, changing figures, text. */
#include <locale.h>
#include <math.h>

#include "gen_util.h"

static void every_row_has_a_source_and_sane_figures(void **state) {
    (void)state;
    assert_true(device_count() >= 15);
    for (int i = 0; i < device_count(); i++) {
        const Device *d = device_at(i);
        assert_true(strlen(device_source(i)) > 10);
        assert_true(d->cores >= 1 && d->clock_ghz > 0.5 && d->clock_ghz < 6);
        assert_true(d->sram_bytes >= 64 * 1024);
        assert_true(d->llc_bytes > d->sram_bytes);
        assert_true(d->llc_gbs > d->dram_gbs && d->dram_gbs > 0);
        assert_int_equal(d->kind == DEVICE_CUDA, !strncmp(d->arch, "sm_", 3));
    }
}

static void peaks_follow_from_cores_and_clock(void **state) {
    (void)state;
    for (int i = 0; i < device_count(); i++) {
        const Device *d = device_at(i);
        double lanes = d->kind == DEVICE_CPU
                           ? d->fma_per_cycle * d->vector_bytes / 4
                           : 128; /* GPUs: FMA units of an SM, or 64 */
        double tflops = d->cores * d->clock_ghz * lanes * 2 / 1000;
        double ratio = d->f32_tflops / tflops;
        assert_true(fabs(ratio - 1) < 0.1 || fabs(ratio - 0.5) < 0.05);
    }
}

static void shared_memory_is_what_a_block_may_opt_in_to(void **state) {
    (void)state;
    static const struct {
        const char *arch;
        double kb;
    } rows[] = {{"sm_75", 64},   {"sm_80", 163},  {"sm_86", 99}, {"sm_89", 99},
                {"sm_90a", 227}, {"sm_100", 227}, {"sm_120", 99}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_true(device(rows[i].arch).sram_bytes == rows[i].kb * 1024);
}

static void names_are_found_however_they_are_written(void **state) {
    (void)state;
    static const char *const ways[] = {"RTX 4090", "rtx4090", "Rtx-4090",
                                       "RTX_4090"};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        assert_string_equal(device(ways[i]).name, "RTX 4090");
    assert_string_equal(device("h200").arch, "sm_90a");
    assert_string_equal(device("sm_86").arch, "sm_86");
    assert_int_equal(device("avx512bf16").kind, DEVICE_CPU);
}

static void an_unknown_name_is_told_the_nearest(void **state) {
    (void)state;
    Device d;
    Err e = {0};
    assert_int_equal(device_find("sm_90", &d, &e), ERR_REQUEST);
    assert_string_equal(
        e.text, "device: unknown device or arch 'sm_90'; nearest: sm_90a");
    e = (Err){0};
    assert_int_equal(device_find("RTX 4080", &d, &e), ERR_REQUEST);
    assert_non_null(strstr(e.text, "nearest: RTX 4090"));
}

static void figures_can_be_changed(void **state) {
    (void)state;
    Device d = device("avx2"), before = d;
    Err e = {0};
    assert_int_equal(device_override(&d, "sram_bytes=262144,dram_gbs=7.5", &e),
                     0);
    assert_true(d.sram_bytes == 262144 && d.dram_gbs == 7.5);
    assert_true(d.f32_tflops == before.f32_tflops);
    assert_int_equal(device_override(&d, "cores=2", &e), 0);
    assert_true(fabs(d.f32_tflops - before.f32_tflops / 4) < 1e-12);
    assert_int_equal(device_override(&d, "cores=8,f32_tflops=3", &e), 0);
    assert_true(d.f32_tflops == 3);
}

static void a_bad_figure_changes_nothing(void **state) {
    (void)state;
    static const struct {
        const char *pairs, *text;
    } bad[] = {
        {"corse=3", "device: unknown figure 'corse'; nearest: cores"},
        {"cores=0", "device: cores: 0 is out of range; accepted: more than "
                    "0, to 1e15"},
        {"cores=2.5", "device: cores: 2.5 is not a count of 1..65536; "
                      "nearest 3"},
        {"dram_gbs=-1", "device: dram_gbs: -1 is out of range; accepted: "
                        "more than 0, to 1e15"},
        {"dram_gbs=x", "device: dram_gbs: 'x' is not a number of GB/s"},
        {"vector_bytes=64", "device: vector_bytes: avx2 has 32, not 64"},
        {"vector_regs=32", "device: vector_regs: 32 is out of range; "
                           "accepted 4..16 on avx2"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Device d = device("avx2"), before = d;
        Err e = {0};
        assert_int_equal(device_override(&d, bad[i].pairs, &e), ERR_REQUEST);
        assert_string_equal(e.text, bad[i].text);
        assert_memory_equal(&d, &before, sizeof d);
    }
}

static void text_reads_back(void **state) {
    (void)state;
    for (int i = 0; i < device_count(); i++) {
        Device d = *device_at(i), again;
        Err e = {0};
        Str text = {0}, twice = {0};
        d.clock_ghz = 1.0 / 3; /* needs all 17 digits */
        device_print(&d, &text);
        assert_int_equal(device_parse(text.text, &again, &e), 0);
        device_print(&again, &twice);
        assert_string_equal(text.text, twice.text);
        assert_true(again.clock_ghz == d.clock_ghz);
        assert_int_equal(again.kind, d.kind);
        str_free(&text);
        str_free(&twice);
    }
}

static void bad_text_is_refused(void **state) {
    (void)state;
    static const char *const bad[] = {"",
                                      "cores=8",
                                      "arch=mips cores=8",
                                      "arch=avx2",
                                      "arch=sm_80 cores=x",
                                      "name=only a name"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Device d;
        Err e = {0};
        assert_int_equal(device_parse(bad[i], &d, &e), ERR_REQUEST);
    }
}

/* A host program may have set a locale with a decimal comma. */
static void the_locale_does_not_matter(void **state) {
    (void)state;
    static const char *const names[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "de_DE",
                                        "ru_RU.UTF-8"};
    const char *set = NULL;
    for (int i = 0; !set && i < 4; i++)
        set = setlocale(LC_ALL, names[i]);
    if (!set)
        skip(); /* this machine has none */
    text_reads_back(state);
    figures_can_be_changed(state);
    setlocale(LC_ALL, "C");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_has_a_source_and_sane_figures),
        cmocka_unit_test(peaks_follow_from_cores_and_clock),
        cmocka_unit_test(shared_memory_is_what_a_block_may_opt_in_to),
        cmocka_unit_test(names_are_found_however_they_are_written),
        cmocka_unit_test(an_unknown_name_is_told_the_nearest),
        cmocka_unit_test(figures_can_be_changed),
        cmocka_unit_test(a_bad_figure_changes_nothing),
        cmocka_unit_test(text_reads_back),
        cmocka_unit_test(bad_text_is_refused),
        cmocka_unit_test(the_locale_does_not_matter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
