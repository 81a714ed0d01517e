"""Decoding of masked tokens: a few steps from all masks to an image."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Array, Cond, Draw, Layout, Predict, PyTree
from maskdit.processes.masked import MASKS, check_schedule, lowest
from maskdit.samplers.sampling import At, State, Stretch
from maskdit.samplers.temperature import temperatures
from maskdit.samplers.unmask import Draft, gumbel, most_confident


@dataclasses.dataclass(frozen=True)
class Confidence:
    """MaskGIT's parallel decoding (Chang et al. 2022, arXiv 2202.04200, section 3.2).

    Each step draws all masked tokens from the network, keeps those that its policy puts first, and masks the others
    again. Known tokens are never changed, and the schedule counts the unknown ones only.

    Attributes:
      steps: number of steps and of network calls.
      schedule: a name of `maskdit.processes.masked.MASKS`: the share of masks left after a step.
      least: masks that stay at least until the last step; where it is not 0, each step also fixes one token at least.
        0 takes the bare schedule (ENAT), as it must be where masks are counted.
      temperature: of the noise on confidences: a number, which falls to 0; one for each step; or a class of
        `maskdit.samplers.temperature`.
      token_temperature: of the noise on the choice of tokens, likewise; None for the same as `temperature`.
      confidence: the score of a drawn token: its guided `logit` (TiTok), or `log_probability`.
      softmax_annealing: divides guided logits by 0.5 + 0.8 (1 - (i + 1) / S) (TiTok's option, MaskGen's default).
      policy: see `maskdit.samplers.unmask`.
      counted: whether the network is told how many tokens are masked: each step is a program of its own (ENAT).
      reuse: whether it takes the features of the step before, too.
      countdown: whether its time is S - 1 - i, in place of the share of masked tokens (Meissonic).
      count_dtype: in which the schedule's counts are taken: where a share of the tokens is a whole number, `float32`
        may land one below (as Meissonic's code does) and `float64` does not.

    Raises:
      ValueError: for a schedule or confidence that there is not.
    """

    steps: int = 8
    schedule: str = "arccos"
    least: int = 1
    temperature: Any = 4.5
    token_temperature: Any = None
    confidence: str = "logit"
    softmax_annealing: bool = False
    policy: Callable[[Draft], Array] = most_confident
    counted: bool = False
    reuse: bool = False
    countdown: bool = False
    count_dtype: str = "float64"

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        if self.confidence not in ("logit", "log_probability"):
            raise ValueError(f"confidence '{self.confidence}' is none of logit, log_probability")
        if self.count_dtype not in ("float32", "float64"):
            raise ValueError(f"count_dtype '{self.count_dtype}' is none of float32, float64")
        if self.counted and self.least:
            raise ValueError("a network that is told the number of masks needs that of the bare schedule: set least=0")
        if self.reuse and not self.counted:
            raise ValueError("reuse of features needs the number of masks: set counted=True")

    @property
    def paired(self) -> bool:
        """See `maskdit.samplers.sampling.Sampler`."""
        return self.reuse

    def grid(self, process: Any, layout: Layout) -> tuple:
        """The progress of a run.

        Raises:
          ValueError: for a model that this sampler is not for, for more steps than tokens, and for temperatures other
            than numbers of 0 or more, one for each step.
        """
        times = token_grid(self, process, layout)
        for given in (self.temperature, self._token_temperature):
            temperatures(given, self.steps)
        return times

    def runs(self, process: Any, layout: Layout, known: int = 0) -> tuple[Stretch, ...]:
        """One run; where masks are counted, one for each step that has masks."""
        steps = len(process.grid) - 1
        if not self.counted:
            return (Stretch(0, steps),)
        free = layout.tokens - known
        masked = [free, *(int(left[free]) for left in self._left(steps, layout.tokens))]
        return tuple(
            Stretch(i, i + 1, masked=masked[i], fresh=masked[i - 1] - masked[i] if self.reuse and i else None)
            for i in range(steps)
            if masked[i]
        )

    def init(self, process: Any, predict: Predict, draw: Draw, shape: tuple[int, ...], cond: Cond) -> State:
        """The first state: all masks.

        Raises:
          ValueError: for `reuse` with a network that has no memory.
        """
        return first_tokens(predict, draw, shape, cond, self.reuse)

    def step(self, process: Any, predict: Predict, state: State, i: Any, run: Stretch) -> State:
        """One step. Draws, from `draw.at(i)`: `token` (uniform `[B, K, V]`), and what the policy draws."""
        steps, layout, draw = len(process.grid) - 1, predict.layout, state.draw.at(i)
        masked = state.x == layout.mask  # [B, K]
        free = jnp.where(i == 0, masked.sum(1), jnp.asarray(state.free))
        logits, cache = self._logits(process, predict, state, masked, i, run)
        noise = gumbel(draw.uniform("token", logits.shape))
        drawn = jnp.argmax(logits + _at(self._token_temperature, steps, i) * noise, axis=-1)
        ids = jnp.where(masked, drawn, state.x).astype(state.x.dtype)
        scores = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
        priority = self.policy(Draft(ids, masked, scores, _at(self.temperature, steps, i), draw, layout))
        left = jnp.asarray(self._left(steps, layout.tokens))[i, free]  # [B]
        if self.least:
            last = i == steps - 1
            left = jnp.where(last, 0, jnp.maximum(jnp.minimum(left, masked.sum(1) - 1), self.least))
        again = masked & lowest(jnp.where(masked, priority, jnp.inf), left[:, None])
        x = jnp.where(again, layout.mask, ids)
        return dataclasses.replace(state, x=x, x0=ids, cache=cache, free=free)

    @property
    def _token_temperature(self) -> Any:
        return self.temperature if self.token_temperature is None else self.token_temperature

    def _left(self, steps: int, tokens: int) -> np.ndarray:
        """How many masks the schedule leaves after each step for each number of unknown tokens, `[steps, K + 1]`."""
        kind = np.dtype(self.count_dtype)
        shares = MASKS[self.schedule](np.arange(1, steps + 1, dtype=kind) / kind.type(steps), np)
        return np.floor(shares[:, None] * np.arange(tokens + 1, dtype=kind)).astype(np.int32)

    def _logits(
        self, process: Any, predict: Predict, state: State, masked: Array, i: Any, run: Stretch
    ) -> tuple[Array, PyTree]:
        """The guided logits `[B, K, V]`, float32, and the network's next memory."""
        steps, rows = len(process.grid) - 1, state.x.shape[0]
        kw: dict[str, Any] = {"masked": run.masked} if self.counted else {}
        if self.reuse:
            kw |= {"cache": state.cache, "fresh": run.fresh}
        t = jnp.full((rows,), steps - 1.0 - i) if self.countdown else masked.mean(1)
        at = At(jnp.asarray(process.grid, jnp.float32)[i], i, steps)
        logits, prediction = process.logits(predict, state.x, t, state.cond, at=at, **kw)
        if self.softmax_annealing:
            logits = logits / (0.5 + 0.8 * (1 - (i + 1) / steps))
        if self.confidence == "log_probability":
            logits = jax.nn.log_softmax(logits)
        return logits, prediction.cache if self.reuse else state.cache


@dataclasses.dataclass(frozen=True)
class AncestralUnmasking:
    """The reverse of masked diffusion (MD4, arXiv 2406.04329, algorithm 2; MDLM, arXiv 2406.07524, eq. 7): at each step
    a masked token is told with the probability that the process masked it since, and never changes again.

    Attributes:
      steps: number of steps and of network calls.
      schedule: a name of `maskdit.processes.masked.MASKS`: the share of masks at a progress.
      temperature: divides the logits.

    Raises:
      ValueError: for an unknown schedule, or a temperature that is not positive.
    """

    steps: int = 32
    schedule: str = "cosine"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        if not self.temperature > 0:
            raise ValueError(f"temperature divides logits: give a positive number, got {self.temperature:g}")

    def grid(self, process: Any, layout: Layout) -> tuple:
        """The progress of a run; see `Confidence.grid`."""
        return token_grid(self, process, layout)

    def runs(self, process: Any, layout: Layout, known: int = 0) -> tuple[Stretch, ...]:
        """One run."""
        return (Stretch(0, len(process.grid) - 1),)

    def init(self, process: Any, predict: Predict, draw: Draw, shape: tuple[int, ...], cond: Cond) -> State:
        """The first state: all masks."""
        return first_tokens(predict, draw, shape, cond)

    def step(self, process: Any, predict: Predict, state: State, i: Any, run: Stretch) -> State:
        """One step. Draws, from `draw.at(i)`: `token` (uniform `[B, K, V]`) and `unmask` (uniform `[B, K]`)."""
        steps, layout, draw = len(process.grid) - 1, predict.layout, state.draw.at(i)
        masked = state.x == layout.mask  # [B, K]
        at = At(jnp.asarray(process.grid, jnp.float32)[i], i, steps)
        logits, _ = process.logits(predict, state.x, masked.mean(1), state.cond, at=at)
        drawn = jnp.argmax(logits / self.temperature + gumbel(draw.uniform("token", logits.shape)), axis=-1)
        ids = jnp.where(masked, drawn, state.x).astype(state.x.dtype)
        shares = MASKS[self.schedule](np.asarray(process.grid), np)
        share = jnp.asarray([*shares[:-1], 0.0], jnp.float32)  # exactly, where a cosine is rounded
        stays = draw.uniform("unmask", state.x.shape) < share[i + 1] / share[i]
        return dataclasses.replace(state, x=jnp.where(masked & stays, layout.mask, ids), x0=ids)


def token_grid(sampler: Any, process: Any, layout: Layout) -> tuple:
    """The progress of a run over tokens.

    Raises:
      ValueError: for a network of continuous inputs, an autoregressive one, one that is told how many tokens are masked
        by a sampler that does not count them, or the other way round; for fewer steps than one, or more than tokens
        where each fixes one.
    """
    if layout.vocabulary is None or not hasattr(process, "logits"):
        raise ValueError(
            f"{type(sampler).__name__} decodes tokens, and this model works on continuous latents: use a sampler of "
            "its process, such as Heun or DDIM"
        )
    if hasattr(process, "orders"):
        raise ValueError(
            f"{type(sampler).__name__} fills in masked tokens, and this model tells one token after the other: use "
            "TokenByToken"
        )
    if getattr(process, "counts", None) is not None and not getattr(sampler, "counted", False):
        raise ValueError(
            f"this model is told how many tokens are masked, and {type(sampler).__name__} as it is set does not count "
            "them: use Confidence with counted=True, least=0"
        )
    if getattr(process, "counts", None) is None and getattr(sampler, "counted", False):
        raise ValueError("the sampler counts masks, and this model was trained without: set counted=False, reuse=False")
    if sampler.steps < 1 or (getattr(sampler, "least", 0) and sampler.steps > layout.tokens):
        raise ValueError(
            f"an image has {layout.tokens} tokens, of which each step fixes one at least: steps are 1 to "
            f"{layout.tokens}, got {sampler.steps}"
        )
    return process.times(sampler.steps)


def first_tokens(predict: Predict, draw: Draw, shape: tuple[int, ...], cond: Cond, memory: bool = False) -> State:
    """The state that token samplers start from: all masks, and an empty memory where it is asked for.

    Raises:
      ValueError: for a network without memory.
    """
    if memory and predict.init_cache is None:
        raise ValueError("the sampler hands features from call to call, which this network does not take")
    x = jnp.full(shape, predict.layout.mask, jnp.int32)
    cache = predict.init_cache(shape[0]) if memory else None  # type: ignore[misc]
    return State(x=x, x0=x, cond=cond, draw=draw, cache=cache, free=jnp.full(shape[:1], math.prod(shape[1:])))


def _at(given: Any, steps: int, i: Any) -> Array:
    """The temperature of a step."""
    return jnp.asarray(temperatures(given, steps), jnp.float32)[i]
