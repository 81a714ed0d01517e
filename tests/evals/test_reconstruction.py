"""Closed forms of what is measured on reconstructions."""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.contracts import Latents, LatentSpec, ModelError, NotFiniteError
from maskdit.data.loader import Loader
from maskdit.evals import image_quality
from maskdit.evals.reconstruction import Codes, Swaps, codes_used, reconstruction, size
from maskdit.tokenizers.model import TokenizerModel
from maskdit.tokenizers.pixels import Pixels
from maskdit.tokenizers.posterior import normal_posterior

LEVELS = (0, 100, 100, 200, 255)


@dataclasses.dataclass(frozen=True)
class Flat:
    """Images of one level each."""

    side: int = 16

    def __len__(self):
        return len(LEVELS)

    def __getitem__(self, index):
        return {"image": np.full((self.side, self.side, 3), LEVELS[index], np.uint8)}

    @property
    def vocabulary(self):
        return {}

    def describe(self, index):
        return f"flat image {index}"


class Levels(nn.Module):
    """One code for an image: the nearest of `codes` levels, evenly spaced from black to white."""

    codes: int = 6

    @property
    def latent(self):
        return LatentSpec(layout="grid", downsample=16, channels=1, vocabulary=self.codes)

    @nn.compact
    def __call__(self, images):
        self.param("unused", nn.initializers.zeros, (7,))
        return self.decode(self.encode(images))

    def codebook(self):
        return jnp.linspace(-1, 1, self.codes)[:, None]

    def encode(self, images, cond=None, *, draw=None, train=False):
        z = images.mean((1, 2, 3))[:, None, None, None]  # [B, 1, 1, 1]
        ids = jnp.argmin(jnp.square(z - self.codebook()[:, 0]), -1).astype(jnp.int32).reshape(-1, 1)
        return Latents(values=self.codebook()[ids][:, None], ids=ids, aux={"z": z})

    def decode(self, latents, cond=None, *, draw=None, train=False):
        return jnp.broadcast_to(latents.values, (len(latents.values), 16, 16, 3))


class Blurred(nn.Module):
    """A posterior of mean 1 and variance 1 in 3 channels of a 2 x 2 grid; white images."""

    @property
    def latent(self):
        return LatentSpec(layout="grid", downsample=8, channels=3)

    @nn.compact
    def __call__(self, images):
        return self.decode(self.encode(images))

    def encode(self, images, cond=None, *, draw=None, train=False):
        shape = (len(images), 2, 2, 3)
        return normal_posterior(jnp.concatenate([jnp.ones(shape), jnp.zeros(shape)], -1))

    def decode(self, latents, cond=None, *, draw=None, train=False):
        return jnp.ones((len(latents.values), 16, 16, 3))


def loader():
    return Loader(source=Flat(), size=16, flip=False, shuffle=False)


def of(tokenizer):
    return TokenizerModel(tokenizer, {"params": {"tokenizer": {"unused": np.zeros(7, np.float32)}}})


def test_images_that_come_back_whole():
    found = reconstruction(of(Pixels()), loader(), batch=8)
    assert found["images"] == 5 and found["psnr"] == pytest.approx(100) and found["l1"] == 0
    assert found["ssim"] == pytest.approx(1)
    assert found["floats"] == 16 * 16 * 3 and found["bits"] == 32 * found["floats"] and "usage" not in found


def test_levels_are_rounded_to_codes():
    """Codes are 0, 51, 102, ..: 0 and 255 come back, 100 and 200 are 2 and 4 levels off."""
    found = reconstruction(of(Levels()), loader(), batch=2)
    errors = np.array([0, 2, 2, 4, 0])
    np.testing.assert_allclose(found["l1"], errors.mean() / 127.5, rtol=1e-5)
    psnr = [100 if error == 0 else 20 * math.log10(255 / error) for error in errors]
    assert found["psnr"] == pytest.approx(np.mean(psnr))
    assert found["usage"] == pytest.approx(4 / 6)
    shares = np.array([1, 2, 1, 1]) / 5
    assert found["perplexity"] == pytest.approx(math.exp(-np.sum(shares * np.log(shares))))
    assert found["tokens"] == 1 and found["bits"] == pytest.approx(math.log2(6)) and found["parameters"] == 7


def test_figures_do_not_depend_on_the_batch_and_rows_that_fill_it_do_not_count():
    model, far = of(Levels()), Swaps(1.0, 6)
    for swaps in (None, far):
        small, large = (reconstruction(model, loader(), batch=batch, swaps=swaps) for batch in (2, 8))
        assert small == pytest.approx(large)
    assert codes_used(model, loader(), batch=8).counts.tolist() == [1, 0, 2, 0, 1, 1]


def test_swaps_of_one_code_change_nothing_and_of_all_codes_do():
    model, plain = of(Levels()), reconstruction(of(Levels()), loader())
    assert reconstruction(model, loader(), swaps=Swaps(1.0, 1)) == pytest.approx(plain)
    assert reconstruction(model, loader(), swaps=Swaps(0.0, 6)) == pytest.approx(plain)
    far = reconstruction(model, loader(), swaps=Swaps(1.0, 6))
    assert far["l1"] > plain["l1"] + 0.1 and far["usage"] == plain["usage"]
    other = reconstruction(model, loader(), swaps=Swaps(1.0, 6), seed=1)
    assert other["l1"] != far["l1"]


