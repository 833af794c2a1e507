/* SPDX-License-Identifier: Apache-2.0
 * The judge behind `attnc run --check` and the tests: attention in f64, and
 * unfused attention in the spec's own dtype, against whose error a result's
 * error is held (docs/numerics.md). */
#ifndef ATTNC_REFERENCE_H
#define ATTNC_REFERENCE_H

#include "attnc.h"
#include "gen.h"

/* What a check found. Errors of O are ||x - f64||2 / ||f64||2 over the entries
 * finite in both, of LSE the root mean square of x - f64; ok needs each <= its
 * limit = 1.5 x unfused + 4 eps(dtype), for a large LSE 4 eps(f32) of its own
 * size, and every non-finite entry to be the reference's. The lse figures are 0
 * when args->lse is NULL. */
enum ref_grad { REF_dq, REF_dk, REF_dv, REF_dsink, REF_GRADS };
typedef struct RefCheck {
    bool ok;
    double coverage; /* share of the query rows compared, 0..1 */
    double o, lse;   /* rel_err of O, absolute error of LSE */
    double unfused_o, unfused_lse;
    double limit_o, limit_lse;
    char why[160];       /* when not ok: the worst place, one line */
    bool backward, sink; /* were gradients compared? dsink, too? */
    struct {
        double err, unfused, limit; /* relative, as of O */
    } grad[REF_GRADS];
    int tensors; /* gradients of what programs read that were compared */
    struct {
        char name[PROGRAM_NAME + 1]; /* "dbias" */
        double err, unfused, limit;
    } tensor[SPEC_TENSORS];
    bool tensors_left; /* they were asked for, but are too many pairs */
} RefCheck;
/* "dq", "dk", .. */
const char *reference_grad_name(int grad);

/* Compares o and lse of a finished launch with f64. args: as launched, host
 * memory, elements of the spec's dtype. threads: how many may work; 0: all.
 * progress (may be NULL) is told the share done, 0..1, by the calling thread.
 * Above 2e10 flops, 2 (d + dv) per visible pair, rows are sampled.
 * ERR_MEMORY when memory ran out; a wrong result is no error: out->ok. */
int reference_check(const attnc_spec *spec, const attnc_args *args, int threads,
                    void (*progress)(void *user, double done), void *user,
                    RefCheck *out, Err *e);

/* The same for the gradients of a launch with pass=bwd, from q, k, v, dout and
 * dlse: dq, dk, dv, dsink. Above 2e10 flops, 2 (3d + 2dv) per visible pair, the
 * rows of dq and those of dk and dv are sampled; the latter then take LSE and
 * rowsum(O dO) of all queries from the launch's own o and lse. Gradients of
 * tensors need all pairs: with them nothing is sampled, and above 2^28 pairs
 * they are left out (tensors_left). */
int reference_check_bwd(const attnc_spec *spec, const attnc_args *args,
                        int threads, void (*progress)(void *user, double done),
                        void *user, RefCheck *out, Err *e);

/* Adds what a check of the gradients found to that of the forward. */
void reference_join(RefCheck *to, const RefCheck *grads);

/* Gradients in f64 alone; any may be NULL. dq [B, H, Nq, d], dk [B, HK, Nk, d],
 * dv [B, HK, Nk, dv], dsink [H], dense; varlen: Nq and Nk are seqlen_q and
 * seqlen_k, rows behind a sequence's end are 0. */
int reference_bwd(const attnc_spec *spec, const attnc_args *args, double *dq,
                  double *dk, double *dv, double *dsink, Err *e);

/* The same, and the gradients of the tensors that programs read: tensor[i] (may
 * be NULL), dense, of tensor i of spec_tensors(), where tensor_grads asks. */
int reference_bwd_tensors(const attnc_spec *spec, const attnc_args *args,
                          double *dq, double *dk, double *dv, double *dsink,
                          double **tensor, Err *e);

/* The f64 attention alone: o [B, H, Nq, dv] and lse [B, H, Nq], dense; varlen
 * [H, total_q, dv] and [H, total_q]. lse may be NULL. */
int reference_fwd(const attnc_spec *spec, const attnc_args *args, double *o,
                  double *lse, Err *e);

#endif
