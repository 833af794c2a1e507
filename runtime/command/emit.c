/* SPDX-License-Identifier: Apache-2.0
 * attnc emit: the plan's source, what it compiles to, and a manifest that says
 * how to launch it. Runs for any target, on any machine. */
#include <sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"

enum { FILES_MAX = 4, TRIES = 6 };

/* What a source can be compiled to: one for each option. */
static const struct Form {
    int option;
    const char *suffix;
    bool cuda;
} forms[] = {{OPT_obj, ".so", false},
             {OPT_cubin, ".cubin", true},
             {OPT_ptx, ".ptx", true}};
enum { FORMS = sizeof forms / sizeof forms[0], CUBIN = 1 };

typedef struct Emission {
    Problem problem;
    Device device;
    Plan plan;
    const Templates *templates;
    Source source;
    Blob binary[FORMS];
    char compiler[96];
    Str log;             /* of the cubin */
    Tile spilled[TRIES]; /* tiles whose kernels spill: not taken */
    int nspilled;
    OutFile file[FILES_MAX];
    int nfile;
    json_t *files; /* of the manifest */
} Emission;

/* ---- what is written --------------------------------------------------- */

static int open_emission(const Options *o, Emission *m, Err *e) {
    int rc = problem_make(o, &m->problem, e);
    rc = rc ? rc : session_device(o, &m->device, e);
    for (int i = 0; i < FORMS && !rc; i++)
        if (o->given[forms[i].option].text &&
            forms[i].cuda != (m->device.kind == DEVICE_CUDA))
            rc = err_set(e, ERR_REQUEST, "command", NULL,
                         "--%s: %s is not compiled to that; accepted: %s",
                         option_at(forms[i].option)->flag, m->device.arch,
                         forms[i].cuda ? "--obj" : "--cubin, --ptx");
    return rc ? rc : session_templates(&m->templates, e);
}

static int make_source(const Options *o, Emission *m, Err *e) {
    const struct LuaApi *lua = lua_find(e);
    Pins pins = {.tile = o->given[OPT_tile].text,
                 .avoid = m->spilled,
                 .navoid = m->nspilled};
    source_free(&m->source);
    int rc = lua ? plan_choose(&m->problem.spec, &m->problem.shape, &m->device,
                               &pins, &m->plan, e)
                 : e->code;
    return rc ? rc : emit_module(&m->plan, m->templates, lua, &m->source, e);
}

static int make_object(Emission *m, Err *e) {
    Compiler compiler;
    bool emulated = m->device.kind == DEVICE_EMULATED;
    if (!session_compiler(&compiler))
        return err_set(e, ATTNC_E_MISSING, "command", "obj",
                       "no compiler found; install clang 14 or newer, or gcc "
                       "with binutils");
    CompileJob job = {.compiler = &compiler,
                      .arch = emulated ? "emulated" : m->plan.device.arch,
                      .source = &m->source,
                      .templates = m->templates};
    return compile_cpu(&job, &m->binary[0], m->compiler, &m->log, e);
}

static int make_cuda(Emission *m, int form, Str *log, Err *e) {
    char *dirs = session_cuda_dirs();
    CudaJob job = {.dirs = dirs,
                   .arch = m->plan.device.arch,
                   .source = &m->source,
                   .templates = m->templates,
                   .ptx = form != CUBIN};
    int rc = nvrtc_compile(&job, &m->binary[form], m->compiler, log, e);
    free(dirs);
    return rc;
}

static bool spills(const Emission *m) {
    Usage u;
    for (int i = 0; i < m->plan.nstep; i++)
        if (m->log.text && usage_read(m->log.text, m->plan.step[i].entry, &u) &&
            u.spill_bytes > 0)
            return true;
    return false;
}

/* As attnc_prepare: a kernel that spills gives way to the next tile, but a
 * pinned one stays, and after some tries the first. */
static int make_cubin(const Options *o, Emission *m, Err *e) {
    int rc = make_cuda(m, CUBIN, &m->log, e);
    while (!rc && spills(m) && m->nspilled < TRIES &&
           m->plan.step[0].tile.from != FROM_PIN) {
        m->spilled[m->nspilled++] = m->plan.step[0].tile;
        bool last = m->nspilled == TRIES;
        m->nspilled = last ? 0 : m->nspilled;
        free(m->binary[CUBIN].data);
        m->binary[CUBIN] = (Blob){0};
        m->log.len = 0;
        rc = make_source(o, m, e);
        rc = rc ? rc : make_cuda(m, CUBIN, &m->log, e);
        m->nspilled = last ? TRIES : m->nspilled;
    }
    return rc;
}

