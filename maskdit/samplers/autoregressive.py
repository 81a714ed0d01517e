"""Decoding of tokens one after the other, in raster order."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from maskdit.contracts import Array, Cond, Draw, Layout, Predict
from maskdit.samplers.sampling import At, State, Stretch
from maskdit.samplers.tokens import first_tokens
from maskdit.samplers.unmask import gumbel


@dataclasses.dataclass(frozen=True)
class TokenByToken:
    """Ancestral sampling of an autoregressive network: a step for each token.

    Attributes:
      temperature: what logits are divided by, above 0.
      cache: whether the network keeps its inner values of earlier tokens, so that a step processes one token; without,
        each step processes the padded sequence. The tokens are the same.
      steps: always None: there are as many as tokens.

    Raises:
      ValueError: for a temperature of 0 or less, and a number of steps.
    """

    temperature: float = 1.0
    cache: bool = True
    steps: None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"logits are divided by the temperature: give more than 0, got {self.temperature:g}")
        if self.steps is not None:
            raise ValueError(
                f"an autoregressive model makes one step for each token, got steps={self.steps}: leave the number of "
                "steps out"
            )

    @property
    def paired(self) -> bool:
        """See `maskdit.samplers.sampling.Sampler`."""
        return self.cache

    def grid(self, process: Any, layout: Layout) -> tuple:
        """The progress of a run.

        Raises:
          ValueError: for a network of continuous inputs, and a process of another kind.
        """
        if layout.vocabulary is None or not hasattr(process, "orders"):
            raise ValueError(
                f"TokenByToken samples autoregressive models, and this one was trained with {type(process).__name__}: "
                "use a sampler of its process, such as Confidence for masked tokens or Heun for continuous latents"
            )
        return process.times(layout.tokens)

    def runs(self, process: Any, layout: Layout, known: int = 0) -> tuple[Stretch, ...]:
        """The first step, which reads the condition, and the others, which read the token before; known tokens are read
        as well."""
        steps = len(process.grid) - 1
        first = 1 if self.cache else 0
        return tuple(Stretch(start, stop) for start, stop in ((0, first), (first, steps)) if start < stop)

    def init(self, process: Any, predict: Predict, draw: Draw, shape: tuple[int, ...], cond: Cond) -> State:
        """The first state: all tokens open.

        Raises:
          ValueError: for a `cache` with a network that has no memory.
        """
        return first_tokens(predict, draw, shape, cond, self.cache)

    def step(self, process: Any, predict: Predict, state: State, i: Any, run: Stretch) -> State:
        """One step. Draws, from `draw.at(i)`: `token` (uniform `[B, V]`)."""
        logits, cache = self._logits(process, predict, state, i, run)
        noise = gumbel(state.draw.at(i).uniform("token", logits.shape))
        drawn = (jax.nn.log_softmax(logits / self.temperature) + noise).argmax(-1).astype(state.x.dtype)  # [B]
        mask = predict.layout.mask
        here = jnp.arange(state.x.shape[1]) == i
        x = jnp.where(here & (state.x == mask), drawn[:, None], state.x)
        # tokens to come are shown as the last one
        x0 = jnp.where(x == mask, drawn[:, None], x)
        return dataclasses.replace(state, x=x, x0=x0, cache=cache)

    def macs(self, network: Any, run: Stretch) -> int:
        """Multiply-adds of a step of a run, for one sample, without guidance.

        Args:
          network: such as a `maskdit.networks.rar.RAR`.
          run: the run.
        """
        return network.macs(fresh=min(run.start, 1) if self.cache else None)

    def _logits(self, process: Any, predict: Predict, state: State, i: Any, run: Stretch) -> tuple[Array, Any]:
        """Logits of token i, `[B, V]`, and the memory."""
        rows, tokens = state.x.shape
        t = jnp.asarray(process.grid, jnp.float32)[i]
        kw: dict[str, Any] = {"at": At(t, i, tokens)}
        if not self.cache:
            logits, _ = process.logits(predict, state.x, jnp.full((rows,), 1 - t), state.cond, **kw)
            return jax.lax.dynamic_index_in_dim(logits, i, axis=1, keepdims=False), None
        fresh, place = state.x[:, :0], 0
        if run.start:
            fresh, place = jax.lax.dynamic_slice_in_dim(state.x, i - 1, 1, axis=1), i - 1
        logits, prediction = process.logits(
            predict, fresh, jnp.full((rows,), 1 - t), state.cond, cache=state.cache, place=place, **kw
        )
        return logits[:, 0], prediction.cache
