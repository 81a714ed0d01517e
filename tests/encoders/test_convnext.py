"""What ConvNeXt must give whatever its weights are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.encoders.convnext import Block, ConvNeXt, DepthwiseConv
from maskdit.training.mesh import unboxed

SMALL = ConvNeXt(channels=(8, 16), depths=(1, 2), classes=5)


def test_features_are_normed_and_scores_are_a_product_of_them():
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    variables = unboxed(jax.jit(SMALL.init)(jax.random.key(0), images))
    features = SMALL.apply(variables, images, method="features")
    np.testing.assert_allclose(features.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.square(features).mean(-1), 1, atol=1e-3)
    head = variables["params"]["head"]
    np.testing.assert_allclose(SMALL.apply(variables, images), features @ head["kernel"] + head["bias"], rtol=1e-5)


def test_channels_stay_apart_in_the_depthwise_convolution_and_see_three_pixels_a_side():
    network, x = DepthwiseConv(), jnp.zeros((1, 9, 9, 2))
    variables = network.init(jax.random.key(0), x)
    reach = network.apply(variables, x.at[0, 4, 4, 0].set(1.0))
    assert not np.asarray(reach[..., 1]).any()
    np.testing.assert_allclose(reach[0, 1:8, 1:8, 0], variables["params"]["kernel"][::-1, ::-1, 0, 0], rtol=1e-6)
    assert not np.asarray(reach[0, 0]).any()


def test_a_block_begins_as_about_the_identity():
    x = jax.random.normal(jax.random.key(1), (1, 4, 4, 8))
    block = Block(8)
    y = block.apply(block.init(jax.random.key(0), x), x)
    assert 0 < np.abs(y - x).max() < 1e-4


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (ConvNeXt(channels=(8, 16), depths=(1,)), r"a width and a depth: got channels=\(8, 16\), depths=\(1,\)"),
        (ConvNeXt(channels=(8,) * 3, depths=(1,) * 3), "takes images of 16 x 16 or more"),
    ],
)
def test_bad_settings_are_sentences(network, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 12, 16, 3)))
