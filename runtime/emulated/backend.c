/* SPDX-License-Identifier: Apache-2.0
 * The emulated backend: CUDA C compiled by clang for this machine and run by
 * the emulated device. Each launch takes another schedule, and its faults are
 * its error. Tensors are host memory. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emulated.h"
#include "program.h"

/* A loaded module. Each launch has a device of its own: what one keeps (two
 * mappings for each stack, a process may have 65530) is too much for each of
 * the modules that a context remembers. */
typedef struct Machine {
    void *handle;
    _Atomic uint64_t launches; /* seed of the next one */
} Machine;

static void kind(const Plan *p, Str *out) {
    (void)p;
    str_addf(out, "emulated shared object;");
    compile_options("emulated", out);
}

static int compile(attnc_context *c, const Plan *p, const Source *s, Blob *out,
                   char compiler[96], Str *log, Err *e) {
    const CompileJob job = {
        .compiler = context_compiler(c),
        .arch = "emulated",
        .dir = c->cache ? cache_dir(c->cache) : NULL,
        .source = s,
        .templates = c->templates,
    };
    if (!job.compiler->clang)
        return err_set(e, ATTNC_E_MISSING, "compile", "target",
                       "emu:%s needs clang, not %s", p->device.arch,
                       job.compiler->path);
    return compile_cpu(&job, out, compiler, log, e);
}

/* ---- loading ------------------------------------------------------------ */

static void unload(Kernel *k) {
    Machine *m = k->module;
    if (m) {
        if (m->handle)
            dlclose(m->handle);
        free(m);
    }
    *k = (Kernel){0};
}

static int find_entries(const Plan *p, const Machine *m, Kernel *k, Err *e) {
    const EmuTable **table = dlsym(m->handle, "attnc_emu");
    for (int i = 0; table && i < p->nstep; i++) {
        k->entry[i] = dlsym(m->handle, p->step[i].entry);
        table = k->entry[i] ? table : NULL;
    }
    if (!table)
        return err_set(e, ATTNC_E_INTERNAL, "load", NULL,
                       "the object has no entry %s", p->step[0].entry);
    *table = emu_table();
    return 0;
}

static int load(attnc_context *c, const Plan *p, const Blob *b, Kernel *k,
                Err *e) {
    (void)c;
    Machine *m = calloc(1, sizeof *m);
    k->backend = &backend_emulated;
    k->module = m;
    if (!m)
        return err_set(e, ATTNC_E_MEMORY, "load", NULL, "no memory");
    m->handle = load_object(b, e);
    return m->handle ? find_entries(p, m, k, e) : e->code;
}

/* ---- what a launch may touch --------------------------------------------- */

/* Everything one launch needs. */
typedef struct Launch {
    attnc_context *context;
    const Plan *plan;
    const attnc_args *args;
    Emu *emu;
    int64_t dims[DIM_COUNT];
    Layout layout;
} Launch;

/* From the first to the last byte of the rows; strides may be negative. */
static int add_tensor(const Launch *n, const char *name, const attnc_tensor *t,
                      int64_t heads, const int32_t *cu, int64_t rows, int dim,
                      int access) {
    const attnc_args *a = n->args;
    int bytes = dtype_bytes(n->plan->spec.dtype);
    int64_t batch = n->plan->spec.varlen ? 1 : a->batch, low = 0, high = dim;
    rows = cu ? cu[a->batch] : rows;
    const int64_t count[] = {batch, heads, rows};
    const int64_t stride[] = {t->stride_b, t->stride_h, t->stride_n};
    for (int i = 0; i < 3; i++) {
        if (count[i] < 1)
            return 0;
        int64_t span = (count[i] - 1) * stride[i];
        *(span < 0 ? &low : &high) += span;
    }
    return emu_buffer(n->emu, (const char *)t->data + low * bytes,
                      (size_t)(high - low) * (size_t)bytes, name, access);
}

static int add_array(const Launch *n, const char *name, const void *p,
                     int64_t count, int access) {
    if (!p || count < 1)
        return 0;
    return emu_buffer(n->emu, p, (size_t)count * 4, name, access);
}

