/* SPDX-License-Identifier: Apache-2.0
 * Every primitive of the emulated device against a scalar model: what each
 * lane gets is said once more, in the plainest way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "emulated/emu.h"
#include "emulated/number.h"

#define ARCH 800
#include "emu/prims.h"

enum { LANES = 32, SMEM = 4096 };

/* What one warp reads and writes: each lane's own words. */
typedef struct Io {
    u32 in[LANES][16];
    float c[LANES][4];
    u32 out[LANES][16];
    u32 tile[LANES][4]; /* 16 bytes a lane for shared memory */
} Io;

typedef struct Args {
    Io *io;
    u32 a, b;
} Args;

static u32 seed;

static u32 next(void) {
    seed = seed * 1664525u + 1013904223u;
    return seed >> 8 | seed << 24;
}

static float next_float(void) {
    return (float)(int)(next() % 4001 - 2000) / 500;
}

/* Runs a kernel of one block and expects no fault. */
static void launch(EmuEntry kernel, Io *io, u32 a, u32 b, u32 threads,
                   int mode) {
    Args args = {io, a, b};
    Emu *e = emu_create();
    EmuReport r = {0};
    EmuConfig c = {next(), mode, true, true, 1};
    attnc_emu = emu_table();
    assert_non_null(e);
    assert_int_equal(emu_buffer(e, io, sizeof *io, "io", EMU_WRITE), 0);
    assert_int_equal(emu_launch(e, &c, kernel, &args, (EmuDim){1, 1, 1},
                                (EmuDim){threads, 1, 1}, SMEM, &r),
                     0);
    if (r.faults)
        fail_msg("%s: %s", emu_fault_sentence(r.fault[0].kind),
                 r.fault[0].text);
    emu_report_free(&r);
    emu_destroy(e);
}

static void fill(Io *io) {
    for (u32 l = 0; l < LANES; l++)
        for (u32 i = 0; i < 16; i++)
            io->in[l][i] = next();
    for (u32 l = 0; l < LANES; l++)
        for (u32 i = 0; i < 4; i++) {
            io->c[l][i] = next_float();
            io->tile[l][i] = next();
        }
    memset(io->out, 0xab, sizeof io->out);
}

/* ---- places -------------------------------------------------------------- */

KERNEL(places, 96, 1, Args) {
    u32 t = thread_x();
    u32 ok = t % LANES == lane_id() && !block_x() && !block_y() && !block_z();
    ok &= grid_x() == 1 && grid_y() == 1 && grid_z() == 1;
    ok &= smem_base() % 1024 == 0;
    st_global_b32(&a.io->out[t % LANES][t / LANES], ok ? t : 0xdead, 1);
}

static void threads_know_their_place(void **state) {
    (void)state;
    static Io io;
    fill(&io);
    launch(places, &io, 0, 0, 96, EMU_LATE);
    for (u32 t = 0; t < 96; t++)
        assert_int_equal(io.out[t % LANES][t / LANES], t);
}

/* ---- shuffles ------------------------------------------------------------ */

KERNEL(shuffles, 32, 1, Args) {
    u32 l = lane_id(), v = a.io->in[l][0];
    u32 *out = a.io->out[l];
    st_global_b32(out, shfl_xor(0xffffffffu, v, a.a), 1);
    st_global_b32(out + 1, shfl_idx(0xffffffffu, v, l * 7 + a.a), 1);
    st_global_b32(out + 2, shfl_up(0xffffffffu, v, a.a), 1);
    float f = bits_float(v);
    st_global_b32(out + 3, float_bits(shfl_xor_f32(0xffffffffu, f, a.a)), 1);
    if (l >= 16)
        st_global_b32(out + 4, shfl_xor(0xffff0000u, v, 3), 1);
}

