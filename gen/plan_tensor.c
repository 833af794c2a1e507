/* SPDX-License-Identifier: Apache-2.0
 * How a backward shares out the gradients of the tensors that a score program
 * reads, on any target:
 *   dtensor_zero  clears gradients, for elements that nobody reads have none
 *   dtensor       P and dS once more, whose gradients are added up
 *   dtensor_sum   adds the copies of what several parts added to
 * A cell is a batch entry, a head, a block of queries, as far as the spec lets
 * these be apart (grad_share). Items own cells; where these are too few, each
 * cell's work is shared by a number of parts, every part with a copy of its
 * own of those tensors that parts would meet in. */
#include <math.h>
#include <stdio.h>

#include "program.h"

/* Items for each core: so many make them end together whatever a mask hides;
 * blocks that an SM holds at once. Parts, at most. */
enum { ITEMS_EACH = 4, BLOCKS_EACH = 3, MOST_TENSOR_PARTS = 1024 };

static GradShare share_of(const attnc_spec *s) {
    return s->tensor_grads ? grad_share(spec_score_grad(s)) : (GradShare){0};
}

int plan_tensor_roles(const attnc_spec *s, int role[PLAN_STEPS], int n) {
    unsigned parted = spec_grads_parted(s);
    if ((unsigned)s->tensor_grads & ~parted)
        role[n++] = ROLE_dtensor_zero;
    if (s->tensor_grads)
        role[n++] = ROLE_dtensor;
    if (parted)
        role[n++] = ROLE_dtensor_sum;
    return n;
}

bool plan_tensor_is(int role) {
    return role == ROLE_dtensor_zero || role == ROLE_dtensor ||
           role == ROLE_dtensor_sum;
}

/* ---- cells and parts --------------------------------------------------- */

/* A head is one of queries on a GPU, of keys on a CPU, whose rows are those of
 * its whole group. */
static int heads_dim(const Plan *p) {
    return p->device.kind == DEVICE_CPU ? DIM_KV_HEADS : DIM_HEADS;
}

/* Queries of a cell: what one block of the step works on. */
static int64_t queries(const Step *s) {
    return s->tile.v[0]; /* block_q, dq_block_q */
}

Extent plan_tensor_grid(const Plan *p, const Step *s) {
    GradShare share = share_of(&p->spec);
    Extent x = {{{DIM_ONE, 1}}};
    int n = 0;
    if (s->role == ROLE_dtensor_zero)
        return (Extent){{{DIM_PARTS, 1}, {DIM_ONE, 1}}};
    if (s->role == ROLE_dtensor_sum)
        return (Extent){{{DIM_TENSOR_ELEMENTS, TENSOR_SUMS}, {DIM_ONE, 1}}};
    if (share.owned & DEP_B)
        x.f[n++] = (Factor){DIM_BATCH, 1};
    if (share.owned & DEP_H)
        x.f[n++] = (Factor){heads_dim(p), 1};
    if (share.owned & DEP_Q)
        x.f[n++] = (Factor){DIM_SEQLEN_Q, queries(s)};
    if (share.parted)
        x.f[n++] = (Factor){DIM_TENSOR_PARTS, 1};
    x.f[n] = (Factor){DIM_ONE, 1};
    return x;
}

/* Cells that differ in these, at the hinted sizes. */
static double cells(const Plan *p, const Step *s, unsigned deps) {
    const attnc_shape *h = &p->shape;
    bool cpu = p->device.kind == DEVICE_CPU;
    int64_t blocks = (h->seqlen_q + queries(s) - 1) / queries(s);
    double n = deps & DEP_Q ? (double)blocks : 1;
    n *= deps & DEP_H ? (double)(cpu ? h->kv_heads : h->heads) : 1;
    return deps & DEP_B && !p->spec.batch_invariant ? n * (double)h->batch : n;
}

const Step *plan_tensor_step(const Plan *p) {
    for (int i = 0; i < p->nstep; i++)
        if (p->step[i].role == ROLE_dtensor &&
            p->step[i].tile.family != TILE_builtin)
            return &p->step[i];
    return NULL;
}

