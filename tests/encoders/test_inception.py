"""What the FID's Inception must give whatever its weights are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.encoders import inception
from maskdit.encoders.inception import ConvNorm, InceptionV3, Layer, Mixed
from maskdit.interop.layouts import parameter_shapes


@pytest.fixture(scope="module")
def variables():
    """The shapes of the whole network's."""
    return {"params": parameter_shapes(InceptionV3())}


def test_half_precision_is_near_and_comes_out_whole(variables):
    branches = ((Layer("a", 6), (Layer("b", 4, (3, 1)), Layer("c", 4, (1, 3)))), (inception._mean, Layer("d", 4)))
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 8))
    block = jax.jit(Mixed(branches, 1e-3, "float32").init)(jax.random.key(1), x)
    made = {dtype: jax.jit(Mixed(branches, 1e-3, dtype).apply)(block, x) for dtype in ("float32", "bfloat16")}
    assert made["bfloat16"].dtype == jnp.bfloat16
    assert 1e-4 < jnp.linalg.norm(made["bfloat16"] - made["float32"]) / jnp.linalg.norm(made["float32"]) < 0.02
    features = jax.eval_shape(InceptionV3(dtype="bfloat16").apply, variables, jnp.zeros((1, 299, 299, 3)))
    assert {leaf.dtype for leaf in jax.tree.leaves(features)} == {np.dtype(np.float32)}
    assert [leaf.shape for leaf in jax.tree.leaves(features)] == [(1, 2048), (1, 2023), (1, 1008)]


def test_averages_leave_padding_out_and_the_largest_may_be_negative():
    ramp = jnp.broadcast_to(jnp.arange(5.0)[None, :, None, None], (1, 5, 5, 2)) - 9
    np.testing.assert_allclose(inception._mean(ramp)[0, :, 0, 0], [-8.5, -8, -7, -6, -5.5])
    np.testing.assert_allclose(inception._largest(ramp)[0, :, 0, 0], [-8, -7, -6, -5, -5])
    np.testing.assert_allclose(inception._halved(ramp)[0, :, :, 0], [[-7, -7], [-5, -5]])


def test_stored_statistics_norm_what_the_convolution_gives():
    x = jax.random.normal(jax.random.key(0), (1, 3, 3, 4))
    layer = ConvNorm(Layer("any", 5), epsilon=0.25, dtype="float32")
    stats = {"scale": jnp.full(5, 3.0), "bias": jnp.arange(5.0), "mean": jnp.full(5, 0.5), "variance": jnp.full(5, 2.0)}
    kernel = jax.random.normal(jax.random.key(1), (1, 1, 4, 5))
    expected = ((x @ kernel[0, 0]) - 0.5) / np.sqrt(2.25) * 3 + np.arange(5.0)
    made = layer.apply({"params": {**stats, "kernel": kernel}}, x)
    np.testing.assert_allclose(made, np.maximum(expected, 0), rtol=1e-5, atol=1e-5)


def test_forks_see_one_map_and_windows_keep_its_size():
    branches = ((Layer("a", 2, (1, 3)), (Layer("b", 3, (3, 1)), Layer("c", 4, (7, 1)))), (inception._mean,))
    block, x = Mixed(branches, 1e-3, "float32"), jnp.ones((1, 6, 8, 5))
    shapes = jax.eval_shape(block.init, jax.random.key(0), x)
    assert shapes["params"]["b"]["kernel"].shape == (3, 1, 2, 3) and shapes["params"]["c"]["kernel"].shape[2] == 2
    assert jax.eval_shape(block.apply, shapes, x).shape == (1, 6, 8, 3 + 4 + 5)


def test_every_tool_has_its_own_range():
    rules = InceptionV3(size=3).PREPROCESSING
    assert next(iter(rules)) == "tf1-bilinear"
    black_white = np.stack([np.zeros((5, 7, 3), np.uint8), np.full((5, 7, 3), 255, np.uint8)])
    for rule, white in (("tf1-bilinear", 127 / 128), ("torch-bilinear", 1.0), ("clean", 127 / 128)):
        seen = np.asarray(rules[rule](black_white))
        assert seen.shape == (2, 3, 3, 3)
        np.testing.assert_allclose(seen[0], -1, atol=1e-6)
        np.testing.assert_allclose(seen[1], white, atol=1e-6)


def test_images_that_do_not_reach_the_last_block(variables):
    with pytest.raises(ValueError, match=r"75 x 75 or more, got \[1, 74, 99, 3\]"):
        jax.eval_shape(InceptionV3().apply, variables, jnp.zeros((1, 74, 99, 3)))
    smallest = jax.eval_shape(InceptionV3().apply, variables, jnp.zeros((1, 75, 75, 3)))
    assert smallest.spatial.shape == (1, 3 * 3 * 7) and smallest.pooled.shape == (1, 2048)
