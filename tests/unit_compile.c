/* SPDX-License-Identifier: Apache-2.0
 * Compilers and loading: what comes back, what is left behind, and what a
 * strange host does to them. */
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime.h"

/* ---- helpers ------------------------------------------------------------ */

static char dir[32]; /* TMPDIR of every test, to see that it is left empty */
static char *path_before;

static int enter(void **state) {
    (void)state;
    strcpy(dir, "/tmp/attnc-compile-XXXXXX");
    path_before = strdup(getenv("PATH"));
    return mkdtemp(dir) ? setenv("TMPDIR", dir, 1) : -1;
}

static int leave(void **state) {
    (void)state;
    char command[160];
    snprintf(command, sizeof command, "rm -rf %s %s-*", dir, dir);
    unsetenv("TMPDIR");
    setenv("PATH", path_before, 1);
    free(path_before);
    return system(command);
}

static int entries(const char *path) {
    DIR *d = opendir(path);
    int n = 0;
    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d));)
        n += f->d_name[0] != '.';
    closedir(d);
    return n;
}

static const Template names[] = {{"cpu/a.c.in", "", 0}, {"cpu/b.c.in", "", 0}};
static const Templates templates = {names, 2, "hash"};

/* Line n of the text comes from line 10 n of template b. */
static Source source_of(const char *text) {
    Source s = {0};
    str_add(&s.text, text, strlen(text));
    for (const char *p = text; *p; p++)
        s.nline += *p == '\n';
    s.line = calloc(s.nline + 1, sizeof *s.line);
    for (size_t i = 0; i < s.nline; i++)
        s.line[i] = (uint32_t)(1 << 16 | 10 * (i + 1));
    return s;
}

typedef struct Made {
    Blob binary;
    char version[96];
    Str log;
    Err e;
} Made;

static int make(const char *list, const char *arch, const char *text,
                Made *out) {
    Compiler c;
    Source s = source_of(text);
    *out = (Made){0};
    assert_true(compiler_find(list, &c));
    const CompileJob job = {&c, arch, NULL, &s, &templates};
    int rc = compile_cpu(&job, &out->binary, out->version, &out->log, &out->e);
    source_free(&s);
    assert_int_equal(entries(dir), 0);
    return rc;
}

static void unmake(Made *m) {
    free(m->binary.data);
    str_free(&m->log);
}

static const char seven[] = "int seven(void) {\n    return 7;\n}\n";

/* Loads a module that defines f and calls it. */
static int call(const Blob *b, const char *f) {
    Err e = {0};
    void *handle = load_object(b, &e);
    assert_string_equal(e.text, "");
    int (*function)(void);
    *(void **)&function = dlsym(handle, f);
    assert_non_null(function);
    int got = function();
    dlclose(handle);
    return got;
}

static void compile_and_call(const char *list, const char *version) {
    Made m;
    if (make(list, "portable", seven, &m))
        fail_msg("%s\n%s", m.e.text, m.log.text ? m.log.text : "");
    assert_int_equal(strncmp(m.version, version, strlen(version)), 0);
    assert_true(strpbrk(m.version, "123456789") != NULL);
    assert_int_equal(call(&m.binary, "seven"), 7);
    unmake(&m);
}

/* Each unit alone is not enough. */
static void units_meet_in_one_module(void **state) {
    (void)state;
    static const char text[] = "/* two */\n#define UNITS 2\n"
                               "int half(void);\n"
                               "#if UNIT == 1\n"
                               "int half(void) { return 21; }\n"
                               "#elif UNIT == 2\n"
                               "int whole(void) { return 2 * half(); }\n"
                               "#else\n"
                               "int half(void) { return 21; }\n"
                               "int whole(void) { return 2 * half(); }\n"
                               "#endif\n";
    Made m;
    assert_int_equal(make(NULL, "portable", text, &m), 0);
    assert_int_equal(call(&m.binary, "whole"), 42);
    unmake(&m);
}

