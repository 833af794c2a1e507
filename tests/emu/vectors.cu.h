/* SPDX-License-Identifier: Apache-2.0
 * Each primitive alone, one warp: lane l reads its 16 words of `in`, writes its
 * 8 of `out`. A GPU records what comes out, the emulated device repeats it. */
typedef struct Args {
    const u32 *in; /* [32][16] */
    u32 *out;      /* [32][8] */
} Args;

/* Entry v_NAME: `x` are the lane's words, `y` its results, `s` its 16 bytes of
 * shared memory, `other` those of another lane. */
#define VECTOR(name)                                                           \
    INLINE void run_##name(const Args *a, u32 *x, u32 *y, u32 s, u32 other);   \
    KERNEL(v_##name, 32, 1, Args) {                                            \
        u32 x[16], y[8], l = lane_id(), s = smem_base();                       \
        for (u32 i = 0; i < 16; i += 4)                                        \
            ld_global_b128(x + i, a.in + l * 16 + i, 1);                       \
        for (u32 i = 0; i < 8; i++)                                            \
            y[i] = 0;                                                          \
        run_##name(&a, x, y, s + l * 16, s + (l * 7 + 3) % 32 * 16);           \
        for (u32 i = 0; i < 8; i += 4)                                         \
            st_global_b128(a.out + l * 8 + i, y + i, 1);                       \
    }                                                                          \
    INLINE void run_##name(const Args *a, u32 *x, u32 *y, u32 s, u32 other)

#define ALL 0xffffffffu

/* ---- loads, stores -------------------------------------------------- */

VECTOR(shared) {
    st_shared_b128(s, x);
    warp_sync(ALL);
    ld_shared_b128(y, other);
    y[4] = ld_shared_b32(other + 8);
    y[5] = ld_shared_b16(other + 6);
    ld_shared_b64(y + 6, other + 8);
    warp_sync(ALL);
}
VECTOR(shared_parts) {
    st_shared_b128(s, x);
    st_shared_b16(s + 2, (u16)x[4]);
    st_shared_b32(s + 4, x[5]);
    st_shared_b64(s + 8, x + 6);
    warp_sync(ALL);
    ld_shared_b128(y, other);
}
VECTOR(global) {
    const u32 *p = a->in + lane_id() * 16;
    int guard = (int)(x[4] & 1);
    ld_global_b128(y, p, guard);
    ld_global_b64(y + 4, p + 2, guard);
    y[6] = ld_global_b32(p + 9, guard);
    y[7] = ld_global_b16(p + 11, guard);
}
#if ARCH >= 800
VECTOR(cp_async) {
    const u32 *p = a->in + lane_id() * 16 + 4;
    st_shared_b128(s, x);
    cp_async_b128(s, p, x[8] % 17);
    cp_async_commit();
    CP_ASYNC_WAIT(0);
    warp_sync(ALL);
    ld_shared_b128(y, other);
    warp_sync(ALL);
    cp_async_b64(s, p + 4, x[9] % 9);
    cp_async_b32(s + 8, p + 6, x[10] % 5);
    cp_async_commit();
    CP_ASYNC_WAIT(0);
    warp_sync(ALL);
    ld_shared_b128(y + 4, other);
}
VECTOR(cp_async_ca) {
    cp_async_b128_ca(s, a->in + lane_id() * 16 + 4, x[8] % 17);
    cp_async_commit();
    CP_ASYNC_WAIT(0);
    warp_sync(ALL);
    ld_shared_b128(y, other);
}
#endif

/* ---- a warp ------------------------------------------------------------- */

VECTOR(shuffle) {
    y[0] = shfl_xor(ALL, x[0], 5);
    y[1] = shfl_idx(ALL, x[1], x[2] & 31);
    y[2] = shfl_up(ALL, x[3], 3);
    y[3] = float_bits(shfl_xor_f32(ALL, bits_float(x[4]), 16));
    y[4] = float_bits(shfl_idx_f32(ALL, bits_float(x[5]), 9));
    y[5] = float_bits(shfl_up_f32(ALL, bits_float(x[6]), 1));
}
VECTOR(vote) {
    y[0] = (u32)block_sync_or(x[0] % 37 == 5);
    y[1] = (u32)block_sync_or(0);
    y[2] = (u32)block_sync_or(lane_id() == 17);
}
#define VECTOR_LDMATRIX(name)                                                  \
    VECTOR(name) {                                                             \
        st_shared_b128(s, x);                                                  \
        warp_sync(ALL);                                                        \
        name(y, other);                                                        \
    }
VECTOR_LDMATRIX(ldmatrix_x1)
VECTOR_LDMATRIX(ldmatrix_x2)
VECTOR_LDMATRIX(ldmatrix_x4)
VECTOR_LDMATRIX(ldmatrix_x1_trans)
VECTOR_LDMATRIX(ldmatrix_x2_trans)
VECTOR_LDMATRIX(ldmatrix_x4_trans)

/* ---- products: A in words 0 to 3, B in 4 and 5, C in 6 to 9 ------------- */

#define VECTOR_MMA(name)                                                       \
    VECTOR(name) {                                                             \
        float c[4];                                                            \
        for (u32 i = 0; i < 4; i++)                                            \
            c[i] = bits_float(x[6 + i]);                                       \
        name(c, x, x + 4);                                                     \
        for (u32 i = 0; i < 4; i++)                                            \
            y[i] = float_bits(c[i]);                                           \
    }
VECTOR_MMA(mma_m16n8k8_f16)
#if ARCH >= 800
VECTOR_MMA(mma_m16n8k16_f16)
VECTOR_MMA(mma_m16n8k16_bf16)
VECTOR_MMA(mma_m16n8k8_tf32)
#endif

/* ---- numbers ------------------------------------------------------------- */

VECTOR(convert) {
    y[0] = pack_f16x2(bits_float(x[0]), bits_float(x[1]));
    y[1] = pack_bf16x2(bits_float(x[0]), bits_float(x[1]));
    y[2] = float_bits(low_f16(x[2]));
    y[3] = float_bits(high_f16(x[2]));
    y[4] = float_bits(low_bf16(x[3]));
    y[5] = float_bits(high_bf16(x[3]));
}
#if ARCH >= 800
VECTOR(tf32) {
    y[0] = tf32_bits(bits_float(x[0]));
}
#endif
VECTOR(choose) {
    float p = bits_float(x[0]), q = bits_float(x[1]);
    y[0] = float_bits(max_f32(p, q));
    y[1] = float_bits(min_f32(p, q));
    y[2] = float_bits(abs_f32(p));
    y[3] = float_bits(max_f32(p, NEG_INF));
}
VECTOR(exponential) {
    y[0] = float_bits(ex2(bits_float(x[0])));
}
VECTOR(logarithm) {
    y[0] = float_bits(lg2(bits_float(x[0])));
}
VECTOR(reciprocal) {
    y[0] = float_bits(rcp(bits_float(x[0])));
}
