"""The small types that the parts of the library hand to each other.

Tokenizers give `Latents`; networks give a `Prediction` and describe themselves with a `Layout`; a process turns a
prediction into a `Loss`; conditions travel as a `Cond`. `Predict` is a network bound to its parameters: the only
form in which processes and samplers meet a network.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from maskdit.draw import Draw

Array = jax.Array
PyTree = Any


class ModelError(ValueError):
    """A model that cannot do what it was asked for; the message says what it can."""


class NotFiniteError(ModelError):
    """A model that made images with pixels that are no finite numbers."""


@struct.dataclass
class Latents:
    """What a tokenizer's `encode` returns.

    Attributes:
      values: continuous latents, scaled for a generator, `[B, h, w, c]` or `[B, K, c]`; of discrete tokenizers what the
        decoder takes, with the straight-through gradient. None where there are ids only: they are looked up.
      ids: token ids `[B, K]`, int32, a grid's row by row; None for continuous tokenizers.
      aux: by-products by name: `moments` of a posterior, `kl` `[B]`, `z`, what a quantizer was given.
      losses: terms that training adds, by name, weighted already: `[B]`, or a scalar where no example owns it.
    """

    values: Array | None = None
    ids: Array | None = None
    aux: dict[str, Array] = struct.field(default_factory=dict)
    losses: dict[str, Array] = struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LatentSpec:
    """Static description of a tokenizer's latents.

    Attributes:
      layout: `grid` (`[B, h, w, c]`), `sequence` (`[B, K, c]`) or `pyramid` (ids of several scales, coarse to fine).
      downsample: pixels per latent position along an image side; of a sequence the divisor of sides, its patch.
      channels: numbers per position.
      scale, shift: generators see `(raw - shift) * scale`; a number, or one per channel.
      vocabulary: number of token ids; None for continuous latents.
      tokens: of a sequence or pyramid, how many tokens an image has; None for a grid, whose image tells.
      size: the side of the square images that it takes; None for any multiple of `downsample`.
    """

    layout: str
    downsample: int
    channels: int
    scale: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0
    vocabulary: int | None = None
    tokens: int | None = None
    size: int | None = None


@struct.dataclass
class Cond:
    """The condition of a generator: named arrays, one row per example.

    Attributes:
      labels: label name -> class ids `[B]`, int32. The id equal to the number of classes is the null label.
      text: embeddings of a text's tokens `[B, T, D]`; None for none.
      pooled: an embedding of the whole text, `[B, P]`; None for none.
      null_text, null_pooled: those of the empty text, which stand in where the text is dropped; None for zeros.
      decoder_text: embeddings `[B, T, D]` for a tokenizer whose decoder reads another encoder's than the network; None
        for the same as `text`.
      scalars: micro-conditions by name, `[B]` float32, such as the size of the image; they are never dropped.
    """

    labels: dict[str, Array] = struct.field(default_factory=dict)
    text: Array | None = None
    pooled: Array | None = None
    null_text: Array | None = None
    null_pooled: Array | None = None
    decoder_text: Array | None = None
    scalars: dict[str, Array] = struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Tokens of a network: a grid of patches over the input, or ids of a tokenizer.

    Attributes:
      grid: tokens along each axis of the input, `(rows, columns)`, or `(K,)` of a sequence; places are row-major.
      patch: input positions per token along an axis.
      channels: input channels; of ids 0.
      vocabulary: number of token ids where the input is ids `[B, K]`; the id of that number is the mask. None for
        continuous inputs.
    """

    grid: tuple[int, ...]
    patch: int = 1
    channels: int = 0
    vocabulary: int | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return math.prod(self.grid)

    @property
    def mask(self) -> int:
        """The id of a masked token.

        Raises:
          ValueError: for continuous inputs, which have none.
        """
        if self.vocabulary is None:
            raise ValueError("a layout of continuous inputs has no mask id")
        return self.vocabulary

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input without the batch axis: `(H, W, C)`, or `(K,)` of ids."""
        if self.vocabulary is not None:
            return (self.tokens,)
        return (*(side * self.patch for side in self.grid), self.channels)


@struct.dataclass
class Prediction:
    """What a network returns.

    Attributes:
      x: the prediction, shaped like the input; for ids the logits `[B, K, V]`, float32, which have no mask id.
      aux: further outputs by name: `mask` `[B, N]` (1 where a token was not processed), `variance` (shaped like the
        input; learned-range interpolation values).
      taps: inner values asked for by name with `taps=`.
      cache: what a network with memory hands to its next call; None for the others.
    """

    x: Array
    aux: dict[str, Array] = struct.field(default_factory=dict)
    taps: dict[str, Array] = struct.field(default_factory=dict)
    cache: PyTree = None


@struct.dataclass
class Loss:
    """What a process or a task hands to the training step.

    The step minimises `sum(weight * value) / sum(weight)` over the global batch, plus the sum of `batch`.

    Attributes:
      value: loss of each example, `[B]`, float32.
      weight: weight of each example, `[B]`.
      batch: scalar terms that belong to no example, by name.
      metrics: per-example figures to log by name, `[B]` each.
      bins: by name, which examples belong to a range of noise levels, `[B]` of 0 and 1; the mean of `value`
        over each bin is logged too.
      prediction: the network's output, stripped of its gradient by whoever reuses it.
    """

    value: Array
    weight: Array
    batch: dict[str, Array] = struct.field(default_factory=dict)
    metrics: dict[str, Array] = struct.field(default_factory=dict)
    bins: dict[str, Array] = struct.field(default_factory=dict)
    prediction: Prediction | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static choices of a training step; one program is compiled for each distinct plan.

    Attributes:
      keep: number of tokens that the network processes; None for all of them.
      phase: the task's name of a phase of training, where its loss has other terms; None for its only one.
      masked: number of masked tokens in each example of the batch; None where examples differ.
      hidden: of the visible tokens, how many are hidden again for a first pass whose features the second one takes;
        None where there is one pass.
    """

    keep: int | None = None
    phase: str | None = None
    masked: int | None = None
    hidden: int | None = None

    def __repr__(self) -> str:
        given = {name: value for name, value in vars(self).items() if name == "keep" or value is not None}
        return f"Plan({', '.join(f'{name}={value!r}' for name, value in given.items())})"


