/* SPDX-License-Identifier: Apache-2.0
 * The driver functions attnc uses, for one thread, without a GPU: each records
 * that it was called and returns what the test wants. */
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

FakeCuda fake_cuda;

/* An H200 as its driver describes it. */
void fake_pretend_h200(void) {
    fake_cuda = (FakeCuda){0};
    fake_cuda.driver = 12040;
    fake_cuda.devices = 1;
    strcpy(fake_cuda.name, "NVIDIA H200");
    fake_cuda.attribute[13] = 1980000;  /* kHz */
    fake_cuda.attribute[16] = 132;      /* SMs */
    fake_cuda.attribute[36] = 3201000;  /* kHz of memory */
    fake_cuda.attribute[37] = 6144;     /* bits of bus */
    fake_cuda.attribute[38] = 52428800; /* L2 */
    fake_cuda.attribute[39] = 2048;
    fake_cuda.attribute[75] = 9;
    fake_cuda.attribute[76] = 0;
    fake_cuda.attribute[81] = 233472;
    fake_cuda.attribute[82] = 65536;
    fake_cuda.attribute[97] = 232448;
    fake_cuda.attribute[106] = 32;
    fake_cuda.attribute[111] = 1024;
    fake_cuda.memory = 0x7f0000000000;
    fake_cuda.bytes = 1 << 30;
}

/* For processes that do not know of the fake. */
__attribute__((constructor)) static void pretend(void) {
    const struct {
        const char *name;
        int *what;
    } rows[] = {{"FAKE_MAJOR", &fake_cuda.attribute[75]},
                {"FAKE_DRIVER", &fake_cuda.driver},
                {"FAKE_INIT", &fake_cuda.init_code},
                {"FAKE_LOAD", &fake_cuda.load_code},
                {"FAKE_SET", &fake_cuda.kernel_set_code},
                {"FAKE_LAUNCH", &fake_cuda.launch_code},
                {"FAKE_ALLOC", &fake_cuda.alloc_code}};
    if (getenv("FAKE_H200"))
        fake_pretend_h200();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *text = getenv(rows[i].name);
        if (text)
            *rows[i].what = atoi(text);
    }
}

static struct Kernel { char name[96]; } kernels[64];
static int kernel_count;
static int primary;

