"""The host's memory allocator.

A training step on a CPU allocates and frees the same hundreds of megabytes of activations each time. glibc serves large
blocks by `mmap` and gives them back to the kernel when they are freed, so that every step pays for page faults and
zeroed pages: between a tenth and a quarter of its CPU time.
"""

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8  # malloc.h
_SETTINGS = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 256 << 20))


def keep_pages() -> bool:
    """Tells the allocator to keep freed pages; to be called before jax is imported, as threads keep their arenas.

    The process keeps its peak memory until it ends. Does nothing where the C library is not glibc.

    Returns:
      Whether the settings were taken.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) == 1 for parameter, value in _SETTINGS)
