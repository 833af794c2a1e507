/* SPDX-License-Identifier: Apache-2.0
 * The one internal header of runtime/: source -> running kernel. */
#ifndef ATTNC_RUNTIME_H
#define ATTNC_RUNTIME_H

#include <pthread.h>
#include <stdatomic.h>

#include "attnc.h"
#include "gen.h"

/* ---- error.c ----------------------------------------------------------- */

/* The usual remedy for an error, by its stage and status, or "". */
const char *error_hint(const Err *e);
/* Makes *e the calling thread's last error and returns its code. hint may be
 * NULL: the usual one of its stage. log may be NULL. */
int error_publish(const Err *e, const char *hint, const char *log);
/* The first error in a compiler's log, told at the template's line: what is
 * between `mark` ("kernel.c:") and the text begins with the number of a line of
 * *s. False: the log has no such error. */
bool error_at_template(const char *log, const char *mark, const Source *s,
                       const Templates *t, Err *e);
/* One formatted line to the context's log callback, if there is one. */
void context_log(const attnc_context *c, int level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- fork.c ------------------------------------------------------------ */

/* Counts the forks that made this process. */
unsigned fork_count(void);
/* A mutex that works in a forked child even when another thread of the parent
 * had it. lock_take returns true the first time in such a child: what it
 * guards may be half done. */
typedef struct Lock {
    pthread_mutex_t mutex;
    unsigned forks;
} Lock;
void lock_init(Lock *l);
bool lock_take(Lock *l);
void lock_give(Lock *l);

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
    void *module;            /* the backend's handle */
    void *entry[PLAN_STEPS]; /* CPU: CpuEntry */
    char compiler[96];
} Kernel;

/* Memory of a device that is not the host's, for who has no other way to it:
 * the command. All wait until they are done. */
typedef struct Memory {
    int (*alloc)(const Kernel *k, size_t bytes, void **out, Err *e);
    void (*free)(const Kernel *k, void *p);
    /* Between host and device, either way. */
    int (*copy)(const Kernel *k, void *to, const void *from, size_t bytes,
                Err *e);
    /* The device's own time for what `launch` launches on the NULL stream. */
    int (*timed)(const Kernel *k, int (*launch)(void *user), void *user,
                 double *ms, Err *e);
} Memory;

/* One way to compile, load and run a module. */
typedef struct Backend {
    const char *name; /* cpu | cuda | emulated */
    /* Form of the binary and compiler options: part of the cache key. */
    void (*kind)(const Plan *p, Str *out);
    /* Source -> binary. *log: whole compiler output (owned by the caller). */
    int (*compile)(attnc_context *c, const Plan *p, const Source *s, Blob *out,
                   char compiler[96], Str *log, Err *e);
    int (*load)(attnc_context *c, const Plan *p, const Blob *b, Kernel *k,
                Err *e);
    int (*launch)(attnc_context *c, const Plan *p, const Kernel *k,
                  const attnc_args *a, void *stream, Err *e);
    void (*free)(Kernel *k);
    /* Bytes a thread spills, by the compile log; NULL: does not tell. */
    int64_t (*spills)(const Plan *p, const char *log);
    bool own_compiler;           /* not the children of compile.c */
    const struct Memory *memory; /* NULL: tensors are the host's */
    /* Workspace for one launch on the stream; NULL: the host's memory. */
    int (*take)(const Kernel *k, size_t bytes, void *stream, void **out,
                Err *e);
    void (*give)(const Kernel *k, void *workspace, void *stream);
    /* Copies from the host's memory on the stream; NULL: needs no copy. */
    int (*send)(void *to, const void *from, size_t bytes, void *stream, Err *e);
} Backend;

extern const Backend backend_cpu, backend_cuda, backend_emulated;

/* ---- probe.c ----------------------------------------------------------- */

/* Fills *d from this machine's CPU. Clock and DRAM bandwidth are measured and
 * kept as text in `dir` (may be NULL: measured each time, briefly); the best of
 * the first four measurements, an hour or more apart, stays. */
int probe_cpu(const char *dir, Device *d, Err *e);
/* Can this machine run code of a CPU arch? */
bool probe_runs(const char *arch);
/* "auto" (the first GPU, else the CPU), "cpu", "cuda[:N]", ARCH, DEVICE with
 * optional "@k=v,.." -> *d. */
