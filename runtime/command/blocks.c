/* SPDX-License-Identifier: Apache-2.0
 * attnc explain, what a query sees: the block map as text and picture, how
 * many tiles of the plan are skipped, how even the work is, what that gains. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "sight.h"

enum { SIDE = 64, COLUMNS = 64, PICTURE = 512, COUNTED = 1 << 26 };

bool blocks_asked(const Options *o, const Problem *p) {
    return o->given[OPT_print_blocks].text || o->given[OPT_svg].text ||
           spec_keep(&p->spec);
}

/* ---- tiles of the plan ------------------------------------------------- */

static int field_of(const Tile *t, const char *name) {
    for (int i = 0; tile_field_name(t->family, i); i++)
        if (!strcmp(tile_field_name(t->family, i), name))
            return t->v[i];
    return 0;
}

static int64_t at_least_1(int64_t n) {
    return n > 0 ? n : 1;
}

/* Queries of an item, and queries and keys of what it skips or does: on a CPU
 * the rows that a vector or some hold, else all of it. Heads that share keys
 * lie in the rows. */
static void tile_sides(const Plan *p, int64_t group, BlockStory *x) {
    const Tile *t = &p->step[0].tile;
    for (int i = 0; i < p->nstep; i++) {
        if (!field_of(&p->step[i].tile, "block_k"))
            continue;
        t = &p->step[i].tile;
        break;
    }
    int rows = field_of(t, "block_q"), keys = field_of(t, "block_k");
    int64_t lanes = (int64_t)p->device.vector_bytes / 4;
    int64_t micro = tile_is_cuda(t->family) ? 0 : lanes * field_of(t, "vecs");
    rows = rows ? rows : BUILTIN_ROWS;
    x->tile_k = keys ? keys : BUILTIN_KEYS;
    x->item_q = at_least_1(rows / group);
    x->tile_q = micro ? at_least_1(micro / group) : x->item_q;
    x->split_k = field_of(t, "split_k");
}

static int64_t splits_of(const Sight *s, const BlockStory *x) {
    int64_t nk = s->p.a->seqlen_k;
    return x->split_k ? at_least_1((nk + x->split_k - 1) / x->split_k) : 1;
}

/* Adds tiles of the rows [q0, q1) that are not skipped to the loads of their
 * splits. */
static void count_row(Sight *s, int64_t q0, int64_t q1, double *load,
                      BlockStory *x) {
    int64_t nk = s->seq.all;
    for (int64_t k0 = 0; k0 < nk; k0 += x->tile_k) {
        SightTile t = {q0, q1, k0, k0 + x->tile_k < nk ? k0 + x->tile_k : nk};
        int v = sight_verdict(s, t);
        x->full += v == VERDICT_FULL;
        x->partial += v == VERDICT_PARTIAL;
        x->skipped += v == VERDICT_EMPTY;
        load[x->split_k ? k0 / x->split_k : 0] += v != VERDICT_EMPTY;
    }
}

static void count_item(Sight *s, int64_t q0, double *load, BlockStory *x) {
    int64_t end = q0 + x->item_q < s->seq.nq ? q0 + x->item_q : s->seq.nq;
    for (; q0 < end; q0 += x->tile_q)
        count_row(s, q0, q0 + x->tile_q < end ? q0 + x->tile_q : end, load, x);
}

/* Heads or entries that see the same are counted once. */
static int count_tiles(Sight *s, BlockStory *x, Err *e) {
    const attnc_args *a = s->p.a;
    bool entries = s->deps & DEP_B || s->p.s->varlen || s->p.s->lens_k;
    int64_t batch = entries ? a->batch : 1;
    int64_t heads = s->deps & DEP_H ? a->heads : 1, splits = splits_of(s, x);
    int64_t blocks = (a->seqlen_q + x->item_q - 1) / x->item_q;
    x->load =
        calloc((size_t)(batch * heads * blocks * splits + 1), sizeof *x->load);
    if (!x->load)
        return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    for (int64_t b = 0; b < batch; b++)
        for (int64_t h = 0; h < heads; h++) {
            sight_head(s, b, h);
            for (int64_t q0 = 0; q0 < s->seq.nq; q0 += x->item_q) {
                count_item(s, q0, x->load + x->items, x);
                x->items += splits;
            }
        }
    x->times = a->batch / batch * (a->heads / heads);
    x->full *= x->times;
    x->partial *= x->times;
    x->skipped *= x->times;
    return 0;
}

