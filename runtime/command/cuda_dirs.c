/* SPDX-License-Identifier: Apache-2.0
 * Where the user's CUDA may lie: the command reads these variables, the
 * library does not. */
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>

#include "command.h"

/* Site-packages of a Python environment. */
static void add_packages(const char *environment, Str *out) {
    char pattern[512];
    glob_t found;
    int n = snprintf(pattern, sizeof pattern, "%s/lib/python3*/site-packages",
                     environment);
    if (n >= (int)sizeof pattern || glob(pattern, 0, NULL, &found))
        return;
    for (size_t i = 0; i < found.gl_pathc; i++)
        str_addf(out, "%s%s", out->len ? ":" : "", found.gl_pathv[i]);
    globfree(&found);
}

char *session_cuda_dirs(void) {
    const char *dirs = getenv("ATTNC_CUDA_DIRS");
    const char *environment = getenv("VIRTUAL_ENV");
    Str out = {0};
    if (dirs && *dirs)
        str_addf(&out, "%s", dirs);
    if (environment && *environment)
        add_packages(environment, &out);
    return out.text;
}
