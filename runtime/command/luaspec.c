/* SPDX-License-Identifier: Apache-2.0
 * Lua spec files: `return { head_dim = 64, mask = "causal:br" }`, the keys
 * being the command's flags with _ for -. The file is evaluated by a child
 * process with limits on time and memory and nothing to call but string, table
 * and math (a count hook alone would not stop a loop inside string.find); what
 * comes back through a pipe is text, "key\nvalue" and a 0 for each field. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "command.h"
#include "luaapi.h"

enum {
    FILE_MAX = 1 << 20,
    REPLY_MAX = 1 << 20,
    CPU_SECONDS = 2,
    WALL_MS = 10000, /* a busy machine gives the 2 s of CPU slowly */
    LIST_MAX = 65536
};
static const rlim_t memory_max = (rlim_t)256 << 20;

/* What precedes the child's text: its first byte. */
enum { REPLY_FIELDS = '=', REPLY_ERROR = '!' };

static int refuse(const char *path, const char *what, Err *e) {
    return err_set(e, ERR_REQUEST, "command", NULL, "%s: %s", path, what);
}

/* ---- the child --------------------------------------------------------- */

typedef struct Child {
    const LuaApi *lua;
    const char *path;
    Str file;
    Str reply;
} Child;

static const char *const hidden[] = {
    "io",    "os",      "require", "load",           "loadfile", "dofile",
    "debug", "package", "print",   "collectgarbage", "warn",
};

static void open_libraries(const LuaApi *lua, lua_State *L) {
    lua->luaL_requiref(L, "_G", lua->luaopen_base, 1);
    lua->luaL_requiref(L, "table", lua->luaopen_table, 1);
    lua->luaL_requiref(L, "string", lua->luaopen_string, 1);
    lua->luaL_requiref(L, "math", lua->luaopen_math, 1);
    for (size_t i = 0; i < sizeof hidden / sizeof hidden[0]; i++) {
        lua->lua_pushnil(L);
        lua->lua_setglobal(L, hidden[i]);
    }
    lua->lua_settop(L, 0);
}

/* Expressions may have several lines. */
static bool is_expression(const char *key, const char *text) {
    return !strcmp(key, "score") ||
           (!strcmp(key, "mask") && !strncmp(text, "expr:", 5));
}

/* The value on top as a flag spells it: 1, text, 0|1. Takes it away. */
static void add_scalar(Child *c, lua_State *L, const char *key) {
    const LuaApi *lua = c->lua;
    size_t len;
    int type = lua->lua_type(L, -1), whole;
    lua_Integer n = lua->lua_tointegerx(L, -1, &whole);
    if (type == LUA_TBOOLEAN)
        str_addf(&c->reply, "%d", lua->lua_toboolean(L, -1));
    else if (type == LUA_TNUMBER && whole)
        str_addf(&c->reply, "%lld", (long long)n);
    else if (type == LUA_TNUMBER)
        str_addf(&c->reply, "%.17g", lua->lua_tonumberx(L, -1, NULL));
    else if (type == LUA_TSTRING) {
        const char *text = lua->lua_tolstring(L, -1, &len);
        bool lines = memchr(text, '\n', len) && !is_expression(key, text);
        if (lines || memchr(text, '\0', len))
            lua->luaL_error(L, "%s: more than one line of text", key);
        str_add(&c->reply, text, len);
    } else
        lua->luaL_error(L,
                        "%s: a %s; accepted: text, a number, true, false, "
                        "a list of numbers",
                        key,
                        type == LUA_TFUNCTION ? "function"
                        : type == LUA_TTABLE  ? "table"
                                              : "value of another type");
    lua->lua_settop(L, -2);
}

static int count_entries(const LuaApi *lua, lua_State *L) {
    int n = 0;
    lua->lua_pushnil(L);
    for (; lua->lua_next(L, -2); n++)
        lua->lua_settop(L, -2);
    return n;
}

/* Entries 1 .. n of the table on top: "70,64". */
static void add_list(Child *c, lua_State *L, const char *key, int n) {
    for (int i = 1; i <= n; i++) {
        str_addf(&c->reply, i > 1 ? "," : "");
        c->lua->lua_rawgeti(L, -1, i);
        add_scalar(c, L, key);
    }
}

/* Its named entries: "block_q=64,block_k=32". */
static void add_pairs(Child *c, lua_State *L, const char *key) {
    const LuaApi *lua = c->lua;
    lua->lua_pushnil(L);
    for (int n = 0; lua->lua_next(L, -2); n++) {
        if (lua->lua_type(L, -2) != LUA_TSTRING)
            lua->luaL_error(L, "%s: a list with gaps", key);
        str_addf(&c->reply, "%s%s=", n ? "," : "",
                 lua->lua_tolstring(L, -2, NULL));
        add_scalar(c, L, key);
    }
}

static void add_end(Child *c) {
    str_add(&c->reply, "", 1);
}

