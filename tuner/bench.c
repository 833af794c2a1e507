/* SPDX-License-Identifier: Apache-2.0
 * attnc-bench: every case once per round, its peak measured right before and
 * after it, so that a machine whose clock drifts changes both alike. */
#include "bench.h"

#include <ftw.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + t.tv_nsec / 1e9;
}

int say_error(const char *what) {
    const attnc_error *e = attnc_last_error();
    fprintf(stderr, "attnc-bench: %s: %s: %s\n", what, e->stage, e->text);
    return -1;
}

/* ---- figures ----------------------------------------------------------- */

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

Spread series_spread(const Series *s) {
    double v[ROUNDS_MAX];
    if (!s->n)
        return (Spread){0, 0, 0};
    memcpy(v, s->v, s->n * sizeof *v);
    qsort(v, s->n, sizeof *v, ascending);
    double median = (v[(s->n - 1) / 2] + v[s->n / 2]) / 2;
    return (Spread){v[0], median, v[s->n - 1]};
}

static void put(Series *s, double v) {
    s->v[s->n++] = v;
}

static double peak_of(const Bench *b, const Case *c) {
    switch (c->peak) {
    case PEAK_FMA:
        return peak_fma(b->threads);
    case PEAK_BF16:
        return peak_bf16(b->threads);
    case PEAK_READ:
        return peak_read(b->threads, b->arena, case_bytes(c));
    default:
        return 0;
    }
}

/* Best rival of this round over the case: how many times faster it is. */
static double against_rivals(const Case *c, double value) {
    double best = 0;
    for (int i = 1; i <= c->rivals; i++) {
        const Series *s = &c[-i].value;
        double v = s->n ? s->v[s->n - 1] : 0;
        if (v > 0 && (best == 0 || v < best))
            best = v;
    }
    return best / value;
}

static int one(Bench *b, Case *c) {
    double before = peak_of(b, c);
    double value = c->sample(b, c);
    if (value < 0)
        return -1;
    put(&c->value, value);
    double peak = (before + peak_of(b, c)) / 2;
    if (c->bound > 0)
        put(&c->ratio, c->bound / value);
    if (c->rivals)
        put(&c->ratio, against_rivals(c, value));
    if (peak > 0) {
        put(&c->peaks, peak);
        put(&c->ratio, value / peak);
    }
    return 0;
}

/* ---- tensors ----------------------------------------------------------- */

/* Ordinary values of either sign, in bits: f32 and bf16 0.25 .. 1, f16 too. */
static void fill(char *data, size_t bytes, int dtype) {
    static const uint64_t keep[] = {0x80ffffff80ffffff, 0x83ff83ff83ff83ff,
                                    0x80ff80ff80ff80ff};
    static const uint64_t set[] = {0x3e0000003e000000, 0x3400340034003400,
                                   0x3e003e003e003e00};
    uint64_t x = 88172645463325252u, *p = (uint64_t *)(void *)data;
    for (size_t i = 0; i < bytes / sizeof *p; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        p[i] = (x & keep[dtype]) | set[dtype];
    }
}

static int arena_make(Bench *b) {
    for (int i = 0; i < b->ncase; i++) {
        size_t bytes = case_bytes(&b->cases[i]);
        b->arena_bytes = bytes > b->arena_bytes ? bytes : b->arena_bytes;
    }
    b->arena_bytes = (b->arena_bytes + 4095) / 4096 * 4096;
    b->arena = aligned_alloc(4096, b->arena_bytes);
    return b->arena ? 0 : -1;
}

/* ---- all rounds -------------------------------------------------------- */

static void show_progress(const Bench *b, int round, const Case *c) {
    if (!b->progress)
        return;
    if (!c)
        fprintf(stderr, "\r\033[K");
    else
        fprintf(stderr, "\r\033[Kround %d of %d, %d of %d: %s, %s", round + 1,
                b->rounds, (int)(c - b->cases) + 1, b->ncase, c->group,
                c->name);
}

static int rounds(Bench *b) {
    int filled = -1, bad = 0;
    for (int r = 0; r < b->rounds; r++)
        for (int i = 0; i < b->ncase; i++) {
            Case *c = &b->cases[i];
            if (c->failed)
                continue;
            show_progress(b, r, c);
            if (c->spec.dtype != filled)
                fill(b->arena, b->arena_bytes, filled = c->spec.dtype);
            c->failed = one(b, c) < 0;
            bad |= c->failed;
        }
    show_progress(b, 0, NULL);
    return bad;
}

