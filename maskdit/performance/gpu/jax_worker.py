"""The JAX worker: the library's own training step and sampler, timed on request; see `maskdit.performance.gpu`."""

import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Cond, Draw, Latents, Plan, PyTree, bind
from maskdit.interop import dit as dit_interop
from maskdit.interop import maskdit as maskdit_interop
from maskdit.interop.dit import LABEL
from maskdit.interop.rules import export_params, import_params
from maskdit.networks.dit import DiT
from maskdit.networks.maskdit import MaskDiT
from maskdit.performance.gpu import storage
from maskdit.performance.gpu.plan import Workload
from maskdit.performance.gpu.protocol import serve
from maskdit.performance.timing import MatrixProducts, counted
from maskdit.processes.ddpm import DDPM
from maskdit.processes.edm import EDM
from maskdit.processes.masking import draw_kept
from maskdit.samplers.ancestral import Ancestral
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.sampling import sample
from maskdit.tasks.generator import Generator
from maskdit.tokenizers.pixels import Pixels, to_float
from maskdit.tokenizers.vae import VAE
from maskdit.training.mesh import MeshShape, unboxed
from maskdit.training.step import TrainState, compiled, create, lower

REMATS = ("none", "dots", "full")
"""From the fastest to the smallest: the first that fits the device's memory is taken."""
FROZEN: dict[str, Any] = {"tokenizer": {}}


@dataclasses.dataclass
class Program:
    """A compiled training step, and what compiling it told."""

    task: Generator
    step: Any
    facts: dict[str, Any]