int probe_target(const char *target, const char *dir, Device *d, Err *e);

/* The same, but a measurement is not kept. */
int probe_readonly(const char *target, const char *dir, Device *d, Err *e);
/* How many CPUs this process may use. */
int probe_cpus(void);

/* ---- measure.c --------------------------------------------------------- */

double measure_clock_ghz(void);
double measure_dram_gbs(int cpus); /* 0: no memory for it */

/* ---- lua.c: the Lua library, dlopen'ed --------------------------------- */

/* NULL with *e set (ATTNC_E_MISSING) when no liblua5.4 is found. */
const struct LuaApi *lua_find(Err *e);

/* ---- compile.c --------------------------------------------------------- */

/* A compiler found on this machine. */
typedef struct Compiler {
    char path[512];
    bool clang;
} Compiler;

/* First usable of `list` (see attnc_options.compilers); false: none. Reads
 * directories only: no child. */
bool compiler_find(const char *list, Compiler *out);
/* Its version, "clang 14.0.6", by asking it (a child, 20 ms). */
int compiler_version(const Compiler *c, char version[96], Err *e);

/* C text -> shared object bytes, by child processes in a private directory
 * below TMPDIR, else /tmp, else `dir` (which may be NULL). */
typedef struct CompileJob {
    const Compiler *compiler;
    const char *arch;
    const char *dir;
    const Source *source;
    const Templates *templates; /* names for the places of errors */
} CompileJob;
/* version: of the compiler, as the object itself says. *log: whole output. */
int compile_cpu(const CompileJob *j, Blob *out, char version[96], Str *log,
                Err *e);

/* CUDA text -> PTX by clang's own back end, for a machine without NVRTC: of
 * the newest arch, not above the job's, that this clang knows. */
int compile_ptx(const CompileJob *j, Blob *out, char version[96], Str *log,
                Err *e);

/* The options for an arch, as text. */
void compile_options(const char *arch, Str *out);

/* ---- nvrtc.c: CUDA's compiler library ---------------------------------- */

typedef struct NvrtcInfo {
    const char *path; /* as it was opened */
    int major, minor;
    int oldest, newest; /* arch: 75 is sm_75 */
} NvrtcInfo;
/* Looks for it once in a process, in `dirs` (attnc_options.cuda_dirs),
 * CUDA_HOME, CUDA_PATH, the loader's path, /usr/local/cuda. *looked names the
 * places tried; it stays empty once found. */
bool nvrtc_find(const char *dirs, NvrtcInfo *out, Str *looked);

/* CUDA text -> cubin, or PTX where asked for or the chip is newer than the
 * library (out->data then starts with text). */
typedef struct CudaJob {
    const char *dirs, *arch; /* "sm_86" */
    const Source *source;
    const Templates *templates; /* names for the places of errors */
    bool ptx;
} CudaJob;
int nvrtc_compile(const CudaJob *j, Blob *out, char version[96], Str *log,
                  Err *e);
/* The options besides the arch, as text. */
void nvrtc_options(Str *out);

/* What ptxas made of an entry. */
typedef struct Usage {
    int registers;
    int64_t stack_bytes, spill_bytes; /* of a thread */
} Usage;
/* From a compile log; false: the entry is not in it. */
bool usage_read(const char *log, const char *entry, Usage *out);

/* ---- cuda.c: the driver's GPUs ----------------------------------------- */

/* GPUs the driver has; 0 with *e set: why there is none to ask. */
int cuda_count(Err *e);
/* Fills *d from a GPU; what the driver does not tell comes from the most like
 * chip of the table. */
int cuda_query(int ordinal, Device *d, Err *e);
/* The first GPU that runs code of an arch; -1: none here. */
int cuda_ordinal(const char *arch);

/* ---- child.c ----------------------------------------------------------- */

enum { CHILD_STOLEN = 1 << 20 }; /* it ended, but the host reaped it */

typedef struct Process {
    pid_t pid;
    int output; /* read end of what it writes */
    const char *name;
} Process;

/* Starts argv with a clean signal mask, default handlers and few variables in
 * its environment; `in` is its standard input (or -1), `tmp` its TMPDIR. */
int child_start(Process *c, char *const argv[], int in, const char *tmp,
                Err *e);
/* Its output goes to *log. Returns the wait status, CHILD_STOLEN, or -1 with
 * *e set when it ran too long. Every child started is to be waited for. */
