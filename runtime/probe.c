/* SPDX-License-Identifier: Apache-2.0
 * Fills a device row from this machine: instruction set, caches, cores by
 * affinity; clock and memory rate are measured, and kept as text. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime.h"

/* ---- instruction set ---------------------------------------------------- */

/* In rising order; a machine that runs one runs those before it. */
static const char *const isas[] = {"portable", "avx2", "avx512", "avx512bf16"};

#if defined(__x86_64__)
/* Bits of CPUID and of XCR0: what the CPU has and the system saves. */
enum {
    L1_ECX = 1 << 12 | 1 << 27 | 1 << 28 | 1 << 29, /* FMA OSXSAVE AVX F16C */
    L7_EBX = 1 << 5 | 1 << 8,                       /* AVX2 BMI2 */
    L7_EBX_512 = 1 << 16 | 1 << 17 | 1 << 30,       /* F DQ BW */
    L71_EAX_BF16 = 1 << 5,
    XCR0_AVX = 6,
    XCR0_512 = 0xe6,
};
static const unsigned l7_ebx_vl = 1U << 31;

static unsigned xcr0(void) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool has(unsigned bits, unsigned wanted) {
    return (bits & wanted) == wanted;
}

static int isa_level(void) {
    unsigned a, b, c, d, ext;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, L1_ECX))
        return 0;
    unsigned saved = xcr0();
    if (!has(saved, XCR0_AVX) || !__get_cpuid_count(7, 0, &a, &b, &c, &d) ||
        !has(b, L7_EBX))
        return 0;
    if (!has(saved, XCR0_512) || !has(b, L7_EBX_512) || !has(b, l7_ebx_vl))
        return 1;
    bool bf16 = a >= 1 && __get_cpuid_count(7, 1, &ext, &b, &c, &d) &&
                has(ext, L71_EAX_BF16);
    return bf16 ? 3 : 2;
}

/* Vector FMAs per cycle where they differ from the arch's row: Zen 4 (AMD
 * family 19h with AVX-512) runs a 512-bit FMA as two halves. */
static double fma_per_cycle(const char *arch, double usual) {
    unsigned a, b, c, d;
    if (strncmp(arch, "avx512", 6) || !__get_cpuid(0, &a, &b, &c, &d) ||
        b != signature_AMD_ebx || !__get_cpuid(1, &a, &b, &c, &d))
        return usual;
    return (a >> 8 & 15) + (a >> 20 & 255) == 0x19 ? 1 : usual;
}
#else
static int isa_level(void) {
    return 0;
}
static double fma_per_cycle(const char *arch, double usual) {
    (void)arch;
    return usual;
}
#endif

#if defined(__aarch64__)
static const char native[] = "neon";
#else
static const char native[] = "";
#endif

static const char *best_isa(void) {
    return native[0] ? native : isas[isa_level()];
}

bool probe_runs(const char *arch) {
    if (native[0] && !strcmp(arch, native))
        return true;
    for (int i = isa_level(); i >= 0; i--)
        if (!strcmp(arch, isas[i]))
            return true;
    return false;
}

/* ---- name, CPUs, caches ------------------------------------------------- */

/* First line of a small file, or "". */
static void read_line(const char *path, char *line, int size) {
    FILE *f = fopen(path, "re");
    line[0] = 0;
    if (f && !fgets(line, size, f))
        line[0] = 0;
    if (f)
        fclose(f);
    line[strcspn(line, "\n")] = 0;
}

/* Value of the first of the keys in /proc/cpuinfo. */
static void cpu_name(char name[48]) {
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "re");
    snprintf(name, 48, "%s CPU", best_isa());
    while (f && fgets(line, sizeof line, f)) {
        char *value = strchr(line, ':');
        if (!value || strncmp(line, "model name", 10))
            continue;
        value += 1 + strspn(value + 1, " \t");
        value[strcspn(value, "\n")] = 0;
        int n = 0;
        for (; *value && n < 47; value++)
            if (isprint((unsigned char)*value))
                name[n++] = *value;
        while (n && name[n - 1] == ' ')
            n--;
        name[n] = 0;
        break;
    }
    if (f)
        fclose(f);
}

