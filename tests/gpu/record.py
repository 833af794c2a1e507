# SPDX-License-Identifier: Apache-2.0
"""Golden vectors: what the chip does with each primitive, for the emulated
device to repeat. Copy OUT/vectors.json to tests/emu and commit it."""
import os
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))


def run(job):
    build = os.path.dirname(os.environ["LIBATTNC"])
    program = os.path.join(build, "tests", "record_vectors")
    if not os.path.exists(program):
        job.tell(why=f"no {program}: the tests were not built")
        return
    path = os.path.join(job.out, "vectors.json")
    p = subprocess.run([program, job.target, path], text=True,
                       capture_output=True, stdin=subprocess.DEVNULL,
                       env=dict(os.environ, SOURCE=ROOT))
    if p.returncode:
        job.tell(ok=False, why=p.stderr.strip()[-400:])
    else:
        job.tell(ok=True, file="vectors.json", bytes=os.path.getsize(path))
