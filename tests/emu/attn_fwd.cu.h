/* SPDX-License-Identifier: Apache-2.0
 * The subject of the emulated device's tests: attention forward in f16, one
 * block of 4 warps per 64 queries, tiles of 64 keys in two stages, d = 64.
 * Written by hand on the primitives alone; plain C and CUDA C++. A macro
 * BUG_x plants fault x; comments of the form @name mark the lines reports must
 * point to. */
#if ARCH >= 800
#define STAGES 2
#else
#define STAGES 1
#endif
enum { D = 64, TILE = 64, ROW_BYTES = 128, TILE_BYTES = TILE * ROW_BYTES };
enum { SMEM_Q = 0, SMEM_K = TILE_BYTES, SMEM_V = (1 + STAGES) * TILE_BYTES };

typedef struct Args {
    const u16 *q, *k, *v; /* [heads][n][64] */
    u16 *o;
    float *lse; /* [heads][n] */
    i64 n;
    float scale_log2; /* scale * log2 e */
    u32 causal;
} Args;

/* Byte offset of 16-byte chunk c of a row; equal chunks of 8 rows differ in
 * their banks. */
INLINE u32 place(u32 row, u32 c) {
#ifdef BUG_NO_SWIZZLE
    return row * ROW_BYTES + c * 16;
#else
    return row * ROW_BYTES + ((c ^ (row & 7)) * 16);
#endif
}
INLINE u32 read_place(u32 row, u32 c) {
#ifdef BUG_SWIZZLE
    return row * ROW_BYTES + ((c ^ ((row + 1) & 7)) * 16);
#else
    return place(row, c);
#endif
}

/* Rows of src from row on to a tile in shared memory, zeros past n. */
INLINE void load_tile(u32 dst, const u16 *src, i64 row, i64 n) {
    UNROLL for (u32 i = 0; i < 4; i++) {
        u32 r = i * 16 + thread_x() / 8, c = thread_x() % 8;
        u32 valid = row + r < n ? 16 : 0;
#ifdef BUG_ROW
        valid = row + r + 1 < n ? 16 : 0;
#endif
#ifdef BUG_LOAD
        valid = 16;
#endif
#if ARCH >= 800
        cp_async_b128(dst + place(r, c), src + (row + r) * D + c * 8,
                      valid); /* @load */
#else
        u32 x[4];
        ld_global_b128(x, src + (row + r) * D + c * 8, valid != 0); /* @load */
        st_shared_b128(dst + place(r, c), x);
#endif
    }
}

/* Four n8 tiles' worth of two k16 steps: b[2 j], b[2 j + 1] feed n8 tile j. */
INLINE void mma_pair(float c[4], const u32 *a, const u32 *b) {
#if ARCH >= 800
    mma_m16n8k16_f16(c, a, b);
#else
    mma_m16n8k8_f16(c, a, b);
    mma_m16n8k8_f16(c, a + 2, b + 1);
#endif
}

/* s = Q K^T for the 16 rows of a warp. */
INLINE void qk(float s[8][4], u32 q[4][4], u32 k_tile) {
    u32 lane = lane_id();
    UNROLL for (u32 j = 0; j < 8; j++) {
        UNROLL for (u32 i = 0; i < 4; i++) s[j][i] = 0;
    }
    UNROLL for (u32 k = 0; k < 4; k++) {
        UNROLL for (u32 j = 0; j < 4; j++) {
            u32 b[4], t;
            u32 row = j * 16 + (lane & 7) + (lane >> 4) * 8;
            u32 chunk = k * 2 + (lane >> 3 & 1);
            ldmatrix_x4(b, k_tile + read_place(row, chunk)); /* @read_k */
#ifdef BUG_B_SWAPPED
            t = b[0], b[0] = b[1], b[1] = t;
#endif
            (void)t;
            mma_pair(s[2 * j], q[k], b);
            mma_pair(s[2 * j + 1], q[k], b + 2);
        }
    }
}

/* o += P V; the accumulators of P are the fragments of A. */
INLINE void pv(float o[8][4], float s[8][4], u32 v_tile) {
    u32 lane = lane_id();
    UNROLL for (u32 k = 0; k < 4; k++) {
        u32 a[4];
        a[0] = pack_f16x2(s[2 * k][0], s[2 * k][1]);
        a[1] = pack_f16x2(s[2 * k][2], s[2 * k][3]);
        a[2] = pack_f16x2(s[2 * k + 1][0], s[2 * k + 1][1]);
        a[3] = pack_f16x2(s[2 * k + 1][2], s[2 * k + 1][3]);
        UNROLL for (u32 j = 0; j < 4; j++) {
            u32 b[4];
            u32 row = k * 16 + (lane & 15), chunk = j * 2 + (lane >> 4);
#ifdef BUG_TRANS
            ldmatrix_x4(b, v_tile + place(row, chunk));
#else
            ldmatrix_x4_trans(b, v_tile + place(row, chunk)); /* @read_v */
#endif
            mma_pair(o[2 * j], a, b);
            mma_pair(o[2 * j + 1], a, b + 2);
        }
    }
}

/* Keys from first on, that row may see. */
INLINE void mask(float s[8][4], i64 row, i64 key, i64 n, u32 causal) {
    u32 t = lane_id() % 4;
    UNROLL for (u32 j = 0; j < 8; j++) {
        UNROLL for (u32 i = 0; i < 4; i++) {
            i64 k = key + j * 8 + 2 * t + i % 2, r = row + 8 * (i / 2);
#ifdef BUG_CAUSAL
            r++;
#endif
            if (k >= n || (causal && k > r))
                s[j][i] = NEG_INF;
        }
    }
}

