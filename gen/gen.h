/* SPDX-License-Identifier: Apache-2.0
 * The one internal header of gen/: spec -> plan -> source. Pure: no file,
 * clock, environment, network or device. Types first, then prototypes grouped
 * by file, in the order data flows. */
#ifndef ATTNC_GEN_H
#define ATTNC_GEN_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "spec.h"

/* ---- errors ------------------------------------------------------------ */

enum { ERR_TEXT = 512, ERR_FIELD = 64 };

/* Filled by the first failure, which wins. `code` is an attnc_status value
 * (runtime/attnc.h): gen uses ERR_REQUEST, ERR_INTERNAL and ERR_MEMORY. */
typedef struct Err {
    int code;              /* 0: no error */
    char stage[16];        /* spec shape device tile plan expand emit ... */
    char field[ERR_FIELD]; /* offending field, or "" */
    char text[ERR_TEXT];   /* one line: what, where, nearest accepted */
} Err;

enum { ERR_REQUEST = -1, ERR_MEMORY = -7, ERR_INTERNAL = -10 };

/* ---- growing text ------------------------------------------------------ */

/* A growing string. All-zero is empty; `bad` is set when memory ran out and
 * stays set, so callers check once at the end. */
typedef struct Str {
    char *text; /* NUL-terminated once anything was added */
    size_t len, cap;
    bool bad;
} Str;

/* ---- device ------------------------------------------------------------ */

/* DEVICE_EMULATED: a CUDA row whose kernels run on the emulated device. */
enum device_kind { DEVICE_CPU, DEVICE_CUDA, DEVICE_EMULATED };

/* One row of numbers: where a kernel will run. */
typedef struct Device {
    char name[48]; /* e.g. "H200", or the CPU's model name */
    char arch[24]; /* avx2 avx512 avx512bf16 neon portable | sm_80 ... */
    int kind;      /* enum device_kind */
#define FIGURE(name, unit, doc) double name;
#include "device.def"
#undef FIGURE
} Device;

/* ---- tile -------------------------------------------------------------- */

enum tile_family {
#define FAMILY(name) TILE_##name,
#define FIELD(family, name, doc)
#include "tile.def"
#undef FAMILY
#undef FIELD
    TILE_FAMILIES
};

enum tile_from { FROM_MODEL, FROM_PIN, FROM_TABLE, FROM_SAFE };
enum { TILE_FIELDS = 16 };

/* At most 16 named integers. Access: t->v[T_cpu_fwd_block_q]. */
typedef struct Tile {
    int family; /* enum tile_family */
    int from;   /* enum tile_from */
    int32_t v[TILE_FIELDS];
} Tile;

/* T_<family>_<field>: index into Tile.v; T_<family> = its first running
 * number, so an index is the running number minus that. */
enum tile_running {
#define FAMILY(name) T_RUN_##name, T_RUN_##name##_ = T_RUN_##name - 1,
#define FIELD(family, name, doc) T_RUN_##family##_##name,
#include "tile.def"
#undef FAMILY
#undef FIELD
};
enum tile_index {
#define FAMILY(name)
#define FIELD(family, name, doc)                                               \
    T_##family##_##name = T_RUN_##family##_##name - T_RUN_##family,
#include "tile.def"
#undef FAMILY
#undef FIELD
};

/* ---- tensors that programs read (program.h) ---------------------------- */

enum program_dtype { ARRAY_F16, ARRAY_F32, ARRAY_I32, ARRAY_BOOL, ARRAY_BITS };
enum {
    ARRAY_DTYPES = ARRAY_BITS + 1,
    PROGRAM_NAME = 32,
    PROGRAM_RANK = 4,
    PROGRAM_TENSORS = 8,
    SPEC_TENSORS = 2 * PROGRAM_TENSORS /* of a spec's mask and score */
};

/* Extents and strides come with the launch. */
typedef struct ProgramTensor {
    char name[PROGRAM_NAME];
    int dtype, rank; /* enum program_dtype; 0 .. PROGRAM_RANK */
} ProgramTensor;

/* ---- plan -------------------------------------------------------------- */

