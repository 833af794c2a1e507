/* SPDX-License-Identifier: Apache-2.0
 * The emulated primitives against what a GPU did for the same inputs:
 * tests/emu/vectors.json, which ./run gpu records. */
#include "emu/vectors.h"

#include <unistd.h>

static int check_file(const json_t *file, bool tell) {
    const char *arch = json_string_value(json_object_get(file, "arch"));
    int number = arch ? atoi(arch + strlen("sm_")) * 10 : 0, bad = 0;
    Loaded k = kernel_load(VECTORS_TEXT, number, "", "v_shared");
    for (int i = 0; i < VECTORS; i++)
        for (int n = 0; n < CASES && vectors[i].arch <= number; n++)
            bad += vector_compare(&vectors[i], &k, n, file, tell) != 0;
    kernel_unload(&k);
    return bad;
}

static void recorded_vectors_are_repeated(void **state) {
    (void)state;
    const char *source = getenv("SOURCE");
    char path[512];
    snprintf(path, sizeof path, "%s/%s", source ? source : ".", VECTORS_FILE);
    json_t *file = json_load_file(path, 0, NULL);
    if (!file) {
        print_message("skipped: no vectors recorded yet (./run gpu writes "
                      "them)\n");
        skip();
    }
    print_message("recorded on %s by %s\n",
                  json_string_value(json_object_get(file, "chip")),
                  json_string_value(json_object_get(file, "by")));
    int bad = check_file(file, true);
    json_decref(file);
    assert_int_equal(bad, 0);
}

/* The recorder's own file, and what an error in it looks like. */
static void a_record_is_what_is_repeated(void **state) {
    (void)state;
    const char *build = getenv("BUILD");
    char path[] = "/tmp/attnc-vectors-XXXXXX", command[700];
    static const char *const archs[] = {"sm_75", "sm_80", "sm_120"};
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    for (int i = 0; i < 3; i++) {
        snprintf(command, sizeof command, "%s/tests/record_vectors emu:%s %s",
                 build ? build : ".", archs[i], path);
        assert_int_equal(system(command), 0);
        json_t *file = json_load_file(path, 0, NULL);
        assert_non_null(file);
        assert_int_equal(check_file(file, true), 0);
        json_t *all = json_object_get(json_object_get(file, "vectors"),
                                      "ldmatrix_x4 BITS");
        const char *text = json_string_value(json_array_get(all, 2));
        char *changed = strdup(text);
        changed[17] = changed[17] == '0' ? '1' : '0';
        json_array_set_new(all, 2, json_string(changed));
        assert_int_equal(check_file(file, false), 1);
        free(changed);
        json_decref(file);
    }
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_record_is_what_is_repeated),
        cmocka_unit_test(recorded_vectors_are_repeated),
    };
    Compiler clang;
    if (!have_clang(&clang)) {
        print_message("skipped: no clang to compile kernels for the emulated "
                      "device\n");
        return SKIPPED;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
