/* SPDX-License-Identifier: Apache-2.0
 * The cross product of features on emulated devices against f64. Cases are
 * drawn so that every two levels of any two features meet at least once; each
 * runs with late, eager and random copies under schedules of its own.
 * ATTNC_TEST_CASES=N: that many cases more (FULL: 600). ATTNC_TEST_ONLY=I: of
 * a seed's cases only number I, which a failure names. */
#include "emu/forward.h"

/* X(name, levels) */
#define FACTORS(X)                                                             \
    X(TARGET, 4)                                                               \
    X(DTYPE, 4)                                                                \
    X(DIM, 11)                                                                 \
    X(DIM_V, 2)                                                                \
    X(MASK, 4)                                                                 \
    X(VARLEN, 2)                                                               \
    X(LENS_K, 2)                                                               \
    X(GROUP, 3)                                                                \
    X(SOFTCAP, 2)                                                              \
    X(ALIBI, 2)                                                                \
    X(SINK, 2)                                                                 \
    X(DROPOUT, 2)                                                              \
    X(TILE, 4)                                                                 \
    X(PEEL, 2)                                                                 \
    X(PROMISE, 3)                                                              \
    X(HINT, 3)
enum factor {
#define X(name, levels) name,
    FACTORS(X)
#undef X
        FACTOR_COUNT
};
static const int levels[] = {
#define X(name, levels) levels,
    FACTORS(X)
#undef X
};
enum { MOST = 11, PER_PAIR = 60, RANDOM_MORE = 600 };

static const int dims[] = {16, 32, 40, 64, 72, 80, 96, 128, 160, 192, 256};
static const struct {
    int dtype, math;
} dtypes[] = {{ATTNC_F16, ATTNC_MATH_IEEE},
              {ATTNC_BF16, ATTNC_MATH_IEEE},
              {ATTNC_F32, ATTNC_MATH_IEEE},
              {ATTNC_F32, ATTNC_MATH_TF32}};
enum { TF32 = 3 };
enum { OWN_TILE, STAGES_2, STAGES_3, STAGES_4 };
enum { NO_PROMISE, ALIGNED, WHOLE };
enum { OWN_SIZES, LARGE, SPLIT };

/* ---- a covering set ---------------------------------------------------- */

typedef struct Draw {
    uint8_t level[FACTOR_COUNT];
    uint64_t seed; /* of all else */
} Draw;

static bool met[FACTOR_COUNT][MOST][FACTOR_COUNT][MOST];

/* sm_75 has no tf32: refused, and so no case. */
static bool possible(const Draw *d) {
    return !(d->level[TARGET] == OLD && d->level[DTYPE] == TF32);
}

static int fresh_pairs(const Draw *d, bool mark) {
    int n = 0;
    for (int f = 0; f < FACTOR_COUNT; f++)
        for (int g = f + 1; g < FACTOR_COUNT; g++) {
            bool *m = &met[f][d->level[f]][g][d->level[g]];
            n += !*m;
            *m |= mark;
        }
    return n;
}

/* The i-th pair that has not met yet, counted over all; false: all have. */
static bool find_open(int i, int at[4]) {
    for (int f = 0; f < FACTOR_COUNT; f++)
        for (int a = 0; a < levels[f]; a++)
            for (int g = f + 1; g < FACTOR_COUNT; g++)
                for (int b = 0; b < levels[g]; b++) {
                    if (met[f][a][g][b] || i-- > 0)
                        continue;
                    memcpy(at, (int[]){f, a, g, b}, 4 * sizeof *at);
                    return true;
                }
    return false;
}

static int count_open(void) {
    int n = 0, at[4];
    while (find_open(n, at))
        n++;
    return n;
}

static Draw draw(const int *pair) {
    Draw d;
    do {
        for (int f = 0; f < FACTOR_COUNT; f++)
            d.level[f] = (uint8_t)random_int(0, levels[f] - 1);
        if (pair) {
            d.level[pair[0]] = (uint8_t)pair[1];
            d.level[pair[2]] = (uint8_t)pair[3];
        }
    } while (!possible(&d));
    d.seed = random_bits() | 1;
    return d;
}

/* Of some draws with an open pair the one that meets most. */
static bool draw_next(Draw *out) {
    int open = count_open(), best = 0, pair[4];
    for (int i = 0; open && i < PER_PAIR; i++) {
        find_open((int)random_int(0, open - 1), pair);
        Draw d = draw(pair);
        int n = fresh_pairs(&d, false);
        if (n > best) {
            best = n;
            *out = d;
        }
    }
    if (open)
        fresh_pairs(out, true);
    return open > 0;
}

