/* SPDX-License-Identifier: Apache-2.0
 * The rules of the emulated machine one by one: order of memory, barriers,
 * divergence, bounds. Each kernel is a few lines; macros AT_x keep the line
 * a report has to name. */
#include "emu/kernel.h"

#define ARCH 800
#include "emu/prims.h"

enum { SMEM = 8192, ALL = -1 };

typedef struct Args {
    u32 *in, *out;
    u32 n;
} Args;

static u32 line_a, line_b; /* lines a kernel stands on */
#define AT_A (line_a = __LINE__)
#define AT_B (line_b = __LINE__)

/* Apart, so that past the end of one is not inside the other. */
static struct { u32 in[1024], gap[64], out[1024], end[64]; } memory;
static u32 *const in = memory.in, *const out = memory.out;
enum { BYTES = sizeof memory.in };

static Emu *machine;

static EmuReport run(EmuEntry kernel, u32 threads, u32 n, uint64_t seed,
                     int mode) {
    Args a = {in, out, n};
    EmuReport r = {0};
    EmuConfig c = {seed, mode, true, true, 2};
    Emu *e = machine;
    line_a = line_b = 0;
    emu_forget(e);
    assert_int_equal(emu_buffer(e, in, BYTES, "in", EMU_READ), 0);
    assert_int_equal(emu_buffer(e, out, BYTES, "out", EMU_WRITE), 0);
    assert_int_equal(emu_region(e, 0, 1024, "table"), 0);
    assert_int_equal(emu_launch(e, &c, kernel, &a, (EmuDim){4, 1, 1},
                                (EmuDim){threads, 1, 1}, SMEM, &r),
                     0);
    return r;
}

/* Every seed and mode: the fault (at line_a, towards line_b), or none. */
static void expect(EmuEntry kernel, u32 threads, u32 n, int kind) {
    for (uint64_t seed = 0; seed < 12; seed++) {
        EmuReport r = run(kernel, threads, n, seed, (int)seed % 3);
        if (kind == ALL)
            expect_no_fault(&r);
        else
            expect_fault(&r, kind, line_a, line_b);
        emu_report_free(&r);
    }
}

static void expect_silence(EmuEntry kernel, u32 threads, u32 n) {
    expect(kernel, threads, n, ALL);
}

/* ---- order of memory ----------------------------------------------------- */

/* Each thread writes its word, then reads its neighbour's. n: 0 nothing in
 * between, 1 block_sync, 2 warp_sync, 3 a shuffle. */
KERNEL(neighbour, 128, 1, Args) {
    u32 t = thread_x(), base = smem_base(), threads = a.n >> 8;
    AT_B, st_shared_b32(base + t * 4, t);
    if ((a.n & 255) == 1)
        block_sync();
    if ((a.n & 255) == 2)
        warp_sync(0xffffffffu);
    if ((a.n & 255) == 3)
        shfl_xor(0xffffffffu, t, 1);
    u32 other = (t + 1) % threads;
    AT_A, ld_shared_b32(base + other * 4);
}

static void a_barrier_orders_a_block(void **state) {
    (void)state;
    expect_silence(neighbour, 128, 128 << 8 | 1);
    expect_silence(neighbour, 96, 96 << 8 | 1);
    expect_silence(neighbour, 20, 20 << 8 | 1);
}

static void warp_sync_orders_a_warp_and_no_more(void **state) {
    (void)state;
    expect_silence(neighbour, 32, 32 << 8 | 2);
    expect(neighbour, 128, 128 << 8 | 2, EMU_RACE_READ);
}

static void a_shuffle_orders_nothing(void **state) {
    (void)state;
    expect(neighbour, 32, 32 << 8 | 3, EMU_RACE_READ);
}

/* All warps read all words, then one thread writes one of them. */
KERNEL(readers, 1024, 1, Args) {
    u32 t = thread_x(), base = smem_base();
    st_shared_b32(base + t * 4, t);
    block_sync();
    for (u32 i = 0; i < 8; i++)
        AT_B, ld_shared_b32(base + i * 128);
    if (a.n != 1024)
        block_sync();
    if (t == (a.n == 1024 ? 7 : a.n))
        AT_A, st_shared_b32(base + 128, 0);
}

static void many_readers_are_all_remembered(void **state) {
    (void)state;
    expect_silence(readers, 1024, 5);
    expect(readers, 1024, 1024, EMU_RACE_REUSE);
}