static int make_binaries(const Options *o, Emission *m, Err *e) {
    Str ptx = {0};
    int rc = o->given[OPT_obj].text ? make_object(m, e) : 0;
    if (!rc && o->given[OPT_cubin].text)
        rc = make_cubin(o, m, e);
    if (!rc && o->given[OPT_ptx].text)
        rc = make_cuda(m, CUBIN + 1, &ptx, e);
    if (rc == ATTNC_E_COMPILE)
        session_keep_log(ptx.len       ? ptx.text
                         : m->log.text ? m->log.text
                                       : "",
                         "its output is", e);
    str_free(&ptx);
    return rc;
}

/* ---- the manifest ------------------------------------------------------ */

static json_t *json_extent(const Extent *x) {
    static const char *const names[] = {
#define X(name) #name,
        DIM_LIST(X)
#undef X
    };
    json_t *list = json_array();
    for (int i = 0; i < 5 && x->f[i].dim != DIM_ONE; i++) {
        json_t *j = json_object();
        json_object_set_new(j, "dim", json_text(names[x->f[i].dim]));
        json_object_set_new(j, "div", json_integer(x->f[i].div));
        json_array_append_new(list, j);
    }
    return list;
}

static json_t *json_params(const Plan *p, const Step *s) {
    static const char *const kinds[] = {"pointer_in", "pointer_out", "length",
                                        "stride",     "scalar",      "work"};
    json_t *list = json_array();
    for (int i = 0; i < s->nparam; i++) {
        const Param *param = &s->param[i];
        json_t *j = json_object();
        char name[PARAM_TEXT];
        param_text(p, param, name);
        json_object_set_new(j, "name", json_text(name));
        json_object_set_new(j, "kind", json_text(kinds[param_kind(param->id)]));
        if (param->buf >= 0)
            json_object_set_new(j, "buffer",
                                json_text(p->buf[param->buf].name));
        json_array_append_new(list, j);
    }
    return list;
}

/* What a launch of the step's blocks needs, and what the compiler made. */
static void add_cuda(json_t *j, const Emission *m, const Step *s) {
    Usage u;
    json_object_set_new(j, "threads", json_integer(s->threads));
    json_object_set_new(j, "smem_bytes", json_integer(s->smem_bytes));
    if (!m->log.text || !usage_read(m->log.text, s->entry, &u))
        return;
    json_object_set_new(j, "registers", json_integer(u.registers));
    json_object_set_new(j, "spill_bytes", json_integer(u.spill_bytes));
    json_object_set_new(j, "stack_bytes", json_integer(u.stack_bytes));
}

static json_t *json_steps(const Emission *m) {
    const Plan *p = &m->plan;
    json_t *list = json_array();
    for (int i = 0; i < p->nstep; i++) {
        const Step *s = &p->step[i];
        json_t *j = json_object();
        json_object_set_new(j, "role", json_text(role_name(s->role)));
        json_object_set_new(j, "entry", json_text(s->entry));
        json_object_set_new(j, "tile", json_tile(&s->tile));
        json_object_set_new(j, "grid", json_extent(&s->grid));
        if (tile_is_cuda(s->tile.family))
            add_cuda(j, m, s);
        else
            json_object_set_new(j, "scratch_bytes",
                                json_integer(s->scratch_bytes));
        json_object_set_new(j, "params", json_params(p, s));
        json_array_append_new(list, j);
    }
    return list;
}

static json_t *json_buffers(const Plan *p) {
    json_t *list = json_array();
    for (int i = 0; i < p->nbuf; i++) {
        const Buf *b = &p->buf[i];
        json_t *j = json_object();
        json_object_set_new(j, "name", json_text(b->name));
        json_object_set_new(j, "elem_bytes", json_integer(b->elem_bytes));
        json_object_set_new(j, "extent", json_extent(&b->extent));
        json_object_set_new(j, "fixed", json_integer(b->fixed));
        json_object_set_new(j, "zeroed", json_boolean(b->zero));
        json_array_append_new(list, j);
    }
    return list;
}

/* What programs read, in the order of tensor_grads; a launch brings it. */
static json_t *json_tensors(const Plan *p) {
    json_t *list = json_array();
    for (int i = 0; i < p->ntensor; i++) {
        const ProgramTensor *t = &p->tensor[i];
        json_t *j = json_object();
        json_object_set_new(j, "name", json_text(t->name));
        json_object_set_new(j, "dtype",
                            json_text(program_dtype_name(t->dtype)));
        json_object_set_new(j, "rank", json_integer(t->rank));
        json_object_set_new(j, "grad",
                            json_boolean(p->spec.tensor_grads >> i & 1));
        json_array_append_new(list, j);
    }
    return list;
}

