"""Multi-scale residual quantization; the published numbers are held by the golden case of its tokenizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from maskdit.tokenizers.quantize.multiscale import MultiScaleVQ, _area, _cubic

TINY = MultiScaleVQ(codes=16, channels=3, scales=(1, 2, 4), phis=2)


@pytest.fixture(scope="module")
def tiny():
    z = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    variables = meta.unbox(TINY.init(jax.random.key(0), z))
    codes = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)
    variables = {"params": {**variables["params"], "codebook": codes}}
    return variables, z, TINY.apply(variables, z)


def test_sums_inputs_and_steps_are_of_one_piece(tiny):
    variables, _, out = tiny
    assert out.ids.shape == (2, 21) and TINY.tokens == 21
    sums = TINY.apply(variables, out.ids, method="sums")  # [3, B, 4, 4, c]
    np.testing.assert_allclose(out.values, sums[-1], atol=1e-6)
    np.testing.assert_array_equal(TINY.apply(variables, out.ids, method="look_up"), sums[-1])
    inputs = TINY.apply(variables, out.ids, method="next_inputs")
    assert inputs.shape == (2, 20, 3)
    np.testing.assert_allclose(inputs[:, 0], sums[0][:, :2, :2].mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(inputs[:, 4:], sums[1].reshape(2, 16, 3), atol=1e-6)
    total = TINY.apply(variables, 2, method="start")
    for k, (begin, end) in enumerate([(0, 1), (1, 5), (5, 21)]):
        total, following = TINY.apply(variables, total, out.ids[:, begin:end], k, method="accumulate")
        np.testing.assert_allclose(total, sums[k], atol=1e-6)
        assert following.shape == (2, (4, 16, 16)[k], 3)


def test_losses_reach_the_encoder_by_one_term_and_codes_and_convolutions_by_the_other(tiny):
    variables, z, out = tiny
    sums = TINY.apply(variables, out.ids, method="sums")
    square = np.mean([np.square(x - z).mean((1, 2, 3)) for x in sums], axis=0)
    np.testing.assert_allclose(out.losses["codebook"], square, rtol=1e-5)
    np.testing.assert_allclose(out.losses["commitment"], 0.25 * square, rtol=1e-5)

    def loss(params, z, name):
        return TINY.apply({"params": params}, z).losses[name].sum()

    for name, moves_z in (("commitment", True), ("codebook", False)):
        by_params, by_z = jax.grad(loss, (0, 1))(variables["params"], z, name)
        assert bool(jnp.any(by_z != 0)) == moves_z
        assert all(bool(jnp.any(leaf != 0)) != moves_z for leaf in jax.tree.leaves(by_params))


def test_the_gradient_of_the_values_passes_straight_through(tiny):
    variables, z, _ = tiny
    g = np.random.default_rng(2).normal(size=z.shape).astype(np.float32)
    back = jax.grad(lambda z: jnp.sum(g * TINY.apply(variables, z).values))(z)
    np.testing.assert_array_equal(back, g)


def test_convolutions_of_published_scales():
    assert MultiScaleVQ().phi_index() == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
    assert MultiScaleVQ(scales=(1, 2, 3), phis=3).phi_index() == (0, 1, 2)
    assert MultiScaleVQ(scales=(1, 2, 3), phis=1).phi_index() == (0, 0, 0)
    assert MultiScaleVQ(scales=(4,)).phi_index() == (0,)


def test_convolutions_that_no_scale_takes_have_parameters():
    module = MultiScaleVQ(codes=16, channels=3, scales=(1, 2, 4), phis=4)
    assert set(module.phi_index()) == {0, 2, 3}
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
    assert params.keys() == {"codebook", "phi_0", "phi_1", "phi_2", "phi_3"}


def test_without_a_residual_share_there_are_no_convolutions():
    quantizer = TINY.clone(residual=0.0)
    assert set(quantizer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]) == {"codebook"}


def test_cosine_search_does_not_see_lengths():
    quantizer = MultiScaleVQ(codes=2, channels=2, scales=(1,), residual=0.0, cosine=True)
    variables = {"params": {"codebook": np.asarray([[0.1, 0.0], [3.0, 3.0]], np.float32)}}
    out = quantizer.apply(variables, jnp.asarray([4.0, 0.5]).reshape(1, 1, 1, 2))
    assert int(out.ids[0, 0]) == 0
    np.testing.assert_allclose(out.values.reshape(2), [0.1, 0.0], atol=1e-6)


def test_areas_overlap_where_sides_do_not_divide():
    np.testing.assert_allclose(_area(5, 2), [[1 / 3, 1 / 3, 1 / 3, 0, 0], [0, 0, 1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(_area(6, 3) @ np.arange(6), [0.5, 2.5, 4.5])


def test_bicubic_keeps_constants_and_lines_inside():
    weights = _cubic(8, 16)
    np.testing.assert_allclose(weights.sum(1), 1)
    # a quarter past place 3: Keys' kernel with -0.75 at 1.25, 0.25, 0.75 and 1.75
    np.testing.assert_allclose(weights[7, 2:6], [-0.10546875, 0.87890625, 0.26171875, -0.03515625], atol=1e-12)
    np.testing.assert_array_equal(_cubic(1, 3), np.ones((3, 1)))


def test_other_sides_and_counts_are_refused(tiny):
    variables, z, out = tiny
    with pytest.raises(ValueError, match="last scale is 4"):
        TINY.apply(variables, z[:, :3, :3])
    with pytest.raises(ValueError, match="21 ids, not 20"):
        TINY.apply(variables, out.ids[:, :20], method="look_up")
    with pytest.raises(ValueError, match="growing sides"):
        MultiScaleVQ(scales=(4, 2)).init(jax.random.key(0), z)