/* First CPU of a list like "0-3,8"; -1: none. */
static int first_of(const char *list) {
    return isdigit((unsigned char)*list) ? atoi(list) : -1;
}

static int count_of(const char *list) {
    int n = 0;
    while (isdigit((unsigned char)*list)) {
        char *end;
        long first = strtol(list, &end, 10), last = first;
        if (*end == '-')
            last = strtol(end + 1, &end, 10);
        n += (int)(last - first + 1);
        list = *end == ',' ? end + 1 : end;
    }
    return n;
}

/* The CPUs this process may use; those that are the first of their core. */
typedef struct Cpus {
    int cpus, cores, first;
} Cpus;

static bool leads_core(int cpu, const cpu_set_t *set, size_t bytes) {
    char path[96], list[256];
    snprintf(path, sizeof path,
             "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list",
             cpu);
    read_line(path, list, sizeof list);
    int first = first_of(list);
    return first < 0 || first == cpu || !CPU_ISSET_S((size_t)first, bytes, set);
}

static Cpus count_cpus(void) {
    Cpus c = {1, 1, 0};
    for (size_t n = 1024; n <= 1 << 18; n *= 4) {
        cpu_set_t *set = CPU_ALLOC(n);
        size_t bytes = CPU_ALLOC_SIZE(n);
        if (set && sched_getaffinity(0, bytes, set) == 0) {
            c = (Cpus){0, 0, -1};
            for (int i = 0; i < (int)n; i++)
                if (CPU_ISSET_S((size_t)i, bytes, set)) {
                    c.first = c.first < 0 ? i : c.first;
                    c.cpus++;
                    c.cores += leads_core(i, set, bytes);
                }
            CPU_FREE(set);
            return c;
        }
        CPU_FREE(set);
    }
    return c;
}

int probe_cpus(void) {
    return count_cpus().cpus;
}

/* One level of data cache: its bytes, and how many CPUs share one. */
typedef struct Level {
    double bytes;
    int shared;
} Level;

static void read_caches(int cpu, Level level[4]) {
    char dir[64], path[96], text[256];
    for (int i = 0; i < 8; i++) {
        snprintf(dir, sizeof dir, "/sys/devices/system/cpu/cpu%d/cache/index%d",
                 cpu, i);
        snprintf(path, sizeof path, "%s/type", dir);
        read_line(path, text, sizeof text);
        if (!*text)
            return;
        if (!strcmp(text, "Instruction"))
            continue;
        snprintf(path, sizeof path, "%s/level", dir);
        read_line(path, text, sizeof text);
        int n = atoi(text);
        if (n < 1 || n > 3)
            continue;
        snprintf(path, sizeof path, "%s/size", dir);
        read_line(path, text, sizeof text);
        double unit = strchr(text, 'M') ? 1048576 : 1024;
        snprintf(path, sizeof path, "%s/shared_cpu_list", dir);
        level[n].bytes = atof(text) * unit;
        read_line(path, text, sizeof text);
        level[n].shared = count_of(text);
    }
}