static json_t *json_manifest(const Emission *m) {
    json_t *j = json_object();
    Str text = {0};
    char version[32];
    snprintf(version, sizeof version, "%d.%d.%d", ATTNC_VERSION_MAJOR,
             ATTNC_VERSION_MINOR, ATTNC_VERSION_PATCH);
    plan_print(&m->plan, &text);
    json_object_set_new(j, "attnc", json_text(version));
    json_object_set_new(j, "target", json_text(text_target(&m->device)));
    json_object_set_new(j, "arch", json_text(m->plan.device.arch));
    json_object_set_new(j, "device", json_text(m->plan.device.name));
    json_object_set_new(j, "spec", json_spec(&m->plan.spec));
    json_object_set_new(j, "shape", json_shape(&m->plan.shape));
    json_object_set_new(j, "steps", json_steps(m));
    json_object_set_new(j, "buffers", json_buffers(&m->plan));
    json_object_set_new(j, "tensors", json_tensors(&m->plan));
    json_object_set_new(j, "plan", json_text(text.text ? text.text : ""));
    json_object_set(j, "files", m->files);
    str_free(&text);
    return j;
}

/* ---- files ------------------------------------------------------------- */

static int add_file(Emission *m, const char *dir, const char *suffix,
                    const void *data, size_t len, Err *e) {
    char plan[64], name[96], hash[SHA256_DIGEST_STRING_LENGTH];
    plan_name(&m->plan, plan);
    snprintf(name, sizeof name, "%s%s", plan, suffix);
    int rc = outfile_open(dir, name, &m->file[m->nfile++], e);
    rc = rc ? rc : outfile_write(&m->file[m->nfile - 1], data, len, e);
    if (rc)
        return rc;
    json_t *j = json_object();
    json_object_set_new(j, "name", json_text(name));
    json_object_set_new(j, "bytes", json_integer((json_int_t)len));
    json_object_set_new(j, "sha256", json_text(SHA256Data(data, len, hash)));
    if (data != m->source.text.text)
        json_object_set_new(j, "compiler", json_text(m->compiler));
    json_array_append_new(m->files, j);
    return 0;
}

static int add_manifest(Emission *m, const char *dir, Err *e) {
    json_t *j = json_manifest(m);
    char *text = json_dumps(j, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    json_decref(j);
    if (!text)
        return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    OutFile *f = &m->file[m->nfile++];
    int rc = outfile_open(dir, "manifest.json", f, e);
    rc = rc ? rc : outfile_write(f, text, strlen(text), e);
    rc = rc ? rc : outfile_write(f, "\n", 1, e);
    free(text);
    return rc;
}

static int write_files(const Options *o, Emission *m, Err *e) {
    const char *dir = o->given[OPT_out].text;
    const char *suffix = m->device.kind == DEVICE_CPU ? ".c" : ".cu";
    int rc =
        add_file(m, dir, suffix, m->source.text.text, m->source.text.len, e);
    for (int i = 0; i < FORMS && rc == 0; i++)
        if (m->binary[i].data)
            rc = add_file(m, dir, forms[i].suffix, m->binary[i].data,
                          m->binary[i].len, e);
    rc = rc ? rc : add_manifest(m, dir, e);
    if (rc == 0)
        return outfile_publish(m->file, m->nfile, e);
    for (int i = 0; i < m->nfile; i++)
        outfile_drop(&m->file[i]);
    return rc;
}

static void tell(const Options *o, const Emission *m, Str *out) {
    size_t i;
    json_t *j;
    str_addf(out, "attention ");
    text_problem(&m->problem, out);
    str_addf(out, "\ntarget    ");
    text_device(&m->plan.device, out);
    json_array_foreach(m->files, i, j) {
        double bytes = (double)json_integer_value(json_object_get(j, "bytes"));
        str_addf(out, "\nwritten   %s/%s, %s", o->given[OPT_out].text,
                 json_string_value(json_object_get(j, "name")),
                 text_bytes(bytes).s);
    }
    str_addf(out, "\nwritten   %s/manifest.json\n", o->given[OPT_out].text);
}

int verb_emit(const Options *o, Str *out, Err *e) {
    if (!o->given[OPT_out].text)
        return err_set(e, ERR_REQUEST, "command", NULL,
                       "emit: where to? accepted: -o DIR");
    Emission *m = calloc(1, sizeof *m);
    if (!m || !(m->files = json_array())) {
        free(m);
        return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    }
    int rc = open_emission(o, m, e);
    rc = rc ? rc : make_source(o, m, e);
    rc = rc ? rc : outdir_check(o->given[OPT_out].text, e);
    rc = rc ? rc : make_binaries(o, m, e);
    rc = rc ? rc : write_files(o, m, e);
    if (rc == 0 && o->given[OPT_json].text)
        rc = json_finish(json_manifest(m), out, e);
    else if (rc == 0)
        tell(o, m, out);
    source_free(&m->source);
    for (int i = 0; i < FORMS; i++)
        free(m->binary[i].data);
    str_free(&m->log);
    json_decref(m->files);
    if (m->templates && m->templates != &attnc_templates)
        templates_free(m->templates);
    problem_free(&m->problem);
    free(m);
    return rc;
}