/* Thread 0 of warp n reads once more; every other reader is ordered. */
KERNEL(last_reader, 512, 1, Args) {
    u32 t = thread_x(), base = smem_base();
    if (t < 16)
        st_shared_b32(base + t * 4, t);
    block_sync();
    u32 x[4];
    ld_shared_b128(x, base);
    block_sync();
    if (t == a.n * 32)
        AT_B, ld_shared_b128(x, base);
    if (t == 1)
        AT_A, st_shared_b128(base, x);
}

static void the_one_reader_that_matters_is_found(void **state) {
    (void)state;
    for (u32 warp = 0; warp < 16; warp++)
        for (uint64_t seed = 0; seed < 8; seed++) {
            EmuReport r = run(last_reader, 512, warp, seed, EMU_LATE);
            /* Whichever came second is accused. */
            if (fault_at(&r, EMU_RACE_READ, 0))
                expect_fault(&r, EMU_RACE_READ, line_b, line_a);
            else
                expect_fault(&r, EMU_RACE_REUSE, line_a, line_b);
            emu_report_free(&r);
        }
}

KERNEL(two_writers, 64, 1, Args) {
    u32 t = thread_x(), base = smem_base();
    AT_A, st_shared_b16(base + (a.n ? t * 2 : 0), (u16)t);
    line_b = line_a;
}

static void writers_race_on_a_byte_and_not_beside_it(void **state) {
    (void)state;
    expect(two_writers, 64, 0, EMU_RACE_WRITE);
    expect_silence(two_writers, 64, 1);
}

KERNEL(never_written, 32, 1, Args) {
    u32 t = thread_x(), base = smem_base(), x[4] = {a.n};
    st_shared_b64(base + t * 16, x);
    AT_A, ld_shared_b128(x, base + t * 16);
}

static void a_read_of_nothing_is_reported_and_gives_nan(void **state) {
    (void)state;
    expect(never_written, 32, 0, EMU_UNINITIALISED);
}

/* ---- copies -------------------------------------------------------------- */

/* n: 0 right, 1 read before the wait, 2 no barrier after it, 3 no wait. */
KERNEL(copied, 64, 1, Args) {
    u32 t = thread_x(), base = smem_base();
    AT_B, cp_async_b32(base + t * 4, a.in + t, 4);
    cp_async_commit();
    if (a.n == 1)
        AT_A, ld_shared_b32(base + t * 4);
    if (a.n != 3)
        CP_ASYNC_WAIT(0);
    if (a.n != 2)
        block_sync();
    u32 other = (t + 40) % 64;
    if (a.n == 2)
        AT_A, ld_shared_b32(base + other * 4);
    if (!a.n)
        st_global_b32(a.out + block_x() * 64 + t,
                      ld_shared_b32(base + other * 4), 1);
}

static void a_copy_belongs_to_nobody_until_its_wait(void **state) {
    (void)state;
    for (u32 i = 0; i < 64; i++)
        in[i] = i * 3;
    memset(out, 0, BYTES);
    expect_silence(copied, 64, 0);
    for (u32 i = 0; i < 256; i++)
        assert_int_equal(out[i], (i % 64 + 40) % 64 * 3);
    expect(copied, 64, 1, EMU_IN_FLIGHT);
    expect(copied, 64, 2, EMU_RACE_READ);
    EmuReport r = run(copied, 64, 3, 0, EMU_LATE);
    expect_fault(&r, EMU_EXIT_IN_FLIGHT, line_b, 0);
    emu_report_free(&r);
}

/* ---- barriers ------------------------------------------------------------ */

/* Warps 0, 1 produce for 2, 3 and go on at once. */
KERNEL(producer, 128, 1, Args) {
    u32 t = thread_x(), base = smem_base();
    if (t < 64) {
        AT_B, st_shared_b32(base + t * 4, t);
        if (a.n != 1)
            named_arrive(1, 128);
        else
            named_arrive(2, 128);
    } else {
        if (a.n == 0)
            named_sync(1, 128);
        AT_A, ld_shared_b32(base + (t - 64) * 4);
        if (a.n == 1)
            named_sync(2, 128);
    }
}

static void named_barriers_hand_over(void **state) {
    (void)state;
    expect_silence(producer, 128, 0);
    for (uint64_t seed = 0; seed < 8; seed++) {
        EmuReport r = run(producer, 128, 1, seed, EMU_LATE);
        assert_true(fault_at(&r, EMU_RACE_READ, line_a) ||
                    fault_at(&r, EMU_UNINITIALISED, line_a));
        emu_report_free(&r);
    }
}

