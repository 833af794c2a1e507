# SPDX-License-Identifier: Apache-2.0
"""Everything that only a GPU can answer, in one command of at most 9 minutes,
what matters most first. Each section runs in a process of its own and tells
its results line by line, so that a fault, a crash or the clock costs what
comes after it in that section and nothing else. OUT/gpu.json is whole after
every line. Exit: 0 all well, 1 something failed, 2 bad call, 3 no GPU."""
import argparse
import ctypes
import importlib
import json
import os
import subprocess
import sys
import time
import types

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]

# name, share of the time, what it is for
SECTIONS = (("device", 0.04, "chip, clocks, driver, versions"),
            ("correct", 0.27, "kernels against f64"),
            ("prims", 0.05, "golden vectors of every instruction wrapper"),
            ("timing", 0.26, "next to PyTorch's back ends"),
            ("training", 0.20, "forward and backward, their memory, dropout"),
            ("sparse", 0.07, "patterns and mask programs, next to dense"),
            ("extras", 0.11, "compile times, candidates, CUDA graphs"))
RESTARTS = 8


# ---- is there anything to run on? -------------------------------------------

def why_not():
    """Why there is nothing to do here, or None."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver here (libcuda.so.1)"
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) \
            or not count.value:
        return "the NVIDIA driver finds no GPU"
    code = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    p = subprocess.run([sys.executable, "-c", code], capture_output=True)
    if p.returncode:
        return f"{sys.executable} has no PyTorch that sees the GPU; name " \
            "another with PYTHON=.."
    return None


# ---- sections, in a process of their own ------------------------------------

def device(job):
    import memory as mem
    job.tell(**mem.smi("name,driver_version,memory.total,clocks.sm,clocks.mem,"
                       "clocks.max.sm,power.limit,temperature.gpu"))
    if job.memory.torch:
        t = job.memory.torch
        p = t.cuda.get_device_properties(0)
        job.tell(torch=t.__version__, cuda=t.version.cuda, name=p.name,
                 sms=p.multi_processor_count,
                 capability=f"{p.major}.{p.minor}")
    p = subprocess.run([os.environ["ATTNC"], "devices", "--json"], text=True,
                       capture_output=True, stdin=subprocess.DEVNULL)
    if p.returncode == 0:
        j = json.loads(p.stdout)
        job.tell(gpus=j["gpus"], no_gpu=j["no_gpu"], nvrtc=j["nvrtc"])
    else:
        job.tell(why=p.stderr.strip())


def prims(job):
    if not job.target.startswith(("cuda", "emu:")):
        job.tell(why=f"{job.target} has no CUDA instructions")
        return
    importlib.import_module("record").run(job)


def worker(o):
    import abi
    import memory as mem
    job = types.SimpleNamespace(
        library=abi.Library(os.environ["LIBATTNC"]), target=o.target,
        memory=mem.Host() if o.host else mem.Gpu(), out=o.out, start=o.start,
        deadline=time.monotonic() + o.limit, seed=o.seed, most=o.most,
        only=json.loads(o.only), cell_ms=60.0, grid={}, best=8,
        candidate_length=4096, short_long=(1024, 16384), sparse_least=1024,
        training_most=None, ways_most=4,
        memory_tokens=(128, 256, 512, 1024, 2048, 4096, 8192, 16384))
    if o.small:
        job.cell_ms, job.best = 1.0, 2
        job.candidate_length, job.short_long = 64, (64,)
        job.sparse_least, job.memory_tokens = 128, (16,)
        job.training_most, job.ways_most = 2, 1
        job.grid = {"tokens": 128, "width": 128, "lengths": (64, 128),
                    "dims": (64,)}

    def tell(**line):
        print(json.dumps(line), flush=True)
    job.tell = tell
    run = {"device": device, "prims": prims}.get(o.section)
    (run or importlib.import_module(o.section).run)(job)


# ---- the parent -------------------------------------------------------------

class Record:
    """All that was told, on disk whole after every line."""

    def __init__(self, out, o):
        self.path, self.all = os.path.join(out, "gpu.json"), {
            "commit": os.environ.get("COMMIT", ""), "seed": o.seed,
            "date": time.strftime("%Y-%m-%d"), "sections": {}}

    def section(self, name):
        return self.all["sections"].setdefault(
            name, {"state": "running", "lines": []})

    def save(self):
        with open(self.path + ".new", "w", encoding="utf-8") as f:
            json.dump(self.all, f, indent=1)
        os.replace(self.path + ".new", self.path)


def show(name, line):
    if name == "correct":
        says = {True: "ok  ", False: "FAIL", None: "none"}[line["ok"]]
        print(f"  {says} {line['name']}"
              + (f": {line['why']}" if line.get("why") else ""), flush=True)
    elif name in ("timing", "training") and "who" in line:
        what = f"{line['tflops']:8.1f} TFLOP/s {line['ms']:9.4f} ms" \
            if "ms" in line else line["why"]
        print(f"  d{line['head_dim']:<4} {line['mask']:6} "
              f"n{line['seqlen']:<6} {line['who']:10} {what}", flush=True)
    else:
        print("  " + json.dumps(line)[:240], flush=True)


def start_worker(o, name, start, limit):
    command = [sys.executable, "-B", os.path.join(HERE, "gpu.py"), "--section",
               name, "--target", o.target, "--out", o.out, "--seed",
               str(o.seed), "--start", str(start), "--limit", f"{limit:.1f}",
               "--most", str(o.most), "--only", o.only]
    command += ["--host"] * o.host + ["--small"] * o.small
    return subprocess.Popen(command,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            stdin=subprocess.DEVNULL, text=True)


def watch(process, name, kept, record):
    """Takes the worker's lines; how many it told."""
    count = 0
    for text in process.stdout:
        try:
            line = json.loads(text)
        except ValueError:
            continue # something a library printed
        kept["lines"].append(line)
        show(name, line)
        record.save()
        count += 1
    return count


