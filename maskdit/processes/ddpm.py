"""DDPM: discrete Gaussian diffusion (Ho et al. 2020, arXiv 2006.11239) with the learned range of variances (Nichol and
Dhariwal 2021, arXiv 2102.09672), as DiT trains and samples it."""

import dataclasses
import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Array, Cond, Draw, Loss, Plan, Predict, Prediction
from maskdit.layers.patch import patchify
from maskdit.processes.masking import draw_kept, mean_where

BETAS = ("linear", "cosine")
TARGETS = ("eps", "x0", "v")
FIXED_VARIANCES = ("large", "small")


@functools.lru_cache
def beta_schedule(kind: str, steps: int) -> np.ndarray:
    """The noise schedule beta_1 .. beta_T, float64.

    Args:
      kind: `linear` (Ho et al.: 1e-4 to 0.02 for 1000 steps, scaled for others) or `cosine` (Nichol and Dhariwal,
        eq. 17).
      steps: T.
    """
    if kind == "linear":
        scale = 1000 / steps
        return np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64)
    level = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - level[1:] / level[:-1], 0.999)


def spaced(total: int, sections: int | tuple[int, ...], spacing: str | None = None) -> tuple[int, ...]:
    """The timesteps kept by a shorter process, rising.

    Args:
      total: T of the full process.
      sections: number of steps, or one number for each of several equal stretches of the full process.
      spacing: `ddim` keeps every k-th with the least k that gives the number exactly; None spreads evenly and includes
        both ends of each stretch.

    Raises:
      ValueError: where that many steps cannot be kept.
    """
    counts = (sections,) if isinstance(sections, int) else tuple(sections)
    if any(count < 1 for count in counts):
        raise ValueError(f"a sampling run takes at least 1 step, got {sections}")
    if spacing == "ddim":
        for stride in range(1, total + 1):
            if len(counts) == 1 and len(range(0, total, stride)) == counts[0]:
                return tuple(range(0, total, stride))
        raise ValueError(f"no whole stride keeps {sections} of {total} timesteps: use another number or spacing=None")
    if spacing is not None:
        raise ValueError(f"spacing is 'ddim' or None, got '{spacing}'")
    size, extra = divmod(total, len(counts))
    kept: list[int] = []
    start = 0
    for k, count in enumerate(counts):
        length = size + (k < extra)
        if count > length:
            raise ValueError(f"cannot keep {count} of {length} timesteps; the process has {total}")
        gap = (length - 1) / max(count - 1, 1)
        place = 0.0
        for _ in range(count):
            kept.append(start + round(place))
            place += gap
        start += length
    return tuple(kept)


