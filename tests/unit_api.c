/* SPDX-License-Identifier: Apache-2.0
 * attnc_prepare: where kernels come from, who waits for whom, what fails. */
#include "api_util.h"

/* ---- where kernels come from -------------------------------------------- */

static void a_kernel_is_compiled_once_then_found(void **state) {
    (void)state;
    write_compiler(NULL);
    attnc_options op = options();
    op.compilers = compiler;
    attnc_context *c = context(&op);
    prepare_says(c, "miss");
    prepare_says(c, "memory");
    attnc_context_destroy(c);
    assert_int_equal(compiled(), 1);
    op.no_compile = 1;
    c = context(&op);
    const char *from;
    attnc_plan *p = prepared(c, &from);
    assert_string_equal(from, "disk");
    prepare_says(c, "memory");
    assert_int_equal(launch(p, arguments()), 0);
    result_is_right();
    drop(p, c);
    assert_int_equal(compiled(), 1);
}

static void equal_requests_give_the_same_plan(void **state) {
    (void)state;
    attnc_options op = options();
    attnc_context *c = context(&op);
    attnc_spec s = causal(), t = s;
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    attnc_plan *one, *two, *three;
    t.head_dim_v = DIM; /* what 0 means */
    assert_int_equal(attnc_prepare(c, &s, NULL, &one), 0);
    assert_int_equal(attnc_prepare(c, &t, &h, &two), 0);
    assert_ptr_equal(one, two);
    h.seqlen_k = 1000; /* other hints, same code: no compiling */
    assert_int_equal(attnc_prepare(c, &s, &h, &three), 0);
    assert_ptr_not_equal(one, three);
    assert_ptr_equal(one->module, three->module);
    attnc_plan_release(one);
    attnc_plan_release(two);
    attnc_plan_release(three);
    attnc_context_destroy(c);
}

static void pins_make_another_plan(void **state) {
    (void)state;
    attnc_context *c = builtin();
    attnc_spec s = causal();
    attnc_plan *p;
    attnc_prepare_options pins = {sizeof pins, "block_q=7,block_k=5"};
    assert_int_not_equal(attnc_prepare_with(c, &s, NULL, &pins, &p), 0);
    assert_null(p);
    assert_int_equal(attnc_last_error()->status, ATTNC_E_REQUEST);
    char *text = malloc(1000);
    memset(text, 'x', 999);
    text[999] = 0;
    pins.tile = text;
    failed(attnc_prepare_with(c, &s, NULL, &pins, &p), ATTNC_E_REQUEST,
           "999 characters");
    free(text);
    attnc_context_destroy(c);
}

static void a_miss_without_compiling_is_an_error(void **state) {
    (void)state;
    attnc_options op = options();
    op.no_compile = 1;
    attnc_context *c = context(&op);
    attnc_spec s = causal();
    attnc_plan *p;
    failed(attnc_prepare(c, &s, NULL, &p), ATTNC_E_NOT_CACHED, "compiling");
    assert_true(*attnc_last_error()->hint);
    attnc_context_destroy(c);
}

typedef struct Log {
    int lines;
    char last[512];
} Log;

static void take_line(void *user, int level, const char *line) {
    Log *log = user;
    (void)level;
    log->lines++;
    snprintf(log->last, sizeof log->last, "%s", line);
}

static void without_a_compiler_the_builtin_serves_and_says_so(void **state) {
    (void)state;
    const char *lists[] = {"", "no-such-compiler"};
    for (int i = 0; i < 2; i++) {
        attnc_options op = options();
        Log log = {0};
        op.compilers = lists[i];
        op.log = take_line;
        op.log_user = &log;
        attnc_context *c = context(&op);
        attnc_plan_info info = {.struct_size = sizeof info};
        const char *from;
        attnc_plan *p = prepared(c, &from);
        assert_int_equal(attnc_plan_get_info(p, &info), 0);
        assert_string_equal(info.compiler, "builtin");
        assert_non_null(strstr(info.text, "builtin"));
        run_is_right(c);
        assert_int_equal(log.lines, 1);
        assert_non_null(strstr(log.last, "built-in"));
        drop(p, c);
    }
}

/* Puts junk in the place of an entry's binary. */
static void spoil(void *user, const CacheItem *item) {
    CacheKey key;
    CacheEntry bad = *item->entry;
    for (int i = 0; i < 32; i++)
        assert_int_equal(sscanf(item->name + 2 * i, "%2hhx", &key.sha256[i]),
                         1);
    bad.binary = (Blob){"junk", 4};
    cache_put(user, &key, &bad);
}

