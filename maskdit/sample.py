"""`maskdit sample`: images from a trained model, or edits of one, as a picture and as an array."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from maskdit.contracts import ModelError
from maskdit.data.conditions import read_prompts
from maskdit.data.embeddings import Embeddings
from maskdit.data.image_array import Pictures, write_npz
from maskdit.data.source import UnreadableRecord
from maskdit.data.transforms import decode
from maskdit.evals import pictures
from maskdit.evals.samples import drawn, in_turn, write_samples
from maskdit.interop.atomic import written_whole
from maskdit.model import load
from maskdit.networks.model import GeneratorModel
from maskdit.references import checksum
from maskdit.samplers.ancestral import DDIM, Ancestral
from maskdit.samplers.autoregressive import TokenByToken
from maskdit.samplers.heun import Euler, Heun
from maskdit.samplers.temperature import Constant
from maskdit.samplers.tokens import AncestralUnmasking, Confidence
from maskdit.samplers.unmask import halton
from maskdit.training import distributed

SAMPLERS: dict[str, Any] = {
    "heun": Heun(),
    "euler": Euler(),
    "ddim": DDIM(),
    "ancestral": Ancestral(),
    "confidence": Confidence(),
    "halton": Confidence(policy=halton, temperature=Constant(1.0)),  # its order takes back no unlikely token
    "unmasking": AncestralUnmasking(),
    "raster": TokenByToken(),
}
"""Name -> sampler with its defaults."""


SHOWN = 100
"""Images that a picture or an animation shows at most."""


@distributed.together()
def sample(
    workdir: str,
    labels: Sequence[dict[str, str]] = (),
    *,
    out: str | None = None,
    npz: str | None = None,
    trajectory: str | None = None,
    num: int | None = None,
    seed: int = 0,
    first: int = 0,
    batch: int = 64,
    sampler: str | None = None,
    weak: str | None = None,
    text: str | None = None,
    image: str | None = None,
    mask: str | None = None,
    ema: str = "default",
    step: int | str | None = None,
    trust: Iterable[str] = (),
    **settings: Any,
) -> None:
    """Loads a model, draws images and writes them. Several processes draw together; the first one writes.

    Image i of a seed is the same whatever `num`, `first`, `batch` and the devices are, but for the rounding of programs
    that are compiled for others; see `maskdit.evals.samples.drawn`.

    Args:
      workdir: the model's work directory.
      labels: sets of labels, in turn: of n sets, image i is given set i % n; none for random ones.
      out: a PNG file for the first `SHOWN` images as a grid, of an edit after the image and what is kept of it;
        `samples.png` where none of `out`, `npz` and `trajectory` is given.
      npz: a file for all images, `arr_0` uint8 `[num, H, W, 3]`, uncompressed, their labels, and what their texts are
        called. More than `SHOWN` images are drawn part by part; the same call goes on after an interruption, see
        `maskdit.evals.samples.write_samples`.
      trajectory: a file for what the model took for the images after each step, of the first `SHOWN`: `.gif` an
        animation of the grid, `.png` a row for each image.
      num: number of images; by default 16, of an edit 4, and with texts as many as there are texts.
      seed: of all draws.
      first: number of the first image.
      batch: images made at once.
      sampler: a name of `SAMPLERS`, in place of the model's own.
      weak: work directory of a weaker model to guide with.
      text: a file of text embeddings, in turn as the labels; see `maskdit.data.embeddings.Embeddings`.
      image: an image file to edit, of the size that the model makes.
      mask: an image file of the same size: white is made anew, black is kept; of grey what is lighter than the middle
        (128 of 255, the mean of the colours) counts as white. Transparency counts as white, in the image too.
      ema, step, trust: see `maskdit.load`.
      **settings: `steps`, `guidance` and `temperature` of `GeneratorModel.sample`.

    Raises:
      ModelError: for a model that draws no images, an unknown sampler, and files that cannot be read or written.
    """
    drawing = {"labels": list(labels), "sampler": sampler, **settings}
    numbers = {"num": num, "seed": seed, "first": first, "batch": batch}
    files = {"out": out, "npz": npz, "trajectory": trajectory, "weak": weak, "text": text, "image": image, "mask": mask}
    chosen_model = {"ema": ema, "step": step, "trust": list(trust)}
    edit = _edit(image, mask)
    drawing |= {f"{name} (pixels)": hashlib.sha256(pixels.tobytes()).hexdigest() for name, pixels in edit.items()}
    distributed.agree(verb="sample", workdir=str(workdir), **drawing, **numbers, **files, **chosen_model)
    _check_writable(out, npz, trajectory)
    model = load(workdir, ema=ema, step=step, trust=trust)
    if not isinstance(model, GeneratorModel):
        raise ModelError(f"{workdir} holds a {type(model).__name__}, which draws no images")
    if labels and any(set(one) != set(labels[0]) for one in labels):
        raise ModelError("all --labels must name the same labels")
    how = {
        "seed": seed,
        "first": first,
        "batch": batch,
        "labels": {name: [one[name] for one in labels] for name in labels[0]} if labels else None,
        "text": None if text is None else read_prompts(text, model.task.network),
        "sampler": sampler_named(sampler, model.sampler) if sampler else None,
        "weak": load(weak, trust=trust) if weak else None,
        **edit,
        **settings,
    }
    if num is None:
        rows = [len(array) for array in jax.tree.leaves(how["text"])]
        num = max(len(labels), *rows) if rows else 4 if edit else 16
    few = _few(model, min(num, SHOWN), trajectory, how) if trajectory or not npz or num <= SHOWN else None
    if npz:
        npz = npz if npz.endswith(".npz") else f"{npz}.npz"
        _write_npz(npz, model, num, few, text, how, drawing)
    if distributed.is_first() and (out or not (npz or trajectory)):
        few = next(Pictures(str(npz)).batches(SHOWN)) if few is None else few
        _write_grid(out or "samples.png", [*_before(**edit), few], num, bool(npz))
    distributed.barrier()  # the others wait for the first, however long it writes


def _few(model: GeneratorModel, num: int, trajectory: str | None, how: Mapping[str, Any]) -> np.ndarray:
    """The first images, uint8 `[num, H, W, 3]`, with the file of how they came to be where one is asked for."""
    made = np.concatenate([some for _, some in drawn(model, num, trajectory=trajectory is not None, **how)])
    if trajectory is None:
        return made
    if distributed.is_first():
        _write_trajectory(trajectory, made)
    return made[:, -1]


def _write_npz(
    npz: str,
    model: GeneratorModel,
    num: int,
    few: np.ndarray | None,
    text: str | None,
    how: Mapping[str, Any],
    drawing: Mapping[str, Any],
) -> None:
    """Writes the array file: of the images that are there already where these are all, else of what it draws."""
    numbers = np.arange(how["first"], how["first"] + num)
    beside = model.labels(in_turn(how["labels"], numbers), count=num, seed=how["seed"], first=how["first"])
    facts = dict(drawing)
    if text is not None:
        names = Embeddings(text).names
        beside["text"] = [names[number % len(names)] for number in numbers]
        facts["text"] = hashlib.sha256(epath.Path(text).read_bytes()).hexdigest()
    if how["weak"] is not None:
        facts["weak"] = checksum(how["weak"].variables)
    if few is None or len(few) < num:
        write_samples(model, npz, num, beside=beside, facts=facts, **how)
    elif distributed.is_first():
        with written_whole(epath.Path(npz)) as path:
            write_npz(path, few.shape, [few], beside)
    if distributed.is_first():
        print(f"wrote {npz}: arr_0 {list(Pictures(npz).shape)} uint8" + "".join(f", {name}" for name in beside))


def _write_grid(out: str, rows: list[np.ndarray], num: int, kept: bool) -> None:
    """Writes a picture of images `[n, H, W, 3]`; the last ones are the first of all `num`."""
    pictures.save_png(out, pictures.grid(np.concatenate(rows)))
    shown = len(rows[-1])
    some = f"the first {shown} of {num} images" if shown < num else f"{num} images"
    print(f"wrote {out}: {some}" + "; --npz FILE keeps all" * (shown < num and not kept))


def sampler_named(name: str, own: Any = None) -> Any:
    """A sampler with its defaults, but as many steps as the model's own has, and of its kind with its other settings.

    Args:
      name: of `SAMPLERS`.
      own: the model's sampler, if any.

    Raises:
      ModelError: for an unknown name.
    """
    if name not in SAMPLERS:
        raise ModelError(f"there is no sampler '{name}': use one of {', '.join(SAMPLERS)}")
    asked = SAMPLERS[name]
    if isinstance(own, Confidence) and isinstance(asked, Confidence):
        noise = {"temperature": asked.temperature, "token_temperature": asked.token_temperature}
        return own if own.policy is asked.policy else dataclasses.replace(own, policy=asked.policy, **noise)
    steps = getattr(own, "steps", None)
    return dataclasses.replace(asked, steps=steps) if isinstance(steps, int) and asked.steps is not None else asked


def _edit(image: str | None, mask: str | None) -> dict[str, Any]:
    """The image uint8 `[H, W, 3]` and the mask bool `[H, W]` of an edit; nothing where none is asked for."""
    if (image is None) != (mask is None):
        raise ModelError("an edit takes both --image and --mask, a picture that is white where the image is made anew")
    if image is None or mask is None:
        return {}
    return {"image": _read(image, "--image"), "mask": _read(mask, "--mask").mean(-1) >= 128}


def _read(path: str, argument: str) -> np.ndarray:
    try:
        return decode(epath.Path(path).read_bytes(), path)
    except OSError as error:
        raise ModelError(f"{argument} {path} cannot be read ({error.strerror or error}): give an image file") from error
    except UnreadableRecord as error:
        raise ModelError(f"{argument} {path} is {error.reason}: give a PNG or JPEG file") from error


def _before(image: np.ndarray | None = None, mask: np.ndarray | None = None) -> list[np.ndarray]:
    """What is shown ahead of the results of an edit: the image, and the image with a grey area, `[1, H, W, 3]` each."""
    if image is None or mask is None:
        return []
    kept = np.where(mask[..., None], np.uint8(128), image)
    return [image[None], kept[None]]


def _check_writable(out: str | None, npz: str | None, trajectory: str | None) -> None:
    """Refuses files that cannot be written before anything is computed."""
    if trajectory is not None and epath.Path(trajectory).suffix.lower() not in (".gif", ".png"):
        raise ModelError(f"--trajectory is an animation (.gif) or a picture (.png), got {trajectory}")
    for path in (out, npz, trajectory):
        if path and "://" not in path and not distributed.first(epath.Path(path).absolute().parent.is_dir):
            raise ModelError(f"cannot write {path}: its folder does not exist")


def _write_trajectory(path: str, made: np.ndarray) -> None:
    """Writes frames uint8 `[count, steps, H, W, 3]`."""
    if path.lower().endswith(".gif"):
        pictures.save_gif(path, np.stack([pictures.grid(frame) for frame in made.swapaxes(0, 1)]))
    else:
        pictures.save_png(path, pictures.strip(made))
    print(f"wrote {path}: {made.shape[1]} steps of {len(made)} images")