static void shuffles_move_lanes(void **state) {
    (void)state;
    static Io io;
    for (u32 n = 0; n < LANES; n++) {
        fill(&io);
        launch(shuffles, &io, n, 0, 32, EMU_LATE);
        for (u32 l = 0; l < LANES; l++) {
            assert_int_equal(io.out[l][0], io.in[l ^ n][0]);
            assert_int_equal(io.out[l][1], io.in[(l * 7 + n) % 32][0]);
            assert_int_equal(io.out[l][2], io.in[l < n ? l : l - n][0]);
            assert_int_equal(io.out[l][3], io.out[l][0]);
            if (l >= 16)
                assert_int_equal(io.out[l][4], io.in[l ^ 3][0]);
        }
    }
}

/* ---- shared and global memory ------------------------------------------- */

KERNEL(widths, 32, 1, Args) {
    u32 l = lane_id(), base = smem_base() + l * 64;
    const u32 *in = a.io->in[l];
    u32 x[8], *out = a.io->out[l];
    int guard = (int)(l % 3);
    ld_global_b128(x, in, guard);
    ld_global_b64(x + 4, in + 4, guard);
    x[6] = ld_global_b32(in + 6, guard);
    x[7] = ld_global_b16((const u16 *)in + 14, guard);
    st_shared_b128(base, x);
    st_shared_b64(base + 16, x + 4);
    st_shared_b32(base + 24, x[6]);
    st_shared_b16(base + 28, (u16)x[7]);
    ld_shared_b128(x, base);
    ld_shared_b64(x + 4, base + 16);
    x[6] = ld_shared_b32(base + 24);
    x[7] = ld_shared_b16(base + 28);
    st_global_b128(out, x, l & 1);
    st_global_b64(out + 4, x + 4, 1);
    st_global_b32(out + 6, x[6], 1);
    st_global_b16((u16 *)out + 14, (u16)x[7], 1);
    st_global_b16((u16 *)out + 15, 0, 0);
}

static void loads_and_stores_of_every_width_heed_the_guard(void **state) {
    (void)state;
    static Io io;
    fill(&io);
    launch(widths, &io, 0, 0, 32, EMU_LATE);
    for (u32 l = 0; l < LANES; l++) {
        u32 keep = l % 3 ? 0xffffffffu : 0;
        for (u32 i = 0; i < 4; i++)
            assert_int_equal(io.out[l][i],
                             l & 1 ? io.in[l][i] & keep : 0xababababu);
        for (u32 i = 4; i < 7; i++)
            assert_int_equal(io.out[l][i], io.in[l][i] & keep);
        assert_int_equal(io.out[l][7] & 0xffff, io.in[l][7] & keep & 0xffff);
        assert_int_equal(io.out[l][7] >> 16, 0xabab);
    }
}

/* ---- asynchronous copies ------------------------------------------------- */

KERNEL(copies, 32, 1, Args) {
    u32 l = lane_id(), base = smem_base() + l * 64, x[12];
    const u32 *in = a.io->in[l];
    cp_async_b128(base, in, a.a);
    cp_async_commit();
    cp_async_b64(base + 16, in + 4, a.a / 2);
    cp_async_b32(base + 24, in + 6, a.a / 4);
    cp_async_commit();
    cp_async_b128_ca(base + 32, in + 8, 16);
    cp_async_commit();
    CP_ASYNC_WAIT(2);
    ld_shared_b128(x, base);
    CP_ASYNC_WAIT(0);
    ld_shared_b64(x + 4, base + 16);
    x[6] = ld_shared_b32(base + 24);
    x[7] = 0;
    ld_shared_b128(x + 8, base + 32);
    for (u32 i = 0; i < 12; i++)
        st_global_b32(a.io->out[l] + i, x[i], 1);
}

static void copies_land_and_fill_with_zeros(void **state) {
    (void)state;
    static Io io;
    for (u32 valid = 0; valid <= 16; valid += 8)
        for (int mode = EMU_LATE; mode <= EMU_RANDOM; mode++) {
            fill(&io);
            launch(copies, &io, valid, 0, 32, mode);
            for (u32 l = 0; l < LANES; l++) {
                u32 want[12] = {0};
                memcpy(want, io.in[l], valid);
                memcpy(want + 4, io.in[l] + 4, valid / 2);
                memcpy(want + 6, io.in[l] + 6, valid / 4);
                memcpy(want + 8, io.in[l] + 8, 16);
                assert_memory_equal(io.out[l], want, sizeof want);
            }
        }
}

