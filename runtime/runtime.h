/* SPDX-License-Identifier: Apache-2.0
 * The one internal header of runtime/: source -> running kernel. */
#ifndef ATTNC_RUNTIME_H
#define ATTNC_RUNTIME_H

#include <pthread.h>
#include <stdatomic.h>

#include "attnc.h"
#include "gen.h"

/* ---- blobs and kernels ------------------------------------------------- */

typedef struct Blob {
    void *data;
    size_t len;
} Blob;

enum origin { ORIGIN_MEMORY, ORIGIN_DISK, ORIGIN_BUNDLE, ORIGIN_MISS };

/* Runs one work item of a CPU step: args is the step's slot array. */
typedef void (*CpuEntry)(const uint64_t *args, char *scratch, int64_t item);

/* A loaded Source. */
typedef struct Kernel {
    const struct Backend *backend;
    void *module;               /* the backend's handle */
    void *entry[PLAN_STEPS];    /* CPU: CpuEntry */
    char compiler[96];
} Kernel;

/* One way to compile, load and run a module. */
typedef struct Backend {
    const char *name; /* cpu | cuda | emulated */
    /* Source -> binary. *log: whole compiler output (owned by the caller). */
    int (*compile)(attnc_context *c, const Plan *p, const Source *s, Blob *out,
                   char compiler[96], Str *log, Err *e);
    int (*load)(attnc_context *c, const Plan *p, const Blob *b, Kernel *k,
                Err *e);
    int (*launch)(attnc_context *c, const Plan *p, const Kernel *k,
                  const attnc_args *a, void *stream, Err *e);
    void (*free)(Kernel *k);
} Backend;

extern const Backend backend_cpu;

/* ---- probe.c ----------------------------------------------------------- */

/* Fills *d from this machine's CPU. DRAM bandwidth is measured once and kept
 * as text in `dir` (may be NULL: measured each time, briefly). */
int probe_cpu(const char *dir, Device *d, Err *e);
/* Can this machine run code of a CPU arch? */
bool probe_runs(const char *arch);
/* "auto", "cpu", ARCH, DEVICE with optional "@k=v,.." -> *d. */
int probe_target(const char *target, const char *dir, Device *d, Err *e);

/* ---- lua.c: the Lua library, dlopen'ed --------------------------------- */

/* NULL with *e set (ATTNC_E_MISSING) when no liblua5.4 is found. */
const struct LuaApi *lua_load(Err *e);

/* ---- compile.c --------------------------------------------------------- */

/* A compiler found on this machine. */
typedef struct Compiler {
    char path[512];
    char version[96]; /* "clang 14.0.6" */
    bool clang;
} Compiler;

/* First usable of `list` (see attnc_options.compilers); false: none. */
bool compiler_find(const char *list, Compiler *out);
/* C text -> shared object bytes, by child processes in a private directory. */
int compile_cpu(const Compiler *c, const char *arch, const Source *s,
                Blob *out, Str *log, Err *e);
/* Runs argv with a clean signal mask, output to *log; the wait status or -1.
 * Tolerates SIGCHLD being ignored. */
int child_run(char *const argv[], Str *log, Err *e);

/* ---- load.c ------------------------------------------------------------ */

/* Shared object bytes -> handle, from a sealed memory file. */
void *load_object(const Blob *b, Err *e);

/* ---- pool.c ------------------------------------------------------------ */

typedef struct Pool Pool;
Pool *pool_create(int threads, Err *e);
void pool_destroy(Pool *p);
int pool_threads(const Pool *p);
/* Runs fn for each 0 <= i < count in ascending order of start; worker 0 is
 * the caller. Re-entrant and concurrent callers run serially. Fork-safe. */
void pool_for(Pool *p, int64_t count, void (*fn)(void *, int64_t, int),
              void *arg);

/* ---- cache.c ----------------------------------------------------------- */

typedef struct Cache Cache;

typedef struct CacheKey {
    uint8_t sha256[32];
} CacheKey;

/* One entry: what one file of the cache holds. Text fields are owned. */
typedef struct CacheEntry {
    char *identity; /* plan_identity text: compared on load */
    char *compiler; /* compiler identity */
    char *log;      /* compile log */
    char *plan;     /* plan_print text */
    Blob binary;
    int64_t created;   /* seconds since 1970 */
    double compile_ms;
} CacheEntry;