/* What programs read, from the first to the last element, and where their
 * gradients go: sums, which are stored more than once. */
static int add_array_tensor(const Launch *n, const attnc_array *t) {
    int64_t low = 0, high = 1, count = 1;
    for (int d = 0; d < t->rank; d++) {
        int64_t span = (t->n[d] - 1) * t->stride[d];
        *(span < 0 ? &low : &high) += span;
        count *= t->n[d];
    }
    if (count < 1)
        return 0;
    int64_t before = program_dtype_bytes(t->dtype, -low);
    int64_t after = program_dtype_bytes(t->dtype, high);
    int rc = emu_buffer(n->emu, (const char *)t->data - before,
                        (size_t)(before + after), t->name, EMU_READ);
    if (rc || n->plan->spec.pass != ATTNC_PASS_BWD || !t->grad)
        return rc;
    return emu_buffer(n->emu, t->grad, (size_t)count * 4, t->name, EMU_WRITE);
}

/* Results of the forward: inputs of the backward. */
static int result_of(const Launch *n) {
    return n->plan->spec.pass == ATTNC_PASS_BWD ? EMU_READ : EMU_WRITE_ONCE;
}

/* The parts of a merge, which may share memory: each its own range. */
static int add_parts(const Launch *n, const int32_t *cu_q, int64_t nq) {
    const attnc_args *a = n->args;
    int rc =
        emu_buffer(n->emu, a->parts, (size_t)a->part_count * sizeof *a->parts,
                   "parts", EMU_READ);
    for (int64_t i = 0; i < a->part_count && !rc; i++) {
        const attnc_part *x = &a->parts[i];
        Plan own = *n->plan;
        Launch part = *n;
        own.spec.dtype = x->f32 ? ATTNC_F32 : own.spec.dtype;
        part.plan = &own;
        rc = add_tensor(&part, "part o", &x->o, a->heads, cu_q, a->seqlen_q,
                        own.spec.head_dim_v, EMU_READ);
        int64_t lse = (a->heads - 1) * x->lse_stride_h + nq;
        lse += cu_q ? 0 : (a->batch - 1) * x->lse_stride_b;
        rc = rc ? rc : add_array(n, "part lse", x->lse, lse, EMU_READ);
    }
    return rc;
}

/* What a pass=bwd takes and gives besides. */
static int add_gradients(const Launch *n, const int32_t *cu_q,
                         const int32_t *cu_k, int64_t lse) {
    const attnc_args *a = n->args;
    const attnc_spec *s = &n->plan->spec;
    int rc = add_tensor(n, "dout", &a->dout, a->heads, cu_q, a->seqlen_q,
                        s->head_dim_v, EMU_READ);
    rc = rc ? rc
            : add_tensor(n, "dq", &a->dq, a->heads, cu_q, a->seqlen_q,
                         s->head_dim, EMU_WRITE_ONCE);
    rc = rc ? rc
            : add_tensor(n, "dk", &a->dk, a->kv_heads, cu_k, a->seqlen_k,
                         s->head_dim, EMU_WRITE_ONCE);
    rc = rc ? rc
            : add_tensor(n, "dv", &a->dv, a->kv_heads, cu_k, a->seqlen_k,
                         s->head_dim_v, EMU_WRITE_ONCE);
    rc = rc ? rc : add_array(n, "dlse", a->dlse, lse, EMU_READ);
    return rc ? rc : add_array(n, "dsink", a->dsink, a->heads, EMU_WRITE_ONCE);
}

static int add_inputs(const Launch *n, const int32_t *cu_q,
                      const int32_t *cu_k) {
    const attnc_args *a = n->args;
    const attnc_spec *s = &n->plan->spec;
    int rc = add_tensor(n, "q", &a->q, a->heads, cu_q, a->seqlen_q, s->head_dim,
                        EMU_READ);
    rc = rc ? rc
            : add_tensor(n, "k", &a->k, a->kv_heads, cu_k, a->seqlen_k,
                         s->head_dim, EMU_READ);
    return rc ? rc
              : add_tensor(n, "v", &a->v, a->kv_heads, cu_k, a->seqlen_k,
                           s->head_dim_v, EMU_READ);
}