KERNEL(odd_counts, 64, 1, Args) {
    if (a.n == 0)
        AT_A, named_sync(3, 48);
    else if (thread_x() < 32)
        AT_A, named_sync(3, 64);
    else
        AT_A, named_sync(3, 96);
}

static void wrong_thread_counts_are_told(void **state) {
    (void)state;
    expect(odd_counts, 64, 0, EMU_BARRIER);
    EmuReport r = run(odd_counts, 64, 1, 0, EMU_LATE);
    assert_non_null(fault_at(&r, EMU_BARRIER, 0));
    emu_report_free(&r);
}

KERNEL(waits_for_ever, 64, 1, Args) {
    (void)a;
    if (thread_x() < 32)
        AT_A, named_sync(1, 64);
    else
        AT_A, named_sync(2, 64);
}

static void a_deadlock_names_what_each_warp_waits_for(void **state) {
    (void)state;
    EmuReport r = run(waits_for_ever, 64, 0, 1, EMU_LATE);
    const EmuFault *f = fault_at(&r, EMU_DEADLOCK, 0);
    assert_non_null(f);
    assert_non_null(strstr(f->text, "warp 0: ffffffff at barrier 1 (line "));
    assert_non_null(strstr(f->text, "warp 1: ffffffff at barrier 2 (line "));
    emu_report_free(&r);
}

KERNEL(early_exit, 64, 1, Args) {
    if (thread_x() >= a.n)
        return;
    block_sync();
    st_global_b32(a.out + thread_x(), 1, 1);
}

static void threads_that_ended_are_not_waited_for(void **state) {
    (void)state;
    expect_silence(early_exit, 64, 32);
    expect_silence(early_exit, 64, 1);
}

/* ---- divergence ---------------------------------------------------------- */

/* n: 0 half a warp shuffles with a full mask, 1 two lines, 2 a mask that
 * leaves the caller out, 3 a barrier in half a warp and a shuffle in the
 * other, 4 both halves with masks of their own. */
KERNEL(diverge, 32, 1, Args) {
    u32 l = lane_id();
    if (a.n == 0 && l < 16)
        AT_A, shfl_xor(0xffffffffu, l, 1);
    if (a.n == 1) {
        if (l < 16)
            AT_A, shfl_xor(0xffffffffu, l, 1);
        else
            AT_B, shfl_xor(0xffffffffu, l, 1);
    }
    if (a.n == 2)
        AT_A, shfl_xor(0xfu, l, 1);
    if (a.n == 3) {
        if (l < 16)
            AT_A, shfl_xor(0xffffffffu, l, 1);
        else
            block_sync();
    }
    if (a.n == 4) {
        if (l < 16)
            shfl_xor(0xffffu, l, 1);
        else
            shfl_xor(0xffff0000u, l, 1);
    }
}

static void lanes_apart_are_told_with_both_lines(void **state) {
    (void)state;
    for (u32 n = 0; n < 4; n++) {
        EmuReport r = run(diverge, 32, n, n, EMU_LATE);
        const EmuFault *f = fault_at(&r, EMU_DIVERGENCE, 0);
        if (!f)
            fail_msg("case %u", n);
        assert_true(f->line == line_a || (n == 1 && f->line == line_b));
        if (n == 1)
            assert_int_equal(f->line + f->other, line_a + line_b);
        emu_report_free(&r);
    }
    expect_silence(diverge, 32, 4);
}

/* A warp of 20 threads cannot do what takes 32. */
static void a_partial_warp_has_no_full_mask(void **state) {
    (void)state;
    EmuReport r = run(diverge, 20, 1, 0, EMU_LATE);
    assert_non_null(fault_at(&r, EMU_DIVERGENCE, 0));
    emu_report_free(&r);
}

/* ---- bounds -------------------------------------------------------------- */