/* The second unit's fault is told, at its line. */
static void a_unit_that_fails_is_told(void **state) {
    (void)state;
    static const char text[] = "/* two */\n#define UNITS 2\n"
                               "#if UNIT == 2\n"
                               "int whole(void) { return nothing; }\n"
                               "#endif\nint f;\n";
    Made m;
    if (probe_cpus() < 2)
        skip();
    assert_int_equal(make(NULL, "portable", text, &m), ATTNC_E_COMPILE);
    assert_non_null(strstr(m.e.text, "cpu/b.c.in:40: "));
    unmake(&m);
}

static bool have(const char *name) {
    char path[512];
    return program_find(name, path);
}

/* A program in `dir` that runs `script` as a shell. */
static const char *fake(const char *name, const char *script) {
    static char path[128];
    snprintf(path, sizeof path, "%s-%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "#!/bin/sh\n%s\n", script);
    fclose(f);
    assert_int_equal(chmod(path, 0755), 0);
    return path;
}

/* ---- compilers ---------------------------------------------------------- */

static void clang_and_gcc_make_code_that_runs(void **state) {
    (void)state;
    if (!have("clang") && !have("gcc"))
        skip();
    if (have("clang"))
        compile_and_call("clang", "clang ");
    if (have("gcc"))
        compile_and_call("gcc", "gcc ");
    compile_and_call(NULL, have("clang") ? "clang " : "gcc ");
}

static void without_ld_the_compiler_links(void **state) {
    (void)state;
    if (!have("gcc"))
        skip();
    const char *path = fake("gcc", "PATH=/usr/bin:/bin exec gcc \"$@\"");
    setenv("PATH", "/nowhere", 1);
    compile_and_call(path, "gcc ");
}

static void the_list_decides_which_compiler(void **state) {
    (void)state;
    Compiler c;
    assert_false(compiler_find("", &c));
    assert_false(compiler_find("no-such-compiler", &c));
    assert_false(compiler_find("/etc/passwd", &c));
    const char *path = fake("my-clang", "exit 0");
    char list[256];
    snprintf(list, sizeof list, "no-such:%s:gcc", path);
    assert_true(compiler_find(list, &c));
    assert_string_equal(c.path, path);
    assert_true(c.clang);
}

static void newer_clang_goes_first(void **state) {
    (void)state;
    Compiler c;
    char bin[64], name[128];
    const char *names_[] = {"clang", "clang-14", "clang-19", "gcc"};
    snprintf(bin, sizeof bin, "%s-bin", dir);
    mkdir(bin, 0700);
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "%s/%s", bin, names_[i]);
        assert_int_equal(symlink("/bin/true", name), 0);
    }
    setenv("PATH", bin, 1);
    const char *order[] = {"clang-19", "clang-14", "clang", "gcc"};
    for (int i = 0; i < 4; i++) {
        assert_true(compiler_find(NULL, &c));
        assert_string_equal(strrchr(c.path, '/') + 1, order[i]);
        unlink(c.path);
    }
    assert_false(compiler_find(NULL, &c));
}

static void the_working_directory_is_no_place_for_programs(void **state) {
    (void)state;
    char path[512];
    assert_int_equal(chdir("/bin"), 0);
    setenv("PATH", ":.::", 1);
    assert_false(program_find("sh", path));
    assert_int_equal(chdir("/"), 0);
}

static void an_error_points_into_the_template(void **state) {
    (void)state;
    const char *compilers[] = {"clang", "gcc"};
    for (int i = 0; i < 2; i++) {
        Made m;
        if (!have(compilers[i]))
            continue;
        assert_int_equal(
            make(compilers[i], "portable", "int a;\nint b = nothing;\n", &m),
            ATTNC_E_COMPILE);
        if (!strstr(m.e.text, "compile: cpu/b.c.in:20: "))
            fail_msg("%s", m.e.text);
        assert_non_null(strstr(m.e.text, "nothing"));
        assert_non_null(strstr(m.log.text, "error:"));
        unmake(&m);
    }
}

/* A compiler that fails in a way of its own. */
static void fails(const char *script, const char *says) {
    Made m;
    assert_int_equal(make(fake("cc", script), "portable", seven, &m),
                     ATTNC_E_COMPILE);
    if (!strstr(m.e.text, says) || strchr(m.e.text, '\n'))
        fail_msg("'%s' does not say '%s'", m.e.text, says);
    unmake(&m);
}

