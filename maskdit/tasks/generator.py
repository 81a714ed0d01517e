"""A generator: a network trained with a process on a frozen tokenizer's latents."""

import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import chex
import jax
import jax.numpy as jnp

from maskdit.contracts import (
    Array,
    Cond,
    Draw,
    Layout,
    Loss,
    Plan,
    PyTree,
    bind,
    dropped,
    example_cond,
    example_input,
)
from maskdit.data.conditions import check_conditions, condition
from maskdit.data.latents import LATENTS
from maskdit.networks.model import GeneratorModel
from maskdit.processes.masking import MaskSchedule
from maskdit.tasks.task import Context, check_labels
from maskdit.tokenizers.pixels import to_float
from maskdit.training.mesh import unboxed
from maskdit.training.optim import Group

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Generator:
    """Trains `network` with `process` on the latents, or the token ids, of `tokenizer`.

    Attributes:
      network: what is trained; its `classes` name the labels that condition it.
      process: corruption, target and loss.
      tokenizer: frozen; images to latents.
      groups: see `maskdit.training.optim.Group`.
      masking: how many patches the network sees, if not all.
      label_drop: probability that an example's labels and text are dropped, all together; guidance needs it.
      horizon: steps that schedules and phases span; 0 until a run sets it.
    """

    network: Any
    process: Any
    tokenizer: Any
    groups: Mapping[str, Group] = dataclasses.field(default_factory=lambda: {"generator": Group()})
    masking: MaskSchedule | None = None
    label_drop: float = 0.1
    horizon: int = 0

    def __post_init__(self) -> None:
        if self.tokenizer is None:
            raise ValueError(
                "the tokenizer is a reference without a spec, which a run reads from the source when it starts: give "
                "it one, pretrained(SOURCE, spec=...)"
            )
        if not 0 <= self.label_drop <= 1:
            raise ValueError(f"label_drop is a probability, got {self.label_drop}")

    @property
    def layout(self) -> Layout:
        """The network's tokens."""
        return self.network.layout

    @property
    def _side(self) -> int:
        """Of the images."""
        latent = self.tokenizer.latent
        positions = self.layout.grid[0] * self.layout.patch
        return latent.size or positions * latent.downsample

    def init(self, draw: Draw, batch: Mapping[str, Any]) -> tuple[PyTree, PyTree]:
        """The network's parameters (with axis names); the task has no state. Draws: `network`."""
        x, cond = example_input(self.layout), example_cond(self.network)
        variables = self.network.init(draw.init_key("network"), x, jnp.ones((1,)), cond)
        return {"network": variables["params"]}, {}

    def freeze(
        self, draw: Draw, images: Callable[[], Iterable[Any]], given: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, PyTree]:
        """The tokenizer's variables: given, or fitted to the training images where it can be. Draws: `tokenizer`."""
        if "tokenizer" not in given and hasattr(self.tokenizer, "fit"):
            return {"tokenizer": self.tokenizer.fit(images())}
        key, image = draw.init_key("tokenizer"), jnp.zeros((1, self._side, self._side, 3))
        if "tokenizer" in given:
            return {"tokenizer": given["tokenizer"].over(lambda: unboxed(self.tokenizer.init(key, image)))}
        variables = unboxed(jax.jit(self.tokenizer.init)(key, image))
        if jax.tree.leaves(variables):
            _LOG.warning(
                "the tokenizer %s has random weights: samples will show nothing", type(self.tokenizer).__name__
            )
        return {"tokenizer": variables}

    def check(self, batch: Mapping[str, Any], vocabulary: Mapping[str, tuple[str, ...]]) -> None:
        """Holds data and tokenizer against what the network expects.

        Raises:
          ValueError: where a label is missing or has another number of classes, or latents have another shape.
        """
        check_labels(self.network.classes, vocabulary)
        check_conditions(self.network, batch)
        if getattr(self.process, "learned_variance", False) and not getattr(self.network, "learned_variance", False):
            raise ValueError(
                "the process learns variances and the network gives none: set both task.process.learned_variance and "
                "task.network.learned_variance, or neither"
            )
        given = {name: array for name, array in batch.items() if name in ("image", *LATENTS)}
        name, shape = next((name, array.shape[1:]) for name, array in given.items())
        self._check_given(name, shape)
        if self.layout.vocabulary is not None:
            check_tokens(self.layout, self.tokenizer.latent)
            self._check_process()
        size = shape[0] if name == "image" else self._side
        variables = unboxed(jax.eval_shape(self.tokenizer.init, jax.random.key(0), jnp.zeros((1, size, size, 3))))
        one = {name: jax.ShapeDtypeStruct((1, *shape), array.dtype) for name, array in given.items()}
        z = jax.eval_shape(self._latents, one, {"tokenizer": variables})
        if z.shape[1:] != self.layout.shape:
            what = "images" if name == "image" else name
            kind, advice = "latents", ""
            if self.layout.vocabulary is not None:
                kind = "ids"
            elif z.ndim == 4:
                advice = f": set task.network.input_size={z.shape[1]} and task.network.channels={z.shape[-1]}"
            raise ValueError(
                f"{what} of {shape} become {kind} of {z.shape[1:]}, but the network takes {self.layout.shape}{advice}"
            )

    def _check_process(self) -> None:
        """Refuses a process of tokens that tells the network what it does not take."""
        takes = inspect.signature(type(self.network).__call__).parameters
        process, network = type(self.process).__name__, type(self.network).__name__
        for asked, keyword, what in (
            (getattr(self.process, "counts", None) is not None, "masked", "the number of masks"),
            (hasattr(self.process, "orders"), "orders", "the order of tokens"),
        ):
            if asked != (keyword in takes):
                verb, advice = ("tells", "does not take it") if asked else ("does not tell", "needs it")
                raise ValueError(f"{process} as it is set {verb} the network {what}, and {network} {advice}")

    def _check_given(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuses images or stored latents that the tokenizer does not take."""
        step = self.tokenizer.latent.downsample
        if name == "image" and (shape[0] % step or shape[1] % step):
            raise ValueError(f"the tokenizer takes sides that are multiples of {step}; data.size is {shape[0]}")
        if name != "image" and (name == "ids") != (self.layout.vocabulary is not None):
            holds, takes = ("token ids", "continuous") if name == "ids" else (f"continuous {name}", "discrete")
            raise ValueError(
                f"data.latents holds {holds}, and the network takes those of a {takes} tokenizer: give a folder that "
                "one has made"
            )
        if name == "moments" and not hasattr(self.tokenizer, "posterior"):
            raise ValueError(
                f"data.latents holds moments of a posterior, and the tokenizer {type(self.tokenizer).__name__} has "
                "none: set task.tokenizer to the one that made them"
            )

    def loss(self, group: str, params: PyTree, ctx: Context) -> tuple[Loss, PyTree]:
        """The process's loss on the latents of the batch's images, or on those that it holds.

        Draws: `tokenizer`, `label_drop` (uniform `[B]`) and `process`, each with the draws of that part.
        """
        z = self._latents(ctx.batch, ctx.frozen, ctx.draw)
        chex.assert_shape(z, (None, *self.layout.shape))
        average = next((bind(self.network, mean["network"]) for mean in ctx.ema.values()), None)
        predict = bind(self.network, params["network"], train=True, average=average)
        cond = self.condition(ctx.batch)
        if self.label_drop and (cond.labels or cond.text is not None or cond.pooled is not None):
            drop = ctx.draw.uniform("label_drop", (z.shape[0],)) < self.label_drop
            cond = dropped(cond, predict.null(cond), drop)
        process_draw = ctx.draw.named("process")
        return self.process.loss(predict, z, cond, process_draw, step=ctx.step, plan=ctx.plan), ctx.state

    def held_out(self, params: PyTree, ctx: Context) -> Loss:
        """The unmasked loss with all labels. Draws: `tokenizer`, `process`."""
        z = self._latents(ctx.batch, ctx.frozen, ctx.draw)
        predict = bind(self.network, params["network"])
        process_draw = ctx.draw.named("process")
        loss = self.process.loss(predict, z, self.condition(ctx.batch), process_draw, step=ctx.step, plan=Plan())
        return loss.replace(weight=loss.weight * ctx.batch["weight"])

    def plan(self, step: int) -> Plan:
        """How many tokens the network sees in a step, and what the process counts."""
        if self.masking is None:
            return self.process.plan(step, self.layout.tokens) if hasattr(self.process, "plan") else Plan()
        return Plan(keep=self.masking.kept(self.layout.tokens, step / max(self.horizon, 1)))

    def model(self, variables: PyTree, vocabulary: Mapping[str, tuple[str, ...]]) -> GeneratorModel:
        """The generator with its tokenizer."""
        frozen = {
            "tokenizer": {},
            **variables["frozen"],
        }  # a tokenizer without variables leaves nothing in a checkpoint
        return GeneratorModel(task=self, variables={**variables, "frozen": frozen}, vocabulary=dict(vocabulary))

    def condition(self, batch: Mapping[str, Array]) -> Cond:
        """What of a batch conditions the network."""
        return condition(self.network, batch)

    def _latents(self, batch: Mapping[str, Array], frozen: PyTree, draw: Draw | None = None) -> Array:
        """Latents or ids of images, or those encoded beforehand, with the same draws."""
        draw = draw and draw.named("tokenizer")
        if "ids" in batch:
            return batch["ids"]
        if "values" in batch:
            return batch["values"].astype(jnp.float32)
        method, x = ("posterior", batch["moments"]) if "moments" in batch else ("encode", to_float(batch["image"]))
        latents = self.tokenizer.apply(frozen["tokenizer"], x, draw=draw, method=method)
        return latents.values if self.layout.vocabulary is None else latents.ids


def check_tokens(layout: Layout, latent: Any) -> None:
    """Holds a network of token ids against a tokenizer's latents.

    Raises:
      ValueError: for a continuous tokenizer, and one of another vocabulary or another number of tokens.
    """
    if latent.vocabulary is None:
        raise ValueError("the network takes token ids and the tokenizer has none: set task.tokenizer to a discrete one")
    if latent.vocabulary != layout.vocabulary:
        raise ValueError(
            f"the tokenizer has {latent.vocabulary} codes and the network {layout.vocabulary}: set "
            f"task.network.vocabulary={latent.vocabulary}"
        )
    if latent.tokens is not None and latent.tokens != layout.tokens:
        raise ValueError(
            f"the tokenizer makes {latent.tokens} tokens of an image and the network takes {layout.tokens}: set "
            f"task.network.grid=({latent.tokens},)"
        )
