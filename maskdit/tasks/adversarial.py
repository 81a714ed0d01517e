"""The adversarial part of training a tokenizer: a discriminator, its losses and how much its judgement counts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maskdit.contracts import Array, PyTree

LOSSES = ("hinge", "non-saturating")


@dataclasses.dataclass(frozen=True)
class Adversarial:
    """A discriminator and the losses of both sides.

    With logits r of real and f of made images, means over an image's patches:

    - `hinge` (Lim and Ye 2017, arXiv 1705.02894): discriminator `(relu(1 - r) + relu(1 + f)) / 2`, generator `-f`;
    - `non-saturating` (Goodfellow et al. 2014, arXiv 1406.2661): discriminator `(softplus(-r) + softplus(f)) / 2`,
      generator `softplus(-f)`.

    Attributes:
      discriminator: a linen module from images `[B, H, W, 3]` in [-1, 1] to logits `[B, ..., 1]`.
      loss: `hinge` or `non-saturating`.
      weight: of the generator's term.
      start: step from which the generator sees the term and the discriminator learns from images.
      adaptive: whether the generator's term is weighed by the ratio of gradient norms at the decoder's last layer
        (VQGAN: Esser et al. 2021, arXiv 2012.09841, eq. 7).
      adaptive_max: largest such ratio.
      lecam: weight of the LeCam regulariser (Tseng et al. 2021, arXiv 2104.03310); it counts at every update.
      lecam_decay: decay of its running means, for each microbatch.
      r1: gamma of the gradient penalty on real images, `gamma / 2 * |d sum(r) / d image|^2` (Mescheder et al. 2018,
        arXiv 1801.04406), at every step from `start`.
      factor: of both sides' terms; regularisers are not scaled.

    Raises:
      ValueError: for another loss, and a number out of its range.
    """

    discriminator: Any
    loss: str = "hinge"
    weight: float = 0.1
    start: int = 0
    adaptive: bool = False
    adaptive_max: float = 1e4
    lecam: float = 0.0
    lecam_decay: float = 0.999
    r1: float = 0.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss is one of {', '.join(LOSSES)}, got '{self.loss}'")
        for name in ("weight", "start", "adaptive_max", "lecam", "r1", "factor"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.lecam_decay <= 1:
            raise ValueError(f"lecam_decay lies in 0 to 1, got {self.lecam_decay}")

    def init_state(self) -> dict[str, Array]:
        """Running means of the logits, scalars: `real` and `fake`."""
        return {"real": jnp.zeros(()), "fake": jnp.zeros(())}

    def apply(self, params: PyTree, images: Array) -> Array:
        """Logits `[B, ..., 1]`, float32, of images `[B, H, W, 3]` in [-1, 1].

        Args:
          params: the discriminator's; under `jax.lax.stop_gradient` where only images are to get a gradient.
          images: what is judged.
        """
        return self.discriminator.apply({"params": params}, images)

    def started(self, step: Array | int) -> Array:
        """1.0 from step `start` on, 0.0 before."""
        return (jnp.asarray(step) >= self.start).astype(jnp.float32)

    def generator(self, logits_fake: Array) -> Array:
        """The generator's loss `[B]`, not weighted, from logits `[B, ..., 1]` of what it made."""
        f = logits_fake.astype(jnp.float32)
        return _per_example(-f if self.loss == "hinge" else jax.nn.softplus(-f))

    def generator_weight(self, step: Array | int, ratio: Array | float = 1.0) -> Array:
        """What the generator's loss is multiplied by: `weight * factor * ratio`, 0 before `start`.

        Args:
          step: updates done.
          ratio: of `adaptive_weight`, where `adaptive` is set.
        """
        return self.weight * self.factor * ratio * self.started(step)

    def adaptive_weight(self, rec_grad_norm: Array, gan_grad_norm: Array) -> Array:
        """`gradient_ratio` up to `adaptive_max`, of norms as of `last_layer_gradients`."""
        return gradient_ratio(rec_grad_norm, gan_grad_norm, self.adaptive_max)

    def discriminator_loss(
        self, params: PyTree, real: Array, fake: Array, state: dict[str, Array], step: Array | int
    ) -> tuple[Array, dict[str, Array], dict[str, Array], dict[str, Array]]:
        """What the discriminator minimises; images get no gradient.

        Args:
          params: the discriminator's.
          real, fake: images and reconstructions, `[B, H, W, 3]` in [-1, 1].
          state: running means of the logits before this step, as `init_state`.
          step: updates done.

        Returns:
          The loss of each example `[B]`; terms of the whole batch: `lecam`, weighted, where it is on; figures to log
          `[B]`: `logits_real`, `logits_fake`, and `r1`, weighted, where it is on; the means after this step.
        """
        real, fake = jax.lax.stop_gradient((real, fake))
        logits_real, penalty = self._judged(params, real)
        logits_fake = self.apply(params, fake)
        r, f = logits_real.astype(jnp.float32), logits_fake.astype(jnp.float32)
        if self.loss == "hinge":
            value = (_per_example(jax.nn.relu(1 - r)) + _per_example(jax.nn.relu(1 + f))) / 2
        else:
            value = (_per_example(jax.nn.softplus(-r)) + _per_example(jax.nn.softplus(f))) / 2
        value = self.factor * value
        metrics = {"logits_real": _per_example(r), "logits_fake": _per_example(f)}
        if penalty is not None:
            metrics["r1"] = penalty
            value = value + penalty
        terms = {}
        if self.lecam:
            # each side is kept from running beyond where the other has been
            beyond = jax.nn.relu(r.mean() - state["fake"]) ** 2 + jax.nn.relu(state["real"] - f.mean()) ** 2
            terms["lecam"] = self.lecam * beyond
        means = jax.lax.stop_gradient({"real": r.mean(), "fake": f.mean()})
        decay = self.lecam_decay if self.lecam else 1.0  # published means stand still where nothing reads them
        after = {name: state[name] * decay + means[name] * (1 - decay) for name in means}
        return self.started(step) * value, terms, jax.lax.stop_gradient(metrics), after

    def _judged(self, params: PyTree, real: Array) -> tuple[Array, Array | None]:
        """Logits of real images, and the gradient penalty `[B]` where it is on."""
        if not self.r1:
            return self.apply(params, real), None

        def total(images: Array) -> tuple[Array, Array]:
            logits = self.apply(params, images)
            return logits.sum(), logits

        slope, logits = jax.grad(total, has_aux=True)(real)
        return logits, self.r1 / 2 * jnp.square(slope).sum((1, 2, 3))


