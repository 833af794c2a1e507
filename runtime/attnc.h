/* SPDX-License-Identifier: Apache-2.0
 * attnc: attention kernels, generated, compiled and cached at run time.
 *
 * One context is one device. attnc_prepare may be slow and may fail;
 * attnc_launch allocates nothing, compiles nothing and synchronises nothing
 * beyond its own work. All functions are thread-safe. The library never exits,
 * aborts or prints. Every function that returns int returns ATTNC_OK (0) or a
 * negative attnc_status; attnc_last_error() then says what happened. */
#ifndef ATTNC_H
#define ATTNC_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "spec.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ATTNC_VERSION_MAJOR 0
#define ATTNC_VERSION_MINOR 1
#define ATTNC_VERSION_PATCH 0

#if defined(__GNUC__)
#define ATTNC_API __attribute__((visibility("default")))
#else
#define ATTNC_API
#endif

/* X(suffix, value, exit status of the command, sentence) */
#define ATTNC_STATUS_LIST(X)                                                   \
    X(OK, 0, 0, "success")                                                     \
    X(E_REQUEST, -1, 2, "the request is not valid")                            \
    X(E_PROMISE, -2, 2, "a launch broke a promise of its plan")                \
    X(E_WORKSPACE, -3, 2, "the workspace is missing or too small")             \
    X(E_MISSING, -4, 3, "this machine lacks something")                        \
    X(E_NOT_CACHED, -5, 3, "not in the cache, and compiling is off")           \
    X(E_COMPILE, -6, 4, "the compiler failed")                                 \
    X(E_MEMORY, -7, 4, "out of memory")                                        \
    X(E_IO, -8, 4, "reading or writing failed")                                \
    X(E_LAUNCH, -9, 4, "the launch failed")                                    \
    X(E_INTERNAL, -10, 4, "a fault of attnc itself")

typedef enum attnc_status {
#define X(suffix, value, exit_status, sentence) ATTNC_##suffix = value,
    ATTNC_STATUS_LIST(X)
#undef X
} attnc_status;

/* What went wrong last in the calling thread. Strings live until that
 * thread's next failing call. */
typedef struct attnc_error {
    int status;
    const char *stage; /* spec shape device tile plan emit compile load ... */
    const char *field; /* offending field, or "" */
    const char *text;  /* one line: what, where, nearest accepted value */
    const char *hint;  /* what to do about it, or "" */
    const char *log;   /* whole compiler output, or "" */
} attnc_error;

typedef struct attnc_context attnc_context;
typedef struct attnc_plan attnc_plan;

enum attnc_log_level { ATTNC_LOG_INFO, ATTNC_LOG_WARNING };

/* Runs fn(arg, i, worker) for every 0 <= i < count, in any order, each once;
 * worker < parallel_workers tells concurrent calls apart. */
typedef void (*attnc_parallel_for)(void *user, int64_t count,
                                   void (*fn)(void *arg, int64_t i, int worker),
                                   void *arg);

/* Zero means default everywhere. Strings are copied. */
typedef struct attnc_options {
    size_t struct_size;
    const char *target;    /* auto | cpu | cuda[:N] | ARCH | DEVICE | emu:ARCH,
                              then [@k=v,..]; NULL and auto: the first GPU,
                              else the CPU */
    const char *cache_dir; /* NULL: ATTNC_CACHE_DIR, XDG, ~/.cache; "": none */
    int64_t cache_max_bytes;   /* 0: 1 GiB */
    int32_t cache_readonly;    /* 1: never write the disk cache */
    int32_t no_compile;        /* 1: a miss is ATTNC_E_NOT_CACHED */
    const char *compilers;     /* "clang:gcc"; NULL: newest clang, then gcc;
                                  "": none, use the built-in kernel */
    const char *templates_dir; /* NULL: the embedded templates */
    int32_t threads;           /* 0: the CPUs this process may use */
    int32_t parallel_workers;  /* with parallel_for: how many at once */
    attnc_parallel_for parallel_for; /* NULL: the library's own pool */
    void *parallel_user;
    void (*log)(void *user, int level, const char *line);
    void *log_user;
    const char *cuda_dirs; /* "DIR:DIR": toolkits or site-packages in which
                              NVRTC is looked for first; NULL: none */
} attnc_options;
#define ATTNC_OPTIONS_INIT                                                     \
    { .struct_size = sizeof(attnc_options) }

