#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Emitted sources stay what they were. One source is kept whole; the others
as their difference from it, so that a golden shows what its fields change.
`test_golden.py --bless` writes them anew."""
import difflib
import os
import struct
import sys
import tempfile

from _attnc import SOURCE, attnc

GOLDEN = os.path.join(SOURCE, "tests", "golden")
BASE = "base"
SINK = "SINK.npy"  # stands for a file of one logit per head


def write_sink(path):
    head = "{'descr': '<f4', 'fortran_order': False, 'shape': (8,), }"
    head = head.ljust(117) + "\n"
    with open(path, "wb") as f:
        f.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) +
                head.encode() + bytes(32))


def emitted(flags):
    """The source for one golden's command line."""
    with tempfile.TemporaryDirectory() as folder:
        sink = os.path.join(folder, "sink.npy")
        write_sink(sink)
        words = [sink if w == SINK else w for w in flags.split()]
        run = attnc("emit", "-o", folder, *words)
        if run.returncode:
            sys.exit(f"attnc emit {flags}: {run.stderr}")
        [name] = [n for n in os.listdir(folder) if n.endswith(".c")]
        with open(os.path.join(folder, name), encoding="utf-8") as f:
            return f.read()


def cases():
    """name -> flags: tests/golden/cases, a line each."""
    rows = {}
    with open(os.path.join(GOLDEN, "cases"), encoding="utf-8") as f:
        for line in f:
            if line.strip() and not line.startswith("#"):
                name, flags = line.split(":", 1)
                rows[name] = flags.strip()
    return rows


def kept(name):
    return os.path.join(GOLDEN, name + (".c" if name == BASE else ".diff"))


def golden(name, text, base):
    if name == BASE:
        return text
    lines = difflib.unified_diff(base.splitlines(), text.splitlines(),
                                 "base.c", name + ".c", lineterm="", n=1)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def main():
    bless = "--bless" in sys.argv
    rows, faults = cases(), 0
    base = emitted(rows[BASE])
    for name, flags in rows.items():
        now = golden(name, emitted(flags), base)
        if bless:
            with open(kept(name), "w", encoding="utf-8") as f:
                f.write(now)
            continue
        try:
            with open(kept(name), encoding="utf-8") as f:
                was = f.read()
        except OSError:
            was = ""
        if was != now:
            faults += 1
            shown = difflib.unified_diff(was.splitlines(), now.splitlines(),
                                         "golden", "now", lineterm="", n=1)
            print(f"{name}: attnc emit {flags}")
            print("\n".join(list(shown)[:40]))
    if faults:
        print("if that is meant: tests/test_golden.py --bless, then read the "
              "difference in git")
    print(f"goldens: {len(rows) - faults}/{len(rows)}")
    return faults > 0


if __name__ == "__main__":
    sys.exit(main())
