/* SPDX-License-Identifier: Apache-2.0
 * What `attnc run` says: for people, and as the JSON that scripts rely on. */
#include <inttypes.h>
#include <string.h>

#include "command.h"

/* ---- JSON -------------------------------------------------------------- */

/* Gradients that were compared. */
static int grads(const RefCheck *c) {
    return !c->backward ? 0 : c->sink ? REF_GRADS : REF_dsink;
}

static json_t *errors(const RefCheck *c, bool unfused) {
    json_t *j = json_object();
    json_object_set_new(j, "o", json_number(unfused ? c->unfused_o : c->o));
    json_object_set_new(j, "lse",
                        json_number(unfused ? c->unfused_lse : c->lse));
    for (int i = 0; i < grads(c); i++)
        json_object_set_new(
            j, reference_grad_name(i),
            json_number(unfused ? c->grad[i].unfused : c->grad[i].err));
    for (int i = 0; i < c->tensors; i++)
        json_object_set_new(
            j, c->tensor[i].name,
            json_number(unfused ? c->tensor[i].unfused : c->tensor[i].err));
    return j;
}

static json_t *json_check(const RefCheck *c) {
    json_t *j = json_object();
    json_object_set_new(j, "ok", json_boolean(c->ok));
    json_object_set_new(j, "coverage", json_real(c->coverage));
    json_object_set_new(j, "rel_err", errors(c, false));
    json_object_set_new(j, "unfused_rel_err", errors(c, true));
    if (!c->ok)
        json_object_set_new(j, "why", json_text(c->why));
    return j;
}

/* Of both passes when both are timed: compiled if one was, and all the time. */
static json_t *json_compile(const Run *r) {
    const attnc_plan_info *i = &r->info, *first = &r->first_info;
    bool both = r->problem.both;
    bool miss = both && strcmp(first->cache, "miss") == 0;
    json_t *j = json_object();
    json_object_set_new(j, "cache", json_text(miss ? "miss" : i->cache));
    json_object_set_new(
        j, "ms", json_number(i->prepare_ms + (both ? first->prepare_ms : 0)));
    json_object_set_new(j, "compiler", json_text(i->compiler));
    return j;
}

static void add_steps(const Plan *plan, const attnc_plan_info *info,
                      json_t *steps) {
    for (int i = 0; i < plan->nstep; i++)
        json_array_append_new(
            steps, json_step(&plan->step[i], info->cache, info->compile_ms));
}

static json_t *json_times(const Run *r) {
    json_t *j = json_object();
    json_object_set_new(j, "min", json_number(r->ms[0]));
    json_object_set_new(j, "median", json_number(run_median(r)));
    json_object_set_new(j, "max", json_number(r->ms[r->runs - 1]));
    json_object_set_new(j, "runs", json_integer(r->runs));
    return j;
}

int report_json(const Run *r, Str *out, Err *e) {
    const Plan *plan = &r->plan->plan;
    json_t *j = json_object(), *steps = json_array();
    json_t *spec = json_spec(&plan->spec);
    if (r->problem.both) {
        add_steps(&r->first->plan, &r->first_info, steps);
        json_object_set_new(spec, "pass", json_text("fwd+bwd"));
    }
    size_t before = json_array_size(steps);
    add_steps(plan, &r->info, steps);
    for (int i = 0; i < plan->nstep && r->emu; i++)
        json_object_set_new(json_array_get(steps, before + (size_t)i),
                            "emulated", emu_report_json(r, i));
    json_object_set_new(j, "target", json_text(text_target(&plan->device)));
    json_object_set_new(j, "device", json_text(plan->device.name));
    json_object_set_new(j, "spec", spec);
    json_object_set_new(j, "shape", json_shape(&plan->shape));
    json_object_set_new(j, "steps", steps);
    json_object_set_new(j, "compile", json_compile(r));
    json_object_set_new(j, "workspace_bytes",
                        json_integer((json_int_t)r->args.workspace_bytes));
    json_object_set_new(j, "time_ms", json_times(r));
    json_object_set_new(j, "gflops", json_number(r->gflops));
    if (r->checked)
        json_object_set_new(j, "check", json_check(&r->check));
    return json_finish(j, out, e);
}

/* ---- text -------------------------------------------------------------- */

static void say_tiles(const Plan *plan, Str *out) {
    static const char *const why[] = {"picked by the IO model", "pinned",
                                      "from the tuned table",
                                      "the smallest legal"};
    for (int i = 0; i < plan->nstep; i++) {
        const Step *s = &plan->step[i];
        str_addf(out, "tile      %s: ", role_name(s->role));
        text_tile(&s->tile, out);
        str_addf(out, "\n          %s: %s predicted, bound by %s\n",
                 why[s->tile.from], text_ms(s->fig.time_ms).s, s->fig.bound);
    }
}

