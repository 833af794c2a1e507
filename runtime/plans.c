/* SPDX-License-Identifier: Apache-2.0
 * What a context keeps in memory: plans by request, loaded modules by key.
 * One lock, held shortly. Every change of a chain is one store, so a fork at
 * any moment leaves the child whole chains; modules that threads of the parent
 * were making are dropped there. */
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime.h"

enum {
    CHAINS = 512,
    PLANS_MAX = 4096, /* beyond, those that nobody holds are dropped */
};

enum module_state { MAKING, READY, FAILED };

struct PlanTable {
    Lock lock;
    pthread_cond_t made; /* a module is ready or failed */
    int plans;
    attnc_plan *plan[CHAINS];
    Module *module[CHAINS];
};

/* ---- modules ------------------------------------------------------------ */

static Module **module_chain(PlanTable *t, const CacheKey *key) {
    uint32_t h;
    memcpy(&h, key->sha256, sizeof h);
    return &t->module[h % CHAINS];
}

static void module_free(Module *m) {
    if (m->kernel.backend)
        m->kernel.backend->free(&m->kernel);
    free(m->log);
    free(m);
}

/* Takes a module out of its chain. */
static void module_unlink(PlanTable *t, Module *m) {
    Module **p = module_chain(t, &m->key);
    while (*p && *p != m)
        p = &(*p)->next;
    if (*p)
        *p = m->next;
}

/* In a forked child nobody goes on making what the parent's threads began. */
static void after_fork(PlanTable *t) {
    pthread_cond_init(&t->made, NULL);
    for (int i = 0; i < CHAINS; i++)
        for (Module **p = &t->module[i]; *p;)
            if ((*p)->state == MAKING)
                *p = (*p)->next;
            else
                p = &(*p)->next;
}

static void table_lock(PlanTable *t) {
    if (lock_take(&t->lock))
        after_fork(t);
}

static void table_unlock(PlanTable *t) {
    lock_give(&t->lock);
}

static Module *module_find(PlanTable *t, const CacheKey *key) {
    Module *m = *module_chain(t, key);
    while (m && memcmp(&m->key, key, sizeof *key) != 0)
        m = m->next;
    return m;
}

static Module *module_add(PlanTable *t, const CacheKey *key) {
    Module *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    Module **chain = module_chain(t, key);
    m->key = *key;
    m->users = 1;
    m->state = MAKING;
    m->next = *chain;
    *chain = m;
    return m;
}

/* Drops one user; the last one of a module frees it. */
static void module_drop(PlanTable *t, Module *m) {
    if (--m->users > 0)
        return;
    module_unlink(t, m);
    module_free(m);
}

Module *module_claim(PlanTable *t, const CacheKey *key, bool *mine, Str *log,
                     Err *e) {
    table_lock(t);
    Module *m = module_find(t, key);
    *mine = !m;
    if (m) {
        m->users++;
        while (m->state == MAKING)
            pthread_cond_wait(&t->made, &t->lock.mutex);
        if (m->state == FAILED) {
            *e = m->err;
            if (m->log)
                str_add(log, m->log, strlen(m->log));
            module_drop(t, m);
            m = NULL;
        }
    } else if (!(m = module_add(t, key))) {
        err_set(e, ATTNC_E_MEMORY, "prepare", NULL, "no memory for a module");
        *mine = false;
    }
    table_unlock(t);
    return m;
}

void module_done(PlanTable *t, Module *m, const Err *e, const Str *log) {
    table_lock(t);
    m->state = e->code ? FAILED : READY;
    if (e->code) {
        m->err = *e;
        m->log = log->text ? strdup(log->text) : NULL;
        module_unlink(t, m);
        module_drop(t, m);
    }
    pthread_cond_broadcast(&t->made);
    table_unlock(t);
}

void module_release(PlanTable *t, Module *m) {
    table_lock(t);
    module_drop(t, m);
    table_unlock(t);
}

/* ---- plans -------------------------------------------------------------- */

static uint64_t request_hash(const Request *r) {
    size_t len = offsetof(Request, tile) + strlen(r->tile);
    return XXH3_64bits(r, len);
}

static bool request_same(const Request *a, const Request *b) {
    return !memcmp(a, b, offsetof(Request, tile)) && !strcmp(a->tile, b->tile);
}

static attnc_plan *plan_find(PlanTable *t, uint64_t hash, const Request *r) {
    attnc_plan *p = t->plan[hash % CHAINS];
    while (p && (p->hash != hash || !request_same(&p->request, r)))
        p = p->next;
    if (p)
        atomic_fetch_add(&p->refs, 1);
    return p;
}

attnc_plan *table_find(PlanTable *t, const Request *r) {
    uint64_t hash = request_hash(r);
    table_lock(t);
    attnc_plan *p = plan_find(t, hash, r);
    table_unlock(t);
    return p;
}

/* Takes the plans that only the table holds (all plans: those that others
 * hold too) out of it; returns them as a list. */
static attnc_plan *plans_unlink(PlanTable *t, bool all) {
    attnc_plan *out = NULL;
    for (int i = 0; i < CHAINS; i++)
        for (attnc_plan **p = &t->plan[i]; *p;) {
            attnc_plan *plan = *p;
            if (!all && atomic_load(&plan->refs) > 1) {
                p = &plan->next;
                continue;
            }
            *p = plan->next;
            plan->next = out;
            out = plan;
            t->plans--;
        }
    return out;
}

static void plans_release(attnc_plan *p) {
    while (p) {
        attnc_plan *next = p->next;
        attnc_plan_release(p);
        p = next;
    }
}

attnc_plan *table_enter(PlanTable *t, attnc_plan *plan) {
    attnc_plan *dropped = NULL;
    plan->hash = request_hash(&plan->request);
    table_lock(t);
    attnc_plan *first = plan_find(t, plan->hash, &plan->request);
    if (!first) {
        if (t->plans >= PLANS_MAX)
            dropped = plans_unlink(t, false);
        attnc_plan **chain = &t->plan[plan->hash % CHAINS];
        atomic_fetch_add(&plan->refs, 1); /* the table's */
        plan->next = *chain;
        *chain = plan;
        t->plans++;
    }
    table_unlock(t);
    plans_release(dropped);
    if (!first)
        return plan;
    attnc_plan_release(plan);
    return first;
}

PlanTable *table_create(void) {
    PlanTable *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    lock_init(&t->lock);
    pthread_cond_init(&t->made, NULL);
    return t;
}

void table_clear(PlanTable *t) {
    table_lock(t);
    attnc_plan *all = plans_unlink(t, true);
    table_unlock(t);
    plans_release(all);
}

void table_destroy(PlanTable *t) {
    if (!t)
        return;
    pthread_cond_destroy(&t->made);
    pthread_mutex_destroy(&t->lock.mutex);
    free(t);
}
