/* SPDX-License-Identifier: Apache-2.0
 * Child processes: found on PATH, started clean, their output captured. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "runtime.h"

enum {
    OUTPUT_MAX = 256 * 1024, /* of a child's output is kept */
    TIME_MAX_MS = 180000,    /* then it is killed */
    VARIABLE = 4096,
};

static const char *path_or_default(void) {
    const char *path = secure_getenv("PATH");
    return path ? path : "/usr/local/bin:/usr/bin:/bin";
}

static bool runs(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) &&
           access(path, X_OK) == 0;
}

bool program_find(const char *name, char path[512]) {
    if (strchr(name, '/')) {
        int n = snprintf(path, 512, "%s", name);
        return n < 512 && runs(path);
    }
    for (const char *p = path_or_default(); *p;) {
        size_t len = strcspn(p, ":");
        int n = snprintf(path, 512, "%.*s/%s", (int)len, p, name);
        /* An empty or relative entry is the working directory: not trusted. */
        if (*p == '/' && n < 512 && runs(path))
            return true;
        p += len + (p[len] == ':');
    }
    return false;
}

/* The child's environment: nothing that steers a compiler. */
typedef struct Environment {
    char text[4][VARIABLE];
    char *list[5];
} Environment;

static void add_variable(Environment *env, int *n, const char *name,
                         const char *value) {
    if (!value)
        return;
    int len = snprintf(env->text[*n], VARIABLE, "%s=%s", name, value);
    if (len < VARIABLE) {
        env->list[*n] = env->text[*n];
        ++*n;
    }
}

static void fill_environment(Environment *env, const char *tmp) {
    int n = 0;
    add_variable(env, &n, "PATH", path_or_default());
    add_variable(env, &n, "LC_ALL", "C");
    add_variable(env, &n, "TMPDIR", tmp);
    add_variable(env, &n, "LD_LIBRARY_PATH", secure_getenv("LD_LIBRARY_PATH"));
    env->list[n] = NULL;
}

/* Nothing of the host reaches the child: no descriptor, handler or mask. */
static int spawn(char *const argv[], int in, int out, const char *tmp,
                 pid_t *pid) {
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none, all;
    Environment env;
    fill_environment(&env, tmp);
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &all);
    posix_spawnattr_setflags(&attr,
                             POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    int rc = in >= 0 ? posix_spawn_file_actions_adddup2(&files, in, 0)
                     : posix_spawn_file_actions_addopen(&files, 0, "/dev/null",
                                                        O_RDONLY, 0);
    rc = rc ? rc : posix_spawn_file_actions_adddup2(&files, out, 1);
    rc = rc ? rc : posix_spawn_file_actions_adddup2(&files, out, 2);
#if __GLIBC_PREREQ(2, 34)
    rc = rc ? rc : posix_spawn_file_actions_addclosefrom_np(&files, 3);
#endif
    rc = rc ? rc : posix_spawn(pid, argv[0], &files, &attr, argv, env.list);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attr);
    return rc;
}

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* Reads until the child closes its output; false: it took too long. */
static bool drain(int fd, Str *log) {
    int64_t end = now_ms() + TIME_MAX_MS;
    char part[4096];
    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int64_t left = end - now_ms();
        int ready = left > 0 ? poll(&p, 1, (int)left) : 0;
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready <= 0)
            return false;
        ssize_t n = read(fd, part, sizeof part);
        if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN))
            return true;
        if (n > 0 && log->len + (size_t)n <= OUTPUT_MAX)
            str_add(log, part, (size_t)n);
    }
}

/* A host that ignores SIGCHLD or reaps every child leaves no status. */
static int reap(pid_t pid) {
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return CHILD_STOLEN;
    return status;
}

int child_start(Process *c, char *const argv[], int in, const char *tmp,
                Err *e) {
    int out[2];
    *c = (Process){.name = argv[0]};
    if (pipe2(out, O_CLOEXEC) != 0)
        return err_set(e, ATTNC_E_IO, "compile", NULL, "no pipe: %s",
                       strerror(errno));
    int rc = spawn(argv, in, out[1], tmp, &c->pid);
    close(out[1]);
    c->output = out[0];
    if (rc == 0)
        return 0;
    close(out[0]);
    return err_set(e, ATTNC_E_COMPILE, "compile", NULL, "cannot start %s: %s",
                   argv[0], strerror(rc));
}

int child_wait(Process *c, Str *log, Err *e) {
    bool in_time = drain(c->output, log);
    close(c->output);
    if (!in_time)
        kill(c->pid, SIGKILL);
    int status = reap(c->pid);
    if (!in_time)
        return err_set(e, ATTNC_E_COMPILE, "compile", NULL,
                       "%s ran longer than %d s", c->name, TIME_MAX_MS / 1000),
               -1;
    return status;
}

int child_run(char *const argv[], int in, const char *tmp, Str *log, Err *e) {
    Process c;
    return child_start(&c, argv, in, tmp, e) ? -1 : child_wait(&c, log, e);
}