static void say_kernel(const attnc_plan_info *i, Str *out) {
    str_addf(out, "kernel    ");
    if (strcmp(i->compiler, "builtin") == 0)
        str_addf(out, "built-in generic kernel (no compiler)\n");
    else if (strcmp(i->cache, "miss") == 0)
        str_addf(out, "compiled by %s in %s (all of prepare: %s)\n",
                 i->compiler, text_ms(i->compile_ms).s,
                 text_ms(i->prepare_ms).s);
    else
        str_addf(out, "from the cache (%s) in %s, made by %s\n", i->cache,
                 text_ms(i->prepare_ms).s, i->compiler);
}

/* What the target could do at best, and with what; 0: nothing to compare. */
static double peak_gflops(const Device *d, const attnc_spec *s,
                          const char **what) {
    const bool cpu = d->kind == DEVICE_CPU;
    const struct {
        bool when;
        double tflops;
        const char *what;
    } rows[] = {
        {d->kind == DEVICE_EMULATED, 0, NULL},
        {s->dtype == ATTNC_BF16 && d->bf16_tflops > 0, d->bf16_tflops, "bf16"},
        {s->dtype == ATTNC_F16 && !cpu, d->f16_tflops, "f16"},
        {s->f32_math == ATTNC_MATH_TF32 && !cpu, d->tf32_tflops, "tf32"},
        {true, d->f32_tflops, "f32"},
    };
    int i = 0;
    while (!rows[i].when)
        i++;
    *what = rows[i].what;
    return 1e3 * rows[i].tflops;
}

static void say_speed(const Run *r, Str *out) {
    const Plan *p = &r->plan->plan;
    const char *what;
    double peak = peak_gflops(&p->device, &p->spec, &what);
    str_addf(out, "time      %s", text_ms(run_median(r)).s);
    if (r->runs > 1)
        str_addf(out, ", median of %" PRId64 " (%s .. %s)", r->runs,
                 text_ms(r->ms[0]).s, text_ms(r->ms[r->runs - 1]).s);
    if (p->device.kind == DEVICE_EMULATED)
        str_addf(out, ", of the emulation");
    str_addf(out, "\nspeed     %.3g GFLOP/s", r->gflops);
    if (peak > 0)
        str_addf(out, ", %.0f %% of this machine's %s peak of %.0f",
                 100 * r->gflops / peak, what, peak);
    str_addf(out, "\n");
}

static void say_check(const RefCheck *c, Str *out) {
    str_addf(out,
             "check     %s: O is %.2g from f64 (unfused: %.2g), LSE %.2g "
             "(%.2g)\n",
             c->ok ? "ok" : "FAILED", c->o, c->unfused_o, c->lse,
             c->unfused_lse);
    for (int i = 0; i < grads(c); i++)
        str_addf(out, "%s%s is %.2g (%.2g)%s", i ? ", " : "          ",
                 reference_grad_name(i), c->grad[i].err, c->grad[i].unfused,
                 i + 1 == grads(c) ? "\n" : "");
    for (int i = 0; i < c->tensors; i++)
        str_addf(out, "          %s is %.2g (%.2g)\n", c->tensor[i].name,
                 c->tensor[i].err, c->tensor[i].unfused);
    if (c->tensors_left)
        str_addf(out, "          gradients of tensors are not compared: more "
                      "than 2.7e8 pairs\n");
    if (c->coverage < 1)
        str_addf(out, "          %.3g %% of the rows, sampled\n",
                 100 * c->coverage);
    if (!c->ok)
        str_addf(out, "          %s\n", c->why);
}

int report_text(const Options *o, const Run *r, Str *out, Err *e) {
    const Plan *plan = &r->plan->plan;
    const char *dir = o->given[OPT_out].text;
    str_addf(out, "attention ");
    text_problem(&r->problem, out);
    str_addf(out, "\nmachine   ");
    text_device(&plan->device, out);
    str_addf(out, "\n");
    if (r->problem.both)
        say_tiles(&r->first->plan, out);
    say_tiles(plan, out);
    say_kernel(&r->info, out);
    say_speed(r, out);
    if (r->checked)
        say_check(&r->check, out);
    if (dir)
        results_say(dir, r, out);
    return r->emu ? emu_report_text(r, out, e) : 0;
}
