"""TiTok's generator with the blocks of U-ViT."""

from tests.golden_runners.titok_imagebert import INPUTS, LEFT_OUT, run_as

__all__ = ["INPUTS", "LEFT_OUT", "run"]


def run(case):
    return run_as(case, file="torch")