int child_wait(Process *c, Str *log, Err *e);
/* Both; -1 also when it could not be started. */
int child_run(char *const argv[], int in, const char *tmp, Str *log, Err *e);
/* Full path of a program on PATH; false: not there. */
bool program_find(const char *name, char path[512]);

/* ---- load.c ------------------------------------------------------------ */

/* Shared object bytes -> handle, from a sealed memory file. */
void *load_object(const Blob *b, Err *e);

/* ---- pool.c ------------------------------------------------------------ */

typedef struct Pool Pool;
Pool *pool_create(int threads, Err *e);
void pool_destroy(Pool *p);
int pool_threads(const Pool *p);
/* Starts the threads, which else the first loop does. */
void pool_start(Pool *p);
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
    int64_t created; /* seconds since 1970 */
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
/* Key over the identity text, generator version and template hash.
 * output_kind: the form of the binary and what can load it, so that a home
 * shared by machines is safe, e.g. "so x86_64 linux". */
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
    int64_t bytes;           /* allocated on disk */
    int64_t used;            /* last use, seconds since 1970 */
    const CacheEntry *entry; /* NULL when it could not be read */
    const char *fault;
} CacheItem;
int cache_each(Cache *c, void (*fn)(void *user, const CacheItem *), void *user,
               Err *e);
/* Deletes least recently used entries until at most max_bytes remain.
 * *removed counts entries. ATTNC_E_IO when the cache is read-only. */
int cache_prune(Cache *c, int64_t max_bytes, int64_t *removed, Err *e);
/* Deletes all entries (only files of the cache's own name pattern). */
int cache_clear(Cache *c, int64_t *removed, Err *e);

/* ---- slots.c ----------------------------------------------------------- */

/* Fills the sizes of every dim from a launch's lengths, and from the extents
 * of tensors whose gradients are sums of parts: refused without these. */
int dims_fill(const Plan *p, const attnc_args *a, int64_t dims[DIM_COUNT],
              Err *e);
/* Byte offsets of every Buf and of the per-worker scratch. */
typedef struct Layout {
    int64_t buf[PLAN_BUFS];
    int64_t scratch, scratch_stride; /* of worker 0; between workers */
    int64_t total;
} Layout;
int layout_make(const Plan *p, const int64_t dims[DIM_COUNT], int workers,
                Layout *out, Err *e);
/* Is the launch's workspace there, aligned and large enough? */
int layout_check(const Layout *l, const attnc_args *a, Err *e);
/* Value of one kernel argument, as the 8 bytes of its slot. */
uint64_t slot_value(const Plan *p, const Param *param, const attnc_args *a,
                    const Layout *l);

/* ---- args.c ------------------------------------------------------------ */

/* Checks a launch's arguments against the plan: sizes, lengths, pointers,
 * promises, mask and score; not the workspace. */
int args_check(const Plan *p, const attnc_args *a, Err *e);
/* Of these the batch, heads and lengths only. */
int args_check_sizes(const attnc_args *a, Err *e);
/* The tensors that programs read; part of args_check. */
int args_check_tensors(const Plan *p, const attnc_args *a, Err *e);

/* ---- pattern_object.c -------------------------------------------------- */

/* Adds the blocks of a->pattern to a->tensors, which becomes `room`, an array
 * of SPEC_TENSORS; nothing where there is none. */
int pattern_args(const Plan *p, attnc_args *a, attnc_array *room, Err *e);
/* How much of the launch's pattern lies where; NULL: it is not known. */
const struct Loads *pattern_loads(const Plan *p, const attnc_args *a);

/* ---- builtin.c --------------------------------------------------------- */

/* The precompiled generic kernel, a CpuEntry: the structure of the spec is
 * read at run time through PARAM_spec; the rest of its slots are those of the
 * plan's step, in order of param.def. */
void builtin_fwd(const uint64_t *args, char *scratch, int64_t item);
/* builtin_merge.c: one of O and LSE from those of parts. */
void builtin_merge(const uint64_t *args, char *scratch, int64_t item);
/* builtin_bwd.c: the steps of the backward. */
void builtin_bwd_dkdv(const uint64_t *args, char *scratch, int64_t item);
void builtin_bwd_dq(const uint64_t *args, char *scratch, int64_t item);
void builtin_dsink(const uint64_t *args, char *scratch, int64_t item);
void builtin_dtensor(const uint64_t *args, char *scratch, int64_t item);

