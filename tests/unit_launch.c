/* SPDX-License-Identifier: Apache-2.0
 * attnc_launch and attnc_run: workspace, threads, what a host may do to us. */
#include <fenv.h>

#include "api_util.h"

/* ---- launch ------------------------------------------------------------- */

static void a_plan_outlives_its_context(void **state) {
    (void)state;
    attnc_options op = options();
    const char *from;
    attnc_context *c = context(&op);
    attnc_plan *p = prepared(c, &from);
    attnc_context_destroy(c);
    assert_int_equal(launch(p, arguments()), 0);
    result_is_right();
    attnc_plan_release(p);
}

static void the_workspace_is_checked_and_never_left(void **state) {
    (void)state;
    enum { GUARD = 4096 };
    const char *from;
    attnc_context *c = builtin();
    attnc_plan *p = prepared(c, &from);
    attnc_args a = arguments();
    size_t bytes;
    assert_int_equal(attnc_workspace(p, &a, &bytes), 0);
    failed(attnc_launch(p, &a, NULL), ATTNC_E_WORKSPACE, "workspace");
    char *block = aligned_alloc(64, (bytes + 2 * GUARD + 63) / 64 * 64);
    memset(block, 0xa5, bytes + 2 * GUARD);
    a.workspace = block + GUARD;
    a.workspace_bytes = bytes - 1;
    failed(attnc_launch(p, &a, NULL), ATTNC_E_WORKSPACE, "this launch needs");
    a.workspace_bytes = bytes;
    a.workspace = block + GUARD + 32;
    failed(attnc_launch(p, &a, NULL), ATTNC_E_WORKSPACE, "multiple of 64");
    a.workspace = block + GUARD;
    assert_int_equal(attnc_launch(p, &a, NULL), 0);
    result_is_right();
    for (int i = 0; i < GUARD; i++) {
        assert_int_equal(block[i], (char)0xa5);
        assert_int_equal(block[GUARD + bytes + (size_t)i], (char)0xa5);
    }
    free(block);
    drop(p, c);
}

static void a_stream_is_no_argument_of_a_cpu(void **state) {
    (void)state;
    attnc_context *c = builtin();
    attnc_spec s = causal();
    attnc_args a = arguments();
    failed(attnc_run(c, &s, &a, &a), ATTNC_E_REQUEST, "stream");
    attnc_context_destroy(c);
}

static void code_for_another_machine_is_made_but_not_run(void **state) {
    (void)state;
    char path[512];
    attnc_options op = options();
    op.target = probe_runs("neon") ? "avx2" : "neon";
    if (!program_find("clang", path))
        skip();
    attnc_context *c = context(&op);
    attnc_spec s = causal();
    attnc_plan *p;
    if (attnc_prepare(c, &s, NULL, &p))
        fail_msg("%s", attnc_last_error()->text);
    failed(launch(p, arguments()), ATTNC_E_MISSING, op.target);
    assert_true(*attnc_last_error()->hint);
    drop(p, c);
}

/* Compiled for where that is possible, never run on something else. */
static void a_gpu_that_is_not_here_is_not_replaced(void **state) {
    (void)state;
    Err none = {0};
    attnc_options op = options();
    op.target = "H200";
    if (cuda_count(&none))
        skip();
    attnc_context *c = context(&op);
    attnc_spec s = causal();
    attnc_plan *p;
    int rc = attnc_prepare(c, &s, NULL, &p);
    assert_true(rc == 0 || rc == ATTNC_E_MISSING);
    if (rc == 0) {
        failed(launch(p, arguments()), ATTNC_E_MISSING, "no GPU");
        attnc_plan_release(p);
    }
    attnc_context_destroy(c);
}

/* ---- the caller's threads ----------------------------------------------- */

enum { WORKERS = 3 };

/* Backwards, on one thread, as different workers. */
static void backwards(void *user, int64_t count,
                      void (*fn)(void *, int64_t, int), void *arg) {
    ++*(int *)user;
    for (int64_t i = count; i-- > 0;)
        fn(arg, i, (int)(i % WORKERS));
}

static void wrong_worker(void *user, int64_t count,
                         void (*fn)(void *, int64_t, int), void *arg) {
    (void)user, (void)count;
    fn(arg, 0, WORKERS);
}

static void the_callers_loop_is_used_and_watched(void **state) {
    (void)state;
    attnc_options op = options();
    int calls = 0;
    op.threads = 0;
    op.parallel_for = backwards;
    op.parallel_user = &calls;
    op.parallel_workers = WORKERS;
    attnc_context *c = context(&op);
    run_is_right(c);
    assert_true(calls > 0);
    attnc_context_destroy(c);
    op.parallel_for = wrong_worker;
    c = context(&op);
    attnc_spec s = causal();
    attnc_args a = arguments();
    failed(attnc_run(c, &s, &a, NULL), ATTNC_E_LAUNCH, "parallel_for");
    attnc_context_destroy(c);
}

static void results_do_not_depend_on_threads_or_rounding(void **state) {
    (void)state;
    static float first[SIZE_Q];
    const int threads[] = {1, 2, 5};
    for (int i = 0; i < 6; i++) {
        attnc_options op = options();
        op.threads = threads[i % 3];
        attnc_context *c = context(&op);
        fesetround(i < 3 ? FE_TONEAREST : FE_UPWARD);
        attnc_spec s = causal();
        attnc_args a = arguments();
        int rc = attnc_run(c, &s, &a, NULL);
        assert_int_equal(fegetround(), i < 3 ? FE_TONEAREST : FE_UPWARD);
        fesetround(FE_TONEAREST);
        assert_int_equal(rc, 0);
        if (i == 0)
            memcpy(first, o, sizeof o);
        assert_memory_equal(first, o, sizeof o);
        attnc_context_destroy(c);
    }
}

