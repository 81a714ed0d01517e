"""What ResNet-50 must give whatever its weights are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.encoders.resnet import MEAN, Bottleneck, FixedBatchNorm, ResNet50
from maskdit.training.mesh import unboxed

SMALL = ResNet50(width=2, blocks=(1, 2), classes=3, size=16)
X = np.random.default_rng(1).uniform(-100, 100, (2, 37, 50, 3)).astype(np.float32)


@jax.jit
def seen(variables, x):
    return SMALL.apply(variables, x), SMALL.apply(variables, x, method="stages")


def filled(module, x):
    """Parameters of which none is what it starts as; variances are positive."""
    shapes = unboxed(jax.eval_shape(module.init, jax.random.key(0), x))["params"]
    rng = np.random.default_rng(0)
    return {"params": jax.tree.map(lambda leaf: rng.uniform(0.1, 0.9, leaf.shape).astype(np.float32), shapes)}


def test_maps_sides_are_rounded_up_and_features_are_their_mean():
    variables = filled(SMALL, X)
    features, maps = seen(variables, X)
    assert [each.shape for each in maps] == [(2, 10, 13, 8), (2, 5, 7, 16)]
    np.testing.assert_allclose(features.pooled, maps[-1].mean((1, 2)), rtol=1e-5)
    head = variables["params"]["head"]
    np.testing.assert_allclose(features.logits, features.pooled @ head["kernel"] + head["bias"], rtol=1e-5)
    assert features.spatial is None


def test_the_first_channel_of_the_weights_is_blue():
    variables = filled(SMALL, X)
    variables["params"]["conv"]["kernel"][:, :, 1:] = 0
    only_blue, no_blue = X.copy(), X.copy()
    only_blue[..., :2] = 0
    no_blue[..., 2] = 0
    pooled = seen(variables, X)[0].pooled
    np.testing.assert_array_equal(seen(variables, only_blue)[0].pooled, pooled)
    assert np.abs(seen(variables, no_blue)[0].pooled - pooled).max() > 1e-3


def test_a_block_halves_the_sides_in_its_first_convolution():
    x = np.random.default_rng(1).uniform(0, 1, (1, 6, 6, 4)).astype(np.float32)
    block = Bottleneck(2, stride=2, shortcut=True)
    variables = filled(block, x)
    kept = np.zeros_like(x)
    kept[:, ::2, ::2] = x[:, ::2, ::2]  # a stride in the 3x3 convolution would see the others too
    y = block.apply(variables, x)
    assert y.shape == (1, 3, 3, 8)
    np.testing.assert_array_equal(block.apply(variables, kept), y)


def test_a_block_whose_norms_give_nothing_is_the_identity_after_relu():
    x = np.random.default_rng(1).uniform(0, 1, (1, 5, 5, 8)).astype(np.float32)
    block = Bottleneck(2)
    variables = filled(block, x)
    for name in ("scale", "bias"):
        variables["params"]["norm_2"][name][:] = 0
    np.testing.assert_array_equal(block.apply(variables, x), x)


def test_batch_norm_by_its_statistics():
    x = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)
    variables = filled(FixedBatchNorm(0.5), x)
    p = variables["params"]
    expected = (x - p["mean"]) / np.sqrt(p["variance"] + 0.5) * p["scale"] + p["bias"]
    np.testing.assert_allclose(FixedBatchNorm(0.5).apply(variables, x), expected, rtol=1e-5, atol=1e-6)


def test_images_are_made_ready_for_it():
    rules = SMALL.PREPROCESSING
    assert list(rules) == ["clean", "tf1-bilinear", "torch-bilinear", "pil-bicubic"]
    black = rules["clean"](jnp.zeros((1, 7, 9, 3), jnp.uint8))
    np.testing.assert_allclose(black, np.broadcast_to(np.float32(-np.array(MEAN)), (1, 16, 16, 3)), rtol=1e-6)


@pytest.mark.parametrize("blocks", [(), (2, 0)])
def test_bad_settings_are_sentences(blocks):
    with pytest.raises(ValueError, match=r"each stage has a block at least: got blocks=\("):
        jax.eval_shape(ResNet50(blocks=blocks).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