static void a_damaged_kernel_in_the_cache_is_made_again(void **state) {
    (void)state;
    Log log = {0};
    Err e = {0};
    attnc_options op = options();
    op.log = take_line;
    op.log_user = &log;
    attnc_context *c = context(&op);
    prepare_says(c, "miss");
    cache_each(c->cache, spoil, c->cache, &e);
    attnc_context_destroy(c);
    log.lines = 0;
    c = context(&op);
    prepare_says(c, "miss");
    assert_int_equal(log.lines, 1);
    assert_non_null(strstr(log.last, "not used"));
    attnc_context_destroy(c);
    c = context(&op);
    prepare_says(c, "disk");
    attnc_context_destroy(c);
}

/* ---- failures ----------------------------------------------------------- */

static void a_failing_compiler_is_told_and_forgotten(void **state) {
    (void)state;
    write_compiler("echo 'k.c: error: no luck' >&2; exit 1");
    attnc_options op = options();
    op.compilers = compiler;
    attnc_context *c = context(&op);
    attnc_spec s = causal();
    attnc_plan *p;
    for (int i = 0; i < 2; i++) {
        failed(attnc_prepare(c, &s, NULL, &p), ATTNC_E_COMPILE, "no luck");
        assert_string_equal(attnc_last_error()->stage, "compile");
        assert_non_null(strstr(attnc_last_error()->log, "k.c: error: no luck"));
        assert_null(p);
        assert_int_equal(compiled(), i + 1);
    }
    write_compiler(NULL); /* repaired */
    prepare_says(c, "miss");
    attnc_context_destroy(c);
}

static void *see_own_error(void *arg) {
    (void)arg;
    int none = attnc_last_error()->status;
    attnc_context_create(NULL, NULL);
    return (void *)(intptr_t)(none == 0 &&
                              attnc_last_error()->status == ATTNC_E_REQUEST);
}

static void errors_belong_to_their_thread(void **state) {
    (void)state;
    pthread_t t;
    void *good;
    attnc_options op = options();
    op.no_compile = 1;
    attnc_context *c = context(&op);
    attnc_spec s = causal();
    attnc_plan *p;
    failed(attnc_prepare(c, &s, NULL, &p), ATTNC_E_NOT_CACHED, "cache");
    assert_int_equal(pthread_create(&t, NULL, see_own_error, NULL), 0);
    pthread_join(t, &good);
    assert_true((intptr_t)good);
    assert_int_equal(attnc_last_error()->status, ATTNC_E_NOT_CACHED);
    attnc_context_destroy(c);
}

static void null_pointers_are_refused(void **state) {
    (void)state;
    attnc_context *c = builtin();
    attnc_spec s = causal();
    attnc_args a = arguments();
    attnc_plan *p;
    size_t bytes;
    failed(attnc_context_create(NULL, NULL), ATTNC_E_REQUEST, "NULL");
    failed(attnc_prepare(NULL, &s, NULL, &p), ATTNC_E_REQUEST, "ctx");
    failed(attnc_prepare(c, NULL, NULL, &p), ATTNC_E_REQUEST, "spec");
    failed(attnc_prepare(c, &s, NULL, NULL), ATTNC_E_REQUEST, "out");
    failed(attnc_launch(NULL, &a, NULL), ATTNC_E_REQUEST, "plan");
    failed(attnc_workspace(NULL, &a, &bytes), ATTNC_E_REQUEST, "plan");
    failed(attnc_run(c, &s, NULL, NULL), ATTNC_E_REQUEST, "args");
    failed(attnc_plan_get_info(NULL, NULL), ATTNC_E_REQUEST, "plan");
    assert_int_equal(attnc_prepare(c, &s, NULL, &p), 0);
    failed(attnc_launch(p, NULL, NULL), ATTNC_E_REQUEST, "args");
    failed(attnc_workspace(p, &a, NULL), ATTNC_E_REQUEST, "bytes");
    failed(attnc_plan_get_info(p, NULL), ATTNC_E_REQUEST, "info");
    attnc_plan_release(p);
    attnc_plan_release(NULL);
    attnc_context_destroy(c);
    attnc_context_destroy(NULL);
}

