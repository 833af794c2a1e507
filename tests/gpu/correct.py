# SPDX-License-Identifier: Apache-2.0
"""Section `correct`: kernels of the cross product of features against f64,
each result told at once. Kernels are compiled ahead on all cores."""
import collections
import concurrent.futures
import os
import time

import numpy as np

import abi
import cases

REFUSED = -1 # ATTNC_E_REQUEST
AHEAD = 2 * (os.cpu_count() or 1)


class Bench:
    """What every case needs: the context, where memory lies."""

    def __init__(self, library, memory, target):
        self.memory = memory
        self.context = library.context(target=target, cache_dir="")

    def prepare(self, case):
        problem = cases.Problem(case)
        return problem, self.context.prepare(problem.spec(), problem.shape())

    def run(self, problem, plan):
        """The outputs of two launches, each into fresh poison."""
        m, out = self.memory, []
        for _ in range(2):
            held = {n: m.put(x.view(np.uint8)) for n, x in
                    problem.buffers().items()}
            args = problem.args({n: m.address(x) for n, x in held.items()})
            space = plan.workspace(args)
            work = m.empty(space + 64)
            args.workspace = (m.address(work) + 63) // 64 * 64
            args.workspace_bytes = space
            plan.launch(args, m.stream)
            m.wait()
            kind = np.uint32 if problem.elem == 4 else np.uint16
            out.append({n: np.ascontiguousarray(m.get(held[n])).view(
                np.uint32 if n in ("lse", "dsink") else kind)
                for n in problem.outputs()})
        return out

    def check(self, case, prepared):
        line = {"name": cases.name_of(case), "seed": case["seed"], "ok": False}
        try:
            problem, plan = prepared.result()
            line["compile_ms"] = round(plan.info["compile_ms"], 1)
            first, second = self.run(problem, plan)
            errors, why = problem.judge(first)
            same = all(np.array_equal(first[n], second[n]) for n in first)
            plan.release()
            line["errors"] = {n: float(e) for n, e in errors.items()}
            line["why"] = why or (None if same else "two launches differ")
            line["ok"] = line["why"] is None
        except abi.Failure as e:
            line.update(why=str(e), status=e.status)
            if prepared.exception() is e and e.status == REFUSED:
                line["ok"] = None # not in this version, and said so
        return line


def lost_device(line):
    """After such a fault nothing else runs in this process."""
    return any(word in (line["why"] or "") for word in
               ("CUDA_ERROR_ILLEGAL", "CUDA_ERROR_MISALIGNED",
                "CUDA_ERROR_LAUNCH_FAILED", "CUDA_ERROR_HARDWARE"))


def run(job):
    bench = Bench(job.library, job.memory, job.target)
    source = cases.all_cases(job.seed, job.only)
    for _ in range(job.start):
        next(source)
    queue, done = collections.deque(), job.start
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1)
    while time.monotonic() < job.deadline and done < job.most:
        while len(queue) < min(AHEAD, job.most - done):
            case = next(source)
            queue.append((case, pool.submit(bench.prepare, case)))
        line = bench.check(*queue.popleft())
        job.tell(case=done, **line)
        done += 1
        if lost_device(line):
            os._exit(9) # the next process goes on behind this case
    pool.shutdown(wait=False, cancel_futures=True)
    os._exit(0) # compiles still under way are of no use
