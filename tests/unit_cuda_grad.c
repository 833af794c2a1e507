/* SPDX-License-Identifier: Apache-2.0
 * Gradients of CUDA kernels on emulated devices agree with f64: features, head
 * dims, tiles, corners, with fresh data amid NaN and outputs in poison. */
#include "emu/forward.h"
#include "grad_case.h"

/* The forward by the model's tile, the backward by these ones. */
static void check_grad(const Case *c, int target, const char *tile,
                       const attnc_shape *promises, int times) {
    Case back = *c;
    back.spec = grad_spec(c);
    attnc_plan *fwd = prepare(c, target, NULL, promises);
    attnc_plan *bwd = prepare(&back, target, tile, promises);
    for (int i = 0; i < times; i++)
        grad_check(c, fwd, bwd);
    attnc_plan_release(fwd);
    attnc_plan_release(bwd);
}

static void plain_gradients_agree(void **state) {
    (void)state;
    for (int causal = 0; causal < 2; causal++) {
        Case c = simple(ATTNC_F16, 64, 100, 100);
        c.spec.mask = causal ? ATTNC_MASK_CAUSAL : ATTNC_MASK_NONE;
        check_grad(&c, 1, NULL, NULL, 3);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_gradients_agree),
    };
    if (!can_emulate())
        return 77;
    random_start();
    return cmocka_run_group_tests(tests, NULL, close_contexts);
}