GRACE = 15 # seconds over its time before a worker is ended


def run_section(o, name, limit, record):
    """Restarts a worker that died behind the case that killed it."""
    import threading
    kept, end, start = record.section(name), time.monotonic() + limit, 0
    errors, status = [], "no time left"
    for _ in range(RESTARTS):
        left = end - time.monotonic()
        if left < 1:
            break
        p = start_worker(o, name, start, left)
        timer = threading.Timer(left + GRACE, p.kill)
        reader = threading.Thread(target=lambda: errors.append(
            p.stderr.read()[-2000:]))
        timer.start()
        reader.start()
        told = watch(p, name, kept, record)
        start += told
        status = p.wait()
        reader.join()
        timer.cancel()
        if status == 0 or name != "correct" or not told:
            break
        if status != 9: # it died without telling which case it was at
            kept["lines"].append({"ok": False, "name": f"case {start}",
                                  "why": f"the process ended with {status}"})
            start += 1
    kept["state"] = "done" if status == 0 else f"ended with {status}"
    if status and errors:
        kept["stderr"] = errors[-1]
        print("  " + errors[-1].strip()[-300:])
    record.save()


def bad_lines(record):
    n = 0
    for name, s in record.all["sections"].items():
        n += s["state"] != "done"
        n += sum(line.get("ok") is False for line in s["lines"])
        n += sum(line.get("who") == "attnc" and "why" in line
                 for line in s["lines"])
    return n


def against_flash(record, section="timing"):
    """{cell: attnc's speed over flash's} of the grid."""
    ms = {}
    for line in record.all["sections"].get(section, {}).get("lines", []):
        if "ms" in line and "who" in line:
            cell = (line["head_dim"], line["mask"], line["seqlen"])
            ms.setdefault(cell, {})[line["who"]] = line["ms"]
    return {cell: m["flash"] / m["attnc"] for cell, m in sorted(ms.items())
            if "flash" in m and "attnc" in m}


def summary(record):
    lines = record.all["sections"].get("correct", {}).get("lines", [])
    good = sum(line["ok"] is True for line in lines)
    none = sum(line["ok"] is None for line in lines)
    print(f"\ncorrect: {good} of {len(lines)}"
          + (f", {none} refused" if none else ""))
    for section in ("timing", "training"):
        for (d, mask, n), share in against_flash(record, section).items():
            print(f"  d{d:<4} {mask:6} n{n:<6} {share:6.1%} of flash, "
                  + section)
    for name, s in record.all["sections"].items():
        if s["state"] != "done":
            print(f"  section {name} {s['state']}")


def options():
    p = argparse.ArgumentParser(prog="./run gpu", description=__doc__)
    p.add_argument("--out", default="build/gpu", help="where gpu.json goes")
    p.add_argument("--limit", type=float, default=520.0, help="seconds in all")
    p.add_argument("--target", default="cuda")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--sections", default="", help="some, with commas")
    p.add_argument("--host", action="store_true",
                   help="tensors in the host's memory, without PyTorch: to try "
                   "this script on a CPU or an emulated device")
    p.add_argument("--small", action="store_true",
                   help="all that is done is done, on next to nothing")
    p.add_argument("--only", default="{}", help="JSON: fixed axes of `correct`")
    p.add_argument("--most", type=int, default=10**9, help="cases of `correct`")
    p.add_argument("--probe", action="store_true",
                   help="only say whether there is a GPU")
    p.add_argument("--section", help=argparse.SUPPRESS)
    p.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    return p.parse_args()


def main():
    o = options()
    if o.section:
        worker(o)
        return 0
    missing = None if o.host else why_not()
    if missing:
        print(f"gpu: {missing}: nothing to check or measure", file=sys.stderr)
        return 3
    if o.probe:
        return 0
    names = [n for n in o.sections.split(",") if n]
    unknown = [n for n in names if n not in [s[0] for s in SECTIONS]]
    if unknown:
        print(f"gpu: no section '{unknown[0]}'; there are "
              + ", ".join(s[0] for s in SECTIONS), file=sys.stderr)
        return 2
    os.makedirs(o.out, exist_ok=True)
    record, begin = Record(o.out, o), time.monotonic()
    todo = [s for s in SECTIONS if not names or s[0] in names]
    for i, (name, share, purpose) in enumerate(todo):
        left = o.limit - (time.monotonic() - begin)
        print(f"{name}: {purpose}", flush=True)
        run_section(o, name, left * share / sum(s[1] for s in todo[i:]),
                    record)
    record.all["seconds"] = round(time.monotonic() - begin, 1)
    record.all["against_flash"] = {" ".join(map(str, c)): round(v, 4)
                                   for c, v in against_flash(record).items()}
    record.all["training_against_flash"] = {
        " ".join(map(str, c)): round(v, 4)
        for c, v in against_flash(record, "training").items()}
    record.save()
    summary(record)
    print(f"wrote {record.path}")
    return 1 if bad_lines(record) else 0


if __name__ == "__main__":
    sys.exit(main())
