"""Scores of samples, of given images and of reconstructions, against one reference."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from maskdit import config as configs
from maskdit.data.image_array import Pictures
from maskdit.data.loader import Loader
from maskdit.data.named import named
from maskdit.data.source import DataError
from maskdit.evals import reference as references
from maskdit.evals import report, scores
from maskdit.evals.bias import bias
from maskdit.evals.collector import Collected, Collector, Wanted
from maskdit.evals.network import FeatureNetwork
from maskdit.evals.reference import Reference, ScoreError
from maskdit.evals.samples import drawn
from maskdit.evals.scores import SCORES, Values
from maskdit.references import checksum
from maskdit.training import distributed

_FEW = 10
"""Images for each feature below which a table warns."""


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What is scored, by which network, against which reference.

    Attributes:
      names: of `SCORES`.
      network: the feature network.
      want: what is collected of each set of images.
      reference: what they are compared with; None where no score compares.
      batch: images at once.
      folder: where interrupted passes are kept; None for nowhere.
      held_out: images of the reference's kind that are not in it, whose scores are what a perfect generator would get.
    """

    names: tuple[str, ...]
    network: FeatureNetwork
    want: Wanted
    reference: Reference | None
    batch: int = 64
    folder: epath.Path | None = None
    held_out: Loader | None = None

    def of_seeds(self, model: Any, num: int, seeds: Sequence[int], **sampling: Any) -> list[Values]:
        """Scores of a generator's samples, for each seed; what seeds gave that are done outlives an interruption."""
        made: dict[str, Values] = {}
        for seed in seeds:
            about = [self.names, {} if self.reference is None else self.reference.about]
            place = self._place([self._key(model, num, seed, sampling), about])
            path = None if place is None else place.with_suffix(".json")
            before = None if path is None else distributed.first(lambda: _read(path))  # noqa: B023
            found = before or self.of_samples(model, num, seed, **sampling)
            made[str(path or seed)] = found
            if path is not None and len(seeds) > 1:
                report.write(path.parent, found, path.name)
        if self.folder is not None and len(seeds) > 1 and distributed.is_first():
            for name in made:
                epath.Path(name).unlink(missing_ok=True)
        return list(made.values())

    def of_samples(self, model: Any, num: int, seed: int, **sampling: Any) -> Values:
        """Scores of a generator's samples 0 to `num - 1` of a seed; settings are those of `GeneratorModel.sample`."""
        key = self._key(model, num, seed, sampling)
        folder = self._place(key)
        collector = Collector(self.network, self.want, total=num, batch=self.batch, folder=folder, key=key)
        if (left := num - collector.done) > 0:
            for _, images in drawn(model, left, seed=seed, batch=self.batch, first=collector.done, **sampling):
                collector.add(images)
        return self.of_collected(collector.finish())

    def of_pictures(self, pictures: Pictures, num: int | None = None) -> Values:
        """Scores of the images of a file or folder; of the first `num`, if asked for."""
        folder = self._place({"images": pictures.checksum})
        found = references.of_pictures(pictures, self.network, self.want, num=num, batch=self.batch, folder=folder)
        return self.of_collected(found)

    def floor(self, num: int) -> Values:
        """Scores of `num` held-out images, or of as many as there are; nothing where there are none."""
        if self.held_out is None:
            return {}
        found = references.of_loader(self.held_out, self.network, self.want, limit=num, batch=self.batch)
        return self.of_collected(found)

    def of_collected(self, found: Collected) -> Values:
        """Scores of what was collected."""
        return scores.compute(self.names, found, self.reference)

    def collector(self, total: int | None = None) -> Collector:
        """A collector of what these scores need."""
        return Collector(self.network, self.want, total=total, batch=self.batch)

    def notes(self, num: int, bias: bool = True) -> list[str]:
        """Lines below a table: what each score is, and what is to be said of so few images.

        Args:
          num: images scored.
          bias: whether the table shows `bias`.
        """
        words = {"network": self.network.name, "classes": self.network.classes}
        lines = [f"{name}: {scores.ABOUT[name].format(**words)}" for name in self.names]
        how = self.network.preprocessing
        lines.append(f"images as uint8, resized to {how.size} by {how.resize}; network {self.network.name}")
        if self.reference is not None:
            lines.append(f"reference: {_words(self.reference)}")
        if not self._distances:
            return lines
        if bias:
            lines.append(f"bias: what {num} draws from the reference's own normal distribution score")
        if bias and self.held_out is not None:
            there = len(self.held_out.records)
            fewer = f", all there are; figures of {num} lie elsewhere" if there < num else ""
            lines.append(f"held-out: what {min(there, num)} images that training never saw score{fewer}")
        parts = {name: getattr(self.network.widths, part).shape[-1] for name, part in self._distances.items()}
        name = max(parts, key=lambda name: parts[name])
        how_far = ", by about the bias where both are alike" if bias else ""
        if num < _FEW * parts[name]:
            lines.append(
                f"few images ({num} for {parts[name]} features): {name} is too high{how_far}; compare only figures of "
                "equally many images"
            )
        count = None if self.reference is None else self.reference.pooled.count
        if bias and count is not None and count < _FEW * parts[name]:
            lines.append(
                f"small reference ({count} images for {parts[name]} features): {name} is too high by that too; compare "
                "only figures of this reference"
            )
        return lines

    def bias(self, num: int) -> Values:
        """What Fréchet distances are for so many draws of the reference's own normal distribution, by name."""
        if self.reference is None:
            return {}
        found = {part: getattr(self.reference, part) for part in set(self._distances.values())}
        values = {part: bias(gaussian, num) for part, gaussian in found.items()}
        return {name: values[part] for name, part in self._distances.items()}

    @property
    def _distances(self) -> dict[str, str]:
        """The Fréchet distances among the scores, and which features they are of."""
        parts = {"fd": "pooled", "fid": "pooled", "sfid": "spatial"}
        return {name: parts[name] for name in self.names if name in parts}

    def _key(self, model: Any, num: int, seed: int, sampling: dict[str, Any]) -> dict[str, Any]:
        """What samples' features depend on, JSON types."""
        about = {"step": model.step, "ema": model.ema, "weights": checksum(model.variables)}
        about |= {"config": None if model.config is None else _digest(configs.to_json(model.config))}
        return {"num": num, "seed": seed, **about, **self.network.described(), **_settings(model, sampling)}

    def _place(self, key: Any) -> epath.Path | None:
        return None if self.folder is None else self.folder / _digest(json.dumps(key, sort_keys=True, default=str))