static void a_forked_child_can_go_on(void **state) {
    (void)state;
    if (TSAN)
        skip();
    attnc_options op = options();
    const char *from;
    attnc_context *c = context(&op);
    attnc_plan *p = prepared(c, &from);
    assert_int_equal(launch(p, arguments()), 0);
    for (int i = 0; i < 4; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            attnc_spec s = causal();
            attnc_args a = arguments();
            s.mask = ATTNC_MASK_NONE; /* a new plan, compiled here */
            int rc = attnc_run(c, &s, &a, NULL);
            rc = rc ? rc : launch(p, arguments());
            rc = rc ? rc : row_error(0, 5) > 1e-5;
            drop(p, c);
            _exit(rc != 0);
        }
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    run_is_right(c);
    drop(p, c);
}

/* ---- run ---------------------------------------------------------------- */

static void run_takes_what_it_is_given(void **state) {
    (void)state;
    attnc_context *c = builtin();
    attnc_spec s = causal();
    attnc_args a = arguments();
    static char odd[SIZE_Q * 4 + 8];
    memcpy(odd + 2, q, sizeof q);
    a.q.data = odd + 2;
    assert_int_equal(attnc_run(c, &s, &a, NULL), 0);
    result_is_right();
    a = arguments();
    a.q.data = odd + 1; /* no element starts there */
    failed(attnc_run(c, &s, &a, NULL), ATTNC_E_PROMISE, "align_q");
    a = arguments();
    a.seqlen_k = 0; /* nothing to see: zeros */
    assert_int_equal(attnc_run(c, &s, &a, NULL), 0);
    for (int i = 0; i < SIZE_Q; i++)
        assert_true(o[i] == 0);
    assert_true(isinf(lse[3]) && lse[3] < 0);
    a = arguments();
    a.batch = 0;
    assert_int_equal(attnc_run(c, &s, &a, NULL), 0);
    a.heads = 3;
    failed(attnc_run(c, &s, &a, NULL), ATTNC_E_REQUEST, "kv_heads");
    attnc_context_destroy(c);
}

/* A plan of two steps, made for many keys, launched with few. */
static void a_split_plan_takes_any_number_of_keys(void **state) {
    (void)state;
    char path[512];
    if (!program_find("clang", path))
        skip();
    attnc_options op = options();
    attnc_context *c = context(&op);
    attnc_spec s = causal();
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    attnc_plan *p;
    h.heads = h.kv_heads = h.seqlen_q = 1;
    h.seqlen_k = 100000;
    if (attnc_prepare(c, &s, &h, &p))
        fail_msg("%s", attnc_last_error()->text);
    assert_int_equal(p->plan.nstep, 2);
    assert_int_equal(launch(p, arguments()), 0);
    result_is_right();
    attnc_args a = arguments();
    a.seqlen_k = 0;
    assert_int_equal(launch(p, a), 0);
    for (int i = 0; i < SIZE_Q; i++)
        assert_true(o[i] == 0);
    assert_true(isinf(lse[3]) && lse[3] < 0);
    drop(p, c);
}

static void many_lengths_need_few_plans(void **state) {
    (void)state;
    attnc_context *c = builtin();
    attnc_spec s = causal();
    for (int n = 1; n <= ROWS; n++) {
        attnc_args a = arguments();
        a.seqlen_q = n;
        a.mask_offset_mode = ATTNC_OFFSET_INT;
        assert_int_equal(attnc_run(c, &s, &a, NULL), 0);
    }
    /* Context, and a plan for 1..7, 8, 10, 12 .. 40 with its multiples. */
    assert_in_range(atomic_load(&c->refs), 2, 24);
    attnc_context_destroy(c);
}

static void unused_plans_do_not_pile_up(void **state) {
    (void)state;
    attnc_context *c = builtin();
    attnc_spec s = causal();
    attnc_plan *held, *p;
    assert_int_equal(attnc_prepare(c, &s, NULL, &held), 0);
    for (int n = 1; n < 5000; n++) {
        attnc_shape h = ATTNC_SHAPE_DEFAULT;
        h.seqlen_q = n;
        assert_int_equal(attnc_prepare(c, &s, &h, &p), 0);
        attnc_plan_release(p);
    }
    assert_in_range(atomic_load(&c->refs), 2, 4200);
    assert_int_equal(launch(held, arguments()), 0);
    attnc_plan_release(held);
    attnc_context_destroy(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_plan_outlives_its_context),
        TEST(the_workspace_is_checked_and_never_left),
        TEST(a_stream_is_no_argument_of_a_cpu),
        TEST(code_for_another_machine_is_made_but_not_run),
        TEST(a_gpu_that_is_not_here_is_not_replaced),
        TEST(the_callers_loop_is_used_and_watched),
        TEST(results_do_not_depend_on_threads_or_rounding),
        TEST(a_forked_child_can_go_on),
        TEST(run_takes_what_it_is_given),
        TEST(a_split_plan_takes_any_number_of_keys),
        TEST(many_lengths_need_few_plans),
        TEST(unused_plans_do_not_pile_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