/* ---- from levels to a case --------------------------------------------- */

static void mask_numbers(Case *c) {
    attnc_spec *s = &c->spec;
    if (s->mask || s->alibi)
        c->mode = (int32_t)random_int(0, s->lens_k ? 2 : 1);
    if ((s->mask || s->alibi) && !c->mode)
        c->offset = random_int(0, 1) ? 0 : random_int(-20, 40);
    if (s->mask == ATTNC_MASK_WINDOW) {
        c->left = random_int(0, 4) ? random_int(0, 90) : INT64_MAX;
        c->right = random_int(0, 4) ? random_int(0, 40) : INT64_MAX;
    }
    if (s->mask == ATTNC_MASK_PREFIX)
        c->prefix = random_int(0, 80);
}

/* Less of what is wide. */
static void sizes(Case *c, const Draw *d) {
    int wide = dims[d->level[DIM]] > 128;
    c->kv_heads = random_int(1, wide ? 1 : 2);
    c->heads = c->kv_heads * (int64_t[]){1, 2, 3}[d->level[GROUP]];
    c->batch = random_int(1, 2 + c->spec.varlen);
    c->nq = wide ? PICK(1, 16, 33, 64) : PICK(0, 1, 5, 63, 64, 65, 100, 129);
    c->nk =
        wide ? PICK(1, 64, 65, 100) : PICK(0, 1, 7, 63, 64, 65, 100, 130, 200);
    c->layout = (int)random_int(0, LAYOUTS - 1);
    c->no_lse = random_int(0, 7) == 0;
    c->scale = random_int(0, 5) ? NAN : (float)PICK(-1, 0, 1) * 0.3f;
    if (d->level[PROMISE] == WHOLE && !c->spec.varlen) {
        c->nq = wide ? 64 : PICK(64, 128);
        c->nk = PICK(0, 64, 128);
    }
    /* Few scores rounded to tf32: their error is a matter of luck. */
    if (d->level[DTYPE] == TF32)
        c->nq += c->nq ? 8 : 0;
}

static Case case_drawn(const Draw *d) {
    const uint8_t *l = d->level;
    int dim = dims[l[DIM]];
    int dv = l[DIM_V] ? (int)PICK(8, 16, 24, 40, 64, 88, 136) : dim;
    Case c = case_of(dtypes[l[DTYPE]].dtype, dim, dv == dim ? 48 : dv, l[MASK]);
    attnc_spec *s = &c.spec;
    s->head_dim_v = l[DIM_V] ? s->head_dim_v : 0;
    s->f32_math = dtypes[l[DTYPE]].math;
    s->varlen = l[VARLEN];
    s->lens_k = l[LENS_K];
    s->softcap = l[SOFTCAP];
    s->alibi = l[ALIBI];
    s->sink = l[SINK];
    s->dropout = l[DROPOUT];
    s->batch_invariant = l[HINT] == SPLIT;
    mask_numbers(&c);
    sizes(&c, d);
    return c;
}

/* What the case keeps of promises, and hints of other sizes. */
static attnc_shape shape_drawn(const Draw *d, const Case *c) {
    attnc_shape h = shape_of(c);
    int bytes = dtype_bytes(c->spec.dtype);
    bool even = c->spec.head_dim * bytes % 16 == 0 &&
                case_dv(c) * bytes % 16 == 0 && c->layout < GAPS;
    if (d->level[PROMISE] == ALIGNED && even)
        h.align_q = h.align_k = h.align_v = h.align_o = PICK(4, 8, 16);
    if (d->level[PROMISE] == WHOLE && !c->spec.varlen) {
        h.mult_q = c->nq % 64 ? 1 : 64;
        h.mult_k = 64;
    }
    if (d->level[HINT] == LARGE) {
        h.batch = 16;
        h.seqlen_q = h.seqlen_k = 4096;
    }
    if (d->level[HINT] == SPLIT) {
        h.seqlen_q = 1;
        h.seqlen_k = 8192;
    }
    return h;
}