/* Device memory with its strides in elements; the last dim is contiguous.
 * varlen: stride_b is not used, rows of all sequences follow each other.
 * Stride 0 is legal on inputs. */
typedef struct attnc_tensor {
    void *data;
    int64_t stride_b, stride_h, stride_n;
} attnc_tensor;

/* How mask_offset is meant, per batch entry or sequence. */
enum attnc_offset_mode {
    ATTNC_OFFSET_INT, /* mask_offset itself */
    ATTNC_OFFSET_BR,  /* seqlen_k - seqlen_q (of the sequence in varlen) */
    ATTNC_OFFSET_LEN, /* lens_k[b] - seqlen_q */
};

enum attnc_program_kind {
    ATTNC_MASK,        /* spec.mask_program: docs/programs.md */
    ATTNC_SCORE,       /* spec.score_program */
    ATTNC_PATTERN = 3, /* spec.sparsity: docs/patterns.md, then " block=N" */
};

/* A text of the expression language, or the name of a pattern, checked and
 * ready for a spec. Equal texts give the same program; nobody frees them. */
ATTNC_API int attnc_program_create(const char *text, int kind,
                                   const attnc_program **out);
/* The canonical text. */
ATTNC_API const char *attnc_program_text(const attnc_program *program);

enum attnc_array_dtype {
    ATTNC_ARRAY_F16,
    ATTNC_ARRAY_F32,
    ATTNC_ARRAY_I32,
    ATTNC_ARRAY_BOOL, /* a byte, 0 or 1 */
    /* The last dim packed: element i is bit i % 32 of word i / 32, little-
     * endian; its stride is 1, that of others a multiple of 32. */
    ATTNC_ARRAY_BITS,
};

/* A tensor that the spec's programs read, or the bias (named "bias", f32, with
 * the dims that spec.bias names). */
typedef struct attnc_array {
    const char *name;
    const void *data; /* device memory; may be NULL when a dim is 0 */
    int32_t dtype;    /* enum attnc_array_dtype: as the program declares it */
    int32_t rank;     /* 0..4, as the program declares it */
    int64_t n[4], stride[4]; /* elements; index i of dim d: i * stride[d] */
    float *grad; /* pass=bwd and spec.tensor_grads: dense, in C order */
} attnc_array;

/* Sizes, and for a bsr pattern the blocks, that a pattern is listed for. Start
 * from ATTNC_PATTERN_LISTS_INIT. All arrays are the host's and are copied. */
typedef struct attnc_pattern_lists {
    size_t struct_size;
    int64_t heads, seqlen_q, seqlen_k;
    /* Packed sequences: how many, and their bounds; else 0 and NULL. */
    int64_t batch;
    const int32_t *cu_seqlens_q, *cu_seqlens_k; /* [batch + 1] */
    /* bsr: block row a of list l sees the blocks indices[indptr[l, a]] ..
     * indices[indptr[l, a + 1] - 1], in any order, each once. */
    int64_t list_heads;              /* 1: all heads share it; or heads */
    const int32_t *indptr, *indices; /* [list_heads, block rows + 1], [count] */
    int64_t index_count;
} attnc_pattern_lists;
#define ATTNC_PATTERN_LISTS_INIT                                               \
    { .struct_size = sizeof(attnc_pattern_lists) }

/* The blocks of a pattern that has no closed form. */
typedef struct attnc_pattern attnc_pattern;

/* What attention over some of the keys left, for pass=merge: as o and lse of
 * attnc_args. */
typedef struct attnc_part {
    attnc_tensor o; /* [B, H, Nq, dv]; varlen [total_q, H, dv] */
    const float *lse;
    int64_t lse_stride_b, lse_stride_h;
    int64_t f32; /* 1: o is f32, whatever the spec's dtype; else 0 */
} attnc_part;

