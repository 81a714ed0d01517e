"""Vector quantization by gradient; its numbers are held against published code by the golden cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.draw import Draw
from maskdit.tokenizers.quantize.distance import normalised
from maskdit.tokenizers.quantize.vq import VQ

SHAPE = (4, 3, 2, 5)


def features(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def start(quantizer, z, seed=0):
    return quantizer.init(jax.random.key(seed), z)


@pytest.mark.parametrize("l2", [False, True])
def test_the_nearest_code_is_taken_and_looked_up(l2):
    z, quantizer = features(), VQ(12, 5, l2=l2)
    variables = {"params": {"codebook": features((12, 5), seed=1)}}
    out = quantizer.apply(variables, z)
    codes = np.asarray(quantizer.apply(variables, method="codebook"))
    given = z / np.linalg.norm(z, axis=-1, keepdims=True) if l2 else z
    far = np.linalg.norm(given[..., None, :] - codes, axis=-1)  # [B, h, w, V]
    np.testing.assert_array_equal(out.ids, far.argmin(-1))
    assert out.ids.shape == SHAPE[:-1] and out.ids.dtype == jnp.int32
    np.testing.assert_allclose(out.values, quantizer.apply(variables, out.ids, method="look_up"), atol=1e-6)
    np.testing.assert_allclose(out.aux["z"], given, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(codes, axis=-1), 1 if l2 else np.linalg.norm(codes, axis=-1), atol=1e-6)


def test_the_gradient_of_the_values_passes_straight_through():
    z, g, quantizer = features(), features(seed=1), VQ(7, 5)
    variables = start(quantizer, z)
    back = jax.grad(lambda z: jnp.sum(g * quantizer.apply(variables, z).values))(z)
    np.testing.assert_array_equal(back, g)


def test_losses_belong_to_examples_and_pull_either_side():
    z, quantizer = features(), VQ(7, 5, commitment=0.5, codebook_weight=2.0)
    variables = {"params": {"codebook": features((7, 5), seed=1)}}
    out = quantizer.apply(variables, z)
    square = np.square(variables["params"]["codebook"][np.asarray(out.ids)] - z).mean((1, 2, 3))
    np.testing.assert_allclose(out.losses["commitment"], 0.5 * square, rtol=1e-5)
    np.testing.assert_allclose(out.losses["codebook"], 2.0 * square, rtol=1e-5)

    def loss(name, variables, z):
        return quantizer.apply(variables, z).losses[name].sum()

    for name, moves_z in (("commitment", True), ("codebook", False)):
        by_codes, by_z = jax.grad(loss, (1, 2))(name, variables, z)
        assert bool(jnp.any(by_z != 0)) == moves_z
        assert bool(jnp.any(by_codes["params"]["codebook"] != 0)) == (not moves_z)


def test_the_entropy_loss_is_least_where_sure_codes_are_spread():
    codes = np.eye(4, dtype=np.float32)
    quantizer, variables = VQ(4, 4, entropy=1.0, entropy_temperature=0.1), {"params": {"codebook": codes}}

    def entropy(z):
        return float(quantizer.apply(variables, z[None]).losses["entropy"])

    spread, one, unsure = entropy(codes), entropy(codes[[0, 0, 0, 0]]), entropy(np.zeros((4, 4), np.float32))
    assert spread == pytest.approx(-np.log(4), abs=1e-3)
    assert one == pytest.approx(0, abs=1e-3) and unsure == pytest.approx(0, abs=1e-3)


def test_a_zero_vector_is_normalised_with_a_finite_gradient():
    x = jnp.asarray([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(normalised(x), [[0, 0], [0.6, 0.8]], atol=1e-7)
    assert np.isfinite(jax.grad(lambda x: normalised(x).sum())(x)).all()


def test_soft_ids_give_the_mean_code():
    quantizer, codes = VQ(3, 2, l2=True), np.asarray([[2, 0], [0, 4], [1, 1]], np.float32)
    weights = np.asarray([[1, 0, 0], [0.5, 0.5, 0]], np.float32)
    mean = quantizer.apply({"params": {"codebook": codes}}, weights, method="look_up")
    np.testing.assert_allclose(mean, [[1, 0], [1 / 5**0.5, 2 / 5**0.5]], atol=1e-6)


def train(quantizer, variables, z, steps):
    """Gradient descent on the codebook with the quantizer's own losses; the ids in use at the end."""

    @jax.jit
    def step(variables, draw):
        def loss(params):
            out, state = quantizer.apply({**variables, "params": params}, z, draw=draw, train=True, mutable=["state"])
            return sum(jnp.mean(term) for term in out.losses.values()), state

        grads, state = jax.grad(loss, has_aux=True)(variables["params"])
        moved = jax.tree.map(lambda p, g: p - 0.05 * jnp.sign(g), variables["params"], grads)
        return {**variables, **state, "params": moved}

    for i in range(steps):
        variables = step(variables, Draw(0).at(i).at(jnp.arange(z.shape[0])))
    return len(np.unique(quantizer.apply(variables, z).ids))


def test_revival_pulls_unused_codes_back():
    z = features((8, 16, 2))
    codes = np.concatenate([features((2, 2)), 50 + features((14, 2))])  # fourteen that nothing is near to
    plain, revived = VQ(16, 2), VQ(16, 2, revive=5, revive_weight=1.0)
    far = {"params": {"codebook": codes / 10}, "state": {"idle": jnp.zeros(16, jnp.int32)}}
    assert train(plain, {"params": far["params"]}, z, 150) == 2
    assert train(revived, far, z, 150) >= 12


def test_idle_counts_training_calls_only_and_resets_on_use():
    z, quantizer = np.asarray([[[0.0, 0.1]]], np.float32), VQ(2, 2, revive=3)
    variables = {"params": {"codebook": np.asarray([[0, 0], [9, 9]], np.float32)}}
    variables["state"] = {"idle": jnp.asarray([4, 4], jnp.int32)}
    _, state = quantizer.apply(variables, z, train=True, mutable=["state"])
    np.testing.assert_array_equal(state["state"]["idle"], [0, 5])
    _, state = quantizer.apply(variables, z, mutable=["state"])
    np.testing.assert_array_equal(state["state"]["idle"], [4, 4])
    out = quantizer.apply(variables, z, train=True, draw=Draw(0))  # immutable: evaluated as in training
    assert out.losses["revival"] > 0
    bare = quantizer.apply({"params": variables["params"]}, z)  # a stored model has no state
    np.testing.assert_array_equal(bare.ids, out.ids)
