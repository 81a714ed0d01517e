import pytest

from maskdit.networks.dit import DiT, size
from maskdit.networks.maskdit import MaskDiT
from maskdit.performance.peaks import CHIPS, chip, mfu

LATENT = {"input_size": 32, "channels": 4, "classes": {"label": 1000}}


@pytest.mark.parametrize(
    ("kind", "keep", "bound"),
    [("NVIDIA H200", None, 1390), ("TPU v5 lite", None, 277), ("TPU v6 lite", None, 1290), ("TPU v5", 128, 1169)],
)
def test_a_peak_used_wholly_gives_the_known_bounds_of_xl(kind, keep, bound):
    make = DiT if keep is None else MaskDiT
    more = {"learned_variance": True} if keep is None else {}
    network = make(**LATENT, **size("XL/2"), **more)
    assert mfu(bound, network.macs(keep), CHIPS[kind].flops) == pytest.approx(1.0, rel=5e-3)


def test_chips_have_the_names_that_jax_reports():
    assert chip("TPU v5 lite") == chip("TPU v5e") != chip("TPU v5p") == chip("TPU v5")
    assert chip("cpu") is None
    assert all(chip.memory < 200 and 1e14 < chip.flops < 1e16 for chip in CHIPS.values())  # GiB and FLOP/s