/* Any tile that may be legal; what is not gives way to the model's. */
static void tile_drawn(const Draw *d, char tile[160]) {
    bool old = d->level[TARGET] == OLD;
    int dtype = dtypes[d->level[DTYPE]].dtype, stages = 1 + d->level[TILE];
    bool fma = (dtype == ATTNC_F32 && d->level[DTYPE] != TF32) ||
               (dtype == ATTNC_BF16 && old);
    int warps = (int)PICK(1, 2, 4);
    int rows = fma ? (int)PICK(8, 16) : (int)PICK(16, 16, 32);
    int keys = fma ? (int)PICK(8, 16, 32) : (int)PICK(16, 32, 48, 64);
    int n = snprintf(tile, 160, "peel=%d", d->level[PEEL]);
    if (d->level[TILE] == OWN_TILE)
        return;
    n += snprintf(tile + n, 160 - (size_t)n,
                  ",block_q=%d,block_k=%d,warps=%d,rows=%d,stages=%d,"
                  "blocks=1",
                  rows * warps, keys, warps, rows, old ? 2 : stages);
    if (!fma)
        snprintf(tile + n, 160 - (size_t)n, ",q_regs=%d",
                 (int)random_int(0, 1));
}

/* ---- running ----------------------------------------------------------- */

static int current = -1; /* the case under way */
static int steps_seen[2];

/* Tiles are swizzled so that ldmatrix never meets a bank twice. */
static void check_ldmatrix(const Case *c, const EmuReport *r) {
    for (uint32_t line = 0; line < r->lines; line++) {
        const EmuCount *n = &r->count[line][EMU_COUNT_LDMATRIX];
        if (n->waves == n->ideal)
            continue;
        case_print(c);
        fail_msg("ldmatrix takes %llu cycles, %llu would do",
                 (unsigned long long)n->waves, (unsigned long long)n->ideal);
    }
}

static void run_once(const Case *c, attnc_plan *plan, int mode) {
    EmuReport reports[PLAN_STEPS] = {{.nfault = 0}};
    EmuConfig config = {.seed = random_bits(),
                        .async_mode = mode,
                        .race = true,
                        .count = mode == EMU_LATE,
                        .resident = (int)random_int(1, 3)};
    Data d;
    Err e = {0};
    data_make(c, &d);
    workspace_make(plan, &d);
    if (emulated_run(plan, &d.args, &config, reports, &e)) {
        case_print(c);
        fail_msg("launch, mode %d: %s", mode, e.text);
    }
    check_results(c, &d);
    check_kept(c, &d);
    for (int i = 0; i < plan->plan.nstep; i++) {
        check_ldmatrix(c, &reports[i]);
        emu_report_free(&reports[i]);
    }
    data_free(&d);
}

static void run_draw(const Draw *d, int number) {
    char tile[160];
    uint64_t saved = random_state;
    random_state = d->seed;
    current = number;
    Case c = case_drawn(d);
    attnc_shape h = shape_drawn(d, &c);
    tile_drawn(d, tile);
    attnc_plan *plan = prepare(&c, d->level[TARGET], tile, &h);
    steps_seen[plan->plan.nstep > 1]++;
    for (int mode = EMU_LATE; mode <= EMU_RANDOM; mode++)
        run_once(&c, plan, mode);
    attnc_plan_release(plan);
    current = -1;
    random_state = saved;
}

static bool wanted(int number) {
    const char *only = getenv("ATTNC_TEST_ONLY");
    return !only || atoi(only) == number;
}

static void every_two_features_work_together(void **state) {
    (void)state;
    Draw d;
    int n = 0;
    met[TARGET][OLD][DTYPE][TF32] = true; /* refused */
    for (; draw_next(&d); n++)
        if (wanted(n))
            run_draw(&d, n);
    print_message("%d cases, %d of them split\n", n, steps_seen[1]);
    assert_true(n < 120);
}

static void any_request_is_right(void **state) {
    (void)state;
    const char *more = getenv("ATTNC_TEST_CASES");
    int n = more ? atoi(more) : full() ? RANDOM_MORE : 0;
    for (int i = 1000; i < 1000 + n; i++) {
        Draw d = draw(NULL);
        if (wanted(i))
            run_draw(&d, i);
    }
}

static int tell(void **state) {
    (void)state;
    if (current >= 0)
        print_error("ATTNC_TEST_ONLY=%d repeats this case\n", current);
    current = -1;
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(every_two_features_work_together, tell),
        cmocka_unit_test_teardown(any_request_is_right, tell),
    };
    random_start();
    return can_emulate() ? cmocka_run_group_tests(tests, NULL, close_contexts)
                         : 77;
}
