/* SPDX-License-Identifier: Apache-2.0
 * Cases of programs that read tensors: a bias, T5's table, documents, against
 * attention without them; of a backward also with the tensor's gradient. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

#include "gen.h"

enum { BUCKETS = 32, DOCUMENTS = 8 };

static const char t5[] =
    "f32 table[:,:];\n"
    "let d = k - q;\n"
    "let n = abs(d);\n"
    "let far = 8 + int(log(max(n, 1) / 8.0) * 2.88539 + 0.001);\n"
    "let bucket = (d > 0 ? 16 : 0) + (n < 8 ? n : min(far, 15));\n"
    "s + table[bucket, h]";
static const char slopes[] = "f32 slope[:]; s - slope[h] * abs(q - k)";
static const char document[] = "i32 doc[:]; doc[q] == doc[k]";

/* What is read, dim by dim: a letter of h q k, or t for T5's buckets. */
static const struct Read {
    const char *name, *tensor, *dims;
    int bias;
    const char *score, *mask;
} rows[] = {
    {"no tensor", NULL, "", ATTNC_BIAS_NONE, NULL, NULL},
    {"bias hqk", "bias", "hqk", ATTNC_BIAS_HQK, NULL, NULL},
    {"bias qk", "bias", "qk", ATTNC_BIAS_QK, NULL, NULL},
    {"bias hk", "bias", "hk", ATTNC_BIAS_HK, NULL, NULL},
    {"T5's table", "table", "th", ATTNC_BIAS_NONE, t5, NULL},
    {"documents", "doc", "q", ATTNC_BIAS_NONE, NULL, document},
    /* and their gradients */
    {"dbias hqk", "bias", "hqk", ATTNC_BIAS_HQK, NULL, NULL},
    {"dbias k", "bias", "k", ATTNC_BIAS_K, NULL, NULL},
    {"T5's dtable", "table", "th", ATTNC_BIAS_NONE, t5, NULL},
    {"dslopes", "slope", "h", ATTNC_BIAS_NONE, slopes, NULL},
};
enum { ROWS = sizeof rows / sizeof rows[0], GRADS = 6 };

/* ---- the tensor -------------------------------------------------------- */

static int64_t extent(const Case *c, char letter) {
    return letter == 'h'   ? c->shape.heads
           : letter == 't' ? BUCKETS
           : letter == 'q' ? c->shape.seqlen_q
                           : c->shape.seqlen_k;
}

/* Values of -1 .. 1, or numbers of equal documents. */
static void fill(const Case *c, const struct Read *r, int64_t count) {
    uint32_t x = 20261;
    for (int64_t i = 0; i < count; i++) {
        x = x * 1664525 + 1013904223;
        if (r->mask)
            ((int32_t *)c->array_data)[i] = (int32_t)(i * DOCUMENTS / count);
        else
            ((float *)c->array_data)[i] = (float)(x >> 8) / (1 << 23) - 1;
    }
}

/* Dense, in the order of its dims; its gradient behind it. */
static int make_array(Case *c, const struct Read *r) {
    int64_t count = 1;
    c->array =
        (attnc_array){.name = r->tensor,
                      .dtype = r->mask ? ATTNC_ARRAY_I32 : ATTNC_ARRAY_F32,
                      .rank = (int32_t)strlen(r->dims)};
    for (int d = c->array.rank - 1; d >= 0; d--) {
        c->array.n[d] = extent(c, r->dims[d]);
        c->array.stride[d] = count;
        count *= c->array.n[d];
    }
    c->array.data = c->array_data = malloc((size_t)count * 8);
    if (!c->array_data)
        return -1;
    fill(c, r, count);
    c->array.grad =
        c->spec.tensor_grads ? (float *)c->array_data + count : NULL;
    return 0;
}

/* Held against what no tensor costs: its time, or a document's share of it. */
static double sample_read(Bench *b, Case *c) {
    const struct Read *r = &rows[c->row];
    const Series *without = &c[-c->part].value;
    if (r->tensor && !c->array_data && make_array(c, r))
        return -1;
    double us = sample_us(b, c);
    if (us >= 0 && c->part && without->n)
        c->bound = without->v[without->n - 1] / (r->mask ? DOCUMENTS : 1);
    return us;
}

/* ---- cases ------------------------------------------------------------- */

static bool set_programs(Case *c, const struct Read *r) {
    c->spec.bias = r->bias;
    c->spec.mask = r->mask ? ATTNC_MASK_PROGRAM : ATTNC_MASK_NONE;
    return (!r->mask || !attnc_program_create(r->mask, ATTNC_MASK,
                                              &c->spec.mask_program)) &&
           (!r->score || !attnc_program_create(r->score, ATTNC_SCORE,
                                               &c->spec.score_program));
}

static void reads(Bench *b, int pass, int heads, int64_t n) {
    const Case *first = b->cases + b->ncase;
    for (int i = 0; i < (pass == ATTNC_PASS_BWD ? ROWS : GRADS); i++) {
        char name[48];
        snprintf(name, sizeof name, "%s n%lld heads%d, %s",
                 pass == ATTNC_PASS_BWD ? "BWD" : "FWD", (long long)n, heads,
                 rows[i].name);
        Case *c = case_add(b, "programs", "us", sample_read, name);
        if (!c)
            continue;
        case_sizes(c, ATTNC_F32, 64, ATTNC_MASK_NONE, n);
        c->spec.pass = pass;
        c->shape.heads = c->shape.kv_heads = heads;
        c->part = first->row ? 0 : (int)(c - first);
        c->row = i;
        c->spec.tensor_grads = i >= GRADS;
        if (!set_programs(c, &rows[i]))
            b->ncase--;
    }
}

void read_cases(Bench *b) {
    reads(b, ATTNC_PASS_FWD, 8, 2048);
    reads(b, ATTNC_PASS_FWD, 2, 4096);
    reads(b, ATTNC_PASS_BWD, 8, 2048);
    reads(b, ATTNC_PASS_BWD, 4, 1024);
}
