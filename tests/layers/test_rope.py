"""Rotary embeddings of places on a grid."""

import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.layers.rope import axial_angles, rotate


def test_rotated_products_depend_on_the_distance_of_places():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 8))
    angles = axial_angles((4, 5), 8)

    def product(one, two):
        at = [place[0] * 5 + place[1] for place in (one, two)]
        pairs = zip((q, k), at, strict=True)
        turned = [rotate(jnp.asarray(x, jnp.float32)[None, None, None], angles[[i]]) for x, i in pairs]
        return float(jnp.sum(turned[0] * turned[1]))

    assert product((0, 0), (1, 2)) == pytest.approx(product((2, 1), (3, 3)), abs=1e-4)
    assert product((0, 0), (1, 2)) != pytest.approx(product((0, 0), (2, 1)), abs=1e-3)
    assert product((1, 1), (1, 1)) == pytest.approx(float(q @ k), abs=1e-4)


def test_neighbouring_channels_turn_by_the_angles_of_their_head():
    x = jnp.tile(jnp.asarray([1.0, 0.0, 0.0, 1.0], jnp.bfloat16), (1, 1, 2, 1))  # [B, N, H, d]
    angles = jnp.asarray([[[np.pi / 2, np.pi], [0.0, 0.0]]])  # [N, H, d / 2]
    turned = rotate(x, angles)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_allclose(turned[0, 0].astype(jnp.float32), [[0, 1, 0, -1], [1, 0, 0, 1]], atol=1e-6)


def test_heads_that_do_not_cut_into_places_are_refused():
    with pytest.raises(ValueError, match="channels divide by 4, not 6"):
        axial_angles((2, 2), 6)
