/* SPDX-License-Identifier: Apache-2.0
 * Samples of what comes before a launch, and of the memory around it. */
#include "bench.h"

#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- preparing --------------------------------------------------------- */

/* Prepares c->spec in a context of its own; *info of that. */
static int prepare_anew(const Bench *b, const Case *c, const char *dir,
                        attnc_plan_info *info) {
    attnc_options options = ATTNC_OPTIONS_INIT;
    attnc_context *ctx;
    attnc_plan *plan;
    *info = (attnc_plan_info){.struct_size = sizeof *info};
    options.target = "cpu";
    options.cache_dir = dir;
    options.threads = b->threads;
    if (attnc_context_create(&options, &ctx))
        return say_error("context");
    int r = attnc_prepare(ctx, &c->spec, &c->shape, &plan);
    if (!r) {
        r = attnc_plan_get_info(plan, info);
        attnc_plan_release(plan);
    }
    attnc_context_destroy(ctx);
    return r ? say_error(c->name) : 0;
}

double sample_cold(Bench *b, Case *c) {
    attnc_plan_info i;
    if (prepare_anew(b, c, "", &i))
        return -1;
    switch (c->part) {
    case PART_COMPILE:
        return i.compile_ms;
    case PART_EMIT:
        return i.emit_ms;
    case PART_LOAD:
        return i.load_ms;
    case PART_OWN:
        return i.prepare_ms - i.compile_ms;
    default:
        return i.prepare_ms;
    }
}

double sample_disk(Bench *b, Case *c) {
    attnc_plan_info i;
    if (c->value.n == 0 && prepare_anew(b, c, b->scratch, &i))
        return -1; /* fills the directory */
    return prepare_anew(b, c, b->scratch, &i) ? -1 : i.prepare_ms;
}

double sample_memory_hit(Bench *b, Case *c) {
    enum { TIMES = 20000 };
    if (!c->plan && attnc_prepare(b->ctx, &c->spec, &c->shape, &c->plan))
        return say_error(c->name);
    double start = seconds_now();
    for (int i = 0; i < TIMES; i++) {
        attnc_plan *plan;
        if (attnc_prepare(b->ctx, &c->spec, &c->shape, &plan))
            return say_error(c->name);
        attnc_plan_release(plan);
    }
    return (seconds_now() - start) / TIMES * 1e9;
}

/* ---- processes --------------------------------------------------------- */

/* Runs argv with its output in `out` (a file); its exit status, or -1. */
static int run(char *const argv[], const char *out) {
    posix_spawn_file_actions_t files;
    pid_t pid;
    int status = -1;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 1, out,
                                     O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (posix_spawn(&pid, argv[0], &files, NULL, argv, environ) == 0)
        waitpid(pid, &status, 0);
    posix_spawn_file_actions_destroy(&files);
    return status;
}

/* Milliseconds of a child, or -1. */
static double timed(char *const argv[], const Case *c) {
    double start = seconds_now();
    if (run(argv, "/dev/null")) {
        fprintf(stderr, "attnc-bench: %s: %s failed\n", c->name, argv[0]);
        return -1;
    }
    return (seconds_now() - start) * 1e3;
}

double sample_explain(Bench *b, Case *c) {
    char *argv[] = {b->attnc,   "explain", "--mask", "causal",
                    "--seqlen", "4096",    NULL};
    return timed(argv, c);
}

/* The linker's share of a cold prepare, on an object of the same source. */
double sample_link(Bench *b, Case *c) {
    char dir[sizeof b->scratch + 8], command[1024];
    snprintf(dir, sizeof dir, "%s/link", b->scratch);
    snprintf(command, sizeof command,
             "'%s' emit --mask causal --seqlen 4096 -o %s && cd %s && "
             "clang -march=native -O1 -fPIC -w -c *.c -o a.o",
             b->attnc, dir, dir);
    char *make[] = {"/bin/sh", "-c", command, NULL};
    if (c->value.n == 0 && timed(make, c) < 0)
        return -1;
    char in[sizeof dir + 8], out[sizeof dir + 8];
    snprintf(in, sizeof in, "%s/a.o", dir);
    snprintf(out, sizeof out, "%s/a.so", dir);
    char *ld[] = {"/usr/bin/ld", "-shared", "-z", "noexecstack", "-s", in,
                  "-o",          out,       NULL};
    return timed(ld, c);
}

/* ---- memory ------------------------------------------------------------ */

/* Of this program alone: getrusage also counts the one it was started by. */
static double peak_mib(void) {
    char line[128];
    long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %ld", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return (double)kib / 1024.0;
}

/* A causal forward of 65536 x 64, or a backward of 16384 x 64, in a process
 * that does nothing else; the workspace counts as attnc's. */
int rss_child(int pass) {
    enum { D = 64, TENSORS = 8 };
    const int64_t n = pass == ATTNC_PASS_BWD ? 16384 : 65536;
    attnc_spec spec = ATTNC_SPEC_DEFAULT;
    attnc_args a = ATTNC_ARGS_INIT;
    attnc_options options = ATTNC_OPTIONS_INIT;
    attnc_context *ctx;
    size_t bytes = (size_t)n * D * sizeof(float);
    int used = pass == ATTNC_PASS_BWD ? TENSORS : 4;
    char *data = malloc((size_t)used * bytes + (size_t)n * sizeof(float));
    if (!data)
        return 4;
    memset(data, 0, (size_t)used * bytes + (size_t)n * sizeof(float));
    double before = peak_mib();
    attnc_tensor *t[TENSORS] = {&a.q,    &a.k,  &a.v,  &a.o,
                                &a.dout, &a.dq, &a.dk, &a.dv};
    for (int i = 0; i < used; i++)
        *t[i] = (attnc_tensor){data + (size_t)i * bytes, 0, 0, D};
    if (pass == ATTNC_PASS_BWD)
        a.lse = (float *)(data + TENSORS * bytes);
    a.batch = a.heads = a.kv_heads = 1;
    a.seqlen_q = a.seqlen_k = n;
    spec.mask = ATTNC_MASK_CAUSAL;
    spec.pass = pass;
    options.target = "cpu";
    options.cache_dir = "";
    if (attnc_context_create(&options, &ctx) || attnc_run(ctx, &spec, &a, NULL))
        return say_error("memory");
    attnc_context_destroy(ctx);
    printf("%.2f\n", peak_mib() - before);
    free(data);
    return 0;
}

double sample_rss(Bench *b, Case *c) {
    char out[sizeof b->scratch + 8],
        *argv[] = {"/proc/self/exe", "--rss-child",
                   c->part == ATTNC_PASS_BWD ? "bwd" : "fwd", NULL};
    double mib = -1;
    snprintf(out, sizeof out, "%s/rss", b->scratch);
    int status = run(argv, out);
    FILE *f = status ? NULL : fopen(out, "r");
    if (!f || fscanf(f, "%lf", &mib) != 1)
        fprintf(stderr, "attnc-bench: %s: no answer\n", c->name);
    if (f)
        fclose(f);
    return mib;
}