@dataclasses.dataclass(frozen=True)
class DDPM:
    """Discrete Gaussian diffusion. Its time is the timestep of the full process, 0 .. T-1; -1 stands for clean data.

    Attributes:
      steps: T.
      betas: `linear` or `cosine`.
      predicts: what the network predicts: `eps`, `x0` or `v`.
      learned_variance: the network also gives the place of the log variance between its two bounds, trained by the
        variational bound.
      fixed_variance: variance of a sampling step where it is not learned: `large` (beta) or `small` (posterior).
      grid: the timesteps of a sampling run, falling, the last one -1; set by `respace`.
    """

    steps: int = 1000
    betas: str = "linear"
    predicts: str = "eps"
    learned_variance: bool = False
    fixed_variance: str = "large"
    grid: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, options in (("betas", BETAS), ("predicts", TARGETS), ("fixed_variance", FIXED_VARIANCES)):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} is one of {', '.join(options)}, got '{getattr(self, name)}'")

    @property
    def kept(self) -> tuple[int, ...]:
        """The timesteps of this process, rising."""
        return tuple(reversed(self.grid[:-1])) if self.grid else tuple(range(self.steps))

    @property
    def tables(self) -> dict[str, np.ndarray]:
        """Float64 tables over the kept timesteps: `beta`, `alpha_bar`, `alpha_bar_prev`, `log_beta`,
        `posterior_variance`, `posterior_log_variance` (entry 0 replaced by entry 1), `posterior_x0`, `posterior_xt`."""
        return _tables(self.betas, self.steps, self.kept)

    def alpha_sigma(self, t: Array) -> tuple[Array, Array]:
        """x_t = alpha x0 + sigma eps at timesteps of the full process; (1, 0) at -1, and (0, 1) at T, pure noise."""
        level = _alpha_bar(self.betas, self.steps)
        index = jnp.asarray(t, jnp.int32) + 1
        return _look_up(np.sqrt(level), index), _look_up(np.sqrt(1 - level), index)

    def hold(self, z: Array, i: Any, draw: Draw) -> Array:
        """Clean latents `z` noised to place i of the grid. Draws: `noise` (normal)."""
        alpha, sigma = self.alpha_sigma(jnp.asarray(self.grid)[i])
        return alpha * z + sigma * draw.normal("noise", z.shape)

    def denoise(self, predict: Predict, xt: Array, t: Array, cond: Cond, **kw: Any) -> tuple[Array, Prediction]:
        """The estimate of x0, not clipped, and the network's prediction.

        Args:
          predict: the network; it receives the timestep of the full process.
          xt: noisy input `[B, H, W, C]`.
          t: timesteps `[B]`, integers.
          cond: the condition.
          **kw: passed on to the network.
        """
        prediction = predict(xt, t, cond, **kw)
        out = prediction.x.astype(xt.dtype)
        if self.predicts == "x0":
            return out, prediction
        alpha, sigma = (_rows(c, xt) for c in self.alpha_sigma(t))
        return (alpha * xt - sigma * out if self.predicts == "v" else (xt - sigma * out) / alpha), prediction

    def loss(self, predict: Predict, z: Array, cond: Cond, draw: Draw, *, step: Array, plan: Plan) -> Loss:
        """Mean squared error of what is predicted, plus the variational bound in bits per dimension where the
        variance is learned (its gradient reaches the variance only).

        Draws: `t` (integers `[B]`), `noise` (normal, shaped like `z`), `mask` (uniform `[B, N]`, masked steps only).
        """
        rows, layout = z.shape[0], predict.layout
        t = draw.integers("t", (rows,), 0, self.steps)
        noise = draw.normal("noise", z.shape)
        alpha, sigma = (_rows(c, z) for c in self.alpha_sigma(t))
        xt = alpha * z + sigma * noise
        keep = None if plan.keep is None else draw_kept(draw, rows, layout.tokens, plan.keep)
        x0, prediction = self.denoise(predict, xt, t, cond, keep=keep)
        chex.assert_equal_shape([x0, z])
        target = {"eps": noise, "x0": z, "v": alpha * noise - sigma * z}[self.predicts]

        def mean(values: Array) -> Array:
            if keep is None:
                return values.mean(tuple(range(1, z.ndim)))
            return mean_where(patchify(values, layout.patch).mean(-1), 1 - prediction.aux["mask"])

        metrics = {"mse": mean(jnp.square(target - prediction.x.astype(z.dtype)))}
        if self.learned_variance:
            metrics["vb"] = mean(self.bound(z, xt, jax.lax.stop_gradient(x0), t, prediction.aux["variance"]))
        value = sum(metrics.values(), jnp.zeros((rows,)))
        return Loss(
            value=value, weight=jnp.ones_like(value), metrics=metrics, bins=self._bins(t), prediction=prediction
        )

    def bound(self, x0: Array, xt: Array, estimate: Array, t: Array, variance: Array) -> Array:
        """The bound's term at t in bits, elementwise: KL(q(x_(t-1) | x_t, x0) || p), at t = 0 the likelihood of x0 in
        bins of width 2/255 (Ho et al., eq. 13).

        Args:
          x0, xt: data and noisy input `[B, H, W, C]`.
          estimate: the estimate of x0.
          t: timesteps `[B]`, of a process that keeps them all.
          variance: the network's variance output, about [-1, 1].
        """
        true_mean, true_log = self.posterior(x0, xt, t)
        mean, log = self.step_distribution(estimate, xt, t, variance)
        kl = 0.5 * (log - true_log - 1 + jnp.exp(true_log - log) + jnp.square(true_mean - mean) * jnp.exp(-log))
        bits = jnp.where(_rows(t, xt) == 0, -_binned_log_likelihood(x0, mean, 0.5 * log), kl)
        return bits / math.log(2)

    def posterior(self, x0: Array, xt: Array, index: Array) -> tuple[Array, Array]:
        """Mean and log variance of q(x_(t-1) | x_t, x0) (Ho et al., eq. 7) at places `[B]` among the kept timesteps."""
        table = self.tables
        mean = _rows(_look_up(table["posterior_x0"], index), xt) * x0
        mean = mean + _rows(_look_up(table["posterior_xt"], index), xt) * xt
        return mean, _rows(_look_up(table["posterior_log_variance"], index), xt)

    def step_distribution(self, x0: Array, xt: Array, index: Array, variance: Array | None) -> tuple[Array, Array]:
        """Mean and log variance of p(x_(t-1) | x_t), with the estimate of x0 in the posterior's mean.

        The learned log variance lies between those of the posterior and of beta (Nichol and Dhariwal, eq. 15).
        """
        mean, lower = self.posterior(x0, xt, index)
        if variance is None:
            table = self.tables
            large = np.log(np.append(table["posterior_variance"][min(1, len(self.kept) - 1)], table["beta"][1:]))
            return mean, _rows(_look_up(large, index), xt) if self.fixed_variance == "large" else lower
        upper = _rows(_look_up(self.tables["log_beta"], index), xt)
        share = (variance.astype(xt.dtype) + 1) / 2
        return mean, share * upper + (1 - share) * lower

    def prior(self, draw: Draw, shape: tuple[int, ...]) -> Array:
        """The noisiest state of a sampling run. Draws: `prior` (normal)."""
        return draw.normal("prior", shape)

    def times(self, steps: int | tuple[int, ...], spacing: str | None = None) -> tuple[int, ...]:
        """The timesteps of a run of so many steps, falling, with -1 at the end; see `spaced`."""
        return (*reversed(spaced(self.steps, steps, spacing)), -1)

    def respace(self, times: tuple[int, ...]) -> "DDPM":
        """The process that visits only these timesteps."""
        return dataclasses.replace(self, grid=tuple(times))

    def _bins(self, t: Array) -> dict[str, Array]:
        edges = [round(k * self.steps / 4) for k in range(5)]
        return {
            f"t_{low}-{high - 1}": ((t >= low) & (t < high)).astype(jnp.float32)
            for low, high in zip(edges[:-1], edges[1:], strict=True)
        }


