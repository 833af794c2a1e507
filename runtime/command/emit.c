/* SPDX-License-Identifier: Apache-2.0
 * attnc emit: the plan's source, its object, and a manifest that says how to
 * launch it. Runs for any CPU target, on any machine. */
#include <sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"

enum { FILES_MAX = 3 };

typedef struct Emission {
    Problem problem;
    Plan plan;
    const Templates *templates;
    Source source;
    Blob object;
    char compiler[96];
    OutFile file[FILES_MAX];
    int nfile;
    json_t *files; /* of the manifest */
} Emission;

/* ---- what is written --------------------------------------------------- */

static int make_source(const Options *o, Emission *m, Err *e) {
    Device device;
    const struct LuaApi *lua = NULL;
    Pins pins = {.tile = o->given[OPT_tile].text};
    int rc = problem_make(o, &m->problem, e);
    rc = rc ? rc : session_device(o, &device, e);
    rc = rc ? rc : session_templates(&m->templates, e);
    if (rc == 0 && !(lua = lua_find(e)))
        rc = e->code;
    rc = rc ? rc
            : plan_choose(&m->problem.spec, &m->problem.shape, &device, &pins,
                          &m->plan, e);
    return rc ? rc : emit_module(&m->plan, m->templates, lua, &m->source, e);
}

static int make_object(Emission *m, Err *e) {
    Compiler compiler;
    Str log = {0};
    if (!session_compiler(&compiler))
        return err_set(e, ATTNC_E_MISSING, "command", "obj",
                       "no compiler found; install clang 14 or newer, or gcc "
                       "with binutils");
    CompileJob job = {.compiler = &compiler,
                      .arch = m->plan.device.arch,
                      .source = &m->source,
                      .templates = m->templates};
    int rc = compile_cpu(&job, &m->object, m->compiler, &log, e);
    if (rc == ATTNC_E_COMPILE)
        session_keep_log(log.text ? log.text : "", e);
    str_free(&log);
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
        json_object_set_new(j, "name", json_text(param_name(param->id)));
        json_object_set_new(j, "kind", json_text(kinds[param_kind(param->id)]));
        if (param->buf >= 0)
            json_object_set_new(j, "buffer",
                                json_text(p->buf[param->buf].name));
        json_array_append_new(list, j);
    }
    return list;
}

static json_t *json_steps(const Plan *p) {
    json_t *list = json_array();
    for (int i = 0; i < p->nstep; i++) {
        const Step *s = &p->step[i];
        json_t *j = json_object();
        json_object_set_new(j, "role", json_text(role_name(s->role)));
        json_object_set_new(j, "entry", json_text(s->entry));
        json_object_set_new(j, "tile", json_tile(&s->tile));
        json_object_set_new(j, "grid", json_extent(&s->grid));
        json_object_set_new(j, "scratch_bytes", json_integer(s->scratch_bytes));
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

static json_t *json_manifest(const Emission *m) {
    json_t *j = json_object();
    Str text = {0};
    char version[32];
    snprintf(version, sizeof version, "%d.%d.%d", ATTNC_VERSION_MAJOR,
             ATTNC_VERSION_MINOR, ATTNC_VERSION_PATCH);
    plan_print(&m->plan, &text);
    json_object_set_new(j, "attnc", json_text(version));
    json_object_set_new(j, "target", json_text("cpu"));
    json_object_set_new(j, "arch", json_text(m->plan.device.arch));
    json_object_set_new(j, "device", json_text(m->plan.device.name));
    json_object_set_new(j, "spec", json_spec(&m->plan.spec));
    json_object_set_new(j, "shape", json_shape(&m->plan.shape));
    json_object_set_new(j, "steps", json_steps(&m->plan));
    json_object_set_new(j, "buffers", json_buffers(&m->plan));
    json_object_set_new(j, "plan", json_text(text.text ? text.text : ""));
    json_object_set(j, "files", m->files);
    str_free(&text);
    return j;
}

/* ---- files ------------------------------------------------------------- */

static int add_file(Emission *m, const char *dir, const char *suffix,
                    const void *data, size_t len, Err *e) {
    char name[96], hash[SHA256_DIGEST_STRING_LENGTH];
    snprintf(name, sizeof name, "%s%s", m->plan.step[0].entry, suffix);
    int rc = outfile_open(dir, name, &m->file[m->nfile++], e);
    rc = rc ? rc : outfile_write(&m->file[m->nfile - 1], data, len, e);
    if (rc)
        return rc;
    json_t *j = json_object();
    json_object_set_new(j, "name", json_text(name));
    json_object_set_new(j, "bytes", json_integer((json_int_t)len));
    json_object_set_new(j, "sha256", json_text(SHA256Data(data, len, hash)));
    if (m->object.data == data)
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
    int rc = add_file(m, dir, ".c", m->source.text.text, m->source.text.len, e);
    if (rc == 0 && m->object.data)
        rc = add_file(m, dir, ".so", m->object.data, m->object.len, e);
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
    int rc = make_source(o, m, e);
    rc = rc ? rc : outdir_check(o->given[OPT_out].text, e);
    if (rc == 0 && o->given[OPT_obj].text)
        rc = make_object(m, e);
    rc = rc ? rc : write_files(o, m, e);
    if (rc == 0 && o->given[OPT_json].text)
        rc = json_finish(json_manifest(m), out, e);
    else if (rc == 0)
        tell(o, m, out);
    source_free(&m->source);
    free(m->object.data);
    json_decref(m->files);
    if (m->templates && m->templates != &attnc_templates)
        templates_free(m->templates);
    problem_free(&m->problem);
    free(m);
    return rc;
}
