/* SPDX-License-Identifier: Apache-2.0
 * The table of what is measured, and where its tensors lie. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

#include "gen.h"

enum { HEADS = 8, CASES_MAX = 240 };

static const char *const dtypes[] = {"f32", "f16", "bf16"};
static const char *const masks[] = {"none", "causal"};

Case *case_add(Bench *b, const char *group, const char *unit, Sample *sample,
               const char *name) {
    Case *c = &b->cases[b->ncase];
    char whole[80];
    snprintf(whole, sizeof whole, "%s/%s", group, name);
    if (b->ncase == CASES_MAX || (b->filter && !strstr(whole, b->filter)))
        return NULL;
    *c = (Case){.unit = unit,
                .sample = sample,
                .spec = ATTNC_SPEC_DEFAULT,
                .shape = ATTNC_SHAPE_DEFAULT};
    snprintf(c->group, sizeof c->group, "%s", group);
    snprintf(c->name, sizeof c->name, "%s", name);
    b->ncase++;
    return c;
}

void case_sizes(Case *c, int dtype, int d, int mask, int64_t n) {
    c->spec.dtype = dtype;
    c->spec.head_dim = d;
    c->spec.mask = mask;
    c->shape.heads = c->shape.kv_heads = HEADS;
    c->shape.seqlen_q = c->shape.seqlen_k = n;
}

/* ---- groups ------------------------------------------------------------ */

/* Shares of the multiply-add rate: dtype x head dim x mask x length. */
static void forward(Bench *b, int dtype, const int *lengths) {
    for (int d = 64; d <= 128; d += 64)
        for (int m = 0; m < 2; m++)
            for (const int *n = lengths; *n; n++) {
                char name[48];
                snprintf(name, sizeof name, "%s d%d %s n%d", dtypes[dtype], d,
                         masks[m], *n);
                Case *c = case_add(b, "forward", "GFLOP/s", sample_flops, name);
                if (!c)
                    continue;
                case_sizes(c, dtype, d, m, *n);
                c->peak = dtype == ATTNC_BF16 && peak_bf16(1) > 0 ? PEAK_BF16
                                                                  : PEAK_FMA;
            }
}

/* The gradients: five products for each pair. */
static void backward(Bench *b) {
    for (int d = 64; d <= 128; d += 64)
        for (int m = 0; m < 2; m++)
            for (int n = 1024; n <= 4096; n *= 4)
                for (int heads = 1; heads <= HEADS; heads *= HEADS) {
                    char name[48];
                    snprintf(name, sizeof name, "f32 d%d %s n%d heads%d", d,
                             masks[m], n, heads);
                    Case *c =
                        case_add(b, "backward", "GFLOP/s", sample_flops, name);
                    if (!c)
                        continue;
                    case_sizes(c, ATTNC_F32, d, m, n);
                    c->spec.pass = ATTNC_PASS_BWD;
                    c->shape.heads = c->shape.kv_heads = heads;
                    c->peak = PEAK_FMA;
                }
}

/* Rows of one head a multiple of 4 KiB apart, where caches have few sets. */
static void strides(Bench *b) {
    static const int heads[] = {15, 16, 32};
    for (int bnhd = 0; bnhd < 2; bnhd++)
        for (int i = 0; i < 3; i++) {
            char name[48];
            snprintf(name, sizeof name, "%s d64 heads%d row%dB",
                     bnhd ? "bnhd" : "bhnd", heads[i],
                     bnhd ? heads[i] * 256 : 256);
            Case *c = case_add(b, "strides", "GFLOP/s", sample_flops, name);
            if (!c)
                continue;
            case_sizes(c, ATTNC_F32, 64, ATTNC_MASK_NONE, 2048);
            c->shape.heads = c->shape.kv_heads = heads[i];
            c->bnhd = bnhd;
            c->peak = PEAK_FMA;
        }
}

/* One query against many keys: reading them is all the work. */
static void decode(Bench *b) {
    static const struct {
        int dtype, heads, kv_heads;
    } rows[] = {{0, 8, 8},  {0, 32, 32}, {0, 32, 4},
                {1, 32, 4}, {2, 32, 4},  {1, 32, 32}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char name[48];
        snprintf(name, sizeof name, "%s d128 n16384 heads%d/%d",
                 dtypes[rows[i].dtype], rows[i].heads, rows[i].kv_heads);
        Case *c = case_add(b, "decode", "GB/s", sample_bandwidth, name);
        if (!c)
            continue;
        case_sizes(c, rows[i].dtype, 128, ATTNC_MASK_NONE, 16384);
        c->shape.seqlen_q = 1;
        c->shape.heads = rows[i].heads;
        c->shape.kv_heads = rows[i].kv_heads;
        c->peak = PEAK_READ;
    }
}

