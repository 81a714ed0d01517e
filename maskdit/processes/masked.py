"""Masked tokens: a bidirectional network tells those that were hidden (MaskGIT, Chang et al. 2022, arXiv 2202.04200).

`Masked` is the training of MaskGIT, TiTok and, with `BatchCounts`, ENAT; `MaskedDiffusion` weighs the same
prediction so that the loss is a bound on the likelihood. Networks trained by either are sampled by the same samplers.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaincinv

from maskdit.contracts import Array, Cond, Draw, Loss, Plan, Predict, Prediction

MASKS: dict[str, Callable[[Any, Any], Any]] = {
    "cosine": lambda u, np: np.cos(0.5 * math.pi * u),
    "arccos": lambda u, np: np.arccos(u) / (0.5 * math.pi),
    "linear": lambda u, np: 1 - u,
    "square": lambda u, np: 1 - u**2,
}
"""Share of masked tokens at a progress u in [0, 1], with jax.numpy or numpy; 1 at 0 and 0 at 1."""


def check_schedule(name: str) -> None:
    """Refuses an unknown mask schedule.

    Raises:
      ValueError: with those there are.
    """
    if name not in MASKS:
        raise ValueError(f"mask schedule '{name}' is none of {', '.join(MASKS)}")


class TokenProcess:
    """What masked and autoregressive processes share: steps of equal progress, and tokens that no noise changes."""

    grid: tuple[float, ...]
    exact = False
    """Whether `bits` is the likelihood itself: nothing is drawn. Else it is an estimate of a bound."""

    def times(self, steps: int, spacing: str | None = None) -> tuple[float, ...]:
        """The progress of a run of so many steps, from 0 to 1.

        Raises:
          ValueError: for fewer than one step, or any `spacing`.
        """
        if steps < 1 or spacing is not None:
            raise ValueError(f"a run over tokens has 1 or more steps and no spacing, got {steps} and {spacing}")
        return tuple(i / steps for i in range(steps + 1))

    def respace(self, times: tuple[float, ...]) -> Any:
        """The process with the times of a run as its grid."""
        return dataclasses.replace(self, grid=tuple(times))  # type: ignore[type-var]

    def hold(self, z: Array, i: Any, draw: Draw) -> Array:
        """Known ids are themselves at each step."""
        return z

    def logits(self, predict: Predict, xt: Array, t: Array, cond: Cond, **kw: Any) -> tuple[Array, Prediction]:
        """The logits of clean tokens, `[B, K, V]` float32, and the network's prediction."""
        prediction = predict(xt, t, cond, **kw)
        return prediction.x.astype(jnp.float32), prediction


@dataclasses.dataclass(frozen=True)
class BatchCounts:
    """ENAT's masks (Ni et al. 2024, arXiv 2411.06959): one number of masks for a whole batch, and reuse of features.

    The paper draws the share of masks from a Beta distribution. Each number of masks is a program of its own, so the
    draw is one of a few quantiles, equally likely. In a part of the steps the averaged network first reads the same
    ids with some visible tokens hidden again; its features are what the trained network reuses, as in sampling.

    Attributes:
      alpha, beta: of the Beta distribution of the share of masks.
      ratios: how many quantiles stand for it: those in the middle of as many equal parts.
      reuse: probability of a step with the pass before.
      hidden: how many values stand for the share of visible tokens that are hidden again, uniform in [0, 1].
    """

    alpha: float = 12.0
    beta: float = 3.0
    ratios: int = 6
    reuse: float = 0.5
    hidden: int = 4

    def __post_init__(self) -> None:
        if min(self.alpha, self.beta) <= 0 or min(self.ratios, self.hidden) < 1 or not 0 <= self.reuse <= 1:
            raise ValueError(f"alpha and beta are positive, ratios and hidden 1 or more, reuse in [0, 1]; got {self}")
        if self.ratios * (1 + self.hidden * (self.reuse > 0)) > 32:
            raise ValueError(
                f"ratios={self.ratios} and hidden={self.hidden} make {self.ratios * (1 + self.hidden)} programs, more "
                "than 32: take fewer"
            )

    def plan(self, step: int, tokens: int) -> Plan:
        """The numbers of a step, the same in each run."""
        draw = np.random.default_rng([step, 2411_06959])
        share = betaincinv(self.alpha, self.beta, (draw.integers(self.ratios) + 0.5) / self.ratios)
        masked = masked_count(share, tokens)
        hidden = hidden_count((draw.integers(self.hidden) + 0.5) / self.hidden, tokens - masked)
        return Plan(masked=masked, hidden=hidden if draw.uniform() < self.reuse else None)