/* Cores share the items; none is divided. */
static double work(double tiles, double longest, double cores) {
    return tiles / cores > longest ? tiles / cores : longest;
}

static void predict(const Plan *p, BlockStory *x) {
    double all = (double)(x->full + x->partial + x->skipped);
    double seen = (double)(x->full + x->partial), longest = 0;
    double cores = p->device.cores, each = 0;
    int64_t busy = 0;
    for (int64_t i = 0; i < x->items; i++) {
        busy += x->load[i] > 0;
        longest = x->load[i] > longest ? x->load[i] : longest;
    }
    if (busy)
        each = all / (double)(x->items * x->times);
    double mean = busy ? seen / (double)(busy * x->times) : 0;
    double clearly = p->spec.sparsity ? 2 * mean : longest + 1;
    double last = schedule_last(x->load, x->items, x->times, (int)cores,
                                clearly > 0 ? clearly : 1);
    x->balance = mean > 0 ? longest / mean : 1;
    x->wait = seen > 0 ? last * cores / seen : 1;
    x->speedup = last > 0 ? work(all, each, cores) / last : 1;
}

/* ---- the map ----------------------------------------------------------- */

/* Of block patterns their own; of what is element-wise 64 as lines of 0 and 1,
 * for the eye as fine as it has columns. */
static int64_t side_of(const Options *o, const Problem *p, int64_t nk) {
    const attnc_program *pattern = p->spec.sparsity;
    bool whole = pattern && !pattern_is_element(p->pattern.kind);
    bool lines = o->given[OPT_print_blocks].text;
    int64_t side = whole ? p->pattern.block : lines ? SIDE : 1;
    while (!lines && (nk + side - 1) / side > COLUMNS)
        side *= 2;
    return side;
}

/* Which entry and head are drawn. */
static int choose(const Options *o, const Problem *p, BlockStory *x, Err *e) {
    const struct {
        int option, size;
        int64_t *to;
    } which[] = {{OPT_entry, SIZE_batch, &x->entry},
                 {OPT_head, SIZE_heads, &x->head}};
    int rc = 0;
    for (int i = 0; i < 2 && rc == 0; i++) {
        if (o->given[which[i].option].text && !blocks_asked(o, p))
            return option_bad(o, which[i].option, e,
                              "it needs --print-blocks, --svg, or something to "
                              "draw");
        rc = option_int(o, which[i].option, 0, p->size[which[i].size].n - 1,
                        which[i].to, e);
    }
    return rc;
}

static int tell_sight(const Options *o, const Problem *p, const Plan *plan,
                      Sight *s, BlockStory *x, Err *e) {
    const attnc_args *a = s->p.a;
    int64_t nq, nk;
    problem_lengths(p, x->entry, &nq, &nk);
    x->side = side_of(o, p, nk);
    sight_head(s, x->entry, x->head);
    int rc = sight_blocks(s, x->side, &x->map, e);
    if (rc)
        return rc;
    x->drawn = true;
    tile_sides(plan, a->heads / a->kv_heads, x);
    rc = count_tiles(s, x, e);
    if (rc)
        return rc;
    predict(plan, x);
    double square = (double)nq * (double)nk;
    x->pairs = -1;
    if (square > 0 && square <= COUNTED) {
        sight_head(s, x->entry, x->head);
        x->pairs =
            (double)sight_pairs(s, (SightTile){0, nq, 0, s->seq.all}) / square;
    }
    return 0;
}

int blocks_tell(const Options *o, Problem *p, const Plan *plan, BlockStory *x,
                Err *e) {
    Tensors tensors = {0};
    attnc_args a;
    Sight s = {0};
    *x = (BlockStory){0};
    int rc = choose(o, p, x, e);
    if (rc || !blocks_asked(o, p))
        return rc;
    bool must = o->given[OPT_print_blocks].text || o->given[OPT_svg].text;
    problem_args(p, &a);
    rc = tensors_make(p, &tensors, e);
    a.tensors = tensors.of;
    a.tensor_count = tensors.count;
    if (rc == 0 && tensors.missing && must)
        rc = programs_missing(p, e);
    if (rc == 0 && !tensors.missing) {
        rc = sight_open(&p->spec, &a, &s, e);
        rc = rc ? rc : tell_sight(o, p, plan, &s, x, e);
        sight_close(&s);
    }
    tensors_free(&tensors);
    return rc;
}

