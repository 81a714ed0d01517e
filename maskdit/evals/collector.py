"""From images to what scores are made of, in one pass: statistics on the devices, rows only where a score needs them.

An interrupted pass goes on: with a folder, the sums so far and the rows kept are written to it now and then.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from maskdit.contracts import Array
from maskdit.encoders.features import Features
from maskdit.evals.frechet import Gaussian
from maskdit.evals.network import FeatureNetwork
from maskdit.evals.progress_file import Progress
from maskdit.evals.statistics import Moments, empty
from maskdit.training import mesh, placement
from maskdit.training.mesh import MeshShape


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is collected of a set of images.

    Attributes:
      spatial: statistics of the activities at places, beside those of the pooled features.
      logits: the class scores of every image, float32.
      rows: the precision in which features of single images are kept, `float16` or `float32`; None keeps none.
      limit: keep the features of at most so many images, spread evenly over the set; None for all.
    """

    spatial: bool = False
    logits: bool = False
    rows: str | None = None
    limit: int | None = None


@dataclasses.dataclass(frozen=True)
class Collected:
    """What scores are made of.

    Attributes:
      count: images.
      pooled, spatial: mean and covariance of features, in float64.
      logits: `[N, C]` in the order of the images.
      rows: pooled features of single images `[M, D]`, in the order of the images.
    """

    count: int
    pooled: Gaussian
    spatial: Gaussian | None = None
    logits: np.ndarray | None = None
    rows: np.ndarray | None = None


