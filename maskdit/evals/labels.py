"""Whether generated images show the labels asked for, in the eyes of the classifier that ships with the library.

Its limits: it errs too (`held_out_accuracy` says how often), and knows emoji only.
"""

import functools
import importlib.resources
from typing import Any

import numpy as np

from maskdit.data.emoji import Emoji
from maskdit.data.loader import Loader
from maskdit.model import load
from maskdit.tasks.classifier import ClassifierModel
from maskdit.training.evaluation import fixed_labels


class LabelsError(ValueError):
    """A model whose labels cannot be judged; the message says why."""


@functools.cache
def shipped_classifier() -> ClassifierModel:
    """The classifier of the embedded emoji that ships with the library; see `maskdit/encoders/README.md`."""
    file = importlib.resources.files("maskdit.encoders").joinpath("emoji_classifier.npz")
    with importlib.resources.as_file(file) as path:
        return load(str(path))


def obeyed(
    model: Any,
    classifier: ClassifierModel,
    num: int = 256,
    seed: int = 0,
    batch: int = 64,
    **sampling: Any,
) -> dict[str, float]:
    """Shares of samples that the classifier gives the label they were made for.

    All combinations of the model's classes are asked for in turn, so that each label is uniform.

    Args:
      model: a generator: `sample`, `vocabulary`, and a `task.network` whose `classes` name its labels.
      classifier: the judge.
      num: number of samples.
      seed: of the samples.
      batch: samples made at once.
      **sampling: `steps`, `guidance` and `temperature` of the model's `sample`.

    Returns:
      Label name -> share, for the labels that both know.

    Raises:
      LabelsError: where the model draws no images, or has no label that the classifier knows.
      ModelError: for settings that the model refuses, and for images of a size that the classifier was not trained on.
    """
    names = judged(model, classifier)
    if num < 1:
        raise LabelsError(f"num is the number of images for each seed, 1 or more; got {num}")
    asked = fixed_labels(model.vocabulary, list(model.task.network.classes), num)
    images = model.sample(asked, count=num, seed=seed, batch=batch, **sampling)
    seen = classifier.classify(images)
    known = {name: np.asarray(classifier.vocabulary[name]) for name in names}
    return {name: float(np.mean(known[name][seen[name]] == np.asarray(asked[name]))) for name in names}


def judged(model: Any, classifier: ClassifierModel) -> list[str]:
    """Names of the model's labels that the classifier can judge.

    Raises:
      LabelsError: where there is none.
    """
    if not hasattr(model, "sample"):
        raise LabelsError(f"this is a {type(model).__name__}, which draws no images: labels need a generator")
    own = list(model.task.network.classes)
    names = [
        name
        for name in own
        if name in classifier.vocabulary and set(model.vocabulary[name]) <= set(classifier.vocabulary[name])
    ]
    if not names:
        listed = " and ".join(sorted(classifier.vocabulary))
        has = f"has the labels {', '.join(own)}" if own else "has no labels"
        raise LabelsError(f"the classifier judges {listed} of the embedded emoji; this model {has}")
    return names


def held_out_accuracy(classifier: ClassifierModel, limit: int | None = None, batch: int = 64) -> dict[str, float]:
    """The classifier's own accuracy on the embedded emoji that it was not trained on, by label name.

    Args:
      classifier: the classifier.
      limit: at most so many images, spread over the split; None for all 520.
      batch: images at once.
    """
    loader = Loader(Emoji("val", tuple(classifier.vocabulary)), flip=False, shuffle=False)
    right = {name: [] for name in classifier.vocabulary}  # type: dict[str, list[np.ndarray]]
    with loader.ordered(batch, limit) as batches:
        for rows in batches:
            seen = classifier.classify(rows["image"], batch)
            for name, found in right.items():
                found.append((seen[name] == rows[name])[rows["weight"] > 0])
    return {name: float(np.concatenate(found).mean()) for name, found in right.items()}
