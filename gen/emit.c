/* SPDX-License-Identifier: Apache-2.0
 * Plan -> one module of C or CUDA: hands the plan to Lua as plain tables, runs
 * the lib.lua of cpu/ or cuda/, then its root template, and records which
 * template line made each line of the text. */
#include <stdlib.h>
#include <string.h>

#include "emit_program.h"
#include "order.h"

/* What the C functions called from Lua work on; found through the state's
 * extra space, since even lua_touserdata is reached through the table. */
typedef struct Emit {
    const LuaApi *api;
    const Plan *plan;
    const Templates *templates;
    Source *out;
    size_t cap;  /* of out->line */
    int current; /* index of the template that is running */
    int depth;   /* of nested includes */
} Emit;

enum { INCLUDE_DEPTH = 16 };

static Emit *emit_of(lua_State *L) {
    return *(Emit **)lua_getextraspace(L);
}

const LuaApi *emit_api(lua_State *L) {
    return emit_of(L)->api;
}

const Plan *emit_plan(lua_State *L) {
    return emit_of(L)->plan;
}

/* ---- output ------------------------------------------------------------ */

static bool record_line(Emit *m, int line) {
    Source *s = m->out;
    if (s->nline == m->cap) {
        size_t cap = m->cap ? 2 * m->cap : 1024;
        uint32_t *grown = realloc(s->line, cap * sizeof *grown);
        if (!grown)
            return false;
        s->line = grown;
        m->cap = cap;
    }
    s->line[s->nline++] = (uint32_t)m->current << 16 | (uint32_t)line;
    return true;
}

static void add_lines(Emit *m, lua_State *L, int line, const char *text,
                      size_t len) {
    str_add(&m->out->text, text, len);
    for (; len; len--, text++)
        if (*text == '\n' && !record_line(m, line))
            m->api->luaL_error(L, "out of memory");
}

/* __(line, piece, ...): one template line, pieces as text. */
static int put_line(lua_State *L) {
    Emit *m = emit_of(L);
    const LuaApi *api = m->api;
    int line = (int)api->luaL_checkinteger(L, 1);
    int top = api->lua_gettop(L);
    for (int i = 2; i <= top; i++) {
        size_t len;
        if (api->lua_type(L, i) == LUA_TNIL)
            return api->luaL_error(L, "a value of this line is nil");
        const char *text = api->luaL_tolstring(L, i, &len);
        add_lines(m, L, line, text, len);
    }
    add_lines(m, L, line, "\n", 1);
    if (m->out->text.bad)
        return api->luaL_error(L, "out of memory");
    return 0;
}

/* ---- templates --------------------------------------------------------- */

static int find_template(const Templates *t, const char *name) {
    for (size_t i = 0; i < t->count; i++)
        if (!strcmp(t->t[i].name, name))
            return (int)i;
    return -1;
}

/* has_template(name) -> boolean */
static int has_template(lua_State *L) {
    Emit *m = emit_of(L);
    const char *name = m->api->luaL_checklstring(L, 1, NULL);
    m->api->lua_pushboolean(L, find_template(m->templates, name) >= 0);
    return 1;
}

static bool is_template(const char *name) {
    size_t len = strlen(name);
    return len > 3 && !strcmp(name + len - 3, ".in");
}

/* Leaves the chunk of a template on the stack, or raises. */
static void load_template(lua_State *L, Emit *m, const Template *t) {
    const LuaApi *api = m->api;
    Str chunk = {0};
    Str name = {0};
    Err e = {0};
    str_addf(&name, "@%s", t->name);
    if (is_template(t->name))
        expand_chunk(t, &chunk, &e);
    else
        str_add(&chunk, t->text, t->len);
    int rc = LUA_ERRMEM;
    if (e.code)
        api->lua_pushstring(L, e.text);
    else if (chunk.bad || name.bad)
        api->lua_pushstring(L, "out of memory");
    else
        rc = api->luaL_loadbufferx(L, chunk.text ? chunk.text : "", chunk.len,
                                   name.text, "t");
    str_free(&chunk);
    str_free(&name);
    if (rc)
        api->lua_error(L);
}

