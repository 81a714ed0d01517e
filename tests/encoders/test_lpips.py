"""What LPIPS must give whatever its weights are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.encoders.lpips import LPIPS
from maskdit.training.mesh import unboxed

SMALL = {"vgg16": (4, 4, 6, 6, 6), "alexnet": (4, 6, 6, 4, 4), "squeezenet": (8, 8, 16, 16, 16, 16, 16)}


def pair(side=32):
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (2, 3, side, side, 3)).astype(np.float32)


@pytest.fixture(scope="module", params=SMALL)
def small(request):
    network = LPIPS(trunk=request.param, channels=SMALL[request.param])
    return network, unboxed(jax.jit(network.init)(jax.random.key(0), pair()[0]))


def test_a_distance(small):
    network, variables = small
    images, others = pair()
    maps = jax.jit(lambda *x: network.apply(variables, *x, method="maps"))
    ways = {name: [np.asarray(layer) for layer in maps(*x)] for name, x in {"ab": pair(), "ba": pair()[::-1]}.items()}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), ways["ab"], ways["ba"])
    assert len(ways["ab"]) == len(SMALL[network.trunk])
    for layer in ways["ab"]:
        # activities are not negative: unit vectors of them are at most a right angle apart, and weights begin at one
        assert layer.min() >= 0 and layer.max() <= 2 + 1e-5
    distance = jax.jit(network.apply)
    assert not np.asarray(distance(variables, images)).any()
    total = sum(layer.mean((1, 2)) for layer in ways["ab"])
    assert total.min() > 0.01
    np.testing.assert_allclose(distance(variables, images, others), total, rtol=1e-5)


def test_the_weights_of_channels_are_factors(small):
    network, variables = small
    params = {k: jax.tree.map(lambda x: 3 * x, v) if k.startswith("lin") else v for k, v in variables["params"].items()}
    distance = jax.jit(network.apply)
    once, thrice = (np.asarray(distance(given, *pair())) for given in (variables, {"params": params}))
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-5)


def test_a_dead_layer_has_a_gradient():
    """Where no channel is active the length is 0, and its root has no slope."""
    network = LPIPS(channels=SMALL["vgg16"])
    images, others = pair(16)
    variables = unboxed(jax.jit(network.init)(jax.random.key(0), images))
    bias = variables["params"]["net"]["conv_3_0"]["bias"]
    variables["params"]["net"]["conv_3_0"]["bias"] = jnp.full_like(bias, -1e3)
    gradient = jax.jit(jax.grad(lambda x: network.apply(variables, images, x).sum()))(others)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


@pytest.mark.parametrize(
    ("settings", "side", "message"),
    [
        ({"trunk": "resnet"}, 32, "no trunk 'resnet': use one of vgg16, alexnet, squeezenet"),
        ({"channels": (4, 4)}, 32, r"vgg16 has 5 layers, got channels=\(4, 4\)"),
        ({}, 15, "vgg16 takes images of 16 x 16 or more"),
        ({"trunk": "alexnet"}, 30, "alexnet takes images of 31 x 31 or more"),
        ({"trunk": "squeezenet"}, 16, "squeezenet takes images of 17 x 17 or more"),
    ],
)
def test_bad_settings_are_sentences(settings, side, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(LPIPS(**settings).init, jax.random.key(0), jnp.zeros((1, side, side, 3)))


@pytest.mark.parametrize(("trunk", "side"), [("vgg16", 16), ("alexnet", 31), ("squeezenet", 17)])
def test_the_smallest_image_reaches_every_layer(trunk, side):
    network = LPIPS(trunk=trunk, channels=SMALL[trunk])
    shapes = jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x, method="maps")[0], pair(side)[0])
    assert all(min(shape.shape) >= 1 for shape in shapes)
