/* SPDX-License-Identifier: Apache-2.0
 * The driver side of the CUDA backend against a fake libcuda: what GPUs look
 * like, what a load sets, what a launch does and does not do, and what is said
 * when something is missing. */
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "fake/cuda.h"
#include "runtime.h"

static FakeCuda *fake;

static void (*pretend_h200)(void);

/* ---- finding ------------------------------------------------------------ */

static void an_old_driver_is_told(void **state) {
    (void)state;
    Device d;
    Err e = {0};
    pretend_h200();
    fake->driver = 11080;
    assert_int_equal(cuda_query(0, &d, &e), ATTNC_E_MISSING);
    assert_string_equal(e.text, "cuda: driver: the NVIDIA driver is for CUDA "
                                "11.8; needed: 12.0 or newer");
}

static void a_driver_without_a_gpu_is_told(void **state) {
    (void)state;
    Device d;
    Err e = {0};
    pretend_h200();
    fake->init_code = 100;
    assert_int_equal(cuda_query(0, &d, &e), ATTNC_E_MISSING);
    assert_string_equal(e.text, "cuda: cuInit: CUDA_ERROR_NO_DEVICE (100), no "
                                "CUDA-capable device is detected");
}

static void gpus_are_counted(void **state) {
    (void)state;
    Device d;
    Err e = {0};
    pretend_h200();
    assert_int_equal(cuda_count(&e), 1);
    assert_int_equal(cuda_query(1, &d, &e), ATTNC_E_REQUEST);
    assert_string_equal(e.text, "cuda: target: there is no GPU 1; this machine "
                                "has 1");
    assert_int_equal(cuda_ordinal("sm_90a"), 0);
    assert_int_equal(cuda_ordinal("sm_80"), -1);
}

/* ---- a GPU as a row ----------------------------------------------------- */

static Device query(const char *name, int major, int minor) {
    Device d;
    Err e = {0};
    pretend_h200();
    snprintf(fake->name, sizeof fake->name, "%s", name);
    fake->attribute[75] = major;
    fake->attribute[76] = minor;
    if (cuda_query(0, &d, &e))
        fail_msg("%s", e.text);
    return d;
}

static void a_known_chip_is_its_row_with_its_own_figures(void **state) {
    (void)state;
    Device d = query("NVIDIA H200", 9, 0), row;
    Err e = {0};
    device_find("H200", &row, &e);
    assert_string_equal(d.name, "H200");
    assert_string_equal(d.arch, "sm_90a");
    assert_int_equal(d.kind, DEVICE_CUDA);
    assert_true(d.cores == 132 && d.sram_bytes == 232448);
    assert_true(d.clock_ghz > 1.979 && d.clock_ghz < 1.981);
    assert_true(d.dram_gbs == 4917);
    double faster = d.clock_ghz / row.clock_ghz;
    assert_true(d.f16_tflops > 0.999 * faster * row.f16_tflops &&
                d.f16_tflops < 1.001 * faster * row.f16_tflops);
    assert_true(d.mma_share == row.mma_share && d.cp_async == 1);
}

static void a_chip_nobody_listed_is_described_by_a_like_one(void **state) {
    (void)state;
    Device ti = query("NVIDIA GeForce RTX 4070 Ti", 8, 9);
    Device ada = query("NVIDIA RTX 6000 Ada Generation", 8, 9);
    Device thor = query("NVIDIA Thor", 11, 0);
    /* GeForce's matrix units accumulate in f32 at half the rate. */
    assert_true(ti.f16_tflops < 0.6 * ada.f16_tflops);
    assert_string_equal(ti.arch, "sm_89");
    assert_string_equal(thor.arch, "sm_110");
    assert_true(thor.mma_k == 16 && thor.cp_async == 1);
    Device t4 = query("Tesla T4", 7, 5);
    assert_true(t4.mma_k == 8 && t4.cp_async == 0);
}

