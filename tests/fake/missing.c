/* SPDX-License-Identifier: Apache-2.0
 * For LD_PRELOAD: libraries whose path holds FAKE_MISSING are not there. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

void *dlopen(const char *path, int mode) {
    void *(*real)(const char *, int);
    const char *missing = getenv("FAKE_MISSING");
    if (path && missing && strstr(path, missing))
        return NULL;
    *(void **)&real = dlsym(RTLD_NEXT, "dlopen");
    return real(path, mode);
}
