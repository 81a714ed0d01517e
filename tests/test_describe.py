"""What is said of configs that train tokenizers and token generators; others are in `test_cli.py`, slices in
`performance/`."""

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


@pytest.mark.parametrize(
    ("name", "coded", "sampled"),
    [
        ("maskgit_imagenet256:smoke", "4 of 32 codes for an image: 20 bits", ("3, 2 of them guided", "5 passes")),
        ("maskgen:smoke", "4 of 32 codes for an image: 20 bits", ("3, 3 of them guided", "6 passes")),
        ("rar_imagenet256:smoke", "codes for an image", ("the mean of", "passes")),
    ],
)
def test_a_token_generator_is_described_by_its_tokens_and_passes(name, coded, sampled):
    text = describe(configs.load(name))
    assert coded in text and all(part in text for part in sampled)
    assert flops(text, "training step") > flops(text, "forward pass") > 0
    passes = int(re.search(r"(\d+) passes", text).group(1))
    decode = flops(text, r"sampling .* passes and")
    assert flops(text, "sampling") == pytest.approx(passes * flops(text, "forward pass") + decode, rel=2e-3)


def test_counted_masks_are_told_by_plan_and_many_by_their_mean():
    few = describe(configs.load("enat_imagenet256:smoke"))
    assert re.search(r"training step .* \d+ tokens masked, \d+ hidden again, from step", few)
    assert "the mean of 6" in few  # calls, which differ from step to step
    many = {"task.process.counts.ratios": 5, "task.process.counts.hidden": 2, "steps": 200}
    text = describe(configs.load("enat_imagenet256:smoke", many))
    mean, least, most = re.search(r"training step +([\d.]+) MFLOP .*, ([\d.]+) MFLOP to ([\d.]+) MFLOP", text).groups()
    assert float(least) < float(mean) < float(most)