def masked_count(share: float, tokens: int) -> int:
    """How many tokens a share of them is, one at least and all but one at most; halves go to the even number."""
    return int(np.clip(np.round(np.float32(tokens) * np.float32(share)), 1, tokens - 1))


def hidden_count(share: float, visible: int) -> int:
    """How many of the visible tokens are hidden again."""
    return int(np.round(np.float32(visible) * np.float32(share)))


@dataclasses.dataclass(frozen=True)
class Masked(TokenProcess):
    """Cross entropy of tokens hidden at random.

    Attributes:
      schedule: a name of `MASKS`: the share of masks of an example, at a uniform progress.
      label_smoothing: share of the target that is spread over all codes.
      unmasked_weight: weight of visible tokens in the loss; 0 leaves them out.
      counts: masks counted by the batch, for a network that needs to know their number; None draws them for each
        example by `schedule`.
      grid: the progress of a sampling run; set by `respace`.
    """

    schedule: str = "arccos"
    label_smoothing: float = 0.1
    unmasked_weight: float = 0.1
    counts: BatchCounts | None = None
    grid: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        if not (0 <= self.label_smoothing < 1 and self.unmasked_weight >= 0):
            raise ValueError(
                f"label_smoothing is in [0, 1) and unmasked_weight 0 or more, got {self.label_smoothing:g} and "
                f"{self.unmasked_weight:g}"
            )

    def plan(self, step: int, tokens: int) -> Plan:
        """The static numbers of a step."""
        return Plan() if self.counts is None else self.counts.plan(step, tokens)

    def loss(self, predict: Predict, z: Array, cond: Cond, draw: Draw, *, step: Array, plan: Plan) -> Loss:
        """The mean over weighted tokens of the whole batch.

        Args:
          predict: the network; `predict.average` gives the features that are reused.
          z: ids `[B, K]`.
          cond, step: the condition; the step is not used.
          draw: draws `time` (uniform `[B]`, without counts), `order` (uniform `[B, K]`), `network`, and `hidden`
            (uniform `[B, K]`) where the plan hides tokens again.
          plan: `masked` and `hidden`, where counts are the batch's.
        """
        if self.counts is not None and plan.masked is None:  # a loss outside of training
            plan = Plan(masked=masked_count(self.counts.alpha / (self.counts.alpha + self.counts.beta), z.shape[1]))
        masked = self.masks(z, draw, plan)
        kw = {} if plan.masked is None else self._counted(predict, z, masked, cond, draw, plan)
        prediction = predict(
            jnp.where(masked, predict.layout.mask, z), masked.mean(1), cond, draw=draw.named("network"), **kw
        )
        entropy = cross_entropy(prediction.x, z, self.label_smoothing)  # [B, K]
        weight = jnp.where(masked, 1.0, self.unmasked_weight)
        right = (prediction.x.argmax(-1) == z) & masked
        return Loss(
            value=(weight * entropy).sum(1) / weight.sum(1),
            weight=weight.sum(1),
            metrics={"accuracy": right.sum(1) / masked.sum(1)},
            prediction=prediction,
        )

    def bits(self, predict: Predict, z: Array, cond: Cond, draw: Draw) -> Array:
        """A bound on bits per token, `[B]`; see `likelihood_bound`. Draws: those of `likelihood_bound`."""
        if self.counts is not None:
            raise ValueError("bits per token need masks of any number, and this network is told how many: unsupported")
        return likelihood_bound(predict, z, cond, draw) / math.log(2)

    def masks(self, z: Array, draw: Draw, plan: Plan) -> Array:
        """Where ids are hidden, bool `[B, K]`. Draws: `time` and `order`, as `loss`."""
        rows, tokens = z.shape
        if plan.masked is not None:
            count: Any = plan.masked
        else:
            share = jnp.clip(MASKS[self.schedule](draw.uniform("time", (rows,)), jnp), 1e-6, 1.0)
            count = jnp.maximum(jnp.round(tokens * share), 1)[:, None]
        return jnp.argsort(draw.uniform("order", z.shape), axis=1) < count

    def _counted(self, predict: Predict, z: Array, masked: Array, cond: Cond, draw: Draw, plan: Plan) -> dict[str, Any]:
        """What a network that counts its masks is told besides, with the features of a pass before."""
        if plan.hidden is None:
            return {"masked": plan.masked}
        before = masked | lowest(jnp.where(masked, jnp.inf, draw.uniform("hidden", z.shape)), plan.hidden)
        count = plan.masked + plan.hidden  # type: ignore[operator]
        first = (predict.average or predict)(
            jnp.where(before, predict.layout.mask, z), before.mean(1), cond, masked=count
        )
        return {"masked": plan.masked, "fresh": plan.hidden, "cache": jax.lax.stop_gradient(first.cache)}