static void a_chip_too_old_is_refused(void **state) {
    (void)state;
    Device d;
    Err e = {0};
    pretend_h200();
    strcpy(fake->name, "Tesla V100");
    fake->attribute[75] = 7;
    assert_int_equal(cuda_query(0, &d, &e), ATTNC_E_REQUEST);
    assert_string_equal(e.text, "cuda: target: Tesla V100 has compute "
                                "capability 7.0; accepted: 7.5 and newer");
}

/* ---- plans with templates of the test's own ----------------------------- */

/* One empty kernel for each step, taking the step's parameters as they come. */
static const char module_text[] =
    "$ for _, s in ipairs(steps) do\n"
    "struct ${s.role}_args { unsigned long long v[${#s.params}]; };\n"
    "extern \"C\" __global__ void __launch_bounds__(${s.threads})\n"
    "${s.entry}(const __grid_constant__ ${s.role}_args a) {\n"
    "    if (a.v[0] == 1) ((float *)a.v[1])[0] = ${s.scratch.total};\n"
    "}\n"
    "$ end\n";

static char templates_dir[256];

static void write_file(const char *dir, const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0 && fclose(f) == 0);
}

static int make_templates(void **state) {
    (void)state;
    char dir[300];
    snprintf(templates_dir, sizeof templates_dir, "%s/templates",
             getenv("FAKE_DIR"));
    snprintf(dir, sizeof dir, "%s/cuda", templates_dir);
    mkdir(templates_dir, 0700);
    mkdir(dir, 0700);
    write_file(dir, "lib.lua", "-- nothing\n");
    write_file(dir, "module.cu.in", module_text);
    return 0;
}

static attnc_context *open_context(const char *target) {
    attnc_options o = ATTNC_OPTIONS_INIT;
    attnc_context *c = NULL;
    o.target = target;
    o.cache_dir = "";
    o.templates_dir = templates_dir;
    if (attnc_context_create(&o, &c))
        fail_msg("%s", attnc_last_error()->text);
    return c;
}

static attnc_plan *prepare(attnc_context *c, const char *text,
                           const char *shape_text) {
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    attnc_shape h = ATTNC_SHAPE_DEFAULT;
    Err e = {0};
    attnc_plan *p = NULL;
    assert_int_equal(spec_parse(text, &s, &e), 0);
    assert_int_equal(shape_parse(shape_text, &h, &e), 0);
    if (attnc_prepare(c, &s, &h, &p))
        fail_msg("%s", attnc_last_error()->text);
    return p;
}

/* Arguments of 2 batch entries, 8 heads on 4, n queries and m keys. */
static attnc_args args_of(int64_t n, int64_t m) {
    attnc_args a = ATTNC_ARGS_INIT;
    char *base = (char *)fake->memory;
    a.batch = 2;
    a.heads = 8;
    a.kv_heads = 4;
    a.seqlen_q = n;
    a.seqlen_k = m;
    attnc_tensor *all[] = {&a.q, &a.k, &a.v, &a.o};
    for (int i = 0; i < 4; i++) {
        int64_t heads = i == 0 || i == 3 ? 8 : 4,
                rows = i == 0 || i == 3 ? n : m;
        *all[i] =
            (attnc_tensor){base + (i << 26), heads * rows * 64, rows * 64, 64};
    }
    return a;
}

