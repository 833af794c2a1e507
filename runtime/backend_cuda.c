/* SPDX-License-Identifier: Apache-2.0
 * The CUDA backend: cubins by NVRTC (PTX by clang where there is none), loaded
 * and launched through the driver. A launch only launches: nothing allocated,
 * compiled, loaded or waited for, so it may be captured into a graph. */
#include <stdlib.h>
#include <string.h>

#include "cuda_internal.h"

static void kind(const Plan *p, Str *out) {
    (void)p; /* the arch is part of the identity */
    str_addf(out, "cubin;");
    nvrtc_options(out);
}

/* ---- compile ------------------------------------------------------------ */

/* Without NVRTC clang makes PTX, which the driver finishes; without clang
 * NVRTC is what is missing. */
static int compile(attnc_context *c, const Plan *p, const Source *s, Blob *out,
                   char compiler[96], Str *log, Err *e) {
    const CudaJob job = {.dirs = c->options.cuda_dirs,
                         .arch = p->device.arch,
                         .source = s,
                         .templates = c->templates};
    int rc = nvrtc_compile(&job, out, compiler, log, e);
    const Compiler *clang = rc == ATTNC_E_MISSING ? context_compiler(c) : NULL;
    if (!clang || !clang->clang)
        return rc;
    const CompileJob ptx = {.compiler = clang,
                            .arch = p->device.arch,
                            .dir = c->cache ? cache_dir(c->cache) : NULL,
                            .source = s,
                            .templates = c->templates};
    *e = (Err){0};
    return compile_ptx(&ptx, out, compiler, log, e);
}

static int64_t spills(const Plan *p, const char *log) {
    int64_t most = 0;
    Usage u;
    for (int i = 0; i < p->nstep; i++)
        if (usage_read(log, p->step[i].entry, &u) && u.spill_bytes > most)
            most = u.spill_bytes;
    return most;
}

/* ---- load --------------------------------------------------------------- */

/* A module in the driver. */
typedef struct Loaded {
    CuLibrary library;
    CuDevice device;
    CuContext primary; /* held while the module lives */
    int pageable;      /* the GPU reads any host memory */
} Loaded;

/* The driver's refusals that an older driver explains. */
static bool too_new(int code) {
    return code == CU_INVALID_IMAGE || code == CU_NO_BINARY ||
           code == CU_INVALID_PTX || code == CU_UNSUPPORTED_PTX;
}

static int refused(const Cuda *c, int code, const Plan *p, const Kernel *k,
                   const char *jit, Err *e) {
    const char *name = NULL;
    if (!too_new(code))
        return cuda_failed(
            c, code, code == CU_OUT_OF_MEMORY ? ATTNC_E_MEMORY : ATTNC_E_LAUNCH,
            "load", "cuLibraryLoadData", e);
    if (c->error_name(code, &name) || !name)
        name = "an unknown error";
    return err_set(
        e, ATTNC_E_MISSING, "load", "driver",
        "the driver (CUDA %d.%d) refuses code of %s for %s, so it is older: "
        "%s%s%.*s",
        c->driver / 1000, c->driver % 1000 / 10, k->compiler, p->device.arch,
        name, *jit ? ", " : "", (int)strcspn(jit, "\n"), jit);
}

static int load_library(const Cuda *c, const Plan *p, const Blob *b,
                        const Kernel *k, CuLibrary *out, Err *e) {
    char jit[1024] = "";
    int options[] = {CU_JIT_ERROR_LOG, CU_JIT_ERROR_LOG_BYTES};
    void *values[] = {jit, (void *)(uintptr_t)(sizeof jit - 1)};
    int code = c->library_load(out, b->data, options, values, 2, NULL, NULL, 0);
    return code ? refused(c, code, p, k, jit, e) : 0;
}

/* What one step's kernel needs is set now, not at each launch; asking for its
 * function makes the driver load it now. */
static int load_entry(const Cuda *c, const Plan *p, int i, const Loaded *l,
                      CuKernel *out, Err *e) {
    const Step *s = &p->step[i];
    const Device *d = &p->device;
    void *function;
    int code = c->library_kernel(out, l->library, s->entry);
    if (code)
        return cuda_failed(c, code, ATTNC_E_INTERNAL, "load",
                           "cuLibraryGetKernel", e);
    code = c->kernel_set(CU_KERNEL_SHARED, (int)s->smem_bytes, *out, l->device);
    if (code)
        return err_set(e, ATTNC_E_REQUEST, "load", "smem_bytes",
                       "%s refuses a block of %lld bytes of shared memory; "
                       "%s has %.0f",
                       d->name, (long long)s->smem_bytes, d->arch,
                       d->sram_bytes);
    if (s->smem_bytes > 0) /* all of it, for as many blocks as fit */
        c->kernel_set(CU_KERNEL_CARVEOUT, 100, *out, l->device);
    code = c->kernel_function(&function, *out);
    return code ? cuda_failed(c, code, ATTNC_E_LAUNCH, "load",
                              "cuKernelGetFunction", e)
                : 0;
}

