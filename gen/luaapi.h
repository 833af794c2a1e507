/* SPDX-License-Identifier: Apache-2.0
 * The Lua functions attnc uses, as a table: the library is dlopen'ed (Debian's
 * static Lua is not PIC, and a host program may export another Lua), so no
 * lua_* symbol may be called directly. Only expand.c, emit.c, runtime/lua.c
 * and command/luaspec.c include this file. LUA(result, name, parameters) */
#ifndef ATTNC_LUAAPI_H
#define ATTNC_LUAAPI_H

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#define LUA_LIST(LUA)                                                          \
    LUA(lua_State *, luaL_newstate, (void))                                    \
    LUA(void, lua_close, (lua_State *))                                        \
    LUA(void, luaL_requiref, (lua_State *, const char *, lua_CFunction, int))  \
    LUA(int, luaopen_base, (lua_State *))                                      \
    LUA(int, luaopen_table, (lua_State *))                                     \
    LUA(int, luaopen_string, (lua_State *))                                    \
    LUA(int, luaopen_math, (lua_State *))                                      \
    LUA(int, luaL_loadbufferx,                                                 \
        (lua_State *, const char *, size_t, const char *, const char *))       \
    LUA(void, lua_callk, (lua_State *, int, int, lua_KContext, lua_KFunction)) \
    LUA(int, lua_pcallk,                                                       \
        (lua_State *, int, int, int, lua_KContext, lua_KFunction))             \
    LUA(void, lua_createtable, (lua_State *, int, int))                        \
    LUA(void, lua_setfield, (lua_State *, int, const char *))                  \
    LUA(int, lua_getfield, (lua_State *, int, const char *))                   \
    LUA(void, lua_setglobal, (lua_State *, const char *))                      \
    LUA(int, lua_getglobal, (lua_State *, const char *))                       \
    LUA(void, lua_rawseti, (lua_State *, int, lua_Integer))                    \
    LUA(int, lua_rawgeti, (lua_State *, int, lua_Integer))                     \
    LUA(int, lua_next, (lua_State *, int))                                     \
    LUA(void, lua_pushnil, (lua_State *))                                      \
    LUA(void, lua_pushinteger, (lua_State *, lua_Integer))                     \
    LUA(void, lua_pushnumber, (lua_State *, lua_Number))                       \
    LUA(void, lua_pushboolean, (lua_State *, int))                             \
    LUA(const char *, lua_pushstring, (lua_State *, const char *))             \
    LUA(const char *, lua_pushlstring, (lua_State *, const char *, size_t))    \
    LUA(void, lua_pushvalue, (lua_State *, int))                               \
    LUA(void, lua_pushlightuserdata, (lua_State *, void *))                    \
    LUA(void, lua_pushcclosure, (lua_State *, lua_CFunction, int))             \
    LUA(void *, lua_touserdata, (lua_State *, int))                            \
    LUA(const char *, lua_tolstring, (lua_State *, int, size_t *))             \
    LUA(lua_Integer, lua_tointegerx, (lua_State *, int, int *))                \
    LUA(lua_Number, lua_tonumberx, (lua_State *, int, int *))                  \
    LUA(int, lua_toboolean, (lua_State *, int))                                \
    LUA(int, lua_isinteger, (lua_State *, int))                                \
    LUA(int, lua_type, (lua_State *, int))                                     \
    LUA(int, lua_gettop, (lua_State *))                                        \
    LUA(void, lua_settop, (lua_State *, int))                                  \
    LUA(int, lua_error, (lua_State *))                                         \
    LUA(int, luaL_error, (lua_State *, const char *, ...))                     \
    LUA(const char *, luaL_tolstring, (lua_State *, int, size_t *))            \
    LUA(const char *, luaL_checklstring, (lua_State *, int, size_t *))         \
    LUA(lua_Integer, luaL_checkinteger, (lua_State *, int))                    \
    LUA(int, luaL_getsubtable, (lua_State *, int, const char *))               \
    LUA(void, luaL_traceback, (lua_State *, lua_State *, const char *, int))

typedef struct LuaApi {
#define LUA(result, name, parameters) result(*name) parameters;
    LUA_LIST(LUA)
#undef LUA
} LuaApi;

#endif