@dataclasses.dataclass(frozen=True)
class MaskedDiffusion(TokenProcess):
    """Diffusion whose noise is the mask, in continuous time (MD4, Shi et al. 2024, arXiv 2406.04329, eq. 5 and 6; MDLM,
    Sahoo et al. 2024, arXiv 2406.07524, eq. 10).

    At time t each token is masked by itself with probability m(t), which rises from 0 to 1. The cross entropy of masked
    tokens, weighted by m'(t) / m(t), is a bound on the negative log-likelihood.

    Attributes:
      schedule: a name of `MASKS`, m(1 - t).
      earliest: times are drawn from here to 1, as the weight has a pole at 0.
      grid: the progress of a sampling run; set by `respace`.
    """

    schedule: str = "linear"
    earliest: float = 1e-3
    grid: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        if not 0 < self.earliest < 1:
            raise ValueError(f"earliest lies between 0 and 1, got {self.earliest:g}")

    def loss(self, predict: Predict, z: Array, cond: Cond, draw: Draw, *, step: Array, plan: Plan) -> Loss:
        """The bound in nats per token; `metrics` has it in bits.

        Draws: `time` (uniform `[B]`), `mask` (uniform `[B, K]`), `network`.
        """
        rows, tokens = z.shape
        t = self.earliest + (1 - self.earliest) * draw.uniform("time", (rows,))
        share, slope = jax.vmap(jax.value_and_grad(lambda t: MASKS[self.schedule](1 - t, jnp)))(t)
        masked = draw.uniform("mask", z.shape) < share[:, None]
        xt = jnp.where(masked, predict.layout.mask, z)
        prediction = predict(xt, share, cond, draw=draw.named("network"))
        entropy = jnp.where(masked, cross_entropy(prediction.x, z), 0).sum(1)
        value = (1 - self.earliest) * slope / share * entropy / tokens
        return Loss(
            value=value,
            weight=jnp.ones_like(value),
            metrics={"bits_per_token": value / math.log(2)},
            prediction=prediction,
        )

    def bits(self, predict: Predict, z: Array, cond: Cond, draw: Draw) -> Array:
        """A bound on bits per token, `[B]`; see `likelihood_bound`. Draws: those of `likelihood_bound`."""
        return likelihood_bound(predict, z, cond, draw) / math.log(2)


def likelihood_bound(predict: Predict, z: Array, cond: Cond, draw: Draw) -> Array:
    """An unbiased estimate of masked diffusion's bound on the negative log-likelihood, nats per token `[B]`.

    In continuous time the bound does not depend on the schedule (MD4, arXiv 2406.04329, section 3), and equals the mean
    over all orders of telling the tokens one by one (Hoogeboom et al. 2022, arXiv 2110.02037, eq. 5): with n masks, n
    uniform in 1 .. K, the mean cross entropy of the masked tokens. One draw for each example; average over examples, or
    over draws.

    Args:
      predict: a network of masked ids.
      z: ids `[B, K]`.
      cond: the condition.
      draw: draws `count` (uniform `[B]`) and `order` (uniform `[B, K]`).
    """
    rows, tokens = z.shape
    count = 1 + jnp.floor(tokens * draw.uniform("count", (rows,)))
    masked = lowest(draw.uniform("order", z.shape), count[:, None])
    logits = predict(jnp.where(masked, predict.layout.mask, z), count / tokens, cond).x
    return jnp.where(masked, cross_entropy(logits, z), 0).sum(1) / count


def cross_entropy(logits: Array, ids: Array, smoothing: float = 0.0) -> Array:
    """Cross entropy of each token, nats, `[B, K]`.

    Args:
      logits: `[B, K, V]`.
      ids: the truth, `[B, K]`.
      smoothing: share of the target that is spread evenly over all V codes.
    """
    log = jax.nn.log_softmax(logits.astype(jnp.float32))
    told = -jnp.take_along_axis(log, ids[..., None], axis=-1)[..., 0]
    return told if not smoothing else (1 - smoothing) * told - smoothing * log.mean(-1)


def lowest(values: Array, count: Any) -> Array:
    """Where the `count` lowest of each row `[B, K]` are, bool; of equals the first ones."""
    return jnp.argsort(jnp.argsort(values, axis=1), axis=1) < count
