# SPDX-License-Identifier: Apache-2.0
"""The house rules that a program can check: who includes whom, sizes, widths,
heads, words, links. Prints the figures; exits 1 when a rule is broken."""
import os
import re
import statistics
import sys

from _attnc import SOURCE

ROOMS = ["gen", "runtime", "runtime/command", "tuner", "tests", "templates",
         "docs", ".ci", "."]
FILE_LINES, FUNCTION_LINES, TEMPLATE_LINES = 500, 80, 150
LUA_SHARE, LUA_NESTING = 0.15, 2
faults = []


def fault(path, line, text):
    faults.append(f"{path}:{line}: {text}" if line else f"{path}: {text}")


def walk():
    """Every file of the project, as a path from its root."""
    for top, dirs, files in os.walk(SOURCE):
        here = os.path.relpath(top, SOURCE)
        dirs[:] = sorted(d for d in dirs if d != ".git" and d != "__pycache__"
                         and not (here == "." and d.startswith("build")))
        for name in sorted(files):
            yield os.path.normpath(os.path.join(here, name))


def read(path):
    with open(os.path.join(SOURCE, path), encoding="utf-8") as f:
        return f.read()


def bare(text):
    """C text with comments, strings and characters blanked, lines kept."""
    token = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
    return re.sub(token, lambda m: re.sub(r"[^\n]", " ", m.group()), text,
                  flags=re.S)


# ---- who may include whom ---------------------------------------------------

PUBLIC = {"runtime/attnc.h", "gen/spec.h"}
PUBLIC_SYSTEM = {"stddef.h", "stdint.h", "math.h"}
LUA_USERS = {"gen/expand.c", "gen/emit.c", "gen/emit_program.c",
             "gen/emit_program.h", "runtime/lua.c"}
# Rooms whose headers each room may name.
MAY = {"gen": {"gen"}, "runtime": {"gen", "runtime"},
       "runtime/command": {"gen", "runtime", "runtime/command",
                           "runtime/emulated"},
       "runtime/emulated": {"gen", "runtime", "runtime/emulated"},
       "tuner": {"gen", "tuner"}}


def check_includes(path, text, headers):
    room = os.path.dirname(path)
    for n, line in enumerate(text.split("\n"), 1):
        m = re.match(r'\s*#\s*include\s*(["<])([^">]+)', line)
        if not m:
            continue
        own, name = m.group(1) == '"', m.group(2)
        if name in ("lua.h", "lauxlib.h", "lualib.h"):
            if path != "gen/luaapi.h":
                fault(path, n, f"{name} only through luaapi.h")
        elif name == "luaapi.h" and room in MAY and path not in LUA_USERS \
                and room != "runtime/command":
            fault(path, n, "only expand.c, emit.c and lua.c use luaapi.h")
        elif own and room in MAY and not (
                headers.get(os.path.basename(name), set()) & MAY[room]
                or room == "runtime/emulated" and "/prim/emu/" in name
                or room == "tuner" and name == "attnc.h"):
            fault(path, n, f"{room} may not include {name}")
        elif not own and path in PUBLIC and name not in PUBLIC_SYSTEM:
            fault(path, n, f"a public header may not include <{name}>")


# gen is pure; the library never ends the process and never prints.
IMPURE = (r"fopen|open|read|write|getenv|secure_getenv|time|clock|"
          r"clock_gettime|gettimeofday|fork|system|dlopen|pthread_\w+")
ENDS = r"exit|_exit|abort|assert"
PRINTS = r"printf|puts|putchar|perror|fprintf\s*\(\s*std(?:err|out)"


def check_calls(path, code):
    room = os.path.dirname(path)
    rules = []
    if room == "gen":
        rules.append((IMPURE, "gen reads nothing from outside"))
    if room in ("gen", "runtime"):
        rules.append((ENDS, "the library never ends the process"))
        rules.append((PRINTS, "the library never prints"))
    for names, why in rules:
        for m in re.finditer(rf"(?<![\w.>])({names})\s*\(", code):
            # A child between fork and exec may only end itself.
            if m.group(1) != "_exit":
                fault(path, code.count("\n", 0, m.start()) + 1,
                      f"{m.group(1)}: {why}")
    if path.endswith(".c"):
        for m in re.finditer(r"(?<![\w.>])exit\s*\(\s*(\d+)", code):
            if int(m.group(1)) > 4 and room != "tests":
                fault(path, code.count("\n", 0, m.start()) + 1,
                      "the command's exit statuses are 0 to 4")


# ---- sizes ------------------------------------------------------------------

def functions(code):
    """(name, first line, lines) of each function in bare C text."""
    code = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*",
                  lambda m: re.sub(r"[^\n]", " ", m.group()), code, flags=re.M)
    depth, start = 0, 0
    for i, c in enumerate(code):
        if c == "{":
            if depth == 0:
                opened = i
            depth += 1
        elif c == "}":
            depth -= 1
            if depth == 0:
                head = code[start:opened].strip()
                m = re.search(r"(\w+)\s*\([^{}]*\)\s*(?:__attribute__.*)?$",
                              head, re.S)
                if m and "=" not in head:
                    at = opened - len(code[start:opened].lstrip())
                    first = code.count("\n", 0, at) + 1
                    yield m.group(1), first, \
                        code.count("\n", 0, i) + 2 - first
                start = i + 1
        elif c == ";" and depth == 0:
            start = i + 1