static void a_compiler_that_fails_is_reported(void **state) {
    (void)state;
    fails("echo out of luck >&2; exit 3", "out of luck");
    fails("kill -9 $$", "killed by signal 9; was memory short?");
    fails("kill -11 $$", "killed by signal 11");
    fails("exit 0", "failed"); /* success without an object */
    fails("yes error: many lines | head -c 900000; exit 1", "many lines");
}

static void each_cpu_arch_compiles(void **state) {
    (void)state;
    const char *archs[] = {"avx2", "avx512", "avx512bf16", "neon"};
    if (!have("clang"))
        skip();
    for (int i = 0; i < 4; i++) {
        Made m;
        if (make("clang", archs[i], seven, &m))
            fail_msg("%s: %s", archs[i], m.e.text);
        unmake(&m);
    }
}

static void gcc_says_that_it_does_not_cross_compile(void **state) {
    (void)state;
#if defined(__aarch64__)
    const char *other = "avx2";
#else
    const char *other = "neon";
#endif
    Made m;
    if (!have("gcc"))
        skip();
    assert_int_equal(make("gcc", other, seven, &m), ATTNC_E_MISSING);
    assert_non_null(strstr(m.e.text, "clang can"));
    unmake(&m);
}

static void products_and_sums_become_one_fma(void **state) {
    (void)state;
    static const char text[] =
        "typedef float v8 __attribute__((vector_size(32)));\n"
        "static inline v8 times(v8 a, v8 b) { return a * b; }\n"
        "void f(v8 *a) { a[3] = times(a[0], a[1]) + a[2]; }\n";
    Made m;
    if (!have("clang") || !probe_runs("avx2"))
        skip();
    assert_int_equal(make("clang", "avx2", text, &m), 0);
    Err e = {0};
    void *handle = load_object(&m.binary, &e);
    void (*f)(float *);
    *(void **)&f = dlsym(handle, "f");
    /* (1 + 2^-12)^2 - (1 + 2^-11) = 2^-24, lost when the product rounds. */
    _Alignas(32) float a[32];
    for (int i = 0; i < 8; i++) {
        a[i] = a[8 + i] = 1 + 0x1p-12f;
        a[16 + i] = -(1 + 0x1p-11f);
    }
    f(a);
    for (int i = 0; i < 8; i++)
        assert_true(a[24 + i] == 0x1p-24f);
    dlclose(handle);
    unmake(&m);
}

static void the_environment_does_not_steer_the_compiler(void **state) {
    (void)state;
    if (!have("clang"))
        skip();
    setenv("CCC_OVERRIDE_OPTIONS", "+-Dseven=eight", 1);
    setenv("CPATH", "/nowhere", 1);
    compile_and_call("clang", "clang ");
    unsetenv("CCC_OVERRIDE_OPTIONS");
    unsetenv("CPATH");
}

static void the_version_can_be_asked_for(void **state) {
    (void)state;
    Compiler c;
    char version[96] = "";
    Err e = {0};
    if (!compiler_find(NULL, &c))
        skip();
    assert_int_equal(compiler_version(&c, version, &e), 0);
    assert_true(strpbrk(version, "123456789") != NULL);
    assert_null(strchr(version, '\n'));
}

static void litter_of_killed_processes_goes_after_an_hour(void **state) {
    (void)state;
    const char *made[] = {"attnc-cc-a1b2c3", "attnc-cc-newone",
                          "attnc-cc-tooshort"};
    char path[128], file[160];
    Compiler c;
    if (!compiler_find(NULL, &c))
        skip();
    for (int i = 0; i < 3; i++) {
        struct timespec old[2] = {{1000, 0}, {1000, 0}};
        snprintf(path, sizeof path, "%s/%s", dir, made[i]);
        snprintf(file, sizeof file, "%s/kernel.c", path);
        assert_int_equal(mkdir(path, 0700), 0);
        close(open(file, O_CREAT | O_WRONLY, 0600));
        if (i != 1)
            utimensat(AT_FDCWD, path, old, 0);
    }
    Source s = source_of(seven);
    const CompileJob job = {&c, "portable", NULL, &s, &templates};
    Made m = {0};
    assert_int_equal(compile_cpu(&job, &m.binary, m.version, &m.log, &m.e), 0);
    source_free(&s);
    unmake(&m);
    assert_int_equal(entries(dir), 2);
}