def prepare(
    names: Sequence[str],
    network: FeatureNetwork,
    reference: str | Loader | None,
    *,
    size: int | None = None,
    batch: int = 64,
    folder: epath.Path | None = None,
    held_out: Loader | None = None,
    limit: int | None = None,
    trust: Sequence[str] = (),
) -> Scoring:
    """Gets everything ready before the first image is scored.

    Args:
      names: of `SCORES`.
      network: the feature network.
      reference: a file of statistics or images, a folder of images, a config whose training images count, or a loader.
      size: side of the images, for a folder.
      batch: images at once.
      folder: where interrupted passes are kept, and the statistics of the reference once made.
      held_out: see `Scoring`.
      limit: at most so many images of a loader, spread evenly; None for all.
      trust: packages besides `maskdit` whose classes a config may name.

    Raises:
      ScoreError, ModelError, DataError, OSError: where something is missing or does not go together.
    """
    want = scores.wanted(names, network)
    if not any(SCORES[name].reference for name in names):
        return Scoring(tuple(names), network, want, None, batch, folder)
    if reference is None:
        raise ScoreError(
            "these scores compare with a reference: give --reference, a file of statistics or images, a folder, or a "
            "config with data"
        )
    found = _found(reference, network, want, size, batch, folder, limit, trust)
    return Scoring(tuple(names), network, want, found, batch, folder, held_out)


