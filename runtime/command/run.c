/* SPDX-License-Identifier: Apache-2.0
 * attnc run: problem -> inputs -> plan -> launches -> check -> files. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "command.h"
#include "values.h"

enum { REPEAT_MAX = 1000000 };

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static int prepare(const Options *o, Run *r, Err *e) {
    attnc_prepare_options pins = {sizeof pins, o->given[OPT_tile].text};
    int rc = session_open(o, r->problem.threads, &r->ctx, e);
    rc = rc ? rc : emu_report_check(o, r, e);
    if (rc)
        return rc;
    if (attnc_prepare_with(r->ctx, &r->problem.spec, &r->problem.shape, &pins,
                           &r->plan) != 0)
        return session_error(e);
    r->info.struct_size = sizeof r->info;
    if (attnc_plan_get_info(r->plan, &r->info) != 0)
        return session_error(e);
    size_t bytes;
    if (attnc_workspace(r->plan, &r->args, &bytes) != 0)
        return session_error(e);
    r->args.workspace_bytes = bytes;
    if (r->plan->module->kernel.backend->memory)
        return device_args_make(r, e);
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

static int launch_once(void *user) {
    Run *r = user;
    bool own = r->plan->module->kernel.backend->memory != NULL;
    return attnc_launch(r->plan, own ? &r->device : &r->args, NULL);
}

/* By the device's clock where it has one. */
static int launch_timed(Run *r, double *ms, Err *e) {
    const Kernel *k = &r->plan->module->kernel;
    double start = now_ms();
    if (k->backend->memory) {
        int rc = k->backend->memory->timed(k, launch_once, r, ms, e);
        return rc && !e->code ? session_error(e) : rc;
    }
    int rc = launch_once(r);
    *ms = now_ms() - start;
    return rc ? session_error(e) : 0;
}

/* A warm launch, counted if asked for, then the timed ones. */
static int launch(const Options *o, Run *r, Err *e) {
    const attnc_spec *s = &r->problem.spec;
    r->runs = 1;
    int rc = option_int(o, OPT_repeat, 1, REPEAT_MAX, &r->runs, e);
    if (rc)
        return rc;
    r->ms = calloc((size_t)r->runs, sizeof *r->ms);
    if (!r->ms)
        return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    for (int64_t i = -1; i < r->runs; i++) {
        double ms;
        bool counted = i < 0 && o->given[OPT_emu_report].text;
        rc = counted ? emu_report_launch(r, e) : launch_timed(r, &ms, e);
        if (rc)
            return rc;
        if (i >= 0)
            r->ms[i] = ms;
        progress_show("launches", (double)(i + 2) / (double)(r->runs + 1));
    }
    rc = device_args_fetch(r, e);
    if (rc)
        return rc;
    qsort(r->ms, (size_t)r->runs, sizeof *r->ms, by_time);
    double flops =
        2.0 * (s->head_dim + s->head_dim_v) * problem_pairs(&r->problem);
    r->gflops = flops / (run_median(r) * 1e6);
    return 0;
}

static void on_check(void *user, double done) {
    (void)user;
    progress_show("check against f64", done);
}

static int check(const Options *o, Run *r, Err *e) {
    r->checked = o->given[OPT_check].text != NULL;
    if (!r->checked)
        return 0;
    int rc = reference_check(&r->problem.spec, &r->args, r->problem.threads,
                             on_check, NULL, &r->check, e);
    progress_show("check against f64", 1);
    return rc;
}

/* ---- results ----------------------------------------------------------- */

/* n elements of dtype as the f32 of a .npy file. */
static int write_array(OutFile *f, const int64_t *dim, int rank, int dtype,
                       const void *data, Err *e) {
    enum { CHUNK = 16384 };
    char header[512];
    float part[CHUNK];
    int64_t n = 1;
    for (int i = 0; i < rank; i++)
        n *= dim[i];
    int rc = outfile_write(f, header, npy_header(header, dim, rank), e);
    for (int64_t i = 0; i < n && rc == 0; i += CHUNK) {
        int64_t m = n - i < CHUNK ? n - i : CHUNK;
        for (int64_t j = 0; j < m; j++)
            part[j] = value_get(dtype, data, i + j);
        rc = outfile_write(f, part, (size_t)m * sizeof *part, e);
    }
    return rc;
}

static int write_results(const char *dir, const Run *r, Err *e) {
    const Problem *p = &r->problem;
    OutFile f[2] = {{.fd = -1}, {.fd = -1}};
    int axes[4], rank = problem_axes(p, TENSOR_o, axes);
    int64_t dim[4], heads = r->args.heads;
    for (int i = 0; i < rank; i++)
        dim[i] = p->size[axes[i]].n;
    int64_t dense[] = {r->args.batch, heads, r->args.seqlen_q};
    int64_t packed[] = {heads, p->size[SIZE_total_q].n};
    int rc = outfile_open(dir, "o.npy", &f[0], e);
    rc = rc ? rc : outfile_open(dir, "lse.npy", &f[1], e);
    rc = rc ? rc
            : write_array(&f[0], dim, rank, p->spec.dtype, r->args.o.data, e);
    if (rc == 0 && p->layout == PACKED)
        rc = write_array(&f[1], packed, 2, ATTNC_F32, r->args.lse, e);
    else if (rc == 0)
        rc = write_array(&f[1], dense, 3, ATTNC_F32, r->args.lse, e);
    if (rc == 0)
        return outfile_publish(f, 2, e);
    outfile_drop(&f[0]);
    outfile_drop(&f[1]);
    return rc;
}

/* ---- the whole --------------------------------------------------------- */

static void run_free(Run *r) {
    device_args_free(r);
    emu_report_drop(r);
    attnc_plan_release(r->plan);
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
    rc = rc || !dir ? rc : write_results(dir, &r, e);
    rc = rc || !kept ? rc : dropout_mask_write(kept, &r, e);
    if (rc == 0 && o->given[OPT_json].text)
        rc = report_json(&r, out, e);
    else if (rc == 0)
        rc = report_text(o, &r, out, e);
    if (rc == 0 && r.checked && !r.check.ok)
        rc = EXIT_CHECK;
    run_free(&r);
    return rc;
}