/* With the GPU's primary context current. */
static int load_entries(const Cuda *c, const Plan *p, const Blob *b, Loaded *l,
                        Kernel *k, Err *e) {
    int rc = load_library(c, p, b, k, &l->library, e);
    for (int i = 0; i < p->nstep && !rc; i++) {
        CuKernel kernel = NULL;
        rc = load_entry(c, p, i, l, &kernel, e);
        k->entry[i] = kernel;
    }
    return rc;
}

static int enter(const Cuda *c, int ordinal, Loaded *l, Err *e) {
    int code = c->device_get(&l->device, ordinal);
    if (!code)
        code = c->primary_retain(&l->primary, l->device);
    if (!code)
        code = c->context_push(l->primary);
    c->device_attribute(&l->pageable, CU_DEVICE_PAGEABLE, l->device);
    return code ? cuda_failed(c, code, ATTNC_E_LAUNCH, "load",
                              "cuDevicePrimaryCtxRetain", e)
                : 0;
}

static void unload(Kernel *k) {
    Loaded *l = k->module;
    Err none = {0};
    const Cuda *c = l ? cuda_find(&none) : NULL;
    if (c && l->library)
        c->library_unload(l->library); /* fails at exit: the driver is gone */
    if (c && l->primary)
        c->primary_release(l->device);
    free(l);
    *k = (Kernel){0};
}

/* "cuda:1" -> 1, "cuda" -> 0; otherwise the first GPU of the arch; -1: none
 * here. */
static int ordinal_of(const attnc_context *c, const Plan *p) {
    const char *target = c->options.target ? c->options.target : "auto";
    if (!strncmp(target, "cuda:", 5))
        return atoi(target + 5);
    return strncmp(target, "cuda", 4) ? cuda_ordinal(p->device.arch) : 0;
}

/* Without such a GPU the code is kept, not loaded: launching it fails. */
static int load(attnc_context *ctx, const Plan *p, const Blob *b, Kernel *k,
                Err *e) {
    Err none = {0};
    CuContext popped;
    k->backend = &backend_cuda;
    const Cuda *c = cuda_find(&none);
    int ordinal = c ? ordinal_of(ctx, p) : -1;
    if (ordinal < 0)
        return 0;
    Loaded *l = calloc(1, sizeof *l);
    if (!l)
        return err_set(e, ATTNC_E_MEMORY, "load", NULL, "no memory");
    k->module = l;
    if (enter(c, ordinal, l, e))
        return e->code;
    int rc = load_entries(c, p, b, l, k, e);
    c->context_pop(&popped);
    return rc;
}

/* ---- launch ------------------------------------------------------------- */

static int no_gpu(const Kernel *k, Err *e) {
    return k->module ? 0
                     : err_set(e, ATTNC_E_MISSING, "launch", "target",
                               "this machine has no GPU for this kernel");
}

static int check_pointer(const Cuda *c, const Loaded *l, const char *name,
                         uint64_t address, Err *e) {
    int type = 0;
    if (!address || l->pageable ||
        c->pointer_get(&type, CU_POINTER_TYPE, address) == 0)
        return 0;
    return err_set(e, ATTNC_E_REQUEST, "launch", name,
                   "0x%llx is not memory of the GPU, nor known to it; copy it "
                   "there, or choose the target cpu",
                   (unsigned long long)address);
}

/* Everything a launch needs to know, found before the first kernel starts. */
typedef struct Launch {
    const Cuda *cuda;
    const Loaded *loaded;
    const Plan *plan;
    const attnc_args *args;
    int64_t dims[DIM_COUNT];
    Layout layout;
    CuStream stream;
} Launch;