int cuInit(unsigned flags) {
    (void)flags;
    return fake_cuda.init_code;
}
int cuDriverGetVersion(int *v) {
    *v = fake_cuda.driver;
    return 0;
}
int cuGetErrorName(int code, const char **name) {
    *name = code == 2     ? "CUDA_ERROR_OUT_OF_MEMORY"
            : code == 100 ? "CUDA_ERROR_NO_DEVICE"
            : code == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU"
            : code == 222 ? "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"
            : code == 719 ? "CUDA_ERROR_LAUNCH_FAILED"
                          : "CUDA_ERROR_OTHER";
    return 0;
}
int cuGetErrorString(int code, const char **text) {
    *text = code == 100 ? "no CUDA-capable device is detected" : "a fake error";
    return 0;
}
int cuDeviceGetCount(int *n) {
    *n = fake_cuda.devices;
    return 0;
}
int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal < fake_cuda.devices ? 0 : 101;
}
int cuDeviceGetName(char *name, int size, int device) {
    (void)device;
    strncpy(name, fake_cuda.name, (size_t)size - 1);
    return 0;
}
int cuDeviceGetAttribute(int *value, int which, int device) {
    (void)device;
    *value = which < FAKE_ATTRIBUTES ? fake_cuda.attribute[which] : 0;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    fake_cuda.retained++;
    *context = &primary;
    return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    fake_cuda.retained--;
    return 0;
}
int cuCtxGetCurrent(void **context) {
    *context = fake_cuda.current;
    return 0;
}
int cuCtxPushCurrent_v2(void *context) {
    fake_cuda.pushed++;
    fake_cuda.current = context;
    return 0;
}
int cuCtxPopCurrent_v2(void **context) {
    fake_cuda.pushed--;
    *context = fake_cuda.current;
    fake_cuda.current = NULL;
    return 0;
}
int cuCtxGetDevice(int *device) {
    *device = fake_cuda.current == &primary ? 0 : 1;
    return 0;
}
int cuLibraryLoadData(void **library, const void *data, int *jit,
                      void **jit_values, unsigned jit_count, int *options,
                      void **values, unsigned count) {
    (void)options, (void)values, (void)count;
    for (unsigned i = 0; i < jit_count; i++)
        if (jit[i] == 5)
            strcpy(jit_values[i], fake_cuda.jit_log);
    if (fake_cuda.load_code)
        return fake_cuda.load_code;
    fake_cuda.loads++;
    fake_cuda.loaded_bytes = strlen(data);
    *library = &fake_cuda;
    return 0;
}
int cuLibraryUnload(void *library) {
    (void)library;
    fake_cuda.unloads++;
    return 0;
}
int cuLibraryGetKernel(void **kernel, void *library, const char *name) {
    struct Kernel *k = &kernels[kernel_count++ % 64];
    (void)library;
    strncpy(k->name, name, sizeof k->name - 1);
    *kernel = k;
    return 0;
}
int cuKernelGetAttribute(int *value, int which, void *kernel, int device) {
    (void)which, (void)kernel, (void)device;
    *value = 0;
    return 0;
}
int cuKernelSetAttribute(int which, int value, void *kernel, int device) {
    (void)kernel, (void)device;
    if (which == 8)
        fake_cuda.smem_set = value;
    if (which == 9)
        fake_cuda.carveout_set = value;
    return fake_cuda.kernel_set_code;
}
int cuKernelGetFunction(void **function, void *kernel) {
    *function = kernel;
    return fake_cuda.current ? 0 : 201;
}
int cuLaunchKernel(void *kernel, unsigned gx, unsigned gy, unsigned gz,
                   unsigned bx, unsigned by, unsigned bz, unsigned smem,
                   void *stream, void **params, void **extra) {
    FakeLaunch *l = &fake_cuda.launch[fake_cuda.launches++ % FAKE_LAUNCHES];
    (void)extra;
    *l = (FakeLaunch){.grid = {gx, gy, gz},
                      .block = {bx, by, bz},
                      .smem = smem,
                      .stream = stream};
    memcpy(l->kernel, kernel, sizeof l->kernel);
    memcpy(l->arg, params[0], (size_t)fake_cuda.args * 8);
    return fake_cuda.current ? fake_cuda.launch_code : 201;
}
int cuPointerGetAttribute(void *value, int which, uint64_t address) {
    if (which != 2 || address - fake_cuda.memory >= fake_cuda.bytes)
        return 1;
    *(int *)value = 2;
    return 0;
}
int cuMemsetD8Async(uint64_t at, unsigned char v, size_t n, void *stream) {
    (void)at, (void)v, (void)n, (void)stream;
    fake_cuda.memsets++;
    return 0;
}
int cuMemAllocAsync(uint64_t *out, size_t n, void *stream) {
    (void)stream;
    fake_cuda.allocs++;
    *out = fake_cuda.memory;
    return n <= fake_cuda.bytes ? 0 : 2;
}
int cuMemFreeAsync(uint64_t at, void *stream) {
    (void)at, (void)stream;
    fake_cuda.frees++;
    return 0;
}
int cuMemAlloc_v2(uint64_t *out, size_t n) {
    if (fake_cuda.alloc_code)
        return fake_cuda.alloc_code;
    void *p = aligned_alloc(256, (n + 255) / 256 * 256);
    fake_cuda.allocs++;
    fake_cuda.memory = 0; /* all of the host's memory is the GPU's now */
    fake_cuda.bytes = UINTPTR_MAX;
    *out = (uintptr_t)p;
    return p ? 0 : 2;
}
int cuMemFree_v2(uint64_t at) {
    fake_cuda.frees++;
    free((void *)(uintptr_t)at);
    return 0;
}
int cuMemcpy(uint64_t to, uint64_t from, size_t n) {
    memcpy((void *)(uintptr_t)to, (const void *)(uintptr_t)from, n);
    return 0;
}
int cuMemcpyAsync(uint64_t to, uint64_t from, size_t n, void *stream) {
    (void)stream;
    return cuMemcpy(to, from, n);
}
int cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    *event = &primary;
    return 0;
}
int cuEventRecord(void *event, void *stream) {
    (void)event, (void)stream;
    return 0;
}
int cuEventSynchronize(void *event) {
    (void)event;
    return 0;
}
int cuEventElapsedTime(float *ms, void *a, void *b) {
    (void)a, (void)b;
    *ms = 0.5f;
    return 0;
}
int cuEventDestroy_v2(void *event) {
    (void)event;
    return 0;
}
