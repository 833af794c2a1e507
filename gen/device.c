/* SPDX-License-Identifier: Apache-2.0
 * Devices as rows of numbers: the built-in table, finding a row, changing its
 * figures, text in and out. gen/device_table.c holds the rows. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "gen.h"

typedef struct Field {
    const char *name, *unit;
    size_t offset;
} Field;

#define FIGURE(name, unit, doc) {#name, unit, offsetof(Device, name)},
static const Field fields[] = {
#include "device.def"
};
#undef FIGURE

enum { FIELDS = sizeof fields / sizeof *fields };

static double *place(const Device *d, const Field *f) {
    return (double *)((char *)d + f->offset);
}

/* ---- finding ----------------------------------------------------------- */

/* Lower case, without blanks, dashes and underscores: "RTX 4090" and
 * "rtx-4090" are one. */
static void plain(const char *name, char out[48]) {
    size_t n = 0;
    for (; *name && n < 47; name++) {
        if (!strchr(" -_", *name))
            out[n++] = (char)tolower((unsigned char)*name);
    }
    out[n] = 0;
}

static const Device *row_of_arch(const char *arch) {
    for (int i = 0; i < device_count(); i++) {
        if (!strcmp(device_at(i)->arch, arch))
            return device_at(i);
    }
    return NULL;
}

static const char EMULATED[] = "emu:";

static bool is_emulated(const char *name) {
    return !strncmp(name, EMULATED, sizeof EMULATED - 1);
}

static int find_emulated(const char *name, Device *out, Err *e) {
    Device d;
    int code = device_find(name + sizeof EMULATED - 1, &d, e);
    if (code)
        return code;
    if (d.kind != DEVICE_CUDA)
        return err_set(e, ERR_REQUEST, "device", NULL,
                       "%.40s: only GPUs are emulated; nearest: emu:sm_80",
                       name);
    d.kind = DEVICE_EMULATED;
    *out = d;
    return 0;
}

int device_find(const char *name, Device *out, Err *e) {
    if (is_emulated(name))
        return find_emulated(name, out, e);
    char want[48], have[48];
    const char *words[128];
    int n = 0;
    plain(name, want);
    for (int i = 0; i < device_count(); i++) {
        const Device *d = device_at(i);
        plain(d->name, have);
        if (!strcmp(have, want)) {
            *out = *d;
            return 0;
        }
        words[n++] = d->name;
        words[n++] = d->arch;
    }
    const Device *d = row_of_arch(name);
    if (d) {
        *out = *d;
        return 0;
    }
    return err_set(e, ERR_REQUEST, "device", NULL,
                   "unknown device or arch '%.40s'; nearest: %s", name,
                   nearest_word(name, words, n));
}

/* ---- checking ---------------------------------------------------------- */

/* What must be more than zero, and what only may be zero. */
static bool needs_value(const Device *d, const char *figure) {
    static const char *const always[] = {"cores",    "clock_ghz", "sram_bytes",
                                         "dram_gbs", "llc_gbs",   "f32_tflops"};
    static const char *const cpu[] = {"l1_bytes", "vector_bytes", "vector_regs",
                                      "fma_per_cycle", "loads_per_cycle"};
    static const char *const gpu[] = {"vector_regs", "sram_core_bytes",
                                      "exp2_gops",   "max_threads",
                                      "max_blocks",  "sram_width"};
    for (size_t i = 0; i < sizeof always / sizeof *always; i++) {
        if (!strcmp(always[i], figure))
            return true;
    }
    for (size_t i = 0; i < sizeof cpu / sizeof *cpu; i++) {
        if (d->kind == DEVICE_CPU && !strcmp(cpu[i], figure))
            return true;
    }
    for (size_t i = 0; i < sizeof gpu / sizeof *gpu; i++) {
        if (d->kind != DEVICE_CPU && !strcmp(gpu[i], figure))
            return true;
    }
    return false;
}

/* The register file is the instruction set's, not the chip's. The portable
 * form is C on vectors of any width, so there it may be any of those in use. */
static int check_vectors(const Device *d, Err *e) {
    const Device *row = row_of_arch(d->arch);
    if (!strcmp(d->arch, "portable")) {
        if (d->vector_bytes == 16 || d->vector_bytes == 32 ||
            d->vector_bytes == 64)
            return 0;
        return err_set(e, ERR_REQUEST, "device", "vector_bytes",
                       "%g; accepted for portable: 16, 32, 64",
                       d->vector_bytes);
    }
    if (d->vector_bytes != row->vector_bytes)
        return err_set(e, ERR_REQUEST, "device", "vector_bytes",
                       "%s has %g, not %g", d->arch, row->vector_bytes,
                       d->vector_bytes);
    if (d->vector_regs > row->vector_regs || d->vector_regs < 4)
        return err_set(e, ERR_REQUEST, "device", "vector_regs",
                       "%g is out of range; accepted 4..%g on %s",
                       d->vector_regs, row->vector_regs, d->arch);
    return 0;
}

