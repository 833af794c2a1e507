/* SPDX-License-Identifier: Apache-2.0
 * attnc_prepare, the map of the program. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime.h"

/* A process waits this long for another's build of the same kernel, then
 * builds it too: the lock saves work, no more. */
enum { LOCK_MS = 60000 };

/* Tiles whose kernels may turn out to spill before the best is taken anyhow. */
enum { TRIES = 6 };

/* One prepare on its way. */
typedef struct Run {
    attnc_context *c;
    attnc_plan *plan;
    Str identity, log;
    CacheKey key;
    Outcome out;
    bool spoiled; /* the disk cache's entry does not load */
    Err e;
    bool keep_spills;    /* no more tiles are tried */
    Tile spilled[TRIES]; /* not to be taken */
    int nspilled;
} Run;

static const char SPILL[] = "spill";

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static int no_memory(Err *e) {
    return err_set(e, ATTNC_E_MEMORY, "prepare", NULL, "no memory");
}

/* ---- kernels: disk or compiler ------------------------------------------ */

static int load(Run *r, const Blob *b, const char *compiler, Kernel *k) {
    memcpy(k->compiler, compiler, strnlen(compiler, sizeof k->compiler - 1));
    double start = now_ms();
    int rc = r->c->backend->load(r->c, &r->plan->plan, b, k, &r->e);
    r->out.load_ms = now_ms() - start;
    return rc;
}

/* Is the kernel to be dropped because its threads spill? Told as an error of
 * the field "spill", for the next tile to be tried. */
static bool spills(Run *r, const char *log) {
    const Backend *b = r->c->backend;
    int64_t bytes = b->spills && log ? b->spills(&r->plan->plan, log) : 0;
    const char *entry = r->plan->plan.step[0].entry;
    if (bytes <= 0)
        return false;
    if (r->keep_spills)
        context_log(r->c, ATTNC_LOG_WARNING,
                    "%s spills %lld bytes a thread and will be slow", entry,
                    (long long)bytes);
    else
        err_set(&r->e, ATTNC_E_COMPILE, "compile", SPILL,
                "%s spills %lld bytes a thread", entry, (long long)bytes);
    return !r->keep_spills;
}

/* true: the module is loaded from the disk cache, or known to spill. An entry
 * that does not load is a miss. */
static bool from_disk(Run *r, Module *m) {
    CacheEntry entry;
    if (!cache_find(r->c->cache, &r->key, r->identity.text, &entry))
        return false;
    if (spills(r, entry.log)) {
        cache_entry_free(&entry);
        return true;
    }
    bool loaded = load(r, &entry.binary, entry.compiler, &m->kernel) == 0;
    cache_entry_free(&entry);
    if (loaded) {
        r->out.from = ORIGIN_DISK;
        return true;
    }
    context_log(r->c, ATTNC_LOG_WARNING, "cached kernel not used: %s",
                r->e.text);
    r->c->backend->free(&m->kernel);
    r->e = (Err){0};
    r->spoiled = true;
    return false;
}

static void publish(Run *r, const Blob *b, char *compiler) {
    Str text = {0};
    plan_print(&r->plan->plan, &text);
    if (!text.bad)
        cache_put(r->c->cache, &r->key,
                  &(CacheEntry){
                      .identity = r->identity.text,
                      .compiler = compiler,
                      .log = r->log.text ? r->log.text : "",
                      .plan = text.text,
                      .binary = *b,
                      .created = time(NULL),
                      .compile_ms = r->out.compile_ms,
                  });
    str_free(&text);
}

static int emit(Run *r, Source *source) {
    const struct LuaApi *lua = lua_find(&r->e);
    if (!lua)
        return r->e.code;
    return emit_module(&r->plan->plan, r->c->templates, lua, source, &r->e);
}

static int from_source(Run *r, Module *m) {
    char compiler[sizeof m->kernel.compiler] = "";
    Source source = {0};
    Blob binary = {0};
    double before = now_ms();
    int rc = emit(r, &source);
    double start = now_ms();
    r->out.emit_ms = start - before;
    rc = rc ? rc
            : r->c->backend->compile(r->c, &r->plan->plan, &source, &binary,
                                     compiler, &r->log, &r->e);
    r->out.compile_ms = now_ms() - start;
    r->out.from = ORIGIN_MISS;
    bool dropped = !rc && spills(r, r->log.text);
    if (!rc && !dropped)
        rc = load(r, &binary, compiler, &m->kernel);
    if (!rc) /* also what spills: the next process need not try it */
        publish(r, &binary, compiler);
    source_free(&source);
    free(binary.data);
    return r->e.code;
}

