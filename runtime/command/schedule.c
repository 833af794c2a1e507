/* SPDX-License-Identifier: Apache-2.0
 * How long cores take for work items of known lengths, in the order in which
 * a launch starts them. */
#include <stdlib.h>

#include "command.h"

/* Heap of the times at which cores are free, the earliest first. */
static void take(double *at, int cores, double load) {
    double mine = at[0] + load;
    int i = 0;
    for (int child; (child = 2 * i + 1) < cores; i = child) {
        child += child + 1 < cores && at[child + 1] < at[child];
        if (mine <= at[child])
            break;
        at[i] = at[child];
    }
    at[i] = mine;
}

static int falling(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Puts what is clearly longer than others first, the longest of it foremost;
 * the rest comes from the last item down. Returns how many are first. */
static int64_t arrange(const double *load, int64_t n, double clearly,
                       double *out) {
    int64_t first = 0, at;
    for (int64_t i = 0; i < n; i++)
        if (load[i] >= clearly)
            out[first++] = load[i];
    qsort(out, (size_t)first, sizeof *out, falling);
    at = first;
    for (int64_t i = n - 1; i >= 0; i--)
        if (load[i] < clearly)
            out[at++] = load[i];
    return first;
}

double schedule_last(const double *load, int64_t n, int64_t times, int cores,
                     double clearly) {
    double *order = malloc((size_t)(n + 1) * sizeof *order);
    double *at = calloc((size_t)cores + 1, sizeof *at), last = 0;
    if (order && at) {
        int64_t first = arrange(load, n, clearly, order);
        for (int64_t i = 0; i < first * times; i++)
            take(at, cores, order[i / times]);
        for (int64_t i = 0; i < (n - first) * times; i++)
            take(at, cores, order[first + i % (n - first)]);
    }
    for (int i = 0; at && i < cores; i++)
        last = at[i] > last ? at[i] : last;
    free(order);
    free(at);
    return last;
}