enum param_kind { POINTER_IN, POINTER_OUT, LENGTH, STRIDE, SCALAR, WORK };
enum param_id {
#define PARAM(name, kind) PARAM_##name,
#include "param.def"
#undef PARAM
    PARAM_COUNT
};

typedef struct Param {
    int id;          /* enum param_id */
    int buf;         /* kind WORK: index into Plan.buf, else -1 */
    int tensor, dim; /* of tensor..dtensor: which of Plan.tensor; -1: none */
} Param;

/* Run-time sizes a grid or a buffer can depend on. */
/* clang-format off */
#define DIM_LIST(X)                                                            \
    X(ONE) X(BATCH) X(HEADS) X(KV_HEADS) X(GROUP) X(SEQLEN_Q) X(SEQLEN_K)      \
    X(ROWS) X(TOTAL_Q) X(PARTS) X(TENSOR_PARTS) X(TENSOR_ELEMENTS)
/* clang-format on */
/* GROUP = heads / kv_heads; ROWS = GROUP * seqlen_q, the query rows that share
 * one key head; TOTAL_Q = rows of the packed Q (varlen), else batch*seqlen_q;
 * PARTS = MOST_PARTS, a constant: divided by MOST_PARTS / P it is P;
 * TENSOR_PARTS, TENSOR_ELEMENTS: the plan's tensor_parts, those in `parted` */
enum { MOST_PARTS = 8 };
/* clang-format off */
enum dim {
#define X(name) DIM_##name,
    DIM_LIST(X)
#undef X
    DIM_COUNT
};
/* clang-format on */

typedef struct Factor {
    int dim;     /* enum dim */
    int64_t div; /* the factor is ceil(size of dim / div), div >= 1 */
} Factor;

/* Product of its factors; ends at dim == DIM_ONE or after 5. */
typedef struct Extent {
    Factor f[5];
} Extent;

/* clang-format off */
#define ROLE_LIST(X)                                                           \
    X(fwd) X(fwd_split) X(combine) X(merge)                                    \
    X(delta) X(bwd) X(bwd_dkdv) X(bwd_dq) X(dq_sum) X(dsink)                   \
    X(dtensor_zero) X(dtensor) X(dtensor_sum)
enum role {
#define X(name) ROLE_##name,
    ROLE_LIST(X)
#undef X
    ROLE_COUNT
};
/* clang-format on */

enum { PLAN_STEPS = 8, PLAN_BUFS = 16, STEP_PARAMS = 240 };

enum buf_zero { ZERO_NEVER, ZERO_EACH_LAUNCH };

/* Scratch that lives in the caller's workspace during one launch. */
typedef struct Buf {
    char name[16];
    int elem_bytes;
    int zero;      /* enum buf_zero */
    Extent extent; /* elements, times `fixed` */
    int64_t fixed;
} Buf;

/* What the IO model says of one step; times in ms, at the shape's hints. */
typedef struct Figures {
    double flops;          /* of the two products, visible pairs only */
    double exp2s;          /* exponentials */
    double dram_bytes;     /* compulsory */
    double sram_bytes;     /* moved between the last cache and SRAM */
    double sram_footprint; /* bytes of SRAM one work item fills */
    double items, waves;   /* work items; items / cores, rounded up */
    double compute_ms, dram_ms, sram_ms, time_ms;
    const char *bound; /* "compute" | "dram" | "sram" | "waves"; GPU: also
                          "tensor" | "fma" | "exp2" | "issue" | "smem" |
                          "latency" */
    /* GPU: what compute_ms overlaps, each alone on all SMs */
    double product_ms, exp2_ms, issue_ms, smem_ms;
    double registers; /* of a thread, estimated */
    double doubt;     /* > 1: likely to spill; time counts so much in ranks */
    double occupancy; /* warps on an SM / warps it holds */
} Figures;

typedef struct Step {
    int role; /* enum role */
    Tile tile;
    Extent grid; /* work items (CPU) or blocks (CUDA) */
    int nparam;
    Param param[STEP_PARAMS];
    int64_t scratch_bytes; /* CPU: per worker thread, 64-byte aligned */
    int64_t smem_bytes;    /* CUDA: dynamic shared memory of a block */
    int threads;           /* CUDA: of a block */
    char entry[64];        /* symbol of its kernel */
    Figures fig;
} Step;

