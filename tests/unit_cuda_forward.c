/* SPDX-License-Identifier: Apache-2.0
 * Corners of the CUDA kernels, on emulated devices against f64: splits, keys
 * that nobody sees, numbers that are none, lists out of range; what a tile
 * costs; and that a fault in a template is told with its line. */
#include "emu/forward.h"

#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- splits, many heads --------------------------------------------- */

static void splits_are_merged(void **state) {
    (void)state;
    for (int i = 0; i < 6; i++) {
        Case c =
            simple((int)PICK(ATTNC_F16, ATTNC_F32), 40, 3, PICK(1500, 2100));
        c.spec.batch_invariant = 1; /* splits whenever the rows are few */
        c.heads = 4;
        c.kv_heads = PICK(1, 2);
        c.batch = 2;
        c.spec.mask = (int32_t)PICK(ATTNC_MASK_NONE, ATTNC_MASK_CAUSAL);
        c.mode = c.spec.mask ? ATTNC_OFFSET_BR : 0;
        c.spec.lens_k = i % 2;
        c.spec.sink = i / 2 % 2;
        attnc_plan *plan = prepare(&c, i % TARGETS, NULL, NULL);
        assert_int_equal(plan->plan.nstep, 2);
        case_check(&c, plan);
        attnc_plan_release(plan);
    }
}

static void more_heads_than_a_grid_is_high(void **state) {
    (void)state;
    Case c = simple(ATTNC_F16, 8, 1, 2);
    c.batch = full() ? 70000 : 700;
    check(&c, 1, "block_q=16,block_k=16,warps=1,rows=16", NULL, 1);
}

/* ---- keys that nobody sees ------------------------------------------ */

/* With the promise of whole tiles loads have no bounds: where there is no key
 * to see nothing may be loaded at all. */
static void no_tile_is_loaded_where_no_key_is_seen(void **state) {
    (void)state;
    static const char *const tiles[] = {
        "stages=2,q_regs=0", "stages=2,q_regs=1", "stages=3,q_regs=0",
        "stages=4,q_regs=0", "stages=4,q_regs=1"};
    for (int i = 0; i < 10; i++) {
        Case c = simple(ATTNC_F16, 16, 128, i % 3 ? 128 : 0);
        attnc_shape h = shape_of(&c);
        char tile[96];
        h.mult_k = 128;
        c.spec.mask = i % 2 ? ATTNC_MASK_CAUSAL : ATTNC_MASK_WINDOW;
        c.offset = i % 2 ? -500 : 500;
        snprintf(tile, sizeof tile, "block_q=64,block_k=32,warps=4,rows=16,%s",
                 tiles[i / 2]);
        check(&c, 1, tile, &h, 3);
    }
    Case old = simple(ATTNC_F16, 16, 128, 128);
    attnc_shape h = shape_of(&old);
    h.mult_k = 128;
    old.spec.mask = ATTNC_MASK_CAUSAL;
    old.offset = -500;
    check(&old, OLD, NULL, &h, 3);
    old.spec.dtype = ATTNC_F32;
    check(&old, OLD, NULL, &h, 1);
}

/* V of a masked key may hold anything; that of a seen one does what it must. */
static void infinities_reach_only_who_sees_them(void **state) {
    (void)state;
    for (int i = 0; i < 8; i++) {
        Case c =
            simple((int)PICK(ATTNC_F16, ATTNC_BF16, ATTNC_F32), 40, 100, 100);
        Data d;
        c.spec.mask = (int32_t)PICK(ATTNC_MASK_CAUSAL, ATTNC_MASK_WINDOW);
        c.left = c.spec.mask == ATTNC_MASK_WINDOW ? 20 : 0;
        c.spec.dtype = i % TARGETS ? c.spec.dtype : ATTNC_F16;
        attnc_plan *plan = prepare(&c, i % TARGETS, NULL, NULL);
        data_make(&c, &d);
        for (int n = 0; n < 4; n++) {
            char *row = element(&c, &d.args.v, 0, 0, random_int(0, 99));
            int column = (int)random_int(0, 39) * dtype_bytes(c.spec.dtype);
            put(c.spec.dtype, row + column,
                (float[]){INFINITY, -INFINITY, NAN}[n % 3]);
        }
        memcpy(d.v.kept, d.v.base, d.v.bytes);
        case_launch(&c, plan, &d);
        check_results(&c, &d);
        check_kept(&c, &d);
        data_free(&d);
        attnc_plan_release(plan);
    }
}