static int add_arguments(const Launch *n) {
    const attnc_args *a = n->args;
    const attnc_spec *s = &n->plan->spec;
    const int32_t *cu_q = s->varlen ? a->cu_seqlens_q : NULL;
    const int32_t *cu_k = s->varlen ? a->cu_seqlens_k : NULL;
    int64_t nq = cu_q ? cu_q[a->batch] : a->seqlen_q, entries = a->batch + 1;
    int64_t lse = (a->heads - 1) * a->lse_stride_h + nq;
    lse += cu_q ? 0 : (a->batch - 1) * a->lse_stride_b;
    int rc = s->pass == ATTNC_PASS_MERGE ? add_parts(n, cu_q, nq)
                                         : add_inputs(n, cu_q, cu_k);
    rc = rc ? rc
            : add_tensor(n, "o", &a->o, a->heads, cu_q, a->seqlen_q,
                         s->head_dim_v, result_of(n));
    rc = rc ? rc : add_array(n, "lse", a->lse, lse, result_of(n));
    if (s->pass == ATTNC_PASS_BWD)
        rc = rc ? rc : add_gradients(n, cu_q, cu_k, lse);
    rc = rc ? rc : add_array(n, "cu_seqlens_q", cu_q, entries, EMU_READ);
    rc = rc ? rc : add_array(n, "cu_seqlens_k", cu_k, entries, EMU_READ);
    rc = rc ? rc : add_array(n, "lens_k", a->lens_k, a->batch, EMU_READ);
    rc = rc ? rc : add_array(n, "slopes", a->slopes, a->heads, EMU_READ);
    for (int64_t i = 0; i < a->tensor_count && !rc; i++)
        rc = add_array_tensor(n, &a->tensors[i]);
    return rc ? rc : add_array(n, "sink", a->sink, a->heads, EMU_READ);
}

/* The workspace, zero where the plan says so. */
static int add_buffers(const Launch *n) {
    int rc = 0;
    for (int i = 0; i < n->plan->nbuf && !rc; i++) {
        const Buf *b = &n->plan->buf[i];
        char *p = (char *)n->args->workspace + n->layout.buf[i];
        size_t bytes = (size_t)(extent_size(&b->extent, n->dims) * b->fixed *
                                b->elem_bytes);
        if (b->zero == ZERO_EACH_LAUNCH)
            memset(p, 0, bytes);
        rc = emu_buffer(n->emu, p, bytes, b->name, EMU_WRITE);
    }
    return rc;
}

/* Names for what the forward kernels keep in shared memory. Where two lie over
 * each other, the tiles of keys come last and stay. */
static int name_smem(const Launch *n, const Step *s) {
    CudaSmem c;
    char name[32];
    int rc = 0;
    cuda_smem(&n->plan->spec, &n->plan->device, &s->tile, &c);
    for (int i = 0; i < c.k_stages + c.v_stages && !rc; i++) {
        bool k = i < c.k_stages;
        int stage = k ? i : i - c.k_stages;
        int64_t bytes = k ? c.k_bytes : c.v_bytes;
        snprintf(name, sizeof name, "%s tile %d", k ? "K" : "V", stage);
        rc = emu_region(n->emu, (uint32_t)((k ? c.k : c.v) + stage * bytes),
                        (uint32_t)bytes, name);
    }
    if (c.k_bytes && !rc && c.q < c.k)
        rc = emu_region(n->emu, (uint32_t)c.q, (uint32_t)(c.k - c.q), "Q tile");
    return rc;
}

/* ---- faults -------------------------------------------------------------- */

/* The first is the error, the others are warnings. */
static int report(const Launch *n, const EmuReport *r, Err *e) {
    EmuPlaces places;
    emulated_places(n->context, n->plan, &places);
    for (int i = 0; i < r->nfault; i++) {
        Str s = {0};
        emulated_fault(&places, &r->fault[i], &s);
        if (i == 0)
            err_set(e, ATTNC_E_LAUNCH, "launch", "kernel", "%s",
                    s.text ? s.text : "out of memory");
        else
            context_log(n->context, ATTNC_LOG_WARNING, "%s", s.text);
        str_free(&s);
    }
    emulated_places_free(&places);
    return e->code;
}

