/* SPDX-License-Identifier: Apache-2.0
 * The CUDA driver's functions as a table: libcuda is dlopen'ed, its header is
 * not needed. Numbers are those of the driver's stable interface. Only cuda.c
 * and backend_cuda.c include this file. */
#ifndef ATTNC_CUDA_INTERNAL_H
#define ATTNC_CUDA_INTERNAL_H

#include "runtime.h"

typedef int CuDevice;
typedef struct CuContext *CuContext;
typedef struct CuLibrary *CuLibrary;
typedef struct CuKernel *CuKernel;
typedef struct CuStream *CuStream;
typedef struct CuEvent *CuEvent;
typedef uint64_t CuPointer;

/* X(our name, symbol, parameters): all of them there since CUDA 12.0 */
#define CUDA_LIST(X)                                                           \
    X(init, cuInit, (unsigned flags))                                          \
    X(version, cuDriverGetVersion, (int *))                                    \
    X(error_name, cuGetErrorName, (int, const char **))                        \
    X(error_text, cuGetErrorString, (int, const char **))                      \
    X(device_count, cuDeviceGetCount, (int *))                                 \
    X(device_get, cuDeviceGet, (CuDevice *, int ordinal))                      \
    X(device_name, cuDeviceGetName, (char *, int size, CuDevice))              \
    X(device_attribute, cuDeviceGetAttribute, (int *, int which, CuDevice))    \
    X(primary_retain, cuDevicePrimaryCtxRetain, (CuContext *, CuDevice))       \
    X(primary_release, cuDevicePrimaryCtxRelease_v2, (CuDevice))               \
    X(context_get, cuCtxGetCurrent, (CuContext *))                             \
    X(context_push, cuCtxPushCurrent_v2, (CuContext))                          \
    X(context_pop, cuCtxPopCurrent_v2, (CuContext *))                          \
    X(context_device, cuCtxGetDevice, (CuDevice *))                            \
    X(library_load, cuLibraryLoadData,                                         \
      (CuLibrary *, const void *data, int *jit, void **jit_values,             \
       unsigned jit_count, int *options, void **values, unsigned count))       \
    X(library_unload, cuLibraryUnload, (CuLibrary))                            \
    X(library_kernel, cuLibraryGetKernel,                                      \
      (CuKernel *, CuLibrary, const char *name))                               \
    X(kernel_get, cuKernelGetAttribute,                                        \
      (int *, int which, CuKernel, CuDevice))                                  \
    X(kernel_set, cuKernelSetAttribute,                                        \
      (int which, int value, CuKernel, CuDevice))                              \
    X(kernel_function, cuKernelGetFunction, (void **, CuKernel))               \
    X(launch, cuLaunchKernel,                                                  \
      (void *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx,       \
       unsigned by, unsigned bz, unsigned smem, CuStream, void **params,       \
       void **extra))                                                          \
    X(pointer_get, cuPointerGetAttribute, (void *, int which, CuPointer))      \
    X(memset8, cuMemsetD8Async, (CuPointer, unsigned char, size_t, CuStream))  \
    X(alloc_async, cuMemAllocAsync, (CuPointer *, size_t, CuStream))           \
    X(free_async, cuMemFreeAsync, (CuPointer, CuStream))                       \
    X(alloc, cuMemAlloc_v2, (CuPointer *, size_t))                             \
    X(free, cuMemFree_v2, (CuPointer))                                         \
    X(copy, cuMemcpy, (CuPointer to, CuPointer from, size_t))                  \
    X(copy_async, cuMemcpyAsync,                                               \
      (CuPointer to, CuPointer from, size_t, CuStream))                        \
    X(event_create, cuEventCreate, (CuEvent *, unsigned flags))                \
    X(event_record, cuEventRecord, (CuEvent, CuStream))                        \
    X(event_wait, cuEventSynchronize, (CuEvent))                               \
    X(event_ms, cuEventElapsedTime, (float *, CuEvent, CuEvent))               \
    X(event_destroy, cuEventDestroy_v2, (CuEvent))

typedef struct Cuda {
#define X(name, symbol, parameters) int(*name) parameters;
    CUDA_LIST(X)
#undef X
    int driver; /* CUDA version the driver speaks, 12040 is 12.4 */
    int devices;
} Cuda;

enum {
    CU_OUT_OF_MEMORY = 2,
    CU_INVALID_IMAGE = 200,
    CU_NO_BINARY = 209,
    CU_INVALID_PTX = 218,
    CU_UNSUPPORTED_PTX = 222,
    CU_OUT_OF_RESOURCES = 701, /* of an SM */
};

enum {
    CU_DEVICE_CLOCK = 13,
    CU_DEVICE_SMS = 16,
    CU_DEVICE_MEMORY_CLOCK = 36,
    CU_DEVICE_BUS_WIDTH = 37,
    CU_DEVICE_L2 = 38,
    CU_DEVICE_THREADS = 39,
    CU_DEVICE_MAJOR = 75,
    CU_DEVICE_MINOR = 76,
    CU_DEVICE_SM_SHARED = 81,
    CU_DEVICE_SM_REGISTERS = 82,
    CU_DEVICE_PAGEABLE = 88, /* reads any host memory */
    CU_DEVICE_BLOCK_SHARED = 97,
    CU_DEVICE_BLOCKS = 106,
    CU_DEVICE_RESERVED = 111,
};
enum { CU_KERNEL_REGISTERS = 4, CU_KERNEL_SHARED = 8, CU_KERNEL_CARVEOUT = 9 };
enum { CU_POINTER_TYPE = 2, CU_POINTER_MANAGED = 8 };
enum { CU_TYPE_HOST = 1, CU_TYPE_DEVICE = 2 };
enum { CU_JIT_ERROR_LOG = 5, CU_JIT_ERROR_LOG_BYTES = 6 };

/* The driver, started once in a process; NULL with *e set. */
const Cuda *cuda_find(Err *e);
/* Records a failed call of the driver as "CALL: NAME, TEXT". */
int cuda_failed(const Cuda *c, int code, int status, const char *stage,
                const char *call, Err *e);

#endif
