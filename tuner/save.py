# SPDX-License-Identifier: Apache-2.0
"""save.py NEW.json RESULTS.json < LIST: what was measured takes its place in
the results; what the benchmark no longer lists leaves them. A case measured
at another commit than the first says so."""
import json
import os
import sys


def key(case):
    return f"{case['group']}/{case['name']}"


def merge(old, new, listed):
    fresh = {key(c): c for c in new["cases"]}
    for c in fresh.values():
        if new["commit"] != old["commit"]:
            c["commit"] = new["commit"]
            c["date"] = new["date"]
    kept = {key(c): c for c in old["cases"]}
    known = {**kept, **fresh}
    return {**old, "titles": new["titles"],
            "cases": [known[name] for name in listed if name in known]}


def main():
    new_path, path = sys.argv[1:]
    with open(new_path, encoding="utf-8") as f:
        new = json.load(f)
    listed = sys.stdin.read().splitlines()
    result = new
    if os.path.exists(path) and len(new["cases"]) < len(listed):
        with open(path, encoding="utf-8") as f:
            result = merge(json.load(f), new, listed)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
        f.write("\n")


main()
