# SPDX-License-Identifier: Apache-2.0
"""The shared library exports attnc_* alone and needs libc's parts alone."""
import os
import re
import subprocess

from _attnc import LIBATTNC, SOURCE, skip

if os.environ.get("SANITIZE"):
    skip("an instrumented library needs the sanitizer's")


def lines(*args):
    return subprocess.run(args, text=True, check=True,
                          capture_output=True).stdout.splitlines()


exported = {line.split()[-1].split("@")[0]
            for line in lines("nm", "-D", "--defined-only", LIBATTNC)}
with open(os.path.join(SOURCE, "runtime/attnc.h"), encoding="utf-8") as f:
    declared = set(re.findall(r"ATTNC_API[^;(]*?\b(attnc_\w+)\(", f.read()))
assert exported == declared, (
    f"exported, not declared: {sorted(exported - declared)}; "
    f"declared, not exported: {sorted(declared - exported)}")

# glibc's own; the dynamic loader appears for some architectures.
allowed = re.compile(r"(libc|libm|libdl|libpthread)\.so|ld-linux")
needed = [re.search(r"\[(.*)\]", line).group(1)
          for line in lines("readelf", "-d", LIBATTNC) if "(NEEDED)" in line]
foreign = [name for name in needed if not allowed.match(name)]
assert not foreign, f"needs {foreign}"
print(f"{len(exported)} symbols, needs {' '.join(needed)}")