static void bad_options_are_refused(void **state) {
    (void)state;
    attnc_context *c;
    const struct {
        const char *target, *text;
    } targets[] = {{"emu:avx2", "emulated"},
                   {"", "target"},
                   {"nothing", "nothing"},
                   {"cpu@cores=0", "cores"},
                   {"cpu@sorts=3", "sorts"}};
    for (size_t i = 0; i < sizeof targets / sizeof targets[0]; i++) {
        attnc_options op = options();
        op.target = targets[i].target;
        failed(attnc_context_create(&op, &c), ATTNC_E_REQUEST, targets[i].text);
        assert_null(c);
    }
    attnc_options op = options();
    op.threads = -1;
    failed(attnc_context_create(&op, &c), ATTNC_E_REQUEST, "threads");
    op = options();
    op.no_compile = 2;
    failed(attnc_context_create(&op, &c), ATTNC_E_REQUEST, "no_compile");
    op = options();
    op.parallel_workers = 3;
    failed(attnc_context_create(&op, &c), ATTNC_E_REQUEST, "parallel_workers");
    op = options();
    op.struct_size = 0;
    failed(attnc_context_create(&op, &c), ATTNC_E_REQUEST, "struct_size");
}

static void open_structs_may_be_shorter_but_not_wiser(void **state) {
    (void)state;
    attnc_context *c = builtin();
    struct {
        attnc_args a;
        int64_t later;
    } wide = {arguments(), 0};
    attnc_spec s = causal();
    wide.a.struct_size = sizeof wide;
    assert_int_equal(attnc_run(c, &s, &wide.a, NULL), 0);
    wide.later = 1;
    failed(attnc_run(c, &s, &wide.a, NULL), ATTNC_E_REQUEST, "struct_size");
    wide.a.struct_size = offsetof(attnc_args, workspace);
    assert_int_equal(attnc_run(c, &s, &wide.a, NULL), 0);
    attnc_plan *p;
    attnc_plan_info info = {.struct_size = offsetof(attnc_plan_info, text),
                            .text = "untouched"};
    assert_int_equal(attnc_prepare(c, &s, NULL, &p), 0);
    assert_int_equal(attnc_plan_get_info(p, &info), 0);
    assert_string_equal(info.text, "untouched");
    assert_string_equal(info.compiler, "builtin");
    drop(p, c);
}

/* ---- many at once ------------------------------------------------------- */

typedef struct Asked {
    attnc_context *c;
    pthread_barrier_t *start;
    int rc;
    char from[8], log[32];
} Asked;

static void *ask(void *arg) {
    Asked *a = arg;
    attnc_spec s = causal();
    attnc_plan *p;
    attnc_plan_info info = {.struct_size = sizeof info};
    pthread_barrier_wait(a->start);
    a->rc = attnc_prepare(a->c, &s, NULL, &p);
    if (a->rc) {
        snprintf(a->log, sizeof a->log, "%s", attnc_last_error()->log);
        return NULL;
    }
    attnc_plan_get_info(p, &info);
    snprintf(a->from, sizeof a->from, "%s", info.cache);
    attnc_plan_release(p);
    return NULL;
}

enum { MANY = 8 };

static void ask_at_once(attnc_context *c, Asked out[MANY]) {
    pthread_t t[MANY];
    pthread_barrier_t start;
    pthread_barrier_init(&start, NULL, MANY);
    for (int i = 0; i < MANY; i++) {
        out[i] = (Asked){.c = c, .start = &start};
        assert_int_equal(pthread_create(&t[i], NULL, ask, &out[i]), 0);
    }
    for (int i = 0; i < MANY; i++)
        pthread_join(t[i], NULL);
    pthread_barrier_destroy(&start);
}

static void threads_share_one_compilation(void **state) {
    (void)state;
    write_compiler(NULL);
    attnc_options op = options();
    op.compilers = compiler;
    attnc_context *c = context(&op);
    Asked asked[MANY];
    ask_at_once(c, asked);
    int misses = 0;
    for (int i = 0; i < MANY; i++) {
        assert_int_equal(asked[i].rc, 0);
        misses += !strcmp(asked[i].from, "miss");
        assert_true(!strcmp(asked[i].from, "miss") ||
                    !strcmp(asked[i].from, "memory"));
    }
    assert_int_equal(misses, 1);
    assert_int_equal(compiled(), 1);
    attnc_context_destroy(c);
}

static void threads_share_a_failure(void **state) {
    (void)state;
    write_compiler("sleep 0.5; echo 'error: bad day' >&2; exit 1");
    attnc_options op = options();
    op.compilers = compiler;
    attnc_context *c = context(&op);
    Asked asked[MANY];
    ask_at_once(c, asked);
    for (int i = 0; i < MANY; i++) {
        assert_int_equal(asked[i].rc, ATTNC_E_COMPILE);
        assert_string_equal(asked[i].log, "error: bad day\n");
    }
    assert_int_equal(compiled(), 1);
    attnc_context_destroy(c);
}

