/* SPDX-License-Identifier: Apache-2.0
 * The driver functions attnc uses, for one thread, without a GPU: each records
 * that it was called and returns what the test wants. */
#include <string.h>

#include "cuda.h"

FakeCuda fake_cuda;

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
