"""The parts of `maskdit bench`: loader, step, both together, sampler, checkpoint. Each gives figures.

Rates are medians of blocks. A block is ten steps or half a second, whichever is more; nothing waits for the devices but
the end of a block. Steps on a resident batch and steps on loaded ones take turns, so that their ratio means something
on a machine that others use too.
"""

import dataclasses
import functools
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from maskdit import config as configs
from maskdit.performance.costs import plan_name
from maskdit.performance.peaks import chip, mfu, training_flops
from maskdit.performance.report import Figure
from maskdit.performance.subject import Started, Subject
from maskdit.performance.timing import Clock, Compilations, Rate, Spread, alternate, counted, matrix_products
from maskdit.tokenizers.pixels import Pixels
from maskdit.training import checkpoint, distributed, evaluation

WARM = 5
"""Steps before any is timed."""
BLOCK_STEPS, BLOCK_SECONDS = 10, 0.5
LATENCIES, LATENCY_SECONDS = 20, 20.0
"""Single images that are sampled for quantiles, and seconds for which fewer are, three at least."""
SAMPLES = 64
"""Images sampled at once, where the batch is not smaller."""


def loading(subject: Subject, rounds: int) -> list[Figure]:
    """The config's loader alone."""
    run = subject.run
    first = Figure("loader.first_batch", subject.first_batch, "s", note="from opening the source")
    return [*stream(run.data, run.batch, rounds, subject.rows, subject.at), first]


def stream(loader: Any, batch: int, rounds: int, rows: Sequence[int] | None = None, start: int = 0) -> list[Figure]:
    """Images of a loader by wall time and by CPU-seconds, worker processes included.

    Args:
      loader: a `maskdit.data.loader.Loader`.
      batch: rows of the global batch.
      rounds: blocks.
      rows: the rows that this process makes; None for all.
      start: the first step.
    """
    images = batch if rows is None else len(rows)
    with loader.batches(0, batch, start=start, rows=rows) as batches:
        begin = Clock.now()
        for _ in range(WARM):
            next(batches)
        count = _block(begin.since().wall / WARM)

        def block() -> Clock:
            begin = Clock.now()
            for _ in range(count):
                next(batches)
            return begin.since()

        spent = [block() for _ in range(rounds)]
    how = f"{loader.threads} threads, {loader.workers} workers; blocks of {count} batches"
    wall, cpu = Spread.of([one.wall for one in spent]), Spread.of([max(one.cpu, 1e-9) for one in spent])
    return [
        Figure.of("loader.images_per_second", wall.inverse(images * count), "images/s", how),
        Figure.of("loader.images_per_cpu_second", cpu.inverse(images * count), "images/s", "per CPU-second"),
    ]


@dataclasses.dataclass(frozen=True)
class _Turn:
    """Seconds of one block's step, CPU-seconds of it, and the share of the block that waited for batches."""

    wall: float
    cpu: float
    waited: float = 0.0


def stepping(subject: Subject, rounds: int, loaded: bool) -> tuple[list[Figure], list[str]]:
    """The training step on a resident batch and, where asked for, on loaded batches; figures and notes."""
    products = matrix_products()
    rates = [products.measure()]
    started = subject.start()
    on_cpu = jax.default_backend() == "cpu"

    def between(turn: Callable[[], _Turn]) -> _Turn:
        done = turn()
        if on_cpu:  # elsewhere the operands would count for the peak of memory
            rates.append(products.measure())
        return done

    with counted() as compilations:
        single = _resident(subject, WARM)
        count = _block(single.wall)
        turns = {"step": functools.partial(_resident, subject, count)}
        if loaded:
            turns["both"] = functools.partial(_loaded, subject, count)
        found = alternate({name: functools.partial(between, turn) for name, turn in turns.items()}, rounds)
    memory, source = peak_memory(subject)
    rates.append(products.measure())
    seconds = Spread.of([turn.wall for turn in found["step"]])
    notes = [f"{count} steps in a block, {rounds} blocks"]
    figures = _rates("step", subject, seconds)
    shares, said = _shares(subject, found["step"], rates, str(products))
    figures += [*shares, Figure("step.memory_peak", memory, "B", note=source)]
    figures += _start_figures(started, compilations)
    if loaded:
        both = Spread.of([turn.wall for turn in found["both"]])
        pairs = zip(found["both"], found["step"], strict=True)
        figures += _rates("both", subject, both)
        figures += [
            Figure.of("both.data_wait", Spread.of([turn.waited for turn in found["both"]]), "share", "of the time"),
            Figure.of(
                "both.starvation", Spread.of([a.wall / b.wall for a, b in pairs]), "x", "step time, loaded / resident"
            ),
        ]
    return figures, [*notes, *said]


