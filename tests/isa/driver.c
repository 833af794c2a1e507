/* SPDX-License-Identifier: Apache-2.0
 * Runs emitted CPU kernels without a C library, so that a cross compiler and
 * a user-mode emulator are enough. Standard input is an image: its size, the
 * number of steps, per step the work items, the scratch, the slots; then the
 * buffers. Pointers are offsets into the image. The image after the run goes
 * to standard output. ENTRIES lists the kernels, in order of the steps. */
typedef unsigned long long u64;
typedef long long i64;
typedef void Entry(const u64 *slots, char *scratch, i64 item);

#define X(name) Entry name;
ENTRIES
#undef X
#define X(name) name,
static Entry *const entries[] = {ENTRIES};
#undef X

enum { IMAGE_MAX = 64 << 20, SLOTS = 80 };
static char image[IMAGE_MAX] __attribute__((aligned(4096)));

#if defined(__aarch64__)
enum { SYS_READ = 63, SYS_WRITE = 64, SYS_EXIT = 94 };
static i64 call(i64 n, i64 a, const void *b, i64 c) {
    register i64 x8 __asm__("x8") = n, x0 __asm__("x0") = a;
    register const void *x1 __asm__("x1") = b;
    register i64 x2 __asm__("x2") = c;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
}
__asm__(".globl _start\n_start: mov x29, xzr\nbl run\n");
#elif defined(__x86_64__)
enum { SYS_READ = 0, SYS_WRITE = 1, SYS_EXIT = 231 };
static i64 call(i64 n, i64 a, const void *b, i64 c) {
    i64 result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(n), "D"(a), "S"(b), "d"(c)
                     : "rcx", "r11", "memory");
    return result;
}
__asm__(".globl _start\n_start: xor %ebp, %ebp\nand $-16, %rsp\ncall run\n");
#endif

/* The compiler may turn loops into these. */
void *memset(void *to, int c, unsigned long n) {
    for (volatile char *p = to; n; n--)
        *p++ = (char)c;
    return to;
}

void *memcpy(void *to, const void *from, unsigned long n) {
    const char *q = from;
    for (volatile char *p = to; n; n--)
        *p++ = *q++;
    return to;
}

static void leave(int status) {
    for (;;)
        call(SYS_EXIT, status, 0, 0);
}

static void transfer(i64 n, int fd, i64 size) {
    for (i64 at = 0; at < size;) {
        i64 got = call(n, fd, image + at, size - at);
        if (got <= 0)
            leave(3);
        at += got;
    }
}

/* One step of the image at p; returns what follows it. */
static const u64 *run_step(Entry *entry, const u64 *p) {
    u64 items = *p++, scratch = *p++, count = *p++, slots[SLOTS];
    if (count > SLOTS)
        leave(4);
    for (u64 i = 0; i < count; i++, p += 2)
        slots[i] = p[0] ? (u64)(image + p[1]) : p[1];
    for (u64 i = 0; i < items; i++)
        entry(slots, image + scratch, (i64)i);
    return p;
}

void run(void) {
    transfer(SYS_READ, 0, 16);
    const u64 *head = (const u64 *)image;
    u64 size = head[0], steps = head[1];
    if (size > IMAGE_MAX || steps > sizeof entries / sizeof *entries)
        leave(5);
    for (i64 at = 16; at < (i64)size;) {
        i64 got = call(SYS_READ, 0, image + at, (i64)size - at);
        if (got <= 0)
            leave(3);
        at += got;
    }
    const u64 *p = head + 2;
    for (u64 i = 0; i < steps; i++)
        p = run_step(entries[i], p);
    transfer(SYS_WRITE, 1, (i64)size);
    leave(0);
}