/* include(name, ...): runs another template in place; the rest of the
 * arguments are its `...`. */
static int include(lua_State *L) {
    Emit *m = emit_of(L);
    const LuaApi *api = m->api;
    const char *name = api->luaL_checklstring(L, 1, NULL);
    int top = api->lua_gettop(L);
    int index = find_template(m->templates, name);
    if (index < 0)
        return api->luaL_error(L, "no template is named %s", name);
    if (m->depth == INCLUDE_DEPTH)
        return api->luaL_error(L, "includes are nested too deep");
    load_template(L, m, &m->templates->t[index]);
    for (int i = 2; i <= top; i++)
        api->lua_pushvalue(L, i);
    int caller = m->current;
    m->current = index;
    m->depth++;
    api->lua_callk(L, top - 1, 0, 0, NULL);
    m->current = caller;
    m->depth--;
    return 0;
}

/* ---- the plan as Lua tables -------------------------------------------- */

static void set_int(lua_State *L, const LuaApi *api, const char *key,
                    int64_t value) {
    api->lua_pushinteger(L, value);
    api->lua_setfield(L, -2, key);
}

static void set_text(lua_State *L, const LuaApi *api, const char *key,
                     const char *value) {
    api->lua_pushstring(L, value);
    api->lua_setfield(L, -2, key);
}

static void set_printed(lua_State *L, const LuaApi *api, const char *key,
                        Str *value) {
    api->lua_pushlstring(L, value->text ? value->text : "", value->len);
    api->lua_setfield(L, -2, key);
    str_free(value);
}

