/* SPDX-License-Identifier: Apache-2.0
 * The one internal header of the command: options -> request -> inputs ->
 * what a verb does with them. Nothing is printed before a verb succeeded:
 * verbs add to `out`, main.c prints it. */
#ifndef ATTNC_COMMAND_H
#define ATTNC_COMMAND_H

#include <jansson.h>

#include "attnc.h"
#include "gen.h"
#include "npy.h"
#include "pattern.h"
#include "program.h"
#include "reference.h"
#include "runtime.h"

/* ---- options.c --------------------------------------------------------- */

/* X(name, later, doc): bits, table and --help. */
#define VERB_LIST(X)                                                           \
    X(run, 0, "compute: prepare, launch, time, check, write the results")      \
    X(explain, 0, "the plan and why: tiles ranked by the IO model")            \
    X(emit, 0, "write the sources, objects and a manifest")                    \
    X(devices, 0, "chips known and found, compilers found")                    \
    X(cache, 0, "the kernel cache: ls, stat, verify, prune, clear")            \
    X(tune, 1, "measure tiles")                                                \
    X(bench, 1, "benchmarks")                                                  \
    X(build, 1, "bundles of kernels")
/* clang-format off */
enum verb {
#define X(name, later, doc) VERB_##name,
    VERB_LIST(X)
#undef X
    VERB_COUNT
};
/* clang-format on */

enum option_kind { FIELD, TEXT, MAYBE, FLAG, LIST };
enum option_verbs {
    RUN = 1 << VERB_run,
    EXPLAIN = 1 << VERB_explain,
    EMIT = 1 << VERB_emit,
    CACHE = 1 << VERB_cache,
    COMMON = RUN | EXPLAIN | EMIT,
    EVERY = COMMON | 1 << VERB_devices | CACHE,
};

#define GROUP(title)
#define OPTION(id, kind, argument, verbs, doc) OPT_##id,
enum option_id {
#include "options.def"
    OPT_COUNT
};
#undef GROUP
#undef OPTION

typedef struct Option {
    const char *id; /* as in the table and in Lua: head_dim */
    char flag[20];  /* as on the line: head-dim */
    int kind;
    const char *argument;
    unsigned verbs;
    const char *doc, *group;
} Option;

/* A value that was given: its text, and "--mask" or "f.lua: mask". */
typedef struct Given {
    const char *text; /* NULL: not given; a FLAG: "" */
    char where[80];
} Given;

typedef struct Options {
    int verb;
    bool help;
    Given given[OPT_COUNT];
    const char *word[2]; /* what is not an option, e.g. cache's `ls` */
    int nword;
    Str lua;                    /* owns the values of a Lua spec file */
    Given tensor[SPEC_TENSORS]; /* "NAME=FILE" each */
    int ntensor;
} Options;

const Option *option_at(int id);
const char *verb_name(int verb);
const char *verb_doc(int verb);
/* Is it known and not there yet? */
bool verb_later(int verb);
/* argv[0] is the verb. Unknown and refused options: ERR_REQUEST. */
int options_parse(int verb, int argc, char **argv, Options *o, Err *e);
void options_free(Options *o);
/* Sets option `id`, met at `where`, or refuses it. */
int option_give(Options *o, int id, const char *text, const char *where,
                Err *e);
