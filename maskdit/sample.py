"""`maskdit sample`: images from a trained model, as a picture and as an array."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from maskdit.contracts import ModelError
from maskdit.evals import pictures
from maskdit.model import GeneratorModel, load
from maskdit.samplers.ancestral import DDIM, Ancestral
from maskdit.samplers.heun import Euler, Heun
from maskdit.training import distributed

SAMPLERS: dict[str, Any] = {"heun": Heun, "euler": Euler, "ddim": DDIM, "ancestral": Ancestral}


@distributed.together()
def sample(
    workdir: str,
    labels: Sequence[dict[str, str]] = (),
    *,
    out: str | None = None,
    npz: str | None = None,
    count: int = 16,
    sampler: str | None = None,
    weak: str | None = None,
    ema: str = "default",
    step: int | None = None,
    trust: Iterable[str] = (),
    **settings: Any,
) -> np.ndarray:
    """Loads a model, draws images and writes them. Several processes draw together; the first one writes.

    Args:
      workdir: the model's work directory.
      labels: sets of labels, given to the images in turn; none for random ones.
      out: a PNG file for the images as a grid; `samples.png` where neither `out` nor `npz` is given.
      npz: a file for the images, `arr_0` uint8 `[count, H, W, 3]`, and their labels.
      count: number of images.
      sampler: a name of `SAMPLERS`, in place of the model's own.
      weak: work directory of a weaker model to guide with.
      ema, step, trust: see `maskdit.load`.
      **settings: `steps`, `guidance`, `seed`, `first` and `batch` of `GeneratorModel.sample`.

    Raises:
      ModelError: for a model that draws no images, or an unknown sampler.
    """
    asked = {"labels": list(labels), "out": out, "npz": npz, "count": count, "sampler": sampler, "weak": weak}
    chosen_model = {"ema": ema, "step": step, "trust": list(trust)}
    distributed.agree(verb="sample", workdir=str(workdir), **asked, **chosen_model, **settings)
    for path in (out, npz):
        if path and "://" not in path and not distributed.first(epath.Path(path).absolute().parent.is_dir):
            raise ModelError(f"cannot write {path}: its folder does not exist")
    model = load(workdir, ema=ema, step=step, trust=trust)
    if not isinstance(model, GeneratorModel):
        raise ModelError(f"{workdir} holds a {type(model).__name__}, which draws no images")
    if sampler is not None and sampler not in SAMPLERS:
        raise ModelError(f"there is no sampler '{sampler}': use one of {', '.join(SAMPLERS)}")
    if labels and any(set(one) != set(labels[0]) for one in labels):
        raise ModelError("all --labels must name the same labels")
    chosen = {name: [one[name] for one in labels] for name in labels[0]} if labels else None
    images = model.sample(
        chosen,
        count=count,
        sampler=SAMPLERS[sampler](**({"steps": model.sampler.steps} if model.sampler else {})) if sampler else None,
        weak=load(weak, trust=trust) if weak else None,
        **settings,
    )
    if not distributed.is_first():
        return images
    if out or not npz:
        pictures.save_png(out or "samples.png", pictures.grid(images))
        print(f"wrote {out or 'samples.png'}: {len(images)} images")
    if npz:
        drawn = model.labels(chosen, count=count, seed=settings.get("seed", 0), first=settings.get("first", 0))
        npz = npz if npz.endswith(".npz") else f"{npz}.npz"
        with epath.Path(npz).open("wb") as file:
            np.savez_compressed(file, arr_0=images, **{name: np.array(values) for name, values in drawn.items()})  # type: ignore[arg-type]
        print(f"wrote {npz}: arr_0 {list(images.shape)} uint8" + "".join(f", {name}" for name in drawn))
    return images
