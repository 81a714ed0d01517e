"""`maskdit evaluate` of images: of whatever made them, of a tokenizer's reconstructions, and statistics of a set."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from maskdit.data.image_array import Pictures
from maskdit.evals import network as networks
from maskdit.evals import reconstruction as reconstructions
from maskdit.evals import reference as references
from maskdit.evals import report, scoring
from maskdit.evals.report import Figure
from maskdit.evals.scores import SCORES, of_reference, wanted
from maskdit.evaluate import EvaluationError, check, figures_of, place, provenance
from maskdit.model import load
from maskdit.tokenizers.model import TokenizerModel
from maskdit.training import distributed


@distributed.together()
def evaluate_images(
    images: str,
    metrics: Sequence[str] = ("fd",),
    num: int | None = None,
    *,
    reference: str | None = None,
    network: str | None = None,
    resize: str | None = None,
    batch: int = 64,
    out: str | None = None,
    trust: Iterable[str] = (),
) -> dict[str, Any]:
    """Measures images, of whatever made them; arguments and results as those of `evaluate`.

    Args:
      images: an `.npz` or `.npy` file of uint8 images `[N, H, W, 3]`, or a folder of image files of one size.
      metrics: names out of `SCORES`.
      num: the first so many; None for all.
      reference, network, resize, batch, out, trust: see `evaluate`; scores that compare need a reference.

    Raises:
      EvaluationError: for metrics that need a model.
      ScoreError, DataError, ModelError: for images and references that cannot be scored.
    """
    begin = time.monotonic()
    check(metrics, 2 if num is None else num, (0,))
    if others := [name for name in metrics if name not in SCORES]:
        raise EvaluationError(f"{', '.join(others)} ask a model: of images there are {', '.join(SCORES)}")
    facts = {"images": images, "metrics": list(metrics), "num": num, "batch": batch, "out": out}
    distributed.agree(verb="evaluate", reference=reference, network=network, resize=resize, trust=list(trust), **facts)
    pictures, folder = Pictures(images), place(images, out)
    found = networks.find(network, resize)
    size = pictures.shape[1]
    how: dict[str, Any] = {"size": size, "batch": batch, "folder": folder / "progress", "trust": tuple(trust)}
    ready = scoring.prepare(metrics, found, reference, **how)
    values = ready.of_pictures(pictures, num)
    count = len(pictures) if num is None else num
    figures = figures_of(ready, [values], {name: {"bias": value} for name, value in ready.bias(count).items()})
    if distributed.is_first():
        print(report.table(figures, count, ["value"], ready.notes(count)))
    about = {"of": images, "sha256": pictures.checksum, "num": count, **provenance(ready)}
    record = report.record(figures, about, time.monotonic() - begin)
    report.keep(folder, record)
    return record


@distributed.together()
def evaluate_tokenizer(
    tokenizer: str,
    data: str,
    metrics: Sequence[str] = ("fd",),
    num: int | None = None,
    *,
    size: int | None = None,
    lpips: str | None = None,
    reference: str | None = None,
    network: str | None = None,
    resize: str | None = None,
    batch: int = 64,
    out: str | None = None,
    ema: str = "default",
    step: int | str | None = None,
    trust: Iterable[str] = (),
) -> dict[str, Any]:
    """Measures how a tokenizer gives images back: PSNR and SSIM in every definition, use of codes, scores (rFID).

    Args:
      tokenizer: its work directory, file or name, or a generator whose tokenizer is meant.
      data: a config whose held-out images are given to it (its training images where it names no others), or a folder.
      metrics: names out of `SCORES`; empty for none. With Inception's features `fid` is the rFID.
      num: at most so many images, spread evenly; None for all.
      size: side of the images of a folder; the tokenizer's by default.
      lpips: `lpips` or `lpips-alexnet`, whose weights `maskdit fetch` brings, or their work directory; None for none.
      reference: what scores compare the reconstructions with; by default the same images as they were given.
      network, resize, batch, out, ema, step, trust: see `maskdit.evaluate.evaluate`.

    Raises:
      EvaluationError: for what is no tokenizer, and metrics that are no scores.
      ScoreError, DataError, ModelError: for data and references that do not go with it.
    """
    begin = time.monotonic()
    if metrics:
        check(metrics, 2 if num is None else num, (0,))
    if others := [name for name in metrics if name not in SCORES]:
        raise EvaluationError(f"{', '.join(others)} ask a generator: of reconstructions there are {', '.join(SCORES)}")
    facts: dict[str, Any] = {"tokenizer": tokenizer, "data": data, "metrics": list(metrics), "num": num, "size": size}
    facts |= {"lpips": lpips, "reference": reference, "network": network, "resize": resize, "batch": batch, "out": out}
    distributed.agree(verb="evaluate", ema=ema, step=step, trust=list(trust), **facts)
    model = load(tokenizer, ema=ema, step=step, trust=trust)
    model = getattr(model, "coder", model)
    if not isinstance(model, TokenizerModel):
        raise EvaluationError(f"{tokenizer} holds a {type(model).__name__}, which encodes no images")
    loader = scoring.loader_of(data, size or model.latent.size, tuple(trust), part="held_out")
    folder = place(tokenizer, out)
    found = networks.find(network, resize) if metrics else None
    ready = None
    if found is not None:
        how: dict[str, Any] = {
            "size": loader.size,
            "batch": batch,
            "folder": folder / "progress",
            "trust": tuple(trust),
        }
        ready = scoring.prepare(metrics, found, reference or loader, limit=None if reference else num, **how)
    made = None if ready is None else ready.collector(num)
    values = reconstructions.reconstruction(
        model,
        loader,
        batch=batch,
        examples=num,
        distance=None if lpips is None else load(lpips).distance,
        every_definition=True,
        watch=None if made is None else lambda _, theirs: made.add(theirs),
    )
    count = int(values.pop("images"))
    figures = [Figure(name, (value,), {}, unit="%" if name == "usage" else "") for name, value in values.items()]
    if ready is not None and made is not None:
        # reconstructions stand in pairs with the images of the default reference: no independent draws to compare with
        beside = {name: {"bias": value} for name, value in ready.bias(count).items()} if reference else {}
        figures += [
            Figure(f.name, f.values, f.beside, f.unit, f.note, label="r" + (f.label or f.name))
            for f in figures_of(ready, [ready.of_collected(made.finish())], beside)
        ]
    if distributed.is_first():
        print(
            report.table(
                figures, count, ["value"], [] if ready is None else ready.notes(count, bias=reference is not None)
            )
        )
    about = {"of": tokenizer, "data": references.described(loader), "lpips": lpips, "num": count, "ema": model.ema}
    record = report.record(figures, {**about, "step": model.step, **provenance(ready)}, time.monotonic() - begin)
    report.keep(folder, record)
    return record


@distributed.together()
def write_statistics(
    path: str,
    *,
    images: str | None = None,
    data: str | None = None,
    size: int | None = None,
    network: str | None = None,
    resize: str | None = None,
    rows: bool = True,
    batch: int = 64,
    trust: Iterable[str] = (),
) -> references.Reference:
    """Writes the statistics of a set of images, with their provenance; what was interrupted goes on.

    Args:
      path: the `.npz` file.
      images: see `evaluate_images`; or
      data: a config whose training images are meant, or a folder of images.
      size: side of the images of a folder in `data`.
      network, resize, batch, trust: see `maskdit.evaluate.evaluate`.
      rows: whether features of up to 10,000 single images go with them, for precision and recall.

    Raises:
      EvaluationError: where not one of `images` and `data` is given.
      ScoreError, DataError, ModelError, OSError: for images that have no statistics, or a path of another kind.
    """
    if (images is None) == (data is None):
        raise EvaluationError("statistics are of --images or of --data: give one of them")
    facts = {"path": path, "images": images, "data": data, "size": size, "network": network, "resize": resize}
    distributed.agree(verb="evaluate", **facts, rows=rows, batch=batch, trust=list(trust))
    references.check_path(path)
    found = networks.find(network, resize)
    want = of_reference(wanted((), found, keep=rows))
    unfinished = epath.Path(f"{path}.unfinished")
    if images is not None:
        pictures = Pictures(images)
        about: dict[str, Any] = {"reference": {"images": images, "sha256": pictures.checksum}}
        collected = references.of_pictures(pictures, found, want, batch=batch, folder=unfinished)
    else:
        loader = scoring.loader_of(str(data), size, tuple(trust))
        about = {"reference": references.described(loader)}
        collected = references.of_loader(loader, found, want, batch=batch, folder=unfinished)
    made = references.of_collected(collected, about | {"images": collected.count, "rounding": report.ROUNDING})
    references.write(path, made, found)
    if distributed.is_first():
        print(f"wrote {path}: {collected.count} images, {found.name}, {found.preprocessing.resize}")
    return made