class Extractor:
    """Runs a feature network on batches of one size, rows cut over the mesh; results stay on the devices.

    Args:
      network: the network.
      batch: images at once; rounded up to what divides over the mesh.
      devices: the mesh; None for all devices, each with a copy of the network.

    Raises:
      ValueError: for a batch of none.
    """

    def __init__(self, network: FeatureNetwork, batch: int = 64, devices: Mesh | None = None):
        if batch < 1:
            raise ValueError(f"images are looked at 1 or more at once, got a batch of {batch}")
        self.network = network
        self.devices = MeshShape().make() if devices is None else devices
        self.batch = -(-batch // placement.ways(self.devices)) * placement.ways(self.devices)
        self.by_rows = mesh.batch_sharding(self.devices)
        self.whole = mesh.replicated(self.devices)
        self._variables = placement.spread(network.variables, self.whole)

    def __call__(self, images: Any) -> Features:
        """What the network says of images uint8 `[batch, H, W, 3]`, host or global arrays."""
        module, head = self.network.module, self.network.head
        with mesh.applied(self.devices):
            return _seen(
                self._variables,
                placement.spread(images, self.by_rows),
                network=_Bare(module, self.network.preprocessing, head),
            )

    def on_host(self, tree: Any) -> Any:
        """Arrays of rows on the mesh, whole on every host."""
        return jax.device_get(_copied(self.devices)(tree))


class Collector:
    """Collects over images that come in any chunks; no result depends on the chunks.

    Args:
      network: the feature network.
      wanted: what to collect.
      total: number of images to come, known where `wanted.limit` is set.
      batch, devices: see `Extractor`.
      folder: where an interrupted pass is kept; None for nowhere.
      key: what the pass is of, as JSON types; a pass of another key in the folder is not gone on with.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        wanted: Wanted = Wanted(),
        *,
        total: int | None = None,
        batch: int = 64,
        devices: Mesh | None = None,
        folder: epath.Path | None = None,
        key: Any = None,
    ):
        self._wanted, self._total = wanted, total
        self.extractor = Extractor(network, batch, devices)
        self._buffer: list[np.ndarray] = []
        self._pending: tuple[Any, np.ndarray] | None = None
        self._moments: dict[str, Moments] = {}
        self._progress = Progress(folder, {"key": key, "batch": self.extractor.batch, **dataclasses.asdict(wanted)})
        self.done, self._kept, self._moments = self._progress.resume(self.extractor.whole)
        self._written = time.monotonic()

    @property
    def batch(self) -> int:
        """Images of a batch."""
        return self.extractor.batch

    def add(self, images: np.ndarray) -> None:
        """Adds images uint8 `[n, H, W, 3]`, the same on every process, those from number `done` on.

        Raises:
          ValueError: for images of another kind, or of another size than those before.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images to score are uint8 [N, H, W, 3], got {images.dtype} {list(images.shape)}")
        if self._buffer and images.shape[1:] != self._buffer[0].shape[1:]:
            raise ValueError(f"images of {list(images.shape[1:])} after images of {list(self._buffer[0].shape[1:])}")
        self._buffer.append(images)
        if sum(map(len, self._buffer)) < self.batch:
            return
        waiting = np.concatenate(self._buffer)
        full = len(waiting) // self.batch * self.batch
        for start in range(0, full, self.batch):
            self.add_batch(waiting[start : start + self.batch], np.ones(self.batch, np.float32))
        self._buffer = [waiting[full:]]

    def add_batch(self, images: Any, weight: Any) -> None:
        """Adds one whole batch, as host arrays that all processes have or as global arrays.

        Args:
          images: uint8 `[batch, H, W, 3]`.
          weight: float32 `[batch]`, 0 for rows that do not count.
        """
        seen = self.extractor(images)
        jax.block_until_ready(self._moments)  # else batches pile up on the devices, and CPU devices run out of threads
        weight = placement.spread(weight, self.extractor.by_rows)
        wanted: dict[str, Any] = {"pooled": seen.pooled}
        wanted |= {"spatial": seen.spatial} if self._wanted.spatial else {}
        for name, features in wanted.items():
            if name not in self._moments:
                start = empty(_centre(self.extractor.on_host((features, weight))))
                self._moments[name] = placement.spread(start, self.extractor.whole)
            self._moments[name] = _added(self.extractor.devices)(self._moments[name], features, weight)
        keep: dict[str, Any] = {"rows": seen.pooled} if self._wanted.rows else {}
        keep |= {"logits": seen.logits} if self._wanted.logits else {}
        before, self._pending = self._pending, None
        if keep:
            numbers = np.arange(self.done, self.done + self.batch)
            self._pending = (_copied(self.extractor.devices)({**keep, "weight": weight}), numbers)
        if before is not None:  # fetched while the devices are at the next batch
            self._keep(*before)
        self.done += self.batch
        if time.monotonic() - self._written > self._progress.seconds:
            self.save()

    def save(self) -> None:
        """Writes what has been collected, where there is a folder."""
        if self._pending is not None:
            self._keep(*self._pending)
            self._pending = None
        self._progress.save(self.done, self._kept, self._moments)
        self._written = time.monotonic()

    def finish(self) -> Collected:
        """What all images gave; the folder's unfinished pass is removed.

        Raises:
          ValueError: after fewer than 2 images.
        """
        waiting = np.concatenate(self._buffer) if self._buffer else np.zeros((0,))
        if len(waiting):
            missing = self.batch - len(waiting)
            weight = np.concatenate([np.ones(len(waiting), np.float32), np.zeros(missing, np.float32)])
            self.add_batch(np.concatenate([waiting, np.repeat(waiting[-1:], missing, 0)]), weight)
            self._buffer = []
        if self._pending is not None:
            self._keep(*self._pending)
            self._pending = None
        if not self._moments:
            raise ValueError("there are no images to score")
        gaussians = {name: moments.gaussian() for name, moments in self._moments.items()}
        kept = {name: np.concatenate(parts) for name, parts in self._kept.items()}
        self._progress.remove()
        pooled = gaussians["pooled"]
        return Collected(pooled.count or 0, pooled, gaussians.get("spatial"), kept.get("logits"), kept.get("rows"))

    def _keep(self, copied: Any, numbers: np.ndarray) -> None:
        found = jax.device_get(copied)
        counts = found.pop("weight") > 0
        for name, values in found.items():
            chosen = counts & self._chosen(numbers) if name == "rows" else counts
            dtype = np.dtype(self._wanted.rows or "float32") if name == "rows" else np.dtype(np.float32)
            self._kept.setdefault(name, []).append(values[chosen].astype(dtype))

    def _chosen(self, numbers: np.ndarray) -> np.ndarray:
        """Which images have their features kept: `limit` of `total`, spread evenly."""
        limit, total = self._wanted.limit, self._total
        if limit is None or total is None or limit >= total:
            return np.ones(len(numbers), bool)
        return (numbers + 1) * limit // total > numbers * limit // total


def features(network: FeatureNetwork, chunks: Iterator[np.ndarray], batch: int = 64) -> Iterator[np.ndarray]:
    """Pooled features float32 `[n, D]` of chunks of images uint8 `[n, H, W, 3]`, chunk by chunk."""
    extractor = Extractor(network, batch)
    for images in chunks:
        places = range(0, len(images), extractor.batch)
        filled = [np.minimum(np.arange(start, start + extractor.batch), len(images) - 1) for start in places]
        yield np.concatenate([extractor.on_host(extractor(images[rows]).pooled) for rows in filled])[: len(images)]


@dataclasses.dataclass(frozen=True)
class _Bare:
    """What a program of a network depends on: no weights."""

    module: Any
    preprocessing: Any
    head: str | None


@functools.partial(jax.jit, static_argnames=("network",))
def _seen(variables: Any, images: Array, *, network: _Bare) -> Features:
    own = FeatureNetwork("", network.module, None, network.preprocessing, network.head, "")
    return own.see(variables, images)


def _centre(found: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    rows, weight = found
    return rows[weight > 0].mean(0) if np.any(weight > 0) else rows.mean(0)


@functools.cache
def _added(devices: Mesh) -> Any:
    return jax.jit(Moments.add, donate_argnums=0, out_shardings=mesh.replicated(devices))


@functools.cache
def _copied(devices: Mesh) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=mesh.replicated(devices))
