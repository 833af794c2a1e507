/* SPDX-License-Identifier: Apache-2.0
 * Finds the Lua library and its functions at run time. */
#include <dlfcn.h>

#include "luaapi.h"
#include "runtime.h"

/* Debian, Fedora, Arch, others. */
static const char *const sonames[] = {
    "liblua5.4.so.0", "liblua-5.4.so", "liblua.so.5.4",
    "liblua5.4.so",   "liblua54.so",
};

/* DEEPBIND: a host program that exports another Lua must not serve ours.
 * Sanitizers replace malloc and refuse it. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define BIND 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) ||     \
    __has_feature(memory_sanitizer)
#define BIND 0
#endif
#endif
#ifndef BIND
#define BIND RTLD_DEEPBIND
#endif

static LuaApi api;
static int state; /* 0 not looked for, 1 found */
static Lock lock = {PTHREAD_MUTEX_INITIALIZER, 0};

/* Fills the table; false: a function is missing. */
static bool fill(void *lib) {
#define LUA(result, name, parameters)                                          \
    *(void **)&api.name = dlsym(lib, #name);                                   \
    if (!api.name)                                                             \
        return false;
    LUA_LIST(LUA)
#undef LUA
    return true;
}

static bool find(void) {
    for (size_t i = 0; i < sizeof sonames / sizeof sonames[0]; i++) {
        void *lib = dlopen(sonames[i], RTLD_NOW | RTLD_LOCAL | BIND);
        if (lib && fill(lib))
            return true; /* stays loaded as long as the process */
        if (lib)
            dlclose(lib);
    }
    return false;
}

const struct LuaApi *lua_find(Err *e) {
    lock_take(&lock);
    if (!state && find())
        state = 1;
    bool found = state;
    lock_give(&lock);
    if (found)
        return &api;
    err_set(e, ATTNC_E_MISSING, "lua", NULL,
            "no Lua 5.4 library found (looked for %s, %s, %s, ...)", sonames[0],
            sonames[1], sonames[2]);
    return NULL;
}