class Ours:
    """Answers the driver's requests."""

    def __init__(self) -> None:
        self.programs: dict[str, Program] = {}
        self.states: dict[str, TrainState] = {}
        self.seed = jax.random.key(0)

    def hello(self, folder: str) -> dict[str, Any]:
        """Versions and device; programs are cached in `folder` unless the environment names another place."""
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            jax.config.update("jax_compilation_cache_dir", folder)
        import flax
        import jaxlib
        import optax

        device = jax.devices()[0]
        versions = {module.__name__: module.__version__ for module in (jax, jaxlib, flax, optax)}
        return {"versions": versions, "device": device.device_kind, "platform": device.platform, "dtype": _dtype()}

    def ceilings(self, product: int, copied: int) -> dict[str, float]:
        """FLOP/s of a square bfloat16 product of random matrices, and bytes/s of a copy, read and written."""
        flops = sorted(MatrixProducts(product, product, product, "bfloat16", 10).measure().wall for _ in range(3))[1]
        whole = jax.random.normal(self.seed, (copied // 4,), jnp.float32)
        copy = jax.jit(lambda x: x + 1)
        copy(whole).block_until_ready()
        begin = time.perf_counter()
        for _ in range(10):
            copy(whole).block_until_ready()
        return {"flops": flops, "bytes": 20 * copied / (time.perf_counter() - begin)}

    def compile(self, workload: Mapping[str, Any]) -> dict[str, Any]:
        """Compiles a training step, with as little recomputation as the memory allows."""
        work = Workload.read(workload)
        for remat in REMATS:
            program = _compile(task_of(work, remat), work)
            program.facts["remat"] = remat
            limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
            if limit is None or program.facts["memory"] < limit:
                break
        self.programs[work.name] = program
        return program.facts

    def again(self, workload: Mapping[str, Any]) -> dict[str, Any]:
        """Compiles a training step anew, as another process would find it in the persistent cache."""
        jax.clear_caches()
        work = Workload.read(workload)
        before = self.programs.get(work.name)
        return _compile(task_of(work, before.facts["remat"] if before else REMATS[0]), work).facts

    def check(self, workload: Mapping[str, Any], folder: str, weights: str = "") -> dict[str, Any]:
        """Loss and gradient norm of the first step, from random weights, or those of a published state dict.

        Writes into `folder` what another implementation needs for the same step: `draws.npz`, and, for weights of our
        own, `ours.npz`, a state dict under the published names.
        """
        work = Workload.read(workload)
        program, where = self._program(work), pathlib.Path(folder)
        table = (dit_interop if work.system == "dit" else maskdit_interop).table(work.published)
        rows = rows_of(work)
        self.states.clear()
        if weights:
            like = jax.eval_shape(functools.partial(random_state, program.task), rows).params["network"]
            with np.load(weights) as file:
                params = import_params(table, {name: file[name] for name in file.files}, like)
            state = random_state(program.task, rows, params)
        else:
            state = random_state(program.task, rows)
            tensors: dict[str, Any] = export_params(table, jax.device_get(state.params["network"]))
            np.savez(where / "ours.npz", **tensors)
            used: dict[str, Any] = draws(program.task, work, rows, self.seed)
            np.savez(where / "draws.npz", **used)
        state, metrics = program.step(state, FROZEN, jax.device_put(rows), self.seed)
        self.states[work.system] = state
        loss, weight = metrics["loss"]
        return {"loss": float(loss / weight), "grad_norm": float(metrics["grad_norm"][0]), "dtype": _dtype()}

    def time(self, workload: Mapping[str, Any], steps: int) -> dict[str, float]:
        """Seconds per step of a run of steps on one resident batch, waited for at its end, and `compile`'s facts."""
        work = Workload.read(workload)
        program, rows = self._program(work), jax.device_put(rows_of(work))
        state = self.states.pop(work.system, None)
        if state is None:
            self.states.clear()
            state = random_state(program.task, rows)
        metrics: Any = jax.block_until_ready(state)
        begin = time.perf_counter()
        for _ in range(steps):
            state, metrics = program.step(state, FROZEN, rows, self.seed)
        jax.block_until_ready(metrics)
        seconds = (time.perf_counter() - begin) / steps
        self.states[work.system] = state
        return {**program.facts, "seconds": seconds}

    def drop(self) -> dict[str, Any]:
        """Frees all training states; tells the most bytes that the allocator had in use so far."""
        self.states.clear()
        return {"peak": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)}

    def sample(self, workload: Mapping[str, Any], batch: int, steps: int, repeats: int) -> dict[str, Any]:
        """Seconds of each of some ancestral sampling runs of latents with guidance 1.5, one program each."""
        work = Workload.read(workload)
        task = task_of(work, "none")
        shapes = jax.eval_shape(functools.partial(create, task, (), rows_of(work)), self.seed).params
        params = random_like(shapes)

        @jax.jit
        def run(params: PyTree, seed: Any) -> Any:
            numbers = jnp.arange(batch, dtype=jnp.uint32)
            cond = Cond(labels={LABEL: jax.random.randint(seed, (batch,), 0, work.classes)})
            draw, shape = Draw(seed).named("sample").at(numbers), (batch, *task.layout.shape)
            guidance = ClassifierFree(weight=1.5, channels=3)
            predict = bind(task.network, params["network"])
            return sample(task.process, Ancestral(steps), predict, draw, shape, cond, guidance=guidance)

        begin = time.perf_counter()
        program = run.lower(params, self.seed).compile()
        compiling = time.perf_counter() - begin
        program(params, self.seed).block_until_ready()
        return {"compile": compiling, "seconds": _repeat(lambda: program(params, self.seed), repeats)}

    def decode(self, side: int, batch: int, autoencoder: Mapping[str, Any], repeats: int) -> dict[str, Any]:
        """Seconds of decoding latents to images with an autoencoder of random weights."""
        vae = VAE(**{**autoencoder, "dtype": _dtype()})
        image = jnp.zeros((1, side * vae.latent.downsample, side * vae.latent.downsample, 3))
        variables = random_like(jax.eval_shape(vae.init, self.seed, image))
        latents = jax.random.normal(self.seed, (batch, side, side, vae.latent_channels))
        run = jax.jit(lambda variables, z: vae.apply(variables, Latents(values=z), method="decode"))
        begin = time.perf_counter()
        program = run.lower(variables, latents).compile()
        compiling = time.perf_counter() - begin
        program(variables, latents).block_until_ready()
        return {"compile": compiling, "seconds": _repeat(lambda: program(variables, latents), repeats)}

    def checkpoint(self, workload: Mapping[str, Any], folder: str) -> dict[str, Any]:
        """Seconds that a save keeps the training waiting, takes in all, and that restoring takes."""
        work = Workload.read(workload)
        task = task_of(work, "none")
        state = self.states.pop(work.system, None)
        if state is None:
            state = random_state(task, rows_of(work))
        return storage.checkpoint(state, folder)

    def loader(
        self, workload: Mapping[str, Any], folder: str, records: int, workers: list[int], steps: int
    ) -> dict[str, Any]:
        """The loader alone, and a training step with it beside the same step with a resident batch."""
        work = Workload.read(workload)
        task = dataclasses.replace(task_of(work, "none"), tokenizer=storage.tokenizer(work))
        return storage.loader(task, work, folder, records, workers, steps, random_state)

    def trace(self, workload: Mapping[str, Any], folder: str) -> dict[str, Any]:
        """Profiles three steps."""
        with jax.profiler.trace(folder):
            return {"folder": folder, **self.time(workload, 3)}

    def _program(self, work: Workload) -> Program:
        if work.name not in self.programs:
            self.compile(dataclasses.asdict(work))
        return self.programs[work.name]


def task_of(work: Workload, remat: str) -> Generator:
    """The task of a workload; labels carry the name that `maskdit.interop` uses."""
    fields: dict[str, Any] = {
        name: getattr(work, name) for name in ("input_size", "patch", "channels", "width", "depth", "heads", "scan")
    }
    fields |= {"classes": {LABEL: work.classes}, "dtype": _dtype(), "remat": remat}
    if work.system == "dit":
        return Generator(DiT(**fields, learned_variance=True), DDPM(learned_variance=True), Pixels(), horizon=1000)
    width, depth, heads = work.decoder
    network = MaskDiT(**fields, decoder_width=width, decoder_depth=depth, decoder_heads=heads)
    return Generator(network, EDM(), Pixels(), horizon=1000)


def rows_of(work: Workload) -> dict[str, Any]:
    """A batch of random latents as a loader would give them."""
    draw = np.random.default_rng(0)
    shape = (work.batch, work.input_size, work.input_size, work.channels)
    return {
        "image": draw.integers(0, 256, shape).astype(np.uint8),
        LABEL: draw.integers(0, work.classes, work.batch).astype(np.int32),
        "row": np.arange(work.batch, dtype=np.int32),
    }


def draws(task: Generator, work: Workload, rows: Mapping[str, Any], seed: Any) -> dict[str, np.ndarray]:
    """What the first training step draws, by the names in the docstrings of task and process, and its inputs."""
    size = work.batch
    z = to_float(jnp.asarray(rows["image"]))
    draw = Draw(seed).named("train").at(jnp.zeros((), jnp.int32)).at(jnp.asarray(rows["row"]))
    drop = draw.uniform("label_drop", (size,)) < task.label_drop
    inner = draw.named("process")
    found = {"z": z, "labels": jnp.where(drop, work.classes, rows[LABEL]), "noise": inner.normal("noise", z.shape)}
    if work.system == "dit":
        found["t"] = inner.integers("t", (size,), 0, task.process.steps)
    else:
        found["sigma"] = task.process.noise_levels.sample(inner, size)
        found["order"] = draw_kept(inner, size, work.tokens, work.tokens)  # the kept tokens are its first
    return {name: np.asarray(value) for name, value in found.items()}


def random_state(task: Generator, rows: Mapping[str, Any], params: PyTree = None) -> TrainState:
    """The state before the first step with random weights throughout, or with the given ones.

    A network starts from many zeros, and products with zeros run faster than others. Optimizer states start from zeros
    as ever.
    """
    abstract = unboxed(jax.eval_shape(functools.partial(create, task, (0.9999,), rows), jax.random.key(0)))
    params = random_like(abstract.params) if params is None else {"network": jax.device_put(params)}
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract.replace(params={}, ema={}))
    return zeros.replace(params=params, ema={name: jax.tree.map(jnp.copy, params) for name in abstract.ema})


