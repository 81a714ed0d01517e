"""MaskGen with codes (Kim et al. 2025, arXiv 2501.07730): text to images of 256 x 256 in the 128 tokens of TA-TiTok.

    maskdit encode tatitok-bl-128-vq --data maskgen:L --out LATENTS
    maskdit train --config maskgen:L --workdir STAGE1 --config.data.latents=LATENTS
    maskdit train --config maskgen:L-stage2 --workdir STAGE2 --config.init_from=STAGE1

Variants: L and XL, the first stage; L-stage2 and XL-stage2, which go on from it on better images; and `smoke`, which
reads the captions of the embedded emoji as hashed words. Put images below `images/train` and `images/val`, and beside
them `train.npz` and `val.npz` with arrays `text` [N, 77, 768] and `pooled` [N, 768], a row for each image in the order
of file names, `null_text` and `null_pooled` of the empty text, and `aesthetic` [N], the score of each image; or
override `data` and `held_out`. Published weights read the states of OpenCLIP's ViT-L-14-336 (openai) before its last
block, and what its projection makes of the text's end.

Paper: FID on MJHQ-30K 7.74 (L) and 7.51 (XL), GenEval 0.53 and 0.57, after both stages. The authors' configs take 128
images on each GPU, and their command has 32 of these; hours not stated. Their crops are random, this loader's in the
middle. Ours: unverified.
"""

from typing import Any

from ml_collections import ConfigDict

from maskdit.config import load, pretrained, spec
from maskdit.data.emoji import Emoji
from maskdit.data.folder import Folder
from maskdit.data.hashed_words import HashedWords
from maskdit.data.loader import Loader
from maskdit.networks.maskgen import MaskGen, size
from maskdit.processes.masked import Masked
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.tokens import Confidence
from maskdit.tasks.generator import Generator
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.tokenizers.titok import SIZES, TiTok
from maskdit.training.optim import AdamW, Cosine, Group

WORDS, WORD = 8, 16
"""Words of a caption in the variant `smoke`, and numbers of a word."""


def get_config(variant: str = "L") -> ConfigDict:
    """The config of a variant, or `smoke`: a tiny network and TA-TiTok with random weights on the embedded emoji."""
    smoke, name = variant == "smoke", variant.removesuffix("-stage2")
    second = name != variant
    warmup, lr = 10_000, 1e-4 if second else 4e-4
    optimizer = spec(
        AdamW,
        schedule=spec(Cosine, lr=lr, warmup=warmup, final=1e-5 / lr),
        b1=0.9,
        b2=0.96,
        weight_decay=0.03,
        clip=1.0,
        undecayed=("/embedding", "/positions", "/text_embed/", "/modulation/"),
    )
    # data, log, checkpoints and evaluation are those of the masked generators
    config = load("maskgit_imagenet256:smoke" if smoke else "maskgit_imagenet256")
    config.task = spec(
        Generator,
        network=_network(name, second),
        process=spec(Masked, schedule="arccos", label_smoothing=0.1, unmasked_weight=0.1),
        tokenizer=_tokenizer(smoke),
        groups={"generator": spec(Group, optimizer=optimizer)},
        label_drop=0.1,
    )
    config.data = _data("train", smoke, threads=2 if smoke else 16, prefetch=4 if smoke else 16)
    config.held_out = _data("val", smoke, flip=False, shuffle=False)
    config.steps = 4 if smoke else 250_000 if second else 500_000
    config.batch = 8 if smoke else 4096
    config.ema = (0.999,)
    # the authors add 12 times the difference at the end, a weight of 13 here, and once at the start
    config.sampler = spec(
        Confidence, steps=3 if smoke else 16, schedule="arccos", temperature=2.0, softmax_annealing=True
    )
    config.guidance = spec(ClassifierFree, weight=13.0, schedule="cosine", power=1.0, start=2.0, ahead=True)
    return config


def _network(name: str, second: bool) -> ConfigDict:
    if name == "smoke":
        small = {"width": 32, "depth": 2, "heads": 2, "score_width": 16, "text_tokens": WORDS}
        return spec(MaskGen, vocabulary=32, grid=(4,), text_width=WORD, pooled_width=WORD, **small)
    return spec(
        MaskGen,
        vocabulary=8192,
        grid=(128,),
        text_width=768,
        pooled_width=768,
        scalars={"aesthetic": 6.5 if second else 6.0},
        score_width=256,
        spare=1001,  # of class labels, which the published tables keep
        dtype="bfloat16",
        **size(name),
    )


def _tokenizer(smoke: bool) -> ConfigDict:
    """TA-TiTok with 128 tokens of 8192 codes, or a tiny one."""
    if smoke:
        tiny = (16, 1, 2)
        fields: dict[str, Any] = {"size": 16, "patch": 8, "tokens": 4, "encoder": tiny, "decoder": tiny}
        return spec(TiTok, quantize=spec(VQ, codes=32, channels=4), channels=4, text=(WORDS, WORD), **fields)
    tatitok = spec(
        TiTok,
        quantize=spec(VQ, codes=8192, channels=64, commitment=0.25),
        channels=64,
        tokens=128,
        encoder=SIZES["base"],
        decoder=SIZES["large"],
        text=(77, 768),
        dtype="bfloat16",
    )
    return pretrained("tatitok-bl-128-vq", tatitok)


def _data(split: str, smoke: bool, **fields: Any) -> ConfigDict:
    if smoke:
        words = spec(HashedWords, tokens=WORDS, width=WORD)
        return spec(Loader, source=spec(Emoji, split=split, labels=()), size=16, text=words, **fields)
    return spec(Loader, source=spec(Folder, path="images", split=split), size=256, text=f"{split}.npz", **fields)