static void a_launch_is_one_call_with_the_arguments(void **state) {
    (void)state;
    pretend_h200();
    attnc_context *c = open_context("cuda");
    attnc_plan *p = prepare(c, "dtype=f16",
                            "batch=64 seqlen_q=1000 "
                            "seqlen_k=1000");
    const Step *s = &p->plan.step[0];
    fake->args = s->nparam;
    assert_int_equal(fake->loads, 1);
    assert_int_equal(fake->smem_set, s->smem_bytes);
    assert_int_equal(fake->carveout_set, 100);
    assert_int_equal(fake->pushed, 0);
    attnc_args a = args_of(1000, 1000);
    a.scale = 0.5f;
    assert_int_equal(attnc_launch(p, &a, (void *)0x5), 0);
    assert_int_equal(fake->launches, 1);
    const FakeLaunch *l = &fake->launch[0];
    int64_t rows = 2000, block_q = s->tile.v[0];
    assert_string_equal(l->kernel, s->entry);
    assert_int_equal(l->grid[0], 2 * 4 * ((rows + block_q - 1) / block_q));
    assert_true(l->grid[1] == 1 && l->grid[2] == 1);
    assert_int_equal(l->block[0], s->threads);
    assert_int_equal(l->smem, s->smem_bytes);
    assert_ptr_equal(l->stream, (void *)0x5);
    for (int i = 0; i < s->nparam; i++) {
        uint64_t want = s->param[i].id == PARAM_q          ? (uint64_t)a.q.data
                        : s->param[i].id == PARAM_seqlen_k ? 1000
                        : s->param[i].id == PARAM_scale    ? 0x3f000000
                                                           : l->arg[i];
        assert_int_equal(l->arg[i], want);
    }
    /* Nothing is allocated, loaded or left behind by a launch. */
    assert_true(fake->allocs == 0 && fake->loads == 1 && fake->pushed == 0);
    attnc_plan_release(p);
    attnc_context_destroy(c);
    assert_int_equal(fake->unloads, 1);
    assert_int_equal(fake->retained, 0);
}

static void two_steps_are_two_launches_in_one_workspace(void **state) {
    (void)state;
    pretend_h200();
    attnc_context *c = open_context("cuda:0");
    attnc_plan *p = prepare(c, "dtype=f16",
                            "heads=8 kv_heads=4 batch=2 seqlen_q=1 "
                            "seqlen_k=65536");
    assert_int_equal(p->plan.nstep, 2);
    attnc_args a = args_of(1, 65536);
    fake->args = 8;
    size_t bytes = 0;
    assert_int_equal(attnc_workspace(p, &a, &bytes), 0);
    assert_true(bytes > 0);
    assert_int_equal(attnc_launch(p, &a, NULL), ATTNC_E_WORKSPACE);
    a.workspace = (void *)(fake->memory + (300 << 20));
    a.workspace_bytes = bytes;
    assert_int_equal(attnc_launch(p, &a, NULL), 0);
    assert_int_equal(fake->launches, 2);
    assert_string_equal(fake->launch[0].kernel, p->plan.step[0].entry);
    assert_string_equal(fake->launch[1].kernel, p->plan.step[1].entry);
    attnc_plan_release(p);
    attnc_context_destroy(c);
}

static void run_takes_its_workspace_in_the_streams_order(void **state) {
    (void)state;
    pretend_h200();
    attnc_context *c = open_context("cuda");
    attnc_spec s = ATTNC_SPEC_DEFAULT;
    s.dtype = ATTNC_F16;
    attnc_args a = args_of(1, 65536);
    fake->args = 8;
    assert_int_equal(attnc_run(c, &s, &a, NULL), 0);
    assert_int_equal(fake->launches, 2);
    assert_true(fake->allocs == 1 && fake->frees == 1);
    attnc_context_destroy(c);
}

/* ---- faults ------------------------------------------------------------- */

static void host_memory_is_refused(void **state) {
    (void)state;
    static float here[64];
    pretend_h200();
    attnc_context *c = open_context("cuda");
    attnc_plan *p = prepare(c, "dtype=f16", "batch=64");
    attnc_args a = args_of(64, 64);
    a.lse = here;
    assert_int_equal(attnc_launch(p, &a, NULL), ATTNC_E_REQUEST);
    assert_non_null(strstr(attnc_last_error()->text, "launch: lse: 0x"));
    assert_non_null(
        strstr(attnc_last_error()->text, "is not memory of the GPU"));
    fake->attribute[88] = 1; /* a GPU that reads all of the host's memory */
    attnc_plan_release(p);
    attnc_context_destroy(c);
    c = open_context("cuda");
    p = prepare(c, "dtype=f16", "batch=64");
    assert_int_equal(attnc_launch(p, &a, NULL), 0);
    attnc_plan_release(p);
    attnc_context_destroy(c);
}

