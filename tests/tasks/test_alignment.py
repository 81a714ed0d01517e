"""The losses between latents and features of a frozen encoder."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.tasks.alignment import FeatureAlignment


class Patches(nn.Module):
    """An encoder of means over patches, times a parameter; as a map, as tokens, and as several maps."""

    patch: int = 2

    @nn.compact
    def features(self, images):
        gain = self.param("gain", nn.initializers.ones_init(), (3,))
        return nn.avg_pool(images, (self.patch,) * 2, (self.patch,) * 2) * gain

    def tokens(self, images):
        found = self.features(images)
        return found.reshape(found.shape[0], -1, 3)

    def maps(self, images):
        found = self.features(images)
        return found + 1, found

    def pooled(self, images):
        return self.features(images).mean((1, 2))


VARIABLES = {"params": {"gain": np.asarray([1.0, 2.0, 3.0], np.float32)}}
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)


def identity(params):
    return {"projection": {"kernel": jnp.eye(*np.shape(nn.meta.unbox(params)["projection"]["kernel"]))}}


def test_nothing_is_left_where_latents_are_the_features():
    alignment = FeatureAlignment(encoder=Patches(), cosine_margin=0.0, distance_margin=0.0)
    features = alignment.features(VARIABLES, IMAGES)
    params = identity(alignment.init(jax.random.key(0), IMAGES[:1], jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)))
    value, parts = alignment.loss(params, features, 7.0 * features)  # cosines do not see lengths
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    assert value.shape == (2,) and all(part.shape == (2,) for part in parts.values())


def test_both_losses_by_hand():
    """Two positions: latents at right angles, features along the first axis; cosines with them are 1 and 0."""
    z = jnp.asarray([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 1, 2, 2)
    features = jnp.asarray([[2.0, 0.0], [5.0, 0.0]]).reshape(1, 1, 2, 2)
    alignment = FeatureAlignment(encoder=None, cosine_margin=0.4, distance_margin=0.1, distance_weight=3.0)
    value, parts = alignment.loss({"projection": {"kernel": jnp.eye(2)}}, features, z)
    np.testing.assert_allclose(parts["alignment_cosine"], (0.0 + 0.6) / 2, rtol=1e-6)
    np.testing.assert_allclose(parts["alignment_distance"], 2 * (1 - 0.1) / 4, rtol=1e-6)  # off the diagonal
    np.testing.assert_allclose(value, 0.3 + 3 * 0.45, rtol=1e-6)


def test_within_the_margins_nothing_pulls():
    def pull(margin):
        alignment = FeatureAlignment(encoder=None, cosine_margin=margin, distance_margin=margin)
        rng = np.random.default_rng(1)
        features, z = rng.standard_normal((2, 2, 3, 4)), rng.standard_normal((2, 2, 3, 4))
        params = {"projection": {"kernel": jnp.eye(4)}}
        return jax.grad(lambda z: alignment.loss(params, jnp.asarray(features), z)[0].sum())(jnp.asarray(z))

    assert not np.any(pull(2.0)) and np.all(np.any(pull(0.1), axis=-1))


def test_the_map_is_trained_and_the_encoder_is_not():
    alignment = FeatureAlignment(encoder=Patches())
    z = jnp.asarray(np.random.default_rng(2).standard_normal((2, 4, 4, 5)), jnp.float32)
    params = nn.meta.unbox(alignment.init(jax.random.key(0), IMAGES[:1], z[:1]))
    assert params["projection"]["kernel"].shape == (5, 3)

    def loss(params, variables, images):
        return alignment.loss(params, alignment.features(variables, images), z)[0].sum()

    trained, encoder, images = jax.grad(loss, (0, 1, 2))(params, VARIABLES, jnp.asarray(IMAGES))
    assert np.any(trained["projection"]["kernel"])
    assert not np.any(encoder["params"]["gain"]) and not np.any(images)


def test_grids_that_differ_are_brought_together():
    """Features of another grid are interpolated: those of a linear ramp stay one, away from the border."""
    ramp = np.broadcast_to(np.linspace(1, 2, 8, dtype=np.float32)[None, :, None, None], (1, 8, 8, 3))
    coarse = FeatureAlignment(encoder=Patches()).features(VARIABLES, ramp)
    assert coarse.shape == (1, 4, 4, 3)
    resized = FeatureAlignment(encoder=Patches(), size=16).features(VARIABLES, ramp)
    assert resized.shape == (1, 8, 8, 3)
    alignment = FeatureAlignment(encoder=None, cosine_margin=0.0, distance_margin=0.0)
    value, _ = alignment.loss({"projection": {"kernel": jnp.eye(3)}}, coarse, resized)
    assert value[0] < 1e-3
    np.testing.assert_allclose(
        jax.image.resize(coarse, (1, 8, 8, 3), "bilinear", antialias=False)[:, 2:-2], resized[:, 2:-2], atol=1e-5
    )


@pytest.mark.parametrize("method", ["tokens", "maps"])
def test_features_come_as_tokens_or_as_several_maps(method):
    expected = FeatureAlignment(encoder=Patches()).features(VARIABLES, IMAGES)
    found = FeatureAlignment(encoder=Patches(), method=method).features(VARIABLES, IMAGES)
    np.testing.assert_array_equal(found, expected)


def test_faults_are_told():
    with pytest.raises(ValueError, match=r"square grid, got \[1, 3\]"):
        FeatureAlignment(encoder=Patches(), method="pooled").init(
            jax.random.key(0), IMAGES[:1], jnp.zeros((1, 4, 4, 2))
        )
    with pytest.raises(ValueError, match=r"square grid, got \[1, 7, 2\]"):
        FeatureAlignment(encoder=Patches()).init(jax.random.key(0), IMAGES[:1], jnp.zeros((1, 7, 2)))
    with pytest.raises(ValueError, match="weight=-1"):
        FeatureAlignment(encoder=None, weight=-1)
    with pytest.raises(ValueError, match="cosine_margin=3"):
        FeatureAlignment(encoder=None, cosine_margin=3)


def test_adaptive_weight_is_a_ratio_without_gradient():
    alignment = FeatureAlignment(encoder=None, adaptive_max=10.0)
    assert float(alignment.adaptive_weight(jnp.asarray(3.0), jnp.asarray(2.0))) == pytest.approx(1.5, rel=1e-3)
    assert float(alignment.adaptive_weight(jnp.asarray(3.0), jnp.asarray(0.0))) == 10.0
    assert float(jax.grad(lambda x: alignment.adaptive_weight(x, 2.0))(3.0)) == 0.0