/* ---- lists out of range ---------------------------------------------- */

/* A launch whose lists nobody has read, as on a GPU: every tensor is told to
 * the device as it is, and nothing else. */
static void launch_unread(attnc_plan *plan, Data *d, int mode) {
    const Kernel *k = &plan->module->kernel;
    const Plan *p = &plan->plan;
    const attnc_args *a = &d->args;
    int64_t dims[DIM_COUNT];
    Layout layout;
    Err err = {0};
    workspace_make(plan, d);
    assert_int_equal(dims_fill(p, a, dims, &err), 0);
    assert_int_equal(layout_make(p, dims, 0, &layout, &err), 0);
    for (int i = 0; i < p->nstep; i++) {
        const Step *s = &p->step[i];
        const Block *blocks[] = {&d->q, &d->k,   &d->v,
                                 &d->o, &d->lse, &d->workspace};
        EmuConfig config = {.seed = random_bits(), mode, .race = true};
        uint64_t slots[STEP_PARAMS];
        EmuReport r = {0};
        Emu *e = emu_create();
        for (int b = 0; b < 6; b++)
            emu_buffer(e, blocks[b]->base + GUARD,
                       blocks[b]->bytes - GUARD - (b > 2 ? GUARD : 0), "tensor",
                       b > 2 ? EMU_WRITE : EMU_READ);
        const void *lists[] = {a->lens_k, a->cu_seqlens_q, a->cu_seqlens_k};
        for (int l = 0; l < 3; l++)
            if (lists[l])
                emu_buffer(e, lists[l], (size_t)(a->batch + (l > 0)) * 4,
                           "list", EMU_READ);
        for (int n = 0; n < s->nparam; n++)
            slots[n] = slot_value(p, &s->param[n], a, &layout);
        int64_t blocks_x = extent_size(&s->grid, dims);
        assert_int_equal(emu_launch(e, &config,
                                    (EmuEntry)(uintptr_t)k->entry[i], slots,
                                    (EmuDim){(uint32_t)blocks_x, 1, 1},
                                    (EmuDim){(uint32_t)s->threads, 1, 1},
                                    (uint32_t)s->smem_bytes, &r),
                         0);
        if (r.faults)
            fail_msg("%s: %s", emu_fault_sentence(r.fault[0].kind),
                     r.fault[0].text);
        emu_report_free(&r);
        emu_destroy(e);
    }
}

/* Launches with lists that are out of range, and holds the results against
 * those of the lists in range nearest to them. */
static void check_clamped(const Case *c, int target, Data *d,
                          const int32_t *bad[3]) {
    int32_t *lists[] = {d->lens_k, d->cu_q, d->cu_k};
    attnc_args *a = &d->args;
    attnc_plan *plan = prepare(c, target, NULL, NULL);
    a->lens_k = bad[0];
    a->cu_seqlens_q = bad[1];
    a->cu_seqlens_k = bad[2];
    launch_unread(plan, d, target % 3);
    a->lens_k = lists[0];
    a->cu_seqlens_q = lists[1];
    a->cu_seqlens_k = lists[2];
    check_results(c, d);
    check_kept(c, d);
    attnc_plan_release(plan);
    data_free(d);
}

/* Of one split and of many. */
static void key_lengths_out_of_range_are_the_nearest_in_it(void **state) {
    (void)state;
    for (int i = 0; i < TARGETS; i++) {
        Case c = simple(ATTNC_F16, 40, i % 2 ? 3 : 40, i % 2 ? 1500 : 70);
        const int32_t good[] = {0, (int32_t)c.nk, 33};
        const int32_t bad[] = {-5, (int32_t)c.nk + 100, 33};
        Data d;
        c.batch = 3;
        c.spec.lens_k = 1;
        c.spec.batch_invariant = i % 2;
        c.spec.mask = i / 2 ? ATTNC_MASK_CAUSAL : ATTNC_MASK_NONE;
        c.mode = i / 2 ? ATTNC_OFFSET_LEN : 0;
        data_make(&c, &d);
        memcpy(d.lens_k, good, sizeof good);
        fill(&c, &d.k, &d.args.k, 1, NULL, c.nk, 40, d.lens_k);
        fill(&c, &d.v, &d.args.v, 1, NULL, c.nk, 40, d.lens_k);
        check_clamped(&c, i, &d, (const int32_t *[]){bad, NULL, NULL});
    }
}

