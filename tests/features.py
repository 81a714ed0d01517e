"""The smallest feature networks with all that scores ask of one, images for them, and a generator without a network."""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from maskdit.data.loader import Loader
from maskdit.encoders.features import Features, Preprocessing
from maskdit.evals.network import FeatureNetwork
from maskdit.references import checksum

RULES = ("tf1-bilinear", "torch-bilinear")


class InceptionV3(nn.Module):
    """Passes for Inception by its name: six features, 4 places, 3 classes."""

    PREPROCESSING: ClassVar = {rule: Preprocessing(rule, 8, (128.0,), (128.0,)) for rule in RULES}

    @nn.compact
    def __call__(self, x):
        table = self.param("table", nn.initializers.normal(0.1), (192, 6))
        pooled = jnp.tanh(x.reshape(len(x), -1) @ table) + 5
        return Features(pooled=pooled, spatial=x[:, ::4, ::4, 0].reshape(len(x), -1), logits=4 * pooled[:, :3])


class Other(InceptionV3):
    """Passes for nothing: no places, no classes."""

    @nn.compact
    def __call__(self, x):
        table = self.param("other", nn.initializers.normal(0.1), (192, 6))
        return Features(pooled=jnp.tanh(x.reshape(len(x), -1) @ table) + 5)


@functools.cache
def network(cls=InceptionV3, resize="tf1-bilinear", seed=0):
    """One of them with weights of a seed."""
    variables = cls().init(jax.random.key(seed), jnp.zeros((1, 8, 8, 3)))
    name = "inception-fid" if cls is InceptionV3 else "other"
    return FeatureNetwork(name, cls(), variables, cls.PREPROCESSING[resize], None, checksum(variables))


def images(count, seed=0, size=8):
    """Noise, uint8 `[count, size, size, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def seen(net, given):
    """What a network says of images, on the host and in one go."""
    return jax.device_get(net.see(net.variables, jnp.asarray(given)))


@dataclasses.dataclass(frozen=True)
class Held:
    """A source of noise, whose records in `broken` cannot be read."""

    count: int = 23
    seed: int = 0
    size: int = 8
    broken: tuple[int, ...] = ()
    vocabulary: ClassVar = {}

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        from maskdit.data.source import UnreadableRecord

        if index in self.broken:
            raise UnreadableRecord(self.describe(index), "broken")
        return {"image": images(self.count, self.seed, self.size)[index]}

    def describe(self, index):
        return f"record {index}"


def loader(*given, **more):
    """A loader of `Held`."""
    source = Held(*given, **more)
    return Loader(source, size=source.size, flip=True, shuffle=True, threads=0)


@dataclasses.dataclass
class Numbered:
    """A generator whose image of a number is the noise of that number, and which ends after so many images."""

    most: int = 10**9
    variables: dict = dataclasses.field(default_factory=lambda: {"params": np.arange(3.0, dtype=np.float32)})
    devices: None = None
    config: None = None
    sampler: None = None
    guidance: None = None
    ema: str = "none"
    step: int = 7
    asked: list = dataclasses.field(default_factory=list)

    def sample(self, labels, *, count, first, seed, batch, text=None, **more):
        self.asked.append((first, count))
        self.most -= count
        if self.most < 0:
            raise KeyboardInterrupt
        return np.concatenate([images(1, seed=1000 * seed + first + i) for i in range(count)])
