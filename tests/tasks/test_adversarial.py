"""The adversarial losses against closed forms, on a discriminator that is one inner product."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.layers.linear import Linear
from maskdit.networks.discriminators import StyleDiscriminator
from maskdit.tasks.adversarial import Adversarial, last_layer_gradients

RNG = np.random.default_rng(0)


class Inner(nn.Module):
    """`<w, x> + b`, `[B, 1]`."""

    @nn.compact
    def __call__(self, x):
        return Linear(1, name="inner")(x.reshape(len(x), -1))


REAL, FAKE = (RNG.normal(size=(3, 2, 2, 3)).astype(np.float32) for _ in range(2))
KERNEL, BIAS = RNG.normal(size=(12, 1)).astype(np.float32), np.asarray([0.3], np.float32)
PARAMS = {"inner": {"kernel": KERNEL, "bias": BIAS}}
R, F = (x.reshape(3, -1) @ KERNEL[:, 0] + BIAS for x in (REAL, FAKE))
STATE = {"real": jnp.float32(0.7), "fake": jnp.float32(-0.4)}


def part(**fields):
    return Adversarial(Inner(), **fields)


def softplus(x):
    return np.log1p(np.exp(x))


def test_hinge():
    value, terms, metrics, _ = part().discriminator_loss(PARAMS, REAL, FAKE, STATE, 0)
    np.testing.assert_allclose(value, (np.maximum(1 - R, 0) + np.maximum(1 + F, 0)) / 2, rtol=1e-5)
    assert terms == {} and metrics.keys() == {"logits_real", "logits_fake"}
    np.testing.assert_allclose(metrics["logits_real"], R, rtol=1e-5)
    np.testing.assert_allclose(part().generator(part().apply(PARAMS, FAKE)), -F, rtol=1e-5)


def test_non_saturating():
    given = part(loss="non-saturating", factor=3.0)
    value = given.discriminator_loss(PARAMS, REAL, FAKE, STATE, 0)[0]
    np.testing.assert_allclose(value, 3 * (softplus(-R) + softplus(F)) / 2, rtol=1e-5)
    np.testing.assert_allclose(given.generator(given.apply(PARAMS, FAKE)), softplus(-F), rtol=1e-5)


def test_losses_are_means_over_patches():
    logits = RNG.normal(size=(2, 4, 5, 1)).astype(np.float32)
    np.testing.assert_allclose(part().generator(logits), -logits.mean((1, 2, 3)), rtol=1e-5)
    given = part(loss="non-saturating").generator(logits)
    np.testing.assert_allclose(given, softplus(-logits).mean((1, 2, 3)), rtol=1e-5)


def test_both_sides_begin_at_the_start_step():
    given = part(start=5, weight=0.2, factor=2.0, r1=1.0, lecam=0.5)
    calls = [given.discriminator_loss(PARAMS, REAL, FAKE, STATE, jnp.int32(step)) for step in (4, 5)]
    assert not calls[0][0].any() and calls[1][0].all()
    assert calls[0][1]["lecam"] == calls[1][1]["lecam"] > 0, "the regulariser counts before the start too"
    assert given.generator_weight(4, 3.0) == 0
    np.testing.assert_allclose(given.generator_weight(5, 3.0), 1.2, rtol=1e-6)


def test_lecam_uses_the_means_before_the_step():
    given, state = part(lecam=0.5, lecam_decay=0.9), STATE
    real, fake = 0.7, -0.4
    for images in (REAL, REAL + 1):
        r = (images.reshape(3, -1) @ KERNEL[:, 0] + BIAS).mean()
        _, terms, _, state = given.discriminator_loss(PARAMS, images, FAKE, state, 0)
        wanted = 0.5 * (max(r - fake, 0) ** 2 + max(real - F.mean(), 0) ** 2)
        np.testing.assert_allclose(terms["lecam"], wanted, rtol=1e-4)
        real, fake = 0.9 * real + 0.1 * r, 0.9 * fake + 0.1 * F.mean()
        np.testing.assert_allclose([state["real"], state["fake"]], [real, fake], rtol=1e-5)
    assert jax.tree.map(jnp.shape, given.init_state()) == jax.tree.map(jnp.shape, state)
    _, terms, _, after = part(lecam=0.0, lecam_decay=0.9).discriminator_loss(PARAMS, REAL, FAKE, state, 0)
    assert not terms and after == state, "means move only where the regulariser reads them"


def test_gradient_penalty_of_an_inner_product_is_its_squared_norm():
    """Its gradient is known as well: gamma times the weights."""
    given, plain = part(r1=4.0), part()

    def penalty(params):
        value, _, metrics, _ = given.discriminator_loss(params, REAL, FAKE, STATE, 0)
        extra = value - plain.discriminator_loss(params, REAL, FAKE, STATE, 0)[0]
        return extra.mean(), (extra, metrics["r1"])

    slope, (extra, logged) = jax.grad(penalty, has_aux=True)(PARAMS)
    np.testing.assert_allclose(logged, np.full(3, 2 * np.square(KERNEL).sum()), rtol=1e-5)
    np.testing.assert_allclose(extra, logged, rtol=1e-4)
    np.testing.assert_allclose(slope["inner"]["kernel"], 4 * KERNEL, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slope["inner"]["bias"], [0.0], atol=1e-6)


def test_gradient_penalty_goes_through_the_layers_of_a_discriminator():
    """Without biases logits are homogeneous in each layer's kernel, so that the penalty's derivative along a kernel is
    twice the penalty (Euler)."""
    network = StyleDiscriminator(size=8, channel_base=32, channel_max=4)
    images = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
    given = Adversarial(network, r1=1e3)
    shapes = nn.unbox(jax.eval_shape(network.init, jax.random.key(0), images))["params"]
    params = jax.tree.map(lambda x: (RNG.normal(size=x.shape) * (x.ndim > 1)).astype(np.float32), shapes)

    def penalty(params):
        return given.discriminator_loss(params, images, images, STATE, 0)[0].sum()

    def without(params):
        return Adversarial(network).discriminator_loss(params, images, images, STATE, 0)[0].sum()

    @jax.jit
    def slopes(params):
        (value, slope), (base, other) = (jax.value_and_grad(f)(params) for f in (penalty, without))
        return value - base, jax.tree.map(jnp.subtract, slope, other)

    value, slope = slopes(params)
    assert value > 1
    for name in ("conv_in", "conv_out", "dense", "logit"):
        along = jnp.vdot(slope[name]["kernel"], params[name]["kernel"])
        np.testing.assert_allclose(along, 2 * value, rtol=2e-3, err_msg=name)


def test_each_side_trains_its_own_parameters_only():
    given = part(r1=1.0, lecam=1.0)

    def judged(params, real, fake):
        value, terms, _, _ = given.discriminator_loss(params, real, fake, STATE, 0)
        return value.sum() + terms["lecam"]

    trained, real, fake = jax.grad(judged, argnums=(0, 1, 2))(PARAMS, REAL, FAKE)
    assert np.any(trained["inner"]["kernel"]) and not np.any(real) and not np.any(fake)

    def made(params, fake):
        return given.generator(given.apply(jax.lax.stop_gradient(params), fake)).sum()

    trained, fake = jax.grad(made, argnums=(0, 1))(PARAMS, FAKE)
    assert not np.any(trained["inner"]["kernel"])
    np.testing.assert_allclose(fake.reshape(3, -1), np.tile(-KERNEL[:, 0], (3, 1)), rtol=1e-5)


def test_adaptive_weight_is_the_ratio_of_norms_at_the_last_kernel():
    features = RNG.normal(size=(2, 4, 4, 5)).astype(np.float32)
    kernel = RNG.normal(size=(5, 3)).astype(np.float32)
    rec, gan = (RNG.normal(size=(2, 4, 4, 3)).astype(np.float32) for _ in range(2))
    norms = last_layer_gradients(lambda k: features @ k, kernel, rec, gan)
    wanted = [np.linalg.norm(np.einsum("bhwc,bhwd->cd", features, d)) for d in (rec, gan)]
    np.testing.assert_allclose(norms, wanted, rtol=1e-5)
    given = part(adaptive=True, adaptive_max=50.0)
    np.testing.assert_allclose(given.adaptive_weight(*norms), wanted[0] / (wanted[1] + 1e-4), rtol=1e-5)
    assert given.adaptive_weight(jnp.float32(1.0), jnp.float32(0.0)) == 50.0
    assert jax.grad(given.adaptive_weight)(jnp.float32(1.0), jnp.float32(1.0)) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "wasserstein"}, "hinge, non-saturating, got 'wasserstein'"),
        ({"weight": -1.0}, "weight must be 0 or more"),
        ({"lecam_decay": 1.5}, "lecam_decay lies in 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        part(**fields)
