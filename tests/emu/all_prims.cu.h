/* SPDX-License-Identifier: Apache-2.0
 * Every primitive once, with its result stored: what compiles here assembles
 * on the chip, and has the same name on the emulated device. */
typedef struct Args {
    const u32 *in;
    u32 *out;
    u32 n;
} Args;

INLINE void put(const Args *a, u32 *at, u32 value) {
    st_global_b32(a->out + (*at)++, value, 1);
}

INLINE void memory(const Args *a, u32 *at) {
    u32 x[4], s = smem_base() + thread_x() * 16;
    const u32 *in = a->in + thread_x() * 4;
    int guard = (int)(a->n & 1);
    ld_global_b128(x, in, guard);
    st_shared_b128(s, x);
    ld_shared_b128(x, s);
    ld_global_b64(x, in, guard);
    st_shared_b64(s, x);
    ld_shared_b64(x, s);
    x[2] = ld_global_b32(in, guard);
    st_shared_b32(s, x[2]);
    put(a, at, ld_shared_b32(s));
    x[3] = ld_global_b16(in, guard);
    st_shared_b16(s, (u16)x[3]);
    put(a, at, ld_shared_b16(s));
    put(a, at, ld_readonly_b8(in, guard));
    put(a, at, ld_readonly_b16(in + 1, guard));
    put(a, at, ld_readonly_b32(in + 2, guard));
    st_global_b128(a->out + 64, x, guard);
    st_global_b64(a->out + 72, x, guard);
    st_global_b16(a->out + 80, (u16)x[0], guard);
    red_add_f32x2((float *)a->out + 84, bits_float(x[0]), bits_float(x[1]),
                  guard);
    wait_turn(a->out + 88, a->n);
    put(a, at, take_number(a->out + 89));
    pass_turn(a->out + 88);
#if ARCH >= 800
    cp_async_b32(s, in, a->n);
    cp_async_b64(s, in, a->n);
    cp_async_b128(s, in, a->n);
    cp_async_b128_ca(s, in, a->n);
    cp_async_commit();
    CP_ASYNC_WAIT(1);
    CP_ASYNC_WAIT(0);
#endif
}

INLINE void order(const Args *a, u32 *at) {
    u32 v = a->n;
    block_sync();
    v += (u32)block_sync_or(a->n == 3);
    named_arrive(1, 64);
    named_sync(1, 64);
    warp_sync(0xffffffffu);
    v += shfl_xor(0xffffffffu, v, 1) + shfl_idx(0xffffffffu, v, a->n & 31);
    v += shfl_up(0xffffffffu, v, 2);
    put(a, at, v);
    float f = shfl_xor_f32(0xffffffffu, bits_float(v), 4);
    f += shfl_idx_f32(0xffffffffu, f, 3) + shfl_up_f32(0xffffffffu, f, 1);
    put(a, at, float_bits(f));
    put(a, at, block_x() + block_y() + block_z() + lane_id());
    put(a, at, grid_x() + grid_y() + grid_z());
}

INLINE void matrices(const Args *a, u32 *at) {
    u32 r[4] = {0, 0, 0, 0}, b[4], s = smem_base() + lane_id() * 16;
    float c[4] = {0, 0, 0, 0};
    ldmatrix_x1(r, s);
    ldmatrix_x2(r + 1, s);
    ldmatrix_x4(b, s);
    mma_m16n8k8_f16(c, r, b);
    ldmatrix_x1_trans(r, s);
    ldmatrix_x2_trans(r + 2, s);
    mma_m16n8k8_f16(c, r, b + 1);
    ldmatrix_x4_trans(r, s);
#if ARCH >= 800
    mma_m16n8k16_f16(c, r, b);
    mma_m16n8k16_bf16(c, r, b + 2);
    r[0] = tf32_bits(c[0]);
    mma_m16n8k8_tf32(c, r, b);
#endif
    for (u32 i = 0; i < 4; i++)
        put(a, at, float_bits(c[i]));
}

INLINE void numbers(const Args *a, u32 *at) {
    float x = bits_float(a->n), y = bits_float(a->n + 1);
    u32 h = pack_f16x2(x, y), g = pack_bf16x2(y, x);
    put(a, at, h);
    put(a, at, g);
    put(a, at, float_bits(low_f16(h) + high_f16(h)));
    put(a, at, float_bits(low_bf16(g) + high_bf16(g)));
    put(a, at, float_bits(ex2(x) + lg2(y) + rcp(x)));
    put(a, at, float_bits(max_f32(x, y) + min_f32(x, abs_f32(y)) + NEG_INF));
}

KERNEL(all_prims, 64, 1, Args) {
    u32 at = 0;
    memory(&a, &at);
    order(&a, &at);
    matrices(&a, &at);
    numbers(&a, &at);
}
