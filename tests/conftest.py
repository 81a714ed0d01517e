"""Settings that must stand before JAX is imported. What the environment sets already wins.

Tests run on the CPU as 8 devices, so that meshes are tested without hardware, and compile without optimisation: most of
the time of tiny networks is compilation, which takes half as long.
"""

import os

_FLAGS = {"--xla_force_host_platform_device_count": "8", "--xla_backend_optimization_level": "0"}

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # tests count compilations
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([given, *(f"{k}={v}" for k, v in _FLAGS.items() if k not in given)]).strip()
