"""MaskDiT (Zheng et al. 2023, arXiv 2306.09305) on ImageNet at 256 x 256, in the latents of the SD VAE.

    maskdit train --config maskdit_imagenet256:XL/2 --workdir DIR

Half of the patches masked for 2M steps, then 37.5k steps unmasked. (The paper lowers the learning rate to 5e-5 for
these.) The batch goes through in four parts, so that 64 images a chip fit a TPU v5e; with 16 or fewer on a chip,
`--config.microbatches=1` is faster.

Variants: S, B, L, XL with patch 2, 4 or 8 (`XL/2`), and `smoke`. Prepare ImageNet with `tfds build imagenet2012
--file_format=array_record`, or override `data.source`.

Paper: XL/2, FID 2.28 with guidance 1.5 and 40 steps, 5.69 without guidance; about 260 hours on 8 A100. Ours:
unverified.
"""

from ml_collections import ConfigDict

from maskdit.config import pretrained, spec
from maskdit.data.emoji import Emoji
from maskdit.data.loader import Loader
from maskdit.data.tfds import TFDS
from maskdit.networks.dit import size
from maskdit.networks.maskdit import MaskDiT
from maskdit.processes.edm import EDM
from maskdit.processes.masking import MaskSchedule
from maskdit.processes.times import LogNormal
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.heun import Heun
from maskdit.tasks.generator import Generator
from maskdit.tokenizers.vae import VAE
from maskdit.training.checkpoint import Checkpoints
from maskdit.training.evaluation import Evaluation
from maskdit.training.log import Log
from maskdit.training.mesh import MeshShape
from maskdit.training.optim import AdamW, Constant, Group
from maskdit.training.run import Run

MASKED, UNMASKED = 2_000_000, 37_500


def get_config(variant: str = "XL/2") -> ConfigDict:
    """The config of a size, or `smoke`: a tiny network and VAE on the embedded emoji."""
    smoke = variant == "smoke"
    small = {"width": 32, "depth": 2, "heads": 2, "patch": 2}
    decoder = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    network = spec(
        MaskDiT,
        input_size=8 if smoke else 32,
        channels=4,
        classes={"group": 8} if smoke else {"label": 1000},
        dtype="bfloat16",
        **({**small, **decoder} if smoke else size(variant)),
    )
    small_vae = spec(VAE, channels=(16, 16), groups=8, layers_per_block=1)
    vae = small_vae if smoke else pretrained("sd-vae-ft-ema", spec(VAE, dtype="bfloat16"))
    train = spec(Emoji, labels=("group",)) if smoke else spec(TFDS, name="imagenet2012", split="train")
    held_out = (
        spec(Emoji, split="val", labels=("group",)) if smoke else spec(TFDS, name="imagenet2012", split="validation")
    )
    pixels = 16 if smoke else 256
    unmasked_from = 0.5 if smoke else MASKED / (MASKED + UNMASKED)
    return spec(
        Run,
        task=spec(
            Generator,
            network=network,
            process=spec(EDM, noise_levels=spec(LogNormal, mean=-1.2, std=1.2), reconstruction_weight=0.1),
            tokenizer=vae,
            groups={"generator": spec(Group, optimizer=spec(AdamW, schedule=spec(Constant, lr=1e-4)))},
            masking=spec(MaskSchedule, kind="constant", ratio=0.5, unmasked_from=unmasked_from),
            label_drop=0.1,
        ),
        data=spec(Loader, source=train, size=pixels, threads=2 if smoke else 16, prefetch=4 if smoke else 16),
        held_out=spec(Loader, source=held_out, size=pixels, flip=False, shuffle=False),
        steps=4 if smoke else MASKED + UNMASKED,
        batch=8 if smoke else 1024,
        microbatches=1 if smoke else 4,
        ema=(0.9999,),
        sampler=spec(Heun, steps=3 if smoke else 40),
        guidance=spec(ClassifierFree, weight=1.5),
        mesh=spec(MeshShape, data=1, fsdp=-1),
        checkpoints=spec(Checkpoints, every=4 if smoke else 10_000, keep_every=None if smoke else 100_000),
        log=spec(Log, every=2 if smoke else 100),
        evaluation=spec(
            Evaluation,
            every=4 if smoke else 10_000,
            batch=8 if smoke else 64,
            examples=8 if smoke else 4096,
            images=8 if smoke else 32,
        ),
    )
