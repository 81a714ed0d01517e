"""Settings that must stand before JAX is imported. What the environment sets already wins.

Tests run on the CPU as 8 devices, so that meshes are tested without hardware, and compile without optimisation: most of
the time of tiny networks is compilation, which takes half as long.
"""

import os
import pathlib
from collections.abc import Iterator

import pytest

_FLAGS = {"--xla_force_host_platform_device_count": "8", "--xla_backend_optimization_level": "0"}

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs compiled once serve all tests, workers and child processes.
_CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([given, *(f"{k}={v}" for k, v in _FLAGS.items() if k not in given)]).strip()

_MOST = 4 << 30
"""Bytes of memory from which a worker lets its compiled programs go between two files; the cache on disk keeps them."""


@pytest.fixture(autouse=True, scope="module")
def _programs_let_go() -> Iterator[None]:
    yield
    resident = pathlib.Path("/proc/self/statm")
    if resident.exists() and int(resident.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > _MOST:
        import jax

        jax.clear_caches()