def random_like(abstract: PyTree) -> PyTree:
    """Normal random parameters of the given shapes: kernels `[..., in, out]`, `[in, parts, out]` of 0.5 / sqrt(in)."""
    leaves, structure = jax.tree.flatten(unboxed(abstract))
    fan = [
        (leaf.shape[0] if leaf.ndim == 3 else leaf.size / leaf.shape[-1]) if leaf.ndim > 1 else 625 for leaf in leaves
    ]
    drawn = [
        _normal(jax.random.key(i), leaf.shape, 0.5 * size**-0.5)
        for i, (leaf, size) in enumerate(zip(leaves, fan, strict=True))
    ]
    return jax.tree.unflatten(structure, drawn)


@functools.partial(jax.jit, static_argnums=1)
def _normal(key: Any, shape: tuple[int, ...], deviation: float) -> Any:
    return deviation * jax.random.normal(key, shape)


def _compile(task: Generator, work: Workload) -> Program:
    rows, seed = rows_of(work), jax.random.key(0)
    state = jax.eval_shape(functools.partial(random_state, task), rows)
    static: dict[str, Any] = {"task": task, "plan": Plan(work.keep), "groups": ("generator",), "microbatches": 1}
    alone = MeshShape().make(jax.devices()[:1])
    begin = time.perf_counter()
    lowered = lower(state, FROZEN, rows, seed, **static, devices=alone)
    traced = time.perf_counter()
    with counted() as programs:
        program = compiled(lowered, alone)
    done = time.perf_counter()
    sizes: Any = program.memory_analysis()
    memory = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    facts = {
        "trace": traced - begin,
        "compile": done - traced,
        "from_cache": programs.from_cache > 0,
        "memory": memory - sizes.alias_size_in_bytes,
        "macs": task.network.macs(work.keep),
    }
    return Program(task, program, facts)


def _repeat(run: Any, repeats: int) -> list[float]:
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - begin)
    return seconds


def _dtype() -> str:
    """bfloat16, where the device has it."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def main() -> None:
    """Serves."""
    ours = Ours()
    names = [name for name in vars(Ours) if not name.startswith("_")]
    serve({name: getattr(ours, name) for name in names})


if __name__ == "__main__":
    main()
