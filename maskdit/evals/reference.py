"""What samples are compared with: statistics read from a file, or made from images, and kept with their provenance.

Three kinds of `.npz` are read: ours; reference batches of ADM (Dhariwal and Nichol 2021, arXiv 2105.05233), such as
`VIRTUAL_imagenet256_labeled.npz`, with images `arr_0` and the statistics `mu`, `sigma`, `mu_s`, `sigma_s` of a larger
set; and pytorch-fid's, `mu` and `sigma` alone, a form that other tools use too. The latter two are of Inception.
"""

import dataclasses
import datetime
import hashlib
import json
import os
import zipfile
import zlib
from typing import Any

import numpy as np
from etils import epath

from maskdit.data.image_array import Pictures
from maskdit.data.loader import Loader
from maskdit.evals.collector import Collected, Collector, Wanted
from maskdit.evals.frechet import Gaussian
from maskdit.evals.network import FeatureNetwork
from maskdit.interop.atomic import written_whole
from maskdit.training import distributed, mesh, placement

FORMAT = "maskdit statistics 1"
ROWS = 10_000
"""Images of a reference whose features are kept for precision and recall: as many as ADM's reference batches hold."""
_LOOKED_AT = 16
_ADM_RULE = "tf1-bilinear"


class ScoreError(ValueError):
    """A score that cannot be made, for want of a network or a reference that fits; the message says what to give."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """What samples are compared with.

    Attributes:
      pooled, spatial: mean and covariance of features.
      rows: features of single images `[M, D]`; None where only statistics are known.
      about: where it comes from, JSON types.
    """

    pooled: Gaussian
    spatial: Gaussian | None
    rows: np.ndarray | None
    about: dict[str, Any]


def of_collected(found: Collected, about: dict[str, Any]) -> Reference:
    """A reference of what was collected."""
    digest = hashlib.sha256(found.pooled.mean.tobytes() + found.pooled.cov.tobytes()).hexdigest()
    return Reference(found.pooled, found.spatial, found.rows, about | {"sha256 of mu and sigma": digest})


def write(path: str, reference: Reference, network: FeatureNetwork) -> None:
    """Writes a reference with its provenance; the first process does.

    Args:
      path: ends in `.npz`.
      reference: what `of_collected` made.
      network: the network of its features.

    Raises:
      ScoreError: for a path of another kind.
    """
    check_path(path)
    about = {"format": FORMAT, **network.described(), **reference.about, "versions": distributed.versions()}
    about["written"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    arrays = {"mu": reference.pooled.mean, "sigma": reference.pooled.cov, "count": np.array(reference.pooled.count)}
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mean, "sigma_s": reference.spatial.cov}
    if reference.rows is not None:
        arrays["rows"] = reference.rows
    if distributed.is_first():
        with written_whole(epath.Path(path)) as unfinished, unfinished.open("wb") as file:
            np.savez(file, provenance=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]
    distributed.barrier()


def check_path(path: str) -> None:
    """Refuses a path that statistics are not written to.

    Raises:
      ScoreError: where it does not end in `.npz`.
    """
    if not path.endswith(".npz"):
        raise ScoreError(f"statistics are written to a file that ends in .npz, got {path}")


def read(path: str, network: FeatureNetwork, wanted: Wanted, batch: int = 64) -> Reference:
    """The reference in a file.

    Args:
      path: an `.npz` file: ours, ADM's, pytorch-fid's, or of images `arr_0` alone.
      network: the network of the samples' features.
      wanted: what the scores need. Images of the file are looked at where statistics are missing from it.
      batch: images looked at at once.

    Raises:
      ScoreError: for a file of another kind, of another network or resize rule, or without what is wanted.
      OSError: for a file that cannot be read.
    """
    try:
        with epath.Path(path).open("rb") as file, np.load(file) as held:
            names = set(held.files)
            arrays = {name: held[name] for name in held.files if name != "arr_0"}
    except (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ScoreError(f"{path} is no .npz file of statistics or images: {error}") from error
    about = {"file": str(path), "sha256": sha256(path)}
    if "provenance" in names:
        return _ours(path, arrays, network, wanted, about)
    if {"mu", "sigma"} <= names and network.is_inception:
        return _published(path, arrays, "arr_0" in names, network, wanted, about, batch)
    if "arr_0" in names:
        return _of_images(Pictures(path), network, wanted, about, batch)
    if {"mu", "sigma"} <= names:
        raise ScoreError(
            f"{path} holds statistics that do not say of which network, which are Inception's as a rule; this score is "
            f"made with {network.name}: use --network inception-fid, or a reference of images"
        )
    raise ScoreError(
        f"{path} holds {', '.join(sorted(names)) or 'nothing'}: a reference has images as arr_0, or mu and sigma"
    )


def of_loader(
    loader: Loader,
    network: FeatureNetwork,
    wanted: Wanted,
    *,
    limit: int | None = None,
    batch: int = 64,
    folder: epath.Path | None = None,
) -> Collected:
    """What a loader's records give, not mirrored; each process reads the rows of its devices.

    Args:
      loader: the records, images of one size.
      network, wanted: see `Collector`.
      limit: at most so many records, spread evenly; None for all.
      batch: images at once.
      folder: where an interrupted pass is kept, to go on with.
    """
    count = len(loader.records)
    taken = count if limit is None else min(limit, count)
    key = {"loader": described(loader), "limit": taken, **network.described()}
    collector = Collector(network, wanted, total=taken, batch=batch, folder=folder, key=key)
    devices, size = collector.extractor.devices, collector.batch
    own = np.asarray(mesh.local_rows(devices, size))
    places = np.arange(collector.done // size, -(-taken // size))[:, None] * size + own  # [batches, own rows]
    numbers = places[places < taken] * count // taken
    with loader.once(len(own), numbers.tolist()) as batches:
        for _ in places:
            batch_of = next(batches, None)
            if batch_of is None:  # the last rows are those of other processes
                image, weight = np.zeros((len(own), loader.size, loader.size, 3), np.uint8), np.zeros(len(own))
            else:
                readable = np.array([not said for said in batch_of["unreadable"]])
                image, weight = batch_of["image"], (batch_of["index"] >= 0) & readable
            rows = {"image": image, "weight": weight.astype(np.float32)}
            arrays = placement.own_rows(rows, size, collector.extractor.by_rows)
            collector.add_batch(arrays["image"], arrays["weight"])
    return collector.finish()


def of_pictures(
    pictures: Pictures,
    network: FeatureNetwork,
    wanted: Wanted,
    *,
    num: int | None = None,
    batch: int = 64,
    folder: epath.Path | None = None,
) -> Collected:
    """What a file or folder of images gives.

    Args:
      pictures: the images.
      network, wanted: see `Collector`.
      num: the first so many; None for all.
      batch: images at once.
      folder: where an interrupted pass is kept, to go on with.

    Raises:
      ScoreError: for more images than there are.
    """
    if num is not None and num > len(pictures):
        raise ScoreError(f"{pictures.path} holds {len(pictures)} images, and {num} are asked for")
    total = len(pictures) if num is None else num
    key = {"images": pictures.checksum, "num": total, **network.described()}
    collector = Collector(network, wanted, total=total, batch=batch, folder=folder, key=key)
    left = total - collector.done
    for images in pictures.batches(collector.batch, start=collector.done):
        if left <= 0:
            break
        collector.add(images[:left])
        left -= len(images)
    return collector.finish()


def described(loader: Loader) -> dict[str, Any]:
    """A loader's images in JSON types: the source, size and fit, and a checksum over some of the images."""
    digest, count = hashlib.sha256(), len(loader.records)
    with loader.once(1, [i * count // _LOOKED_AT for i in range(min(_LOOKED_AT, count))]) as batches:
        for one in batches:
            digest.update(one["image"].tobytes())
    about = {"source": repr(loader.source), "size": loader.size, "fit": loader.fit, "records": count}
    about[f"sha256 of {_LOOKED_AT} images"] = digest.hexdigest()
    folder = str(getattr(loader.source, "path", ""))
    if os.path.isdir(folder):  # another file in the place of one of the others shows here
        about["sha256 of names, sizes and dates"] = _listing(folder)
    return about


def _listing(folder: str) -> str:
    digest = hashlib.sha256()
    for place, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            found = os.stat(os.path.join(place, name))
            digest.update(f"{os.path.relpath(place, folder)}/{name} {found.st_size} {found.st_mtime_ns};".encode())
    return digest.hexdigest()


def sha256(path: str) -> str:
    """The sha256 of a file."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _ours(
    path: str, arrays: dict[str, np.ndarray], network: FeatureNetwork, wanted: Wanted, about: dict[str, Any]
) -> Reference:
    try:
        stated = json.loads(str(arrays["provenance"]))
        known = stated["format"] == FORMAT and {"mu", "sigma", "count"} <= set(arrays)
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ScoreError(f"{path} has a provenance that is not of this version ({FORMAT}): make the file anew")
    ours = network.described()
    other = [
        f"{name} is {stated.get(name)} there and {ours[name]} here"
        for name in ("checksum", "resize", "size", "shift", "scale")
        if json.dumps(stated.get(name)) != json.dumps(ours[name])
    ]
    if other:
        raise ScoreError(
            f"{path} was made with {stated.get('network')}, and these scores are made with {network.name}: "
            f"{'; '.join(other)}. Use --network and --resize as they were there, or make the reference anew"
        )
    spatial = _gaussian(path, arrays, "mu_s", "sigma_s", int(arrays["count"])) if "mu_s" in arrays else None
    found = Reference(
        _gaussian(path, arrays, "mu", "sigma", int(arrays["count"])), spatial, arrays.get("rows"), about | stated
    )
    _check_parts(path, found, wanted)
    return found


def _published(
    path: str,
    arrays: dict[str, np.ndarray],
    images: bool,
    network: FeatureNetwork,
    wanted: Wanted,
    about: dict[str, Any],
    batch: int,
) -> Reference:
    """ADM's file, or pytorch-fid's. How many images the statistics are of, neither says."""
    adm = "mu_s" in arrays
    if adm and network.preprocessing.resize != _ADM_RULE:
        raise ScoreError(
            f"{path} is a reference of ADM's evaluator, which resizes by {_ADM_RULE}; these scores resize by "
            f"{network.preprocessing.resize}: use --resize {_ADM_RULE}"
        )
    about |= {"resize": _ADM_RULE if adm else "not stated", "statistics": "ADM's" if adm else "mu and sigma alone"}
    pooled = _gaussian(path, arrays, "mu", "sigma", None)
    width = network.widths.pooled.shape[-1]
    if len(pooled.mean) != width:
        raise ScoreError(f"{path} holds statistics of {len(pooled.mean)} features; {network.name} has {width}")
    spatial = _gaussian(path, arrays, "mu_s", "sigma_s", None) if adm else None
    rows = None
    if wanted.rows and images:
        found = of_pictures(Pictures(path), network, dataclasses.replace(wanted, logits=False, limit=ROWS), batch=batch)
        rows, about = found.rows, about | {"images of precision and recall": found.count}
    found_reference = Reference(pooled, spatial, rows, about)
    _check_parts(path, found_reference, wanted)
    return found_reference


def _of_images(
    pictures: Pictures, network: FeatureNetwork, wanted: Wanted, about: dict[str, Any], batch: int
) -> Reference:
    found = of_pictures(pictures, network, dataclasses.replace(wanted, logits=False, limit=ROWS), batch=batch)
    return of_collected(found, about | {"images": found.count})


def _gaussian(path: str, arrays: dict[str, np.ndarray], mean: str, cov: str, count: int | None) -> Gaussian:
    mu, sigma = np.asarray(arrays[mean], np.float64), np.asarray(arrays[cov], np.float64)
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ScoreError(f"{path}: {mean} is [D] and {cov} [D, D]; got {list(mu.shape)} and {list(sigma.shape)}")
    return Gaussian(mean=mu, cov=sigma, count=count)


def _check_parts(path: str, found: Reference, wanted: Wanted) -> None:
    if wanted.spatial and found.spatial is None:
        raise ScoreError(f"{path} has no statistics of places (mu_s, sigma_s), which sfid compares: leave it out")
    if wanted.rows and found.rows is None:
        raise ScoreError(
            f"{path} holds statistics and no images or features of images, which kid, pr, prdc and mind compare: leave "
            "these out, or give a reference of images"
        )