/* A file for each name: "tensor" once for each of them. */
static void add_tensors(Child *c, lua_State *L, const char *key) {
    const LuaApi *lua = c->lua;
    lua->lua_pushnil(L);
    while (lua->lua_next(L, -2)) {
        if (lua->lua_type(L, -2) != LUA_TSTRING)
            lua->luaL_error(L, "%s: accepted: { NAME = \"FILE.npy\" }", key);
        const char *name = lua->lua_tolstring(L, -2, NULL);
        if (strcspn(name, "=\n") != strlen(name))
            lua->luaL_error(L, "%s: a name that is none", key);
        str_addf(&c->reply, "%s\n%s=", key, name);
        add_scalar(c, L, key);
        add_end(c);
    }
    lua->lua_settop(L, -2);
}

static void add_table(Child *c, lua_State *L, const char *key) {
    const LuaApi *lua = c->lua;
    int n = count_entries(lua, L);
    if (n > LIST_MAX)
        lua->luaL_error(L, "%s: more than 65536 numbers", key);
    bool list = n && lua->lua_rawgeti(L, -1, n) != LUA_TNIL;
    if (n)
        lua->lua_settop(L, -2);
    if (list)
        add_list(c, L, key, n);
    else
        add_pairs(c, L, key);
    lua->lua_settop(L, -2);
}

static void add_fields(Child *c, lua_State *L) {
    const LuaApi *lua = c->lua;
    lua->lua_pushnil(L);
    while (lua->lua_next(L, -2)) {
        if (lua->lua_type(L, -2) != LUA_TSTRING)
            lua->luaL_error(L, "a key that is no text; accepted: flags as in "
                               "head_dim = 64");
        const char *key = lua->lua_tolstring(L, -2, NULL);
        if (strcspn(key, "\n") > 64 || strchr(key, '\n'))
            lua->luaL_error(L, "a key that is no flag");
        bool table = lua->lua_type(L, -1) == LUA_TTABLE;
        if (table && !strcmp(key, "tensor")) {
            add_tensors(c, L, key);
            continue;
        }
        str_addf(&c->reply, "%s\n", key);
        if (table)
            add_table(c, L, key);
        else
            add_scalar(c, L, key);
        add_end(c);
    }
}

/* All that may fail, for a protected call. */
static int evaluate(lua_State *L) {
    Child *c = *(Child **)lua_getextraspace(L);
    const LuaApi *lua = c->lua;
    char name[128];
    open_libraries(lua, L);
    snprintf(name, sizeof name, "@%s", c->path);
    if (lua->luaL_loadbufferx(L, c->file.text, c->file.len, name, "t"))
        return lua->lua_error(L);
    lua->lua_callk(L, 0, 1, 0, NULL);
    if (lua->lua_type(L, -1) != LUA_TTABLE)
        return lua->luaL_error(L,
                               "%s: it returns no table; accepted: return "
                               "{ head_dim = 64, ... }",
                               c->path);
    add_fields(c, L);
    return 0;
}

static void limit(int what, rlim_t soft, rlim_t hard) {
    struct rlimit r = {soft, hard};
    setrlimit(what, &r);
}

/* Sanitizers map terabytes of address space before main. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

static void send_reply(int fd, char kind, const char *text, size_t len) {
    (void)!write(fd, &kind, 1);
    while (len) {
        ssize_t n = write(fd, text, len);
        if (n <= 0)
            return;
        text += n;
        len -= (size_t)n;
    }
}

static void child_main(Child *c, int fd) {
    limit(RLIMIT_CPU, CPU_SECONDS, CPU_SECONDS + 1);
    limit(RLIMIT_CORE, 0, 0);
    if (!SANITIZED)
        limit(RLIMIT_AS, memory_max, memory_max);
    lua_State *L = c->lua->luaL_newstate();
    if (!L)
        _exit(1);
    *(Child **)lua_getextraspace(L) = c;
    c->lua->lua_pushcclosure(L, evaluate, 0);
    if (c->lua->lua_pcallk(L, 0, 0, 0, 0, NULL)) {
        size_t len = 0;
        const char *text = c->lua->lua_tolstring(L, -1, &len);
        send_reply(fd, REPLY_ERROR, text ? text : "an error that is no text",
                   text ? len : 24);
    } else if (!c->reply.bad) {
        send_reply(fd, REPLY_FIELDS, c->reply.text ? c->reply.text : "",
                   c->reply.len);
    }
    _exit(0);
}

/* ---- the parent -------------------------------------------------------- */

static int read_file(const char *path, Str *out, Err *e) {
    struct stat st;
    char part[4096];
    ssize_t n = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return refuse(path, strerror(errno), e);
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return refuse(path, "no ordinary file", e);
    }
    while (out->len <= FILE_MAX && (n = read(fd, part, sizeof part)) > 0)
        str_add(out, part, (size_t)n);
    close(fd);
    if (n < 0)
        return refuse(path, strerror(errno), e);
    return out->len > FILE_MAX ? refuse(path, "larger than 1 MiB", e) : 0;
}