/* Ways to the same result, the rivals first. */
static const struct Way {
    const char *name;
    Sample *flops, *us;
} ways[] = {
    {"naive loop", sample_naive_flops, sample_naive_us},
    {"unfused, OpenBLAS", sample_unfused_flops, sample_unfused_us},
    {"attnc", sample_flops, sample_us},
};
enum { WAYS = sizeof ways / sizeof ways[0] };

static bool has_way(int w) {
    return ways[w].us != sample_unfused_us || unfused_exists();
}

/* Short sequences, where starting costs more than working. */
static void small(Bench *b) {
    for (int n = 1; n <= 128; n *= 2)
        for (int w = 0, rivals = 0; w < WAYS; w++) {
            char name[48];
            snprintf(name, sizeof name, "n%d: %s", n, ways[w].name);
            Case *c = !has_way(w)
                          ? NULL
                          : case_add(b, "small", "us", ways[w].us, name);
            if (!c)
                continue;
            case_sizes(c, ATTNC_F32, 64, ATTNC_MASK_NONE, n);
            c->rivals = w == WAYS - 1 ? rivals : 0;
            rivals++;
        }
}

/* The naive loop is left out where it would take most of the time. */
static void peers(Bench *b) {
    for (int m = 0; m < 2; m++)
        for (int n = 1024; n <= 4096; n *= 4)
            for (int w = n == 1024 ? 0 : 1; w < WAYS; w++) {
                char name[48];
                snprintf(name, sizeof name, "f32 d64 %s n%d: %s", masks[m], n,
                         ways[w].name);
                Case *c = !has_way(w) ? NULL
                                      : case_add(b, "peers", "GFLOP/s",
                                                 ways[w].flops, name);
                if (!c)
                    continue;
                case_sizes(c, ATTNC_F32, 64, m, n);
                c->peak = PEAK_FMA;
            }
}

/* Either pass without and with: what dropout costs. */
static void dropout(Bench *b) {
    for (int i = 0; i < 16; i++) {
        int d = i & 8 ? 128 : 64, mask = i >> 2 & 1, bwd = i >> 1 & 1;
        char name[48];
        snprintf(name, sizeof name, "%s d%d %s n2048: %s", bwd ? "bwd" : "fwd",
                 d, masks[mask], i & 1 ? "dropout 0.1" : "none");
        Case *c = case_add(b, "dropout", "us", sample_us, name);
        if (!c)
            continue;
        case_sizes(c, ATTNC_F32, d, mask, 2048);
        c->spec.pass = bwd ? ATTNC_PASS_BWD : ATTNC_PASS_FWD;
        c->spec.dropout = c->rivals = i & 1;
    }
}

/* What adding dQ up in a fixed order costs, with one head on all cores: the
 * plan's partial sums, and two passes, against one sum without any waiting,
 * which bounds what sums in any order could reach. */
static void determinism(Bench *b) {
    static const struct {
        const char *name, *tile;
        bool alone;
    } rows[] = {{"no order, a bound", "parts=1", true},
                {"as planned", NULL, false},
                {"two passes", "parts=0", false}};
    for (int i = 0; i < 12; i++) {
        int way = i % 3, mask = i / 3 & 1, n = i / 6 ? 4096 : 1024;
        char name[48];
        snprintf(name, sizeof name, "f32 d64 %s n%d: %s", masks[mask], n,
                 rows[way].name);
        Case *c = case_add(b, "determinism", "us", sample_us, name);
        if (!c)
            continue;
        case_sizes(c, ATTNC_F32, 64, mask, n);
        c->spec.pass = ATTNC_PASS_BWD;
        c->shape.heads = c->shape.kv_heads = 1;
        c->tile = rows[way].tile;
        c->alone = rows[way].alone;
        c->rivals = way;
    }
}