static void sequences_out_of_range_are_the_nearest_in_it(void **state) {
    (void)state;
    static const int32_t good_q[][3] = {{0, 10, 20}, {0, 10, 10}};
    static const int32_t bad_q[][3] = {{0, 10, 50}, {0, 10, 5}};
    static const int32_t good_k[][3] = {{0, 20, 20}, {0, 20, 40}};
    static const int32_t bad_k[][3] = {{0, 20, 10}, {0, 20, 90}};
    for (int i = 0; i < 2 * TARGETS; i++) {
        Case c = simple(ATTNC_F16, 40, 10, 20);
        const int32_t *q = good_q[i % 2], *k = good_k[i % 2];
        int32_t rows_q[] = {q[1], q[2] - q[1]}, rows_k[] = {k[1], k[2] - k[1]};
        Data d;
        c.batch = c.heads = 2;
        c.spec.varlen = 1;
        c.rows_q = rows_q;
        c.rows_k = rows_k;
        c.spec.mask = (int32_t)PICK(ATTNC_MASK_NONE, ATTNC_MASK_CAUSAL);
        c.mode = c.spec.mask ? ATTNC_OFFSET_BR : 0;
        data_make(&c, &d);
        check_clamped(&c, i / 2, &d,
                      (const int32_t *[]){NULL, bad_q[i % 2], bad_k[i % 2]});
    }
}

/* ---- many at once ------------------------------------------------------ */

static int mappings(void) {
    FILE *f = fopen("/proc/self/maps", "re");
    int n = 0;
    assert_non_null(f);
    for (int c; (c = fgetc(f)) != EOF;)
        n += c == '\n';
    fclose(f);
    return n;
}

/* A context may remember more modules than a process could keep stacks for. */
static void a_launch_leaves_no_stacks_behind(void **state) {
    (void)state;
    Case c = simple(ATTNC_F16, 16, 64, 64);
    attnc_plan *plan = prepare(&c, 1, NULL, NULL);
    int before = mappings();
    case_check(&c, plan);
    assert_true(mappings() < before + 32);
    attnc_plan_release(plan);
}

typedef struct Launcher {
    attnc_plan *plan;
    Data data;
    int rc;
} Launcher;

static void *launch_often(void *user) {
    Launcher *l = user;
    for (int i = 0; i < 6 && !l->rc; i++)
        l->rc = attnc_launch(l->plan, &l->data.args, NULL);
    return NULL;
}

static void threads_launch_one_plan_at_once(void **state) {
    (void)state;
    Case c = simple(ATTNC_F16, 16, 100, 100);
    attnc_plan *plan = prepare(&c, 1, NULL, NULL);
    Launcher l[3];
    pthread_t thread[3];
    for (int i = 0; i < 3; i++) {
        l[i] = (Launcher){.plan = plan};
        data_make(&c, &l[i].data);
        workspace_make(plan, &l[i].data);
    }
    for (int i = 0; i < 3; i++)
        pthread_create(&thread[i], NULL, launch_often, &l[i]);
    for (int i = 0; i < 3; i++) {
        pthread_join(thread[i], NULL);
        assert_int_equal(l[i].rc, 0);
        check_results(&c, &l[i].data);
        data_free(&l[i].data);
    }
    attnc_plan_release(plan);
}

/* ---- costs ---------------------------------------------------------- */

