import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from maskdit.layers.embed import LabelEmbed, sincos_2d, time_features
from maskdit.layers.patch import gather_tokens, patchify, removed, scatter_tokens, unpatchify


def test_places_encode_the_column_first():
    table = sincos_2d(8, (2, 3))
    assert table.shape == (6, 8)
    np.testing.assert_allclose(table[5], [*half(2), *half(1)], rtol=1e-6)


def test_places_stretched_over_a_finer_grid_pass_through_the_old_ones():
    old, new = sincos_2d(8, (2, 2)).reshape(2, 2, 8), sincos_2d(8, (4, 4), span=2).reshape(4, 4, 8)
    np.testing.assert_allclose(new[::2, ::2], old, atol=1e-7)
    np.testing.assert_allclose(new[0, 1], [*half(0.5), *half(0)], rtol=1e-6)  # half-way to the next column


def half(index: float) -> list[float]:
    return [np.sin(index), np.sin(index / 100), np.cos(index), np.cos(index / 100)]


def test_places_need_a_width_that_divides():
    with pytest.raises(ValueError, match="divides by 4, not 6"):
        sincos_2d(6, (2, 2))


def test_time_features_are_cosines_then_sines():
    t = jnp.asarray([0.0, 3.0])
    wanted = [[1, 1, 0, 0], [np.cos(3), np.cos(0.03), np.sin(3), np.sin(0.03)]]
    np.testing.assert_allclose(time_features(t, 4), wanted, atol=1e-6)


@pytest.mark.parametrize("null_row", (True, False))
def test_labels_add_up(null_row):
    module = LabelEmbed({"a": 2, "b": 3}, 4, null_row)
    labels = {"a": jnp.asarray([0, 2]), "b": jnp.asarray([1, 3])}
    params = meta.unbox(module.init(jax.random.key(0), labels))["params"]
    assert params["a"].shape == (2 + null_row, 4)
    out = module.apply({"params": params}, labels)
    np.testing.assert_allclose(out[0], params["a"][0] + params["b"][1], rtol=1e-6)
    null = params["a"][2] + params["b"][3] if null_row else jnp.zeros(4)
    np.testing.assert_allclose(out[1], null, rtol=1e-6)


def test_patches_are_row_major_with_channels_fastest():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    patches = patchify(x, 2)
    assert patches.shape == (2, 6, 12)
    np.testing.assert_array_equal(patches[1, 4], np.asarray(x)[1, 2:4, 2:4].reshape(-1))
    np.testing.assert_array_equal(unpatchify(patches, (2, 3), 2), x)


def test_scatter_undoes_gather():
    tokens = jnp.arange(2 * 4 * 3.0).reshape(2, 4, 3)
    keep = jnp.asarray([[2, 0], [1, 3]])
    kept = gather_tokens(tokens, keep)
    np.testing.assert_array_equal(kept[0], tokens[0, jnp.asarray([2, 0])])
    back = scatter_tokens(kept, keep, jnp.full_like(tokens, -1))
    gone = removed(keep, 4)
    np.testing.assert_array_equal(gone, [[0, 1, 0, 1], [1, 0, 1, 0]])
    np.testing.assert_array_equal(back, np.where(gone[..., None] == 1, -1, tokens))
