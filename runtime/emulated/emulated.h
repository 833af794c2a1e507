/* SPDX-License-Identifier: Apache-2.0
 * The emulated device behind the runtime's seams: launches of plans with a
 * report, places in templates, and the report as text. */
#ifndef ATTNC_EMULATED_H
#define ATTNC_EMULATED_H

#include "emu.h"
#include "runtime.h"

/* Launches an emulated plan under a chosen schedule; reports[plan.nstep], all
 * zero before, are the caller's to free with emu_report_free. */
int emulated_run(const attnc_plan *p, const attnc_args *a,
                 const EmuConfig *config, EmuReport *reports, Err *e);

/* Which template line made each line of a plan's module. The text is made
 * anew: it is not kept with the object. */
typedef struct EmuPlaces {
    const Templates *templates;
    Source source; /* empty when it could not be made */
} EmuPlaces;
void emulated_places(attnc_context *c, const Plan *p, EmuPlaces *out);
void emulated_places_free(EmuPlaces *p);
/* Template and line, 0 when unknown, of a line of the module. */
const char *emulated_place(const EmuPlaces *p, uint32_t line, int *at);

/* "cuda/stage/pv.cu.in:12: read not ordered ...: ..." */
void emulated_fault(const EmuPlaces *p, const EmuFault *f, Str *out);
/* What each template line cost, by step: for `attnc run --emu-report`. */
int emulated_print(const attnc_plan *p, const EmuReport *reports, Str *out);

#endif
