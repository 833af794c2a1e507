/* SPDX-License-Identifier: Apache-2.0
 * Numbers and structs as people read them. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "command.h"

/* Three significant digits, never an exponent. */
static const char *digits(double x) {
    double a = fabs(x);
    return a < 10 ? "%.2f %s" : a < 100 ? "%.1f %s" : "%.0f %s";
}

static Text scaled(double x, double step, const char *const *units, int n) {
    Text t;
    int i = 0;
    while (i + 1 < n && fabs(x) >= step * 0.9995) {
        x /= step;
        i++;
    }
    snprintf(t.s, sizeof t.s, i || x != floor(x) ? digits(x) : "%.0f %s", x,
             units[i]);
    return t;
}

Text text_bytes(double bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    return scaled(bytes, 1024, units, 5);
}

Text text_count(double n) {
    static const char *const units[] = {"", "K", "M", "G", "T", "P"};
    return scaled(n, 1000, units, 6);
}

Text text_ms(double ms) {
    Text t;
    bool us = ms < 0.9995, s = ms >= 999.5;
    double x = us ? ms * 1e3 : s ? ms / 1e3 : ms;
    snprintf(t.s, sizeof t.s, digits(x), x, us ? "us" : s ? "s" : "ms");
    return t;
}

/* Bytes of the UTF-8 character at p, 0: none, or one that moves a cursor. */
static int utf8_length(const unsigned char *p) {
    int n = p[0] < 0x80   ? 1
            : p[0] < 0xc2 ? 0
            : p[0] < 0xe0 ? 2
            : p[0] < 0xf0 ? 3
            : p[0] < 0xf5 ? 4
                          : 0;
    for (int i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    bool control = p[0] < ' ' || p[0] == 127 || (p[0] == 0xc2 && p[1] < 0xa0);
    bool outside =
        (p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
        (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f);
    return control || outside ? 0 : n;
}

void text_clean(char *line) {
    for (unsigned char *p = (unsigned char *)line; *p;) {
        int n = utf8_length(p);
        if (n == 0)
            *p = '?';
        p += n ? n : 1;
    }
}

static void add_size(const Problem *p, int a, int b, Str *out) {
    if (p->size[a].n == p->size[b].n)
        str_addf(out, "%" PRId64, p->size[a].n);
    else
        str_addf(out, "%" PRId64 "/%" PRId64, p->size[a].n, p->size[b].n);
}

/* As much of a text as goes on a line. */
static void add_program(const char *what, const attnc_program *p, Str *out) {
    enum { SHOWN = 100 };
    const char *text = p ? attnc_program_text(p) : "";
    if (p)
        str_addf(out, ", %s %.*s%s", what, SHOWN, text,
                 strlen(text) > SHOWN ? ".." : "");
}

void text_problem(const Problem *p, Str *out) {
    bool packed = p->layout == PACKED;
    str_addf(out, "%s, batch %" PRId64 ", heads ",
             spec_spelling(&p->spec, "dtype"), p->size[SIZE_batch].n);
    add_size(p, SIZE_heads, SIZE_kv_heads, out);
    str_addf(out, packed ? ", packed rows " : ", length ");
    add_size(p, packed ? SIZE_total_q : SIZE_seqlen_q,
             packed ? SIZE_total_k : SIZE_seqlen_k, out);
    str_addf(out, ", dim ");
    add_size(p, SIZE_head_dim, SIZE_head_dim_v, out);
    if (p->spec.mask != ATTNC_MASK_PROGRAM) {
        str_addf(out, ", mask ");
        problem_mask_text(p, out);
    }
    add_program("mask", p->spec.mask_program, out);
    add_program("sparsity", p->spec.sparsity, out);
    if (p->spec.bias)
        str_addf(out, ", bias %s", spec_spelling(&p->spec, "bias"));
    add_program("score", p->spec.score_program, out);
    static const char *const names[] = {"key lengths", "softcap", "alibi",
                                        "sink", "dropout"};
    const int on[] = {p->spec.lens_k, p->spec.softcap, p->spec.alibi,
                      p->spec.sink, p->spec.dropout};
    for (int i = 0; i < 5; i++)
        if (on[i])
            str_addf(out, ", %s", names[i]);
}

const char *text_target(const Device *d) {
    static const char *const names[] = {[DEVICE_CPU] = "cpu",
                                        [DEVICE_CUDA] = "cuda",
                                        [DEVICE_EMULATED] = "emulated"};
    return names[d->kind];
}

void text_device(const Device *d, Str *out) {
    const char *unit = d->kind == DEVICE_CPU ? "core" : "SM";
    str_addf(out, "%s%s (%s, %.0f %s%s)",
             d->kind == DEVICE_EMULATED ? "emulated " : "", d->name, d->arch,
             d->cores, unit, d->cores == 1 ? "" : "s");
}

void text_tile(const Tile *t, Str *out) {
    for (int i = 0; tile_field_name(t->family, i); i++)
        str_addf(out, "%s%s=%d", i ? " " : "", tile_field_name(t->family, i),
                 t->v[i]);
}