static void a_pointer_that_breaks_its_promise_is_refused(void **state) {
    (void)state;
    pretend_h200();
    attnc_context *c = open_context("cuda");
    attnc_plan *p = prepare(c, "dtype=f16", "batch=64 align_k=16 align_o=8");
    attnc_args a = args_of(64, 64);
    assert_int_equal(attnc_launch(p, &a, NULL), 0);
    a.k.data = (char *)a.k.data + 8;
    assert_int_equal(attnc_launch(p, &a, NULL), ATTNC_E_PROMISE);
    assert_non_null(strstr(attnc_last_error()->text, "launch: k: "));
    assert_non_null(strstr(attnc_last_error()->hint, "promises less"));
    a = args_of(64, 64);
    a.o.stride_n += 1;
    assert_int_equal(attnc_launch(p, &a, NULL), ATTNC_E_PROMISE);
    assert_int_equal(fake->launches, 1);
    attnc_plan_release(p);
    attnc_context_destroy(c);
}

/* Lengths in the GPU's memory are not read by the host. */
static void lengths_stay_on_the_gpu(void **state) {
    (void)state;
    pretend_h200();
    attnc_context *c = open_context("cuda");
    attnc_plan *p = prepare(c, "dtype=f16 varlen=1 mask=causal",
                            "batch=64 mult_q=16 mult_k=16");
    attnc_args a = args_of(64, 64);
    a.cu_seqlens_q = a.cu_seqlens_k = (const int32_t *)(fake->memory + 64);
    assert_int_equal(attnc_launch(p, &a, NULL), 0);
    attnc_plan_release(p);
    p = prepare(c, "dtype=f16 lens_k=1", "batch=64");
    a = args_of(64, 64);
    a.lens_k = (const int32_t *)(fake->memory + 64);
    assert_int_equal(attnc_launch(p, &a, NULL), 0);
    attnc_plan_release(p);
    attnc_context_destroy(c);
}

static void what_the_driver_refuses_is_told(void **state) {
    (void)state;
    static const struct {
        int load, set, status;
        const char *log, *text;
    } rows[] = {
        {209, 0, ATTNC_E_MISSING, "",
         "load: driver: the driver (CUDA 12.4) refuses code of NVRTC "},
        {222, 0, ATTNC_E_MISSING, "Unsupported .version 9.0",
         "CUDA_ERROR_UNSUPPORTED_PTX_VERSION, Unsupported .version 9.0"},
        {2, 0, ATTNC_E_MEMORY, "",
         "load: cuLibraryLoadData: CUDA_ERROR_OUT_OF_MEMORY (2)"},
        {0, 1, ATTNC_E_REQUEST, "", "H200 refuses a block of "},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        attnc_plan *p = NULL;
        pretend_h200();
        attnc_context *c = open_context("cuda");
        fake->load_code = rows[i].load;
        fake->kernel_set_code = rows[i].set;
        strcpy(fake->jit_log, rows[i].log);
        attnc_spec s = ATTNC_SPEC_DEFAULT;
        s.dtype = ATTNC_F16;
        assert_int_equal(attnc_prepare(c, &s, NULL, &p), rows[i].status);
        if (!strstr(attnc_last_error()->text, rows[i].text))
            fail_msg("%s", attnc_last_error()->text);
        attnc_context_destroy(c);
        assert_true(fake->retained == 0 && fake->pushed == 0);
    }
}