static EmuReport count_launch(const Case *c, attnc_plan *plan) {
    Data d;
    EmuReport r[PLAN_STEPS] = {{.nfault = 0}};
    EmuConfig config = {.race = true, .count = true};
    Err e = {0};
    assert_int_equal(plan->plan.nstep, 1);
    data_make(c, &d);
    workspace_make(plan, &d);
    if (emulated_run(plan, &d.args, &config, r, &e))
        fail_msg("%s", e.text);
    data_free(&d);
    return r[0];
}

/* Every access of shared memory takes the fewest cycles it can. */
static void check_waves(attnc_plan *plan, const EmuReport *r) {
    EmuPlaces places;
    emulated_places(plan->ctx, &plan->plan, &places);
    for (uint32_t line = 0; line < r->lines; line++)
        for (int class = 0; class < EMU_CLASSES; class ++) {
            const EmuCount *n = &r->count[line][class];
            int at;
            if (n->waves <= n->ideal)
                continue;
            const char *name = emulated_place(&places, line, &at);
            fail_msg("%s:%d (%s): %llu cycles, %llu would do", name, at,
                     emu_class_name(class), (unsigned long long)n->waves,
                     (unsigned long long)n->ideal);
        }
    emulated_places_free(&places);
}

static double dram_of(const EmuReport *r) {
    double bytes = 0;
    for (uint32_t line = 0; line < r->lines; line++)
        for (int class = 0; class < EMU_CLASSES; class ++)
            bytes += (double)r->count[line][class].dram_bytes;
    return bytes;
}

/* No bank conflict, and DRAM as the IO model has it: each tensor once. */
static void tiles_meet_no_bank_twice(void **state) {
    (void)state;
    static const int dims[] = {64, 80, 96, 128, 64, 128};
    for (int i = 0; i < 6; i++) {
        Case c = simple(i < 4 ? ATTNC_F16 : ATTNC_F32, dims[i], 128, 256);
        attnc_shape h = shape_of(&c);
        c.spec.f32_math = i < 4 ? ATTNC_MATH_IEEE : ATTNC_MATH_TF32;
        h.align_q = h.align_k = h.align_v = h.align_o = 16;
        c.spec.mask = i % 2 ? ATTNC_MASK_CAUSAL : ATTNC_MASK_NONE;
        c.mode = i % 2 ? ATTNC_OFFSET_BR : 0;
        attnc_plan *plan = prepare(&c, i < 4 ? i : 1,
                                   "block_q=64,block_k=64,warps=4,rows=16", &h);
        EmuReport r = count_launch(&c, plan);
        double model = plan->plan.step[0].fig.dram_bytes;
        check_waves(plan, &r);
        assert_true(fabs(dram_of(&r) - model) < 0.02 * model);
        emu_report_free(&r);
        attnc_plan_release(plan);
    }
}

/* ---- faults --------------------------------------------------------- */

/* Writes all templates to a directory, one text in one of them replaced. */
static void write_templates(const char *dir, const char *name, const char *from,
                            const char *to) {
    for (size_t i = 0; i < attnc_templates.count; i++) {
        const Template *t = &attnc_templates.t[i];
        char path[512];
        snprintf(path, sizeof path, "%s/%s", dir, t->name);
        for (char *p = path + strlen(dir) + 1; (p = strchr(p, '/')); *p++ = '/')
            *p = 0, mkdir(path, 0700);
        FILE *f = fopen(path, "we");
        assert_non_null(f);
        const char *at = strcmp(t->name, name) ? NULL : strstr(t->text, from);
        if (at) {
            fwrite(t->text, 1, (size_t)(at - t->text), f);
            fputs(to, f);
            at += strlen(from);
        } else {
            if (!strcmp(t->name, name))
                fail_msg("%s has no '%s': renew the plant", name, from);
            at = t->text;
        }
        fwrite(at, 1, t->len - (size_t)(at - t->text), f);
        fclose(f);
    }
}

typedef struct Plant {
    const char *template, *from, *to;
    const char *place, *fault; /* NULL: only the values are wrong */
} Plant;

static bool values_are_right(const Case *c, const Data *d) {
    RefCheck r;
    Err e = {0};
    assert_int_equal(reference_check(&c->spec, &d->args, 1, NULL, NULL, &r, &e),
                     0);
    return r.ok;
}

