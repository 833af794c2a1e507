/* SPDX-License-Identifier: Apache-2.0
 * Samples of what comes before a launch. */
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

int process_run(char *const argv[], const char *out) {
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
    if (process_run(argv, "/dev/null")) {
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