int plan_tensor_parts(const Plan *p) {
    const Step *s = plan_tensor_step(p);
    GradShare share = share_of(&p->spec);
    if (!s || !share.parted)
        return 1;
    double own = cells(p, s, share.owned);
    double most = cells(p, s, share.split) / own;
    int each = p->device.kind == DEVICE_CPU ? ITEMS_EACH : BLOCKS_EACH;
    double parts = ceil(each * p->device.cores / own);
    parts = fmin(fmin(parts, most), MOST_TENSOR_PARTS);
    return parts > 1 ? (int)parts : 1;
}

/* Copies that each part has of a gradient: on a GPU one for each warp. */
static int copies(const Step *s) {
    return tile_is_cuda(s->tile.family) ? cuda_bwd_of(&s->tile).warps : 1;
}

/* Copies of the gradients that several parts add to, one after the other. */
void plan_tensor_bufs(Plan *p) {
    if (!p->parted)
        return;
    Buf *b = &p->buf[p->nbuf++];
    *b = (Buf){.elem_bytes = 4,
               .zero = ZERO_EACH_LAUNCH,
               .fixed = copies(plan_tensor_step(p))};
    b->extent = (Extent){
        {{DIM_TENSOR_PARTS, 1}, {DIM_TENSOR_ELEMENTS, 1}, {DIM_ONE, 1}}};
    snprintf(b->name, sizeof b->name, "part_tensor");
}

bool plan_tensor_uses(int role, int id) {
    bool parts = id == PARAM_part_tensor || id == PARAM_tensor_parts;
    return id == PARAM_dtensor || id == PARAM_tensor_n ||
           (parts && role == ROLE_dtensor_sum);
}

/* ---- figures ----------------------------------------------------------- */

/* Entries of a table that a computed index reaches, where none knows. */
static const double TABLE = 64;

/* Elements by the hints of the tensors that a step clears or sums. */
static double elements(const Plan *p, bool parted) {
    const ProgramGrad *g = spec_score_grad(&p->spec);
    const attnc_shape *h = &p->shape;
    const double sizes[] = {[INDEX_B] = (double)h->batch,
                            [INDEX_H] = (double)h->heads,
                            [INDEX_Q] = (double)h->seqlen_q,
                            [INDEX_K] = (double)h->seqlen_k,
                            [INDEX_CONST] = 1,
                            [INDEX_EXPR] = TABLE};
    unsigned mine = grad_share(g).parted, seen = 0;
    double sum = 0;
    mine = parted ? mine : ~mine;
    for (int i = 0; i < g->nread; i++) {
        const ReadGrad *r = &g->read[i];
        double n = 1;
        for (int d = 0; d < g->p.node[r->read].nargs; d++)
            n *= sizes[r->index[d]];
        sum += mine >> r->tensor & ~(seen >> r->tensor) & 1 ? n : 0;
        seen |= 1u << r->tensor;
    }
    return sum;
}

/* Memory alone; the rest as a step of rows has it. */
static void memory_figures(const Plan *p, double items, double n, Figures *f) {
    const Device *d = &p->device;
    bool cpu = d->kind == DEVICE_CPU;
    double launch = f->time_ms - fmax(f->compute_ms, f->dram_ms);
    f->flops = 0;
    f->dram_bytes = f->sram_bytes = 4 * n;
    f->items = items;
    f->waves = ceil(items / d->cores);
    f->dram_ms = f->dram_bytes / d->dram_gbs * 1e-6;
    f->sram_ms = f->sram_bytes / d->llc_gbs * 1e-6;
    f->compute_ms = 0;
    f->time_ms = f->dram_ms + (cpu ? 0 : launch);
    f->bound = "dram";
}

void plan_tensor_figures(const Plan *p, const Step *s, Figures *f) {
    double items = cells(p, s, share_of(&p->spec).owned) * p->tensor_parts;
    bool sum = s->role == ROLE_dtensor_sum;
    double n = elements(p, sum);
    if (s->role != ROLE_dtensor)
        memory_figures(
            p, sum ? ceil(n / TENSOR_SUMS) : MOST_PARTS,
            sum ? n * (1 + p->tensor_parts * copies(plan_tensor_step(p))) : n,
            f);
    else if (p->device.kind == DEVICE_CPU)
        model_bwd_tensor(&p->spec, &p->shape, &p->device, &s->tile, items, f);
    else
        model_cuda_tensor(&p->spec, &p->device, &s->tile, items, f);
}
