# SPDX-License-Identifier: Apache-2.0
"""What may go wrong around a GPU: each is one line with the stage, the limit
and what to do, exit 2, 3 or 4, and never a run on the CPU instead."""
import os
import shutil
import subprocess
import unittest

from _attnc import SOURCE
from _cli import Case

RUN = ("run", "--target", "cuda", "--dtype", "f16", "--seqlen", "64",
       "--head-dim", "32")
DECODE = RUN[:5] + ("--seqlen", "1", "--seqlen-k", "20000")

# A preloaded library hides others from the loader.
hides = unittest.skipIf(os.environ.get("SANITIZE"),
                        "a sanitizer's runtime must be loaded first")


class Luck(Case):
    def setUp(self):
        super().setUp()
        if not shutil.which("cc"):
            self.skipTest("no cc to build fake libraries with")
        self.env = dict(LD_LIBRARY_PATH=self.dir, FAKE_H200="1",
                        ATTNC_CACHE_DIR=self.path("cache"))

    def build(self, source, name):
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", path,
                        os.path.join(SOURCE, "tests/fake", source), "-ldl"],
                       check=True)
        return path

    def driver(self):
        self.build("cuda.c", "libcuda.so.1")
        if not self.object("devices")["nvrtc"]["found"]:
            self.skipTest("no NVRTC")

    def told(self, rc, *says, args=RUN, **env):
        self.refused(*args, rc=rc, says=says, env={**self.env, **env})

    # ---- the driver ----

    @hides
    def test_no_driver(self):
        self.build("missing.c", "missing.so")
        env = dict(LD_PRELOAD=self.path("missing.so"), FAKE_MISSING="libcuda")
        self.told(3, "cuda: no NVIDIA driver", "libcuda.so.1",
                  "install NVIDIA's driver", **env)
        j = self.object("devices", env={**self.env, **env})
        self.assertEqual(j["auto"], "cpu")

    def test_a_driver_that_finds_no_gpu(self):
        self.driver()
        self.told(3, "cuInit", "CUDA_ERROR_NO_DEVICE", FAKE_INIT="100")

    def test_a_driver_too_old_to_load_libraries(self):
        self.driver()
        self.told(3, "CUDA 11.4", "needed: 12.0 or newer", FAKE_DRIVER="11040")

    def test_a_driver_older_than_the_toolkit(self):
        self.driver()
        for code, name in (("209", "CUDA_ERROR_NO_BINARY_FOR_GPU"),
                           ("222", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION")):
            self.told(3, "load: driver", "the driver (CUDA 12.4) refuses code",
                      "NVRTC", "sm_90a", name, "choose a target",
                      FAKE_LOAD=code)

    def test_no_memory(self):
        self.driver()
        self.told(4, "load: cuLibraryLoadData", "CUDA_ERROR_OUT_OF_MEMORY",
                  "free memory of the GPU", FAKE_LOAD="2")
        self.told(4, "launch: attn_fwd_f16", "CUDA_ERROR_OUT_OF_MEMORY",
                  "free memory of the GPU", FAKE_LAUNCH="2")
        self.told(4, "cuMemAlloc", "CUDA_ERROR_OUT_OF_MEMORY", FAKE_ALLOC="2")
        self.told(4, "cuMemAlloc", "CUDA_ERROR_OUT_OF_MEMORY", args=DECODE,
                  FAKE_ALLOC="2")

    def test_more_than_the_chip_has_after_all(self):
        self.driver()
        self.told(2, "load: smem_bytes", "H200 refuses a block of",
                  "sm_90a has 232448", "pin a smaller tile", FAKE_SET="1")
        self.told(2, "launch: tile", "H200 refuses", "threads", "232448 bytes",
                  "65536 registers", "pin a smaller tile", FAKE_LAUNCH="701")

    def test_a_kernel_that_faults(self):
        self.driver()
        self.told(4, "launch: attn_fwd_f16", "CUDA_ERROR_LAUNCH_FAILED",
                  FAKE_LAUNCH="719")

    # ---- the compiler ----

    @hides
    def test_no_compiler_at_all(self):
        self.build("cuda.c", "libcuda.so.1")
        self.build("missing.c", "missing.so")
        env = dict(LD_PRELOAD=self.path("missing.so"), FAKE_MISSING="nvrtc",
                   ATTNC_COMPILERS="gcc")
        self.told(3, "nvrtc: no NVRTC found", "libnvrtc.so.13",
                  "the loader's path", "pip install nvidia-cuda-nvrtc", **env)
        self.refused("emit", "--target", "sm_86", "--dtype", "f16", "--cubin",
                     "-o", self.path("out"), rc=3, env={**self.env, **env},
                     says="no NVRTC")
        j = self.object("devices", env={**self.env, **env})["nvrtc"]
        self.assertFalse(j["found"])
        self.assertIn("/usr/local/cuda", j["looked_in"])

    @hides
    def test_without_nvrtc_clang_makes_ptx(self):
        self.build("cuda.c", "libcuda.so.1")
        self.build("missing.c", "missing.so")
        env = {**self.env, "LD_PRELOAD": self.path("missing.so"),
               "FAKE_MISSING": "nvrtc"}
        if not any("clang" in c["path"] for c in
                   self.object("devices", env=env)["compilers"]):
            self.skipTest("no clang")
        j = self.object(*RUN, env=env)
        self.assertIn("clang", j["compile"]["compiler"])

    def fake_nvrtc(self, version, archs):
        self.build("nvrtc.c", "toolkit/lib64/libnvrtc.so.13")
        return {**self.env, "ATTNC_CUDA_DIRS": self.path("toolkit"),
                "FAKE_NVRTC": version, "FAKE_ARCHS": archs}

    def test_an_nvrtc_older_than_the_chip(self):
        env = self.fake_nvrtc("12", "75 80 89")
        j = self.object("devices", env=env)["nvrtc"]
        self.assertEqual((j["major"], j["oldest"], j["newest"]), (12, 75, 89))
        self.build("cuda.c", "libcuda.so.1")
        # PTX of the newest arch it knows, for the driver to finish.
        j = self.object(*RUN, env=env)
        self.assertEqual(j["compile"]["compiler"], "NVRTC 12.1")

    def test_an_nvrtc_newer_than_the_chip(self):
        env = self.fake_nvrtc("13", "100 120")
        self.refused("emit", "--target", "sm_86", "--dtype", "f16", "--cubin",
                     "-o", self.path("out"), rc=3, env=env,
                     says=("NVRTC 13.1 compiles for sm_100 and newer",
                           "not for sm_86"))

    def test_an_nvrtc_too_old_is_passed_over(self):
        env = self.fake_nvrtc("11", "75 80")
        j = self.object("devices", env=env)["nvrtc"]
        self.assertTrue(not j["found"] or j["major"] >= 12)


if __name__ == "__main__":
    unittest.main()
