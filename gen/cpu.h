/* SPDX-License-Identifier: Apache-2.0
 * What the files of gen/ share about kernels for CPUs; part of gen.h, which
 * includes it. */
#ifndef ATTNC_CPU_H
#define ATTNC_CPU_H

/* ---- scratch.c --------------------------------------------------------- */

/* Byte offsets of the arrays in one CPU worker's scratch, each 64-byte
 * aligned; templates see them as the table L, the model as a footprint: the
 * size computed is the size emitted. X(name): cpu_fwd
 *   qt     Q transposed, f32 or packed [sub-block][head_dim][micro]
 *   ot     O transposed, f32 [sub-block][head_dim_v][micro]
 *   max, sum  running maximum and sum, f32 [block_q]
 *   pos    query position of each row, i32 [block_q]
 *   slope  ALiBi slope of each row, f32 [block_q]
 *   s      scores and weights, f32 [block_k + keys][micro]
 *          (vecs=0: rows of whole vectors, nothing transposed, micro 1)
 *   k, v   dense copies, rows of whole vectors, f32 or packed: [block_k][]
 *   drop   dropped weights, a bit each, u32 [32 keys][block_q]
 *   head   with programs: query head of each row, i32 [block_q]
 *   seen   with programs: scores where V is not finite, as s
 * cpu_bwd: qt, pos, slope, head, k, v as above, s for all sub-blocks, then dS
 *   dot    dO transposed, f32 [sub-block][head_dim_v][micro]
 *   q, dout  Q and dO in panels of kv_vecs vectors, f32 [panel][block_q][]
 *   dqt    dQ transposed, f32 [sub-block][head_dim][micro]
 *   top, rest  LSE in log2 units, whole and what is left, f32 [block_q]
 *   delta  f32 [block_q]
 *   grad, index  of a read of a tensor: its gradient, the computed index, f32
 *          and i32 [block_k + keys][micro]
 *   bend   derivative of the softcap, f32 [block_k + keys][micro]
 *   dk, dv sums, f32 [chunk_k + kv_keys][head_dim], [head_dim_v] */
/* clang-format off */
#define CPU_SCRATCH_LIST(X)                                                    \
    X(qt) X(ot) X(max) X(sum) X(pos) X(slope) X(head) X(s) X(k) X(v) X(drop)   \
    X(seen) X(dot) X(q) X(dout) X(dqt) X(top) X(rest) X(delta) X(ds) X(bend)   \
    X(grad) X(index)                                                           \
    X(dk) X(dv) X(total)
/* clang-format on */
typedef struct CpuScratch {
#define X(name) int64_t name;
    CPU_SCRATCH_LIST(X)
#undef X
} CpuScratch;
/* Family cpu_fwd or cpu_bwd. */
void cpu_scratch(const attnc_spec *s, const Device *d, const Tile *t,
                 CpuScratch *out);
/* Of those of cpu_bwd what is better in SRAM: all but dk and dv, which are
 * met once for each block_q rows. */
int64_t cpu_bwd_footprint(const CpuScratch *c);

/* ---- tile.c ------------------------------------------------------------ */

/* With vecs=0, vectors of dims, a work item of cpu_fwd has so many rows at
 * most: beyond, vectors of queries waste less. */
enum { FEW_ROWS = 8 };
/* A register tile holds rows x vecs sums, one vector of each of its
 * `vecs` operands and one broadcast. */
bool tile_fits_registers(const char *name, int rows, const char *vecs_name,
                         int vecs, const Device *d, char why[120]);
/* Only f32 needs no copy that converts it. */
bool tile_may_read_in_place(const attnc_spec *s, int copy_kv, char why[120]);

/* Cycles of asking a pattern: of `tiles` for each of `asked` blocks of rows,
 * and of `cut` vectors of scores one by one. */
double cpu_pattern_cycles(const attnc_spec *s, double tiles, double asked,
                          double cut);

/* ---- tile_bwd.c -------------------------------------------------------- */

bool tile_bwd_legal(const attnc_spec *s, const Device *d, const Tile *t,
                    char why[120]);
void tile_bwd_each(const attnc_spec *s, const attnc_shape *h, const Device *d,
                   Tile *t, void (*fn)(void *user, const Tile *t), void *user);
void tile_bwd_safe(const Device *d, Tile *t);

/* ---- model.c: counts that all families for CPUs are made of ------------- */

/* Visible pairs of the keys below `end`, which is at most seqlen_k. */
double model_visible_below(const attnc_spec *s, const attnc_shape *h,
                           int64_t end);
/* Cycles of a register tile's step, rows x vecs sums: `load` is how many
 * loads one vector is worth, `latency` of one product added to a sum. */
typedef struct Feed {
    double latency, load;
} Feed;
/* What is swept again and again has this many bytes. */
Feed cpu_feed(const Device *d, bool pairs, double bytes);
double cpu_step_cycles(const Device *d, double rows, double vecs, Feed f);
/* exp2 of a vector of scores, with its load, subtraction, sum and store. */
double cpu_exp_cycles(const Device *d);
/* Cycles of one core in a millisecond. */
double cpu_cycles_per_ms(const Device *d);
/* compute_ms, dram_ms and sram_ms -> time_ms and bound; balance: how much
 * longer than an even share the last core works; exposed: the share of
 * sram_ms that nothing hides. */
