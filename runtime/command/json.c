/* SPDX-License-Identifier: Apache-2.0
 * The structs as JSON, on top of jansson. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"

json_t *json_number(double x) {
    return isfinite(x) ? json_real(x) : json_null();
}

json_t *json_count(double n) {
    bool whole = n == floor(n) && fabs(n) < 0x1p53;
    return whole ? json_integer((json_int_t)n) : json_number(n);
}

/* Names of files may be any bytes; JSON is UTF-8. */
json_t *json_text(const char *text) {
    json_t *j = json_string(text);
    if (j)
        return j;
    char *copy = strdup(text);
    if (copy)
        text_clean(copy);
    j = copy ? json_string(copy) : NULL;
    free(copy);
    return j;
}

json_t *json_spec(const attnc_spec *s) {
    json_t *j = json_object();
#define ATTNC_ENUM(name, values, def, count, doc)                              \
    json_object_set_new(j, #name, json_text(spec_spelling(s, #name)));
#define ATTNC_INT(name, def, lo, hi, doc)                                      \
    json_object_set_new(j, #name, json_integer(s->name));
#define ATTNC_BOOL(name, def, hi, doc)                                         \
    json_object_set_new(j, #name, json_integer(s->name));
#define ATTNC_TEXT(name, kind, doc)                                            \
    json_object_set_new(j, #name,                                              \
                        s->name ? json_text(attnc_program_text(s->name))       \
                                : json_null());
#include "spec.def"
#undef ATTNC_TEXT
#undef ATTNC_ENUM
#undef ATTNC_INT
#undef ATTNC_BOOL
    return j;
}

json_t *json_shape(const attnc_shape *s) {
    json_t *j = json_object();
#define ATTNC_HINT(name, def, doc)                                             \
    json_object_set_new(j, #name, json_integer(s->name));
#define ATTNC_PROMISE(name, def, values, doc)                                  \
    json_object_set_new(j, #name, json_integer(s->name));
#include "shape.def"
#undef ATTNC_HINT
#undef ATTNC_PROMISE
    return j;
}

json_t *json_device(const Device *d) {
    json_t *j = json_object();
    json_object_set_new(j, "name", json_text(d->name));
    json_object_set_new(j, "arch", json_text(d->arch));
    json_object_set_new(j, "kind", json_text(text_target(d)));
#define FIGURE(name, unit, doc)                                                \
    json_object_set_new(j, #name, json_number(d->name));
#include "device.def"
#undef FIGURE
    return j;
}

json_t *json_tile(const Tile *t) {
    json_t *j = json_object();
    json_object_set_new(j, "family", json_text(tile_family_name(t->family)));
    for (int i = 0; tile_field_name(t->family, i); i++)
        json_object_set_new(j, tile_field_name(t->family, i),
                            json_integer(t->v[i]));
    json_object_set_new(j, "from", json_text(tile_from_name(t->from)));
    return j;
}

static json_t *brief_figures(const Figures *f) {
    json_t *j = json_object();
    json_object_set_new(j, "dram_bytes", json_count(f->dram_bytes));
    json_object_set_new(j, "time_ms", json_number(f->time_ms));
    json_object_set_new(j, "bound", json_text(f->bound));
    return j;
}

json_t *json_figures(const Figures *f) {
    json_t *j = brief_figures(f);
    json_object_set_new(j, "flops", json_count(f->flops));
    json_object_set_new(j, "exp2s", json_count(f->exp2s));
    json_object_set_new(j, "sram_bytes", json_count(f->sram_bytes));
    json_object_set_new(j, "sram_footprint", json_count(f->sram_footprint));
    json_object_set_new(j, "items", json_count(f->items));
    json_object_set_new(j, "waves", json_number(f->waves));
    json_object_set_new(j, "compute_ms", json_number(f->compute_ms));
    json_object_set_new(j, "dram_ms", json_number(f->dram_ms));
    json_object_set_new(j, "sram_ms", json_number(f->sram_ms));
    if (f->registers > 0) {
        json_object_set_new(j, "product_ms", json_number(f->product_ms));
        json_object_set_new(j, "exp2_ms", json_number(f->exp2_ms));
        json_object_set_new(j, "issue_ms", json_number(f->issue_ms));
        json_object_set_new(j, "smem_ms", json_number(f->smem_ms));
        json_object_set_new(j, "registers", json_count(f->registers));
        json_object_set_new(j, "occupancy", json_number(f->occupancy));
    }
    return j;
}

json_t *json_step(const Step *s, const char *cache, double compile_ms) {
    json_t *j = json_object();
    json_object_set_new(j, "role", json_text(role_name(s->role)));
    json_object_set_new(j, "tile", json_tile(&s->tile));
    json_object_set_new(j, "cache", json_text(cache));
    json_object_set_new(j, "compile_ms", json_number(compile_ms));
    json_object_set_new(j, "model", brief_figures(&s->fig));
    return j;
}

int json_finish(json_t *object, Str *out, Err *e) {
    char *text = json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(object);
    if (!text)
        return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    str_addf(out, "%s\n", text);
    free(text);
    return 0;
}
