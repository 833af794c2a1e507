/* SPDX-License-Identifier: Apache-2.0
 * Tiles whose kernels spill give way to the next ones, which are compiled side
 * by side: the same tile comes out as one after the other. The kernels are the
 * test's own. Skipped without NVRTC. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "crowd.h"
#include "runtime.h"

/* What it does is said by rule.first for one tile, by rule.rest for others. */
static const char module_text[] =
    "$ local t = steps[1].tile.text\n"
    "$ local does = t == rule.tile and rule.first or rule.rest\n"
    "extern \"C\" __global__ void __launch_bounds__(1024, 1)\n"
    "${steps[1].entry}(const float *in, float *out) {\n"
    "$ if does == 'fail' then\n"
    "    out[0] = nobody;\n"
    "$ elseif does == 'spill' then\n" CROWD_BODY "$ else\n"
    "    out[threadIdx.x] = in[threadIdx.x];\n"
    "$ end\n"
    "}\n";

static char dir[] = "/tmp/attnc-tries-XXXXXX";

static void write_file(const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/cuda/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0 && fclose(f) == 0);
}

/* t may be NULL: no tile is the first. */
static void set_rule(const Tile *t, const char *first, const char *rest) {
    Str text = {0};
    str_addf(&text, "rule = { tile = '");
    if (t)
        tile_print(t, &text);
    str_addf(&text, "', first = '%s', rest = '%s' }\n", first, rest);
    write_file("lib.lua", text.text);
    write_file("module.cu.in", module_text);
    str_free(&text);
}

static int make_dir(void **state) {
    char sub[300];
    (void)state;
    if (!mkdtemp(dir))
        return 1;
    snprintf(sub, sizeof sub, "%s/cuda", dir);
    return mkdir(sub, 0700);
}

static int remove_dir(void **state) {
    char command[300];
    (void)state;
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

/* ---- one prepare -------------------------------------------------------- */

static int warnings;

static void count_warnings(void *user, int level, const char *line) {
    (void)user;
    warnings += level == ATTNC_LOG_WARNING && strstr(line, "will be slow");
}

/* The status, and the tile that was taken. */
static int prepare(int threads, const char *pin, int cached, Tile *out) {
    attnc_options o = ATTNC_OPTIONS_INIT;
    attnc_prepare_options how = {sizeof how, pin};
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    attnc_context *c = NULL;
    attnc_plan *p = NULL;
    o.target = "sm_80";
    o.templates_dir = dir;
    o.cache_dir = cached ? dir : "";
    o.threads = threads;
    o.log = count_warnings;
    s.dtype = ATTNC_F16;
    h.batch = 8;
    warnings = 0;
    assert_int_equal(attnc_context_create(&o, &c), 0);
    int rc = attnc_prepare_with(c, &s, &h, &how, &p);
    if (!rc)
        *out = p->plan.step[0].tile;
    attnc_plan_release(p);
    attnc_context_destroy(c);
    return rc;
}

static Tile first_pick(void) {
    Tile t = {0};
    set_rule(NULL, "", "");
    assert_int_equal(prepare(1, NULL, 0, &t), 0);
    return t;
}

/* ---- what has to hold --------------------------------------------------- */

static void threads_do_not_change_the_choice(void **state) {
    Tile first = first_pick(), one, many, again;
    (void)state;
    set_rule(&first, "spill", "");
    assert_int_equal(prepare(1, NULL, 0, &one), 0);
    assert_int_equal(prepare(5, NULL, 0, &many), 0);
    assert_memory_not_equal(&one, &first, sizeof one);
    assert_memory_equal(&one, &many, sizeof one);
    assert_int_equal(warnings, 0);
    /* What spilled is known to the next process. */
    for (int i = 0; i < 2; i++) {
        assert_int_equal(prepare(3, NULL, 1, &again), 0);
        assert_memory_equal(&one, &again, sizeof one);
    }
}

static void when_all_spill_the_first_is_taken(void **state) {
    Tile first = first_pick(), kept;
    (void)state;
    set_rule(NULL, "", "spill");
    for (int threads = 1; threads <= 4; threads += 3) {
        assert_int_equal(prepare(threads, NULL, 0, &kept), 0);
        assert_int_equal(warnings, 1);
        assert_memory_equal(&first, &kept, sizeof first);
    }
}

static void a_pinned_tile_stays(void **state) {
    Tile t;
    (void)state;
    set_rule(NULL, "", "spill");
    assert_int_equal(prepare(4, "block_k=32,rows=16", 0, &t), 0);
    assert_int_equal(t.v[T_mma_fwd_block_k], 32);
    assert_int_equal(warnings, 1);
}

static void a_try_that_fails_is_told(void **state) {
    Tile first = first_pick(), t;
    (void)state;
    set_rule(&first, "spill", "fail");
    assert_int_equal(prepare(4, NULL, 0, &t), ATTNC_E_COMPILE);
    assert_non_null(strstr(attnc_last_error()->text, "cuda/module.cu.in:6: "
                                                     "identifier \"nobody\""));
    assert_non_null(strstr(attnc_last_error()->log, "nobody"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_do_not_change_the_choice),
        cmocka_unit_test(when_all_spill_the_first_is_taken),
        cmocka_unit_test(a_pinned_tile_stays),
        cmocka_unit_test(a_try_that_fails_is_told),
    };
    NvrtcInfo info;
    Str looked = {0};
    bool found = nvrtc_find(getenv("ATTNC_CUDA_DIRS"), &info, &looked);
    str_free(&looked);
    if (!found) {
        printf("skipped: no NVRTC\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
