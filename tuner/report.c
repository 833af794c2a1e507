/* SPDX-License-Identifier: Apache-2.0
 * The measured figures as a table to read and as JSON to keep. */
#include "bench.h"

#include <jansson.h>
#include <string.h>
#include <time.h>

static const struct {
    const char *group, *title;
} groups[] = {
    {"forward", "Forward, 8 heads, useful operations; share of the rate"},
    {"strides", "Forward, rows of one head so many bytes apart"},
    {"backward", "Backward, useful operations; share of the rate"},
    {"decode", "One query, 16384 keys; share of reading K and V"},
    {"small", "Short, 8 heads, d 64; so many times the best rival's speed"},
    {"peers", "Other ways to the same result"},
    {"dropout", "Dropout; so many times the speed without"},
    {"determinism", "Backward, 1 head, dQ summed in order; so many times the "
                    "speed without"},
    {"sparse",
     "Patterns; so many times faster than 1.15 of their share of dense, or "
     "than the paper's"},
    {"programs",
     "Programs; so many times the speed of a built-in mask, or of no tensor"},
    {"prepare", "Before the first launch"},
    {"compile", "Compiling for GPUs, which need not be here; cold"},
    {"memory", "Peak of a process beyond its tensors"},
    {"table21", "Forward and backward, 16 x 8 heads of 64, all of it; so many "
                "times less than the paper's FlashAttention"},
};
enum { GROUPS = sizeof groups / sizeof groups[0] };

static const char *const peak_names[] = {"", "FMA", "bf16 dot", "read"};

/* ---- the machine ------------------------------------------------------- */

typedef struct Machine {
    char cpu[80], date[32];
    double ghz, fma, bf16;
} Machine;

static void cpu_name(char *out, size_t n) {
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");
    snprintf(out, n, "unknown CPU");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "model name", 10) && strchr(line, ':')) {
            line[strcspn(line, "\n")] = 0;
            snprintf(out, n, "%s", strchr(line, ':') + 2);
            break;
        }
    if (f)
        fclose(f);
}

static Machine machine(const Bench *b) {
    Machine m = {.ghz = clock_ghz(),
                 .fma = peak_fma(b->threads),
                 .bf16 = peak_bf16(b->threads)};
    time_t now = time(NULL);
    struct tm tm;
    cpu_name(m.cpu, sizeof m.cpu);
    strftime(m.date, sizeof m.date, "%Y-%m-%d", gmtime_r(&now, &tm));
    return m;
}

/* ---- table ------------------------------------------------------------- */

/* Small figures with a decimal, large ones without. */
static void figure(FILE *out, double v) {
    fprintf(out, " %8.*f", v < 10 ? 2 : v < 1000 ? 1 : 0, v);
}

static void row(const Case *c, FILE *out) {
    Spread v = series_spread(&c->value), r = series_spread(&c->ratio);
    fprintf(out, "  %-40s", c->name);
    if (c->failed) {
        fputs(" failed\n", out);
        return;
    }
    figure(out, v.min);
    figure(out, v.median);
    figure(out, v.max);
    fprintf(out, " %-8s", c->unit);
    if (c->peak && c->ratio.n)
        fprintf(out, "%6.1f %5.1f %5.1f %% of %.0f %s", 100 * r.min,
                100 * r.median, 100 * r.max, series_spread(&c->peaks).median,
                peak_names[c->peak]);
    else if (c->ratio.n)
        fprintf(out, "%6.2f %5.2f %5.2f x", r.min, r.median, r.max);
    fputc('\n', out);
}

static void table(const Bench *b, Machine m, FILE *out) {
    fprintf(out, "%s, %d thread%s, %.2f GHz, %s: %.0f GFLOP/s of f32 FMA",
            m.cpu, b->threads, b->threads == 1 ? "" : "s", m.ghz, vector_name(),
            m.fma);
    if (m.bf16 > 0)
        fprintf(out, ", %.0f of bf16 dot products", m.bf16);
    fprintf(out, "\nEach figure: least, median and most of %d rounds.\n",
            b->rounds);
    for (int g = 0; g < GROUPS; g++) {
        bool titled = false;
        for (int i = 0; i < b->ncase; i++) {
            if (strcmp(b->cases[i].group, groups[g].group))
                continue;
            if (!titled)
                fprintf(out, "\n%s\n", groups[g].title);
            titled = true;
            row(&b->cases[i], out);
        }
    }
}

/* ---- JSON -------------------------------------------------------------- */

static json_t *spread_json(const Series *s) {
    Spread v = series_spread(s);
    return json_pack("{s:f,s:f,s:f}", "min", v.min, "median", v.median, "max",
                     v.max);
}

static json_t *case_json(const Case *c) {
    json_t *o = json_pack("{s:s,s:s,s:s,s:b}", "group", c->group, "name",
                          c->name, "unit", c->unit, "failed", c->failed);
    if (c->value.n)
        json_object_set_new(o, "value", spread_json(&c->value));
    if (c->ratio.n)
        json_object_set_new(o, "ratio", spread_json(&c->ratio));
    if (c->peaks.n) {
        json_object_set_new(o, "peak", json_string(peak_names[c->peak]));
        json_object_set_new(o, "peak_value", spread_json(&c->peaks));
    }
    return o;
}

static int json(const Bench *b, Machine m) {
    json_t *cases = json_array(), *titles = json_object();
    for (int i = 0; i < b->ncase; i++)
        json_array_append_new(cases, case_json(&b->cases[i]));
    for (int g = 0; g < GROUPS; g++)
        json_object_set_new(titles, groups[g].group,
                            json_string(groups[g].title));
    json_t *o =
        json_pack("{s:s,s:s,s:s,s:i,s:s,s:f,s:f,s:f,s:i,s:o,s:o}", "commit",
                  b->commit ? b->commit : "", "date", m.date, "cpu", m.cpu,
                  "threads", b->threads, "vectors", vector_name(), "clock_ghz",
                  m.ghz, "fma_gflops", m.fma, "bf16_gflops", m.bf16, "rounds",
                  b->rounds, "titles", titles, "cases", cases);
    int r = json_dump_file(o, b->json,
                           JSON_INDENT(1) | JSON_REAL_PRECISION(5) |
                               JSON_PRESERVE_ORDER);
    json_decref(o);
    return r;
}

int report(const Bench *b) {
    Machine m = machine(b);
    table(b, m, stdout);
    return b->json ? json(b, m) : 0;
}
