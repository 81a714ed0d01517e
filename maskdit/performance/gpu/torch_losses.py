"""Losses and a sampling step in PyTorch, for the best-effort peers: tables on the device, nothing read back.

The same formulas as `maskdit.processes.ddpm` and `maskdit.processes.edm`, which tell their sources; the driver holds
them against ours before anything is timed. Images are `[B, C, H, W]`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

STEPS = 1000
SIGMA_DATA = 0.5
RECONSTRUCTION = 0.1


def _tables(kept: Any, device: Any) -> Any:
    """Per kept timestep: sqrt and root of the complement of alpha-bar, log beta, log posterior variance, its means'
    weights: `[timesteps, 6]`."""
    level = np.cumprod(1 - np.linspace(1e-4, 0.02, STEPS))[kept]
    previous = np.append(1.0, level[:-1])
    beta = 1 - level / previous
    variance = beta * (1 - previous) / (1 - level)
    variance[0] = variance[1]
    rows = (
        np.sqrt(level),
        np.sqrt(1 - level),
        np.log(beta),
        np.log(variance),
        beta * np.sqrt(previous) / (1 - level),
        (1 - previous) * np.sqrt(1 - beta) / (1 - level),
    )
    return torch.tensor(np.stack(rows, -1), dtype=torch.float32, device=device)


def _columns(table: Any, index: Any) -> Any:
    """The six numbers of each example, shaped to multiply images."""
    return table[index].T.reshape(6, -1, 1, 1, 1)


def ddpm(device: Any) -> Callable[..., Any]:
    """DiT's loss: the error of the noise, and the bound for the variances."""
    table = _tables(np.arange(STEPS), device)

    def loss(model: Any, z: Any, labels: Any, noise: Any, t: Any) -> Any:
        alpha, sigma, log_beta, log_posterior, of_z, of_xt = _columns(table, t)
        xt = alpha * z + sigma * noise
        eps, place = model(xt, t, labels).float().chunk(2, dim=1)
        log = log_posterior + (place + 1) / 2 * (log_beta - log_posterior)
        true = of_z * z + of_xt * xt
        mean = of_z * (xt - sigma * eps.detach()) / alpha + of_xt * xt
        kl = 0.5 * (log - log_posterior - 1 + torch.exp(log_posterior - log) + (true - mean) ** 2 * torch.exp(-log))
        bound = torch.where((t == 0).reshape(-1, 1, 1, 1), -_likelihood(z, mean, 0.5 * log), kl)
        return ((noise - eps) ** 2).mean() + bound.mean() / math.log(2)

    return loss


def edm(ratio: float, patch: int) -> Callable[..., Any]:
    """EDM's loss, over kept patches where some are masked, with MaskDiT's reconstruction."""

    def patches(x: Any) -> Any:
        cut = x.unfold(2, patch, patch).unfold(3, patch, patch)  # [B, C, h, w, p, p]
        return cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # [B, N, C * p * p]

    def loss(net: Any, z: Any, labels: Any, noise: Any, sigma: Any, order: Any) -> Any:
        level = sigma.reshape(-1, 1, 1, 1)
        xt = z + level * noise
        weight = (level**2 + SIGMA_DATA**2) / (level * SIGMA_DATA) ** 2
        if not ratio:
            return (weight * (net(xt, level, labels)["x"].float() - z) ** 2).mean()
        kept = int(order.shape[1] * (1 - ratio))
        restore = torch.argsort(order, dim=1)
        mask = (restore >= kept).float()
        places = {"ids_keep": order[:, :kept], "ids_restore": restore, "mask": mask}
        x0 = net(xt, level, labels, mask_ratio=ratio, mask_dict=places)["x"].float()
        error = patches(weight * (x0 - z) ** 2).mean(-1)
        target = patches(xt)
        target = (target - target.mean(-1, keepdim=True)) / torch.sqrt(target.var(-1, keepdim=True) + 1e-6)
        gap = ((patches(x0) - target) ** 2).mean(-1)
        value = (error * (1 - mask)).sum(1) / kept + RECONSTRUCTION * (gap * mask).sum(1) / mask.sum(1)
        return value.mean()

    return loss


class Ancestral:
    """DDPM's sampler over evenly spread timesteps.

    Attributes:
      places: places among them, from noise to data, each a tensor of one.
    """

    def __init__(self, steps: int, device: Any, weight: float = 1.5, channels: int = 3):
        kept = np.unique(np.round(np.linspace(0, STEPS - 1, steps)).astype(int))
        self._table = _tables(kept, device)
        self._kept = torch.tensor(kept, device=device)
        self._weight, self._channels = weight, channels
        self.places = [torch.tensor([i], device=device) for i in reversed(range(steps))]

    def move(self, model: Any, x: Any, labels: Any, place: Any, noise: Any) -> Any:
        """One step with guidance: conditional and unconditional pass in one batch."""
        time = self._kept[place].expand(2 * len(x))
        eps, share = model(torch.cat([x, x]), time, labels).float().chunk(2, dim=1)
        with_label, without = eps.chunk(2)
        guided = without + self._weight * (with_label - without)
        eps = torch.cat([guided[:, : self._channels], with_label[:, self._channels :]], dim=1)
        alpha, sigma, log_beta, log_posterior, of_z, of_xt = _columns(self._table, place)
        log = log_posterior + (share.chunk(2)[0] + 1) / 2 * (log_beta - log_posterior)
        mean = of_z * (x - sigma * eps) / alpha + of_xt * x
        return mean + (place > 0) * torch.exp(0.5 * log) * noise


def _likelihood(x: Any, mean: Any, log_scale: Any) -> Any:
    """Log likelihood of data in bins of half width 1/255 under a Gaussian."""

    def below(value: Any) -> Any:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))

    centred, inverse = x - mean, torch.exp(-log_scale)
    upper, lower = below(inverse * (centred + 1 / 255)), below(inverse * (centred - 1 / 255))
    mass = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return torch.log(mass.clamp(min=1e-12))
