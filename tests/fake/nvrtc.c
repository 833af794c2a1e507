/* SPDX-License-Identifier: Apache-2.0
 * An NVRTC that knows the archs of FAKE_ARCHS ("75 80") and says it is of CUDA
 * FAKE_MAJOR; what it "compiles" is the option that names the arch. */
#include <stdlib.h>
#include <string.h>

static char made[256];

int nvrtcVersion(int *major, int *minor) {
    *major = atoi(getenv("FAKE_NVRTC"));
    *minor = 1;
    return 0;
}
static int list(int *out) {
    const char *p = getenv("FAKE_ARCHS");
    int n = 0;
    for (; p && *p; n++, p += strspn(p, " ")) {
        int arch = (int)strtol(p, (char **)&p, 10);
        if (out)
            out[n] = arch;
    }
    return n;
}
int nvrtcGetNumSupportedArchs(int *n) {
    *n = list(NULL);
    return 0;
}
int nvrtcGetSupportedArchs(int *archs) {
    list(archs);
    return 0;
}
int nvrtcCreateProgram(void **p, const char *text, const char *name, int n,
                       const char *const *headers, const char *const *names) {
    (void)text, (void)name, (void)n, (void)headers, (void)names;
    *p = made;
    return 0;
}
int nvrtcCompileProgram(void *p, int n, const char *const *options) {
    (void)p;
    made[0] = 0;
    for (int i = 0; i < n; i++)
        if (strstr(options[i], "--gpu-architecture="))
            strncat(made, options[i], sizeof made - 1);
    return 0;
}
int nvrtcDestroyProgram(void **p) {
    *p = NULL;
    return 0;
}
int nvrtcGetProgramLogSize(void *p, size_t *n) {
    (void)p;
    *n = 1;
    return 0;
}
int nvrtcGetProgramLog(void *p, char *text) {
    (void)p;
    *text = 0;
    return 0;
}
int nvrtcGetCUBINSize(void *p, size_t *n) {
    (void)p;
    *n = strlen(made) + 1;
    return 0;
}
int nvrtcGetCUBIN(void *p, char *out) {
    (void)p;
    strcpy(out, made);
    return 0;
}
int nvrtcGetPTXSize(void *p, size_t *n) {
    return nvrtcGetCUBINSize(p, n);
}
int nvrtcGetPTX(void *p, char *out) {
    return nvrtcGetCUBIN(p, out);
}
