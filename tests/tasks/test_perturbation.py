"""Swapped codes; the published numbers are held by a golden case."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.contracts import Latents
from maskdit.draw import Draw
from maskdit.tasks.perturbation import LatentPerturbation, neighbours, swapped
from maskdit.tokenizers.pixels import Pixels
from maskdit.tokenizers.quantize.fsq import FSQ
from maskdit.tokenizers.quantize.multiscale import MultiScaleVQ
from maskdit.tokenizers.quantize.residual import ResidualVQ
from maskdit.tokenizers.quantize.softvq import SoftVQ
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.tokenizers.softvq import SoftVQVAE
from maskdit.tokenizers.titok import TiTok
from maskdit.tokenizers.vae import VAE
from maskdit.tokenizers.vqgan import VQGAN


@pytest.fixture(scope="module")
def quantized():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(8, 10, 10, 3)).astype(np.float32)
    quantizer, variables = VQ(32, 3), {"params": {"codebook": rng.normal(size=(32, 3)).astype(np.float32)}}
    out = quantizer.apply(variables, z)
    ids = out.ids.reshape(8, -1)
    return Latents(values=out.values, ids=ids, aux=out.aux), quantizer.apply(variables, method="codebook"), z


def test_the_share_of_changed_codes(quantized):
    latents, codebook, _ = quantized
    for alpha, delta in ((0.5, 4), (1.0, 2), (0.0, 8), (1.0, 1)):
        out = swapped(latents, codebook, Draw(1), alpha, delta)
        expected = alpha * (1 - 1 / delta)
        assert np.mean(out.ids != latents.ids) == pytest.approx(expected, abs=0.07 if expected else 0)
        near = neighbours(latents.aux["z"], codebook, delta)
        assert (near == out.ids[..., None]).any(-1).all()
        np.testing.assert_allclose(out.values, codebook[out.ids].reshape(out.values.shape))


def test_only_a_share_of_the_images_is_perturbed(quantized):
    latents, codebook, _ = quantized
    out = LatentPerturbation(beta=0.3, delta=8, rows="first").apply(latents, codebook, Draw(1))
    changed = np.any(np.asarray(out.values) - latents.values > 1e-3, axis=(1, 2, 3))
    np.testing.assert_array_equal(changed, [True, True] + [False] * 6)
    np.testing.assert_array_equal(out.ids, latents.ids)
    draw = Draw(1).at(jnp.arange(8))
    one = LatentPerturbation(beta=0.5, delta=8)
    whole = one.apply(latents, codebook, draw).values
    assert 0 < np.any(np.abs(whole - latents.values) > 1e-3, axis=(1, 2, 3)).sum() < 8
    half = jax.tree.map(lambda leaf: leaf[4:], latents)
    np.testing.assert_allclose(one.apply(half, codebook, Draw(1).at(jnp.arange(4, 8))).values, whole[4:], atol=1e-6)


def test_the_gradient_passes_straight_through_the_swap(quantized):
    latents, codebook, z = quantized
    g = np.random.default_rng(1).normal(size=z.shape).astype(np.float32)

    def loss(z):
        held = Latents(values=z + jax.lax.stop_gradient(latents.values - z), aux={"z": z})
        return jnp.sum(g * LatentPerturbation(beta=0.5, delta=4).apply(held, codebook, Draw(2)).values)

    np.testing.assert_allclose(jax.grad(loss)(z), g, rtol=1e-6)


def test_a_traced_ratio_shrinks_both_without_another_program(quantized):
    latents, codebook, _ = quantized
    setting = LatentPerturbation(alpha=1.0, beta=1.0, delta=8)
    apply = jax.jit(lambda ratio: setting.apply(latents, codebook, Draw(3), ratio).values)
    near = np.asarray(neighbours(latents.aux["z"], codebook, 8))
    for ratio, kept in ((1.0, 8), (0.5, 4), (0.1, 1)):
        values = np.asarray(apply(ratio)).reshape(8, 100, 1, 3)
        places = np.abs(values - np.asarray(codebook)[near]).max(-1).argmin(-1)  # [B, P]
        assert places.max() == kept - 1
        changed = ratio * (1 - 1 / kept)
        assert np.mean(places > 0) == pytest.approx(changed, abs=0.06 if changed else 0)
    assert apply._cache_size() == 1


def test_the_published_schedule():
    setting = LatentPerturbation(anneal_start=0.2, anneal_end=0.6, end_ratio=0.5)
    np.testing.assert_allclose(setting.ratio(np.asarray([0, 0.2, 0.4, 0.6, 1])), [1, 1, 0.75, 0.5, 0.5], atol=1e-6)
    at_once = LatentPerturbation(anneal_start=0.2, anneal_end=0.2, end_ratio=0.7)
    np.testing.assert_allclose(at_once.ratio(np.asarray([0.1, 0.2, 0.3])), [1, 0.7, 0.7], atol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [{"alpha": 1.5}, {"beta": -0.1}, {"delta": 0}, {"anneal_start": 0.7}, {"end_ratio": 2.0}, {"rows": "last"}],
)
def test_settings_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match="LatentPerturbation"):
        LatentPerturbation(**fields)


def test_more_neighbours_than_codes_are_refused(quantized):
    latents, codebook, _ = quantized
    with pytest.raises(ValueError, match="delta=33"):
        swapped(latents, codebook, Draw(0), 1.0, 33)


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        (ResidualVQ(16, 3, levels=2), "32 ids for 16 positions"),
        (ResidualVQ(16, 3, levels=2, shared=False), r"codebook \[V, 3\], got \[2, 16, 3\]"),
        (MultiScaleVQ(16, 3, scales=(1, 2), phis=1), "20 ids for 16 positions"),
        (SoftVQ(16, 3, codebooks=2), r"codebook \[V, 3\], got \[2, 16, 3\]"),
    ],
)
def test_values_that_are_not_one_code_at_each_position_are_refused(quantizer, message):
    out, variables = quantizer.init_with_output(jax.random.key(0), jnp.ones((4, 2, 2, 3)))
    latents, codebook = (
        Latents(values=out.values, ids=out.ids, aux=out.aux),
        quantizer.apply(variables, method="codebook"),
    )
    with pytest.raises(ValueError, match=message):
        swapped(latents, codebook, Draw(0), 1.0, 4)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda codes: LatentPerturbation(delta=4).apply(latents, codes, Draw(0)), codebook)


def test_latents_that_no_quantizer_made_are_refused():
    with pytest.raises(ValueError, match="have no z"):
        swapped(Latents(values=jnp.ones((1, 2, 3))), jnp.ones((4, 3)), Draw(0), 1.0, 2)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (Pixels(), "Pixels has no token ids"),
        (VAE(), "VAE has no token ids"),
        (TiTok(), "TiTok has no token ids"),
        (SoftVQVAE(SoftVQ()), "SoftVQVAE has no token ids"),
        (VQGAN(ResidualVQ(1024, 8)), "quantizer ResidualVQ, which adds up several"),
        (VQGAN(MultiScaleVQ()), "quantizer MultiScaleVQ, which adds up several"),
        (VQGAN(VQ(99, 8)), "delta=100 nearest codes are wanted of 99"),
    ],
)
def test_tokenizers_whose_codes_cannot_be_swapped_are_refused(tokenizer, message):
    with pytest.raises(ValueError, match=message):
        LatentPerturbation().check(tokenizer)


@pytest.mark.parametrize("quantizer", [VQ(100, 8), FSQ((8, 5, 5, 5)), ResidualVQ(100, 8, levels=1)])
def test_tokenizers_with_one_code_at_each_position_are_taken(quantizer):
    LatentPerturbation().check(VQGAN(quantizer))