/* ---- ldmatrix ------------------------------------------------------------ */

/* a: tiles; b: transposed. Rows lie in a scrambled order. */
KERNEL(matrices, 32, 1, Args) {
    u32 l = lane_id(), base = smem_base(), r[4] = {0};
    st_shared_b128(base + l * 16, a.io->tile[l]);
    warp_sync(0xffffffffu);
    u32 addr = base + (l ^ 5) * 16;
    if (a.a == 1 && !a.b)
        ldmatrix_x1(r, addr);
    if (a.a == 2 && !a.b)
        ldmatrix_x2(r, addr);
    if (a.a == 4 && !a.b)
        ldmatrix_x4(r, addr);
    if (a.a == 1 && a.b)
        ldmatrix_x1_trans(r, addr);
    if (a.a == 2 && a.b)
        ldmatrix_x2_trans(r, addr);
    if (a.a == 4 && a.b)
        ldmatrix_x4_trans(r, addr);
    st_global_b128(a.io->out[l], r, 1);
}

static u16 element(const Io *io, u32 tile, u32 row, u32 column) {
    return ((const u16 *)io->tile[(tile * 8 + row) ^ 5])[column];
}

static void ldmatrix_hands_out_fragments(void **state) {
    (void)state;
    static Io io;
    for (u32 count = 1; count <= 4; count *= 2)
        for (u32 trans = 0; trans < 2; trans++) {
            fill(&io);
            launch(matrices, &io, count, trans, 32, EMU_LATE);
            for (u32 l = 0; l < LANES; l++)
                for (u32 t = 0; t < count; t++) {
                    u32 g = l / 4, c = l % 4 * 2;
                    u32 lo =
                        trans ? element(&io, t, c, g) : element(&io, t, g, c);
                    u32 hi = trans ? element(&io, t, c + 1, g)
                                   : element(&io, t, g, c + 1);
                    assert_int_equal(io.out[l][t], lo | hi << 16);
                }
        }
}

/* ---- mma ----------------------------------------------------------------- */

KERNEL(multiply, 32, 1, Args) {
    u32 l = lane_id();
    float c[4];
    for (u32 i = 0; i < 4; i++)
        c[i] = a.io->c[l][i];
    if (a.a == EMU_M16N8K8_F16)
        mma_m16n8k8_f16(c, a.io->in[l], a.io->in[l] + 4);
    if (a.a == EMU_M16N8K16_F16)
        mma_m16n8k16_f16(c, a.io->in[l], a.io->in[l] + 4);
    if (a.a == EMU_M16N8K16_BF16)
        mma_m16n8k16_bf16(c, a.io->in[l], a.io->in[l] + 4);
    if (a.a == EMU_M16N8K8_TF32)
        mma_m16n8k8_tf32(c, a.io->in[l], a.io->in[l] + 4);
    for (u32 i = 0; i < 4; i++)
        st_global_b32(a.io->out[l] + i, float_bits(c[i]), 1);
}

/* Element i of a lane's A fragment: its row and k, by the tables of PTX. */
static void a_place(u32 shape, u32 l, u32 i, u32 *row, u32 *k) {
    if (shape == EMU_M16N8K8_TF32) {
        *row = l / 4 + (i % 2) * 8;
        *k = l % 4 + (i >= 2) * 4;
    } else {
        *row = l / 4 + (i / 2 % 2) * 8;
        *k = l % 4 * 2 + i % 2 + (i >= 4) * 8;
    }
}

