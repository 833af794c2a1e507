/* SPDX-License-Identifier: Apache-2.0
 * The f64 reference behind `attnc run --check`: plain, obviously right. */
#ifndef ATTNC_REFERENCE_H
#define ATTNC_REFERENCE_H

#include "gen.h"
#include "attnc.h"

/* What a check found (docs/numerics.md): errors of the launch's results and of
 * unfused attention in the same dtype, both against f64. */
typedef struct RefCheck {
    bool ok;
    double coverage;             /* share of the query rows compared, 0..1 */
    double o, lse;               /* rel_err of O, absolute error of LSE */
    double unfused_o, unfused_lse;
    char why[160];               /* when not ok: the worst place, one line */
} RefCheck;

/* Compares o and lse of a finished launch with f64. args: as launched, host
 * memory, elements of the spec's dtype. threads: how many may work; 0: all.
 * progress (may be NULL) is told the share done, 0..1, by the calling thread.
 * ERR_MEMORY when memory ran out; a wrong result is no error: out->ok. */
int reference_check(const attnc_spec *spec, const attnc_args *args,
                    int threads, void (*progress)(void *user, double done),
                    void *user, RefCheck *out, Err *e);

#endif