static void another_place_serves_when_tmpdir_is_no_good(void **state) {
    (void)state;
    if (!have("clang"))
        skip();
    setenv("TMPDIR", "/nowhere", 1);
    compile_and_call("clang", "clang ");
    setenv("TMPDIR", "relative", 1);
    compile_and_call("clang", "clang ");
}

static void a_host_that_ignores_its_children_does_not_matter(void **state) {
    (void)state;
    Made m;
    if (!have("clang"))
        skip();
    signal(SIGCHLD, SIG_IGN);
    compile_and_call("clang", "clang ");
    assert_int_equal(make("clang", "portable", "int x = y;\n", &m),
                     ATTNC_E_COMPILE);
    signal(SIGCHLD, SIG_DFL);
    assert_non_null(strstr(m.e.text, "cpu/b.c.in:10"));
    unmake(&m);
}

/* ---- loading ------------------------------------------------------------ */

static void modules_of_the_same_symbol_stay_apart(void **state) {
    (void)state;
    Made m[3];
    void *handle[3];
    if (!have("clang"))
        skip();
    for (int i = 0; i < 3; i++) {
        char text[64];
        Err e = {0};
        snprintf(text, sizeof text, "int f(void) {\n    return %d;\n}\n", i);
        assert_int_equal(make("clang", "portable", text, &m[i]), 0);
        handle[i] = load_object(&m[i].binary, &e);
        assert_non_null(handle[i]);
    }
    for (int i = 0; i < 3; i++) {
        int (*f)(void);
        *(void **)&f = dlsym(handle[i], "f");
        assert_int_equal(f(), i);
        dlclose(handle[i]);
        unmake(&m[i]);
    }
}

static void loading_keeps_no_file_open(void **state) {
    (void)state;
    Made m;
    if (!have("clang"))
        skip();
    assert_int_equal(make("clang", "portable", seven, &m), 0);
    int before = entries("/proc/self/fd");
    for (int i = 0; i < 50; i++)
        assert_int_equal(call(&m.binary, "seven"), 7);
    assert_int_equal(entries("/proc/self/fd"), before);
    unmake(&m);
}

static void bytes_that_are_no_object_are_refused(void **state) {
    (void)state;
    char junk[4096] = "\177ELF junk";
    Blob b = {junk, sizeof junk};
    Err e = {0};
    assert_null(load_object(&b, &e));
    assert_int_equal(e.code, ATTNC_E_IO);
    assert_int_equal(entries(dir), 0);
    b.len = 0;
    e = (Err){0};
    assert_null(load_object(&b, &e));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, enter, leave)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(units_meet_in_one_module),
        TEST(a_unit_that_fails_is_told),
        TEST(clang_and_gcc_make_code_that_runs),
        TEST(without_ld_the_compiler_links),
        TEST(the_list_decides_which_compiler),
        TEST(newer_clang_goes_first),
        TEST(the_working_directory_is_no_place_for_programs),
        TEST(an_error_points_into_the_template),
        TEST(a_compiler_that_fails_is_reported),
        TEST(each_cpu_arch_compiles),
        TEST(gcc_says_that_it_does_not_cross_compile),
        TEST(products_and_sums_become_one_fma),
        TEST(the_environment_does_not_steer_the_compiler),
        TEST(the_version_can_be_asked_for),
        TEST(litter_of_killed_processes_goes_after_an_hour),
        TEST(another_place_serves_when_tmpdir_is_no_good),
        TEST(a_host_that_ignores_its_children_does_not_matter),
        TEST(modules_of_the_same_symbol_stay_apart),
        TEST(loading_keeps_no_file_open),
        TEST(bytes_that_are_no_object_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
