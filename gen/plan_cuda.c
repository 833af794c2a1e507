/* SPDX-License-Identifier: Apache-2.0
 * What plans for GPUs decide before tiles: the family, and into how long
 * pieces the keys may be split. */
#include <math.h>

#include "order.h"

int cuda_family(const attnc_spec *s, const Device *d) {
    Tile t = {.family = TILE_mma_fwd, .from = FROM_SAFE};
    char why[TILE_WHY];
    tile_cuda_safe(&t);
    return tile_cuda_legal(s, d, &t, why) ? TILE_mma_fwd : TILE_fma_fwd;
}

/* Rows of one key head that one block can hold, whatever its tile. */
enum { BLOCK_ROWS = 128, SPLIT_LEAST = 256, SPLIT_INVARIANT = 1024 };
enum { WAVES = 4, CHOICES = 16 };

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* Would the chip wait for a block that a pattern lets see far more keys than
 * others, however early it starts? */
static bool one_waits(const attnc_spec *s, const attnc_shape *h,
                      const Device *d, int64_t blocks) {
    const Loads *l = s->varlen ? NULL : spec_loads(s, h->seqlen_q, h->seqlen_k);
    double met, part;
    if (!l)
        return false;
    spec_share(s, h, BLOCK_ROWS, BLOCK_ROWS, &met, &part);
    return loads_most(l, false) > met * fmax(1, (double)blocks / d->cores);
}

/* Powers of two, so that growing lengths share few kernels. Splits pay when
 * blocks of rows cannot fill the chip, or when it would wait for one of them.
 * Under batch_invariant neither the batch nor another sequence's length
 * decides: the query rows do, and varlen never splits. */
int cuda_splits(const attnc_spec *s, const attnc_shape *h, const Device *d,
                int out[16]) {
    int64_t rows = h->heads / h->kv_heads * h->seqlen_q;
    int64_t blocks = h->batch * h->kv_heads * ceil_div(rows, BLOCK_ROWS);
    int n = 0;
    out[n++] = 0;
    if (s->batch_invariant) {
        out[0] = rows <= BLOCK_ROWS && !s->varlen ? SPLIT_INVARIANT : 0;
        return n;
    }
    bool wait = one_waits(s, h, d, blocks);
    if ((double)blocks >= d->cores && !wait)
        return n;
    for (int64_t split = SPLIT_LEAST; n < CHOICES && 2 * split <= h->seqlen_k;
         split *= 2)
        if (wait ? split_fits(s, h, split)
                 : (double)(blocks * ceil_div(h->seqlen_k, split)) <=
                       WAVES * d->cores)
            out[n++] = (int)split;
    return n;
}

void cuda_launch(const attnc_spec *s, const Device *d, Step *step) {
    CudaSmem m;
    CudaBwdSmem b;
    cuda_smem(s, d, &step->tile, &m);
    step->smem_bytes = m.total;
    if (cuda_is_bwd(step->tile.family)) {
        cuda_bwd_smem(s, d, &step->tile, &b);
        step->smem_bytes = b.total;
    }
    if (step->role == ROLE_dtensor)
        step->smem_bytes = cuda_tensor_smem(s, d, &step->tile);
    step->threads = tile_cuda_threads(&step->tile);
}
