/* SPDX-License-Identifier: Apache-2.0
 * Blocks that share memory on the emulated device: numbers given out in
 * order, turns that are waited for, sums; and what happens without them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "emulated/emu.h"

#define ARCH 800
#include "emu/prims.h"

enum { BLOCKS = 24, THREADS = 64, SEEDS = 30 };

typedef struct Memory {
    u32 number, turn;
    u32 order[BLOCKS]; /* which block came n-th */
    float sum[2 * THREADS];
} Memory;

typedef struct Args {
    Memory *m;
} Args;

/* A block's place comes from the counter: who is awaited has started. */
KERNEL(in_turn, THREADS, 1, Args) {
    u32 place = 0, at = smem_base();
    if (thread_x() == 0)
        st_shared_b32(at, take_number(&a.m->number));
    block_sync();
    place = ld_shared_b32(at);
    block_sync();
    if (thread_x() == 0)
        wait_turn(&a.m->turn, place);
    block_sync();
    if (thread_x() == 0)
        st_global_b32(&a.m->order[place], block_x(), 1);
    red_add_f32x2(&a.m->sum[2 * thread_x()], 1, (float)place, 1);
    block_sync();
    if (thread_x() == 0)
        pass_turn(&a.m->turn);
}

/* A block's place is its index, and blocks start in any order. */
KERNEL(by_index, THREADS, 1, Args) {
    if (thread_x() == 0)
        wait_turn(&a.m->turn, block_x());
    block_sync();
    if (thread_x() == 0)
        pass_turn(&a.m->turn);
}

static int run(EmuEntry kernel, u32 seed, int resident, Memory *m) {
    Args args = {m};
    Emu *e = emu_create();
    EmuReport r = {0};
    EmuConfig c = {seed, EMU_LATE, true, false, resident};
    memset(m, 0, sizeof *m);
    attnc_emu = emu_table();
    assert_non_null(e);
    assert_int_equal(emu_buffer(e, m, sizeof *m, "memory", EMU_WRITE), 0);
    assert_int_equal(emu_launch(e, &c, kernel, &args, (EmuDim){BLOCKS, 1, 1},
                                (EmuDim){THREADS, 1, 1}, 1024, &r),
                     0);
    int kind = r.faults ? r.fault[0].kind : -1;
    emu_report_free(&r);
    emu_destroy(e);
    return kind;
}

static void turns_pass_in_order_under_any_schedule(void **state) {
    (void)state;
    for (u32 seed = 0; seed < SEEDS; seed++) {
        Memory m;
        u32 seen = 0;
        assert_int_equal(run(in_turn, seed, 1 + (int)seed % 5, &m), -1);
        for (u32 i = 0; i < BLOCKS; i++)
            seen |= 1u << m.order[i];
        assert_int_equal(seen, (1u << BLOCKS) - 1);
        assert_int_equal(m.turn, BLOCKS);
        for (u32 i = 0; i < THREADS; i++) {
            assert_true(m.sum[2 * i] == BLOCKS);
            assert_true(m.sum[2 * i + 1] == BLOCKS * (BLOCKS - 1) / 2);
        }
    }
}

/* Which a chip that happens to start blocks in order would hide. */
static void waiting_for_a_block_yet_to_start_is_told(void **state) {
    (void)state;
    Memory m;
    assert_int_equal(run(by_index, 1, 2, &m), EMU_DEADLOCK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(turns_pass_in_order_under_any_schedule),
        cmocka_unit_test(waiting_for_a_block_yet_to_start_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
