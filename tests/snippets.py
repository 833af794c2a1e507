# SPDX-License-Identifier: Apache-2.0
"""What the pages tell a reader to type works: every C block compiles, and
runs when it is a program; every block of commands for build/attnc runs."""
import os
import re
import subprocess
import sys
import tempfile

from _attnc import ATTNC, BUILD, SOURCE

PAGES = ["README.md", "docs/embedding.md", "docs/command.md",
         "docs/gallery.md"]
SANITIZE = os.environ.get("SANITIZE")
FLAGS = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-D_POSIX_C_SOURCE=200809L",
         f"-I{SOURCE}/runtime", f"-I{SOURCE}/gen"]
LINK = [f"-L{BUILD}", "-lattnc", f"-Wl,-rpath,{BUILD}", "-lm", "-lpthread"]
if SANITIZE:
    FLAGS.append("-fsanitize=" + SANITIZE)


def run(where, args, top):
    r = subprocess.run(args, cwd=top, text=True, capture_output=True,
                       stdin=subprocess.DEVNULL)
    if r.returncode:
        sys.exit(f"{where}: {r.stdout}{r.stderr}")


def try_c(where, code, top):
    source, binary = os.path.join(top, "a.c"), os.path.join(top, "a.out")
    if "#include <attnc.h>" not in code:
        code = "#include <attnc.h>\n" + code
    with open(source, "w", encoding="utf-8") as f:
        f.write(code)
    if "int main(" not in code:
        run(where, ["cc", *FLAGS, "-c", source, "-o", binary], top)
        return
    run(where, ["cc", *FLAGS, source, "-o", binary, *LINK], top)
    run(where, [binary], top)


def try_sh(where, code, top):
    os.makedirs(os.path.join(top, "build"), exist_ok=True)
    for name, at in (("build/attnc", ATTNC),
                     ("docs", os.path.join(SOURCE, "docs"))):
        if not os.path.exists(os.path.join(top, name)):
            os.symlink(at, os.path.join(top, name))
    run(where, ["sh", "-eu", "-c", code], top)


def main():
    tried = 0
    for page in PAGES:
        with open(os.path.join(SOURCE, page), encoding="utf-8") as f:
            text = f.read()
        for m in re.finditer(r"^```(c|sh)\n(.*?)^```$", text, re.M | re.S):
            where = f"{page}:{text.count(chr(10), 0, m.start()) + 1}"
            kind, code = m.groups()
            if kind == "sh" and "build/attnc" not in code:
                continue
            with tempfile.TemporaryDirectory() as top:
                (try_c if kind == "c" else try_sh)(where, code, top)
            tried += 1
    assert tried >= len(PAGES), "the pages hold no snippets"
    print(tried, "snippets work")


main()