/* ERR_REQUEST "WHERE TEXT: ..." about a given option. */
int option_bad(const Options *o, int id, Err *e, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* Whole number lo..hi of a given option; *out untouched if not given. */
int option_int(const Options *o, int id, int64_t lo, int64_t hi, int64_t *out,
               Err *e);

/* ---- help.c ------------------------------------------------------------ */

void help_overview(Str *out);
void help_verb(int verb, Str *out);

/* ---- luaspec.c --------------------------------------------------------- */

/* Evaluates a Lua spec file in a limited child process and gives its fields
 * to *o. */
int luaspec_read(const char *path, Options *o, Err *e);

/* ---- problem.c --------------------------------------------------------- */

/* clang-format off */
#define SIZE_LIST(X)                                                           \
    X(batch) X(heads) X(kv_heads) X(seqlen_q) X(seqlen_k) X(head_dim)          \
    X(head_dim_v) X(total_q) X(total_k)
enum size_id {
#define X(name) SIZE_##name,
    SIZE_LIST(X)
#undef X
    SIZE_COUNT
};
/* clang-format on */

/* A size and who said so first. */
typedef struct Size {
    int64_t n;
    char from[80]; /* "": not known yet */
} Size;

enum layout { BHND, BNHD, PACKED };
enum tensor {
    TENSOR_q,
    TENSOR_k,
    TENSOR_v,
    TENSOR_o,
    TENSOR_dout, /* from here on only with a backward */
    TENSOR_dq,
    TENSOR_dk,
    TENSOR_dv,
    TENSORS
};
/* Files that may be given: tensors and per-head vectors. */
enum file {
    FILE_q,
    FILE_k,
    FILE_v,
    FILE_dout,
    FILE_sink,
    FILE_alibi,
    FILE_bias,
    FILES
};

/* What is asked for, whole and checked. */
typedef struct Problem {
    attnc_spec spec; /* of a run with both passes: the backward's */
    bool both;       /* --pass fwd+bwd */
    attnc_shape shape;
    Size size[SIZE_COUNT];
    int layout;
    int32_t *lens_k, *cu_q, *cu_k; /* NULL: not given */
    int64_t left, right, prefix, offset;
    int offset_mode;
    double scale, softcap; /* scale NaN: the default */
    double dropout_p;
    uint64_t dropout_seed, dropout_offset;
    uint64_t seed;   /* of random inputs */
    int threads;     /* 0: the default */
    Npy file[FILES]; /* fd -1: not given */
    struct {
        ProgramTensor is;
        Npy file;
    } tensor[SPEC_TENSORS]; /* files that programs read */
    int ntensor;
    Pattern pattern; /* of spec.sparsity; without lengths */
    Npy lists[2];    /* of bsr: indptr, indices */
    char *list_path; /* of the first */
    int32_t *pattern_at, *pattern_index;
} Problem;

int problem_make(const Options *o, Problem *p, Err *e);
void problem_free(Problem *p);
/* Axes of a tensor in memory order, as size ids; returns its rank. */
int problem_axes(const Problem *p, int tensor, int axes[4]);
int64_t problem_count(const Problem *p, int tensor); /* elements */
/* How many of enum tensor there are. */
int problem_tensors(const Problem *p);
/* Sizes, lists and mask numbers; no pointers to tensors. */
void problem_args(const Problem *p, attnc_args *a);
/* Visible (query, key) pairs over batch and query heads; exact below 2^53. */
double problem_pairs(const Problem *p);
/* "causal:br", or "window:128,0,br": the mask with its numbers. */
void problem_mask_text(const Problem *p, Str *out);

/* Rows and keys of an entry or sequence. */
void problem_lengths(const Problem *p, int64_t b, int64_t *nq, int64_t *nk);
/* Says that size `id` is n; a fault if another number was said before. */
int problem_meet(Problem *p, int id, int64_t n, const char *from, Err *e);

/* ---- programs.c -------------------------------------------------------- */

/* Opens the files of --tensor and --bias and of a bsr pattern. */
int programs_open(const Options *o, Problem *p, Err *e);
/* "expr:" -> spec.mask_program. */
int programs_mask(const Options *o, const char *text, Problem *p, Err *e);
/* --score, --bias, --sparsity -> the spec. */
int programs_parse(const Options *o, Problem *p, Err *e);
/* Of a spec that is whole: every tensor has its file and every file is read
 * (a run; else what is missing is no fault). Sets tensor_grads. */
int programs_finish(const Options *o, Problem *p, Err *e);
/* ERR_REQUEST if a tensor that an expression reads was not given. */
int programs_missing(const Problem *p, Err *e);
/* Which of p->tensor has that name; -1: none. */
int problem_tensor_file(const Problem *p, const char *name);

/* ---- tensors.c --------------------------------------------------------- */

/* What programs read, in host memory. */
typedef struct Tensors {
    attnc_array of[SPEC_TENSORS];    /* with gradients that are asked for */
    attnc_array plain[SPEC_TENSORS]; /* without them, for a forward */
    char name[SPEC_TENSORS][PROGRAM_NAME];
    int count;
    bool missing; /* one was not given */
} Tensors;

int tensors_make(Problem *p, Tensors *t, Err *e);
void tensors_free(Tensors *t);
/* Reads the lists of --sparsity bsr: into p->pattern. */
int pattern_read_lists(Problem *p, Err *e);

/* ---- mask.c ------------------------------------------------------------ */

/* "window:128,0,br" -> spec.mask and the numbers. */
int mask_parse(const Options *o, Problem *p, Err *e);

/* ---- inputs.c ---------------------------------------------------------- */

/* Host memory of a run: inputs read or random, outputs full of NaN. */
typedef struct Inputs {
    void *data[TENSORS];
    float *lse, *sink, *slopes, *dsink;
    int64_t lse_count;
    Tensors tensors;
} Inputs;

int inputs_make(Problem *p, Inputs *in, attnc_args *a, Err *e);
void inputs_free(Inputs *in);

/* ---- blocks.c: what a query sees, for explain --------------------------- */

typedef struct BlockStory {
    bool drawn;    /* else tensors are missing, or nothing was asked for */
    int64_t entry; /* the batch entry drawn */
    int64_t head, side;
    BlockList map; /* of the head, of the entry */
    double pairs;  /* share of the pairs seen; < 0: not counted */
    int64_t item_q, tile_q, tile_k; /* queries of a work item; of a tile */
    int64_t full, partial, skipped; /* tiles, of all heads and entries */
    int64_t split_k;                /* keys of an item; 0: all */
    double *load;                   /* tiles of each item of what differs */
    int64_t items, times;           /* so many; how often they come */
    double balance; /* the longest item over the mean of those that see */
    double wait;    /* when the last core is done over an even share */
    double speedup;
} BlockStory;

/* Is there something to draw, or was it asked for? */
bool blocks_asked(const Options *o, const Problem *p);
/* Free with blocks_drop. */
int blocks_tell(const Options *o, Problem *p, const Plan *plan, BlockStory *x,
                Err *e);
void blocks_drop(BlockStory *x);
void blocks_text(const BlockStory *x, Str *out);
/* map: its lines, too. */
json_t *blocks_json(const BlockStory *x, bool map);
int blocks_picture(const char *path, const BlockStory *x, Err *e);

/* ---- schedule.c -------------------------------------------------------- */

/* When the last of the cores is done with `times` times these items. Those
 * that take `clearly` or longer start first, the longest foremost, the others
 * from the last down. 0: no memory. */
double schedule_last(const double *load, int64_t n, int64_t times, int cores,
                     double clearly);

/* ---- outdir.c: files that appear whole or not at all ------------------- */

typedef struct OutFile {
    char *path, *temp;
    int fd;
} OutFile;

/* Makes `dir` if missing and proves that files can be made in it. */
int outdir_check(const char *dir, Err *e);
int outfile_open(const char *dir, const char *name, OutFile *f, Err *e);
int outfile_write(OutFile *f, const void *data, size_t len, Err *e);
/* "DIR/NAME" */
int outfile_beside(const char *path, OutFile *f, Err *e);
/* Publishes n files that were written; none if the system fails before the
 * first rename. Drops them all on failure. */
int outfile_publish(OutFile *f, int n, Err *e);
void outfile_drop(OutFile *f);

/* ---- session.c: what the library is asked through ----------------------- */

/* A context made of the options and the environment, for a device that this
 * machine can run. */
int session_open(const Options *o, int threads, attnc_context **out, Err *e);
/* The device of --target and the cache's directory, without a context. */
int session_device(const Options *o, Device *out, Err *e);
/* The cache at its usual place. */
int session_cache(Cache **out, Err *e);
/* The compiler that would be used; false: none. */
bool session_compiler(Compiler *out);
/* Where NVRTC is looked for first: ATTNC_CUDA_DIRS, then the packages of a
 * Python environment that is active. Free it; NULL: nowhere. */
char *session_cuda_dirs(void);
/* The embedded templates, or those ATTNC_TEMPLATES names. */
int session_templates(const Templates **out, Err *e);
/* The library's last error -> *e. A compiler's log is kept in a file. */
int session_error(Err *e);
/* Keeps `log` in a file and adds "WHAT kept in FILE" to e->text. */
void session_keep_log(const char *log, const char *what, Err *e);
/* Warnings of the library, one per line, to be printed in the end. */
extern Str session_warnings;

/* ---- json.c ------------------------------------------------------------ */

json_t *json_number(double x); /* null when not finite */
json_t *json_count(double n);  /* an integer as long as that is exact */
json_t *json_text(const char *text);
json_t *json_spec(const attnc_spec *s);
json_t *json_shape(const attnc_shape *s);
json_t *json_device(const Device *d);
json_t *json_tile(const Tile *t);
/* {"role", "tile", "cache", "compile_ms", "model"} of a prepared step. */
json_t *json_step(const Step *s, const char *cache, double compile_ms);
json_t *json_figures(const Figures *f); /* all that the model says */
/* One line to *out; takes the object. */
int json_finish(json_t *object, Str *out, Err *e);

/* ---- text.c: numbers for people ---------------------------------------- */

typedef struct Text {
    char s[48];
} Text;
Text text_bytes(double bytes); /* "1.5 MiB" */
Text text_count(double n);     /* "4.29 G" */
Text text_ms(double ms);       /* "12.1 ms", "350 us", "2.10 s" */
/* Replaces what a terminal or JSON would not take as text by `?`. */
void text_clean(char *line);
/* "f32, 1 x 8 heads x 4096 x 64, causal:br" */
void text_problem(const Problem *p, Str *out);
/* "AMD EPYC 7B13 (avx2, 2 cores)" */
/* "cpu", "cuda" or "emulated". */
const char *text_target(const Device *d);
void text_device(const Device *d, Str *out);
void text_tile(const Tile *t, Str *out);

/* ---- progress.c -------------------------------------------------------- */

/* A line on stderr that shows how far long work is; nothing unless stderr is
 * a terminal. done: 0..1; 1 wipes the line. */
void progress_show(const char *what, double done);

/* ---- run.c, report.c --------------------------------------------------- */

/* A run, from its problem to its figures. */
typedef struct Run {
    Problem problem;
    Inputs in;
    attnc_args args;   /* in the host's memory */
    attnc_args device; /* the same in the device's, if it has its own */
    Tensors device_tensors;
    attnc_context *ctx;
    attnc_plan *plan; /* of the last pass: the one that is asked for */
    attnc_plan_info info;
    attnc_plan *first; /* of a run with a backward: the forward */
    attnc_plan_info first_info;
    double *ms; /* each timed launch; then in ascending order */
    int64_t runs;
    double gflops;
    struct EmuReport *emu; /* of each step; NULL: not asked for */
    bool checked;
    RefCheck check;
} Run;

/* ---- emu_report.c: what an emulated device counted ---------------------- */

/* Refuses --emu-report where no emulated device is the target. */
int emu_report_check(const Options *o, const Run *r, Err *e);
/* A launch that is counted. */
int emu_report_launch(Run *r, Err *e);
int emu_report_text(const Run *r, Str *out, Err *e);
/* {"mma_flops", "waves", "ideal", "dram_bytes", "lines"} of step i. */
json_t *emu_report_json(const Run *r, int i);
void emu_report_drop(Run *r);

/* ---- device_args.c: for devices with memory of their own ---------------- */

/* Copies the inputs to the device and makes room for results and workspace. */
int device_args_make(Run *r, Err *e);
/* Fetches the results. */
int device_args_fetch(Run *r, Err *e);
void device_args_free(Run *r);

/* ---- dropout.c --------------------------------------------------------- */

/* --dropout, --seed, --offset -> the spec's field and the numbers. */
int dropout_parse(const Options *o, Problem *p, Err *e);
/* Can a file be made there? */
int dropout_mask_check(const char *path, Err *e);
/* Writes which weights of the run are kept: bool [B,H,Nq,Nk]; packed
 * sequences [S,H,longest,longest], false outside. */
int dropout_mask_write(const char *path, const Run *r, Err *e);

/* ---- results.c --------------------------------------------------------- */

int results_write(const char *dir, const Run *r, Err *e);
/* "written   DIR/o.npy, .." */
void results_say(const char *dir, const Run *r, Str *out);

double run_median(const Run *r);
int report_text(const Options *o, const Run *r, Str *out, Err *e);
int report_json(const Run *r, Str *out, Err *e);

/* ---- verbs: 0, EXIT_CHECK, or a negative status with *e set ------------- */

enum exit_status {
    EXIT_DONE = 0,
    EXIT_CHECK = 1,
    EXIT_REQUEST = 2,
    EXIT_MISSING = 3,
    EXIT_SYSTEM = 4
};

int verb_run(const Options *o, Str *out, Err *e);
int verb_explain(const Options *o, Str *out, Err *e);
int verb_emit(const Options *o, Str *out, Err *e);
int verb_devices(const Options *o, Str *out, Err *e);
int verb_cache(const Options *o, Str *out, Err *e);

#endif
