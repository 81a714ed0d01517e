"""What the JAX worker measures on disks and in loaders."""

import functools
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from maskdit.contracts import Plan
from maskdit.data.array_record import ArrayRecord, write_array_record
from maskdit.data.loader import Loader
from maskdit.interop.dit import LABEL
from maskdit.performance.gpu.plan import Workload
from maskdit.tasks.generator import Generator
from maskdit.tokenizers.linear import LinearPatches
from maskdit.training.checkpoint import Checkpoints, Store
from maskdit.training.mesh import MeshShape, unboxed
from maskdit.training.step import TrainState, compiled, lower

_PIXELS = 2
"""Pixels along a side of one latent position."""


def checkpoint(state: TrainState, folder: str) -> dict[str, Any]:
    """Saves a training state and restores it: seconds of each, and the bytes on disk."""
    store = Store(folder, Checkpoints(every=1, keep=1))
    begin = time.perf_counter()
    store.save(state, {})
    stalled = time.perf_counter()
    store.wait()
    saved = time.perf_counter()
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    number = int(state.step)
    for leaf in jax.tree.leaves(state):
        leaf.delete()  # there may be no room for two
    restoring = time.perf_counter()
    jax.block_until_ready(store.restore(number, like))
    restored = time.perf_counter()
    store.close()
    size = sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return {
        "stall": stalled - begin,
        "total": saved - begin,
        "restore": restored - restoring,
        "bytes": size,
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like)),
    }


def tokenizer(work: Workload) -> LinearPatches:
    """The tokenizer with which images of `_PIXELS` times the latents' side make the latents of a workload."""
    return LinearPatches(patch=_PIXELS, channels=work.channels)


def loader(
    task: Generator,
    work: Workload,
    folder: str,
    records: int,
    workers: list[int],
    steps: int,
    make: Callable[..., TrainState],
) -> dict[str, Any]:
    """Random PNG images from ArrayRecord: the loader's rate alone, and what it costs a training step.

    Args:
      task, work: what trains on them, with the `tokenizer` of the workload.
      folder: where the data set is written.
      records: its size.
      workers: numbers of processes to try, 0 for threads.
      steps: batches and steps timed.
      make: makes a training state of a task and a batch.
    """
    size, draw = work.input_size * _PIXELS, np.random.default_rng(0)
    images = (
        {"image": draw.integers(0, 256, (size, size, 3), np.uint8), LABEL: i % work.classes} for i in range(records)
    )
    write_array_record(images, folder, shards=4, labels={LABEL: [str(i) for i in range(work.classes)]})
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    seed = jax.random.key(0)
    frozen = {"tokenizer": jax.jit(lambda key: unboxed(task.tokenizer.init(key, np.zeros(image.shape))))(seed)}
    static: dict[str, Any] = {"task": task, "plan": Plan(work.keep), "groups": ("generator",), "microbatches": 1}
    one = MeshShape().make(jax.devices()[:1])
    found: dict[str, Any] = {"records": records, "size": size, "loaders": []}
    program: Any = None
    for number in workers:
        threads = min(16, os.cpu_count() or 1)
        source = Loader(ArrayRecord(folder), size=size, threads=threads, workers=number, prefetch=threads)
        with source.batches(0, work.batch) as batches:
            begin = time.perf_counter()
            rows = _arrays(next(batches))
            first = time.perf_counter() - begin
            alone = _seconds(lambda batches=batches: next(batches), steps)  # type: ignore[misc]
            if program is None:
                holder = [make(task, rows)]
                program = compiled(lower(holder[0], frozen, rows, seed, **static, devices=one), one)

                def train(rows: Any, program: Any = program, holder: list[Any] = holder) -> Any:
                    holder[0], metrics = program(holder[0], frozen, rows, seed)
                    return metrics["loss"]

                _seconds(functools.partial(train, rows), 3)
                found["resident"] = _seconds(functools.partial(train, rows), steps)
            fed = _seconds(lambda batches=batches: train(_arrays(next(batches))), steps)  # type: ignore[misc]
        rate = {"workers": number, "threads": threads, "first": first, "images_per_second": work.batch / alone}
        found["loaders"].append({**rate, "fed": fed, "starvation": fed / found["resident"]})
    return found


def _arrays(batch: dict[str, Any]) -> dict[str, Any]:
    return jax.device_put({name: value for name, value in batch.items() if name != "replaced"})


def _seconds(run: Callable[[], Any], steps: int) -> float:
    """Seconds of one of `steps` calls, waited for at their end."""
    begin, done = time.perf_counter(), None
    for _ in range(steps):
        done = run()
    jax.block_until_ready(done)
    return (time.perf_counter() - begin) / steps