static void b_place(u32 shape, u32 l, u32 i, u32 *k, u32 *column) {
    *column = l / 4;
    *k = shape == EMU_M16N8K8_TF32 ? l % 4 + i * 4
                                   : l % 4 * 2 + i % 2 + (i >= 2) * 8;
}

static float number(u32 shape, const u32 *words, u32 i) {
    if (shape == EMU_M16N8K8_TF32)
        return float_of(words[i]);
    u16 h = ((const u16 *)words)[i];
    return shape == EMU_M16N8K16_BF16 ? float_of((u32)h << 16)
                                      : float_of_half(h);
}

static void random_fragments(Io *io, u32 shape) {
    fill(io);
    for (u32 l = 0; l < LANES; l++)
        for (u32 i = 0; i < 8; i++) {
            float x = next_float(), y = next_float();
            if (shape == EMU_M16N8K8_TF32)
                io->in[l][i] = tf32_of_float(x);
            else if (shape == EMU_M16N8K16_BF16)
                io->in[l][i] = bf16_of_float(x) | (u32)bf16_of_float(y) << 16;
            else
                io->in[l][i] = half_of_float(x) | (u32)half_of_float(y) << 16;
        }
}

static void check_product(const Io *io, u32 shape) {
    bool k16 = shape == EMU_M16N8K16_F16 || shape == EMU_M16N8K16_BF16;
    u32 na = k16 ? 8 : 4, nb = k16 ? 4 : 2, row, k, column;
    double a[16][16] = {0}, b[16][8] = {0};
    for (u32 l = 0; l < LANES; l++) {
        for (u32 i = 0; i < na; i++) {
            a_place(shape, l, i, &row, &k);
            a[row][k] = number(shape, io->in[l], i);
        }
        for (u32 i = 0; i < nb; i++) {
            b_place(shape, l, i, &k, &column);
            b[k][column] = number(shape, io->in[l] + 4, i);
        }
    }
    for (u32 l = 0; l < LANES; l++)
        for (u32 i = 0; i < 4; i++) {
            double want = io->c[l][i];
            for (k = 0; k < 16; k++)
                want += a[l / 4 + i / 2 * 8][k] * b[k][l % 4 * 2 + i % 2];
            assert_true(fabs(float_of(io->out[l][i]) - want) < 1e-4);
        }
}

static void mma_multiplies_fragments(void **state) {
    (void)state;
    static Io io;
    for (u32 shape = EMU_M16N8K8_F16; shape <= EMU_M16N8K8_TF32; shape++)
        for (int n = 0; n < 20; n++) {
            random_fragments(&io, shape);
            launch(multiply, &io, shape, 0, 32, EMU_LATE);
            check_product(&io, shape);
        }
}

/* ---- numbers ------------------------------------------------------------- */

KERNEL(numbers, 32, 1, Args) {
    u32 l = lane_id();
    float x = a.io->c[l][0], y = a.io->c[l][1];
    u32 r[12];
    r[0] = pack_f16x2(x, y);
    r[1] = pack_bf16x2(x, y);
    r[2] = tf32_bits(x);
    r[3] = float_bits(low_f16(a.io->in[l][0]));
    r[4] = float_bits(high_f16(a.io->in[l][0]));
    r[5] = float_bits(low_bf16(a.io->in[l][0]));
    r[6] = float_bits(high_bf16(a.io->in[l][0]));
    r[7] = float_bits(ex2(x));
    r[8] = float_bits(lg2(x));
    r[9] = float_bits(rcp(x));
    r[10] = float_bits(max_f32(x, y));
    r[11] = float_bits(min_f32(abs_f32(x), y));
    for (u32 i = 0; i < 12; i++)
        st_global_b32(a.io->out[l] + i, r[i], 1);
}

static bool same(u32 got, double want) {
    double x = float_of(got);
    return isnan(want) ? isnan(x)
                       : x == want || fabs(x - want) <= 2e-7 * fabs(want);
}

