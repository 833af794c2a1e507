/* SPDX-License-Identifier: Apache-2.0
 * Part of gen.h: shared memory, and the backward on GPUs. Both of its main
 * steps keep a block of rows of their own, keys for dK and dV, queries for dQ,
 * and go over the other rows in steps; one set of names serves both. */
#ifndef ATTNC_GEN_CUDA_H
#define ATTNC_GEN_CUDA_H

/* ---- tile_cuda_bwd.c --------------------------------------------------- */

/* Where dQ is summed: in a step of its own; by the block that has all keys;
 * by all blocks of keys, in order or in any. */
enum cuda_dq { DQ_APART, DQ_BLOCK, DQ_ORDERED, DQ_ATOMIC, DQ_WAYS };

/* What explain says of one: time of the steps it decides, or why not. */
typedef struct DqWay {
    double ms; /* HUGE_VAL: it cannot be */
    char why[TILE_WHY];
} DqWay;
/* Returns how many there are: DQ_WAYS, or 0 for a plan without that choice. */
int plan_dq_ways(const Plan *p, DqWay out[DQ_WAYS]);

/* A tile of mma_dkdv, mma_dq, fma_dkdv or fma_dq. */
typedef struct CudaBwd {
    bool mma, by_keys; /* by_keys: the own rows are keys */
    int own, other;    /* rows of a block; of the others, in a step */
    int warps, rows;   /* rows: own ones of one warp */
    int stages;        /* tiles of the others in SRAM */
    int blocks;        /* of an SM it is compiled for */
    int split;         /* 1: dK and dV of the same keys in two warps */
    int dq;            /* enum cuda_dq */
    int regs;          /* own rows in registers: 1 V or dO; 2 K or Q as well */
} CudaBwd;

bool cuda_is_bwd(int family);
CudaBwd cuda_bwd_of(const Tile *t);
bool cuda_bwd_legal(const attnc_spec *s, const Device *d, const Tile *t,
                    char why[TILE_WHY]);
void cuda_bwd_each(const attnc_spec *s, const attnc_shape *h, const Device *d,
                   Tile *t, void (*fn)(void *user, const Tile *t), void *user);
/* Does what was promised allow this tile? */
bool cuda_bwd_promised(const attnc_shape *h, const Tile *t, char why[TILE_WHY]);
/* Of the part of a step's dQ that a warp sums: m16 tiles, n16 tiles. */
void cuda_bwd_dq_share(const CudaBwd *b, int64_t dim, int *m, int *n);
void cuda_bwd_safe(Tile *t);
int cuda_bwd_registers(const attnc_spec *s, const Device *d, const Tile *t);

/* ---- smem_bwd.c -------------------------------------------------------- */

/* Shared memory of one block, in bytes; templates see it as the table L. x:
 * own rows, Q and dO or K and V, in the place of which results leave; y: a
 * stage of the others; table: of those what is no row, when they are queries;
 * p: FMA kernels' weights; ds: dS for dQ. Rows are kept as in CudaSmem. */
/* clang-format off */
#define CUDA_BWD_SMEM_LIST(X)                                                  \
    X(dim)                                                                     \
    X(dim_v) X(x1) X(x2) X(y1) X(y2) X(table) X(stage_bytes) X(p) X(pitch1)    \
        X(pitch2) X(p_pitch) X(ds) X(total)
/* clang-format on */
typedef struct CudaBwdSmem {
#define X(name) int64_t name;
    CUDA_BWD_SMEM_LIST(X)
#undef X
} CudaBwdSmem;
void cuda_bwd_smem(const attnc_spec *s, const Device *d, const Tile *t,
                   CudaBwdSmem *out);

/* ---- model_cuda_bwd.c -------------------------------------------------- */

void model_cuda_bwd(const attnc_spec *s, const attnc_shape *h, const Device *d,
                    const Tile *t, Figures *out);
/* Times beside the main step, at least: of summing dQ in memory, of waiting
 * for turns. */
double cuda_dq_ms(const attnc_spec *s, const attnc_shape *h, const Device *d,
                  int dq);
/* Figures of dtensor, of so many items, where *f has those of dQ's step. */
void model_cuda_tensor(const attnc_spec *s, const Device *d, const Tile *t,
                       double items, Figures *f);
/* Figures of dq_sum, where *f has those of delta. */
void model_cuda_dq_sum(const attnc_spec *s, const attnc_shape *h,
                       const Device *d, Figures *f);

/* ---- plan_cuda_bwd.c --------------------------------------------------- */

/* Threads of a block of delta or dsink. */
enum { CUDA_ROWS_THREADS = 128 };

/* The families of the steps, ended by -1: dK and dV, dQ, rows. */
void cuda_bwd_families(const attnc_spec *s, const Device *d, int out[4]);
/* Roles in order, by the tile of dK and dV; returns how many. */
int cuda_bwd_roles(const attnc_spec *s, const Tile *t, int role[PLAN_STEPS]);
/* Does a step of this role and tile take this parameter? */
bool cuda_bwd_uses(const Step *s, int id);
/* Which of these families is that of the role. */
int cuda_bwd_family(int role);
/* Has the plan the steps of a backward on a GPU? */
bool cuda_bwd_plan(const Plan *p);
Extent cuda_bwd_grid(const Plan *p, const Step *s);
void cuda_bwd_bufs(Plan *p);

/* ---- plan_cuda_tensor.c ------------------------------------------------ */

/* Of the step dtensor: shared memory, tile (in the place of dQ's). */
int64_t cuda_tensor_smem(const attnc_spec *s, const Device *d, const Tile *t);
void cuda_tensor_tile(const Plan *p, Tile *t);

/* ---- smem.c ------------------------------------------------------------ */

/* Shared memory of one block of mma_fwd or fma_fwd, in bytes; templates see
 * it as the table L, the model as a footprint. Rows of mma tiles are kept in
 * pages of 128, then 64, 32, 16 bytes of each row, [page][row][bytes], with
 * their 16-byte chunks swizzled; rows of fma tiles are f32 at a pitch. */
typedef struct CudaSmem {
    int64_t dim, dim_v; /* columns kept of Q, K; of V, O */
    int64_t q, k, v;    /* tiles; of K and V the first stage */
    int64_t p;          /* fma: weights, f32 [block_q][block_k] */
    int64_t o;          /* O on its way out, over what is done with */
    int64_t k_stages, v_stages, k_bytes, v_bytes; /* of one stage */
    int64_t q_pitch, v_pitch, p_pitch;            /* fma; K as Q */
    int64_t team;  /* all of these, for a head; in a block as many as heads */
    int64_t total; /* of the block */
} CudaSmem;
void cuda_smem(const attnc_spec *s, const Device *d, const Tile *t,
               CudaSmem *out);

#endif
