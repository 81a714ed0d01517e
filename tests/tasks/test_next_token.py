"""The loss of a causal network over codes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.tasks.next_token import NextToken

PART = NextToken(width=8, depth=2, heads=2)
VALUES = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, 3, 4)), jnp.float32)


@pytest.fixture(scope="module")
def params():
    return nn.meta.unbox(PART.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 2, 3, 4), jnp.float32)))


def test_each_code_is_told_from_those_before_it(params):
    flat = VALUES.reshape(2, 6, 4)
    network = PART.network(4)
    jacobian = jax.jacobian(lambda x: network.apply({"params": params}, x).sum(-1)[0])(flat[:, :-1])[:, 0]
    seen = np.any(np.asarray(jacobian) != 0, axis=-1)  # [told, by]
    np.testing.assert_array_equal(seen, np.tri(5, dtype=bool))


def test_the_loss_is_the_error_of_the_next_code(params):
    """With the last map at a bias alone, every guess is that bias."""
    still = {**params, "out": {"kernel": jnp.zeros((8, 4)), "bias": jnp.full((4,), 0.5)}}
    flat = np.asarray(VALUES).reshape(2, 6, 4)
    np.testing.assert_allclose(PART.loss(still, VALUES), np.square(flat[:, 1:] - 0.5).mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(PART.loss(still, jnp.full_like(VALUES, 0.5)), 0.0, atol=1e-6)
    np.testing.assert_array_equal(PART.loss(params, VALUES), PART.loss(params, VALUES.reshape(2, 6, 4)))


def test_gradients_reach_every_code_and_every_parameter(params):
    by_params, by_values = jax.grad(lambda p, x: PART.loss(p, x).sum(), (0, 1))(params, VALUES)
    assert np.all(np.any(by_values, axis=-1))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(by_params))


def test_faults_are_told():
    with pytest.raises(ValueError, match="width=8, depth=2, heads=3"):
        NextToken(width=8, depth=2, heads=3)
    with pytest.raises(ValueError, match="weight=-1"):
        NextToken(weight=-1)
    with pytest.raises(ValueError, match="two or more"):
        PART.init(jax.random.key(0), jnp.zeros((1, 1, 1, 4)))
