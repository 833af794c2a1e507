/* SPDX-License-Identifier: Apache-2.0
 * Mask and score programs for templates: a table of what there is, and a
 * function that prints parts of them as C. */
#include <string.h>

#include "emit_program.h"

enum { ROOTS = 256 };

/* What program() works on. */
typedef struct Asked {
    lua_State *L;
    const LuaApi *api;
    const attnc_spec *spec;
    const Program *p;
    const ProgramGrad *grad; /* what = "grad" */
    ProgramC c;
    int root[ROOTS], nroot;
} Asked;

/* ---- options ----------------------------------------------------------- */

/* Text of a field of the options, or NULL; alive as long as the table. */
static const char *option(const Asked *x, const char *name) {
    const LuaApi *api = x->api;
    const char *text = NULL;
    if (api->lua_gettop(x->L) < 3 || api->lua_type(x->L, 3) != LUA_TTABLE)
        return NULL;
    api->lua_getfield(x->L, 3, name);
    if (api->lua_type(x->L, -1) == LUA_TSTRING)
        text = api->lua_tolstring(x->L, -1, NULL);
    api->lua_settop(x->L, 3);
    return text;
}

static int option_int(const Asked *x, const char *name) {
    const LuaApi *api = x->api;
    api->lua_getfield(x->L, 3, name);
    int value = (int)api->lua_tointegerx(x->L, -1, NULL);
    api->lua_settop(x->L, 3);
    return value;
}

static unsigned dims(const char *letters) {
    static const char names[] = "bhqksd";
    static const unsigned bits[] = {DEP_B, DEP_H, DEP_Q, DEP_K, DEP_S, DEP_D};
    unsigned out = 0;
    for (int i = 0; letters && names[i]; i++)
        out |= strchr(letters, names[i]) ? bits[i] : 0;
    return out;
}

static void read_options(Asked *x) {
    const char *prefix = option(x, "prefix");
    x->c.lanes = dims(option(x, "lanes"));
    x->c.rows = dims(option(x, "rows"));
    x->c.prefix = prefix ? prefix : "t";
    x->c.strips = option(x, "strips");
    for (int i = 0; i < OPERANDS; i++)
        x->c.operand[i] = option(x, program_operands[i].name);
}

/* ---- roots ------------------------------------------------------------- */

static void add_root(Asked *x, int node) {
    if (x->nroot < ROOTS)
        x->root[x->nroot++] = node;
}

/* The score itself, its derivative, of each read the gradient and what it is
 * indexed by. */
static void add_grad_roots(Asked *x) {
    add_root(x, spec_score(x->spec)->root);
    add_root(x, x->grad->p.root);
    for (int i = 0; i < x->grad->nread; i++) {
        const ReadGrad *r = &x->grad->read[i];
        const Node *n = &x->p->node[r->read];
        add_root(x, r->grad);
        for (int a = 0; a < n->nargs; a++)
            add_root(x, n->arg[a]);
    }
}

/* The node that options.root and .index name. */
static int asked_root(Asked *x) {
    const char *name = option(x, "root");
    if (!x->grad)
        return x->p->root;
    if (name && !strcmp(name, "score"))
        return spec_score(x->spec)->root;
    if (name && !strcmp(name, "ds"))
        return x->grad->p.root;
    int i = option_int(x, "root"), dim = option_int(x, "index");
    if (i < 1 || i > x->grad->nread)
        x->api->luaL_error(x->L, "root is none of score, ds, 1..%d",
                           x->grad->nread);
    const ReadGrad *r = &x->grad->read[i - 1];
    return dim ? x->p->node[r->read].arg[dim - 1] : r->grad;
}

/* ---- what is printed --------------------------------------------------- */

static void print_bounds(Asked *x, bool entry, Str *out) {
    ProgramBounds b;
    if (!program_bounds(x->p, &b)) {
        out->bad = true;
        return;
    }
    x->nroot = bounds_terms(&b, x->root, ROOTS);
    if (entry)
        program_c_part(x->p, x->root, x->nroot, &x->c, STAGE_ENTRY, out);
    else
        program_c_bounds(x->p, x->root, x->nroot, &x->c, &b, out);
}

static void print_verdict(Asked *x, bool entry, Str *out) {
    x->nroot = verdict_roots(x->p, &x->c, x->root, ROOTS);
    if (x->nroot < 0)
        out->bad = true;
    else if (entry)
        program_c_part(x->p, x->root, x->nroot, &x->c, STAGE_ENTRY, out);
    else
        program_c_verdict(x->p, x->root, x->nroot, &x->c, out);
}

static void print_part(Asked *x, const char *show, Str *out) {
    static const char *const stages[STAGES] = {"entry", "row", "key", "pair",
                                               "dout"};
    if (x->grad)
        add_grad_roots(x);
    else
        add_root(x, x->p->root);
    if (!strcmp(show, "value")) {
        program_c_value(x->p, x->root, x->nroot, &x->c, asked_root(x), out);
        return;
    }
    for (int i = 0; i < STAGES; i++) {
        if (!strcmp(show, stages[i])) {
            program_c_part(x->p, x->root, x->nroot, &x->c, i, out);
            return;
        }
    }
    x->api->luaL_error(x->L, "program() shows no '%s'", show);
}

static void print_asked(Asked *x, const char *show, Str *out) {
    if (!strncmp(show, "bounds", 6))
        print_bounds(x, show[6] != 0, out);
    else if (!strncmp(show, "verdict", 7))
        print_verdict(x, show[7] != 0, out);
    else
        print_part(x, show, out);
    if (out->len && out->text[out->len - 1] == '\n') /* the line's own */
        out->text[--out->len] = 0;
}

