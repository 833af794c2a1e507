# SPDX-License-Identifier: Apache-2.0
"""What the scripts share: the built command, the built library, skipping."""
import ctypes
import os
import subprocess
import sys

ATTNC = os.environ.get("ATTNC", "attnc")
LIBATTNC = os.environ.get("LIBATTNC", "libattnc.so")
BUILD = os.environ.get("BUILD", ".")
SOURCE = os.environ.get(
    "SOURCE", os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FULL = os.environ.get("FULL") == "1"  # ./run test --full
# Seconds for a call of the command; instrumented code is several times slower.
PATIENCE = 900 if os.environ.get("SANITIZE") else 120


def skip(reason):
    """Ends the script: skipped, and why."""
    print("skipped:", reason)
    sys.exit(77)


def attnc(*args, env=None, timeout=PATIENCE):
    """Runs the command; returns the finished process, output as text."""
    return subprocess.run([ATTNC, *map(str, args)], text=True, timeout=timeout,
                          stdin=subprocess.DEVNULL, capture_output=True,
                          env=dict(os.environ, **(env or {})))


def library():
    """The shared library, loaded into this interpreter. Under the address
    sanitizer the script starts anew with the sanitizer's runtime first."""
    if os.environ.get("SANITIZE") == "thread":
        skip("the interpreter cannot host the thread sanitizer")
    preload = os.environ.get("PRELOAD", "")
    if preload and preload not in os.environ.get("LD_PRELOAD", ""):
        os.environ["LD_PRELOAD"] = preload
        os.environ["ASAN_OPTIONS"] = "detect_leaks=0"
        os.execv(sys.executable, [sys.executable, "-B", *sys.argv])
    return ctypes.CDLL(LIBATTNC)