def last_layer_gradients(
    decode_of_last: Callable[[Array], Array], kernel: Array, d_rec: Array, d_gan: Array
) -> tuple[Array, Array]:
    """Norms of two losses' gradients at the decoder's last kernel, from their gradients at the images.

    Args:
      decode_of_last: the reconstructions `[B, H, W, 3]` as a function of that kernel alone.
      kernel: its value.
      d_rec, d_gan: gradients of the reconstruction's and of the generator's loss with respect to the reconstructions.

    Returns:
      The two norms, scalars.
    """
    images, back = jax.vjp(decode_of_last, kernel)
    rec, gan = (jnp.linalg.norm(back(d.astype(images.dtype))[0].astype(jnp.float32)) for d in (d_rec, d_gan))
    return rec, gan


def gradient_ratio(numerator_norm: Array, denominator_norm: Array, most: float) -> Array:
    """`clip(numerator / (denominator + 1e-4), 0, most)` of the norms of two losses' gradients at one kernel, without
    gradient: a scalar that brings the second loss to the strength of the first (VQGAN, arXiv 2012.09841, eq. 7)."""
    return jax.lax.stop_gradient(jnp.clip(numerator_norm / (denominator_norm + 1e-4), 0.0, most))


def _per_example(x: Array) -> Array:
    """Means over all axes but the first."""
    return x.mean(tuple(range(1, x.ndim)))
