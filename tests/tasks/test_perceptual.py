"""The parts of a perceptual loss, their weights, and where gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.encoders.convnext import ConvNeXt
from maskdit.encoders.lpips import LPIPS
from maskdit.tasks.perceptual import Perceptual
from maskdit.training.mesh import unboxed

NETWORKS = {"lpips": LPIPS(channels=(4, 4, 4, 4, 4)), "convnext": ConvNeXt(channels=(8,), depths=(1,), classes=3)}


@pytest.fixture(scope="module")
def pair():
    return np.random.default_rng(0).uniform(-1, 1, (2, 2, 24, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def frozen(pair):
    return {name: unboxed(jax.jit(network.init)(jax.random.key(0), pair[0])) for name, network in NETWORKS.items()}


def test_weights_and_their_sum(pair, frozen):
    both = Perceptual(**NETWORKS, lpips_weight=2.0, convnext_weight=0.5, resize=8)
    parts = both.parts(frozen, *pair)
    assert {name: part.shape for name, part in parts.items()} == {"lpips": (2,), "convnext": (2,)}
    total = 2.0 * parts["lpips"] + 0.5 * parts["convnext"]
    np.testing.assert_allclose(both.loss(frozen, *pair), total / 2.5, rtol=1e-6)
    plain = Perceptual(**NETWORKS, lpips_weight=2.0, convnext_weight=0.5, resize=8, normalise=False)
    np.testing.assert_allclose(plain.loss(frozen, *pair), total, rtol=1e-6)
    alone = Perceptual(lpips=NETWORKS["lpips"], convnext_weight=7.0)
    np.testing.assert_allclose(alone.loss(frozen, *pair), parts["lpips"], rtol=1e-6)


def test_scores_are_those_of_resized_images(pair, frozen):
    perceptual = Perceptual(convnext=NETWORKS["convnext"], resize=8)
    flat = jnp.full((2, 24, 16, 3), 0.25)
    np.testing.assert_allclose(perceptual.resized(flat), np.full((2, 8, 8, 3), 0.25), atol=1e-6)
    scores = [NETWORKS["convnext"].apply(frozen["convnext"], perceptual.resized(part)) for part in pair]
    expected = jnp.square(scores[0] - scores[1]).mean(-1)
    np.testing.assert_allclose(perceptual.loss(frozen, *pair), expected, rtol=1e-4)


def test_gradients_reach_the_reconstructions_alone(pair, frozen):
    perceptual = Perceptual(**NETWORKS, resize=8)
    grads = jax.jit(jax.grad(lambda *x: perceptual.loss(*x).sum(), argnums=(0, 1, 2)))(frozen, *pair)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads[:2]))
    assert np.isfinite(grads[2]).all() and np.abs(grads[2]).max() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs lpips or convnext"),
        ({"lpips": NETWORKS["lpips"], "lpips_weight": -1.0}, "0 or more and not all 0, got {'lpips': -1.0}"),
        ({**NETWORKS, "lpips_weight": 0.0, "convnext_weight": 0.0}, "not all 0"),
        ({**NETWORKS, "resize": 0}, "a side in pixels, 1 or more, got 0"),
    ],
)
def test_bad_settings_are_sentences(settings, message):
    with pytest.raises(ValueError, match=message):
        Perceptual(**settings)
