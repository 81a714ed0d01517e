"""Meissonic (Bai et al. 2024, arXiv 2410.08261): text to images of up to 1024 x 1024 in the codes of aMUSEd's VQGAN.

    maskdit train --config meissonic:256 --workdir STAGE1
    maskdit train --config meissonic:512 --workdir STAGE2 --config.init_from=STAGE1
    maskdit train --config meissonic:1024 --workdir STAGE3 --config.init_from=STAGE2

Variants: 256, 512 and 1024, the paper's first three stages, the last with layers that halve the map of codes; and
`smoke`, which reads the captions of the embedded emoji as hashed words. Put images below `images/train` and
`images/val`, and beside them `train.npz` and `val.npz` with arrays `text` [N, 77, 1024] and `pooled` [N, 1024], a row
for each image in the order of file names, `null_text` and `null_pooled` of the empty text, and [N] each `width`,
`height`, `crop_y`, `crop_x` (of the image, in pixels) and `aesthetic`, a score; or override `data` and `held_out`.
Published weights read the states of CLIP ViT-H/14 before its last layer, and its projected text.

Paper: HPS v2 28.83 as far as we know; 100k steps at a batch of 2048, 100k at 512, 42k at 256; 48 days of an H100 in
all. The learning rate and clip are those of the authors' script. The time is the share of masked tokens here; published
weights take `sampler.countdown=True` and `count_dtype=float32`, as the name `meissonic-1024` sets. Ours: unverified.
"""

from typing import Any

from ml_collections import ConfigDict

from maskdit.config import load, pretrained, spec
from maskdit.data.emoji import Emoji
from maskdit.data.folder import Folder
from maskdit.data.hashed_words import HashedWords
from maskdit.data.loader import Loader
from maskdit.networks.meissonic import Meissonic
from maskdit.processes.masked import Masked
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.temperature import Between, Constant
from maskdit.samplers.tokens import Confidence
from maskdit.tasks.generator import Generator
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.tokenizers.vqgan import VQGAN
from maskdit.training import optim

STAGES = {"256": (2048, 100_000), "512": (512, 100_000), "1024": (256, 42_000), "smoke": (8, 4)}
"""Batch and steps."""
WORDS, WORD = 8, 16
"""Words of a caption in the variant `smoke`, and numbers of a word."""


def get_config(variant: str = "1024") -> ConfigDict:
    """The config of a variant, or `smoke`: a tiny network and VQGAN with random weights on the embedded emoji."""
    batch, steps = STAGES[variant]
    smoke = variant == "smoke"
    optimizer = spec(
        optim.AdamW,
        schedule=spec(optim.Constant, lr=1e-4),
        b1=0.9,
        b2=0.999,
        weight_decay=0.01,
        clip=10.0,
        undecayed=("/embedding",),
    )
    # data, log, checkpoints and evaluation are those of the masked generators
    config = load("maskgit_imagenet256:smoke" if smoke else "maskgit_imagenet256")
    config.task = spec(
        Generator,
        network=_network(variant),
        process=spec(Masked, schedule="cosine", label_smoothing=0.0, unmasked_weight=0.0),
        tokenizer=_tokenizer(smoke),
        groups={"generator": spec(optim.Group, optimizer=optimizer)},
        label_drop=0.1,
    )
    config.data = _data("train", variant, threads=2 if smoke else 16, prefetch=4 if smoke else 16)
    config.held_out = _data("val", variant, flip=False, shuffle=False)
    config.steps = steps
    config.batch = batch
    config.ema = (0.9999,)
    config.sampler = spec(
        Confidence,
        steps=3 if smoke else 48,
        schedule="cosine",
        temperature=spec(Between, start=2.0, stop=0.0),
        token_temperature=spec(Constant, start=1.0),
        confidence="log_probability",
    )
    config.guidance = spec(ClassifierFree, weight=9.0)
    config.evaluation.images = 8 if smoke else 16
    if variant == "1024":
        config.init_from.allow = ("^network/(down|up)",)  # new in this stage
    return config


def _network(variant: str) -> ConfigDict:
    if variant == "smoke":
        side: dict[str, Any] = {"width": 16.0, "height": 16.0, "crop_y": 0.0, "crop_x": 0.0, "aesthetic": 6.0}
        small = {"width": 32, "depth": 1, "single_depth": 1, "heads": 2, "rope": (4, 6, 6), "text_tokens": WORDS}
        texts = {"text_width": WORD, "pooled_width": WORD}
        return spec(Meissonic, vocabulary=32, grid=(4, 4), halved=True, scalars=side, **texts, **small)
    pixels = float(variant)
    return spec(
        Meissonic,
        vocabulary=8192,
        grid=(int(variant) // 16,) * 2,
        width=1024,
        depth=14,
        single_depth=28,
        heads=8,
        text_width=1024,
        pooled_width=1024,
        rope=(16, 56, 56),
        halved=variant == "1024",
        spare=63,  # the published table has 8256 rows
        scalars={"width": pixels, "height": pixels, "crop_y": 0.0, "crop_x": 0.0, "aesthetic": 6.0},
        dtype="bfloat16",
    )


def _tokenizer(smoke: bool) -> ConfigDict:
    """aMUSEd's VQGAN, sixteenfold with 8192 codes; or a tiny fourfold one."""
    if smoke:
        return spec(
            VQGAN,
            quantize=spec(VQ, codes=32, channels=4),
            channels=(8, 8),
            layers_per_block=1,
            latent_channels=4,
            groups=4,
            attention_levels=(),
            middle_attention=False,
            unit_range=True,
            patch=2,
        )
    vqgan = spec(
        VQGAN,
        quantize=spec(VQ, codes=8192, channels=64, commitment=1.0, codebook_weight=0.25),
        channels=(128, 256, 256, 512, 768),
        latent_channels=64,
        attention_levels=(),
        middle_attention=False,
        unit_range=True,
        dtype="bfloat16",
    )
    return pretrained("meissonic-vq-f16", vqgan)


def _data(split: str, variant: str, **fields: Any) -> ConfigDict:
    if variant == "smoke":
        words = spec(HashedWords, tokens=WORDS, width=WORD)
        return spec(Loader, source=spec(Emoji, split=split, labels=()), size=16, text=words, **fields)
    source = spec(Folder, path="images", split=split)
    return spec(Loader, source=source, size=int(variant), text=f"{split}.npz", **fields)