@functools.lru_cache
def _alpha_bar(kind: str, steps: int) -> np.ndarray:
    """Products of 1 - beta between that of clean data, 1, and of pure noise, 0: entry t + 1 belongs to timestep t."""
    return np.concatenate([[1.0], np.cumprod(1 - beta_schedule(kind, steps)), [0.0]])


@functools.lru_cache
def _tables(kind: str, steps: int, kept: tuple[int, ...]) -> dict[str, np.ndarray]:
    level = _alpha_bar(kind, steps)[1:][list(kept)]
    previous = np.append(1.0, level[:-1])
    beta = 1 - level / previous
    variance = beta * (1 - previous) / (1 - level)
    return {
        "beta": beta,
        "alpha_bar": level,
        "alpha_bar_prev": previous,
        "log_beta": np.log(beta),
        "posterior_variance": variance,
        "posterior_log_variance": np.log(np.append(variance[1:2] if len(kept) > 1 else beta, variance[1:])),
        "posterior_x0": beta * np.sqrt(previous) / (1 - level),
        "posterior_xt": (1 - previous) * np.sqrt(1 - beta) / (1 - level),
    }


def _binned_log_likelihood(x: Array, mean: Array, log_scale: Array) -> Array:
    """Log likelihood of x under a Gaussian discretised to bins of half width 1/255, open beyond +-0.999."""

    def cdf(value: Array) -> Array:
        return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))

    centred, inverse = x - mean, jnp.exp(-log_scale)
    upper, lower = cdf(inverse * (centred + 1 / 255)), cdf(inverse * (centred - 1 / 255))
    mass = jnp.where(x < -0.999, upper, jnp.where(x > 0.999, 1 - lower, upper - lower))
    return jnp.log(jnp.maximum(mass, 1e-12))


def _look_up(table: np.ndarray, index: Array) -> Array:
    return jnp.asarray(table, jnp.float32)[jnp.asarray(index, jnp.int32)]


def _rows(values: Array, like: Array) -> Array:
    return jnp.reshape(values, (-1,) + (1,) * (like.ndim - 1))
