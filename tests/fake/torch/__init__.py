# SPDX-License-Identifier: Apache-2.0
"""As much of PyTorch as ./run gpu uses, in NumPy, so that a test can walk its
paths: tensors lie in the host's memory, events are wall clock."""
import contextlib
import time
import types

import numpy as np

__version__ = "fake"
float16, uint8 = np.float16, np.uint8


class Tensor:
    def __init__(self, x):
        self.x = x
        self.shape = x.shape

    def cuda(self):
        return Tensor(self.x.copy())

    def cpu(self):
        return self

    def numpy(self):
        return self.x

    def clone(self):
        return Tensor(self.x.copy())

    def float(self):
        return Tensor(self.x.astype(np.float32))

    def norm(self):
        return np.linalg.norm(self.x)

    def requires_grad_(self):
        return self

    def fill_(self, value):
        self.x[...] = value

    def data_ptr(self):
        return self.x.ctypes.data

    def __sub__(self, other):
        return Tensor(self.x - other.x)


def from_numpy(x):
    return Tensor(x)


def empty(count, dtype, device):
    assert device == "cuda"
    return Tensor(np.empty(count, dtype))


def full(shape, value, dtype, device):
    assert device == "cuda"
    return Tensor(np.full(shape, value, dtype))


def randn(shape, dtype, device):
    assert device == "cuda"
    return Tensor(np.random.default_rng(1).standard_normal(shape)
                  .astype(dtype))


def equal(a, b):
    return np.array_equal(a.x, b.x)


def compile(fn, dynamic):
    assert dynamic is False
    return fn


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)


class Graph:
    def replay(self):
        pass


def grad(o, inputs, dout):
    assert o.shape == dout.shape
    return [i.clone() for i in inputs]


no_grad = contextlib.nullcontext
autograd = types.SimpleNamespace(grad=grad)
version = types.SimpleNamespace(cuda="13.0")
_dynamo = types.SimpleNamespace(reset=lambda: None)
cuda = types.SimpleNamespace(
    is_available=lambda: True, synchronize=lambda: None, Event=Event,
    empty_cache=lambda: None, reset_peak_memory_stats=lambda: None,
    memory_allocated=lambda: 0, max_memory_allocated=lambda: 2**22,
    CUDAGraph=Graph, graph=lambda g: contextlib.nullcontext(),
    current_stream=lambda: types.SimpleNamespace(cuda_stream=0),
    get_device_properties=lambda i: types.SimpleNamespace(
        name="fake", multi_processor_count=1, major=9, minor=0))