static int fill_slots(const Launch *n, const Step *s,
                      uint64_t slots[STEP_PARAMS], Err *e) {
    for (int i = 0; i < s->nparam; i++) {
        const Param *q = &s->param[i];
        int what = param_kind(q->id);
        slots[i] = slot_value(n->plan, q, n->args, &n->layout);
        if ((what == POINTER_IN || what == POINTER_OUT) &&
            check_pointer(n->cuda, n->loaded, param_name(q->id), slots[i], e))
            return e->code;
    }
    return 0;
}

static int launch_failed(const Launch *n, const Step *s, int code, Err *e) {
    const Device *d = &n->plan->device;
    if (code == CU_OUT_OF_RESOURCES)
        return err_set(e, ATTNC_E_REQUEST, "launch", "tile",
                       "%s refuses %d threads with %lld bytes of shared memory "
                       "a block; by its figures it has %.0f bytes and %.0f "
                       "registers: pin a smaller tile",
                       d->name, s->threads, (long long)s->smem_bytes,
                       d->sram_bytes, d->vector_regs);
    return cuda_failed(n->cuda, code,
                       code == CU_OUT_OF_MEMORY ? ATTNC_E_MEMORY
                                                : ATTNC_E_LAUNCH,
                       "launch", s->entry, e);
}

static int launch_step(const Launch *n, const Step *s, void *kernel, Err *e) {
    uint64_t slots[STEP_PARAMS];
    void *params[] = {slots};
    int64_t blocks = extent_size(&s->grid, n->dims);
    if (blocks < 0 || blocks > INT32_MAX)
        return err_set(e, ATTNC_E_REQUEST, "launch", NULL,
                       "step %s has too many blocks; accepted: up to %d",
                       role_name(s->role), INT32_MAX);
    if (!blocks)
        return 0;
    if (fill_slots(n, s, slots, e))
        return e->code;
    int code =
        n->cuda->launch(kernel, (unsigned)blocks, 1, 1, (unsigned)s->threads, 1,
                        1, (unsigned)s->smem_bytes, n->stream, params, NULL);
    return code ? launch_failed(n, s, code, e) : 0;
}

static int zero_bufs(const Launch *n, Err *e) {
    const Plan *p = n->plan;
    for (int i = 0; i < p->nbuf; i++) {
        int64_t from = n->layout.buf[i];
        int64_t end =
            i + 1 < p->nbuf ? n->layout.buf[i + 1] : n->layout.scratch;
        if (p->buf[i].zero != ZERO_EACH_LAUNCH || from == end)
            continue;
        int code = n->cuda->memset8((uint64_t)(uintptr_t)n->args->workspace +
                                        (uint64_t)from,
                                    0, (size_t)(end - from), n->stream);
        if (code)
            return cuda_failed(n->cuda, code, ATTNC_E_LAUNCH, "launch",
                               "cuMemsetD8Async", e);
    }
    return 0;
}

static int run_steps(const Launch *n, const Kernel *k, Err *e) {
    int rc = zero_bufs(n, e);
    for (int i = 0; i < n->plan->nstep && !rc; i++)
        rc = launch_step(n, &n->plan->step[i], k->entry[i], e);
    return rc;
}

/* The calling thread's context if it has one of this GPU, else the primary
 * one for the time of the call. */
static int with_context(const Launch *n, const Kernel *k, Err *e) {
    const Cuda *c = n->cuda;
    CuContext current = NULL, popped;
    CuDevice device;
    int code = c->context_get(&current);
    if (!code && !current)
        code = c->context_push(n->loaded->primary);
    if (code)
        return cuda_failed(c, code, ATTNC_E_LAUNCH, "launch", "cuCtxGetCurrent",
                           e);
    if (current && c->context_device(&device) == 0 &&
        device != n->loaded->device)
        return err_set(e, ATTNC_E_REQUEST, "launch", "stream",
                       "the calling thread is at GPU %d, this plan is for "
                       "GPU %d",
                       device, n->loaded->device);
    int rc = run_steps(n, k, e);
    if (!current)
        c->context_pop(&popped);
    return rc;
}

static int launch(attnc_context *ctx, const Plan *p, const Kernel *k,
                  const attnc_args *a, void *stream, Err *e) {
    Launch n = {.loaded = k->module, .plan = p, .args = a, .stream = stream};
    (void)ctx;
    if (no_gpu(k, e) || !(n.cuda = cuda_find(e)))
        return e->code;
    if (dims_fill(p, a, n.dims, e) || layout_make(p, n.dims, 0, &n.layout, e) ||
        layout_check(&n.layout, a, e) ||
        (n.layout.total && check_pointer(n.cuda, n.loaded, "workspace",
                                         (uint64_t)(uintptr_t)a->workspace, e)))
        return e->code;
    return with_context(&n, k, e);
}

