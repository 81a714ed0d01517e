"""What is said of a config that trains a tokenizer; generators are in `test_cli.py`, slices in `performance/`."""

import re

import pytest

from maskdit import config as configs
from maskdit.bench import bench
from maskdit.describe import describe
from maskdit.performance.subject import Subject

SMALL = {"batch": 8, "data.source.split": "val", "log.tensorboard": False}


def flops(text, name):
    """Of a row, in MFLOP."""
    number, unit = re.search(rf"^{name} +([\d.]+) ([kMG])FLOP", text, re.M).groups()
    return float(number) * {"k": 1e-3, "M": 1, "G": 1e3}[unit]


@pytest.mark.parametrize(
    ("name", "coded"),
    [
        ("vae_emoji", "64 of 8 floats for an image"),
        ("vqgan_emoji", "64 of 1,024 codes for an image: 640 bits"),
        ("titok_emoji", "32 of 1,024 codes for an image: 320 bits"),
    ],
)
def test_a_tokenizer_is_described_by_what_an_image_takes(name, coded):
    text = describe(configs.load(name))
    assert coded in text and re.search(r"parameters +[\d,]+  tokenizer", text)
    both = flops(text, "encode") + flops(text, "decode")
    assert flops(text, "training step") == pytest.approx(3 * both, rel=2e-3)


def test_a_tokenizer_has_data_to_be_measured_on_and_no_sampler():
    config = configs.load("vqgan_emoji:smoke", SMALL)
    found = bench(config, "vqgan_emoji:smoke", parts=("sampler",), rounds=1)
    assert "no sampler: the config has none" in found.notes and not found.figures
    assert Subject(config, synthetic=True).resident.keys() == {"image", "row"}
