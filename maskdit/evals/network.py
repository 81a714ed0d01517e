"""The feature network behind a score. Its name belongs to every number: only distances by Inception are called FID."""

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp

from maskdit.contracts import Array, ModelError, PyTree
from maskdit.encoders.features import Features, Preprocessing
from maskdit.encoders.model import EncoderModel, preprocessing
from maskdit.evals.labels import shipped_classifier
from maskdit.model import load
from maskdit.references import checksum
from maskdit.tasks.classifier import ClassifierModel

OFFLINE = "emoji-classifier"
"""The network that ships with the library: for emoji and for machines without downloads, 64 features."""
INCEPTION = "inception-fid"
"""The published weights by which an FID is an FID; figures by others of its kind show their name."""


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A feature network with its weights, and how it wants its images.

    Attributes:
      name: as it was asked for.
      module: a linen module, hashable.
      variables: its variables.
      preprocessing: what is done to uint8 images before.
      head: of a classifier with several labels, the one that class scores are of.
      checksum: of the variables and of the module's fields.
    """

    name: str
    module: Any
    variables: PyTree
    preprocessing: Preprocessing
    head: str | None
    checksum: str

    @property
    def is_inception(self) -> bool:
        """Whether its distance may be called FID."""
        return type(self.module).__name__ == "InceptionV3"

    @property
    def classes(self) -> str:
        """What its class scores are of, in words."""
        return "ImageNet's classes" if self.head is None else f"the classes of '{self.head}'"

    @functools.cached_property
    def widths(self) -> Features:
        """Shapes of what it says of one image; parts that it does not have are None."""
        image = jax.ShapeDtypeStruct((1, self.preprocessing.size, self.preprocessing.size, 3), jnp.uint8)
        return jax.eval_shape(functools.partial(self.see, self.variables), image)

    def see(self, variables: PyTree, images: Array) -> Features:
        """What it says of images uint8 `[B, H, W, 3]` of any size; traced inside the programs of scores.

        Products are of full float32: what accelerators do by default moves distances.
        """
        with jax.default_matmul_precision("highest"):
            said = self.module.apply(variables, self.preprocessing(images))
        if self.head is not None:
            said = Features(pooled=said.features, logits=said.logits[self.head])
        return jax.tree.map(lambda part: part.astype(jnp.float32), said)

    def described(self) -> dict[str, Any]:
        """What a score must say of it: `network`, `checksum`, `resize`, `size`, and the scale of its input."""
        return {"network": self.name, "checksum": self.checksum, **dataclasses.asdict(self.preprocessing)}


def find(name: str | None = None, resize: str | None = None) -> FeatureNetwork:
    """A feature network by its name.

    Args:
      name: `emoji-classifier` (the default, which ships), the name of published weights such as `inception-fid`, or
        the work directory that `maskdit import` or the training of a classifier wrote.
      resize: the resize rule; None for the network's first.

    Raises:
      ModelError: for weights that are no feature network, and rules that it does not have.
      WeightsError, CheckpointError, OSError: where the weights cannot be had.
    """
    name = name or OFFLINE
    model = shipped_classifier() if name == OFFLINE else load(name)
    if isinstance(model, ClassifierModel):
        return _classifier(name, model, resize)
    if not isinstance(model, EncoderModel) or not hasattr(model.encoder, "PREPROCESSING"):
        raise ModelError(
            f"{name} is no network that scores are made with: give {OFFLINE}, inception-fid, dinov2-vitl14, resnet50, "
            "or the work directory of one of them or of a classifier"
        )
    how = preprocessing(model.encoder, resize)
    variables = {"params": model.variables["params"]["encoder"]}
    return FeatureNetwork(name, model.encoder, variables, how, None, _identity(model.encoder, variables))


def _classifier(name: str, model: ClassifierModel, resize: str | None) -> FeatureNetwork:
    size = model.config.data.size if model.config else 64
    rules = ("clean", "pil-bicubic", "torch-bilinear", "tf1-bilinear")
    if resize is not None and resize not in rules:
        raise ModelError(f"a classifier is used with the resize rules {', '.join(rules)}; got '{resize}'")
    classes = model.task.network.classes
    head = max(sorted(classes), key=lambda label: classes[label])
    variables = {"params": model.variables["params"]["network"]}
    how = Preprocessing(resize or rules[0], size)
    return FeatureNetwork(name, model.task.network, variables, how, head, _identity(model.task.network, variables))


def _identity(module: Any, variables: PyTree) -> str:
    return hashlib.sha256(f"{module!r} {checksum(variables)}".encode()).hexdigest()