/* Everything a launch reads. Start from ATTNC_ARGS_INIT.
 *   q [B, H, Nq, d]   k [B, HK, Nk, d]   v [B, HK, Nk, dv]   o [B, H, Nq, dv]
 *   lse [B, H, Nq] f32, natural log, row stride 1; may be NULL
 * varlen: q [total_q, H, d] and so on, batch = sequences, seqlen_q and
 * seqlen_k = upper bounds of any sequence's length, lse [H, total_q]
 * (lse_stride_b not used). Visible keys, with off from mask_offset:
 *   causal  k <= q + off        window  q+off-left <= k <= q+off+right
 *   prefix  k < prefix or k <= q + off
 * mask_left or mask_right of INT64_MAX: no limit.
 * pass=bwd reads q, k, v, the o and lse of the forward (lse is needed; both may
 * be merged from several ones) and dout, the gradient of o, and dlse, that of
 * lse; it writes dq, dk, dv and with a sink dsink, summed over the batch. Rows
 * of dk and dv behind a key length are zeros.
 * pass=merge reads parts and writes o and lse: those of attention over the keys
 * of all parts, which have the same queries. A row's part with an lse of
 * -INFINITY takes no part in it. The sink is one key more: either the merge has
 * it, or one of the parts. */
typedef struct attnc_args {
    size_t struct_size;
    int64_t batch, heads, kv_heads, seqlen_q, seqlen_k;
    attnc_tensor q, k, v, o;
    float *lse;
    int64_t lse_stride_b, lse_stride_h;
    /* These three, too, are device memory; on a GPU nobody checks them. */
    const int32_t *lens_k;       /* [B], 0 <= lens_k[b] <= seqlen_k */
    const int32_t *cu_seqlens_q; /* [B + 1], ascending from 0 */
    const int32_t *cu_seqlens_k; /* [B + 1] */
    int64_t mask_left, mask_right, mask_prefix, mask_offset;
    int32_t mask_offset_mode; /* enum attnc_offset_mode */
    float scale;              /* NaN: 1 / sqrt(head_dim) */
    float softcap;            /* > 0 when the spec has softcap */
    const float *slopes;      /* [H]; NULL: the ALiBi paper's */
    const float *sink;        /* [H] */
    void *workspace;          /* attnc_workspace bytes, 64-byte aligned */
    size_t workspace_bytes;
    attnc_tensor dout, dq, dk, dv; /* as o, q, k, v */
    const float *dlse;             /* as lse; NULL: zeros */
    float *dsink;                  /* [H]; NULL where the spec has no sink */
    /* Dropout, when the spec has it: a weight is dropped with probability
     * dropout_p, 0 <= dropout_p < 1, the rest is divided by 1 - dropout_p.
     * Which ones is a function of seed, offset (32 bits), batch entry
     * dropout_b0 + b, head dropout_h0 + h of dropout_heads (0: heads) and
     * position alone. */
    double dropout_p;
    uint64_t dropout_seed, dropout_offset;
    int64_t dropout_b0, dropout_h0, dropout_heads;
    const attnc_array *tensors; /* those that programs read, in any order */
    int64_t tensor_count;
    const attnc_part *parts; /* pass=merge: [part_count], in the memory of the
                                device like what they point to */
    int64_t part_count;
    /* The blocks of spec.sparsity where that is bsr or draws blocks. */
    const attnc_pattern *pattern;
} attnc_args;
#define ATTNC_ARGS_INIT                                                        \
    { .struct_size = sizeof(attnc_args), .scale = NAN }

typedef struct attnc_prepare_options {
    size_t struct_size;
    const char *tile; /* pinned fields, "block_q=384,block_k=64"; or NULL */
} attnc_prepare_options;