static const Program *find_program(Asked *x, const char *what) {
    if (!strcmp(what, "keep"))
        return spec_keep(x->spec);
    if (!strcmp(what, "score"))
        return spec_score(x->spec);
    if (!strcmp(what, "grad"))
        x->grad = spec_score_grad(x->spec);
    return x->grad ? &x->grad->p : NULL;
}

/* program(what, show [, options]) */
static int program(lua_State *L) {
    const LuaApi *api = emit_api(L);
    const char *what = api->luaL_checklstring(L, 1, NULL);
    const char *show = api->luaL_checklstring(L, 2, NULL);
    Asked x = {.L = L, .api = api, .spec = &emit_plan(L)->spec};
    Str out = {0};
    x.p = find_program(&x, what);
    if (!x.p)
        return api->luaL_error(L, "the spec has no program '%s'", what);
    read_options(&x);
    print_asked(&x, show, &out);
    if (!out.bad)
        api->lua_pushlstring(L, out.text ? out.text : "", out.len);
    bool bad = out.bad;
    str_free(&out);
    return bad ? api->luaL_error(L, "out of memory") : 1;
}

/* ---- the table --------------------------------------------------------- */

static void set_bool(lua_State *L, const LuaApi *api, const char *key,
                     bool value) {
    api->lua_pushboolean(L, value);
    api->lua_setfield(L, -2, key);
}

static void set_text(lua_State *L, const LuaApi *api, const char *key,
                     const char *value) {
    api->lua_pushstring(L, value);
    api->lua_setfield(L, -2, key);
}

static void push_tensors(lua_State *L, const LuaApi *api, const Plan *p) {
    api->lua_createtable(L, p->ntensor, 0);
    for (int i = 0; i < p->ntensor; i++) {
        const ProgramTensor *t = &p->tensor[i];
        api->lua_createtable(L, 0, 5);
        set_text(L, api, "name", t->name);
        set_text(L, api, "dtype", program_dtype_name(t->dtype));
        api->lua_pushinteger(L, t->rank);
        api->lua_setfield(L, -2, "rank");
        set_bool(L, api, "grad", p->spec.tensor_grads >> i & 1);
        set_bool(L, api, "parted", p->parted >> i & 1);
        api->lua_rawseti(L, -2, i + 1);
    }
}

static void push_grads(lua_State *L, const LuaApi *api, const ProgramGrad *g) {
    static const char *const names[] = {"b", "h", "q", "k", "const", "expr"};
    api->lua_createtable(L, g ? g->nread : 0, 0);
    for (int i = 0; g && i < g->nread; i++) {
        const ReadGrad *r = &g->read[i];
        int rank = g->p.node[r->read].nargs;
        api->lua_createtable(L, 0, 2);
        set_text(L, api, "tensor", g->p.tensor[r->tensor].name);
        api->lua_createtable(L, rank, 0);
        for (int a = 0; a < rank; a++) {
            api->lua_pushstring(L, names[r->index[a]]);
            api->lua_rawseti(L, -2, a + 1);
        }
        api->lua_setfield(L, -2, "index");
        api->lua_rawseti(L, -2, i + 1);
    }
}

static bool is_exact(const Program *keep) {
    ProgramBounds b;
    return keep && program_bounds(keep, &b) && b.exact && b.nway == 1;
}

static void set_letters(lua_State *L, const LuaApi *api, const char *key,
                        unsigned deps) {
    static const struct {
        unsigned dep;
        const char *letter;
    } rows[] = {{DEP_B, "b"}, {DEP_H, "h"}, {DEP_Q, "q"}};
    char letters[4] = "";
    for (int i = 0; i < 3; i++)
        strcat(letters, deps & rows[i].dep ? rows[i].letter : "");
    set_text(L, api, key, letters);
}

/* Letters of the indices by which work items may share a gradient's work. */
static void push_share(lua_State *L, const LuaApi *api, const ProgramGrad *g) {
    GradShare share = g ? grad_share(g) : (GradShare){0};
    set_letters(L, api, "owned", share.owned);
    set_letters(L, api, "split", share.split);
}

/* Which of the tensors lists blocks, and how large they are. */
static void push_listed(lua_State *L, const LuaApi *api, const Plan *p) {
    int64_t block = spec_listed(&p->spec);
    int i = 0;
    while (block && strcmp(p->tensor[i].name, "pattern_blocks"))
        i++;
    if (!block)
        return;
    api->lua_pushinteger(L, i + 1);
    api->lua_setfield(L, -2, "listed");
    api->lua_pushinteger(L, block);
    api->lua_setfield(L, -2, "block");
}

static void push_table(lua_State *L, const LuaApi *api, const Plan *p) {
    const attnc_spec *s = &p->spec;
    bool bwd = s->pass == ATTNC_PASS_BWD;
    api->lua_createtable(L, 0, 6);
    set_bool(L, api, "keep", spec_keep(s));
    set_bool(L, api, "score", spec_score(s));
    set_bool(L, api, "exact", is_exact(spec_keep(s)));
    set_bool(L, api, "off", spec_reads(s, OPERAND_off));
    push_tensors(L, api, p);
    api->lua_setfield(L, -2, "tensors");
    push_grads(L, api, bwd ? spec_score_grad(s) : NULL);
    api->lua_setfield(L, -2, "grads");
    api->lua_pushinteger(L, TENSOR_SUMS);
    api->lua_setfield(L, -2, "sums");
    push_share(L, api, bwd ? spec_score_grad(s) : NULL);
    push_listed(L, api, p);
    api->lua_setglobal(L, "programs");
}

void emit_programs(lua_State *L, const LuaApi *api, const Plan *p) {
    push_table(L, api, p);
    api->lua_pushcclosure(L, program, 0);
    api->lua_setglobal(L, "program");
}