def test_divergence_in_bits():
    found = reconstruction(of(Blurred()), loader())
    assert found["kl_bits"] == pytest.approx(12 * 0.5 / math.log(2), rel=1e-5)
    assert found["tokens"] == 4 and found["floats"] == 12 and found["bits"] == 384


def test_a_distance_is_meaned():
    found = reconstruction(of(Levels()), loader(), batch=2, distance=lambda a, b: a[:, 0, 0, 0].astype(float))
    assert found["lpips"] == pytest.approx(np.mean(LEVELS))


def test_codes_alike_have_their_number_as_perplexity():
    codes = Codes.none(8)
    codes.add(np.arange(4).reshape(2, 2))
    assert codes.usage == 0.5 and codes.perplexity == pytest.approx(4)


def test_latents_without_codes_cannot_be_swapped():
    with pytest.raises(ValueError, match="no codes to swap"):
        reconstruction(of(Pixels()), loader(), swaps=Swaps(1.0, 2))
    with pytest.raises(ModelError, match="has no codes"):
        codes_used(of(Pixels()), loader())


def test_larger_images_take_more_tokens():
    assert size(of(Blurred()), (16, 16, 3))["floats"] == 12
    assert size(of(Pixels()), (8, 8, 3))["tokens"] == 64


class Darker(nn.Module):
    """Gives images back darker by `levels` of 255 and a slope over the rows; nothing but float numbers."""

    levels: float = 0.43
    wrong: bool = False

    @property
    def latent(self):
        return LatentSpec(layout="grid", downsample=1, channels=3)

    @nn.compact
    def __call__(self, images):
        return self.decode(self.encode(images))

    def encode(self, images, cond=None, *, draw=None, train=False):
        return Latents(values=images)

    def decode(self, latents, cond=None, *, draw=None, train=False):
        lost = (self.levels + jnp.arange(latents.values.shape[1]) / 10)[:, None, None] / 127.5
        made = latents.values - lost
        return jnp.where(latents.values > 0.99, jnp.nan, made) if self.wrong else made


DEFINITIONS = {name for name in dir(image_quality) if name.startswith(("psnr_", "ssim_"))} - {"ssim_map"}


def given_and_made():
    given = np.stack([np.full((16, 16, 3), level, np.uint8) for level in LEVELS])
    made = given / 127.5 - 1 - (0.43 + np.arange(16) / 10)[:, None, None] / 127.5
    return given / 127.5 - 1, made


def test_every_definition_stands_under_its_name_and_is_that_function():
    given, made = given_and_made()
    for batch in (2, 8):
        found = reconstruction(of(Darker()), loader(), batch=batch, every_definition=True)
        assert {name for name in found if name.startswith(("psnr", "ssim"))} == DEFINITIONS
        for name in DEFINITIONS:
            expected = np.mean(getattr(image_quality, name)(given, made))
            assert found[name] == pytest.approx(expected, rel=1e-4), name
    pair = reconstruction(of(Darker()), loader())
    assert found["psnr_floored"] == pair["psnr"] and found["ssim_torchmetrics"] == pair["ssim"]
    assert found["l1"] == pair["l1"] and not DEFINITIONS & pair.keys()


def test_only_what_its_paper_quantised_is_quantised():
    """An error of 0.43 levels is rounded away but in the definitions that see the numbers as they are."""

    class Slightly(Darker):
        def decode(self, latents, cond=None, *, draw=None, train=False):
            return latents.values - self.levels / 127.5

    found = reconstruction(of(Slightly()), loader(), every_definition=True)
    assert found["l1"] == 0 and found["psnr_uint8"] == math.inf and found["ssim_skimage"] == pytest.approx(1)
    assert found["psnr_pooled"] == pytest.approx(20 * math.log10(255 / 0.43), rel=1e-4)
    assert found["ssim_signed"] < 1 - 1e-7 < found["ssim_torchmetrics"]


def test_a_watcher_sees_each_image_once_with_its_reconstruction():
    seen = []
    reconstruction(of(Levels()), loader(), batch=2, watch=lambda given, made: seen.append((given, made)))
    given, made = (np.concatenate(part) for part in zip(*seen, strict=True))
    assert given.dtype == made.dtype == np.uint8 and max(len(one) for one, _ in seen) == 2
    assert given[:, 0, 0, 0].tolist() == list(LEVELS) and made[:, 5, 5, 1].tolist() == [0, 102, 102, 204, 255]


@pytest.mark.parametrize("every", [False, True])
def test_numbers_that_are_not_finite_are_an_error(every):
    with pytest.raises(NotFiniteError, match="no finite numbers"):
        reconstruction(of(Darker(wrong=True)), loader(), every_definition=every)
    with pytest.raises(NotFiniteError, match=r"1 of 2 images .* \(images 1\)"):
        of(Darker(wrong=True)).reconstruct(np.stack([np.full((16, 16, 3), level, np.uint8) for level in (9, 255)]))
