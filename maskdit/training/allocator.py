"""The host's memory allocator.

A training step on a CPU allocates and frees the same hundreds of megabytes of activations each time. glibc serves large
blocks by `mmap` and gives them back to the kernel when they are freed, so that every step pays for page faults and
zeroed pages.
"""

import ctypes
import os
import pathlib
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8  # malloc.h
_SETTINGS = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 256 << 20))


def accelerator() -> bool:
    """Whether this machine seems to compute on a GPU or TPU, where the host's threads should not share one arena."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked:
        return asked.split(",")[0] != "cpu"
    return any(pathlib.Path(device).exists() for device in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0"))


def keep_pages() -> bool:
    """Tells the allocator to keep freed pages; to be called before jax is imported, as threads keep their arenas.

    The process keeps its peak memory until it ends. Does nothing where the C library is not glibc
    or an accelerator computes.

    Returns:
      Whether the settings were taken.
    """
    if platform.libc_ver()[0] != "glibc" or accelerator():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) == 1 for parameter, value in _SETTINGS)