/* ---- launch -------------------------------------------------------------- */

/* Another schedule and landing of copies with each seed. */
static EmuConfig config_of(uint64_t seed) {
    return (EmuConfig){.seed = seed,
                       .async_mode = (int)(seed % 3),
                       .race = true,
                       .resident = 1 + (int)(seed / 3 % 2)};
}

static int run_step(const Launch *n, const Step *s, void *entry,
                    const EmuConfig *config, EmuReport *r, Err *e) {
    uint64_t slots[STEP_PARAMS];
    int64_t blocks = extent_size(&s->grid, n->dims);
    if (blocks < 0 || blocks > INT32_MAX)
        return err_set(e, ATTNC_E_REQUEST, "launch", NULL,
                       "step %s has too many blocks; accepted: up to %d",
                       role_name(s->role), INT32_MAX);
    for (int i = 0; i < s->nparam; i++)
        slots[i] = slot_value(n->plan, &s->param[i], n->args, &n->layout);
    if (name_smem(n, s))
        return err_set(e, ATTNC_E_MEMORY, "launch", NULL, "no memory");
    int rc = emu_launch(n->emu, config, (EmuEntry)(uintptr_t)entry, slots,
                        (EmuDim){(uint32_t)blocks, 1, 1},
                        (EmuDim){(uint32_t)s->threads, 1, 1},
                        (uint32_t)s->smem_bytes, r);
    if (rc == ERR_MEMORY)
        return err_set(e, ATTNC_E_MEMORY, "launch", NULL, "no memory");
    return r->faults ? report(n, r, e) : 0;
}

static int run_steps(const Launch *n, const Kernel *k, const EmuConfig *config,
                     EmuReport *reports, Err *e) {
    if (!n->emu || add_arguments(n) || add_buffers(n))
        return err_set(e, ATTNC_E_MEMORY, "launch", NULL, "no memory");
    for (int i = 0; i < n->plan->nstep && !e->code; i++) {
        EmuReport own = {0};
        run_step(n, &n->plan->step[i], k->entry[i], config,
                 reports ? &reports[i] : &own, e);
        emu_report_free(&own);
    }
    return e->code;
}

/* config NULL: that of the module's next seed; reports NULL: not wanted. */
static int run(attnc_context *c, const Plan *p, const Kernel *k,
               const attnc_args *a, const EmuConfig *config, EmuReport *reports,
               Err *e) {
    Machine *m = k->module;
    Launch n = {.context = c, .plan = p, .args = a};
    if (dims_fill(p, a, n.dims, e) || layout_make(p, n.dims, 0, &n.layout, e) ||
        layout_check(&n.layout, a, e))
        return e->code;
    EmuConfig next = config_of(m->launches++);
    n.emu = emu_create();
    run_steps(&n, k, config ? config : &next, reports, e);
    emu_destroy(n.emu);
    return e->code;
}

static int launch(attnc_context *c, const Plan *p, const Kernel *k,
                  const attnc_args *a, void *stream, Err *e) {
    if (stream)
        return err_set(e, ATTNC_E_REQUEST, "launch", "stream",
                       "given, but the device is emulated; accepted: NULL");
    return run(c, p, k, a, NULL, NULL, e);
}

int emulated_run(const attnc_plan *p, const attnc_args *a,
                 const EmuConfig *config, EmuReport *reports, Err *e) {
    const Kernel *k = &p->module->kernel;
    if (k->backend != &backend_emulated)
        return err_set(e, ATTNC_E_REQUEST, "launch", "target",
                       "%s is not emulated; nearest: emu:%s",
                       p->plan.device.arch, p->plan.device.arch);
    return args_check(&p->plan, a, e)
               ? e->code
               : run(p->ctx, &p->plan, k, a, config, reports, e);
}

const Backend backend_emulated = {.name = "emulated",
                                  .kind = kind,
                                  .compile = compile,
                                  .load = load,
                                  .launch = launch,
                                  .free = unload};