def sampling(subject: Subject, rounds: int) -> list[Figure]:
    """Sampling runs with the config's sampler and guidance, with and without decoding; nothing where it has none."""
    run, state = subject.run, subject.begin()
    variables = {"params": evaluation.averaged(state, run.ema), "frozen": subject.frozen, "state": state.task}
    model = subject.task.model(variables, run.data.vocabulary)
    if run.sampler is None or not hasattr(model, "sample"):
        return []
    model = dataclasses.replace(model, sampler=run.sampler, guidance=run.guidance, devices=subject.devices)
    batch = min(run.batch, SAMPLES)
    figures = _sampled("sampler", model, batch, rounds, f"batch {batch}, {run.sampler.steps} steps")
    if isinstance(subject.task.tokenizer, Pixels):
        return figures
    bare = dataclasses.replace(
        model,
        task=dataclasses.replace(subject.task, tokenizer=Pixels()),
        variables={**variables, "frozen": {"tokenizer": {}}},
    )
    return figures + _sampled("sampler.undecoded", bare, batch, rounds, "latents")


def saving(subject: Subject, rounds: int, folder: str) -> list[Figure]:
    """Checkpoints of the whole state: how long a save holds up the loop, until it is complete, and the way back.

    Args:
      subject: what is measured.
      rounds: saves.
      folder: where; local or a bucket. What is written there is removed.
    """
    run = subject.run
    state: Any = subject.begin()
    path = epath.Path(folder) / distributed.first(lambda: f"maskdit_bench_{time.time_ns()}")
    record = {
        "config": configs.to_json(subject.config),
        "seed": run.seed,
        "ema": [str(decay) for decay in run.ema],
        "vocabulary": run.data.vocabulary,
    }
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    stalls, totals = [], []
    store = checkpoint.Store(str(path), checkpoint.Checkpoints(keep=1))
    try:
        for number in range(1, rounds + 1):
            step = jax.device_put(jnp.int32(number), state.step.sharding)
            state = jax.block_until_ready(dataclasses.replace(state, step=step))
            begin = time.perf_counter()
            store.save(state, record)
            stalls.append(time.perf_counter() - begin)
            store.wait()
            totals.append(time.perf_counter() - begin)
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
        state = subject.state = None  # two states may not fit
        begin = time.perf_counter()
        subject.state = jax.block_until_ready(store.restore(rounds, like))
        restored = time.perf_counter() - begin
    finally:
        store.close()
        if distributed.is_first() and path.exists():
            path.rmtree()
    return [
        Figure.of("checkpoint.stall", Spread.of(stalls), "s", "until the loop goes on"),
        Figure.of("checkpoint.total", Spread.of(totals), "s", "until the checkpoint is complete"),
        Figure("checkpoint.restore", restored, "s", note="just written, so files may be cached"),
        Figure("checkpoint.bytes", size, "B", note="of the state"),
    ]


