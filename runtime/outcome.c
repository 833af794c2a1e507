/* SPDX-License-Identifier: Apache-2.0
 * How each prepare went, told per thread by attnc_plan_get_info. */
#include <string.h>

#include "runtime.h"

/* The calling thread's last prepares, by serial number of the plan. */
enum { OUTCOMES = 16 };
static _Thread_local Outcome outcomes[OUTCOMES];

void outcome_keep(const attnc_plan *p, Outcome o) {
    o.serial = p->made.serial;
    outcomes[o.serial % OUTCOMES] = o;
}

static const char *const origins[] = {"memory", "disk", "bundle", "miss"};

int attnc_plan_get_info(const attnc_plan *plan, attnc_plan_info *info) {
    Err e = {0};
    size_t known = info ? info->struct_size : 0;
    if (!plan || known < sizeof known) {
        err_set(&e, ATTNC_E_REQUEST, "info", plan ? "info" : "plan",
                plan ? "NULL, or struct_size is not set" : "NULL");
        return error_publish(&e, NULL, NULL);
    }
    const Outcome *o = &outcomes[plan->made.serial % OUTCOMES];
    if (o->serial != plan->made.serial)
        o = &plan->made;
    const attnc_plan_info full = {
        .struct_size = known,
        .cache = origins[o->from],
        .compiler = plan->module->kernel.compiler,
        .prepare_ms = o->prepare_ms,
        .compile_ms = o->compile_ms,
        .text = plan->text,
        .emit_ms = o->emit_ms,
        .load_ms = o->load_ms,
    };
    memcpy(info, &full, known < sizeof full ? known : sizeof full);
    return ATTNC_OK;
}