/* Why there will be no compiling; 0: it may go on. */
static int check_compiler(Run *r) {
    if (r->c->options.no_compile)
        return err_set(&r->e, ATTNC_E_NOT_CACHED, "cache", NULL,
                       "no kernel for this spec, and compiling is off");
    if (!r->c->backend->own_compiler && !context_compiler(r->c))
        return err_set(&r->e, ATTNC_E_MISSING, "compile", NULL,
                       "no compiler found (looked for %s)",
                       r->c->options.compilers ? r->c->options.compilers
                                               : "clang-N, clang, gcc");
    return 0;
}

/* The precompiled kernels, one for each step. */
static void take_builtin(const Plan *p, Kernel *k) {
    static void (*const entries[ROLE_COUNT])(const uint64_t *, char *,
                                             int64_t) = {
        [ROLE_fwd] = builtin_fwd,         [ROLE_bwd_dkdv] = builtin_bwd_dkdv,
        [ROLE_bwd_dq] = builtin_bwd_dq,   [ROLE_dsink] = builtin_dsink,
        [ROLE_dtensor] = builtin_dtensor, [ROLE_merge] = builtin_merge,
    };
    *k = (Kernel){.backend = &backend_cpu, .compiler = "builtin"};
    for (int i = 0; i < p->nstep; i++)
        k->entry[i] = (void *)entries[p->step[i].role];
}

static int module_make(Run *r, Module *m) {
    if (r->plan->plan.step[0].tile.family == TILE_builtin) {
        take_builtin(&r->plan->plan, &m->kernel);
        r->out.from = ORIGIN_MISS;
        return 0;
    }
    if (from_disk(r, m))
        return r->e.code;
    if (check_compiler(r))
        return r->e.code;
    int token = cache_lock(r->c->cache, &r->key, LOCK_MS);
    bool again = token >= 0 && !r->spoiled;
    int rc = again && from_disk(r, m) ? r->e.code : from_source(r, m);
    if (token >= 0)
        cache_unlock(r->c->cache, token);
    return rc;
}

/* ---- a plan with its module --------------------------------------------- */

/* One thread makes a module, the others wait for it. */
static int find_module(Run *r) {
    bool mine;
    Str kind = {0};
    r->identity.len = 0;
    plan_identity(&r->plan->plan, &r->identity);
    r->c->backend->kind(&r->plan->plan, &kind);
    bool bad = r->identity.bad || kind.bad;
    if (!bad)
        cache_key(r->identity.text, r->c->templates->hash, kind.text, &r->key);
    str_free(&kind);
    if (bad)
        return no_memory(&r->e);
    Module *m = module_claim(r->c->plans, &r->key, &mine, &r->log, &r->e);
    if (mine) {
        module_make(r, m);
        module_done(r->c->plans, m, &r->e, &r->log);
    }
    if (!r->e.code)
        r->plan->module = m;
    return r->e.code;
}

static attnc_plan *plan_new(attnc_context *c, const Request *request) {
    static atomic_ullong serial;
    attnc_plan *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->ctx = c;
    p->request = *request;
    p->made.serial = atomic_fetch_add(&serial, 1) + 1;
    atomic_init(&p->refs, 1);
    atomic_fetch_add(&c->refs, 1);
    return p;
}

static int choose_plan(Run *r, const attnc_spec *s, const attnc_shape *h,
                       bool builtin) {
    const Pins pins = {.tile = *r->plan->request.tile ? r->plan->request.tile
                                                      : NULL,
                       .builtin = builtin,
                       .avoid = r->spilled,
                       .navoid = r->nspilled};
    int rc = plan_choose(s, h, &r->c->device, &pins, &r->plan->plan, &r->e);
    if (!rc && !r->c->backend)
        rc = err_set(&r->e, ATTNC_E_MISSING, "prepare", "target",
                     "this version cannot compile for %s; nearest: cpu",
                     r->c->device.arch);
    return rc;
}

static int choose(Run *r, const attnc_spec *s, const attnc_shape *h,
                  bool builtin) {
    int rc = choose_plan(r, s, h, builtin);
    return rc ? rc : find_module(r);
}

/* ---- what spills gives way ---------------------------------------------- */

enum { COMPILE_STACK = 16 << 20 }; /* compilers nest deeply */

/* The tile that wants most of the registers it can have: the one to blame. */
static const Tile *tightest(const Plan *p) {
    const Tile *worst = &p->step[0].tile;
    double most = 0;
    for (int i = 0; i < p->nstep; i++) {
        const Tile *t = &p->step[i].tile;
        double share = p->step[i].fig.registers;
        if (share > 0)
            share /= tile_cuda_register_limit(&p->device, t);
        if (share > most) {
            most = share;
            worst = t;
        }
    }
    return worst;
}