/* ---- telling ----------------------------------------------------------- */

void blocks_text(const BlockStory *x, Str *out) {
    if (!x->drawn) {
        str_addf(out,
                 "\nwhat a query sees is not drawn: tensors are missing\n");
        return;
    }
    double all = (double)(x->full + x->partial + x->skipped);
    str_addf(out,
             "\nentry %" PRId64 ", head %" PRId64 ", blocks of %" PRId64
             " queries (down) and keys: "
             ". none, + some, # all\n",
             x->entry, x->head, x->side);
    pattern_text(&x->map, ".+#", out);
    str_addf(out, "\nblocks    %.2f %% kept", 100 * blocks_density(&x->map));
    if (x->pairs >= 0)
        str_addf(out, ", %.2f %% of the pairs seen", 100 * x->pairs);
    str_addf(out,
             "\ntiles     of %" PRId64 " x %" PRId64 ": %.0f; %" PRId64
             " full, %" PRId64 " partial, %" PRId64 " skipped (%.1f %%)\n",
             x->tile_q, x->tile_k, all, x->full, x->partial, x->skipped,
             all > 0 ? 100 * (double)x->skipped / all : 0);
    str_addf(out,
             "balance   the longest item%s has %.2f times the mean; the last "
             "core ends at %.2f of an even share\n"
             "speed-up  %.2f over dense, predicted\n",
             x->split_k ? ", a split," : "", x->balance, x->wait, x->speedup);
}

static json_t *json_map(const BlockStory *x) {
    json_t *list = json_array();
    Str text = {0};
    pattern_text(&x->map, "011", &text);
    for (char *line = text.text; line && *line;) {
        char *end = strchr(line, '\n');
        *end = '\0';
        json_array_append_new(list, json_text(line));
        line = end + 1;
    }
    str_free(&text);
    return list;
}

json_t *blocks_json(const BlockStory *x, bool map) {
    json_t *j = json_object(), *tiles = json_object();
    json_object_set_new(tiles, "q", json_integer(x->tile_q));
    json_object_set_new(tiles, "k", json_integer(x->tile_k));
    json_object_set_new(tiles, "full", json_integer(x->full));
    json_object_set_new(tiles, "partial", json_integer(x->partial));
    json_object_set_new(tiles, "skipped", json_integer(x->skipped));
    json_object_set_new(j, "entry", json_integer(x->entry));
    json_object_set_new(j, "head", json_integer(x->head));
    json_object_set_new(j, "block", json_integer(x->side));
    json_object_set_new(j, "rows", json_integer(x->map.rows));
    json_object_set_new(j, "columns", json_integer(x->map.columns));
    json_object_set_new(j, "density", json_number(blocks_density(&x->map)));
    json_object_set_new(j, "pairs",
                        x->pairs < 0 ? json_null() : json_number(x->pairs));
    json_object_set_new(j, "tiles", tiles);
    json_object_set_new(j, "balance", json_number(x->balance));
    json_object_set_new(j, "wait", json_number(x->wait));
    json_object_set_new(j, "speedup", json_number(x->speedup));
    if (map)
        json_object_set_new(j, "map", json_map(x));
    return j;
}

int blocks_picture(const char *path, const BlockStory *x, Err *e) {
    Str svg = {0};
    OutFile f;
    pattern_svg(&x->map, PICTURE, &svg);
    int rc = svg.bad ? err_set(e, ERR_MEMORY, "command", NULL, "out of memory")
                     : outfile_beside(path, &f, e);
    if (rc == 0) {
        rc = outfile_write(&f, svg.text, svg.len, e);
        if (rc == 0)
            rc = outfile_publish(&f, 1, e);
        else
            outfile_drop(&f);
    }
    str_free(&svg);
    return rc;
}

void blocks_drop(BlockStory *x) {
    blocks_free(&x->map);
    free(x->load);
}
