"""How well a tokenizer gives images back: quality of reconstructions, use of its codes, what an image takes.

PSNR and SSIM are `psnr_floored` and `ssim_torchmetrics` of `maskdit.evals.image_quality`, the pair that RAE reports
(arXiv 2510.11690): both images as uint8, each image by itself, then the mean. All other definitions can be had too,
each under its function's name: papers differ in them, and so do their numbers.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Array, Cond, ModelError, PyTree
from maskdit.draw import Draw
from maskdit.evals import image_quality
from maskdit.tasks.perturbation import check_codes, swapped
from maskdit.tokenizers.model import TokenizerModel
from maskdit.tokenizers.pixels import finite, rounded, to_float
from maskdit.training import placement
from maskdit.training.mesh import MeshShape, replicated

FLOAT_BITS = 32
"""Bits of a number of a continuous latent as it is stored."""
_OF_PIXELS = (
    image_quality.psnr_uint8,
    image_quality.psnr_floored,
    image_quality.psnr_llamagen,
    image_quality.ssim_torchmetrics,
    image_quality.ssim_skimage,
    image_quality.ssim_llamagen,
    image_quality.ssim_wang,
)
"""Definitions that quantise reconstructions; beside them stand `psnr_pooled` and `ssim_signed`, which do not."""
_CHUNK = 1 << 15
"""Pixels of images that are compared at once: of more, the intermediate results of SSIM leave the processor's cache."""
_THREADS = 16
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
Watch = Callable[[np.ndarray, np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Swaps:
    """Codes swapped for near ones before decoding, as `maskdit.tasks.perturbation.swapped` does.

    Attributes:
      alpha: probability that a position draws a code anew.
      delta: number of nearest codes that it is drawn from.
    """

    alpha: float
    delta: int

    def __str__(self) -> str:
        return f"{self.alpha:g}x{self.delta}"


@dataclasses.dataclass
class Codes:
    """How often each code was chosen.

    Attributes:
      counts: `[V]`.
    """

    counts: np.ndarray

    @classmethod
    def none(cls, vocabulary: int) -> "Codes":
        """Before any image."""
        return cls(np.zeros(vocabulary, np.int64))

    def add(self, ids: np.ndarray) -> None:
        """Counts ids of any shape."""
        self.counts += np.bincount(ids.reshape(-1), minlength=len(self.counts))

    @property
    def usage(self) -> float:
        """The share of codes that were chosen at all."""
        return float(np.mean(self.counts > 0))

    @property
    def perplexity(self) -> float:
        """The exponential of the entropy of the codes' shares: their number where all are chosen alike."""
        shares = self.counts[self.counts > 0] / max(self.counts.sum(), 1)
        return float(np.exp(-np.sum(shares * np.log(shares))))


def reconstruction(
    model: TokenizerModel,
    loader: Any,
    *,
    batch: int = 64,
    examples: int | None = None,
    distance: Distance | None = None,
    swaps: Swaps | None = None,
    seed: int = 0,
    every_definition: bool = False,
    watch: Watch | None = None,
) -> dict[str, float]:
    """Means over a loader's images.

    Args:
      model: the tokenizer with its weights.
      loader: a `maskdit.data.loader.Loader`; its records are read in order, not mirrored.
      batch: images at once; no figure depends on it.
      examples: at most so many records, spread over the source; None for all.
      distance: of pairs of uint8 images, `[B]`, such as `distance` of `maskdit.load("lpips-alexnet")`; None for none.
      swaps: what is done to codes before decoding; None for nothing.
      seed: of the swaps, which are those of an image's place in the order.
      every_definition: in place of `psnr` and `ssim` all definitions of `maskdit.evals.image_quality`, by their
        functions' names. One image that comes back whole makes `psnr_uint8` infinite.
      watch: is shown the images and their reconstructions, uint8 `[b, H, W, 3]`, batch by batch; None for nobody.

    Returns:
      `images` (how many), `psnr` in dB, `ssim`, `l1` (mean absolute difference of images in [-1, 1]), with `distance`
      also `lpips`; what `size` gives; of a tokenizer with codes `usage` and `perplexity` as the images choose them
      (before swaps), of one with a posterior `kl_bits`, its mean divergence for an image.

    Raises:
      ModelError: for images that the tokenizer does not take, and reconstructions that are no finite numbers.
      ValueError: for swaps of a tokenizer whose codes cannot be swapped.
      DataError: for data without a readable record.
    """
    if swaps is not None:
        check_codes(model.tokenizer, swaps.delta)
    codes = None if model.latent.vocabulary is None else Codes.none(model.latent.vocabulary)
    total: dict[str, float] = {}
    count = 0
    for given, made, found in _decoded(model, loader, batch, examples, swaps, seed, every_definition):
        if codes is not None:
            codes.add(found["ids"])
        for name, values in _compared(given, made, found.get("exact"), distance).items():
            total[name] = total.get(name, 0.0) + float(values.sum())
        if watch is not None and len(given):
            watch(given, made)
        if "kl" in found:
            total["kl_bits"] = total.get("kl_bits", 0.0) + float(found["kl"].sum()) / math.log(2)
        count += len(given)
        shape = given.shape[1:]
    means = {name: value / count for name, value in total.items()}
    if every_definition:  # one number from the squared error of all images, which are of one size
        means["psnr_pooled"] = -10 * math.log10(means["psnr_pooled"]) if means["psnr_pooled"] else math.inf
    used = {} if codes is None else {"usage": codes.usage, "perplexity": codes.perplexity}
    return {"images": float(count), **means, **used, **size(model, shape)}


def codes_used(model: TokenizerModel, loader: Any, *, batch: int = 64, examples: int | None = None) -> Codes:
    """How often each code is chosen by a loader's images; arguments as those of `reconstruction`.

    Raises:
      ModelError: for a tokenizer without codes.
    """
    if model.latent.vocabulary is None:
        raise ModelError("this tokenizer has no codes: its latents are continuous")
    codes = Codes.none(model.latent.vocabulary)
    with loader.ordered(batch, examples) as batches:
        for one in batches:
            codes.add(model.encode(one["image"], one.get("text"))[one["weight"] > 0])
    return codes


def size(model: TokenizerModel, shape: tuple[int, ...]) -> dict[str, float]:
    """What an image of a shape `[H, W, 3]` takes.

    Returns:
      `tokens` (positions of a continuous grid), `bits`: tokens times the logarithm of the vocabulary to base 2; of a
      continuous tokenizer 32 for each of its `floats`, what a file of latents holds of them and no measure of what they
      tell; `kl_bits` bounds that of a drawn latent, while figures are of the posterior's mean. `parameters`: of both
      sides, codes included.
    """
    variables = dict(model.own)
    state = variables.pop("state", {})
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    latents = jax.eval_shape(functools.partial(_encode, tokenizer=model.tokenizer), model.own, image, _text(model))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables))
    parameters += sum(leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(state) if "codebook" in str(path))
    if latents.ids is None:
        floats = math.prod(latents.values.shape[1:])
        tokens, bits = floats // latents.values.shape[-1], floats * FLOAT_BITS
        return {"tokens": float(tokens), "floats": float(floats), "bits": float(bits), "parameters": float(parameters)}
    tokens = math.prod(latents.ids.shape[1:])
    bits = tokens * math.log2(model.latent.vocabulary or 1)
    return {"tokens": float(tokens), "bits": float(bits), "parameters": float(parameters)}