/* Where a plan's kernels came from. */
typedef struct attnc_plan_info {
    size_t struct_size;
    const char *cache;       /* memory | disk | bundle | miss */
    const char *compiler;    /* e.g. "clang 14.0.6", or "builtin" */
    double prepare_ms;       /* what the caller of attnc_prepare waited */
    double compile_ms;       /* of that: the compiler and linker; 0 on a hit */
    const char *text;        /* the plan, readable (attnc explain) */
    double emit_ms, load_ms; /* of prepare_ms too: writing the source, loading
                                the binary; 0 where that was not needed */
} attnc_plan_info;

/* Library version as major * 10000 + minor * 100 + patch. */
ATTNC_API int attnc_version(void);
/* Sentence for a status. */
ATTNC_API const char *attnc_status_text(int status);
/* Never NULL. */
ATTNC_API const attnc_error *attnc_last_error(void);

/* options may be NULL. */
ATTNC_API int attnc_context_create(const attnc_options *options,
                                   attnc_context **out);
/* Plans still held stay valid until released. NULL is fine. */
ATTNC_API void attnc_context_destroy(attnc_context *ctx);

/* Finds or makes the kernels for a spec. options may be NULL. Equal requests
 * give the same plan back (<= 1 us); release every one. */
ATTNC_API int attnc_prepare(attnc_context *ctx, const attnc_spec *spec,
                            const attnc_shape *shape, attnc_plan **out);
ATTNC_API int attnc_prepare_with(attnc_context *ctx, const attnc_spec *spec,
                                 const attnc_shape *shape,
                                 const attnc_prepare_options *options,
                                 attnc_plan **out);
ATTNC_API void attnc_plan_release(attnc_plan *plan);
/* Set info->struct_size first. Strings live as long as the plan. `cache` and
 * `prepare_ms` are those of the calling thread's last prepare of this plan. */
ATTNC_API int attnc_plan_get_info(const attnc_plan *plan,
                                  attnc_plan_info *info);

/* Bytes of workspace a launch with these sizes needs; reads only the lengths,
 * heads and batch of *sizes and, where the plan sums gradients of tensors in
 * parts, names and extents of `tensors`. Pure. */
ATTNC_API int attnc_workspace(const attnc_plan *plan, const attnc_args *sizes,
                              size_t *bytes);
/* Runs the plan's steps. stream: CUDA stream, or NULL (the CPU returns when
 * the result is there). */
ATTNC_API int attnc_launch(const attnc_plan *plan, const attnc_args *args,
                           void *stream);
/* Derives the shape and its promises from args, prepares, provides the
 * workspace when args has none, launches. */
ATTNC_API int attnc_run(attnc_context *ctx, const attnc_spec *spec,
                        const attnc_args *args, void *stream);
/* One result from those of parts of the keys: attnc_run with pass=merge. spec
 * and args may be those the parts were computed with: only what a merge reads
 * is taken (dtype, head_dim_v, varlen, sink; sizes, cu_seqlens_q, sink, o, lse,
 * workspace). `parts` has `count` of them, 1 and more, and is device memory. */
ATTNC_API int attnc_merge(attnc_context *ctx, const attnc_spec *spec,
                          const attnc_args *args, const attnc_part *parts,
                          int64_t count, void *stream);

/* Lists the blocks of a pattern (bsr, or one that draws) for launches of these
 * sizes; not during a launch. Equal requests share the memory, a bit for each
 * block; time goes with the blocks kept and this memory. Release every one. */
ATTNC_API int attnc_pattern_create(attnc_context *ctx,
                                   const attnc_program *sparsity,
                                   const attnc_pattern_lists *lists,
                                   attnc_pattern **out);
/* NULL is fine. Not before the launches that read it are done. */
ATTNC_API void attnc_pattern_release(attnc_pattern *pattern);
/* Bytes of device memory that an upload takes. */
ATTNC_API size_t attnc_pattern_bytes(const attnc_pattern *pattern);
/* On a GPU a pattern needs attnc_pattern_bytes of its memory at `to`: copied on
 * the stream, in the calling thread's current context, for the launches that
 * follow. Refused on a CPU, which reads the host's. */
ATTNC_API int attnc_pattern_upload(attnc_pattern *pattern, void *to,
                                   void *stream);

#ifdef __cplusplus
}
#endif
#endif
