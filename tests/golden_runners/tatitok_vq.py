"""TA-TiTok with a codebook: TiTok whose decoder reads a text."""

from maskdit.contracts import Cond
from tests.golden_runners.titok_vq import run_with

INPUTS = ("image", "tokens", "text_guidance")
LEFT_OUT: dict[str, str] = {}


def run(case):
    values = run_with(case, Cond(text=case.arrays["text_guidance"]), file="torch")
    return {name: value for name, value in values.items() if name in case.arrays}