static void check_numbers(const Io *io, u32 l) {
    float x = io->c[l][0], y = io->c[l][1];
    const u32 *r = io->out[l];
    u32 in = io->in[l][0];
    assert_int_equal(r[0] >> 16, half_of_float(y));
    assert_true(fabs(float_of_half((u16)r[0]) - x) <= fabs(x) / 2048 + 3e-8);
    assert_true(fabs(float_of(r[1] << 16) - x) <= fabs(x) / 256);
    assert_true(fabs(float_of(r[1] & 0xffff0000u) - y) <= fabs(y) / 256);
    assert_true(fabs(float_of(r[2]) - x) <= fabs(x) / 2048);
    assert_int_equal(r[2] & 0x1fff, 0);
    assert_int_equal(r[5], in << 16);
    assert_int_equal(r[6], in & 0xffff0000u);
    if ((in & 0x7c00) != 0x7c00)
        assert_int_equal(half_of_float(float_of(r[3])), in & 0xffff);
    assert_true(same(r[7], exp2(x)));
    assert_true(same(r[8], log2(x)));
    assert_true(same(r[9], 1.0 / x));
    assert_true(same(r[10], fmax(x, y)));
    assert_true(same(r[11], fmin(fabs(x), y)));
}

static void numbers_convert_and_round(void **state) {
    (void)state;
    static Io io;
    for (int n = 0; n < 40; n++) {
        fill(&io);
        launch(numbers, &io, 0, 0, 32, EMU_LATE);
        for (u32 l = 0; l < LANES; l++)
            check_numbers(&io, l);
    }
}

static void infinities_and_nan_survive(void **state) {
    (void)state;
    static Io io;
    static const float odd[] = {INFINITY, -INFINITY, NAN, 0, 70000, 1e-8f};
    fill(&io);
    for (u32 l = 0; l < LANES; l++) {
        io.c[l][0] = odd[l % 6];
        io.c[l][1] = odd[l / 6 % 6];
    }
    launch(numbers, &io, 0, 0, 32, EMU_LATE);
    for (u32 l = 0; l < LANES; l++) {
        float x = io.c[l][0], f16 = float_of_half((u16)io.out[l][0]);
        float back = fabsf(x) > 65504 ? copysignf(INFINITY, x)
                     : x < 1e-7f      ? copysignf(0, x)
                                      : x;
        assert_true(isnan(x)                ? isnan(f16)
                    : isinf(x) || l % 6 > 3 ? f16 == back
                                            : f16 == x);
        float max = float_of(io.out[l][10]);
        assert_true(same(io.out[l][10], fmax(x, io.c[l][1])));
        assert_true(!isnan(max) || (isnan(x) && isnan(io.c[l][1])));
    }
}

static void every_f16_goes_to_f32_and_back(void **state) {
    (void)state;
    for (u32 h = 0; h < 65536; h++) {
        float x = float_of_half((u16)h);
        if ((h & 0x7c00) == 0x7c00 && (h & 0x3ff))
            assert_true(isnan(x));
        else
            assert_int_equal(half_of_float(x), h);
    }
    assert_int_equal(half_of_float(1 + 1 / 2048.0f), 0x3c00);
    assert_int_equal(half_of_float(1 + 3 / 2048.0f), 0x3c02);
    assert_int_equal(half_of_float(65519), 0x7bff);
    assert_int_equal(half_of_float(65520), 0x7c00);
    assert_int_equal(half_of_float(0x1p-25f), 0);
    assert_int_equal(half_of_float(0x1.8p-25f), 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_know_their_place),
        cmocka_unit_test(shuffles_move_lanes),
        cmocka_unit_test(loads_and_stores_of_every_width_heed_the_guard),
        cmocka_unit_test(copies_land_and_fill_with_zeros),
        cmocka_unit_test(ldmatrix_hands_out_fragments),
        cmocka_unit_test(mma_multiplies_fragments),
        cmocka_unit_test(numbers_convert_and_round),
        cmocka_unit_test(infinities_and_nan_survive),
        cmocka_unit_test(every_f16_goes_to_f32_and_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
