/* SPDX-License-Identifier: Apache-2.0
 * The devices known without asking a driver. Rates are dense; matrix rates
 * are those with f32 accumulation. */
#include "gen.h"

#define KB 1024.0
#define MB (1024.0 * 1024.0)

/* A GPU: exp2 runs at 16 per clock and SM on every chip here (CUDA C++
 * Programming Guide, table of arithmetic throughput). */
#define GPU(name_, arch_, sms, ghz, block_kb, sm_kb, l2_mb, l2_gbs, gbs, f32,  \
            tf32, f16, bf16, capability)                                       \
    {                                                                          \
        .name = name_, .arch = arch_, .kind = DEVICE_CUDA, .cores = sms,       \
        .clock_ghz = ghz, .sram_bytes = KB * (block_kb),                       \
        .sram_core_bytes = KB * (sm_kb), .llc_bytes = MB * (l2_mb),            \
        .llc_gbs = l2_gbs, .dram_gbs = gbs, .vector_regs = 65536,              \
        .f32_tflops = f32, .tf32_tflops = tf32, .f16_tflops = f16,             \
        .bf16_tflops = bf16, .exp2_gops = 16.0 * (sms) * (ghz), capability     \
    }

/* What all chips of a compute capability share: CUDA C++ Programming Guide,
 * table of technical specifications. Shared memory: 32 banks of 4 bytes; half
 * of that on Turing (Jia et al. 2019, arXiv:1903.07486). mma.sync reaches
 * 0.63 of Hopper's wgmma peak (Luo et al. 2024, arXiv:2402.13499); on sm_100
 * the same rate per SM is assumed. */
#define LIMITS(threads, blocks, reserved)                                      \
    .max_threads = threads, .max_blocks = blocks, .sram_reserved = reserved
#define CC75 .mma_k = 8, .mma_share = 1, .sram_width = 64, LIMITS(1024, 16, 0)
#define CC80_(share, threads, blocks)                                          \
    .mma_k = 16, .mma_share = share, .cp_async = 1, .sram_width = 128,         \
    LIMITS(threads, blocks, 1024)
#define CC80 CC80_(1, 2048, 32)
#define CC86 CC80_(1, 1536, 16)
#define CC89 CC80_(1, 1536, 24)
#define CC90 CC80_(0.63, 2048, 32)
#define CC100 CC80_(0.31, 2048, 32)
#define CC120 CC80_(1, 1536, 24)

/* A CPU: peaks follow from cores, clock, FMAs per cycle and width (f32: 2
 * flops for each 4 bytes). */
#define CPU(arch_, cores_, ghz, l1_kb, l2_kb, llc_mb, llc, gbs, bytes, regs,   \
            fma, loads, bf16_ratio)                                            \
    {                                                                          \
        .name = arch_, .arch = arch_, .kind = DEVICE_CPU, .cores = cores_,     \
        .clock_ghz = ghz, .sram_bytes = KB * (l2_kb),                          \
        .sram_core_bytes = KB * (l2_kb), .l1_bytes = KB * (l1_kb),             \
        .llc_bytes = MB * (llc_mb), .llc_gbs = llc, .dram_gbs = gbs,           \
        .vector_bytes = bytes, .vector_regs = regs, .fma_per_cycle = fma,      \
        .loads_per_cycle = loads,                                              \
        .f32_tflops = (cores_) * (ghz) * (fma) * (bytes) / 4 * 2 / 1e3,        \
        .bf16_tflops =                                                         \
            (bf16_ratio) * (cores_) * (ghz) * (fma) * (bytes) / 4 * 2 / 1e3    \
    }

typedef struct Row {
    Device device;
    const char *source;
} Row;

/* Where a data sheet gives no L2 bandwidth, the figure is an estimate: 48
 * bytes per clock and SM, what A100's 5120 bytes per clock come to, marked
 * "L2 est.". */