@dataclasses.dataclass(frozen=True)
class Predict:
    """A network bound to its parameters: `predict(x, t, cond, *, keep=None, taps=(), at=None, **kw) -> Prediction`.

    Attributes:
      call: the bound network.
      null: turns a condition into the dropped one.
      layout: the network's tokens.
      init_cache: `init_cache(rows)`, the empty memory of a network that has one; None for the others.
      average: the network with averaged parameters, for a process that learns from it; None outside of training.
    """

    call: Callable[..., Prediction]
    null: Callable[[Cond], Cond]
    layout: Layout
    init_cache: Callable[[int], PyTree] | None = None
    average: "Predict | None" = None

    def __call__(self, x: Array, t: Array, cond: Cond, **kw: Any) -> Prediction:
        """Calls the network."""
        kw.pop("at", None)  # where in a sampling run we are: for guidance, which wraps this function
        return self.call(x, t, cond, **kw)


class Network(Protocol):
    """A linen module that processes train. Besides `__call__` and what is here, `describe` uses `macs(keep)`, the
    multiply-adds of one example's forward pass.

    One that takes text has `text_width` and, where it takes the whole text's embedding too, `pooled_width`; one with
    micro-conditions has `scalars`, their values by name where nothing else is given. One with memory has
    `init_cache(rows)` and takes `cache=`.
    """

    classes: Mapping[str, int]

    @property
    def layout(self) -> Layout:
        """Its tokens."""
        ...

    def null(self, cond: Cond) -> Cond:
        """The condition with everything dropped."""
        ...

    def __call__(
        self,
        x: Array,
        t: Array,
        cond: Cond,
        *,
        keep: Array | None = None,
        taps: Sequence[str] = (),
        draw: Draw | None = None,
        train: bool = False,
    ) -> Prediction:
        """Predicts from inputs `[B, H, W, C]`, or ids `[B, K]` int32, at times `[B]`.

        With `keep` `[B, k]` it processes only those tokens and returns `aux["mask"]` `[B, N]`, 1 where a token is
        missing; `taps` names inner values to return; `draw` is for what is random inside, such as dropout.
        """
        ...


class Tokenizer(Protocol):
    """A linen module between images and latents. One with `fit(batches) -> variables` is fitted before step 0."""

    @property
    def latent(self) -> LatentSpec:
        """Its latents."""
        ...

    def encode(
        self, images: Array, cond: Cond | None = None, *, draw: Draw | None = None, train: bool = False
    ) -> Latents:
        """Images `[B, H, W, 3]` in [-1, 1] to latents.

        `draw` samples a posterior where there is one. With `train` what learns without gradients (the codes of an
        averaged codebook) is updated in the collection `state`, where that is mutable.
        """
        ...

    def decode(
        self, latents: Latents, cond: Cond | None = None, *, draw: Draw | None = None, train: bool = False
    ) -> Array:
        """Latents to images `[B, H, W, 3]`, not clamped."""
        ...