void cpu_predict(Figures *f, double balance, double exposed);

/* ---- model_bwd.c ------------------------------------------------------- */

void model_bwd(const attnc_spec *s, const attnc_shape *h, const Device *d,
               const Tile *t, Figures *out);
/* A step of family cpu_bwd whose dQ has its own pass: that step's share. */
void model_bwd_share(const attnc_spec *s, int role, Figures *f);
/* The step dtensor, of so many items. */
void model_bwd_tensor(const attnc_spec *s, const attnc_shape *h,
                      const Device *d, const Tile *t, double items, Figures *f);
/* Steps that go over rows once: cpu_rows. */
void model_rows(const attnc_spec *s, const attnc_shape *h, const Device *d,
                const Tile *t, Figures *out);

/* ---- plan_cpu.c -------------------------------------------------------- */

/* Lengths of a split worth comparing, powers of two so that growing lengths
 * share few kernels, 0 (not split) the first where there is a choice; at most
 * 16. Splits pay when the rows cannot occupy the cores and the keys are many,
 * or when a pattern's long rows would keep the others waiting. Under
 * batch_invariant neither the batch nor a length that may be another
 * sequence's decides: the query rows do, and varlen never splits. */
int cpu_splits(const attnc_spec *s, const attnc_shape *h, const Device *d,
               int out[16]);
/* Parts of O for rows that do not need them are not worth more memory. */
enum { SPLIT_BYTES = 1 << 28 };
bool split_fits(const attnc_spec *s, const attnc_shape *h, int64_t split_k);

/* ---- plan_bwd.c -------------------------------------------------------- */

/* Roles of a backward whose main tile is *t, in order; returns how many. */
int plan_bwd_roles(const attnc_spec *s, const Tile *t, int role[PLAN_STEPS]);
/* Is it the main family of a backward on a CPU? */
bool plan_bwd_cpu(const attnc_spec *s, int family);
/* Does it compute P and dS from Q, K, V and dO? */
bool plan_bwd_is_main(int role);
/* The step's grid. */
Extent plan_bwd_grid(const Plan *p, const Step *s);
/* The plan's buffers, from its main tile. */
void plan_bwd_bufs(Plan *p);
/* Does a kernel of this role read this parameter? */
bool plan_bwd_uses(int role, int id);
/* The step of the main tile; NULL: not a backward of these families. */
const Step *plan_bwd_main(const Plan *p);

/* ---- plan_tensor.c: for any target --------------------------------------- */

/* Elements of one item of dtensor_sum. */
enum { TENSOR_SUMS = 32 };

/* Appends the roles that sum gradients of tensors to n others; returns how many
 * there are then. */
int plan_tensor_roles(const attnc_spec *s, int role[PLAN_STEPS], int n);
/* Is it one of those roles? */
bool plan_tensor_is(int role);
Extent plan_tensor_grid(const Plan *p, const Step *s);
/* The step dtensor; NULL: the plan has none, or that of the built-in kernel. */
const Step *plan_tensor_step(const Plan *p);
/* Parts of each item's work, at least 1, by the hints. */
int plan_tensor_parts(const Plan *p);
/* Figures of one of these steps, where *f has those of its tile. */
void plan_tensor_figures(const Plan *p, const Step *s, Figures *f);
void plan_tensor_bufs(Plan *p);
/* Does a step before or after dtensor read this parameter? */
bool plan_tensor_uses(int role, int id);

/* ---- the built-in kernel ------------------------------------------------ */

/* The precompiled kernel (runtime/builtin.c) takes its tile as constants: the
 * family's only legal `rows` is BUILTIN_ROWS; grid BATCH, KV_HEADS, ROWS /
 * BUILTIN_ROWS, items numbered as those of fwd. */
enum { BUILTIN_ROWS = 64, BUILTIN_KEYS = 64, BUILTIN_LANES = 8 };
/* Bytes of the values of a spec's programs at one pair: spec_program.c. */
int64_t spec_values_bytes(const attnc_spec *s);
/* Its scratch per worker: these values, Q and O transposed, K, V, two blocks
 * of scores; of a backward Q, dO, dQ, Q and dO as they are, K, V, dK, dV, four
 * of scores. */
static inline int64_t builtin_scratch(const attnc_spec *s) {
    int64_t d = s->head_dim, dv = s->head_dim_v ? s->head_dim_v : d;
    int64_t row = (d + 3) / 4 * 4 + (dv + 3) / 4 * 4;
    if (s->pass == ATTNC_PASS_MERGE)
        return 0;
    if (s->pass == ATTNC_PASS_BWD)
        return spec_values_bytes(s) +
               4 * ((3 * BUILTIN_ROWS + 2 * BUILTIN_KEYS) * row +
                    4 * BUILTIN_KEYS * BUILTIN_LANES);
    int64_t floats = (BUILTIN_ROWS + BUILTIN_KEYS) * (d + (dv + 3) / 4 * 4) +
                     2 * BUILTIN_KEYS * BUILTIN_LANES;
    return spec_values_bytes(s) + floats * 4;
}

#endif