typedef struct Plan {
    attnc_spec spec;   /* canonical */
    attnc_shape shape; /* hints and promises it was made for */
    Device device;
    int nstep, nbuf, ntensor;
    ProgramTensor tensor[SPEC_TENSORS]; /* as spec_tensors() has them */
    unsigned parted;  /* bits of these: dtensor_sum adds parts of a gradient */
    int tensor_parts; /* so many */
    Step step[PLAN_STEPS];
    Buf buf[PLAN_BUFS];
    char note[160]; /* why a tuned row was skipped, or "" */
} Plan;

/* A candidate of the tile search, ranked; `why` says why it was rejected. */
typedef struct Candidate {
    Tile tile;
    Figures fig;
    bool legal;
    char why[120];
} Candidate;

/* What the caller fixes: fields of a tile by name, from `--tile`; a tuned
 * table row takes the same form. Empty text: nothing pinned. */
typedef struct Pins {
    const char *tile;  /* "block_q=384,block_k=64" or NULL */
    const char *table; /* tuned row for this spec and device, or NULL */
    bool builtin;      /* plan for the precompiled generic kernel */
    const Tile *avoid; /* found to spill: neither they nor their like */
    int navoid;
} Pins;

/* ---- source ------------------------------------------------------------ */

/* One module of text. `line[i]` says which template line made line i + 1:
 * template index << 16 | line number. */
typedef struct Source {
    Str text;
    uint32_t *line;
    size_t nline;
} Source;

typedef struct Template {
    const char *name; /* "cpu/module.c.in" */
    const char *text;
    size_t len;
} Template;

/* Where templates come from: the embedded set, or one read by the command. */
typedef struct Templates {
    const Template *t;
    size_t count;
    const char *hash; /* hex SHA-256 over names and texts */
} Templates;

struct LuaApi; /* gen/luaapi.h: table of the Lua functions used */

/* ---- util.c ------------------------------------------------------------ */