static bool has_spilled(const Run *r) {
    return r->e.code == ATTNC_E_COMPILE && !strcmp(r->e.field, SPILL);
}

static void *try_one(void *run) {
    return find_module(run) ? NULL : run;
}

static void run_free(Run *r) {
    if (r->plan)
        attnc_plan_release(r->plan);
    str_free(&r->identity);
    str_free(&r->log);
}

/* Plans the tiles to try next, each as if those before it spilled; returns how
 * many there are: none for a pinned one. */
static int plan_tries(const Run *r, const attnc_spec *s, const attnc_shape *h,
                      Run tries[TRIES]) {
    bool pinned = r->plan->plan.step[0].tile.from == FROM_PIN;
    int most = pinned ? 0 : TRIES - r->nspilled, n = 0;
    most = most < r->c->workers ? most : r->c->workers;
    for (const Run *last = r; n < most; last = &tries[n++]) {
        Run *t = &tries[n];
        *t = (Run){.c = r->c, .nspilled = last->nspilled};
        memcpy(t->spilled, last->spilled, sizeof t->spilled);
        if (n)
            t->spilled[t->nspilled++] = *tightest(&last->plan->plan);
        t->plan = plan_new(r->c, &r->plan->request);
        if (!t->plan || choose_plan(t, s, h, false)) {
            run_free(t);
            break;
        }
    }
    return n;
}

/* Makes their modules side by side, a thread each. */
static void make_tries(Run *tries, int n) {
    pthread_t thread[TRIES];
    pthread_attr_t attr;
    bool started[TRIES];
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, COMPILE_STACK);
    for (int i = 0; i < n; i++)
        started[i] =
            n > 1 && !pthread_create(&thread[i], &attr, try_one, &tries[i]);
    for (int i = 0; i < n; i++)
        if (started[i])
            pthread_join(thread[i], NULL);
        else
            try_one(&tries[i]);
    pthread_attr_destroy(&attr);
}

/* The first in order that does not spill takes r's place. false: all spill,
 * and r knows their tiles. */
static bool settle(Run *r, Run *tries, int n) {
    bool found = false;
    for (int i = 0; i < n; i++) {
        Run *t = &tries[i], old = *r;
        if (!found && has_spilled(t)) {
            r->spilled[r->nspilled++] = *tightest(&t->plan->plan);
        } else if (!found) {
            found = true;
            *r = *t;
            *t = old;
        }
        run_free(t);
    }
    return found;
}

/* A kernel that spills gives way to the next tile; a pinned tile stays, and
 * when all those tried spill the first does. */
static int choose_emitted(Run *r, const attnc_spec *s, const attnc_shape *h) {
    Run tries[TRIES];
    int rc = choose(r, s, h, false), n;
    if (!has_spilled(r))
        return rc;
    r->spilled[r->nspilled++] = *tightest(&r->plan->plan);
    while ((n = plan_tries(r, s, h, tries)) > 0) {
        make_tries(tries, n);
        if (settle(r, tries, n))
            return r->e.code;
    }
    r->e = (Err){0};
    r->log.len = 0;
    r->nspilled = 0;
    r->keep_spills = true;
    return choose(r, s, h, false);
}

/* The built-in kernel serves when nothing else can, and is announced. */
static bool may_use_builtin(Run *r) {
    return r->e.code == ATTNC_E_MISSING && !strcmp(r->e.stage, "compile") &&
           !context_compiler(r->c) && !*r->plan->request.tile &&
           probe_runs(r->c->device.arch);
}

static int choose_builtin(Run *r, const attnc_spec *s, const attnc_shape *h) {
    if (!atomic_exchange(&r->c->announced, true))
        context_log(r->c, ATTNC_LOG_WARNING,
                    "%s: using the built-in kernel, which is slower",
                    r->e.text[0] ? r->e.text : "compiling is switched off");
    r->e = (Err){0};
    return choose(r, s, h, true);
}

static int finish(Run *r) {
    Str text = {0};
    plan_print(&r->plan->plan, &text);
    if (text.bad) {
        str_free(&text);
        return no_memory(&r->e);
    }
    r->plan->text = text.text;
    r->out.serial = r->plan->made.serial;
    r->plan->made = r->out;
    if (r->c->pool) /* a launch starts no threads */
        pool_start(r->c->pool);
    return 0;
}