typedef struct CacheOptions {
    const char *dir; /* NULL: default place; "": memory only */
    int64_t max_bytes;
    bool readonly;
    void (*log)(void *user, int level, const char *line);
    void *log_user;
} CacheOptions;

/* Never fails because of the directory: degrades to memory only with one
 * warning. */
int cache_open(const CacheOptions *o, Cache **out, Err *e);
void cache_close(Cache *c);
/* Directory in use, or NULL when there is none. */
const char *cache_dir(const Cache *c);
/* Key over the identity text, generator version and template hash. */
void cache_key(const char *identity, const char *templates_hash,
               const char *output_kind, CacheKey *out);
/* true: *out filled (caller frees by cache_entry_free). Any fault: miss. */
bool cache_find(Cache *c, const CacheKey *k, const char *identity,
                CacheEntry *out);
/* Publishes atomically; a failure costs only the saving. */
void cache_put(Cache *c, const CacheKey *k, const CacheEntry *e);
void cache_entry_free(CacheEntry *e);
/* Advisory lock of one key among processes, bounded wait. Returns a token
 * >= 0, or -1 when locking is off or timed out (then go on without). */
int cache_lock(Cache *c, const CacheKey *k, int timeout_ms);
void cache_unlock(Cache *c, int token);

/* For `attnc cache`: walks the entries. `fault` is NULL for a good one. */
typedef struct CacheItem {
    char name[65];
    int64_t bytes;  /* allocated on disk */
    int64_t used;   /* last use, seconds since 1970 */
    const CacheEntry *entry; /* NULL when it could not be read */
    const char *fault;
} CacheItem;
int cache_each(Cache *c, void (*fn)(void *user, const CacheItem *),
               void *user, Err *e);
/* Deletes least recently used entries until at most max_bytes remain. */
int cache_prune(Cache *c, int64_t max_bytes, int64_t *removed, Err *e);
/* Deletes all entries (only files of the cache's own name pattern). */
int cache_clear(Cache *c, int64_t *removed, Err *e);

/* ---- slots.c ----------------------------------------------------------- */

/* Fills the sizes of every dim from a launch's lengths. */
void dims_fill(const attnc_args *a, bool varlen, int64_t dims[DIM_COUNT]);
/* Byte offsets of every Buf and of the per-worker scratch. */
typedef struct Layout {
    int64_t buf[PLAN_BUFS];
    int64_t scratch, scratch_stride; /* of worker 0; between workers */
    int64_t total;
} Layout;
int layout_make(const Plan *p, const int64_t dims[DIM_COUNT], int workers,
                Layout *out, Err *e);
/* Checks a launch's arguments against the plan: promises, sizes, pointers. */
int args_check(const Plan *p, const attnc_args *a, Err *e);
/* Value of one kernel argument, as the 8 bytes of its slot. */
uint64_t slot_value(const Plan *p, const Param *param, const attnc_args *a,
                    const Layout *l);

/* ---- builtin.c --------------------------------------------------------- */

/* The precompiled generic kernel, a CpuEntry: the structure of the spec is
 * read at run time through PARAM_spec; the rest of its slots are those of the
 * plan's step, in order of param.def. */
void builtin_fwd(const uint64_t *args, char *scratch, int64_t item);

/* ---- context.c, api.c -------------------------------------------------- */

struct attnc_context {
    Device device;
    const Backend *backend;
    Cache *cache;
    Pool *pool;              /* NULL with the caller's parallel_for */
    attnc_options options;   /* strings copied */
    const Templates *templates;
    Compiler compiler;       /* found at first need */
    struct PlanTable *plans; /* in-memory plans and those in flight */
    atomic_int refs;         /* context handle + live plans */
    pthread_mutex_t lock;
};

struct attnc_plan {
    attnc_context *ctx;
    Plan plan;
    Kernel kernel;
    atomic_int refs;
    double compile_ms;
    char *text;
};

/* Copies *e into the thread's last error and returns its code. */
int error_publish(const Err *e, const char *hint, const char *log);

#endif