static int64_t clock_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Until the child closes its end, the time is over, or it says too much. */
static bool receive(int fd, Str *reply) {
    int64_t end = clock_ms() + WALL_MS;
    for (;;) {
        struct pollfd p = {fd, POLLIN, 0};
        int64_t left = end - clock_ms();
        char part[4096];
        if (left <= 0 || (poll(&p, 1, (int)left) < 0 && errno != EINTR))
            return false;
        if (!p.revents)
            continue;
        ssize_t n = read(fd, part, sizeof part);
        if (n <= 0)
            return n == 0;
        str_add(reply, part, (size_t)n);
        if (reply->len > REPLY_MAX || reply->bad)
            return false;
    }
}

/* How the child ended. */
typedef struct End {
    bool whole; /* its reply */
    int status;
    double cpu_s;
} End;

static int run_child(Child *c, Str *reply, End *end, Err *e) {
    struct rusage used = {0};
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return err_set(e, ATTNC_E_IO, "command", NULL, "pipe: %s",
                       strerror(errno));
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        child_main(c, ends[1]);
    }
    close(ends[1]);
    if (pid > 0) {
        end->whole = receive(ends[0], reply);
        if (!end->whole)
            kill(pid, SIGKILL);
        while (wait4(pid, &end->status, 0, &used) < 0 && errno == EINTR) {
        }
        end->cpu_s =
            (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
            1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
    }
    close(ends[0]);
    return pid > 0 ? 0
                   : err_set(e, ATTNC_E_IO, "command", NULL, "fork: %s",
                             strerror(errno));
}

/* The end that was not a reply. */
static int child_failed(const Child *c, const End *end, const Str *reply,
                        Err *e) {
    int signal = WIFSIGNALED(end->status) ? WTERMSIG(end->status) : 0;
    if (reply->len > REPLY_MAX)
        return refuse(c->path, "it returns more than 1 MiB of text", e);
    if (!end->whole || signal == SIGXCPU ||
        (signal == SIGKILL && end->cpu_s >= CPU_SECONDS))
        return refuse(c->path, "it ran for more than 2 s; accepted: less", e);
    if (signal == SIGKILL)
        return err_set(e, ATTNC_E_IO, "command", NULL,
                       "%s: the process that evaluates it was killed; was "
                       "memory short?",
                       c->path);
    return refuse(c->path, "it needs more than 256 MiB of memory", e);
}

static int unknown_key(const char *path, const char *key, Err *e) {
    const char *names[OPT_COUNT];
    int n = 0;
    for (int i = 0; i < OPT_COUNT; i++)
        if (option_at(i)->verbs == COMMON && i != OPT_spec)
            names[n++] = option_at(i)->id;
    return err_set(e, ERR_REQUEST, "command", NULL,
                   "%s: unknown key `%s`; nearest: %s", path, key,
                   nearest_word(key, names, n));
}

static int give_field(const char *path, const char *key, const char *value,
                      Options *o, Err *e) {
    char where[80];
    snprintf(where, sizeof where, "%.50s: %s", path, key);
    for (int i = 0; i < OPT_COUNT; i++) {
        const Option *t = option_at(i);
        if (strcmp(t->id, key) != 0 || t->verbs != COMMON || i == OPT_spec)
            continue;
        if (t->kind != MAYBE)
            return option_give(o, i, value, where, e);
        if (strcmp(value, "0") == 0) /* alibi = false */
            return 0;
        value = strcmp(value, "1") == 0 ? "" : value;
        return option_give(o, i, value, where, e);
    }
    return unknown_key(path, key, e);
}

/* "key\nvalue" and a 0 each; the values stay in `text`, which o->lua owns. */
static int give_fields(const char *path, char *text, const char *end,
                       Options *o, Err *e) {
    int rc = 0;
    while (text < end && rc == 0) {
        char *key = text, *value = strchr(key, '\n');
        if (!value)
            return refuse(path, "a broken reply of its process", e);
        *value++ = '\0';
        text = value + strlen(value) + 1;
        rc = give_field(path, key, value, o, e);
    }
    return rc;
}

int luaspec_read(const char *path, Options *o, Err *e) {
    Child c = {.lua = lua_find(e), .path = path};
    End end = {0};
    int rc = c.lua ? read_file(path, &c.file, e) : e->code;
    rc = rc ? rc : run_child(&c, &o->lua, &end, e);
    str_free(&c.file);
    if (rc)
        return rc;
    if (!end.whole || !o->lua.len || end.status != 0)
        return child_failed(&c, &end, &o->lua, e);
    char *text = o->lua.text;
    if (text[0] == REPLY_ERROR)
        return err_set(e, ERR_REQUEST, "command", NULL, "%s%s%.400s",
                       strstr(text + 1, path) == text + 1 ? "" : path,
                       strstr(text + 1, path) == text + 1 ? "" : ": ",
                       text + 1);
    return give_fields(path, text + 1, text + o->lua.len, o, e);
}
