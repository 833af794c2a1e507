/* SPDX-License-Identifier: Apache-2.0
 * A context: one device, its cache, threads and plans; options copied. */
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

enum { THREADS_MAX = 4096 };

static int no_memory(Err *e) {
    return err_set(e, ATTNC_E_MEMORY, "context", NULL, "no memory");
}

/* ---- options ------------------------------------------------------------ */

static int copy_string(const char **text, Err *e) {
    if (!*text)
        return 0;
    *text = strdup(*text);
    return *text ? 0 : no_memory(e);
}

/* Copies of the strings; those not reached are NULL, so freeing is safe. */
static int copy_options(attnc_context *c, const attnc_options *from, Err *e) {
    attnc_options *o = &c->options;
    *o = (attnc_options)ATTNC_OPTIONS_INIT;
    if (from && struct_copy(o, sizeof *o, from, "options", e))
        return e->code;
    const char **strings[] = {&o->target, &o->cache_dir, &o->compilers,
                              &o->templates_dir, &o->cuda_dirs};
    int rc = 0;
    for (int i = 0; i < 5; i++)
        if (rc)
            *strings[i] = NULL;
        else
            rc = copy_string(strings[i], e);
    return rc;
}

static void free_options(attnc_options *o) {
    free((char *)(uintptr_t)o->target);
    free((char *)(uintptr_t)o->cache_dir);
    free((char *)(uintptr_t)o->compilers);
    free((char *)(uintptr_t)o->templates_dir);
    free((char *)(uintptr_t)o->cuda_dirs);
}

static int check_options(const attnc_options *o, Err *e) {
    const struct {
        const char *name;
        int64_t value, high;
    } numbers[] = {{"cache_max_bytes", o->cache_max_bytes, INT64_MAX},
                   {"cache_readonly", o->cache_readonly, 1},
                   {"no_compile", o->no_compile, 1},
                   {"threads", o->threads, THREADS_MAX},
                   {"parallel_workers", o->parallel_workers, THREADS_MAX}};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (numbers[i].value < 0 || numbers[i].value > numbers[i].high)
            return err_set(e, ATTNC_E_REQUEST, "context", numbers[i].name,
                           "%lld is out of range; accepted: 0..%lld",
                           (long long)numbers[i].value,
                           (long long)numbers[i].high);
    if (o->parallel_for && (!o->parallel_workers || o->threads))
        return err_set(e, ATTNC_E_REQUEST, "context", "parallel_workers",
                       "with parallel_for, parallel_workers says how many "
                       "calls run at once and threads stays 0");
    if (!o->parallel_for && o->parallel_workers)
        return err_set(e, ATTNC_E_REQUEST, "context", "parallel_workers",
                       "%d is given without parallel_for; use threads",
                       o->parallel_workers);
    return 0;
}

/* ---- parts -------------------------------------------------------------- */

static int open_cache(attnc_context *c, Err *e) {
    const CacheOptions o = {
        .dir = c->options.cache_dir,
        .max_bytes = c->options.cache_max_bytes,
        .readonly = c->options.cache_readonly,
        .log = c->options.log,
        .log_user = c->options.log_user,
    };
    return cache_open(&o, &c->cache, e);
}

static int choose_device(attnc_context *c, Err *e) {
    const char *target = c->options.target ? c->options.target : "auto";
    const char *dir = cache_dir(c->cache);
    int rc = c->options.cache_readonly
                 ? probe_readonly(target, dir, &c->device, e)
                 : probe_target(target, dir, &c->device, e);
    static const Backend *const backends[] = {[DEVICE_CPU] = &backend_cpu,
                                              [DEVICE_CUDA] = &backend_cuda,
                                              [DEVICE_EMULATED] =
                                                  &backend_emulated};
    c->backend = rc ? NULL : backends[c->device.kind];
    return rc;
}

static int choose_workers(attnc_context *c, Err *e) {
    const attnc_options *o = &c->options;
    c->workers = o->parallel_for ? o->parallel_workers
                 : o->threads    ? o->threads
                                 : probe_cpus();
    if (o->parallel_for)
        return 0;
    c->pool = pool_create(c->workers, e);
    return c->pool ? 0 : e->code;
}

static int choose_templates(attnc_context *c, Err *e) {
    c->templates = &attnc_templates;
    if (!c->options.templates_dir)
        return 0;
    return templates_read(c->options.templates_dir, &c->templates, e);
}

static int fill(attnc_context *c, const attnc_options *options, Err *e) {
    int rc = copy_options(c, options, e);
    rc = rc ? rc : check_options(&c->options, e);
    rc = rc ? rc : open_cache(c, e);
    rc = rc ? rc : choose_device(c, e);
    rc = rc ? rc : choose_workers(c, e);
    rc = rc ? rc : choose_templates(c, e);
    if (!rc && !(c->plans = table_create()))
        rc = no_memory(e);
    return rc;
}

static void context_free(attnc_context *c) {
    table_destroy(c->plans);
    pool_destroy(c->pool);
    cache_close(c->cache);
    if (c->templates != &attnc_templates)
        templates_free(c->templates);
    free_options(&c->options);
    free(c->spare);
    pthread_mutex_destroy(&c->lock.mutex);
    free(c);
}

/* ---- public ------------------------------------------------------------- */

int attnc_context_create(const attnc_options *options, attnc_context **out) {
    Err e = {0};
    attnc_context *c = out ? calloc(1, sizeof *c) : NULL;
    if (out)
        *out = NULL;
    if (!c) {
        out ? no_memory(&e)
            : err_set(&e, ATTNC_E_REQUEST, "context", "out", "NULL");
        return error_publish(&e, NULL, NULL);
    }
    atomic_init(&c->refs, 1);
    lock_init(&c->lock);
    if (fill(c, options, &e)) {
        context_free(c);
        return error_publish(&e, NULL, NULL);
    }
    *out = c;
    return ATTNC_OK;
}

void context_release(attnc_context *c) {
    if (atomic_fetch_sub(&c->refs, 1) == 1)
        context_free(c);
}

void attnc_context_destroy(attnc_context *c) {
    if (!c)
        return;
    table_clear(c->plans);
    context_release(c);
}

const Compiler *context_compiler(attnc_context *c) {
    lock_take(&c->lock);
    if (!c->looked)
        c->has_compiler = compiler_find(c->options.compilers, &c->compiler);
    c->looked = true;
    lock_give(&c->lock);
    return c->has_compiler ? &c->compiler : NULL;
}