def loader_of(data: str, size: int | None, trust: Sequence[str] = (), part: str = "data") -> Loader:
    """The loader of data by name, of images as they are.

    Args:
      data, size: see `maskdit.data.named.named`.
      trust: packages besides `maskdit` whose classes a config may name.
      part: of a config, `data` or `held_out`; `data` where it has no other.

    Raises:
      DataError: for data that are no images.
    """
    config = named(data, size)
    made = own_loader(config, part, trust) or own_loader(config, "data", trust)
    if not isinstance(made, Loader):
        raise DataError(f"the data of {data} are no maskdit.data.loader.Loader, but a {type(made).__name__}")
    return made


def own_loader(config: Any, part: str, trust: Sequence[str] = ()) -> Loader | None:
    """The loader of images of a model's config, `data` or `held_out`; None where it names none."""
    if config is None or config.get(part) is None:
        return None
    return configs.build(_images_of(config[part]), trust)


def _images_of(spec: Any) -> Any:
    spec = spec.copy_and_resolve_references()
    for name in ("latents", "text"):
        if name in spec:
            with spec.ignore_type():
                spec[name] = None
    return spec


def _found(
    reference: str | Loader,
    network: FeatureNetwork,
    want: Wanted,
    size: int | None,
    batch: int,
    folder: epath.Path | None,
    limit: int | None,
    trust: Sequence[str],
) -> Reference:
    named_file = isinstance(reference, str) and ("/" in reference or reference.endswith(".npz"))
    if named_file and not epath.Path(str(reference)).exists():
        raise ScoreError(
            f"there is no {reference}: give a file of statistics or images, a folder, or a config with data"
        )
    if isinstance(reference, str) and reference.endswith(".npz"):
        return references.read(reference, network, want, batch)
    loader = loader_of(reference, size, trust) if isinstance(reference, str) else reference
    kept = scores.of_reference(want)
    about = {"reference": references.described(loader)}
    key = _digest(json.dumps([about, limit, network.described(), dataclasses.asdict(kept)], sort_keys=True))
    path = None if folder is None else folder / f"reference-{key}.npz"
    if path is not None and distributed.first(path.exists):
        return references.read(str(path), network, want, batch)
    place = None if folder is None else folder / f"reference-{key}"
    found = references.of_loader(loader, network, kept, limit=limit, batch=batch, folder=place)
    asked = min(limit or len(loader.records), len(loader.records))
    made = references.of_collected(found, about | {"images": found.count, "asked for": asked})
    if path is None:
        return made
    references.write(str(path), made, network)
    return references.read(str(path), network, want, batch)  # so that this call states what later ones will


def _settings(model: Any, sampling: dict[str, Any]) -> dict[str, Any]:
    """The sampler and guidance of a call, in JSON types."""
    given = {name: str(value) for name, value in sampling.items() if value is not None}
    return {"sampler": str(model.sampler), "guidance": str(model.guidance), **given}


def _words(reference: Reference) -> str:
    """Where a reference comes from, for a table."""
    about = reference.about
    source = about.get("reference", about.get("file", ""))
    if isinstance(source, dict):  # a loader, or images
        cut = f", cut to {source['size']} px" if "size" in source else ""
        source = f"{source.get('source', source.get('images'))}{cut}"
    words = [str(source)]
    if (count := reference.pooled.count) is not None:
        missing = records - count if (records := about.get("asked for")) else 0
        words.append(f"{count} images" + f", and {missing} that could not be read" * (missing > 0))
    if about.get("resize") == "not stated":
        words.append("its resize rule is not stated: pytorch-fid's is torch-bilinear, most others' tf1-bilinear")
    return "; ".join(words)


def _read(path: epath.Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
