"""TiTok's discriminator: published arguments both ways, and files of its training."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from maskdit.config import build
from maskdit.interop import discriminator, layouts
from maskdit.interop.rules import LayoutError
from maskdit.interop.state_file import open_state
from maskdit.networks.discriminators import BlurDiscriminator

CONFIG = {
    "num_channels": 3,
    "hidden_channels": 32,
    "num_stages": 2,
    "blur_resample": True,
    "blur_kernel_size": 5,
}


@pytest.mark.parametrize(
    "change", [{}, {"blur_kernel_size": 3, "num_stages": 11}, {"blur_resample": False, "blur_kernel_size": 4}]
)
def test_published_arguments_both_ways(change):
    config = {"discriminator": CONFIG | change}
    assert discriminator.to_reference(build(discriminator.from_reference(config))) == config


def test_defaults_are_the_published_ones():
    assert build(discriminator.from_reference({"discriminator": {}})) == BlurDiscriminator()


@pytest.mark.parametrize(("fields", "message"), [({"groups": 8}, "8 groups"), ({"unit_range": False}, "unit_range")])
def test_variants_of_ours_are_refused(fields, message):
    with pytest.raises(LayoutError, match=message):
        discriminator.to_reference(BlurDiscriminator(**fields))


def test_other_blurs_are_refused():
    with pytest.raises(LayoutError, match="blur_kernel_size=7"):
        discriminator.from_reference({"discriminator": CONFIG | {"blur_kernel_size": 7}})


@pytest.mark.parametrize("blur", [0, 3])
def test_a_file_of_the_losses_is_read(blur, tmp_path):
    network = BlurDiscriminator(channels=32, stages=2, blur=blur)
    shapes, rng = layouts.parameter_shapes(network), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    state = layouts.write(network, params)
    assert ("blocks.1.1.kernel" in state) == (blur > 0)
    path = tmp_path / "losses.safetensors"
    below = {f"discriminator.{name}": np.ascontiguousarray(tensor) for name, tensor in state.items()}
    save_file(below | {"ema_real_logits_mean": np.zeros(1, np.float32)}, path)
    jax.tree.map(np.testing.assert_array_equal, layouts.read(network, shapes, open_state(path))[0], params)
    if blur:  # a file of another blur has the same parameters
        with pytest.raises(ValueError, match=r"blocks\.0\.1\.kernel"):
            layouts.read(dataclasses.replace(network, blur=4), shapes, open_state(path))
