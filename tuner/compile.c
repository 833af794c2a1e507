/* SPDX-License-Identifier: Apache-2.0
 * Samples of what making a kernel for a GPU costs, cold. No GPU is needed. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

bool nvrtc_exists(const Bench *b) {
    char command[sizeof b->attnc + 32], text[65536];
    snprintf(command, sizeof command, "'%s' devices --json", b->attnc);
    FILE *f = popen(command, "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    text[n] = 0;
    return f && pclose(f) == 0 && strstr(text, "\"nvrtc\":{\"found\":true");
}

/* Milliseconds in the compiler for one kernel, in a context of its own. */
static double compile_ms(const Case *c, const char *tile) {
    attnc_options options = ATTNC_OPTIONS_INIT;
    attnc_prepare_options how = {sizeof how, tile};
    attnc_plan_info info = {.struct_size = sizeof info};
    attnc_context *ctx;
    attnc_plan *plan;
    options.target = c->target;
    options.cache_dir = "";
    if (attnc_context_create(&options, &ctx))
        return say_error("context");
    int r = attnc_prepare_with(ctx, &c->spec, &c->shape, &how, &plan);
    r = r ? r : attnc_plan_get_info(plan, &info);
    if (!r)
        attnc_plan_release(plan);
    else
        say_error(c->name);
    attnc_context_destroy(ctx);
    return r ? -1 : info.compile_ms;
}

double sample_compile(Bench *b, Case *c) {
    (void)b;
    return compile_ms(c, c->tile);
}

/* ---- several ------------------------------------------------------------ */

enum { TILES = 4 };

typedef struct Several {
    const Case *c;
    double ms[TILES];
} Several;

static void one(void *several, int i) {
    static const char *const tiles[TILES] = {"block_k=16", "block_k=32",
                                             "block_k=48", "block_k=64"};
    Several *s = several;
    s->ms[i] = compile_ms(s->c, tiles[i]);
}

/* Milliseconds until all are there; -1: one is not. */
static double several(const Case *c, bool at_once) {
    Several s = {.c = c};
    double start = seconds_now();
    if (at_once)
        on_threads(TILES, one, &s);
    for (int i = 0; !at_once && i < TILES; i++)
        one(&s, i);
    for (int i = 0; i < TILES; i++)
        if (s.ms[i] < 0)
            return -1;
    return (seconds_now() - start) * 1e3;
}

double sample_in_turn(Bench *b, Case *c) {
    (void)b;
    return several(c, false);
}

double sample_side_by_side(Bench *b, Case *c) {
    (void)b;
    return several(c, true);
}
