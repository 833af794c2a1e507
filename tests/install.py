# SPDX-License-Identifier: Apache-2.0
"""An installed attnc, moved elsewhere, serves a program of its own, through
CMake and through pkg-config, in C and in C++; its command runs."""
import os
import shutil
import subprocess
import tempfile

from _attnc import BUILD, SOURCE, skip

if os.environ.get("SANITIZE"):
    skip("instrumented libraries are not installed")

PROGRAM = r"""
#include <attnc.h>
#include <stdio.h>

int main(void) {
    float q[2 * 4] = { 1, 2, 3, 4, 4, 3, 2, 1 }, o[2 * 4];
    attnc_spec spec = ATTNC_SPEC_DEFAULT;
    attnc_args args = ATTNC_ARGS_INIT;
    attnc_tensor t = { q, 8, 8, 4 };
    attnc_context *ctx;
    spec.head_dim = 4;
    spec.mask = ATTNC_MASK_CAUSAL;
    args.batch = args.heads = args.kv_heads = 1;
    args.seqlen_q = args.seqlen_k = 2;
    args.q = args.k = args.v = args.o = t;
    args.o.data = o;
    if (attnc_context_create(NULL, &ctx) ||
        attnc_run(ctx, &spec, &args, NULL)) {
        puts(attnc_last_error()->text);
        return 1;
    }
    attnc_context_destroy(ctx);
    printf("%d %.0f %.0f %.0f %.0f\n", attnc_version(), o[0], o[1], o[2], o[3]);
    return 0;
}
"""
# The first query sees the first key alone: its output is the first value.
EXPECTED = "100 1 2 3 4\n"
PROJECT = """
cmake_minimum_required(VERSION 3.25)
project(user C)
find_package(attnc 0.1 REQUIRED)
add_executable(user user.c)
target_link_libraries(user attnc::attnc)
"""


def run(*args, **more):
    r = subprocess.run(args, text=True, capture_output=True, **more)
    assert r.returncode == 0, f"{args}: {r.stdout}{r.stderr}"
    return r.stdout


def write(path, text):
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def main(top):
    # Moved as a whole, the package still works; nothing leads back here.
    run("cmake", "--install", BUILD, "--prefix", top + "/installed")
    prefix = os.path.join(top, "prefix")
    os.rename(top + "/installed", prefix)
    leads = subprocess.run(["grep", "-rlF", "-e", BUILD, "-e", SOURCE, "-e",
                            top + "/installed", prefix], text=True,
                           capture_output=True).stdout
    assert not leads, leads
    headers = sorted(os.listdir(os.path.join(prefix, "include/attnc")))
    assert headers == ["attnc.h", "shape.def", "spec.def", "spec.h"], headers
    write(os.path.join(top, "user.c"), PROGRAM)
    write(os.path.join(top, "CMakeLists.txt"), PROJECT)

    run("cmake", "-G", "Ninja", "-S", top, "-B", top + "/b",
        "-DCMAKE_PREFIX_PATH=" + prefix)
    run("cmake", "--build", top + "/b")
    assert run(top + "/b/user") == EXPECTED

    lib = run("find", prefix, "-name", "libattnc.so", "-printf", "%h").strip()
    env = dict(os.environ, PKG_CONFIG_PATH=lib + "/pkgconfig",
               LD_LIBRARY_PATH=lib)
    flags = run("pkg-config", "--define-prefix", "--cflags", "--libs", "attnc",
                env=env).split()
    run("cc", "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror",
        top + "/user.c", "-o", top + "/user", *flags)
    assert run(top + "/user", env=env) == EXPECTED
    assert prefix in " ".join(flags), flags
    assert '"ok":true' in run(
        prefix + "/bin/attnc", "run", "--seqlen", "50", "--head-dim", "8",
        "--check", "--json", cwd=top).replace(" ", "")
    if shutil.which("clang++"):
        run("clang++", "-std=c++17", "-fsyntax-only", "-x", "c++",
            top + "/user.c", *[f for f in flags if f.startswith("-I")])


with tempfile.TemporaryDirectory() as directory:
    main(directory)
print("installed, found by CMake and pkg-config, run")
