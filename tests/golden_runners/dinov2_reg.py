"""DINOv2 with registers: the arrays of the case `dinov2`, and the register tokens."""

from tests.golden_runners.dinov2 import INPUTS, LEFT_OUT, run

__all__ = ["INPUTS", "LEFT_OUT", "run"]
