"""`maskdit sample`: images from a trained model, or edits of one, as a picture and as an array."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from maskdit.contracts import ModelError
from maskdit.data.embeddings import Embeddings
from maskdit.data.source import UnreadableRecord
from maskdit.data.transforms import decode
from maskdit.evals import pictures
from maskdit.model import load
from maskdit.networks.model import GeneratorModel
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


@distributed.together()
def sample(
    workdir: str,
    labels: Sequence[dict[str, str]] = (),
    *,
    out: str | None = None,
    npz: str | None = None,
    trajectory: str | None = None,
    count: int | None = None,
    sampler: str | None = None,
    weak: str | None = None,
    text: str | None = None,
    image: str | None = None,
    mask: str | None = None,
    ema: str = "default",
    step: int | None = None,
    trust: Iterable[str] = (),
    **settings: Any,
) -> np.ndarray:
    """Loads a model, draws images and writes them. Several processes draw together; the first one writes.

    Args:
      workdir: the model's work directory.
      labels: sets of labels, given to the images in turn; none for random ones.
      out: a PNG file for the images as a grid, of an edit after the image and what is kept of it; `samples.png` where
        none of `out`, `npz` and `trajectory` is given.
      npz: a file for the images, `arr_0` uint8 `[count, H, W, 3]`, their labels, and what their texts are called.
      trajectory: a file for what the model took for the images after each step: `.gif` an animation of the grid, `.png`
        a row for each image.
      count: number of images; by default 16, of an edit 4, and with texts as many as there are texts.
      sampler: a name of `SAMPLERS`, in place of the model's own.
      weak: work directory of a weaker model to guide with.
      text: a file of text embeddings, see `maskdit.data.embeddings.Embeddings`.
      image: an image file to edit, of the size that the model makes.
      mask: an image file of the same size: white is made anew, black is kept; of grey what is lighter than the middle
        (128 of 255, the mean of the colours) counts as white. Transparency counts as white, in the image too.
      ema, step, trust: see `maskdit.load`.
      **settings: `steps`, `guidance`, `temperature`, `seed`, `first` and `batch` of `GeneratorModel.sample`.

    Raises:
      ModelError: for a model that draws no images, an unknown sampler, and files that cannot be read or written.
    """
    asked = {"labels": list(labels), "out": out, "npz": npz, "count": count, "sampler": sampler, "weak": weak}
    files = {"trajectory": trajectory, "text": text, "image": image, "mask": mask}
    chosen_model = {"ema": ema, "step": step, "trust": list(trust)}
    edit = _edit(image, mask)
    seen = {f"{name} (pixels)": hashlib.sha256(pixels.tobytes()).hexdigest() for name, pixels in edit.items()}
    distributed.agree(verb="sample", workdir=str(workdir), **asked, **files, **seen, **chosen_model, **settings)
    _check_writable(out, npz, trajectory)
    model = load(workdir, ema=ema, step=step, trust=trust)
    if not isinstance(model, GeneratorModel):
        raise ModelError(f"{workdir} holds a {type(model).__name__}, which draws no images")
    if labels and any(set(one) != set(labels[0]) for one in labels):
        raise ModelError("all --labels must name the same labels")
    chosen = {name: [one[name] for one in labels] for name in labels[0]} if labels else None
    if count is None and text is None:
        count = 4 if edit else 16
    made = model.sample(
        chosen,
        count=count,
        sampler=sampler_named(sampler, model.sampler) if sampler else None,
        weak=load(weak, trust=trust) if weak else None,
        text=text,
        trajectory=trajectory is not None,
        **edit,
        **settings,
    )
    images = made if trajectory is None else made[:, -1]
    if not distributed.is_first():
        return images
    if trajectory is not None:
        _write_trajectory(trajectory, made)
    if out or not (npz or trajectory):
        pictures.save_png(out or "samples.png", pictures.grid(np.concatenate([*_before(**edit), images])))
        print(f"wrote {out or 'samples.png'}: {len(images)} images")
    if npz:
        drawn = model.labels(chosen, count=len(images), seed=settings.get("seed", 0), first=settings.get("first", 0))
        if text is not None:
            drawn["text"] = [name for name, _ in zip(itertools.cycle(Embeddings(text).names), images, strict=False)]
        npz = npz if npz.endswith(".npz") else f"{npz}.npz"
        with epath.Path(npz).open("wb") as file:
            np.savez_compressed(file, arr_0=images, **{name: np.array(values) for name, values in drawn.items()})  # type: ignore[arg-type]
        print(f"wrote {npz}: arr_0 {list(images.shape)} uint8" + "".join(f", {name}" for name in drawn))
    return images


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
