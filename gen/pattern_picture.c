/* SPDX-License-Identifier: Apache-2.0
 * Lists of blocks as text for a terminal and as a picture. */
#include <string.h>

#include "pattern.h"

void pattern_text(const BlockList *x, const char *symbols, Str *out) {
    for (int64_t r = 0; r < x->rows; r++) {
        size_t at = out->len;
        for (int64_t c = 0; c < x->columns; c++)
            str_add(out, symbols, 1);
        str_add(out, "\n", 1);
        if (out->bad)
            return;
        for (int64_t i = x->part_at[r]; i < x->part_at[r + 1]; i++)
            out->text[at + (size_t)x->part[i]] = symbols[1];
        for (int64_t i = x->full_at[r]; i < x->full_at[r + 1]; i++)
            out->text[at + (size_t)x->full[i]] = symbols[2];
    }
}

/* Blocks side by side as one rectangle each, in units of blocks. */
static void draw_path(const int64_t *at, const int32_t *block, int64_t rows,
                      const char *fill, Str *out) {
    str_addf(out, "<path fill=\"%s\" d=\"", fill);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t i = at[r], n; i < at[r + 1]; i += n) {
            n = 1;
            while (i + n < at[r + 1] && block[i + n] == block[i] + n)
                n++;
            str_addf(out, "M%d %lldh%lldv1h-%lldz", block[i], (long long)r,
                     (long long)n, (long long)n);
        }
    }
    str_addf(out, "\"/>\n");
}

void pattern_svg(const BlockList *x, int width, Str *out) {
    long long rows = x->rows, columns = x->columns;
    long long height = columns ? (width * rows + columns - 1) / columns : 0;
    str_addf(out,
             "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" "
             "height=\"%lld\" viewBox=\"0 0 %lld %lld\" "
             "shape-rendering=\"crispEdges\">\n",
             width, height, columns, rows);
    str_addf(out,
             "<title>%.2f %% of the blocks; dark: whole, light: in "
             "part</title>\n",
             100 * blocks_density(x));
    str_addf(out, "<rect width=\"%lld\" height=\"%lld\" fill=\"#eee\"/>\n",
             columns, rows);
    draw_path(x->part_at, x->part, x->rows, "#8ab", out);
    draw_path(x->full_at, x->full, x->rows, "#135", out);
    str_addf(out, "</svg>\n");
}
