/* SPDX-License-Identifier: Apache-2.0
 * The emulated device behind the runtime's seams: launches of plans with a
 * report, and whose lines it is about. */
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
/* What the calls of one template line did, all places of the module it was
 * pasted to together. */
typedef struct EmuRow {
    const char *template; /* "?": unknown */
    int line, class;      /* of the template; enum emu_class */
    EmuCount count;
} EmuRow;
/* The rows of one step's report in the order of the module's text; *out is the
 * caller's to free. Their number, or ERR_MEMORY. */
int emulated_rows(const EmuPlaces *p, const EmuReport *r, EmuRow **out);

#endif
