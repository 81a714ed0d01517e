"""Several processes as one run: how they find each other and agree.

Every process runs the same program. `initialize` joins them, before any device is touched:

- `MASKDIT_COORDINATOR=HOST:PORT`, `MASKDIT_PROCESSES=N` and `MASKDIT_PROCESS=I` in the environment, or
- what JAX finds on Cloud TPU pods, Slurm, GKE and Open MPI; elsewhere the process is alone.

A process that fails tells the others why; one that dies is missed. Either way all end with a sentence and exit code 1,
within `MASKDIT_PATIENCE` seconds (40), which is also how long a start waits for the last process.

    python -m maskdit.training.distributed --check [--bucket gs://BUCKET/FOLDER]

looks at a set of processes before work is given to them.
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from maskdit.training.mesh import MeshShape, batch_sharding, replicated
from maskdit.training.peers import Peers
from maskdit.training.placement import spread

_VARIABLES = ("MASKDIT_COORDINATOR", "MASKDIT_PROCESSES", "MASKDIT_PROCESS")
_LIBRARIES = ("maskdit", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_BACKSTOP = 12
"""Seconds after which JAX's coordination service ends a job that its own threads should have ended."""
_peers: Peers | None = None
_rounds = itertools.count()


class DistributedError(RuntimeError):
    """Processes that cannot work together; the message says which, and what to do."""


def initialize() -> None:
    """Joins this process with those of its job. Does nothing where there is one, and the second time.

    Raises:
      DistributedError: where the environment names them wrongly, or a device is in use already.
    """
    global _peers
    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    if _peers is not None:
        return
    if given and len(given) < len(_VARIABLES):
        missing = " and ".join(name for name in _VARIABLES if name not in given)
        raise DistributedError(f"{' and '.join(given)} is set and {missing} is not: set all three, or none")
    if not jax.distributed.is_initialized():
        _join(given)
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    from jax._src import distributed as service  # the store has no public name

    _peers = Peers(service.global_state.client, jax.process_index(), jax.process_count(), _patience())


def _join(given: Mapping[str, str]) -> None:
    patience, arguments = _patience(), {}  # type: float, dict[str, Any]
    if given:
        address, count, index = (given[name] for name in _VARIABLES)
        if not count.isdigit() or not index.isdigit() or int(index) >= int(count) or ":" not in address:
            raise DistributedError(
                f"{_VARIABLES[0]} is HOST:PORT, {_VARIABLES[1]} a number N, {_VARIABLES[2]} a number 0 to N - 1; got "
                f"'{address}', '{count}' and '{index}'"
            )
        if int(count) == 1:
            return
        arguments = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
        arguments["cluster_detection_method"] = "deactivate"
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX would end the process too, after a few seconds more, in a stack trace
    timer = threading.Timer(patience, _nobody_came, (given, patience))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=int(patience) + _BACKSTOP,
            heartbeat_timeout_seconds=int(patience) + _BACKSTOP,
        )
    except ValueError as error:
        if given or "should be defined" not in str(error):  # else no cluster: this process is alone
            raise DistributedError(f"the processes of this job cannot be found: {error}") from error
    except RuntimeError as error:
        if not given and "must be called before" in str(error):
            return  # a program that uses JAX already, alone
        raise DistributedError(f"cannot join the other processes at {given or 'their coordinator'}: {error}") from error
    finally:
        timer.cancel()


def _nobody_came(given: Mapping[str, str], patience: float) -> None:
    where = f"{given[_VARIABLES[1]]} processes at {given[_VARIABLES[0]]}" if given else "the processes of this job"
    who = f"process {given[_VARIABLES[2]]}" if given else "this process"
    sentence = (
        f"maskdit: {who} waited {patience:.0f} s for {where}, and not all came: see whether each was started and can "
        "reach that address, or allow more time with MASKDIT_PATIENCE=SECONDS"
    )
    print(sentence, file=sys.stderr, flush=True)
    os._exit(1)


def _patience() -> float:
    text = os.environ.get("MASKDIT_PATIENCE", "40")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if seconds < 5:
        raise DistributedError(f"MASKDIT_PATIENCE is a number of seconds, 5 or more; got '{text}'")
    return seconds


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Joins the processes; an error inside, on any of them, ends all with exit code 1, and all say why.

    No caller catches that error: peers that are in the middle of a collective cannot go on. One process that is alone
    raises as ever.
    """
    initialize()
    try:
        yield
    except BaseException as error:
        if _peers is None:
            raise
        sentence, silent = str(error) or type(error).__name__, []
        if isinstance(error, jax.errors.JaxRuntimeError) and (silent := _peers.silent()):
            # a collective fails where a peer dies
            sentence = f"nothing is heard of {', '.join(silent)} ({_line(error)}). Start the job again: a run goes on "
            sentence += "from its last checkpoint"
        elif os.environ.get("MASKDIT_TRACEBACK") or not _told(error):
            traceback.print_exception(error)
        _peers.end(sentence, dead=len(silent))


def peers() -> Peers | None:
    """The processes of this job; None where there is one."""
    return _peers


def is_first() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def first(make: Callable[[], Any]) -> Any:
    """What `make` gives on the first process, on all of them; it is called there only. JSON types.

    All processes call this, as everything below, in the same order.
    """
    if _peers is None:
        return make()
    key = f"first/{next(_rounds)}"
    if _peers.index == 0:
        _peers.put(key, json.dumps(make()))
    return json.loads(_peers.get(key))


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in order, on all of them. JSON types."""
    if _peers is None:
        return [value]
    key = f"gathered/{next(_rounds)}"
    _peers.put(f"{key}/{_peers.index}", json.dumps(value))
    return [json.loads(_peers.get(f"{key}/{process}")) for process in range(_peers.count)]


