"""One step of a Fréchet distance in a process of its own: its peak of memory is then the step's.

For `maskdit bench scores`, on the CPU: takes the name of a step of `STEPS` and its arguments, prints one line of JSON.
Features are made in blocks by their numbers, so that a whole set of them is never in memory.
"""

import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from maskdit.performance.one_import import memory
from maskdit.training.allocator import keep_pages

DEVICES = (1, 8)
"""Numbers of devices whose distances are compared."""


def features(width: int, batch: int) -> Callable[[int, int], Any]:
    """A jitted `(seed, number) -> [batch, width]`: block `number` of a set of features of full rank, none below 0.

    Variances fall as they do in trained networks; the sets of two seeds have another scale.
    """
    import jax
    import jax.numpy as jnp

    falling = jnp.arange(1, width + 1) ** -0.5
    mix = jax.random.normal(jax.random.key(0), (width, width)) * falling[:, None]

    @jax.jit
    def block(mix: jax.Array, seed: jax.Array, number: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), number)
        return (1 + 0.1 * seed) * jax.nn.relu(jax.random.normal(key, (batch, width)) @ mix)

    return lambda seed, number: block(mix, seed, number)


def statistics(count: int, width: int, batch: int, *paths: str) -> list[dict[str, float]]:
    """Streams a set of features for each path, and writes its mean and covariance there.

    Args:
      count: features of a set.
      width: of a feature.
      batch: features of a block.
      *paths: `.npz` files; the seed of a set is its place among them.

    Returns:
      For each set `seconds` and `cpu` of adding blocks that lie on the device and of the end in float64, without the
      making of features; `memory`, the peak of bytes above those at the start, of all sets so far.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from maskdit.evals.statistics import Moments, empty

    make = features(width, batch)
    add = jax.jit(Moments.add, donate_argnums=0)
    jax.block_until_ready(make(0, 0))
    found, start = [], memory("VmRSS")
    forget_peak()
    add(empty(jnp.zeros(width)), make(0, 0), jnp.zeros(batch)).count.block_until_ready()  # compiles
    for seed, path in enumerate(paths):
        spent, centre = Spent(start), jax.device_get(make(seed, 0).mean(0))
        moments = empty(centre)
        for number in range(-(-count // batch)):
            rows, weight = make(seed, number), jnp.asarray(np.arange(batch) < count - number * batch, jnp.float32)
            jax.block_until_ready((rows, weight))
            with spent.clocked():
                moments = jax.block_until_ready(add(moments, rows, weight))
        with spent.clocked():
            gaussian = moments.gaussian()
        found.append(spent.told())
        np.savez(path, mean=gaussian.mean, cov=gaussian.cov, count=np.array(gaussian.count))
        del moments, gaussian
    return found


def distance(route: str, first: str, second: str) -> dict[str, float]:
    """The distance of two sets of `statistics`.

    Args:
      route: a function of `maskdit.evals.frechet`.
      first, second: the files.

    Returns:
      `distance`, `trace` (of both covariances), `seconds` and `cpu` of the function, and `memory`, the
      peak of bytes above those at the start, both sets included.
    """
    import numpy as np

    from maskdit.evals import frechet

    spent, sets = Spent(memory("VmRSS")), []
    forget_peak()
    for path in (first, second):
        with np.load(path) as held:
            sets.append(frechet.Gaussian(held["mean"], held["cov"], int(held["count"])))
    trace = float(sum(np.trace(one.cov) for one in sets))
    with spent.clocked():
        found = getattr(frechet, route)(*sets)
    return {"distance": found, "trace": trace, **spent.told()}


def over_devices(limit: int | None = None) -> dict[str, Any]:
    """The distance of held-out emoji to training ones, by the network that ships, from meshes of `DEVICES`.

    Args:
      limit: at most so many images of each split; None for all.

    Returns:
      `distances` in the order of `DEVICES`, `trace` (of both covariances), `images` of both splits.
    """
    import jax
    import numpy as np

    from maskdit.data.emoji import Emoji
    from maskdit.data.loader import Loader
    from maskdit.evals import frechet, network
    from maskdit.evals.collector import Collector
    from maskdit.training.mesh import MeshShape

    offline = network.find()
    distances, trace, images = [], 0.0, []
    for count in DEVICES:
        sets = []
        for split in ("train", "val"):
            collector = Collector(offline, devices=MeshShape().make(jax.devices()[:count]))
            for chunk in Loader(Emoji(split), flip=False, shuffle=False).images(collector.batch, limit):
                collector.add(chunk)
            sets.append(collector.finish().pooled)
        distances.append(frechet.frechet_distance(sets[1], sets[0]))
        trace, images = float(sum(np.trace(one.cov) for one in sets)), [one.count for one in sets]
    return {"distances": distances, "trace": trace, "images": images}


def forget_peak() -> None:
    """Lets the peak of memory begin anew, where the system can."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


class Spent:
    """Seconds of what runs inside `clocked`, summed, and the peak of memory above `start`, in bytes."""

    def __init__(self, start: int):
        self._start, self.seconds, self.cpu = start, 0.0, 0.0

    @contextlib.contextmanager
    def clocked(self) -> Iterator[None]:
        """Counts what runs inside."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu

    def told(self) -> dict[str, float]:
        """`seconds`, `cpu` (seconds of all threads) and `memory` (bytes)."""
        return {"seconds": self.seconds, "cpu": self.cpu, "memory": memory("VmHWM") - self._start}


STEPS: dict[str, Callable[..., Any]] = {"statistics": statistics, "distance": distance, "devices": over_devices}
"""By the name on the command line; arguments that are numbers are taken for numbers."""


def main(name: str, *arguments: str) -> None:
    """Runs a step, and prints what it found."""
    keep_pages()  # as the command does, before jax is there
    given = [int(text) if text.isdigit() else text for text in arguments]
    print(json.dumps(STEPS[name](*given)))


if __name__ == "__main__":
    main(*sys.argv[1:])
