/* SPDX-License-Identifier: Apache-2.0
 * The CUDA driver, dlopen'ed, and its GPUs as device rows. */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_internal.h"

/* ---- finding ------------------------------------------------------------ */

static Cuda cuda;
static bool found;
static Lock lock = {PTHREAD_MUTEX_INITIALIZER, 0};

enum { DRIVER_LEAST = 12000 }; /* cuLibraryLoadData */

int cuda_failed(const Cuda *c, int code, int status, const char *stage,
                const char *call, Err *e) {
    const char *name = NULL, *text = NULL;
    if (c->error_name(code, &name) || !name)
        name = "unknown error";
    if (c->error_text(code, &text) || !text)
        text = "no text";
    return err_set(e, status, stage, NULL, "%s: %s (%d), %s", call, name, code,
                   text);
}

static int fill(void *lib, Err *e) {
    const char *missing = NULL;
    *(void **)&cuda.version = dlsym(lib, "cuDriverGetVersion");
    if (cuda.version)
        cuda.version(&cuda.driver);
#define X(name, symbol, parameters)                                            \
    *(void **)&cuda.name = dlsym(lib, #symbol);                                \
    if (!cuda.name && !missing)                                                \
        missing = #symbol;
    CUDA_LIST(X)
#undef X
    if (!missing && cuda.driver >= DRIVER_LEAST)
        return 0;
    return err_set(e, ATTNC_E_MISSING, "cuda", "driver",
                   "the NVIDIA driver is for CUDA %d.%d%s%s; needed: 12.0 or "
                   "newer",
                   cuda.driver / 1000, cuda.driver % 1000 / 10,
                   missing ? " and lacks " : "", missing ? missing : "");
}

static int start(void *lib, Err *e) {
    int code = fill(lib, e);
    if (code)
        return code;
    code = cuda.init(0);
    if (code)
        return cuda_failed(&cuda, code, ATTNC_E_MISSING, "cuda", "cuInit", e);
    code = cuda.device_count(&cuda.devices);
    if (code)
        return cuda_failed(&cuda, code, ATTNC_E_MISSING, "cuda",
                           "cuDeviceGetCount", e);
    return 0;
}

static void find(Err *e) {
    static const char *const names[] = {"libcuda.so.1", "libcuda.so"};
    void *lib = NULL;
    for (int i = 0; i < 2 && !lib; i++)
        lib = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        err_set(e, ATTNC_E_MISSING, "cuda", NULL,
                "no NVIDIA driver on this machine (looked for %s)", names[0]);
        return;
    }
    found = start(lib, e) == 0; /* stays loaded either way */
}

const Cuda *cuda_find(Err *e) {
    lock_take(&lock);
    if (!found)
        find(e);
    lock_give(&lock);
    return found ? &cuda : NULL;
}

int cuda_count(Err *e) {
    const Cuda *c = cuda_find(e);
    return c ? c->devices : 0;
}

/* ---- a GPU as a device row ---------------------------------------------- */

/* Lower case letters and digits only. */
static void plain(const char *name, char out[96]) {
    size_t n = 0;
    for (; *name && n < 95; name++) {
        char c = *name >= 'A' && *name <= 'Z' ? (char)(*name + 32) : *name;
        if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'))
            out[n++] = c;
    }
    out[n] = 0;
}

static int capability_of(const Device *d) {
    return d->kind == DEVICE_CUDA ? atoi(d->arch + strlen("sm_")) : -1;
}

/* How well a row of the table describes a GPU: the chip itself, one of its
 * kind (GeForce chips have half rate matrix units), its capability, or the
 * newest capability before it. */
static int likeness(const Device *row, const char *name, int capability) {
    char have[96], want[96];
    int cc = capability_of(row);
    plain(name, have);
    plain(row->name, want);
    bool geforce = strstr(have, "geforce"), row_geforce = row->name[0] == 'R';
    if (cc < 0 || cc > capability)
        return -1;
    if (cc < capability)
        return cc;
    return 1000 + (geforce == row_geforce) + 2 * (strstr(have, want) != NULL);
}

static const Device *row_like(const char *name, int capability) {
    const Device *best = NULL;
    int most = -1;
    for (int i = 0; i < device_count(); i++) {
        int l = likeness(device_at(i), name, capability);
        if (l > most) {
            most = l;
            best = device_at(i);
        }
    }
    return best;
}

