/* SPDX-License-Identifier: Apache-2.0
 * The CPU backend: objects made by a compiler child, or the built-in kernel;
 * work items on the context's threads. */
#include <dlfcn.h>
#include <string.h>

#include "order.h"
#include "runtime.h"

static void kind(const Plan *p, Str *out) {
    str_addf(out, "shared object;");
    compile_options(p->device.arch, out);
}

static int compile(attnc_context *c, const Plan *p, const Source *s, Blob *out,
                   char compiler[96], Str *log, Err *e) {
    const CompileJob job = {
        .compiler = context_compiler(c),
        .arch = p->device.arch,
        .dir = c->cache ? cache_dir(c->cache) : NULL,
        .source = s,
        .templates = c->templates,
    };
    return compile_cpu(&job, out, compiler, log, e);
}

/* Code this machine cannot run is kept, not loaded: launching it fails. */
static int load(attnc_context *c, const Plan *p, const Blob *b, Kernel *k,
                Err *e) {
    (void)c;
    k->backend = &backend_cpu;
    if (!probe_runs(p->device.arch))
        return 0;
    k->module = load_object(b, e);
    if (!k->module)
        return e->code;
    for (int i = 0; i < p->nstep; i++) {
        k->entry[i] = dlsym(k->module, p->step[i].entry);
        if (!k->entry[i])
            return err_set(e, ATTNC_E_INTERNAL, "load", NULL,
                           "the object has no entry %s", p->step[i].entry);
    }
    return 0;
}

static void unload(Kernel *k) {
    if (k->module)
        dlclose(k->module);
    *k = (Kernel){0};
}

/* ---- launch ------------------------------------------------------------- */

/* Floating-point control as every kernel wants it: round to nearest, no flush
 * to zero. The host may have set another in its own thread. */
#if defined(__x86_64__)
static uint64_t control_get(void) {
    return __builtin_ia32_stmxcsr();
}
static void control_set(uint64_t v) {
    __builtin_ia32_ldmxcsr((unsigned)v);
}
enum { CONTROL = 0x1f80 };
#elif defined(__aarch64__)
static uint64_t control_get(void) {
    uint64_t v;
    __asm__ volatile("mrs %0, fpcr" : "=r"(v));
    return v;
}
static void control_set(uint64_t v) {
    __asm__ volatile("msr fpcr, %0" : : "r"(v));
}
enum { CONTROL = 0 };
#else
static uint64_t control_get(void) {
    return 0;
}
static void control_set(uint64_t v) {
    (void)v;
}
enum { CONTROL = 0 };
#endif

/* One step in flight. */
typedef struct Job {
    CpuEntry entry;
    const uint64_t *slots;
    char *scratch;
    int64_t stride, count;
    int workers;
    Order order;
    atomic_bool misuse; /* the caller's parallel-for broke its contract */
} Job;

static void run_item(void *arg, int64_t item, int worker) {
    Job *j = arg;
    if (worker < 0 || worker >= j->workers || item < 0 || item >= j->count) {
        atomic_store(&j->misuse, true);
        return;
    }
    uint64_t control = control_get();
    if (control != CONTROL)
        control_set(CONTROL);
    j->entry(j->slots, j->scratch + worker * j->stride,
             order_item(&j->order, item));
    if (control != CONTROL)
        control_set(control);
}

static int run_step(attnc_context *c, const Step *s, Job *j, Err *e) {
    if (c->options.parallel_for)
        c->options.parallel_for(c->options.parallel_user, j->count, run_item,
                                j);
    else
        pool_for(c->pool, j->count, run_item, j);
    if (atomic_load(&j->misuse))
        return err_set(e, ATTNC_E_LAUNCH, "launch", "parallel_for",
                       "called step %s with an item outside 0..%lld or a "
                       "worker outside 0..%d",
                       role_name(s->role), (long long)j->count - 1,
                       j->workers - 1);
    return 0;
}

static void zero_bufs(const Plan *p, const Layout *l, char *workspace) {
    for (int i = 0; i < p->nbuf; i++) {
        int64_t end = i + 1 < p->nbuf ? l->buf[i + 1] : l->scratch;
        if (p->buf[i].zero == ZERO_EACH_LAUNCH)
            memset(workspace + l->buf[i], 0, (size_t)(end - l->buf[i]));
    }
}

/* With a pattern the longest items first, where some would wait for a worker.
 * Packed sequences have lengths of their own: theirs stay as they are. */
static void order_step(const Plan *p, const Step *s, const attnc_args *a,
                       const int64_t dims[DIM_COUNT], Job *j) {
    const Lengths n = {dims[DIM_GROUP], a->seqlen_q, a->seqlen_k};
    Items items;
    const Loads *loads;
    j->order.period = 0;
    if (!p->spec.sparsity || p->spec.varlen || j->count <= j->workers ||
        !items_of(&p->device, s->role, &s->tile, &n, &items))
        return;
    loads = pattern_loads(p, a);
    if (loads)
        order_make(&items, loads, a->kv_heads, j->count, &j->order);
}

static int launch(attnc_context *c, const Plan *p, const Kernel *k,
                  const attnc_args *a, void *stream, Err *e) {
    int64_t dims[DIM_COUNT];
    Layout l;
    if (stream)
        return err_set(e, ATTNC_E_REQUEST, "launch", "stream",
                       "given, but %s is a CPU target; accepted: NULL",
                       p->device.arch);
    if (!k->entry[0])
        return err_set(e, ATTNC_E_MISSING, "launch", "target",
                       "this machine cannot run code for %s", p->device.arch);
    if (dims_fill(p, a, dims, e) || layout_make(p, dims, c->workers, &l, e) ||
        layout_check(&l, a, e))
        return e->code;
    zero_bufs(p, &l, a->workspace);
    for (int i = 0; i < p->nstep; i++) {
        const Step *s = &p->step[i];
        uint64_t slots[STEP_PARAMS];
        for (int n = 0; n < s->nparam; n++)
            slots[n] = slot_value(p, &s->param[n], a, &l);
        Job j = {.entry = (CpuEntry)k->entry[i],
                 .slots = slots,
                 .scratch = (char *)a->workspace + l.scratch,
                 .stride = l.scratch_stride,
                 .count = extent_size(&s->grid, dims),
                 .workers = c->workers};
        order_step(p, s, a, dims, &j);
        if (j.count < 0)
            return err_set(e, ATTNC_E_REQUEST, "launch", NULL,
                           "step %s has too many work items",
                           role_name(s->role));
        if (j.count && run_step(c, s, &j, e))
            return e->code;
    }
    return 0;
}

const Backend backend_cpu = {"cpu", kind, compile, load, launch, unload};