def _text(model: TokenizerModel) -> Cond:
    wanted = getattr(model.tokenizer, "text", None)
    return Cond() if wanted is None else Cond(text=jax.ShapeDtypeStruct((1, *wanted), jnp.float32))  # type: ignore[arg-type]


def _decoded(
    model: TokenizerModel, loader: Any, batch: int, examples: int | None, swaps: Swaps | None, seed: int, exact: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
    """Readable images, their reconstructions, both uint8, and `ids`, `kl` or `exact` ones, batch by batch."""
    devices = MeshShape().make() if model.devices is None else model.devices
    program = functools.partial(_reconstruct, tokenizer=model.tokenizer, swaps=swaps, exact=exact)
    inputs = placement.spread((model.own, np.uint32(seed)), replicated(devices))
    with loader.ordered(batch, examples) as batches:
        for index, one in enumerate(batches):
            given, kept = one["image"], one["weight"] > 0
            model.check_images(given.shape)
            numbers = np.arange(index * batch, index * batch + len(given), dtype=np.uint32)
            cond = Cond(text=one["text"].astype(np.float32)) if "text" in one else Cond()
            made, found = placement.by_rows(program, devices, inputs, (given, numbers, cond))
            finite(made, found.pop("whole"), index * batch)
            yield given[kept], made[kept], {name: values[kept] for name, values in found.items()}


def _compared(
    given: np.ndarray, made: np.ndarray, exact: np.ndarray | None, distance: Distance | None
) -> dict[str, np.ndarray]:
    """Figures of each image, `[B]`; with exact reconstructions `[B, H, W, 3]` in every definition."""
    each = max(1, _CHUNK // math.prod(given.shape[1:3]))
    parts = [slice(start, start + each) for start in range(0, max(len(given), 1), each)]

    def one(part: slice) -> dict[str, np.ndarray]:
        return _pair(given[part], made[part]) if exact is None else _all(given[part], made[part], exact[part])

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:  # NumPy lets go of the interpreter
        done = list(pool.map(one, parts))
    figures = {name: np.concatenate([found[name] for found in done]) for name in done[0]}
    return figures if distance is None else {**figures, "lpips": np.asarray(distance(given, made), np.float64)}


def _pair(given: np.ndarray, made: np.ndarray) -> dict[str, np.ndarray]:
    ours, theirs = _signed(given), _signed(made)
    return {
        "psnr": image_quality.psnr_floored(ours, theirs),
        "ssim": image_quality.ssim_torchmetrics(ours, theirs),
        "l1": np.abs(ours - theirs).mean((1, 2, 3)),
    }


def _all(given: np.ndarray, made: np.ndarray, exact: np.ndarray) -> dict[str, np.ndarray]:
    """Figures by their functions' names, `[B]`; of `psnr_pooled` the squared errors in [0, 1]."""
    ours, theirs, unrounded = _signed(given), _signed(made), exact.astype(np.float64)
    figures = {function.__name__: function(ours, theirs) for function in _OF_PIXELS}
    pooled = np.square(ours - unrounded).mean((1, 2, 3)) / 4
    signed = image_quality.ssim_signed(ours, unrounded)
    return {**figures, "psnr_pooled": pooled, "ssim_signed": signed, "l1": np.abs(ours - theirs).mean((1, 2, 3))}


def _signed(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float64) / 127.5 - 1


def _encode(variables: PyTree, images: Array, cond: Cond, *, tokenizer: Any) -> Any:
    return tokenizer.apply(variables, images, cond, method="encode")


@functools.partial(jax.jit, static_argnames=("tokenizer", "swaps", "exact"))
def _reconstruct(
    inputs: PyTree, rows: tuple[Array, Array, Cond], *, tokenizer: Any, swaps: Swaps | None, exact: bool
) -> tuple[Array, dict[str, Array]]:
    (variables, seed), (images, numbers, cond) = inputs, rows
    latents = _encode(variables, to_float(images), cond, tokenizer=tokenizer)
    found = {"kl": latents.aux["kl"]} if "kl" in latents.aux else {}
    if latents.ids is not None:
        found["ids"] = latents.ids
    if swaps is not None:
        codebook = tokenizer.apply(variables, method="codebook")
        draw = Draw(jax.random.key(seed)).named("swaps").at(numbers)
        latents = swapped(latents, codebook, draw, swaps.alpha, swaps.delta)
    made = tokenizer.apply(variables, latents, cond, method="decode")
    if exact:
        found["exact"] = made
    images, found["whole"] = rounded(made)
    return images, found
