"""A tokenizer with its weights: what `maskdit.load` gives for one, and what a generator's `encode` and `decode` use."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.contracts import Array, Cond, Latents, LatentSpec, ModelError, PyTree
from maskdit.tokenizers.grid import codes_per_position
from maskdit.tokenizers.pixels import check_shape, checked_images, finite, rounded, to_uint8
from maskdit.training import placement
from maskdit.training.mesh import MeshShape


@dataclasses.dataclass(frozen=True)
class TokenizerModel:
    """A tokenizer with its weights.

    Attributes:
      tokenizer: the module.
      variables: the tokenizer's own under `params` or `frozen`, by the name `tokenizer`; under `state` what it has
        learned without gradients.
      config: what it was built from.
      vocabulary, ema, step: of what generators have; a tokenizer has no labels.
      devices: the mesh to compute on; None for all devices, each with a copy of the weights.
    """

    tokenizer: Any
    variables: PyTree
    config: ConfigDict | None = None
    vocabulary: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    ema: str = "none"
    step: int | None = None
    devices: Mesh | None = None

    @property
    def latent(self) -> LatentSpec:
        """What its latents are."""
        return self.tokenizer.latent

    @property
    def own(self) -> PyTree:
        """The tokenizer's variables by collection, as its `apply` takes them."""
        frozen = self.variables.get("frozen", {})
        if "tokenizer" in frozen:
            return frozen["tokenizer"]
        state = self.variables.get("state", {}).get("tokenizer", {})
        return {"params": self.variables["params"]["tokenizer"], **({"state": state} if state else {})}

    def encode(self, images: np.ndarray, text: np.ndarray | None = None) -> np.ndarray:
        """Latents of images: float32 `[B, h, w, c]` or `[B, K, c]`, scaled for a generator; or ids int32 `[B, K]`, with
        a residual quantizer those of a position side by side.

        Args:
          images: uint8, or float in [-1, 1], `[B, H, W, 3]`.
          text: embeddings `[B, T, D]`, for tokenizers whose encoder reads a text; others do without.

        Raises:
          ModelError: for images of another kind or shape, and for text that the tokenizer does not take.
        """
        images = self._images(images)
        program = functools.partial(_encode, tokenizer=self.tokenizer)
        return placement.by_rows(
            program, self._devices, self.own, (images, self._cond(text, len(images), needed=False))
        )

    def decode(self, latents: np.ndarray, text: np.ndarray | None = None) -> np.ndarray:
        """Images uint8 `[B, H, W, 3]` of what `encode` gives.

        Args:
          latents: values, or integer ids `[B, K]`; of a grid that is not square `[B, h, w]`, where positions have
            several codes `[B, h, w, codes]`.
          text: embeddings `[B, T, D]`, for tokenizers whose decoder reads a text.

        Raises:
          ModelError: for latents of another kind or shape, ids outside the vocabulary, and as `encode`.
        """
        latents = self._latents(np.asarray(latents))
        program = functools.partial(_decode, tokenizer=self.tokenizer)
        return placement.by_rows(program, self._devices, self.own, (latents, self._cond(text, len(latents))))

    def reconstruct(self, images: np.ndarray, text: np.ndarray | None = None) -> np.ndarray:
        """Images `[B, H, W, 3]` encoded and decoded, uint8; arguments as those of `encode`.

        Raises:
          ModelError: as `encode`.
          NotFiniteError: for reconstructions that are no finite numbers.
        """
        images = self._images(images)
        program = functools.partial(_reconstruct, tokenizer=self.tokenizer)
        return finite(*placement.by_rows(program, self._devices, self.own, (images, self._cond(text, len(images)))))

    def check_images(self, shape: tuple[int, ...]) -> None:
        """Refuses images of a shape `[B, H, W, 3]` that the tokenizer does not take.

        Raises:
          ModelError: with the shape that it takes.
        """
        check_shape(shape)
        step, size = self.latent.downsample, self.latent.size
        if size is not None and tuple(shape[1:3]) != (size, size):
            raise ModelError(f"the tokenizer takes images of {size} x {size}, got {list(shape[1:3])}: resize them")
        if shape[1] % step or shape[2] % step:
            raise ModelError(f"the tokenizer takes sides that are multiples of {step}, got {list(shape[1:3])}")

    def _images(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        self.check_images(images.shape)
        return checked_images(images)

    def _latents(self, latents: np.ndarray) -> np.ndarray:
        spec = self.latent
        if np.issubdtype(latents.dtype, np.integer):
            return self._ids(latents)
        if not jnp.issubdtype(latents.dtype, jnp.floating):
            raise ModelError(f"latents are floats, or integers for token ids; got {latents.dtype}")
        shape = ["B", spec.tokens, spec.channels] if spec.layout == "sequence" else ["B", "h", "w", spec.channels]
        wanted = f"[{', '.join(map(str, shape))}]"
        fits = latents.ndim == len(shape) and latents.shape[-1] == spec.channels
        if not fits or (spec.layout == "sequence" and latents.shape[1] != spec.tokens):
            raise ModelError(f"latents are {wanted}, got {list(latents.shape)}")
        if not np.isfinite(latents.astype(np.float32)).all():
            raise ModelError("latents are finite numbers; some of these are not")
        return latents.astype(np.float32)

    def _ids(self, ids: np.ndarray) -> np.ndarray:
        spec = self.latent
        if spec.vocabulary is None:
            raise ModelError(f"this tokenizer has no token ids: latents are floats with {spec.channels} channels")
        each = codes_per_position(self.tokenizer)
        if spec.tokens is not None and ids.shape[1:] != (spec.tokens * each,):
            several = "" if each == 1 else f" of {each} codes"
            raise ModelError(
                f"an image has {spec.tokens} tokens{several}: ids are [B, {spec.tokens * each}], got {list(ids.shape)}"
            )
        if spec.tokens is None and not _fills_grid(ids.shape, each):
            kinds = "[B, K] of a square grid, or [B, h, w]"
            if each > 1:
                kinds = f"[B, K] of a square grid with {each} codes at each position, or [B, h, w, {each}]"
            raise ModelError(f"ids are {kinds}; got {list(ids.shape)}")
        if not ids.size or ids.min() < 0 or ids.max() >= spec.vocabulary:
            found = f"{ids.min()} to {ids.max()}" if ids.size else "none"
            raise ModelError(f"token ids are 0 to {spec.vocabulary - 1}, got {found}")
        return ids.astype(np.int32)

    def _cond(self, text: np.ndarray | None, count: int, needed: bool = True) -> Cond:
        wanted: tuple[int, int] | None = getattr(self.tokenizer, "text", None)
        if wanted is None and text is not None:
            raise ModelError("this tokenizer reads no text: leave text out")
        if wanted is not None and text is None and needed:
            raise ModelError(f"this tokenizer reads a text: give embeddings {[count, *wanted]} as text")
        if text is None or wanted is None:
            return Cond()
        given = np.asarray(text, np.float32)
        if given.shape != (count, *wanted):
            raise ModelError(f"text embeddings are {[count, *wanted]}, one text per image; got {list(given.shape)}")
        return Cond(text=given)  # type: ignore[arg-type]  # a host array until it is spread over the devices

    @property
    def _devices(self) -> Mesh:
        return MeshShape().make() if self.devices is None else self.devices


def _fills_grid(shape: tuple[int, ...], each: int) -> bool:
    """Whether ids of a shape are those of a grid with so many codes at each position."""
    if len(shape) == 2:
        return shape[1] % each == 0 and math.isqrt(shape[1] // each) ** 2 == shape[1] // each
    return len(shape) == 3 if each == 1 else len(shape) == 4 and shape[3] == each


def spec_of(module: Any) -> Any:
    """The spec of a built tokenizer, or of a part of one: what `maskdit.config.build` makes it from again."""
    if isinstance(module, Mapping):
        return {name: spec_of(part) for name, part in module.items()}
    if not dataclasses.is_dataclass(module):
        return module
    names = [field.name for field in dataclasses.fields(module) if field.init and field.name not in ("parent", "name")]
    return spec(type(module), **{name: spec_of(getattr(module, name)) for name in names})


def as_latents(array: Array) -> Latents:
    """Latents of values, or of integer ids."""
    return Latents(ids=array) if jnp.issubdtype(array.dtype, jnp.integer) else Latents(values=array)


@functools.partial(jax.jit, static_argnames=("tokenizer",))
def _encode(variables: PyTree, rows: tuple[Array, Cond], *, tokenizer: Any) -> Array:
    latents = tokenizer.apply(variables, *rows, method="encode")
    return latents.values if latents.ids is None else latents.ids


@functools.partial(jax.jit, static_argnames=("tokenizer",))
def _decode(variables: PyTree, rows: tuple[Array, Cond], *, tokenizer: Any) -> Array:
    latents, cond = rows
    return to_uint8(tokenizer.apply(variables, as_latents(latents), cond, method="decode"))


@functools.partial(jax.jit, static_argnames=("tokenizer",))
def _reconstruct(variables: PyTree, rows: tuple[Array, Cond], *, tokenizer: Any) -> tuple[Array, Array]:
    images, cond = rows
    latents = tokenizer.apply(variables, images, cond, method="encode")
    return rounded(tokenizer.apply(variables, latents, cond, method="decode"))
