# SPDX-License-Identifier: Apache-2.0
"""Back ends by name."""
import contextlib
import enum

from torch.nn import chosen


class SDPBackend(enum.Enum):
    FLASH_ATTENTION = "flash"
    CUDNN_ATTENTION = "cudnn"
    EFFICIENT_ATTENTION = "efficient"
    MATH = "math"


@contextlib.contextmanager
def sdpa_kernel(kind):
    chosen[0] = SDPBackend(kind).value
    try:
        yield
    finally:
        chosen[0] = None