static int make_plan(Run *r, const attnc_spec *s, const attnc_shape *h,
                     const Request *request) {
    r->plan = plan_new(r->c, request);
    if (!r->plan)
        return no_memory(&r->e);
    const char *list = r->c->options.compilers;
    bool builtin = list && !*list && r->c->device.kind == DEVICE_CPU;
    int rc = builtin ? choose_builtin(r, s, h) : choose_emitted(r, s, h);
    if (rc && may_use_builtin(r))
        rc = choose_builtin(r, s, h);
    return rc ? rc : finish(r);
}

/* ---- prepare ------------------------------------------------------------ */

#define ATTNC_ENUM(name, values, def, count, doc) r->spec.name = s->name;
#define ATTNC_INT(name, def, lo, hi, doc) r->spec.name = s->name;
#define ATTNC_BOOL(name, def, hi, doc) r->spec.name = s->name;
#define ATTNC_TEXT(name, kind, doc) r->spec.name = s->name;
#define ATTNC_HINT(name, def, doc) r->shape.name = h->name;
#define ATTNC_PROMISE(name, def, values, doc) r->shape.name = h->name;
static int request_fill(Request *r, const attnc_spec *s, const attnc_shape *h,
                        const char *tile, Err *e) {
    memset(r, 0, offsetof(Request, tile));
#include "shape.def"
#include "spec.def"
    size_t len = tile ? strlen(tile) : 0;
    if (len >= sizeof r->tile)
        return err_set(e, ATTNC_E_REQUEST, "prepare", "tile",
                       "%zu characters; accepted: up to %zu", len,
                       sizeof r->tile - 1);
    memcpy(r->tile, tile ? tile : "", len + 1);
    return 0;
}
#undef ATTNC_ENUM
#undef ATTNC_INT
#undef ATTNC_BOOL
#undef ATTNC_TEXT
#undef ATTNC_HINT
#undef ATTNC_PROMISE

/* The map of the program: a request, checked; its plan, known or made. */
static int prepare(Run *r, const attnc_spec *spec, const attnc_shape *shape,
                   const char *tile, attnc_plan **out) {
    attnc_spec s;
    attnc_shape h;
    Request request;
    int rc = spec_check(spec, &s, &r->e);
    /* A shape that was checked once is in the table as it stands. */
    if (!rc && shape->struct_size == sizeof *shape &&
        !(rc = request_fill(&request, &s, shape, tile, &r->e)) &&
        (*out = table_find(r->c->plans, &request)))
        return 0;
    rc = rc ? rc : shape_check(shape, &h, &r->e);
    rc = rc ? rc : request_fill(&request, &s, &h, tile, &r->e);
    rc = rc ? rc : make_plan(r, &s, &h, &request);
    if (!rc)
        *out = table_enter(r->c->plans, r->plan);
    else if (r->plan)
        attnc_plan_release(r->plan);
    return rc;
}

int attnc_prepare_with(attnc_context *ctx, const attnc_spec *spec,
                       const attnc_shape *shape,
                       const attnc_prepare_options *options, attnc_plan **out) {
    attnc_prepare_options o = {.struct_size = sizeof o};
    Run r = {.c = ctx, .out.from = ORIGIN_MEMORY};
    double start = now_ms();
    int rc = 0;
    if (out)
        *out = NULL;
    if (!ctx || !spec || !out)
        rc = err_set(&r.e, ATTNC_E_REQUEST, "prepare",
                     !ctx    ? "ctx"
                     : !spec ? "spec"
                             : "out",
                     "NULL");
    if (!rc && options)
        rc = struct_copy(&o, sizeof o, options, "prepare_options", &r.e);
    rc = rc ? rc
            : prepare(&r, spec, shape ? shape : &ATTNC_SHAPE_DEFAULT, o.tile,
                      out);
    if (rc) {
        error_publish(&r.e, NULL, r.log.text);
    } else {
        r.out.prepare_ms = now_ms() - start;
        outcome_keep(*out, r.out);
    }
    str_free(&r.identity);
    str_free(&r.log);
    return rc;
}

int attnc_prepare(attnc_context *ctx, const attnc_spec *spec,
                  const attnc_shape *shape, attnc_plan **out) {
    return attnc_prepare_with(ctx, spec, shape, NULL, out);
}

/* ---- plans -------------------------------------------------------------- */

void attnc_plan_release(attnc_plan *plan) {
    if (!plan || atomic_fetch_sub(&plan->refs, 1) > 1)
        return;
    attnc_context *c = plan->ctx;
    if (plan->module)
        module_release(c->plans, plan->module);
    free(plan->text);
    free(plan);
    context_release(c);
}