static void a_failed_launch_is_told(void **state) {
    (void)state;
    pretend_h200();
    attnc_context *c = open_context("cuda");
    attnc_plan *p = prepare(c, "dtype=f16", "batch=64");
    attnc_args a = args_of(64, 64);
    fake->launch_code = 719;
    assert_int_equal(attnc_launch(p, &a, NULL), ATTNC_E_LAUNCH);
    assert_non_null(strstr(attnc_last_error()->text, "launch: attn_fwd_f16_d64"
                                                     "_none__sm_90a_"));
    attnc_plan_release(p);
    attnc_context_destroy(c);
}

/* Compiled, kept, and refused at launch: never run elsewhere. */
static void a_chip_that_is_not_here_is_compiled_for(void **state) {
    (void)state;
    pretend_h200();
    attnc_context *c = open_context("T4");
    attnc_plan *p = prepare(c, "dtype=f16", "batch=64");
    attnc_args a = args_of(64, 64);
    assert_int_equal(fake->loads, 0);
    assert_int_equal(attnc_launch(p, &a, NULL), ATTNC_E_MISSING);
    assert_string_equal(attnc_last_error()->text,
                        "launch: target: this machine has no GPU for this "
                        "kernel");
    attnc_plan_release(p);
    attnc_context_destroy(c);
    c = open_context("sm_90a"); /* which is here */
    p = prepare(c, "dtype=f16", "batch=64");
    assert_int_equal(fake->loads, 1);
    attnc_plan_release(p);
    attnc_context_destroy(c);
}

/* ---- the fake in place of the driver ------------------------------------ */

/* Builds it into a directory that the loader of a second run searches. */
static int run_with_fake(char **argv) {
    char dir[] = "/tmp/attnc-fake-XXXXXX", command[1024];
    const char *source = getenv("SOURCE");
    if (!source || !mkdtemp(dir))
        return 77;
    snprintf(command, sizeof command,
             "cc -shared -fPIC -o %s/libcuda.so.1 %s/tests/fake/cuda.c", dir,
             source);
    if (system(command) != 0)
        return 1;
    setenv("FAKE_DIR", dir, 1);
    setenv("LD_LIBRARY_PATH", dir, 1);
    pid_t child = fork();
    if (child == 0) {
        execv("/proc/self/exe", argv);
        _exit(1);
    }
    int status = 1;
    waitpid(child, &status, 0);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    if (system(command) != 0)
        return 1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_old_driver_is_told),
        cmocka_unit_test(a_driver_without_a_gpu_is_told),
        cmocka_unit_test(gpus_are_counted),
        cmocka_unit_test(a_known_chip_is_its_row_with_its_own_figures),
        cmocka_unit_test(a_chip_nobody_listed_is_described_by_a_like_one),
        cmocka_unit_test(a_chip_too_old_is_refused),
        cmocka_unit_test(a_launch_is_one_call_with_the_arguments),
        cmocka_unit_test(two_steps_are_two_launches_in_one_workspace),
        cmocka_unit_test(run_takes_its_workspace_in_the_streams_order),
        cmocka_unit_test(host_memory_is_refused),
        cmocka_unit_test(a_pointer_that_breaks_its_promise_is_refused),
        cmocka_unit_test(lengths_stay_on_the_gpu),
        cmocka_unit_test(what_the_driver_refuses_is_told),
        cmocka_unit_test(a_failed_launch_is_told),
        cmocka_unit_test(a_chip_that_is_not_here_is_compiled_for),
    };
    NvrtcInfo info;
    Str looked = {0};
    (void)argc;
    if (!getenv("FAKE_DIR"))
        return run_with_fake(argv);
    void *lib = dlopen("libcuda.so.1", RTLD_NOW);
    fake = lib ? dlsym(lib, "fake_cuda") : NULL;
    *(void **)&pretend_h200 = lib ? dlsym(lib, "fake_pretend_h200") : NULL;
    bool found = nvrtc_find(NULL, &info, &looked);
    str_free(&looked);
    if (!fake || !found) {
        printf("skipped: no %s\n", fake ? "NVRTC" : "fake driver");
        return 77;
    }
    return cmocka_run_group_tests(tests, make_templates, NULL);
}