def barrier() -> None:
    """Waits until all processes are here."""
    if _peers is not None:
        _peers.wait(f"barrier/{next(_rounds)}")


def refuse(problem: str) -> None:
    """Raises on all processes where one of them has a problem.

    Args:
      problem: this process's; empty for none.

    Raises:
      DistributedError: with the problems, by process.
    """
    found = [(process, said) for process, said in enumerate(gathered(problem)) if said]
    if found:
        listed = "; ".join(f"{_name(process)}: {said}" for process, said in found[:8])
        raise DistributedError(listed + (f"; and {len(found) - 8} more" if len(found) > 8 else ""))


def agree(**facts: Any) -> None:
    """Refuses processes that were started differently: other versions, another config, another command.

    Args:
      **facts: JSON types, which must be the same on all processes, as the versions of the libraries must be.

    Raises:
      DistributedError: on every process, naming those that differ from the first one, and in what.
    """
    if _peers is None:
        return
    ours = _flat(json.loads(json.dumps({"versions": versions(), **facts})))
    theirs = first(lambda: ours)
    absent = "(absent)"
    lines = [
        f"{key} is {ours.get(key, absent)!r}, on process 0 {theirs.get(key, absent)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key, absent) != theirs.get(key, absent)
    ]
    try:
        refuse(", ".join(lines[:5]) + (f", and {len(lines) - 5} more" if len(lines) > 5 else ""))
    except DistributedError as error:
        advice = "start all processes with the same installation, config and arguments"
        raise DistributedError(f"the processes differ: {error}; {advice}") from None


def share(folder: epath.Path) -> None:
    """Refuses a folder in which not every process can write, or that is not the same one for all.

    Raises:
      DistributedError: on every process.
    """
    mine, others = folder / f".process-{jax.process_index()}", folder / ".process-0"
    problem = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mine.write_text("")
    except Exception as error:  # each kind of storage has its own
        problem = f"cannot write to {folder} ({_line(error)})"
    refuse(problem)
    if not others.exists():
        problem = (
            f"does not find in {folder} what process 0 wrote there: all processes need one folder, gs:// or shared"
        )
    refuse(problem)
    mine.unlink()
    barrier()


def versions() -> dict[str, str]:
    """Versions of the libraries that results depend on."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix[:-1]: value}
    return dict(pair for key, item in value.items() for pair in _flat(item, f"{prefix}{key}.").items())


def _name(process: int) -> str:
    return f"process {process}" if _peers is None else _peers.name(process)


def _told(error: BaseException) -> bool:
    """Whether an error carries a sentence: of this library, or about values and files."""
    return isinstance(error, ValueError | OSError) or type(error).__module__.startswith("maskdit.")


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check(bucket: str | None = None) -> str:
    """Looks at the processes of a job: devices, a sum over all of them, versions, clocks, a folder that all can use.

    Returns:
      A table.

    Raises:
      DistributedError: with what does not work, on every process.
    """
    agree()
    devices = MeshShape().make()
    refuse("" if len(devices.local_devices) else "has no device of its own")
    numbers = spread(np.arange(1, devices.size + 1, dtype=np.float32), batch_sharding(devices))
    total = float(jax.jit(lambda a: a.sum(), out_shardings=replicated(devices))(numbers))
    right = devices.size * (devices.size + 1) / 2
    refuse("" if total == right else f"a sum over {devices.size} devices gives {total}, not {right}")
    if bucket is not None:
        share(epath.Path(bucket))
    barrier()
    clocks = gathered(time.time())
    kinds = gathered([jax.local_device_count(), jax.local_devices()[0].device_kind])
    lines = [
        f"{_name(process):<40} {count} x {kind:<16} clock {clock - clocks[0]:+.3f} s"
        for process, ((count, kind), clock) in enumerate(zip(kinds, clocks, strict=True))
    ]
    apart = max(clocks) - min(clocks)
    lines += [
        f"{devices.size} devices on {len(clocks)} process(es), a sum over all of them is right",
        f"versions equal: {', '.join(f'{name} {version}' for name, version in versions().items())}",
        f"clocks at most {apart:.3f} s apart" + (": set them, files will seem to come from the future" * (apart > 5)),
        *([f"every process can write to {bucket}"] if bucket is not None else []),
    ]
    return "\n".join(lines)


def main() -> int:
    """`python -m maskdit.training.distributed --check`; exit code 0 or 1."""
    parser = argparse.ArgumentParser(prog="python -m maskdit.training.distributed", description=check.__doc__)
    parser.add_argument("--check", action="store_true", required=True, help="look at the processes of this job")
    parser.add_argument("--bucket", metavar="PATH", help="a folder, such as gs://BUCKET/FOLDER, that all are to use")
    args = parser.parse_args()
    try:
        with together():
            table = check(args.bucket)
            if is_first():
                print(table)
    except (DistributedError, ValueError, OSError) as error:
        print(f"maskdit: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