KERNEL(bounds, 32, 1, Args) {
    u32 x[4] = {0}, base = smem_base();
    if (thread_x())
        return;
    switch (a.n) {
    case 0:
        AT_A, ld_global_b32(a.in + 1024, 1);
        break;
    case 1:
        AT_A, ld_global_b128(x, a.in + 1022, 1);
        break;
    case 2:
        AT_A, ld_global_b64(x, a.in + 1, 1);
        break;
    case 3:
        AT_A, st_global_b32(a.in, 0, 1);
        break;
    case 4:
        AT_A, ld_shared_b32(base + SMEM);
        break;
    case 5:
        AT_A, ld_shared_b32(base - 4);
        break;
    case 6:
        AT_A, st_shared_b64(base + 4, x);
        break;
    case 7:
        AT_A, cp_async_b128(base, a.in + 1021, 16);
        break;
    case 8:
        AT_A, cp_async_b128(base + 8, a.in, 16);
        break;
    case 9:
        AT_A, ld_shared_b32(0);
        break;
    }
}

static void every_edge_is_guarded(void **state) {
    (void)state;
    static const int kind[] = {
        EMU_BOUNDS, EMU_BOUNDS,    EMU_ALIGNMENT, EMU_READ_ONLY, EMU_BOUNDS,
        EMU_BOUNDS, EMU_ALIGNMENT, EMU_BOUNDS,    EMU_ALIGNMENT, EMU_BOUNDS};
    for (u32 n = 0; n < 10; n++)
        expect(bounds, 32, n, kind[n]);
    EmuReport r = run(bounds, 32, 1, 0, EMU_LATE);
    assert_non_null(strstr(r.fault[0].text, "in + 4088, 8 past its end"));
    emu_report_free(&r);
}

static void limits_of_a_launch_are_told(void **state) {
    (void)state;
    Emu *e = machine;
    EmuConfig c = {0};
    Args a = {in, out, 0};
    for (int n = 0; n < 3; n++) {
        EmuReport r = {0};
        EmuDim grid = {1, n == 2 ? 65536 : 1, 1};
        EmuDim block = {n == 0 ? 1056 : 32, 1, 1};
        assert_true(emu_launch(e, &c, bounds, &a, grid, block,
                               n == 1 ? 300000 : 0, &r) != 0);
        assert_non_null(fault_at(&r, EMU_LIMIT, 0));
        emu_report_free(&r);
    }
}

/* ---- blocks -------------------------------------------------------------- */

KERNEL(grid_marks, 32, 1, Args) {
    u32 at = block_x() + grid_x() * (block_y() + grid_y() * block_z());
    st_global_b32(a.out + at, at + 1, thread_x() == 0);
}

static void every_block_runs_once(void **state) {
    (void)state;
    for (int resident = 1; resident <= 3; resident++)
        for (uint64_t seed = 0; seed < 5; seed++) {
            Emu *e = machine;
            EmuReport r = {0};
            EmuConfig c = {seed, EMU_LATE, true, false, resident};
            Args a = {in, out, 0};
            memset(out, 0, BYTES);
            emu_forget(e);
            emu_buffer(e, out, BYTES, "out", EMU_WRITE_ONCE);
            assert_int_equal(emu_launch(e, &c, grid_marks, &a,
                                        (EmuDim){5, 7, 3}, (EmuDim){32, 1, 1},
                                        0, &r),
                             0);
            expect_no_fault(&r);
            for (u32 i = 0; i < 1024; i++)
                assert_int_equal(out[i], i < 105 ? i + 1 : 0);
            emu_report_free(&r);
        }
}

static int setup(void **state) {
    (void)state;
    machine = emu_create();
    attnc_emu = emu_table();
    return machine ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    emu_destroy(machine);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_barrier_orders_a_block),
        cmocka_unit_test(warp_sync_orders_a_warp_and_no_more),
        cmocka_unit_test(a_shuffle_orders_nothing),
        cmocka_unit_test(many_readers_are_all_remembered),
        cmocka_unit_test(the_one_reader_that_matters_is_found),
        cmocka_unit_test(writers_race_on_a_byte_and_not_beside_it),
        cmocka_unit_test(a_read_of_nothing_is_reported_and_gives_nan),
        cmocka_unit_test(a_copy_belongs_to_nobody_until_its_wait),
        cmocka_unit_test(named_barriers_hand_over),
        cmocka_unit_test(wrong_thread_counts_are_told),
        cmocka_unit_test(a_deadlock_names_what_each_warp_waits_for),
        cmocka_unit_test(threads_that_ended_are_not_waited_for),
        cmocka_unit_test(lanes_apart_are_told_with_both_lines),
        cmocka_unit_test(a_partial_warp_has_no_full_mask),
        cmocka_unit_test(every_edge_is_guarded),
        cmocka_unit_test(limits_of_a_launch_are_told),
        cmocka_unit_test(every_block_runs_once),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
