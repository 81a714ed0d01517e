"""Discriminators: shapes, what they are invariant to, and their pieces against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from maskdit.networks import discriminators
from maskdit.networks.discriminators import BlurDiscriminator, BlurStage, PatchDiscriminator, StyleDiscriminator

RNG = np.random.default_rng(0)
STYLE = StyleDiscriminator(size=8, channel_base=32, channel_max=8, group=2)


def images(count, height, width=None):
    return RNG.uniform(-1, 1, (count, height, width or height, 3)).astype(np.float32)


def made(network, given):
    """Random parameters, biases and scales too."""
    shapes = meta.unbox(jax.eval_shape(network.init, jax.random.key(0), given))
    return jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    ("network", "side", "count"),
    [
        (PatchDiscriminator(), 256, 2_766_529),
        # as published at 256 pixels: 28.9 million
        (StyleDiscriminator(), 256, 28_864_129),
    ],
)
def test_published_sizes(network, side, count):
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("size", [(8, 8), (13, 30), (128, 64), (66, 66)])
def test_blur_discriminator_gives_as_many_logits_for_all_sizes(size):
    network = BlurDiscriminator(channels=4, stages=2, groups=2)
    given = images(1, *size)
    params = made(network, images(1, 16))
    logits = jax.jit(network.apply)(params, given)
    assert logits.shape == (1, 16, 16, 1) and np.ptp(logits) > 0


def test_blur_discriminator_converts_its_input():
    given = images(1, 16)
    ours, plain = (BlurDiscriminator(channels=2, stages=1, groups=1, unit_range=unit) for unit in (True, False))
    params = made(ours, given)
    np.testing.assert_array_equal(ours.apply(params, given), plain.apply(params, (given + 1) / 2))


@pytest.mark.parametrize("n", [1, 5, 16, 20, 32, 40])
def test_pooling_takes_the_largest_of_each_window(n):
    x = RNG.normal(size=(2, n, 3)).astype(np.float32)
    windows = [x[:, i * n // 16 : -(-(i + 1) * n // 16)].max(1) for i in range(16)]
    np.testing.assert_array_equal(discriminators._pooled(jnp.asarray(x), 1, 16), np.stack(windows, 1))


@pytest.mark.parametrize(("kernel", "size"), [(0, 7), (3, 8), (4, 7), (5, 9), (5, 6), (4, 1)])
def test_blurs_are_padded_for_a_kernel_of_four(kernel, size):
    """A stage whose convolution does nothing, against a strided convolution with published zeros."""
    x = RNG.normal(size=(1, size, size, 1)).astype(np.float32)
    row = np.asarray(discriminators.KERNELS[kernel] if kernel else (1, 1), np.float32)
    zeros = max((-(-size // 2) - 1) * 2 + 4 - size, 0) if kernel else 0
    pads = (zeros // 2, zeros - zeros // 2)
    window = jnp.asarray(np.outer(row, row) / row.sum() ** 2)[:, :, None, None]
    wanted = jax.lax.conv_general_dilated(x, window, (2, 2), (pads, pads), dimension_numbers=("NHWC", "HWIO", "NHWC"))
    wanted = (wanted - wanted.mean()) / np.sqrt(wanted.var() + 1e-5)
    middle = np.zeros((3, 3, 1, 1), np.float32)
    middle[1, 1] = 1
    conv = {"kernel": middle, "bias": np.zeros(1)}
    params = {"conv": conv, "norm": {"scale": np.ones(1), "bias": np.zeros(1)}}
    stage = BlurStage(1, kernel, 1, "float32")
    np.testing.assert_allclose(
        stage.apply({"params": params}, x), np.where(wanted < 0, 0.1 * wanted, wanted), atol=1e-5
    )


@pytest.mark.parametrize("norm", ["group", "instance", "none"])
def test_patch_logits_belong_to_one_image_and_patch(norm):
    network, given = PatchDiscriminator(channels=4, layers=1, norm=norm, groups=2), images(2, 16, 20)
    params = made(network, given)
    logits = network.apply(params, given)
    assert logits.shape == (2, 6, 8, 1)
    np.testing.assert_allclose(logits[1:], network.apply(params, given[1:]), atol=1e-5)
    corner = given.copy()
    corner[:, 0, 0] += 1
    changed = np.asarray(network.apply(params, corner) != logits)[..., 0]
    assert changed[:, 0, 0].all() and changed[:, -1, -1].all() == (norm != "none")


def test_style_logits_see_the_group_but_no_further():
    given = images(4, 8)
    params, judge = made(STYLE, given), jax.jit(STYLE.apply)
    logits = judge(params, given)
    assert logits.shape == (4, 1)
    other = given.copy()
    other[3] = other[2]  # a group without deviation
    seen = judge(params, other)
    assert np.asarray(seen != logits)[:, 0].tolist() == [False, False, True, True]
    np.testing.assert_allclose(seen[2:3], jax.jit(STYLE.apply)(params, other[2:3]), rtol=1e-4, atol=1e-4)


def test_style_weights_are_scaled_where_they_are_used():
    """Unit-variance weights keep the size of what goes through."""
    network, given = StyleDiscriminator(size=16, channel_base=1024, channel_max=64), RNG.normal(size=(4, 16, 16, 3))
    params = meta.unbox(jax.jit(network.init)(jax.random.key(0), given))
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1 and leaf.size > 1000]
    assert len(kernels) >= 5 and all(abs(leaf.std() - 1) < 0.1 for leaf in kernels)
    kept = jax.jit(lambda p, x: network.apply(p, x, capture_intermediates=lambda module, _: module.name == "dense"))
    dense = kept(params, given)[1]["intermediates"]["dense"]["__call__"][0]
    assert 0.2 < np.sqrt(np.square(dense).mean()) < 3


@pytest.mark.parametrize(
    ("network", "fields", "message"),
    [
        (PatchDiscriminator, {"norm": "batch"}, "'batch'"),
        (PatchDiscriminator, {"layers": 0}, "layers"),
        (BlurDiscriminator, {"blur": 2}, "blur is one of 0, 3, 4, 5"),
        (BlurDiscriminator, {"stages": 0}, "stages"),
        (StyleDiscriminator, {"size": 48}, "power of two"),
        (StyleDiscriminator, {"group": 0}, "group"),
    ],
)
def test_settings_out_of_range_are_refused(network, fields, message):
    with pytest.raises(ValueError, match=message):
        network(**fields)


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (PatchDiscriminator(), (1, 20, 32, 3), "24 or more"),
        (BlurDiscriminator(), (1, 4, 32, 3), "8 or more"),
        (BlurDiscriminator(), (1, 32, 32, 1), r"W, 3\]"),
        (BlurDiscriminator(blur=5, groups=1, stages=2), (1, 4, 4, 3), "larger images"),
        (STYLE, (1, 16, 16, 3), "8, 8, 3"),
    ],
)
def test_images_that_do_not_fit_are_refused(network, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape))