static const Row rows[] = {
    {GPU("T4", "sm_75", 40, 1.59, 64, 64, 4, 1270, 320, 8.1, 0, 65, 0, CC75),
     "NVIDIA T4 datasheet; L2 rate: Jia et al. 2019, arXiv:1903.07486"},
    {GPU("A100", "sm_80", 108, 1.41, 163, 164, 40, 7219, 2039, 19.5, 156, 312,
         312, CC80),
     "NVIDIA A100 80GB SXM datasheet; A100 whitepaper (5120 B/clk of L2)"},
    {GPU("RTX 3090", "sm_86", 82, 1.695, 99, 100, 6, 6672, 936, 35.6, 35.6, 71,
         71, CC86),
     "NVIDIA GA102 whitepaper, appendix A; L2 est."},
    {GPU("A6000", "sm_86", 84, 1.8, 99, 100, 6, 7258, 768, 38.7, 77.4, 154.8,
         154.8, CC86),
     "NVIDIA RTX A6000 datasheet, GA102 whitepaper; L2 est."},
    {GPU("L40S", "sm_89", 142, 2.52, 99, 100, 96, 17176, 864, 91.6, 183, 362,
         362, CC89),
     "NVIDIA L40S datasheet; L2 est."},
    {GPU("RTX 4090", "sm_89", 128, 2.52, 99, 100, 72, 15483, 1008, 82.6, 82.6,
         165.2, 165.2, CC89),
     "NVIDIA Ada whitepaper, appendix A; L2 est."},
    {GPU("H100", "sm_90a", 132, 1.83, 227, 228, 50, 9370, 3352, 66.9, 494.7,
         989.4, 989.4, CC90),
     "NVIDIA H100 SXM datasheet, Hopper whitepaper; L2 as A100, 5120 B/clk"},
    {GPU("H200", "sm_90a", 132, 1.83, 227, 228, 50, 9370, 4800, 66.9, 494.7,
         989.4, 989.4, CC90),
     "NVIDIA H200 SXM datasheet; the rest as H100"},
    {GPU("B200", "sm_100", 148, 1.85, 227, 228, 126, 13142, 8000, 75, 1125,
         2250, 2250, CC100),
     "NVIDIA HGX B200 datasheet, per GPU; L2 est."},
    {GPU("RTX 5090", "sm_120", 170, 2.407, 99, 100, 96, 19641, 1792, 104.8,
         104.8, 209.5, 209.5, CC120),
     "NVIDIA RTX Blackwell whitepaper, appendix A; L2 est."},
    {CPU("avx2", 8, 4.5, 32, 512, 32, 700, 51, 32, 16, 2, 2, 0),
     "AMD Ryzen 7 5800X: AMD guide 56665 (Zen 3); LLC est. 20 B/clk and core; "
     "DDR4-3200 x 2"},
    {CPU("avx512", 8, 3.6, 48, 1280, 18, 250, 204, 64, 32, 2, 2, 0),
     "Intel Xeon Gold 6334: Intel ARK, optimization manual (Ice Lake); LLC "
     "est.; DDR4-3200 x 8"},
    {CPU("avx512bf16", 8, 4.4, 48, 1024, 32, 800, 90, 64, 32, 2, 2, 2),
     "AMD Ryzen 7 9700X: AMD guide 58455 (Zen 5); LLC 100 GB/s a core, as "
     "measured on Zen 5; DDR5-5600 x 2"},
    {CPU("neon", 8, 2.6, 64, 1024, 32, 330, 38, 16, 32, 4, 3, 0),
     "8 of 64 cores of AWS Graviton3: Arm Neoverse V1 optimization guide; LLC "
     "est.; an eighth of 307 GB/s"},
    {CPU("portable", 8, 3, 32, 256, 8, 250, 25, 16, 16, 1, 2, 0),
     "no chip: the least of common 64-bit machines since 2012"},
};

int device_count(void) {
    return sizeof rows / sizeof *rows;
}

const Device *device_at(int i) {
    return &rows[i].device;
}

const char *device_source(int i) {
    return rows[i].source;
}