def check_sizes(path, text, code, lengths):
    lines = text.count("\n")
    if lines > FILE_LINES:
        fault(path, 0, f"{lines} lines; the cap is {FILE_LINES}")
    for name, first, count in functions(code):
        if count > FUNCTION_LINES:
            fault(path, first,
                  f"{name} has {count} lines; the cap is {FUNCTION_LINES}")
        lengths.append(count)


OPENS = re.compile(r"\b(?:function|then|do|repeat)\b")
CLOSES = re.compile(r"\b(?:end|until)\b")


def check_template(path, text):
    """Returns (lines of Lua, lines)."""
    lines = text.rstrip("\n").split("\n")
    if len(lines) > TEMPLATE_LINES:
        fault(path, 0, f"{len(lines)} lines; the cap is {TEMPLATE_LINES}")
    lua = depth = 0
    for n, line in enumerate(lines, 1):
        pasted = re.match(r'\$\s*include\s*\(?\s*"([^"]*)"', line)
        if pasted and "/module." not in path and \
                not re.search(r"/(prim|stage)/", pasted.group(1)):
            fault(path, n, f"pastes {pasted.group(1)}: only prim/ and stage/")
        if not line.startswith("$"):
            continue
        code = re.sub(r'--.*|"[^"]*"|\'[^\']*\'', "", line)
        lua += bool(code.strip("$ "))
        elseif = len(re.findall(r"\belseif\b", code))
        depth += len(OPENS.findall(code)) - len(CLOSES.findall(code)) - elseif
        if depth > LUA_NESTING:
            fault(path, n, f"Lua nested deeper than {LUA_NESTING}")
    return lua, len(lines)


# ---- text -------------------------------------------------------------------

WORDS = re.compile("TO" + "DO|FIX" + r"ME|(?<![\w.])/(?:work|root|farm|home)/")


def check_text(path, text):
    limit = 100 if path.startswith("templates/") or path.endswith(".def") \
        else 80
    wide = path.endswith((".md", ".json", ".svg", ".html", ".yml"))
    for n, line in enumerate(text.split("\n"), 1):
        if not wide and len(line) > limit:
            fault(path, n, f"{len(line)} columns; the limit is {limit}")
        if line != line.rstrip() or "\t" in line:
            fault(path, n, "a tab or trailing blanks")
        m = WORDS.search(line)
        if m:
            fault(path, n, f"'{m.group()}' does not belong in the project")
    coded = path.endswith((".c", ".h", ".def", ".py", ".lua", ".in", ".cmake"))
    if (coded or path in ("run", ".ci/run")) and \
            "SPDX-License-Identifier: Apache-2.0" not in text[:200]:
        fault(path, 1, "no SPDX line at the head")


def check_links(path, text):
    for m in re.finditer(r"\]\(([^)#\s]+)", text):
        target = m.group(1)
        if "://" not in target and not os.path.exists(
                os.path.join(SOURCE, os.path.dirname(path), target)):
            fault(path, text.count("\n", 0, m.start()) + 1,
                  f"no file {target}")


def check_environment(readme, files):
    """The library and the command read only variables the README lists."""
    for path, text in files.items():
        if path.endswith(".c") and path.startswith(("gen/", "runtime/")):
            for name in re.findall(r'getenv\("(\w+)"\)', text):
                if f"`{name}`" not in readme:
                    fault(path, 0, f"{name} is not in README's table")


# ---- all of it --------------------------------------------------------------

BINARY = (".npy", ".png")


def main():
    files = {p: read(p) for p in walk() if not p.endswith(BINARY)}
    headers = {}
    for p in files:
        headers.setdefault(os.path.basename(p), set()).add(os.path.dirname(p))
    lengths, lua, lines, comments, coded = [], 0, 0, 0, 0
    for path, text in files.items():
        made = path.startswith(("tests/golden/", "docs/results/"))
        if not made:
            check_text(path, text)
        if path.endswith((".c", ".h")) and not made:
            code = bare(text)
            check_includes(path, text, headers)
            check_calls(path, code)
            check_sizes(path, text, code, lengths)
            full = [t for t in text.split("\n") if t.strip()]
            coded += len(full)
            comments += len(full) - sum(bool(c.strip())
                                        for c in code.split("\n"))
        elif path.startswith("templates/") and path.endswith(".in"):
            a, b = check_template(path, text)
            lua, lines = lua + a, lines + b
        elif path.endswith(".md"):
            check_links(path, text)
    readme = files.get("README.md", "")
    for command in ("./run demo", "./run test"):
        if command not in readme:
            fault("README.md", 0, f"does not name {command}")
    check_environment(readme, files)
    report(lengths, lua, lines, comments, coded)
    for f in faults:
        print(f)
    sys.exit(1 if faults else 0)


def report(lengths, lua, lines, comments, coded):
    lengths.sort()
    median = statistics.median(lengths)
    short = sum(n <= 40 for n in lengths) / len(lengths)
    print(f"C: {coded} lines, {100 * comments / coded:.0f} % comments, "
          f"{len(lengths)} functions, median {median:.0f}, "
          f"{100 * short:.0f} % of at most 40 lines, longest {lengths[-1]}")
    if median > 12 or short < 0.9:
        fault("functions", 0, "wanted: median <= 12, 90 % <= 40 lines")
    if lines:
        share = lua / lines
        print(f"templates: {lines} lines, {100 * share:.0f} % Lua")
        if share > LUA_SHARE:
            fault("templates", 0, f"{100 * share:.0f} % Lua; the cap is "
                  f"{100 * LUA_SHARE:.0f} %")


main()