static void push_spec(lua_State *L, const LuaApi *api, const attnc_spec *s) {
    Str text = {0};
    api->lua_createtable(L, 0, 16);
#define ATTNC_ENUM(name, values, def, count, doc)                              \
    set_text(L, api, #name, spec_spelling(s, #name));
#define ATTNC_INT(name, def, lo, hi, doc) set_int(L, api, #name, s->name);
#define ATTNC_BOOL(name, def, hi, doc)                                         \
    api->lua_pushboolean(L, s->name);                                          \
    api->lua_setfield(L, -2, #name);
#define ATTNC_TEXT(name, kind, doc)
#include "spec.def"
#undef ATTNC_ENUM
#undef ATTNC_INT
#undef ATTNC_BOOL
#undef ATTNC_TEXT
    spec_print(s, &text);
    set_printed(L, api, "text", &text);
}

static void push_promises(lua_State *L, const LuaApi *api,
                          const attnc_shape *s) {
    api->lua_createtable(L, 0, 8);
#define ATTNC_HINT(name, def, doc)
#define ATTNC_PROMISE(name, def, values, doc) set_int(L, api, #name, s->name);
#include "shape.def"
#undef ATTNC_HINT
#undef ATTNC_PROMISE
}

/* Also `prims`, the set of primitives to paste, and `cc`, the compute
 * capability as compilers define it: 750 for sm_75, 900 for sm_90a. */
static void push_device(lua_State *L, const LuaApi *api, const Device *d) {
    api->lua_createtable(L, 0, 32);
    set_text(L, api, "name", d->name);
    set_text(L, api, "arch", d->arch);
    set_text(L, api, "prims", d->kind == DEVICE_EMULATED ? "emu" : "real");
    set_int(L, api, "cc", d->kind == DEVICE_CPU ? 0 : 10 * atoi(d->arch + 3));
#define FIGURE(name, unit, doc)                                                \
    api->lua_pushnumber(L, d->name);                                           \
    api->lua_setfield(L, -2, #name);
#include "device.def"
#undef FIGURE
}

static void push_tile(lua_State *L, const LuaApi *api, const Tile *t) {
    Str text = {0};
    api->lua_createtable(L, 0, TILE_FIELDS);
    const char *name;
    for (int i = 0; (name = tile_field_name(t->family, i)); i++)
        set_int(L, api, name, t->v[i]);
    tile_print(t, &text);
    set_printed(L, api, "text", &text);
}

static void push_scratch(lua_State *L, const LuaApi *api, const Plan *p,
                         const Tile *t) {
    CpuScratch c = {0};
    if (t->family == TILE_cpu_fwd || t->family == TILE_cpu_bwd)
        cpu_scratch(&p->spec, &p->device, t, &c);
    api->lua_createtable(L, 0, 24);
#define X(name) set_int(L, api, #name, c.name);
    CPU_SCRATCH_LIST(X)
#undef X
}

#define AT(name)                                                               \
    { #name, offsetof(CudaSmem, name) }
static const struct {
    const char *name;
    size_t offset;
} smem_fields[] = {AT(dim),      AT(dim_v),   AT(q),       AT(k),
                   AT(v),        AT(p),       AT(o),       AT(k_stages),
                   AT(v_stages), AT(k_bytes), AT(v_bytes), AT(q_pitch),
                   AT(v_pitch),  AT(p_pitch), AT(team),    AT(total)};
#undef AT

static void push_bwd_smem(lua_State *L, const LuaApi *api, const Plan *p,
                          const Tile *t) {
    CudaBwdSmem m;
    cuda_bwd_smem(&p->spec, &p->device, t, &m);
    api->lua_createtable(L, 0, 16);
#define X(name) set_int(L, api, #name, m.name);
    CUDA_BWD_SMEM_LIST(X)
#undef X
}

static void push_smem(lua_State *L, const LuaApi *api, const Plan *p,
                      const Tile *t) {
    CudaSmem m;
    cuda_smem(&p->spec, &p->device, t, &m);
    api->lua_createtable(L, 0, 16);
    for (size_t i = 0; i < sizeof smem_fields / sizeof *smem_fields; i++)
        set_int(L, api, smem_fields[i].name,
                *(int64_t *)((char *)&m + smem_fields[i].offset));
}

static const char *const kind_names[] = {"pointer_in", "pointer_out", "length",
                                         "stride",     "scalar",      "work"};

static void push_params(lua_State *L, const LuaApi *api, const Plan *p,
                        const Step *s) {
    api->lua_createtable(L, s->nparam, 0);
    for (int i = 0; i < s->nparam; i++) {
        api->lua_createtable(L, 0, 2);
        char name[PARAM_TEXT];
        param_text(p, &s->param[i], name);
        set_text(L, api, "name", name);
        set_text(L, api, "kind", kind_names[param_kind(s->param[i].id)]);
        api->lua_rawseti(L, -2, i + 1);
    }
}

/* steps[i] = {role, entry, params, tile, scratch, threads, low, high}; scratch
 * is the CPU worker's or the CUDA block's shared memory, threads the latter's;
 * low, high: see order_ends. */
static void push_steps(lua_State *L, const LuaApi *api, const Plan *p) {
    api->lua_createtable(L, p->nstep, 0);
    for (int i = 0; i < p->nstep; i++) {
        const Step *s = &p->step[i];
        int64_t low = 0, high = 0;
        if (tile_is_cuda(s->tile.family))
            order_step_ends(&p->spec, s->role, &low, &high);
        api->lua_createtable(L, 0, 8);
        set_text(L, api, "role", role_name(s->role));
        set_text(L, api, "entry", s->entry);
        push_params(L, api, p, s);
        api->lua_setfield(L, -2, "params");
        push_tile(L, api, &s->tile);
        api->lua_setfield(L, -2, "tile");
        if (cuda_is_bwd(s->tile.family))
            push_bwd_smem(L, api, p, &s->tile);
        else if (tile_is_cuda(s->tile.family))
            push_smem(L, api, p, &s->tile);
        else
            push_scratch(L, api, p, &s->tile);
        api->lua_setfield(L, -2, "scratch");
        set_int(L, api, "threads", s->threads);
        set_int(L, api, "low", low);
        set_int(L, api, "high", high);
        api->lua_rawseti(L, -2, i + 1);
    }
}

/* ---- the Lua side ------------------------------------------------------ */

/* Names a template has no business with: they reach files or compile text. */
static const char *const forbidden[] = {
    "load", "loadfile", "dofile", "print", "warn", "collectgarbage", "require"};

static void open_library(lua_State *L, const LuaApi *api, const char *name,
                         lua_CFunction open) {
    api->luaL_requiref(L, name, open, 1);
    api->lua_settop(L, 0);
}

static void open_libraries(lua_State *L, const LuaApi *api) {
    open_library(L, api, "_G", api->luaopen_base);
    open_library(L, api, LUA_TABLIBNAME, api->luaopen_table);
    open_library(L, api, LUA_STRLIBNAME, api->luaopen_string);
    open_library(L, api, LUA_MATHLIBNAME, api->luaopen_math);
    for (size_t i = 0; i < sizeof forbidden / sizeof *forbidden; i++) {
        api->lua_pushnil(L);
        api->lua_setglobal(L, forbidden[i]);
    }
}

static void set_function(lua_State *L, const LuaApi *api, const char *name,
                         lua_CFunction fn) {
    api->lua_pushcclosure(L, fn, 0);
    api->lua_setglobal(L, name);
}

/* Runs protected: everything that may raise a Lua error is below. */
static int run(lua_State *L) {
    Emit *m = emit_of(L);
    const LuaApi *api = m->api;
    const Plan *p = api->lua_touserdata(L, 1);
    open_libraries(L, api);
    set_function(L, api, "__", put_line);
    set_function(L, api, "include", include);
    set_function(L, api, "has_template", has_template);
    push_spec(L, api, &p->spec);
    api->lua_setglobal(L, "S");
    push_promises(L, api, &p->shape);
    api->lua_setglobal(L, "P");
    push_device(L, api, &p->device);
    api->lua_setglobal(L, "D");
    push_steps(L, api, p);
    api->lua_setglobal(L, "steps");
    emit_programs(L, api, p);
    api->lua_pushinteger(L, ATTNC_GENERATOR_VERSION);
    api->lua_setglobal(L, "version");
    static const char *const parts[][2] = {
        {"cpu/lib.lua", "cpu/module.c.in"},
        {"cuda/lib.lua", "cuda/module.cu.in"}};
    for (int i = 0; i < 2; i++) {
        api->lua_getglobal(L, "include");
        api->lua_pushstring(L, parts[p->device.kind != DEVICE_CPU][i]);
        api->lua_callk(L, 1, 0, 0, NULL);
    }
    return 0;
}

int emit_module(const Plan *p, const Templates *t, const LuaApi *lua,
                Source *out, Err *e) {
    Emit m = {.api = lua, .plan = p, .templates = t, .out = out};
    memset(out, 0, sizeof *out);
    lua_State *L = lua->luaL_newstate();
    if (!L)
        return err_set(e, ERR_MEMORY, "emit", NULL, "no memory for Lua");
    *(Emit **)lua_getextraspace(L) = &m;
    lua->lua_pushcclosure(L, run, 0);
    lua->lua_pushlightuserdata(L, (void *)p);
    if (lua->lua_pcallk(L, 1, 0, 0, 0, NULL)) {
        const char *text = lua->lua_tolstring(L, -1, NULL);
        err_set(e, out->text.bad ? ERR_MEMORY : ERR_INTERNAL, "emit", NULL,
                "template %s", text ? text : "failed without a message");
        source_free(out);
    }
    lua->lua_close(L);
    return e->code;
}

void source_free(Source *s) {
    str_free(&s->text);
    free(s->line);
    memset(s, 0, sizeof *s);
}
