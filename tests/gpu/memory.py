# SPDX-License-Identifier: Apache-2.0
"""Where tensors lie and how a launch is timed: on a GPU through PyTorch, or
in the host's memory through NumPy alone."""
import statistics
import subprocess
import time

import numpy as np


class Host:
    """For targets that read the host's memory, and for trying the scripts."""
    name, stream, torch = "host", None, None

    def put(self, data):
        """Bytes (uint8) -> something that holds a copy of them."""
        return data.copy()

    def get(self, held):
        return held

    def address(self, held):
        return held.ctypes.data

    def empty(self, count):
        return np.zeros(count + 64, np.uint8)

    def wait(self):
        pass

    def times(self, fn, count):
        """Milliseconds of each of `count` calls."""
        out = []
        for _ in range(count):
            start = time.perf_counter()
            fn()
            out.append(1e3 * (time.perf_counter() - start))
        return out

    def clocks(self):
        return {}


class Gpu:
    name = "torch"

    def __init__(self):
        import torch
        self.torch = torch
        self.stream = torch.cuda.current_stream().cuda_stream

    def put(self, data):
        return self.torch.from_numpy(data).cuda()

    def get(self, held):
        return held.cpu().numpy()

    def address(self, held):
        return held.data_ptr()

    def empty(self, count):
        return self.torch.empty(max(count, 1), dtype=self.torch.uint8,
                                device="cuda")

    def wait(self):
        self.torch.cuda.synchronize()

    def times(self, fn, count):
        event = self.torch.cuda.Event
        marks = [(event(enable_timing=True), event(enable_timing=True))
                 for _ in range(count)]
        for a, b in marks:
            a.record()
            fn()
            b.record()
        self.wait()
        return [a.elapsed_time(b) for a, b in marks]

    def clocks(self):
        return smi("clocks.sm,clocks.mem,power.draw,temperature.gpu")


def smi(fields):
    """{field: value} of the first GPU as nvidia-smi tells it."""
    try:
        out = subprocess.run(["nvidia-smi", "--query-gpu=" + fields, "-i", "0",
                              "--format=csv,noheader"], text=True, timeout=20,
                             capture_output=True, check=True).stdout
    except (OSError, subprocess.SubprocessError) as e:
        return {"nvidia-smi": str(e)}
    return dict(zip(fields.split(","), (w.strip() for w in out.split(","))))


def measure(memory, fn, budget_ms=60.0, most=200):
    """Median and least of as many calls as fit the budget, after warm ones."""
    fn()
    memory.wait()
    once = max(statistics.median(memory.times(fn, 3)), 1e-3)
    times = memory.times(fn, int(min(max(budget_ms / once, 5), most)))
    return {"ms": statistics.median(times), "least_ms": min(times),
            "calls": len(times)}