static bool names_a_line_of_the_module(const char *text) {
    for (; (text = strstr(text, "line ")); text++)
        if (text[5] >= '0' && text[5] <= '9')
            return true;
    return false;
}

/* The launch fails, and says where in the templates, and why. */
static void check_told(attnc_context *context, const Plant *plant) {
    attnc_plan *plan = NULL;
    attnc_prepare_options pins = {
        sizeof pins, "block_q=64,block_k=64,warps=4,rows=16,stages=2"};
    Case c = simple(ATTNC_F16, 64, 100, 100);
    attnc_shape h = shape_of(&c);
    Data d;
    h.align_q = h.align_k = h.align_v = h.align_o = 16;
    if (attnc_prepare_with(context, &c.spec, &h, &pins, &plan))
        fail_msg("%s", attnc_last_error()->text);
    data_make(&c, &d);
    workspace_make(plan, &d);
    int rc = attnc_launch(plan, &d.args, NULL);
    const char *text = rc ? attnc_last_error()->text : "no fault";
    if (!plant->fault && (rc || values_are_right(&c, &d)))
        fail_msg("%s: right, or %s", plant->template, text);
    if (plant->fault &&
        (rc != ATTNC_E_LAUNCH || !strstr(text, plant->place) ||
         !strstr(text, plant->fault) || names_a_line_of_the_module(text)))
        fail_msg("%s: %s", plant->template, text);
    data_free(&d);
    attnc_plan_release(plan);
}

static void a_fault_in_a_template_is_named_with_its_line(void **state) {
    (void)state;
    static const Plant plants[] = {
        {"cuda/stage/pipeline_1_1.cu.in", "    team_sync();\n", "",
         "cuda/stage/", "not ordered"},
        {"cuda/stage/pipeline_1_1.cu.in", "    WAIT(0);\n    meet_v",
         "    meet_v", "cuda/stage/pv.cu.in", "asynchronous copy"},
        {"cuda/stage/store.cu.in", "(i32)row < w->count", "1", "cuda/stage/",
         "out of bounds"},
        {"cuda/stage/chunk_source.cu.in", "lo + (i32)row < w->k_hi", "1",
         "cuda/stage/copy.cu.in", "out of bounds"},
        {"cuda/stage/place_of.cu.in", "(c ^ (row & 7)) * 16",
         "(c ^ (row + 1 & 7)) * 16", NULL, NULL},
        {"cuda/stage/pv.cu.in", "ldmatrix_x4_trans", "ldmatrix_x4", NULL, NULL},
        {"cuda/stage/keep.cu.in", "at < end", "at <= end", NULL, NULL},
    };
    for (size_t i = 0; i < sizeof plants / sizeof *plants; i++) {
        char dir[] = "/tmp/attnc-templates-XXXXXX", clean[80];
        attnc_options o = ATTNC_OPTIONS_INIT;
        attnc_context *c = NULL;
        assert_non_null(mkdtemp(dir));
        write_templates(dir, plants[i].template, plants[i].from, plants[i].to);
        o.target = "emu:sm_80";
        o.templates_dir = dir;
        o.cache_dir = "";
        assert_int_equal(attnc_context_create(&o, &c), 0);
        check_told(c, &plants[i]);
        attnc_context_destroy(c);
        snprintf(clean, sizeof clean, "rm -r %s", dir);
        assert_int_equal(system(clean), 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(splits_are_merged),
        cmocka_unit_test(more_heads_than_a_grid_is_high),
        cmocka_unit_test(no_tile_is_loaded_where_no_key_is_seen),
        cmocka_unit_test(infinities_reach_only_who_sees_them),
        cmocka_unit_test(key_lengths_out_of_range_are_the_nearest_in_it),
        cmocka_unit_test(sequences_out_of_range_are_the_nearest_in_it),
        cmocka_unit_test(a_launch_leaves_no_stacks_behind),
        cmocka_unit_test(threads_launch_one_plan_at_once),
        cmocka_unit_test(tiles_meet_no_bank_twice),
        cmocka_unit_test(a_fault_in_a_template_is_named_with_its_line),
    };
    random_start();
    return can_emulate() ? cmocka_run_group_tests(tests, NULL, close_contexts)
                         : 77;
}
