"""How XLA compiles our programs: its options on each platform, and the programs that are kept on disk.

`XLA_FLAGS` and `LIBTPU_INIT_ARGS` are left to the user: a flag that the installed version does not know ends the
process there, while an option that goes with a program is refused by name. An option that the user sets in either
variable is left as it is.

The persistent compilation cache is JAX's, and its own variables rule it: `JAX_COMPILATION_CACHE_DIR` names another
directory, `JAX_ENABLE_COMPILATION_CACHE=false` switches it off, `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS` (1) is the
compile time from which a program is kept, `JAX_EXPLAIN_CACHE_MISSES=true` tells what was compiled anew and why. A
program's key holds the versions, the options, the devices and, on a CPU, its instruction set, so that one directory
serves machines of different kinds. Of the processes of one job the first writes: give them a directory that all can
read, such as one in a bucket. An entry that cannot be written or read costs a warning and a compilation. Nothing is
ever removed; delete the directory at any time. Whoever can write to it can run code here: keep it private.
"""

import dataclasses
import importlib.util
import logging
import os
import pathlib
import re

from maskdit.cache_folder import cache_folder

_LOG = logging.getLogger(__name__)
_TPUS = ("/dev/accel0", "/dev/vfio/0")
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


@dataclasses.dataclass(frozen=True)
class Option:
    """A compiler option that differs from XLA's default.

    Attributes:
      platform: `cpu`, `gpu` or `tpu`.
      name, value: as XLA spells them.
      why: what it does here.
    """

    platform: str
    name: str
    value: bool | int | str
    why: str


OPTIONS = (
    Option(
        "gpu",
        "xla_gpu_enable_latency_hiding_scheduler",
        True,
        "collectives run beside the products that do not need them; one after the other by default",
    ),
    Option(
        "tpu",
        "xla_jf_spmd_threshold_for_windowed_einsum_mib",
        "1000000",
        "a weight cut over fsdp is gathered whole, once, in place of a ring of partial products that moves more bytes",
    ),
)
"""Every option that is set. None on a CPU, where results must not depend on where they were compiled."""


def compiler_options(platform: str) -> dict[str, bool | int | str]:
    """What to give to `jax.jit(...).lower(...).compile(compiler_options=...)` for a platform: `cpu`, `gpu` or `tpu`."""
    asked = set(re.findall(r"--(\w+)", " ".join(os.environ.get(name, "") for name in _FLAGS)))
    return {option.name: option.value for option in OPTIONS if option.platform == platform and option.name not in asked}


def own_options() -> dict[str, bool | int | str]:
    """`compiler_options` of the devices that this process computes on, for `jax.jit(compiler_options=...)`."""
    import jax

    return compiler_options(jax.default_backend())


_COMPILE_ONLY = {
    "JAX_PLATFORMS": "cpu",  # a TPU of this machine is left alone
    "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server what machine this is
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several compilers may run at once: none holds a chip
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


def leave_out_tpu() -> None:
    """Keeps jax from looking for a TPU where its compiler is installed (the extra `aot`) and no TPU is; to be called
    before jax is imported. It would complain in many lines, and its profiler ends the process.
    """
    if importlib.util.find_spec("libtpu") is None or any(pathlib.Path(path).exists() for path in _TPUS):
        return
    os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu" if pathlib.Path("/dev/nvidia0").exists() else "cpu")


def compile_only() -> None:
    """Lets the TPU compiler work without a TPU, and, where jax was not imported yet, jax compute on the CPU.

    What the environment sets already wins.
    """
    for variable, value in _COMPILE_ONLY.items():
        os.environ.setdefault(variable, value)


def keep_programs() -> pathlib.Path | None:
    """Keeps compiled programs in `$XDG_CACHE_HOME/maskdit/xla`, which is `~/.cache/maskdit/xla` by default.

    To be called before anything is compiled. A directory or switch that the user has set is left alone. Where the
    directory cannot be written to, programs are compiled each time and a line in the log says so.

    Returns:
      The directory, or None where nothing was set.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] or not jax.config.values["jax_enable_compilation_cache"]:
        return None
    directory = cache_folder() / "xla"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(directory, os.W_OK):
            raise PermissionError(f"no permission to write to {directory}")
    except (OSError, RuntimeError) as error:
        _LOG.info("compiled programs are not kept: %s; JAX_COMPILATION_CACHE_DIR names another directory", error)
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    return directory