/* Rates of a like chip, scaled to this one's SMs and clock. */
static void scale_rates(Device *d, const Device *row) {
    double cycles = d->cores * d->clock_ghz / (row->cores * row->clock_ghz);
    d->llc_gbs = round(row->llc_gbs * cycles);
    d->f32_tflops = row->f32_tflops * cycles;
    d->tf32_tflops = row->tf32_tflops * cycles;
    d->f16_tflops = row->f16_tflops * cycles;
    d->bf16_tflops = row->bf16_tflops * cycles;
    d->exp2_gops = row->exp2_gops * cycles;
}

typedef struct Question {
    int which;
    size_t offset; /* of the figure */
    double unit;   /* what one is in the figure's unit */
} Question;

#define AT(figure) offsetof(Device, figure)
static const Question questions[] = {
    {CU_DEVICE_SMS, AT(cores), 1},
    {CU_DEVICE_CLOCK, AT(clock_ghz), 1e-6},
    {CU_DEVICE_BLOCK_SHARED, AT(sram_bytes), 1},
    {CU_DEVICE_SM_SHARED, AT(sram_core_bytes), 1},
    {CU_DEVICE_RESERVED, AT(sram_reserved), 1},
    {CU_DEVICE_L2, AT(llc_bytes), 1},
    {CU_DEVICE_SM_REGISTERS, AT(vector_regs), 1},
    {CU_DEVICE_THREADS, AT(max_threads), 1},
    {CU_DEVICE_BLOCKS, AT(max_blocks), 1},
};
#undef AT

static int ask(const Cuda *c, CuDevice device, int which) {
    int value = 0;
    return c->device_attribute(&value, which, device) ? 0 : value;
}

/* Figures the driver does not know stay those of the like row. */
static void ask_all(const Cuda *c, CuDevice device, Device *d) {
    for (size_t i = 0; i < sizeof questions / sizeof *questions; i++) {
        double v = ask(c, device, questions[i].which) * questions[i].unit;
        if (v > 0)
            *(double *)((char *)d + questions[i].offset) = v;
    }
    /* Both edges of the clock move data. */
    double gbs = 2e-6 * ask(c, device, CU_DEVICE_MEMORY_CLOCK) *
                 ask(c, device, CU_DEVICE_BUS_WIDTH) / 8;
    if (gbs > 0)
        d->dram_gbs = round(gbs);
}

int cuda_query(int ordinal, Device *out, Err *e) {
    const Cuda *c = cuda_find(e);
    CuDevice device;
    char name[96] = "";
    if (!c)
        return e->code;
    if (ordinal < 0 || ordinal >= c->devices)
        return err_set(e, c->devices ? ATTNC_E_REQUEST : ATTNC_E_MISSING,
                       "cuda", "target",
                       "there is no GPU %d; this machine "
                       "has %d",
                       ordinal, c->devices);
    int code = c->device_get(&device, ordinal);
    code = code ? code : c->device_name(name, sizeof name, device);
    if (code)
        return cuda_failed(c, code, ATTNC_E_LAUNCH, "cuda", "cuDeviceGet", e);
    int cc =
        10 * ask(c, device, CU_DEVICE_MAJOR) + ask(c, device, CU_DEVICE_MINOR);
    const Device *row = row_like(name, cc);
    if (!row)
        return err_set(e, ATTNC_E_REQUEST, "cuda", "target",
                       "%s has compute capability %d.%d; accepted: 7.5 and "
                       "newer",
                       name, cc / 10, cc % 10);
    *out = *row;
    ask_all(c, device, out);
    scale_rates(out, row);
    snprintf(out->name, sizeof out->name, "%.47s",
             name + (strncmp(name, "NVIDIA ", 7) ? 0 : 7));
    if (cc != capability_of(row))
        snprintf(out->arch, sizeof out->arch, "sm_%d", cc);
    return 0;
}

int cuda_ordinal(const char *arch) {
    Err e = {0};
    const Cuda *c = cuda_find(&e);
    int number = atoi(arch + strlen("sm_"));
    for (int i = 0; c && i < c->devices; i++) {
        CuDevice d;
        if (c->device_get(&d, i) == 0 &&
            10 * ask(c, d, CU_DEVICE_MAJOR) + ask(c, d, CU_DEVICE_MINOR) ==
                number)
            return i;
    }
    return -1;
}
