import jax
import numpy as np
import pytest

from maskdit.encoders.classifier import ConvClassifier


@pytest.fixture(scope="module")
def net():
    return ConvClassifier(classes={"a": 3, "b": 5}, stem=2, widths=(8, 16), blocks=(0, 1), features=8, groups=4)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def params(net, images):
    return jax.jit(net.init)(jax.random.key(0), images[:1])


def test_an_image_is_judged_alike_in_any_company(net, params, images):
    apply = jax.jit(net.apply)
    alone, together = apply(params, images[1:2]), apply(params, images)
    for name in ("a", "b"):
        np.testing.assert_allclose(alone.logits[name][0], together.logits[name][1], atol=1e-5)
    assert not np.allclose(together.features[0], together.features[1], atol=1e-3)


def test_features_do_not_depend_on_the_labels(net, params, images):
    heads = {name: leaf for name, leaf in params["params"].items() if name != "head_b"}
    less = net.clone(classes={"a": 3}).apply({"params": heads}, images)
    assert less.logits.keys() == {"a"} and less.features.shape == (3, 8)
    assert less.features.min() >= 0
    np.testing.assert_allclose(less.features, net.apply(params, images).features, atol=1e-5)


def test_every_parameter_takes_part(net, params, images):
    def objective(variables):
        said = net.apply(variables, images)
        return sum((logits**2).sum() for logits in said.logits.values())

    grads = jax.jit(jax.grad(objective))(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
