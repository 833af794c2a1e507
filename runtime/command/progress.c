/* SPDX-License-Identifier: Apache-2.0
 * A line on the terminal while long work goes on. */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "command.h"

/* Shown after this long, then at most so often: short work stays silent. */
static const double first_s = 0.5, every_s = 0.1;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void progress_show(const char *what, double done) {
    static double next;
    static bool shown;
    if (!isatty(STDERR_FILENO))
        return;
    double t = now();
    if (next == 0)
        next = t + first_s;
    if (done >= 1) {
        if (shown)
            fprintf(stderr, "\r\033[K");
        shown = false;
        next = 0;
    } else if (t >= next) {
        fprintf(stderr, "\r%s %3.0f %%\033[K", what, 100 * done);
        shown = true;
        next = t + every_s;
    }
    fflush(stderr);
}