@struct.dataclass
class Quantized:
    """What a quantizer returns.

    Attributes:
      values: what the decoder takes, `[B, ..., c]`, with the straight-through gradient.
      ids: of the codes, int32: `[B, ...]`, or `[B, K]` where a position has several or scales differ.
      losses: see `Latents.losses`.
      aux: `z`, what was quantized as it was compared with the codes (normalised where they are), and statistics.
    """

    values: Array
    ids: Array
    losses: dict[str, Array] = struct.field(default_factory=dict)
    aux: dict[str, Array] = struct.field(default_factory=dict)


class Quantizer(Protocol):
    """A linen module between an encoder's features and codes.

    Attributes:
      codes: size of the vocabulary.
      channels: numbers per position.
    """

    codes: int
    channels: int

    def __call__(self, z: Array, *, draw: Draw | None = None, train: bool = False) -> Quantized:
        """Quantizes features `[B, ..., c]`; for `train` see `Tokenizer.encode`."""
        ...

    def look_up(self, ids: Array) -> Array:
        """What the decoder takes for ids, as `Quantized.values`."""
        ...


ENCODED_SIDE = 64
"""Side of the images that a feature network's parameters are shaped on; convolutions take any that their strides do."""


def example_image(module: Any) -> Array:
    """A black image that a tokenizer, or a feature network, takes: `[1, side, side, channels]`."""
    latent = getattr(module, "latent", None)
    side = ENCODED_SIDE if latent is None else latent.size or latent.downsample
    return jnp.zeros((1, side, side, getattr(module, "in_channels", 3)))


def bind(network: Any, params: PyTree, *, train: bool = False, average: Predict | None = None) -> Predict:
    """Binds a network to its parameters.

    Args:
      network: a linen module that follows `Network`.
      params: its parameters.
      train: whether dropout and the like are on.
      average: see `Predict`.
    """

    def call(x: Array, t: Array, cond: Cond, **kw: Any) -> Prediction:
        return network.apply({"params": params}, x, t, cond, train=train, **kw)

    memory = getattr(network, "init_cache", None)
    return Predict(call=call, null=network.null, layout=network.layout, init_cache=memory, average=average)


def example_cond(network: Any, rows: int = 1) -> Cond:
    """A condition that a network takes, of zeros: its parameters are shaped on it."""
    text, pooled = getattr(network, "text_width", None), getattr(network, "pooled_width", None)
    return Cond(
        labels={name: jnp.zeros((rows,), jnp.int32) for name in network.classes},
        text=None if text is None else jnp.zeros((rows, 1, text)),
        pooled=None if pooled is None else jnp.zeros((rows, pooled)),
        scalars={name: jnp.full((rows,), value) for name, value in getattr(network, "scalars", {}).items()},
    )


def example_input(layout: Layout, rows: int = 1) -> Array:
    """An input of zeros of a network with this layout: `[rows, H, W, C]`, or ids `[rows, K]`."""
    return jnp.zeros((rows, *layout.shape), jnp.float32 if layout.vocabulary is None else jnp.int32)


def dropped(cond: Cond, null: Cond, drop: Array) -> Cond:
    """Replaces the rows of `cond` where `drop` `[B]` is true by those of `null`."""

    def pick(given: Array, empty: Array) -> Array:
        return jnp.where(drop.reshape(drop.shape + (1,) * (given.ndim - 1)), empty, given)

    return jax.tree.map(pick, cond, null)


def null_condition(cond: Cond, classes: Mapping[str, int]) -> Cond:
    """The condition with everything dropped: of a label the id is its number of classes; a text is the empty one."""

    def empty(given: Array | None, null: Array | None) -> Array | None:
        if given is None:
            return None
        return jnp.zeros_like(given) if null is None else jnp.broadcast_to(null, given.shape).astype(given.dtype)

    return dataclasses.replace(
        cond,
        labels={name: jnp.full_like(ids, classes[name]) for name, ids in cond.labels.items()},
        text=empty(cond.text, cond.null_text),
        pooled=empty(cond.pooled, cond.null_pooled),
    )
