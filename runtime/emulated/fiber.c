/* SPDX-License-Identifier: Apache-2.0
 * Fibers: a stack each, and a switch that saves what the calling convention
 * asks for. ucontext costs two system calls a switch and serves elsewhere. */
#include "machine.h"

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define WITH_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WITH_TSAN 1
#endif
#endif

#ifdef WITH_ASAN
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef WITH_TSAN
#include <sanitizer/tsan_interface.h>
#endif

_Thread_local Fiber *emu_now;

/* ---- the switch -------------------------------------------------------- */

#if defined(__x86_64__) && !defined(EMU_UCONTEXT)

void switch_stacks(void **save, void *to);
/* The jump, unlike a return, is predicted: every fiber leaves here. */
__asm__(".text\n"
        ".p2align 4\n"
        ".hidden switch_stacks\n"
        ".globl switch_stacks\n"
        ".type switch_stacks, @function\n"
        "switch_stacks:\n"
        "  push %rbp\n"
        "  push %rbx\n"
        "  push %r12\n"
        "  push %r13\n"
        "  push %r14\n"
        "  push %r15\n"
        "  mov %rsp, (%rdi)\n"
        "  mov %rsi, %rsp\n"
        "  pop %r15\n"
        "  pop %r14\n"
        "  pop %r13\n"
        "  pop %r12\n"
        "  pop %rbx\n"
        "  pop %rbp\n"
        "  pop %rcx\n"
        "  jmp *%rcx\n"
        ".size switch_stacks, . - switch_stacks\n");

/* Seven words to pop, the last the entry, then a false return address: the
 * entry finds the stack as after a call. */
static void *first_frame(char *top) {
    void **sp = (void **)(top - 8);
    *sp = NULL;
    *--sp = (void *)(uintptr_t)emu_thread_main;
    for (int i = 0; i < 6; i++)
        *--sp = NULL;
    return sp;
}

#elif defined(__aarch64__) && !defined(EMU_UCONTEXT)

void switch_stacks(void **save, void *to);
__asm__(".text\n"
        ".p2align 4\n"
        ".hidden switch_stacks\n"
        ".globl switch_stacks\n"
        ".type switch_stacks, %function\n"
        "switch_stacks:\n"
        "  sub sp, sp, #160\n"
        "  stp x19, x20, [sp]\n"
        "  stp x21, x22, [sp, #16]\n"
        "  stp x23, x24, [sp, #32]\n"
        "  stp x25, x26, [sp, #48]\n"
        "  stp x27, x28, [sp, #64]\n"
        "  stp x29, x30, [sp, #80]\n"
        "  stp d8, d9, [sp, #96]\n"
        "  stp d10, d11, [sp, #112]\n"
        "  stp d12, d13, [sp, #128]\n"
        "  stp d14, d15, [sp, #144]\n"
        "  mov x9, sp\n"
        "  str x9, [x0]\n"
        "  mov sp, x1\n"
        "  ldp x19, x20, [sp]\n"
        "  ldp x21, x22, [sp, #16]\n"
        "  ldp x23, x24, [sp, #32]\n"
        "  ldp x25, x26, [sp, #48]\n"
        "  ldp x27, x28, [sp, #64]\n"
        "  ldp x29, x30, [sp, #80]\n"
        "  ldp d8, d9, [sp, #96]\n"
        "  ldp d10, d11, [sp, #112]\n"
        "  ldp d12, d13, [sp, #128]\n"
        "  ldp d14, d15, [sp, #144]\n"
        "  add sp, sp, #160\n"
        "  br x30\n"
        ".size switch_stacks, . - switch_stacks\n");

static void *first_frame(char *top) {
    void **sp = (void **)(top - 160);
    for (int i = 0; i < 20; i++)
        sp[i] = NULL;
    sp[11] = (void *)(uintptr_t)emu_thread_main; /* x30 */
    return sp;
}

#else

#include <ucontext.h>

/* The context lies at the top of its own stack; the host's on the host's. */
static void switch_stacks(void **save, void *to) {
    ucontext_t here;
    *save = &here;
    swapcontext(&here, to);
}
static void *first_frame(char *top) {
    ucontext_t *c =
        (ucontext_t *)((uintptr_t)(top - sizeof *c) & ~(uintptr_t)63);
    getcontext(c);
    c->uc_link = NULL;
    c->uc_stack.ss_sp = top - (fiber_stack_bytes() - 8192);
    c->uc_stack.ss_size = (size_t)((char *)c - (char *)c->uc_stack.ss_sp);
    makecontext(c, emu_thread_main, 0);
    return c;
}

#endif

/* ---- fibers ------------------------------------------------------------ */

size_t fiber_stack_bytes(void) {
#if defined(WITH_ASAN) || defined(WITH_TSAN)
    return 256 * 1024;
#else
    return 64 * 1024;
#endif
}

void fiber_end(Fiber *f) {
#ifdef WITH_TSAN
    if (f->tsan)
        __tsan_destroy_fiber(f->tsan);
#endif
    f->tsan = NULL;
}

void fiber_start(Fiber *f) {
    /* Equal frames of neighbours must not fall into the same cache sets. */
    char *top = f->stack + f->stack_bytes - f->thread * 5 % 64 * 64;
#ifdef WITH_ASAN
    __asan_unpoison_memory_region(f->stack, f->stack_bytes);
#endif
#ifdef WITH_TSAN
    if (!f->tsan)
        f->tsan = __tsan_create_fiber(0);
#endif
    f->fake = NULL;
    f->sp = first_frame((char *)((uintptr_t)top & ~(uintptr_t)15));
}

/* Where the host's own stack lies, for the sanitizers. */
void fiber_host(Fiber *host) {
#ifdef WITH_ASAN
    pthread_attr_t a;
    void *low = NULL;
    size_t bytes = 0;
    if (!pthread_getattr_np(pthread_self(), &a)) {
        pthread_attr_getstack(&a, &low, &bytes);
        pthread_attr_destroy(&a);
    }
    host->stack = low;
    host->stack_bytes = bytes;
#endif
#ifdef WITH_TSAN
    host->tsan = __tsan_get_current_fiber();
#endif
    host->fake = NULL;
}

void fiber_switch(Fiber *from, Fiber *to, bool last) {
    (void)last;
    emu_now = to;
#ifdef WITH_ASAN
    __sanitizer_start_switch_fiber(last ? NULL : &from->fake, to->stack,
                                   to->stack_bytes);
#endif
#ifdef WITH_TSAN
    __tsan_switch_to_fiber(to->tsan, 0);
#endif
    switch_stacks(&from->sp, to->sp);
#ifdef WITH_ASAN
    __sanitizer_finish_switch_fiber(from->fake, NULL, NULL);
#endif
}

void emu_thread_main(void) {
    Fiber *f = emu_now;
#ifdef WITH_ASAN
    __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
    f->block->emu->entry(f->block->emu->args);
    thread_exit(f);
    __builtin_unreachable();
}
