/* SPDX-License-Identifier: Apache-2.0
 * Fields of tiles that somebody fixed; for plan.c and plan_pins.c. */
#ifndef ATTNC_GEN_PINS_H
#define ATTNC_GEN_PINS_H

#include "gen.h"

/* By the caller or by a tuned row; of each family its own. */
typedef struct Fixed {
    Tile tile[TILE_FAMILIES];
    unsigned set[TILE_FAMILIES]; /* bit i: field i */
    int from;                    /* FROM_PIN or FROM_TABLE */
} Fixed;

/* families: those the fields may belong to, ended by -1. */
int fixed_read(const char *text, const int *families, int from, Fixed *out,
               Err *e);
void fixed_overlay(const Fixed *f, Tile *t);
bool fixed_has(const Fixed *f, int family, int index);
void fixed_set(Fixed *f, int family, int index, int value);

#endif