/* ---- command line ------------------------------------------------------ */

static int threads_here(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}

static int usage(FILE *out) {
    fputs("usage: attnc-bench [--rounds R] [--threads T] [--list]\n"
          "                   [--json FILE] [--commit TEXT] [FILTER]\n"
          "Measures every case whose \"group/name\" holds FILTER.\n",
          out);
    return out == stdout ? 0 : 2;
}

/* A whole number from 1 to most, or 0. */
static int number(const char *text, int most) {
    char *end;
    long v = text ? strtol(text, &end, 10) : 0;
    return text && *text && !*end && v >= 1 && v <= most ? (int)v : 0;
}

/* Exit status, or -1 to go on. */
static int options(Bench *b, int argc, char **argv, bool *list) {
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *value = argv[i + 1];
        if (!strcmp(a, "--help"))
            return usage(stdout);
        else if (!strcmp(a, "--list"))
            *list = true;
        else if (!strcmp(a, "--rounds") && number(value, ROUNDS_MAX))
            b->rounds = number(argv[++i], ROUNDS_MAX);
        else if (!strcmp(a, "--threads") && number(value, 4096))
            b->threads = number(argv[++i], 4096);
        else if (!strcmp(a, "--json") && value)
            b->json = argv[++i];
        else if (!strcmp(a, "--commit") && value)
            b->commit = argv[++i];
        else if (a[0] != '-' && !b->filter)
            b->filter = a;
        else {
            fprintf(stderr,
                    "attnc-bench: %s: not an option, or no good value "
                    "for it\n",
                    a);
            return usage(stderr);
        }
    }
    return -1;
}

/* The command lies beside this program. */
static void find_command(Bench *b) {
    char self[400];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    char *slash = strrchr(self, '/');
    snprintf(b->attnc, sizeof b->attnc, "%.*s/attnc",
             slash ? (int)(slash - self) : 0, self);
}

static int remove_one(const char *path, const struct stat *st, int type,
                      struct FTW *at) {
    (void)st, (void)type, (void)at;
    return remove(path);
}

/* Deletes what this run kept on disk. */
static void scratch_remove(const Bench *b) {
    nftw(b->scratch, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static int measure(Bench *b) {
    attnc_options o = ATTNC_OPTIONS_INIT;
    o.target = "cpu";
    o.cache_dir = "";
    o.threads = b->threads;
    int bad = attnc_context_create(&o, &b->ctx);
    o.threads = 1;
    if (bad || attnc_context_create(&o, &b->alone)) {
        say_error("context");
        return 4;
    }
    snprintf(b->scratch, sizeof b->scratch, "/tmp/attnc-bench-XXXXXX");
    if (arena_make(b) || !mkdtemp(b->scratch)) {
        perror("attnc-bench");
        return 4;
    }
    bad = rounds(b);
    scratch_remove(b);
    if (report(b)) {
        fprintf(stderr, "attnc-bench: cannot write %s\n", b->json);
        return 4;
    }
    return bad ? 4 : 0;
}

static void bench_free(Bench *b) {
    for (int i = 0; i < b->ncase; i++) {
        attnc_plan_release(b->cases[i].plan);
        attnc_pattern_release(b->cases[i].pattern);
        free(b->cases[i].workspace);
        free(b->cases[i].array_data);
    }
    attnc_context_destroy(b->ctx);
    attnc_context_destroy(b->alone);
    free(b->cases);
    free(b->arena);
}

int main(int argc, char **argv) {
    Bench b = {.threads = threads_here(), .progress = isatty(2)};
    bool list = false;
    if (argc == 4 && !strcmp(argv[1], "--memory-child"))
        return memory_child(argv[2], atoll(argv[3]));
    int status = options(&b, argc, argv, &list);
    if (status >= 0)
        return status;
    b.rounds = b.rounds ? b.rounds : 7;
    find_command(&b);
    if (cases_make(&b))
        return 4;
    for (int i = 0; list && i < b.ncase; i++)
        printf("%s/%s\n", b.cases[i].group, b.cases[i].name);
    if (!list && !b.ncase) {
        fprintf(stderr, "attnc-bench: no case holds '%s'; see --list\n",
                b.filter);
        status = 2;
    } else {
        status = list ? 0 : measure(&b);
    }
    bench_free(&b);
    return status;
}