/* ---- workspace ---------------------------------------------------------- */

static int take(const Kernel *k, size_t bytes, void *stream, void **out,
                Err *e) {
    const Cuda *c = no_gpu(k, e) ? NULL : cuda_find(e);
    uint64_t address = 0;
    int code = c ? c->alloc_async(&address, bytes, stream) : 0;
    *out = (void *)(uintptr_t)address;
    if (code)
        return cuda_failed(c, code, ATTNC_E_MEMORY, "launch", "cuMemAllocAsync",
                           e);
    return e->code;
}

static void give(const Kernel *k, void *workspace, void *stream) {
    Err none = {0};
    const Cuda *c = cuda_find(&none);
    (void)k;
    if (c)
        c->free_async((uint64_t)(uintptr_t)workspace, stream);
}

static int send(void *to, const void *from, size_t bytes, void *stream,
                Err *e) {
    const Cuda *c = cuda_find(e);
    int code = c ? c->copy_async((uint64_t)(uintptr_t)to,
                                 (uint64_t)(uintptr_t)from, bytes, stream)
                 : 0;
    return code ? cuda_failed(c, code, ATTNC_E_LAUNCH, "pattern",
                              "cuMemcpyAsync", e)
                : e->code;
}

/* ---- memory for the command --------------------------------------------- */

static uint64_t address_of(const void *p) {
    return (uint64_t)(uintptr_t)p;
}

/* The driver with the module's GPU current; NULL with *e set. */
static const Cuda *at_gpu(const Kernel *k, Err *e) {
    const Loaded *l = k->module;
    const Cuda *c = no_gpu(k, e) ? NULL : cuda_find(e);
    CuContext current = NULL;
    int code = c ? c->context_get(&current) : 0;
    if (c && !code && current != l->primary)
        code = c->context_push(l->primary); /* for the rest of the process */
    if (code)
        cuda_failed(c, code, ATTNC_E_LAUNCH, "memory", "cuCtxPushCurrent", e);
    return code ? NULL : c;
}

static int memory_alloc(const Kernel *k, size_t bytes, void **out, Err *e) {
    uint64_t address = 0;
    const Cuda *c = at_gpu(k, e);
    int code = c ? c->alloc(&address, bytes) : 0;
    *out = (void *)(uintptr_t)address;
    return code
               ? cuda_failed(c, code, ATTNC_E_MEMORY, "memory", "cuMemAlloc", e)
               : e->code;
}

static void memory_free(const Kernel *k, void *p) {
    Err none = {0};
    const Cuda *c = p ? at_gpu(k, &none) : NULL;
    if (c)
        c->free(address_of(p));
}

static int memory_copy(const Kernel *k, void *to, const void *from,
                       size_t bytes, Err *e) {
    const Cuda *c = at_gpu(k, e);
    int code = c ? c->copy(address_of(to), address_of(from), bytes) : 0;
    return code ? cuda_failed(c, code, ATTNC_E_LAUNCH, "memory", "cuMemcpy", e)
                : e->code;
}

static int memory_timed(const Kernel *k, int (*fn)(void *user), void *user,
                        double *ms, Err *e) {
    const Cuda *c = at_gpu(k, e);
    CuEvent event[2] = {NULL, NULL};
    float elapsed = 0;
    if (!c)
        return e->code;
    int code = c->event_create(&event[0], 0);
    code = code ? code : c->event_create(&event[1], 0);
    code = code ? code : c->event_record(event[0], NULL);
    int rc = code ? 0 : fn(user);
    code = code || rc ? code : c->event_record(event[1], NULL);
    code = code || rc ? code : c->event_wait(event[1]);
    code = code || rc ? code : c->event_ms(&elapsed, event[0], event[1]);
    for (int i = 0; i < 2; i++)
        if (event[i])
            c->event_destroy(event[i]);
    *ms = elapsed;
    return code ? cuda_failed(c, code, ATTNC_E_LAUNCH, "launch",
                              "cuEventSynchronize", e)
                : rc;
}

static const Memory memory = {memory_alloc, memory_free, memory_copy,
                              memory_timed};

const Backend backend_cuda = {"cuda",
                              kind,
                              compile,
                              load,
                              launch,
                              unload,
                              .spills = spills,
                              .own_compiler = true,
                              .memory = &memory,
                              .take = take,
                              .give = give,
                              .send = send};
