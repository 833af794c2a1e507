/* SPDX-License-Identifier: Apache-2.0
 * A driver for tests on machines without one: what it pretends, and what it
 * was asked to do. tests/fake/cuda.c becomes libcuda.so.1. */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include <stddef.h>
#include <stdint.h>

enum { FAKE_LAUNCHES = 16, FAKE_ATTRIBUTES = 160, FAKE_ARGS = 48 };

typedef struct FakeLaunch {
    char kernel[96];
    unsigned grid[3], block[3], smem;
    void *stream;
    uint64_t arg[FAKE_ARGS]; /* the first `args` of the parameter struct */
} FakeLaunch;

typedef struct FakeCuda {
    /* what it pretends */
    int driver, devices, init_code, load_code, launch_code, kernel_set_code;
    int alloc_code;
    char name[96], jit_log[96];
    int attribute[FAKE_ATTRIBUTES];
    int args;                /* parameters of every kernel */
    uintptr_t memory, bytes; /* addresses that are the GPU's */
    /* what it was asked */
    FakeLaunch launch[FAKE_LAUNCHES];
    int launches, loads, unloads, retained, pushed, memsets, allocs, frees;
    int smem_set, carveout_set;
    size_t loaded_bytes;
    void *current; /* the thread's context */
} FakeCuda;

#endif
