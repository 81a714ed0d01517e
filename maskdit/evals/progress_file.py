"""An unfinished pass over images on disk: how far it came, its sums, and the rows that it kept."""

import json
import zipfile
import zlib
from typing import Any

import jax
import numpy as np
from etils import epath

from maskdit.evals.statistics import Moments, Pair
from maskdit.interop.atomic import written_whole
from maskdit.training import distributed, placement

_FIELDS = ("count", "centre", "first", "first_rest", "second", "second_rest")


class Progress:
    """The folder of an unfinished pass.

    `state.npz` holds the sums after `done` images; `rows-FROM.npy` and `logits-FROM.npy` what was kept since the save
    before. The state is written last: files from its `done` on belong to nothing and are written again.

    Args:
      folder: local, mounted or a bucket, one for all processes; None keeps nothing.
      about: what the pass is of, JSON types; an unfinished pass of something else is thrown away.
      seconds: between two saves.
    """

    def __init__(self, folder: epath.Path | None, about: Any, seconds: float = 60.0):
        self._folder, self.seconds = folder, seconds
        self._about = json.dumps(about, sort_keys=True, default=str)
        self._saved: dict[str, int] = {}
        self._parts: list[str] = []

    def resume(self, sharding: jax.sharding.Sharding) -> tuple[int, dict[str, list[np.ndarray]], dict[str, Moments]]:
        """How many images are done, what was kept of them and the sums; nothing where there is no such pass."""
        if self._folder is None or not distributed.first(self._usable):
            return 0, {}, {}
        with (self._folder / "state.npz").open("rb") as file, np.load(file) as state:
            done, self._parts = int(state["done"]), [str(name) for name in state["parts"]]
            names = sorted({key.partition("/")[0] for key in state.files if "/" in key})
            moments = {name: _moments([state[f"{name}/{field}"] for field in _FIELDS]) for name in names}
        kept: dict[str, list[np.ndarray]] = {}
        for part in self._parts:
            with (self._folder / part).open("rb") as file:
                kept.setdefault(part.partition("-")[0], []).append(np.load(file))
        self._saved = {name: len(arrays) for name, arrays in kept.items()}
        return done, kept, {name: placement.spread(one, sharding) for name, one in moments.items()}

    def save(self, done: int, kept: dict[str, list[np.ndarray]], moments: dict[str, Moments]) -> None:
        """Writes what there is; the first process does.

        Args:
          done: images so far.
          kept: arrays of the images, in order.
          moments: sums by name, whole on this process's devices.
        """
        if self._folder is None or not distributed.is_first():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, arrays in kept.items():
            since = arrays[self._saved.get(name, 0) :]
            if since:
                part = f"{name}-{done:010d}.npy"
                with written_whole(self._folder / part) as path, path.open("wb") as file:
                    np.save(file, np.concatenate(since))
                self._parts.append(part)
                kept[name] = [*arrays[: self._saved.get(name, 0)], np.concatenate(since)]
                self._saved[name] = len(kept[name])
        sums = {f"{name}/{field}": value for name, one in moments.items() for field, value in _arrays(one).items()}
        about = {"done": np.array(done), "parts": np.array(self._parts, str), "about": np.array(self._about)}
        with written_whole(self._folder / "state.npz") as path, path.open("wb") as file:
            np.savez(file, **about, **sums)  # type: ignore[arg-type]

    def remove(self) -> None:
        """Removes the unfinished pass."""
        if self._folder is not None and distributed.is_first() and self._folder.exists():
            self._folder.rmtree()

    def _usable(self) -> bool:
        assert self._folder is not None
        path = self._folder / "state.npz"
        if not path.exists():
            return False
        try:
            with path.open("rb") as file, np.load(file) as state:
                about, parts = str(state["about"]), [self._folder / str(name) for name in state["parts"]]
        except (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
            return False  # a bucket has no renaming: a write that was cut off
        return about == self._about and all(part.exists() for part in parts)


def _arrays(moments: Moments) -> dict[str, np.ndarray]:
    leaves = (moments.count, moments.centre, moments.first.value, moments.first.rest)
    found = jax.device_get((*leaves, moments.second.value, moments.second.rest))
    return dict(zip(_FIELDS, found, strict=True))


def _moments(arrays: list[np.ndarray]) -> Moments:
    count, centre, first, first_rest, second, second_rest = arrays
    return Moments(count, centre, Pair(first, first_rest), Pair(second, second_rest))  # type: ignore[arg-type]
