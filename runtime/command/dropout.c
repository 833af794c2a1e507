/* SPDX-License-Identifier: Apache-2.0
 * The options of dropout, and the file that shows what it keeps. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "dropout.h"

/* ---- options ----------------------------------------------------------- */

static int take_p(const Options *o, Problem *p, Err *e) {
    const char *text = o->given[OPT_dropout].text;
    double x;
    if (!slice_double((Slice){text, strlen(text)}, &x))
        return option_bad(o, OPT_dropout, e, "no number; accepted: 0 <= P < 1");
    if (!(x >= 0 && x < 1) || dropout_threshold(x) > UINT16_MAX)
        return option_bad(o, OPT_dropout, e,
                          "accepted: 0 <= P < 1, nearest %.6g",
                          x > 0.5 ? 65535 / 65536.0 : 0);
    p->spec.dropout = 1;
    p->dropout_p = x;
    return 0;
}

int dropout_parse(const Options *o, Problem *p, Err *e) {
    static const int with[] = {OPT_seed, OPT_offset, OPT_dropout_mask};
    int64_t seed = 0, offset = 0;
    for (int i = 0; i < 3 && !o->given[OPT_dropout].text; i++)
        if (o->given[with[i]].text)
            return option_bad(o, with[i], e,
                              "it belongs to dropout; add --dropout P");
    if (!o->given[OPT_dropout].text)
        return 0;
    int rc = take_p(o, p, e);
    rc = rc ? rc : option_int(o, OPT_seed, 0, INT64_MAX, &seed, e);
    rc = rc ? rc : option_int(o, OPT_offset, 0, UINT32_MAX, &offset, e);
    p->dropout_seed = (uint64_t)seed;
    p->dropout_offset = (uint64_t)offset;
    return rc;
}

/* ---- the kept set ------------------------------------------------------ */

int dropout_mask_check(const char *path, Err *e) {
    OutFile f;
    int rc = outfile_beside(path, &f, e);
    if (rc == 0)
        outfile_drop(&f);
    return rc;
}

/* Which keys of [0, nk) query i of head h keeps; false from there to n. */
static void keep_row(const Dropout *d, int64_t b, int64_t h, int64_t i,
                     int64_t nk, uint8_t *kept, int64_t n) {
    uint16_t numbers[DROPOUT_PATCH];
    memset(kept, 0, (size_t)n);
    for (int64_t j = 0; j < nk; j++) {
        if (j % DROPOUT_PATCH == 0)
            dropout_numbers(d, b, h, i, j / DROPOUT_PATCH, numbers);
        kept[j] = numbers[j % DROPOUT_PATCH] >= d->threshold;
    }
}

static int write_rows(const Run *r, OutFile *f, uint8_t *row, Err *e) {
    const attnc_args *a = &r->args;
    const Dropout d = {.seed = a->dropout_seed,
                       .offset = (uint32_t)a->dropout_offset,
                       .threshold = dropout_threshold(a->dropout_p),
                       .heads = (uint32_t)a->heads};
    int rc = 0;
    for (int64_t b = 0; b < a->batch; b++) {
        const int32_t *cu = a->cu_seqlens_q, *ck = a->cu_seqlens_k;
        int64_t nq = cu ? cu[b + 1] - cu[b] : a->seqlen_q;
        int64_t nk = ck ? ck[b + 1] - ck[b] : a->seqlen_k;
        for (int64_t h = 0; h < a->heads; h++)
            for (int64_t i = 0; i < a->seqlen_q && rc == 0; i++) {
                keep_row(&d, b, h, i, i < nq ? nk : 0, row, a->seqlen_k);
                rc = outfile_write(f, row, (size_t)a->seqlen_k, e);
            }
    }
    return rc;
}

int dropout_mask_write(const char *path, const Run *r, Err *e) {
    const attnc_args *a = &r->args;
    const int64_t dim[] = {a->batch, a->heads, a->seqlen_q, a->seqlen_k};
    char header[512];
    OutFile f;
    int rc = outfile_beside(path, &f, e);
    if (rc)
        return rc;
    uint8_t *row = malloc((size_t)a->seqlen_k + 1);
    rc =
        row ? outfile_write(&f, header, npy_header_of(header, "|b1", dim, 4), e)
            : err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    rc = rc ? rc : write_rows(r, &f, row, e);
    free(row);
    if (rc == 0)
        return outfile_publish(&f, 1, e);
    outfile_drop(&f);
    return rc;
}