/* What comes before a launch, and what it takes beside its tensors. */
static void around(Bench *b) {
    static const struct {
        const char *group, *name, *unit;
        Sample *sample;
        int part;
    } rows[] = {
        {"prepare", "cold, all of it", "ms", sample_cold, PART_COLD},
        {"prepare", "cold: compiler and linker", "ms", sample_cold,
         PART_COMPILE},
        {"prepare", "cold: linker, by hand", "ms", sample_link, 0},
        {"prepare", "cold: attnc's own part", "ms", sample_cold, PART_OWN},
        {"prepare", "cold: of that, writing C", "ms", sample_cold, PART_EMIT},
        {"prepare", "cold: of that, loading", "ms", sample_cold, PART_LOAD},
        {"prepare", "found on disk", "ms", sample_disk, 0},
        {"prepare", "found in memory", "ns", sample_memory_hit, 0},
        {"prepare", "attnc explain, a process", "ms", sample_explain, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        Case *c = case_add(b, rows[i].group, rows[i].unit, rows[i].sample,
                           rows[i].name);
        if (!c)
            continue;
        case_sizes(c, ATTNC_F32, 64, ATTNC_MASK_CAUSAL, 4096);
        c->part = rows[i].part;
    }
}

/* What a process takes beyond its tensors. */
static void memory(Bench *b) {
    static const struct {
        const char *name;
        int pass, n;
    } rows[] = {
        {"beyond tensors, n65536 d64", ATTNC_PASS_FWD, 65536},
        {"backward, beyond tensors, n16384 d64", ATTNC_PASS_BWD, 16384},
    };
    for (int i = 0; i < 2; i++) {
        Case *c = case_add(b, "memory", "MiB", sample_rss, rows[i].name);
        if (!c)
            continue;
        c->spec.pass = rows[i].pass;
        c->part = rows[i].n;
    }
}

/* Forward and backward in the cells of the paper's Table 21 against its row
 * FlashAttention, in MiB: 16 batch entries, 8 heads of 64, two bytes. Longer
 * ones are counted alone. */
static void table21(Bench *b) {
    static const int theirs[] = {22,  44,   104,  209,  418,
                                 836, 1672, 3344, 6688, 13376};
    enum { CELLS = sizeof theirs / sizeof theirs[0], MEASURED = 4 };
    for (int i = 0; i < CELLS + 2 * MEASURED; i++) {
        int cell = i < CELLS ? i : (i - CELLS) % MEASURED;
        int dtype = i < CELLS + MEASURED ? ATTNC_F16 : ATTNC_BF16;
        char name[48];
        snprintf(name, sizeof name, "%s n%d, %s", dtypes[dtype], 128 << cell,
                 i < CELLS ? "counted" : "measured");
        Case *c = case_add(b, "table21", "MiB",
                           i < CELLS ? sample_counted : sample_table, name);
        if (!c)
            continue;
        c->spec.dtype = dtype;
        c->part = 128 << cell;
        c->bound = theirs[cell];
    }
}

/* Kernels for GPUs, which this machine need not have. Peeled ones have a loop
 * of their own for boundary tiles. */
static void compile(Bench *b) {
    static const struct {
        const char *name, *target, *tile;
        int d, mask;
    } rows[] = {
        {"NVRTC sm_80 f16 d64 none", "sm_80", NULL, 64, 0},
        {"NVRTC sm_80 f16 d64 causal", "sm_80", "peel=0", 64, 1},
        {"NVRTC sm_80 f16 d64 causal, peeled", "sm_80", "peel=1", 64, 1},
        {"NVRTC sm_80 f16 d128 none", "sm_80", NULL, 128, 0},
        {"NVRTC sm_80 f16 d128 causal", "sm_80", "peel=0", 128, 1},
        {"NVRTC sm_80 f16 d128 causal, peeled", "sm_80", "peel=1", 128, 1},
        {"clang, emulated sm_80 f16 d64 causal", "emu:sm_80", NULL, 64, 1},
        {"NVRTC, 4 tiles in turn", "sm_80", NULL, 64, 0},
        {"NVRTC, 4 tiles side by side", "sm_80", NULL, 64, 0},
    };
    enum { ROWS = sizeof rows / sizeof rows[0] };
    bool nvrtc = nvrtc_exists(b);
    for (int i = 0; i < ROWS; i++) {
        Case *c = rows[i].target[0] == 's' && !nvrtc
                      ? NULL
                      : case_add(b, "compile", "ms",
                                 i == ROWS - 1   ? sample_side_by_side
                                 : i == ROWS - 2 ? sample_in_turn
                                                 : sample_compile,
                                 rows[i].name);
        if (!c)
            continue;
        case_sizes(c, ATTNC_F16, rows[i].d, rows[i].mask, 1024);
        c->target = rows[i].target;
        c->tile = rows[i].tile;
    }
}

int cases_make(Bench *b) {
    static const int lengths[] = {1024, 2048, 4096, 8192, 0};
    static const int fewer[] = {1024, 4096, 0};
    b->cases = calloc(CASES_MAX, sizeof *b->cases);
    if (!b->cases)
        return -1;
    forward(b, ATTNC_F32, lengths);
    forward(b, ATTNC_F16, fewer);
    forward(b, ATTNC_BF16, fewer);
    backward(b);
    strides(b);
    decode(b);
    small(b);
    peers(b);
    dropout(b);
    determinism(b);
    sparse_cases(b);
    read_cases(b);
    around(b);
    memory(b);
    table21(b);
    compile(b);
    return 0;
}

/* ---- tensors ----------------------------------------------------------- */

static int64_t elements(const Case *c, int64_t heads, int64_t n) {
    return c->shape.batch * heads * n * c->spec.head_dim;
}

/* Q, K, V, O one behind the other, each from a new page on; with a backward
 * their gradients too, and LSE. */
enum { PAGE = 4096 };

int64_t case_bytes(const Case *c) {
    const attnc_shape *s = &c->shape;
    int64_t e = dtype_bytes(c->spec.dtype);
    int64_t bytes = 2 * elements(c, s->heads, s->seqlen_q) * e +
                    2 * elements(c, s->kv_heads, s->seqlen_k) * e + 5 * PAGE;
    if (c->spec.pass == ATTNC_PASS_FWD)
        return bytes;
    return 2 * bytes + 4 * s->batch * s->heads * s->seqlen_q;
}

static attnc_tensor cut(const Case *c, char **at, int64_t heads, int64_t n) {
    int64_t d = c->spec.head_dim;
    attnc_tensor t = {*at, heads * n * d, c->bnhd ? d : n * d,
                      c->bnhd ? heads * d : d};
    int64_t bytes = elements(c, heads, n) * dtype_bytes(c->spec.dtype);
    *at += (bytes + PAGE - 1) / PAGE * PAGE;
    return t;
}

void case_tensors(const Bench *b, const Case *c, attnc_args *a) {
    const attnc_shape *s = &c->shape;
    char *at = b->arena;
    *a = (attnc_args)ATTNC_ARGS_INIT;
    a->batch = s->batch;
    a->heads = s->heads;
    a->kv_heads = s->kv_heads;
    a->seqlen_q = s->seqlen_q;
    a->seqlen_k = s->seqlen_k;
    a->q = cut(c, &at, s->heads, s->seqlen_q);
    a->o = cut(c, &at, s->heads, s->seqlen_q);
    a->k = cut(c, &at, s->kv_heads, s->seqlen_k);
    a->v = cut(c, &at, s->kv_heads, s->seqlen_k);
    if (c->spec.pass == ATTNC_PASS_BWD) {
        a->dq = cut(c, &at, s->heads, s->seqlen_q);
        a->dout = cut(c, &at, s->heads, s->seqlen_q);
        a->dk = cut(c, &at, s->kv_heads, s->seqlen_k);
        a->dv = cut(c, &at, s->kv_heads, s->seqlen_k);
        a->lse = (float *)at;
        a->lse_stride_h = s->seqlen_q;
        a->lse_stride_b = s->heads * s->seqlen_q;
    }
    if (c->spec.dropout) {
        a->dropout_p = 0.1;
        a->dropout_seed = 20260;
    }
    a->pattern = c->pattern;
    a->tensors = &c->array;
    a->tensor_count = c->array_data != NULL;
    a->workspace = c->workspace;
    a->workspace_bytes = c->workspace_bytes;
}

double case_flops(const Case *c) {
    double products = c->spec.pass == ATTNC_PASS_BWD ? 5 : 2;
    return 2 * products * c->spec.head_dim *
           model_visible(&c->spec, &c->shape) *
           (double)(c->shape.batch * c->shape.heads);
}
