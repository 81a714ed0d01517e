"""TA-TiTok with the bottleneck of a KL autoencoder: TiTok whose decoder reads a text."""

from maskdit.contracts import Cond
from tests.golden_runners.titok_vae import run_with

INPUTS = ("image", "noise", "text_guidance")
LEFT_OUT: dict[str, str] = {}


def run(case):
    return run_with(case, Cond(text=case.arrays["text_guidance"]), file="torch")