def peak_memory(subject: Subject) -> tuple[float, str]:
    """Bytes that training needed at most on one device, and how that is known."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    if peaks:
        return float(max(peaks)), "of a device, by its allocator, since the process began"
    needed = subject.program.memory_analysis()
    if needed is not None:
        arrays = needed.argument_size_in_bytes + needed.output_size_in_bytes - needed.alias_size_in_bytes
        return float(arrays + needed.temp_size_in_bytes), "of a device, as the compiler planned: arrays and temporaries"
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit), "resident memory of the process"


def _resident(subject: Subject, count: int) -> _Turn:
    arrays, begin, metrics = subject.resident, Clock.now(), None
    for _ in range(count):
        metrics = subject.step(arrays)
    jax.block_until_ready(metrics)
    spent = begin.since()
    return _Turn(spent.wall / count, spent.cpu / count)


def _loaded(subject: Subject, count: int) -> _Turn:
    """A block of the loop's path: next batch, to the devices, step, and a look at the metrics of the step before.

    The loader is opened for the block and closed after it, so that it makes no batches while others are timed; the
    first steps are not timed.
    """
    metrics: Any = None
    with subject.batches(subject.at) as batches:
        for number in range(WARM + count):
            if number == WARM:
                jax.block_until_ready(metrics)
                begin, waited = Clock.now(), 0.0
            asked = time.perf_counter()
            batch = next(batches)
            if number >= WARM:
                waited += time.perf_counter() - asked
            before, metrics = metrics, subject.step(subject.place(batch))
            if before is not None:
                jax.device_get(before)
        jax.block_until_ready(metrics)
        spent = begin.since()
    return _Turn(spent.wall / count, spent.cpu / count, min(waited / spent.wall, 1.0))


def _block(seconds: float) -> int:
    """Steps of a block, the same on all processes."""
    return distributed.first(lambda: max(BLOCK_STEPS, math.ceil(BLOCK_SECONDS / max(seconds, 1e-6))))


def _rates(part: str, subject: Subject, seconds: Spread) -> list[Figure]:
    rate, devices = seconds.inverse(subject.run.batch), subject.devices.size
    figures = [Figure.of(f"{part}.images_per_second", rate, "images/s")]
    if devices > 1:
        per_device = rate.times(1 / devices)
        figures.append(Figure.of(f"{part}.images_per_second_per_device", per_device, "images/s"))
    return [*figures, Figure.of(f"{part}.time", seconds.times(1000), "ms", "of a step")]


def _shares(subject: Subject, turns: list[_Turn], rates: list[Rate], products: str) -> tuple[list[Figure], list[str]]:
    """What share of the peak the step reached, and what was counted against what."""
    cpu = Spread.of([turn.cpu for turn in turns])
    figures = [Figure.of("step.cpu_time", cpu, "s", "CPU-seconds of a step, this process")]
    macs, devices, batch = subject.macs, subject.devices.size, subject.run.batch
    if macs is None:
        return figures, ["no MFU: the network has no formula for its multiply-adds"]
    on_cpu = jax.default_backend() == "cpu"
    measured = Spread.of([rate.wall for rate in rates]).times(1 if on_cpu else devices)
    speeds = Spread.of([turn.wall for turn in turns]).inverse(batch)
    known = None if on_cpu else chip(jax.devices()[0].device_kind)
    notes = [
        f"MFU counts {training_flops(macs) / 1e9:.4g} GFLOP per image: 6 x the network's multiply-adds by its formula, "
        f"{_tokens(subject)}; neither recomputation nor the tokenizer"
    ]
    if known is not None:
        share = _share(speeds, macs, known.flops * devices)
        note = f"of {known.flops / 1e12:.0f} TFLOP/s bfloat16 per device, the data sheet's ({known.name})"
        figures.append(Figure.of("step.mfu", share, "share", note))
    what = "of all cores" if on_cpu else "per device"
    rate = measured.median / (1 if on_cpu else devices)
    note = f"of the {rate / 1e9:,.0f} GFLOP/s {what} that {products} reached in this run"
    figures.append(Figure.of("step.mfu_measured", _share(speeds, macs, measured.median), "share", note))
    if on_cpu:
        per_cpu = Spread.of([rate.cpu for rate in rates])
        share = cpu.inverse(training_flops(macs) * batch).times(1 / per_cpu.median)
        note = f"the same by CPU-seconds: of {per_cpu.median / 1e9:.0f} GFLOP per CPU-second"
        figures.append(Figure.of("step.mfu_cpu_time", share, "share", note))
    elif known is None:
        notes.append(f"no data-sheet MFU: the peak of '{jax.devices()[0].device_kind}' is not known here")
    return figures, notes


def _share(speeds: Spread, macs: int, peak: float) -> Spread:
    return Spread(*(mfu(speed, macs, peak) for speed in (speeds.median, speeds.least, speeds.most)))


def _tokens(subject: Subject) -> str:
    name = plan_name(subject.plan)
    return f"{name} at step {subject.at}" if name else "all tokens"


def _start_figures(started: Started, later: Compilations) -> list[Figure]:
    source = "read from the compilation cache" if started.step_from_cache else "not from a cache"
    programs = started.programs
    until = f"until then, {programs.from_cache} of them from a cache"
    return [
        Figure("step.trace_time", started.trace, "s", note="tracing and lowering"),
        Figure("step.compile_time", started.compile, "s", note=source),
        Figure("step.time_to_first", started.first_step, "s", note="from opening the data to the end of step 1"),
        Figure("step.compilations", programs.programs, "", note=until),
        Figure("step.recompilations", later.programs, "", note="after the first step"),
    ]


def _sampled(part: str, model: Any, batch: int, rounds: int, note: str) -> list[Figure]:
    def seconds(count: int, seed: int) -> float:
        begin = time.perf_counter()
        model.sample(count=count, batch=count, seed=seed)
        return time.perf_counter() - begin

    first = seconds(batch, 0)
    rates = Spread.of([seconds(batch, 1 + number) for number in range(rounds)]).inverse(batch)
    seconds(1, 0)
    one = seconds(1, 1)
    runs = distributed.first(lambda: int(np.clip(LATENCY_SECONDS / one, 3, LATENCIES)))
    singles = [1000 * one, *(1000 * seconds(1, 2 + number) for number in range(runs - 1))]
    low, high = np.percentile(singles, [50, 95])
    return [
        Figure.of(f"{part}.images_per_second", rates, "images/s", note),
        Figure(f"{part}.first_run", first, "s", note="compiles"),
        Figure(f"{part}.latency_p50", float(low), "ms", min(singles), max(singles), f"of {len(singles)} single images"),
        Figure(f"{part}.latency_p95", float(high), "ms"),
    ]
