/* SPDX-License-Identifier: Apache-2.0
 * What the caller or a tuned row fixes of a plan's tiles, from text. */
#include <stdio.h>

#include "pins.h"

/* The family of `families` that has this field; the first when none has. */
static int family_with(const int *families, Slice key, int *index) {
    const char *name;
    for (int k = 0; families[k] >= 0; k++) {
        for (int i = 0; (name = tile_field_name(families[k], i)); i++) {
            if (slice_is(key, name)) {
                *index = i;
                return families[k];
            }
        }
    }
    *index = -1;
    return families[0];
}

int fixed_read(const char *text, const int *families, int from, Fixed *out,
               Err *e) {
    Slice key, value;
    *out = (Fixed){.from = from};
    for (int k = 0; families[k] >= 0; k++)
        out->tile[families[k]].family = families[k];
    while (text && next_pair(&text, ", \t", &key, &value)) {
        char pair[128];
        int index, family = family_with(families, key, &index);
        snprintf(pair, sizeof pair, "%.*s=%.*s", (int)key.len, key.p,
                 (int)value.len, value.p);
        int code = tile_parse(pair, &out->tile[family], e);
        if (code)
            return code;
        if (out->set[family] & 1u << index)
            return err_set(e, ERR_REQUEST, "tile",
                           tile_field_name(family, index), "is given twice");
        out->set[family] |= 1u << index;
    }
    return 0;
}

void fixed_overlay(const Fixed *f, Tile *t) {
    for (int i = 0; i < TILE_FIELDS; i++) {
        if (f->set[t->family] & 1u << i)
            t->v[i] = f->tile[t->family].v[i];
    }
}

bool fixed_has(const Fixed *f, int family, int index) {
    return f->set[family] & 1u << index;
}

void fixed_set(Fixed *f, int family, int index, int value) {
    f->set[family] |= 1u << index;
    f->tile[family].v[index] = value;
}