/* The C library knows some where /sys is not mounted. */
static void ask_libc(Level level[4]) {
    static const int names[4] = {0, _SC_LEVEL1_DCACHE_SIZE,
                                 _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
    for (int i = 1; i < 4; i++) {
        long bytes = level[i].bytes > 0 ? 0 : sysconf(names[i]);
        if (bytes > 0)
            level[i].bytes = (double)bytes;
    }
}

/* What stays unknown keeps the arch's usual figure. */
static void fill_caches(Device *d, const Cpus *c) {
    Level level[4] = {0};
    read_caches(c->first, level);
    ask_libc(level);
    if (level[1].bytes > 0)
        d->l1_bytes = level[1].bytes;
    if (level[2].bytes > 0)
        d->sram_bytes = d->sram_core_bytes = level[2].bytes;
    const Level *last = level[3].bytes > 0 ? &level[3] : &level[2];
    if (last->bytes <= 0)
        return;
    int shared = last->shared > 0 ? last->shared : c->cpus;
    d->llc_bytes = last->bytes * ((c->cpus + shared - 1) / shared);
}

/* ---- measured figures, kept --------------------------------------------- */

static bool note_path(const char *dir, const Device *d, char path[1024]) {
    XXH64_hash_t id = XXH3_64bits(d->name, strlen(d->name));
    return dir && snprintf(path, 1024, "%s/machine-%016llx-%g.txt", dir,
                           (unsigned long long)id, d->cores) < 1024;
}

/* A note is the row as text, its clock and memory rate the best of those
 * measured, and in a second line how many those are. The first may have met a
 * busy machine: three more follow, each at least an hour after the last. */
enum { MEASUREMENTS = 4, APART_S = 3600 };

typedef struct Note {
    int count; /* of measurements; 0: there is no note */
    bool due;  /* one more is wanted */
} Note;

static Note read_note(const char *dir, Device *d) {
    char path[1024], text[1024], count[16];
    struct stat st;
    Device old;
    Err e = {0};
    const Note none = {0, true};
    FILE *f = note_path(dir, d, path) ? fopen(path, "re") : NULL;
    if (!f)
        return none;
    bool whole = fgets(text, sizeof text, f) && fgets(count, sizeof count, f) &&
                 fstat(fileno(f), &st) == 0;
    fclose(f);
    text[whole ? strcspn(text, "\n") : 0] = 0;
    if (!whole || atoi(count) < 1 || device_parse(text, &old, &e) ||
        strcmp(old.name, d->name) || strcmp(old.arch, d->arch))
        return none;
    d->clock_ghz = old.clock_ghz;
    d->dram_gbs = old.dram_gbs;
    return (Note){atoi(count), atoi(count) < MEASUREMENTS &&
                                   time(NULL) - st.st_mtime >= APART_S &&
                                   access(dir, W_OK) == 0};
}

/* Appears whole or not at all. A directory that cannot be written costs the
 * next process a measurement. */
static void write_note(const char *dir, const Device *d, int count) {
    char path[1024], temp[1040];
    Str text = {0};
    if (!note_path(dir, d, path))
        return;
    snprintf(temp, sizeof temp, "%s.%d", path, (int)getpid());
    device_print(d, &text);
    FILE *f = text.bad ? NULL : fopen(temp, "wxe");
    if (f) {
        bool ok = fprintf(f, "%s\n%d\n", text.text, count) > 0;
        ok = fclose(f) == 0 && ok;
        if (!ok || rename(temp, path) != 0)
            unlink(temp);
    }
    str_free(&text);
}

/* Steps of 1.4, so that tiles do not change with the weather. */
static double coarse(double x) {
    double step = exp2(round(log2(x) * 2) / 2);
    return step < 10 ? round(step * 10) / 10 : round(step);
}

/* Waits, 2 s at most, while another process measures: two at once would get
 * figures of each other's load, and other figures mean other tiles and kernels
 * compiled anew. Close what it returns, if >= 0, to give the turn on. */
static int wait_turn(const char *dir) {
    const struct timespec pause = {.tv_nsec = 5000000};
    int fd = dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    for (int i = 0; fd >= 0 && i < 400; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK)
            break;
        nanosleep(&pause, NULL);
    }
    return fd;
}

/* The first replaces the arch's usual figures, a later one betters them. */
static void measure(Device *d, int cpus, bool first) {
    double ghz = round(measure_clock_ghz() * 10) / 10;
    double gbs = coarse(measure_dram_gbs(cpus));
    if (first || ghz > d->clock_ghz)
        d->clock_ghz = ghz;
    if (gbs > 0 && (first || gbs > d->dram_gbs))
        d->dram_gbs = gbs;
}