/* ---- templates.c ------------------------------------------------------- */

/* Templates of a directory, hashed as the build hashes the embedded ones. */
int templates_read(const char *dir, const Templates **out, Err *e);
void templates_free(const Templates *t); /* not for the embedded ones */

/* ---- plans.c: what a context keeps in memory --------------------------- */

#define ATTNC_ENUM(name, values, def, count, doc) int32_t name;
#define ATTNC_INT(name, def, lo, hi, doc) int32_t name;
#define ATTNC_BOOL(name, def, hi, doc) int32_t name;
#define ATTNC_TEXT(name, kind, doc) const attnc_program *name;
#define ATTNC_HINT(name, def, doc) int64_t name;
#define ATTNC_PROMISE(name, def, values, doc) int64_t name;

/* What two equal calls of attnc_prepare have in common: every field of the
 * canonical spec and shape (without padding), and the pins. */
typedef struct Request {
    struct {
#include "shape.def"
    } shape;
    struct {
#include "spec.def"
    } spec;
    char tile[256]; /* text up to its NUL counts */
} Request;

#undef ATTNC_ENUM
#undef ATTNC_INT
#undef ATTNC_BOOL
#undef ATTNC_TEXT
#undef ATTNC_HINT
#undef ATTNC_PROMISE

/* One loaded Source, shared by the plans of equal identity. */
typedef struct Module {
    CacheKey key;
    Kernel kernel;
    int state, users; /* plans.c */
    Err err;          /* when it could not be made: for those who wait */
    char *log;
    struct Module *next;
} Module;

typedef struct PlanTable PlanTable;
PlanTable *table_create(void);
/* Drops the table's hold on every plan. */
void table_clear(PlanTable *t);
void table_destroy(PlanTable *t); /* cleared, and no plan is left */
/* The plan of an equal request, held for the caller; or NULL. */
attnc_plan *table_find(PlanTable *t, const Request *r);
/* Enters a new plan and returns it, or the equal one that came first (then
 * the new one is freed); held for the caller. */
attnc_plan *table_enter(PlanTable *t, attnc_plan *plan);
/* The module of a key, held for the caller. *mine: the caller has to make it
 * and call module_done; else it is ready, or *e is set with its maker's
 * failure (then NULL). Waits while another thread makes it. */
Module *module_claim(PlanTable *t, const CacheKey *key, bool *mine, Str *log,
                     Err *e);
/* Says how making it went: e->code 0, or the failure, told to all who wait
 * and then forgotten (the module is gone). */
void module_done(PlanTable *t, Module *m, const Err *e, const Str *log);
void module_release(PlanTable *t, Module *m);
/* ---- context.c, api.c -------------------------------------------------- */

struct attnc_context {
    Device device;
    const Backend *backend; /* NULL: nothing here runs this device */
    Cache *cache;
    Pool *pool;            /* NULL with the caller's parallel_for */
    int workers;           /* concurrent calls of a work item */
    attnc_options options; /* strings copied */
    const Templates *templates;
    PlanTable *plans;
    struct PatternBlocks *patterns; /* pattern_object.c */
    bool looked, has_compiler;      /* for a compiler */
    Compiler compiler;
    atomic_bool announced; /* that there is none */
    void *spare;           /* workspace kept between calls of attnc_run */
    size_t spare_bytes;
    Lock lock;       /* of spare, compiler and patterns */
    atomic_int refs; /* context handle + live plans */
};

/* How a prepare went: what attnc_plan_get_info tells. */
typedef struct Outcome {
    uint64_t serial; /* of the plan */
    enum origin from;
    double prepare_ms, compile_ms, emit_ms, load_ms;
} Outcome;

struct attnc_plan {
    attnc_context *ctx;
    Plan plan;
    Module *module;
    Request request;
    uint64_t hash;
    atomic_int refs; /* its holders, and the table */
    Outcome made;
    char *text;
    attnc_plan *next; /* in its chain of the table */
};

/* Makes it what attnc_plan_get_info tells the calling thread of the plan. */
void outcome_keep(const attnc_plan *p, Outcome o);

void context_release(attnc_context *c);
/* The compiler, looked for once; NULL: none. */
const Compiler *context_compiler(attnc_context *c);

#endif