static int check(const Device *d, Err *e) {
    for (int i = 0; i < FIELDS; i++) {
        double v = *place(d, &fields[i]);
        const char *name = fields[i].name;
        if (!(v >= 0 && v <= 1e15) || (v == 0 && needs_value(d, name)))
            return err_set(e, ERR_REQUEST, "device", name,
                           "%g is out of range; accepted: %s", v,
                           needs_value(d, name) ? "more than 0, to 1e15"
                                                : "0 to 1e15");
    }
    if (d->cores != floor(d->cores) || d->cores > 65536)
        return err_set(e, ERR_REQUEST, "device", "cores",
                       "%g is not a count of 1..65536; nearest %g", d->cores,
                       d->cores > 65536 ? 65536 : floor(d->cores) + 1);
    if (d->mma_k != 0 && d->mma_k != 8 && d->mma_k != 16)
        return err_set(e, ERR_REQUEST, "device", "mma_k",
                       "%g is not accepted; accepted: 0 8 16", d->mma_k);
    return d->kind == DEVICE_CPU ? check_vectors(d, e) : 0;
}

/* ---- changing figures -------------------------------------------------- */

static int set_figure(Device *d, Slice key, Slice value, const Field **set,
                      Err *e) {
    const char *names[FIELDS];
    char name[48];
    for (int i = 0; i < FIELDS; i++) {
        names[i] = fields[i].name;
        if (!slice_is(key, names[i]))
            continue;
        *set = &fields[i];
        if (slice_double(value, place(d, &fields[i])))
            return 0;
        return err_set(e, ERR_REQUEST, "device", names[i],
                       "'%.*s' is not a number%s%s",
                       value.len > 40 ? 40 : (int)value.len, value.p,
                       *fields[i].unit ? " of " : "", fields[i].unit);
    }
    snprintf(name, sizeof name, "%.*s", (int)key.len, key.p);
    return err_set(e, ERR_REQUEST, "device", NULL,
                   "unknown figure '%s'; nearest: %s", name,
                   nearest_word(name, names, FIELDS));
}

/* Vector FMAs per second of the whole chip. */
static double fma_rate(const Device *d) {
    return d->cores * d->clock_ghz * d->fma_per_cycle * d->vector_bytes;
}

int device_override(Device *d, const char *pairs, Err *e) {
    Device before = *d, now = *d;
    Slice key, value;
    bool peak_set = false;
    while (next_pair(&pairs, ", \t", &key, &value)) {
        const Field *f = NULL;
        int code = set_figure(&now, key, value, &f, e);
        if (code)
            return code;
        peak_set |= f->offset == offsetof(Device, f32_tflops) ||
                    f->offset == offsetof(Device, bf16_tflops);
    }
    /* A CPU's peaks follow from its cores and clock unless they are named. */
    if (d->kind == DEVICE_CPU && !peak_set) {
        double ratio = fma_rate(&now) / fma_rate(&before);
        now.f32_tflops *= ratio;
        now.bf16_tflops *= ratio;
    }
    int code = check(&now, e);
    if (!code)
        *d = now;
    return code;
}

/* ---- text -------------------------------------------------------------- */

void device_print(const Device *d, Str *out) {
    str_addf(out, "arch=%s%s", d->kind == DEVICE_EMULATED ? EMULATED : "",
             d->arch);
    for (int i = 0; i < FIELDS; i++) {
        str_addf(out, " %s=", fields[i].name);
        str_number(out, *place(d, &fields[i]));
    }
    str_addf(out, " name=%s", d->name); /* last: names hold blanks */
}

/* CPU archs are those of the table; any sm_NN is a CUDA one. */
static int set_arch(Device *d, Slice value, Err *e) {
    char text[32];
    snprintf(text, sizeof text, "%.*s", (int)value.len, value.p);
    bool emulated = is_emulated(text);
    snprintf(d->arch, sizeof d->arch, "%.23s",
             text + (emulated ? sizeof EMULATED - 1 : 0));
    const Device *row = row_of_arch(d->arch);
    d->kind = row ? row->kind : DEVICE_CUDA;
    if ((!row && strncmp(d->arch, "sm_", 3)) ||
        (emulated && d->kind != DEVICE_CUDA))
        return err_set(e, ERR_REQUEST, "device", "arch", "unknown arch '%s'",
                       text);
    if (emulated)
        d->kind = DEVICE_EMULATED;
    return 0;
}

int device_parse(const char *text, Device *d, Err *e) {
    Device now = {0};
    Slice key, value;
    int code = 0;
    while (!code && next_pair(&text, " \t\r\n", &key, &value)) {
        const Field *f;
        if (slice_is(key, "arch")) {
            code = set_arch(&now, value, e);
        } else if (slice_is(key, "name")) {
            size_t len = strcspn(value.p, "\r\n");
            snprintf(now.name, sizeof now.name, "%.*s", (int)len, value.p);
            text = value.p + len;
        } else {
            code = set_figure(&now, key, value, &f, e);
        }
    }
    if (!code && !*now.arch)
        code = err_set(e, ERR_REQUEST, "device", "arch", "is missing");
    if (!code)
        code = check(&now, e);
    if (!code)
        *d = now;
    return code;
}