/* ---- probe -------------------------------------------------------------- */

/* The arch's row scaled to this machine's cores and clock. */
static void fill_rates(Device *d, const Device *row) {
    d->fma_per_cycle = fma_per_cycle(d->arch, row->fma_per_cycle);
    double cycles = d->cores * d->clock_ghz / (row->cores * row->clock_ghz);
    double fmas = cycles * d->fma_per_cycle / row->fma_per_cycle;
    d->llc_gbs = round(row->llc_gbs * cycles);
    d->f32_tflops = row->f32_tflops * fmas;
    d->tf32_tflops = row->tf32_tflops * fmas;
    d->f16_tflops = row->f16_tflops * fmas;
    d->bf16_tflops = row->bf16_tflops * fmas;
}

static int probe_here(const char *dir, bool keep, Device *d, Err *e) {
    Device row;
    Cpus cpus = count_cpus();
    int rc = device_find(best_isa(), &row, e);
    if (rc)
        return rc;
    *d = row;
    cpu_name(d->name);
    d->cores = cpus.cores;
    fill_caches(d, &cpus);
    Note note = read_note(dir, d);
    int turn = note.due && keep ? wait_turn(dir) : -1;
    if (note.due && keep)
        note = read_note(dir, d); /* by whose turn it was */
    bool now = note.due && (keep || !note.count);
    if (now)
        measure(d, cpus.cpus, !note.count);
    fill_rates(d, &row);
    if (now && keep)
        write_note(dir, d, note.count + 1);
    if (turn >= 0)
        close(turn);
    return 0;
}

int probe_cpu(const char *dir, Device *d, Err *e) {
    return probe_here(dir, true, d, e);
}

/* "" or ":N", the driver's number of a GPU. */
static int probe_gpu(const char *number, Device *d, Err *e) {
    int64_t n = 0;
    if (*number && (!slice_int((Slice){number + 1, strlen(number + 1)}, &n) ||
                    n < 0 || n > 1023))
        return err_set(e, ATTNC_E_REQUEST, "device", "target",
                       "'cuda%s' is not a GPU; accepted: cuda, cuda:0, cuda:1 "
                       "..",
                       number);
    return cuda_query((int)n, d, e);
}

/* The first that kernels can be made for; false: this machine has none. */
static bool first_gpu(Device *d) {
    Err none = {0};
    int n = cuda_count(&none);
    for (int i = 0; i < n; i++) {
        Err why = {0};
        if (cuda_query(i, d, &why) == 0)
            return true;
    }
    return false;
}

static int probe(const char *target, const char *dir, bool keep, Device *d,
                 Err *e) {
    char name[64];
    size_t len = strcspn(target, "@");
    const char *pairs = target[len] ? target + len + 1 : NULL;
    if (!len || len >= sizeof name)
        return err_set(e, ATTNC_E_REQUEST, "device", "target",
                       "'%.60s' is not a target; accepted: auto, cpu, an arch "
                       "or a device, then @figure=value,..",
                       target);
    snprintf(name, sizeof name, "%.*s", (int)len, target);
    bool any = !strcmp(name, "auto");
    bool gpu = !strncmp(name, "cuda", 4) && (!name[4] || name[4] == ':');
    int rc = gpu                           ? probe_gpu(name + 4, d, e)
             : any && first_gpu(d)         ? 0
             : any || !strcmp(name, "cpu") ? probe_here(dir, keep, d, e)
                                           : device_find(name, d, e);
    return rc || !pairs ? rc : device_override(d, pairs, e);
}

int probe_target(const char *target, const char *dir, Device *d, Err *e) {
    return probe(target, dir, true, d, e);
}

int probe_readonly(const char *target, const char *dir, Device *d, Err *e) {
    return probe(target, dir, false, d, e);
}