/* The larger of a quad's values. */
INLINE float quad_max(float x) {
    x = max_f32(x, shfl_xor_f32(0xffffffffu, x, 1)); /* @shfl */
    return max_f32(x, shfl_xor_f32(0xffffffffu, x, 2));
}
INLINE float quad_sum(float x) {
    x += shfl_xor_f32(0xffffffffu, x, 1);
    return x + shfl_xor_f32(0xffffffffu, x, 2);
}

/* s to weights against the running maximum m; scales o and the sums l. */
INLINE void softmax(float s[8][4], float o[8][4], float m[2], float l[2],
                    float scale) {
    UNROLL for (u32 h = 0; h < 2; h++) {
        float top = NEG_INF;
        UNROLL for (u32 j = 0; j < 8; j++) {
            top = max_f32(top, max_f32(s[j][2 * h], s[j][2 * h + 1]));
        }
#ifdef BUG_DIVERGENT
        if (lane_id() < 16)
#endif
            top = quad_max(top);
        top = max_f32(m[h], top * scale);
        float keep = ex2(m[h] - top), sum = 0;
        m[h] = top;
        UNROLL for (u32 j = 0; j < 8; j++) {
            UNROLL for (u32 i = 2 * h; i < 2 * h + 2; i++) {
                s[j][i] = ex2(s[j][i] * scale - top);
                sum += s[j][i];
#ifndef BUG_NO_RESCALE
                o[j][i] *= keep;
#endif
            }
        }
        l[h] = l[h] * keep + sum;
    }
}

INLINE void store(const Args *a, float o[8][4], const float m[2],
                  const float l[2], i64 row) {
    u32 t = lane_id() % 4;
    UNROLL for (u32 h = 0; h < 2; h++) {
        i64 r = row + 8 * h;
        float sum = quad_sum(l[h]), inv = sum > 0 ? rcp(sum) : 0;
        int inside = r < a->n;
#ifdef BUG_STORE
        inside = 1;
#endif
        i64 at = (block_y() * a->n + r);
        UNROLL for (u32 j = 0; j < 8; j++) {
            st_global_b32(a->o + at * D + j * 8 + 2 * t,
                          pack_f16x2(o[j][2 * h] * inv, o[j][2 * h + 1] * inv),
                          inside); /* @store */
        }
        st_global_b32(a->lse + at, float_bits((m[h] + lg2(sum)) * 0.69314718f),
                      inside && t == 0);
    }
}

INLINE void load_stage(const Args *a, u32 smem, i64 tile) {
    i64 head = block_y() * a->n * D;
    u32 stage = (u32)(tile % STAGES) * TILE_BYTES;
#ifdef BUG_STAGE
    stage = (u32)(tile % 8) * TILE_BYTES;
#endif
    load_tile(smem + SMEM_K + stage, a->k + head, tile * TILE, a->n);
    load_tile(smem + SMEM_V + stage, a->v + head, tile * TILE, a->n);
}

INLINE void load_q(u32 q[4][4], u32 smem, u32 warp) {
    u32 lane = lane_id();
    UNROLL for (u32 k = 0; k < 4; k++) {
        u32 row = warp * 16 + (lane & 15);
#ifdef BUG_LANE_MAP
        row = warp * 16 + (lane & 7) + (lane >> 4) * 8;
#endif
        ldmatrix_x4(q[k], smem + SMEM_Q + place(row, k * 2 + (lane >> 4)));
    }
}

KERNEL(attn_fwd, 128, 2, Args) {
    u32 smem = smem_base(), warp = thread_x() / 32;
    i64 q0 = (i64)block_x() * TILE, row = q0 + warp * 16 + lane_id() / 4;
    i64 last = a.causal && q0 + TILE < a.n ? q0 + TILE : a.n;
    i64 tiles = (last + TILE - 1) / TILE;
    float o[8][4], m[2], l[2];
    u32 q[4][4];
    UNROLL for (u32 j = 0; j < 8; j++) {
        UNROLL for (u32 i = 0; i < 4; i++) o[j][i] = 0;
    }
    UNROLL for (u32 h = 0; h < 2; h++) {
        m[h] = -1e30f;
#ifndef BUG_L_UNSET
        l[h] = 0;
#endif
    }
#ifdef BUG_ARRAY
    for (u32 i = 0; i < 9; i++)
        o[i][0] = 0; /* @array */
#endif
    load_tile(smem + SMEM_Q, a.q + block_y() * a.n * D, q0, a.n);
#if ARCH >= 800
    load_stage(&a, smem, 0);
    cp_async_commit();
#endif
    for (i64 t = 0; t < tiles; t++) {
        u32 stage = (u32)(t % STAGES) * TILE_BYTES;
        float s[8][4];
#if ARCH >= 800
        if (t + 1 < tiles)
            load_stage(&a, smem, t + 1);
#ifndef BUG_COMMIT
        cp_async_commit();
#endif
#ifdef BUG_WAIT
        CP_ASYNC_WAIT(2);
        block_sync();
#elif defined(BUG_SYNC_FIRST)
        block_sync();
        CP_ASYNC_WAIT(1);
#else
        CP_ASYNC_WAIT(1);
#ifndef BUG_NO_SYNC
        block_sync();
#endif
#endif
#else
        load_stage(&a, smem, t);
        block_sync();
#endif
        if (t == 0)
            load_q(q, smem, warp);
        qk(s, q, smem + SMEM_K + stage);
        if ((t + 1) * TILE > a.n || (a.causal && t == tiles - 1))
            mask(s, row, t * TILE, a.n, a.causal);
        softmax(s, o, m, l, a.scale_log2);
        pv(o, s, smem + SMEM_V + stage);
#ifndef BUG_NO_REUSE_SYNC
        block_sync();
#endif
    }
    store(&a, o, m, l, row);
}