static void processes_share_one_compilation(void **state) {
    (void)state;
    write_compiler(NULL);
    attnc_options op = options();
    op.compilers = compiler;
    pid_t pid[MANY];
    int status, misses = 0;
    for (int i = 0; i < MANY; i++)
        if ((pid[i] = fork()) == 0) {
            attnc_context *c;
            attnc_spec s = causal();
            attnc_plan *p;
            attnc_plan_info info = {.struct_size = sizeof info};
            if (attnc_context_create(&op, &c) ||
                attnc_prepare(c, &s, NULL, &p) || attnc_plan_get_info(p, &info))
                _exit(9);
            _exit(!strcmp(info.cache, "miss")   ? 1
                  : !strcmp(info.cache, "disk") ? 0
                                                : 8);
        }
    for (int i = 0; i < MANY; i++) {
        assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) < 2);
        misses += WEXITSTATUS(status);
    }
    assert_int_equal(misses, 1);
    assert_int_equal(compiled(), 1);
}

static void *prepare_and_run(void *arg) {
    attnc_spec s = causal();
    static const int dims[] = {8, 16, 24};
    intptr_t faults = 0;
    for (int i = 0; i < 60; i++) {
        attnc_plan *p;
        attnc_shape h = ATTNC_SHAPE_DEFAULT;
        s.head_dim = dims[i % 3];
        h.seqlen_q = 1 + i;
        faults += attnc_prepare(arg, &s, &h, &p) != 0;
        attnc_plan_release(p);
    }
    return (void *)faults;
}

static void threads_may_prepare_different_specs(void **state) {
    (void)state;
    attnc_context *c = builtin();
    pthread_t t[4];
    void *faults;
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, prepare_and_run, c), 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(t[i], &faults);
        assert_int_equal((intptr_t)faults, 0);
    }
    attnc_context_destroy(c);
}

/* ---- templates ---------------------------------------------------------- */

static void templates_of_the_source_are_the_embedded_ones(void **state) {
    (void)state;
    const char *source = getenv("SOURCE");
    const Templates *t;
    Err e = {0};
    if (!source)
        skip();
    snprintf(compiler, sizeof compiler, "%s/templates", source);
    assert_int_equal(templates_read(compiler, &t, &e), 0);
    assert_int_equal(t->count, attnc_templates.count);
    assert_string_equal(t->hash, attnc_templates.hash);
    for (size_t i = 0; i < t->count; i++) {
        assert_string_equal(t->t[i].name, attnc_templates.t[i].name);
        assert_string_equal(t->t[i].text, attnc_templates.t[i].text);
        assert_int_equal(t->t[i].len, attnc_templates.t[i].len);
    }
    templates_free(t);
}

static void bad_template_directories_are_refused(void **state) {
    (void)state;
    attnc_context *c;
    attnc_options op = options();
    op.templates_dir = "/nowhere";
    failed(attnc_context_create(&op, &c), ATTNC_E_IO, "/nowhere");
    op.templates_dir = dir;
    failed(attnc_context_create(&op, &c), ATTNC_E_REQUEST, "no *.in");
    write_file("module.lua", "error('template of the test')\n");
    c = context(&op);
    attnc_spec s = causal();
    attnc_plan *p;
    assert_true(attnc_prepare(c, &s, NULL, &p) < 0);
    assert_non_null(strstr(attnc_last_error()->text, "template"));
    attnc_context_destroy(c);
}

static void statuses_have_sentences(void **state) {
    (void)state;
#define X(suffix, value, exit_status, sentence)                                \
    assert_string_equal(attnc_status_text(ATTNC_##suffix), sentence);
    ATTNC_STATUS_LIST(X)
#undef X
    assert_true(*attnc_status_text(-1000));
    assert_int_equal(attnc_version(), 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_kernel_is_compiled_once_then_found),
        TEST(equal_requests_give_the_same_plan),
        TEST(pins_make_another_plan),
        TEST(a_miss_without_compiling_is_an_error),
        TEST(without_a_compiler_the_builtin_serves_and_says_so),
        TEST(a_damaged_kernel_in_the_cache_is_made_again),
        TEST(a_failing_compiler_is_told_and_forgotten),
        TEST(errors_belong_to_their_thread),
        TEST(null_pointers_are_refused),
        TEST(bad_options_are_refused),
        TEST(open_structs_may_be_shorter_but_not_wiser),
        TEST(threads_share_one_compilation),
        TEST(threads_share_a_failure),
        TEST(processes_share_one_compilation),
        TEST(threads_may_prepare_different_specs),
        TEST(templates_of_the_source_are_the_embedded_ones),
        TEST(bad_template_directories_are_refused),
        TEST(statuses_have_sentences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