/* printf to the end of s. */
void str_addf(Str *s, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void str_add(Str *s, const char *text, size_t len);
/* The shortest usual decimal that reads back as the same double. */
void str_number(Str *s, double value);
void str_free(Str *s);

/* Records the first failure in *e and returns `code`. field may be NULL. The
 * text becomes "stage: field: ..." (or "stage: ..."), one whole line. */
int err_set(Err *e, int code, const char *stage, const char *field,
            const char *fmt, ...) __attribute__((format(printf, 5, 6)));
#ifdef __clang_analyzer__ /* knows then that what comes back is no success */
#define err_set(e, code, ...) (err_set(e, code, __VA_ARGS__), (code))
#endif

/* Copies an open struct (first member struct_size) over *to, which holds the
 * defaults: an older, shorter one leaves the rest alone; a longer one must be
 * zero beyond `size`. */
int struct_copy(void *to, size_t size, const void *from, const char *stage,
                Err *e);

/* The spelling in `names` nearest to `word` by edit distance. */
const char *nearest_word(const char *word, const char *const *names, int n);

/* Walks "key=value" pairs separated by any of `seps`. Returns false at the
 * end; else sets key and value as slices (value.len 0 when there is no `=`). */
typedef struct Slice {
    const char *p;
    size_t len;
} Slice;
bool next_pair(const char **cursor, const char *seps, Slice *key, Slice *value);
bool slice_is(Slice s, const char *text);
/* Whole slice as a decimal int64; false when it is anything else. */
bool slice_int(Slice s, int64_t *out);
bool slice_double(Slice s, double *out);

/* ---- spec.c ------------------------------------------------------------ */

/* Sets fields of *s from "field=value ..." text; unnamed fields keep their
 * value. Unknown field or value: ERR_REQUEST naming the nearest accepted. */
int spec_parse(const char *text, attnc_spec *s, Err *e);
/* Sets one field; `value` as spelled in the text form. */
int spec_set(attnc_spec *s, const char *field, const char *value, Err *e);
/* Checks every field, fills derived defaults (head_dim_v): canonical form.
 * Accepts an older, shorter struct by its struct_size. */
int spec_check(const attnc_spec *in, attnc_spec *out, Err *e);
/* Canonical text: every field, in order, one line without newline. */
void spec_print(const attnc_spec *s, Str *out);
/* Spelling of the value of an enum field ("f16"), or NULL if not an enum. */
const char *spec_spelling(const attnc_spec *s, const char *field);
/* Calls fn for every field: name, default, accepted values, doc (all text);
 * the docs check and the command's --help use it. */
void spec_fields(void (*fn)(void *user, const char *name, const char *def,
                            const char *accepted, const char *doc),
                 void *user);
int dtype_bytes(int dtype); /* 4 or 2 */
/* Is there a built-in mask, one of numbers? */
bool spec_has_mask(const attnc_spec *s);

/* ---- shape.c ----------------------------------------------------------- */

/* Hints are at least 1: who derives a shape from a launch with an empty
 * tensor says 1 there. */
int shape_parse(const char *text, attnc_shape *s, Err *e);
int shape_check(const attnc_shape *in, attnc_shape *out, Err *e);
void shape_print(const attnc_shape *s, Str *out);
/* Only the promises: the part that belongs to a kernel's identity. */
void shape_print_promises(const attnc_shape *s, Str *out);

/* ---- device.c ---------------------------------------------------------- */

/* Rows of the built-in table: index 0 .. device_count() - 1. */
int device_count(void);
const Device *device_at(int i);
const char *device_source(int i); /* where its figures come from */
/* Finds a row by name (case-insensitive) or arch; "emu:" before a CUDA one
 * means its emulation. */
int device_find(const char *name, Device *out, Err *e);
/* Applies "key=value,..." to *d (the part after `@`). */
int device_override(Device *d, const char *pairs, Err *e);
void device_print(const Device *d, Str *out);
int device_parse(const char *text, Device *d, Err *e);

/* ---- tile.c ------------------------------------------------------------ */

const char *tile_family_name(int family);
/* Fields of a family in order; NULL at the end. */
const char *tile_field_name(int family, int i);
/* Index of the field of that name, or -1. */
int tile_field_index(int family, const char *name);
const char *tile_from_name(int from);     /* pin | table | model | safe */
void tile_print(const Tile *t, Str *out); /* "cpu_fwd block_q=384 ..." */
/* Sets the named fields of *t from "block_q=384,keys=4". */
int tile_parse(const char *pairs, Tile *t, Err *e);
/* The one body of legality. false: *why (120 bytes) holds the reason. */
bool tile_legal(const attnc_spec *s, const attnc_shape *h, const Device *d,
                const Tile *t, char why[120]);
/* The smallest tile of a family: what is left when all else is illegal. */
Tile tile_safe(const Device *d, int family);
/* Calls fn with every tile the search considers, legal or not; not split. */
void tile_each(const attnc_spec *s, const attnc_shape *h, const Device *d,
               int family, void (*fn)(void *user, const Tile *t), void *user);
/* Candidates of a family, legal or not (duplicates left out), at most max. */
int tile_enumerate(const attnc_spec *s, const attnc_shape *h, const Device *d,
                   int family, Candidate *out, int max);

/* What legality of any family is made of: each says why and returns false. */
enum { TILE_WHY = 120 };
typedef struct TileRange {
    const char *name;
    int value, lo, hi;
} TileRange;
bool tile_refuse(char why[TILE_WHY], const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
bool tile_in_ranges(const TileRange *r, int n, char why[TILE_WHY]);
/* Is value a multiple of unit? unit_name: what unit is, or "". */
bool tile_whole(const char *name, int value, const char *unit_name, int unit,
                char why[TILE_WHY]);

/* ---- tile_cuda.c ------------------------------------------------------- */

/* Is it one of the families for GPUs? */
bool tile_is_cuda(int family);
bool tile_cuda_legal(const attnc_spec *s, const Device *d, const Tile *t,
                     char why[TILE_WHY]);
void tile_cuda_each(const attnc_spec *s, const attnc_shape *h, const Device *d,
                    Tile *t, void (*fn)(void *user, const Tile *t), void *user);
void tile_cuda_safe(Tile *t);
/* Registers a thread of the emitted kernel will want, estimated. */
int tile_cuda_registers(const attnc_spec *s, const Device *d, const Tile *t);
/* Registers a thread can have when the SM holds the tile's `blocks`. */
int tile_cuda_register_limit(const Device *d, const Tile *t);
int tile_cuda_threads(const Tile *t); /* of a block */

#include "cpu.h"
#include "cuda.h"

/* ---- model.c ----------------------------------------------------------- */

/* Exact number of visible (query, key) pairs of the mask for one head with
 * the shape's hints (key lengths and varlen not known: the full lengths). */
double model_visible(const attnc_spec *s, const attnc_shape *h);
/* Bytes of SRAM / of per-thread scratch one work item uses; the emitted
 * scratch layout uses the same numbers (plan.c copies it into the Step). */
int64_t model_scratch_bytes(const attnc_spec *s, const Device *d,
                            const Tile *t);
void model_figures(const attnc_spec *s, const attnc_shape *h, const Device *d,
                   const Tile *t, Figures *out);

/* Parts of the keys whose O and LSE a combine makes one of. */
double model_parts(const attnc_shape *h, int split_k);

/* Keys between the first one any of `width` neighbouring queries sees and
 * the last one, summed over all queries. */
double model_key_span(const attnc_spec *s, const attnc_shape *h, int64_t width);

/* ---- model_cuda.c ------------------------------------------------------ */

void model_cuda(const attnc_spec *s, const attnc_shape *h, const Device *d,
                const Tile *t, Figures *out);

/* ---- plan_cuda.c ------------------------------------------------------- */

/* The family that multiplies for this spec on this GPU. */
int cuda_family(const attnc_spec *s, const Device *d);
/* Lengths of a split worth comparing, 0 (not split) among them; at most 16.
 * One: no choice. */
int cuda_splits(const attnc_spec *s, const attnc_shape *h, const Device *d,
                int out[16]);
/* Threads and shared memory of a step's blocks, from its tile. */
void cuda_launch(const attnc_spec *s, const Device *d, Step *step);

/* ---- plan.c, plan_step.c, plan_text.c ---------------------------------- */

/* Strategy first (split or not), then a tile per step by the ladder
 * pin > table > model > safe. */
int plan_choose(const attnc_spec *s, const attnc_shape *h, const Device *d,
                const Pins *pins, Plan *out, Err *e);
/* Fills what follows from spec, shape, device, roles and tiles: entries,
 * grids, parameters, buffers, scratch, figures. */
void plan_complete(Plan *p);
/* Ranked candidates of step i (best first, rejected last), for explain. */
int plan_candidates(const Plan *p, int step, Candidate *out, int max);
/* Identity text of the plan's module: canonical spec, promises, tiles, arch.
 * What the cache key hashes, together with generator and template hashes. */
void plan_identity(const Plan *p, Str *out);
/* Whole plan as readable text (several lines), and back. */
void plan_print(const Plan *p, Str *out);
int plan_parse(const char *text, Plan *p, Err *e);
const char *role_name(int role);
const char *param_name(int id);
enum { PARAM_TEXT = 48 };
/* The name of its slot. */
void param_text(const Plan *p, const Param *param, char out[PARAM_TEXT]);
int param_kind(int id);
/* What to call the whole plan: its main step's entry, a backward "bwd". */
void plan_name(const Plan *p, char out[64]);
/* Size of an extent, given the size of every dim; -1 on overflow. */
int64_t extent_size(const Extent *x, const int64_t dims[DIM_COUNT]);

/* ---- expand.c ---------------------------------------------------------- */

/* Template text -> Lua chunk with the same line numbers: a line starting with
 * `$` is Lua, `${expr}` inside any other line is a value. */
int expand_chunk(const Template *t, Str *chunk, Err *e);

/* ---- emit.c ------------------------------------------------------------ */

/* Plan -> one module of C, or of CUDA C for real or emulated primitives. Lua
 * is used through `lua` only. */
int emit_module(const Plan *p, const Templates *t, const struct LuaApi *lua,
                Source *out, Err *e);
void source_free(Source *s);

/* ---- generated: build/templates.c -------------------------------------- */

extern const Templates attnc_templates; /* embedded by the build */

#define ATTNC_GENERATOR_VERSION 1

#endif
