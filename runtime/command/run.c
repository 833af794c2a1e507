/* SPDX-License-Identifier: Apache-2.0
 * attnc run: problem -> inputs -> plan -> launches -> check -> files. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "command.h"
#include "sight.h"

enum { REPEAT_MAX = 1000000 };

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* The plan of one pass, and how it was come by. */
static int prepare_pass(const Options *o, Run *r, int pass, attnc_plan **plan,
                        attnc_plan_info *info, Err *e) {
    attnc_spec s = r->problem.spec;
    bool pinned = pass == s.pass; /* pins are for what is asked for */
    attnc_prepare_options pins = {sizeof pins,
                                  pinned ? o->given[OPT_tile].text : NULL};
    s.pass = pass;
    s.tensor_grads = pass == ATTNC_PASS_BWD ? s.tensor_grads : 0;
    if (attnc_prepare_with(r->ctx, &s, &r->problem.shape, &pins, plan) != 0)
        return session_error(e);
    info->struct_size = sizeof *info;
    size_t bytes;
    if (attnc_plan_get_info(*plan, info) != 0 ||
        attnc_workspace(*plan, &r->args, &bytes) != 0)
        return session_error(e);
    if (bytes > r->args.workspace_bytes)
        r->args.workspace_bytes = bytes;
    return 0;
}

static int prepare(const Options *o, Run *r, Err *e) {
    int pass = r->problem.spec.pass;
    int rc = session_open(o, r->problem.threads, &r->ctx, e);
    rc = rc ? rc : emu_report_check(o, r, e);
    if (!rc && pass == ATTNC_PASS_BWD)
        rc = prepare_pass(o, r, ATTNC_PASS_FWD, &r->first, &r->first_info, e);
    rc = rc ? rc : prepare_pass(o, r, pass, &r->plan, &r->info, e);
    if (rc)
        return rc;
    if (r->plan->module->kernel.backend->memory)
        return device_args_make(r, e);
    size_t bytes = r->args.workspace_bytes;
    r->args.workspace = aligned_alloc(64, (bytes / 64 + 1) * 64);
    if (!r->args.workspace)
        return err_set(e, ERR_MEMORY, "command", NULL,
                       "out of memory: a workspace of %s",
                       text_bytes((double)bytes).s);
    return 0;
}

