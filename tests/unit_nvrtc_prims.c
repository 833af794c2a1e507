/* SPDX-License-Identifier: Apache-2.0
 * The real primitives: the very text that runs on the emulated device is
 * compiled by NVRTC for every chip, and keeps its fragments in registers. */
#include "emu/kernel.h"
#include "emu/nvrtc.h"

static const struct {
    const char *arch;
    int number;
} chips[] = {{"sm_75", 750},  {"sm_80", 800},   {"sm_86", 860},  {"sm_89", 890},
             {"sm_90a", 900}, {"sm_100", 1000}, {"sm_120", 1200}};
enum { CHIPS = sizeof chips / sizeof *chips };

static void the_subject_compiles_for_every_chip_without_spills(void **state) {
    (void)state;
    for (int i = 0; i < CHIPS; i++) {
        Str text = kernel_text("attn_fwd.cu.h", chips[i].number, "", true);
        Compiled c = compile_cuda(text, "attn_fwd.cu", chips[i].arch);
        str_free(&text);
        if (!c.known) {
            print_message("%-7s skipped: unknown to this NVRTC\n",
                          chips[i].arch);
            continue;
        }
        print_message("%-7s %3d registers, %3zu KB of code\n", chips[i].arch,
                      c.registers, c.cubin_bytes / 1024);
        assert_int_equal(c.spill_bytes, 0);
        assert_int_equal(c.stack_bytes, 0);
        assert_true(c.registers > 0 && c.registers <= 255);
        assert_true(c.cubin_bytes > 0);
    }
}

static void every_primitive_assembles(void **state) {
    (void)state;
    for (int i = 0; i < CHIPS; i++) {
        Str text = kernel_text("all_prims.cu.h", chips[i].number, "", true);
        Compiled c = compile_cuda(text, "all_prims.cu", chips[i].arch);
        str_free(&text);
        assert_true(!c.known || c.cubin_bytes > 0);
    }
}

/* The kernels that golden vectors are recorded with. */
static void every_vector_assembles(void **state) {
    (void)state;
    for (int i = 0; i < CHIPS; i += CHIPS / 2) {
        Str text = kernel_text("vectors.cu.h", chips[i].number, "", true);
        Compiled c = compile_cuda(text, "vectors.cu", chips[i].arch);
        str_free(&text);
        assert_true(!c.known || c.cubin_bytes > 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_subject_compiles_for_every_chip_without_spills),
        cmocka_unit_test(every_primitive_assembles),
        cmocka_unit_test(every_vector_assembles),
    };
    NvrtcInfo info;
    Str looked = {0};
    bool found = nvrtc_find(NULL, &info, &looked);
    if (!found)
        print_message("skipped: no NVRTC in %s\n", looked.text);
    str_free(&looked);
    if (!found)
        return SKIPPED;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