static int by_time(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double run_median(const Run *r) {
    int64_t half = r->runs / 2;
    return r->runs % 2 ? r->ms[half] : (r->ms[half - 1] + r->ms[half]) / 2;
}

/* One launch of a plan of this run. */
typedef struct Launch {
    Run *run;
    attnc_plan *plan;
} Launch;

static int launch_once(void *user) {
    const Launch *l = user;
    const Run *r = l->run;
    bool own = l->plan->module->kernel.backend->memory != NULL;
    attnc_args a = own ? r->device : r->args;
    if (l->plan == r->first)
        a.tensors = own ? r->device_tensors.plain : r->in.tensors.plain;
    return attnc_launch(l->plan, &a, NULL);
}

/* By the device's clock where it has one. */
static int launch_timed(Run *r, attnc_plan *plan, double *ms, Err *e) {
    const Kernel *k = &plan->module->kernel;
    Launch one = {r, plan};
    double start = now_ms();
    if (k->backend->memory) {
        int rc = k->backend->memory->timed(k, launch_once, &one, ms, e);
        return rc && !e->code ? session_error(e) : rc;
    }
    int rc = launch_once(&one);
    *ms = now_ms() - start;
    return rc ? session_error(e) : 0;
}

/* What is timed: the pass that is asked for, or both. */
static int launch_passes(Run *r, double *ms, Err *e) {
    double first = 0;
    int rc = r->problem.both ? launch_timed(r, r->first, &first, e) : 0;
    rc = rc ? rc : launch_timed(r, r->plan, ms, e);
    *ms += first;
    return rc;
}

/* Visible pairs, of programs and patterns too. */
static int count_pairs(const Run *r, double *pairs, Err *e) {
    Sight s;
    *pairs = problem_pairs(&r->problem);
    if (!spec_keep(&r->problem.spec))
        return 0;
    int rc = sight_open(&r->problem.spec, &r->args, &s, e);
    if (rc == 0)
        *pairs = sight_all_pairs(&s);
    sight_close(&s);
    return rc;
}

/* Products of what is timed, for one pair. */
static double flops(const Run *r) {
    const attnc_spec *s = &r->problem.spec;
    double d = s->head_dim, dv = s->head_dim_v;
    double forward = 2 * (d + dv), backward = 2 * (3 * d + 2 * dv);
    return r->problem.both             ? forward + backward
           : s->pass == ATTNC_PASS_BWD ? backward
                                       : forward;
}

/* A forward for the backward alone, or for one that is counted; a warm launch,
 * counted if asked for; then the timed ones. */
static int launch(const Options *o, Run *r, Err *e) {
    double ms = 0, pairs;
    r->runs = 1;
    int rc = option_int(o, OPT_repeat, 1, REPEAT_MAX, &r->runs, e);
    if (rc)
        return rc;
    r->ms = calloc((size_t)r->runs, sizeof *r->ms);
    if (!r->ms)
        return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    if (r->first && (!r->problem.both || o->given[OPT_emu_report].text))
        rc = launch_timed(r, r->first, &ms, e);
    for (int64_t i = -1; i < r->runs && !rc; i++) {
        bool counted = i < 0 && o->given[OPT_emu_report].text;
        rc = counted ? emu_report_launch(r, e) : launch_passes(r, &ms, e);
        if (i >= 0)
            r->ms[i] = ms;
        progress_show("launches", (double)(i + 2) / (double)(r->runs + 1));
    }
    rc = rc ? rc : device_args_fetch(r, e);
    rc = rc ? rc : count_pairs(r, &pairs, e);
    if (rc)
        return rc;
    qsort(r->ms, (size_t)r->runs, sizeof *r->ms, by_time);
    r->gflops = flops(r) * pairs / (run_median(r) * 1e6);
    return 0;
}

static void on_check(void *user, double done) {
    (void)user;
    progress_show("check against f64", done);
}

/* The forward's results, then the gradients: right when both are. */
static int check(const Options *o, Run *r, Err *e) {
    RefCheck grads = {.ok = true, .coverage = 1};
    attnc_spec s = r->problem.spec;
    int threads = r->problem.threads, rc = 0;
    r->checked = o->given[OPT_check].text != NULL;
    if (!r->checked)
        return 0;
    if (s.pass == ATTNC_PASS_BWD)
        rc = reference_check_bwd(&s, &r->args, threads, on_check, NULL, &grads,
                                 e);
    s.pass = ATTNC_PASS_FWD;
    rc = rc ? rc
            : reference_check(&s, &r->args, threads, on_check, NULL, &r->check,
                              e);
    progress_show("check against f64", 1);
    reference_join(&r->check, &grads);
    return rc;
}

/* ---- the whole --------------------------------------------------------- */

static void run_free(Run *r) {
    device_args_free(r);
    emu_report_drop(r);
    attnc_plan_release(r->plan);
    attnc_plan_release(r->first);
    attnc_context_destroy(r->ctx);
    inputs_free(&r->in);
    problem_free(&r->problem);
    free(r->args.workspace);
    free(r->ms);
}

int verb_run(const Options *o, Str *out, Err *e) {
    Run r = {0};
    const char *dir = o->given[OPT_out].text;
    const char *kept = o->given[OPT_dropout_mask].text;
    int rc = problem_make(o, &r.problem, e);
    rc = rc || !dir ? rc : outdir_check(dir, e);
    rc = rc || !kept ? rc : dropout_mask_check(kept, e);
    rc = rc ? rc : inputs_make(&r.problem, &r.in, &r.args, e);
    rc = rc ? rc : prepare(o, &r, e);
    rc = rc ? rc : launch(o, &r, e);
    rc = rc ? rc : check(o, &r, e);
    rc = rc || !dir ? rc : results_write(dir, &r, e);
    rc = rc || !kept ? rc : dropout_mask_write(kept, &r, e);
    if (rc == 0 && o->given[OPT_json].text)
        rc = report_json(&r, out, e);
    else if (rc == 0)
        rc = report_text(o, &r, out, e);
    if (rc == 0 && r.checked && !r.check.ok)
        rc = EXIT_CHECK;
    if (rc == ATTNC_E_LAUNCH && session_warnings.len &&
        r.ctx->device.kind == DEVICE_EMULATED)
        session_keep_log(session_warnings.text, "more faults are", e);
    run_free(&r);
    return rc;
}
