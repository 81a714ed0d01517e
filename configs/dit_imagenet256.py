"""DiT (Peebles and Xie 2023, arXiv 2212.09748) on ImageNet at 256 x 256, in the latents of the SD VAE.

    maskdit train --config dit_imagenet256:XL/2 --workdir DIR

Variants: S, B, L, XL with patch 2, 4 or 8 (`XL/2`), and `smoke`. Prepare ImageNet with `tfds build imagenet2012
--file_format=array_record`, or override `data.source`.

Paper: XL/2 after 7M steps, FID 2.27 with guidance 1.5 (250 steps, three channels guided); 400k steps, FID 19.47
without. Meant for a TPU v3-256 (5.7 steps/s there). Ours: unverified.
"""

from ml_collections import ConfigDict

from maskdit.config import pretrained, spec
from maskdit.data.emoji import Emoji
from maskdit.data.loader import Loader
from maskdit.data.tfds import TFDS
from maskdit.networks.dit import DiT, size
from maskdit.processes.ddpm import DDPM
from maskdit.samplers.ancestral import Ancestral
from maskdit.samplers.guidance import ClassifierFree
from maskdit.tasks.generator import Generator
from maskdit.tokenizers.vae import VAE
from maskdit.training.checkpoint import Checkpoints
from maskdit.training.evaluation import Evaluation
from maskdit.training.log import Log
from maskdit.training.mesh import MeshShape
from maskdit.training.optim import AdamW, Constant, Group
from maskdit.training.run import Run


def get_config(variant: str = "XL/2") -> ConfigDict:
    """The config of a size, or `smoke`: a tiny network and VAE on the embedded emoji."""
    smoke = variant == "smoke"
    small = {"width": 32, "depth": 2, "heads": 2, "patch": 2}
    network = spec(
        DiT,
        input_size=8 if smoke else 32,
        channels=4,
        classes={"group": 8} if smoke else {"label": 1000},
        learned_variance=True,
        dtype="bfloat16",
        **(small if smoke else size(variant)),
    )
    small_vae = spec(VAE, channels=(16, 16), groups=8, layers_per_block=1)
    vae = small_vae if smoke else pretrained("sd-vae-ft-ema", spec(VAE, dtype="bfloat16"))
    train = spec(Emoji, labels=("group",)) if smoke else spec(TFDS, name="imagenet2012", split="train")
    held_out = (
        spec(Emoji, split="val", labels=("group",)) if smoke else spec(TFDS, name="imagenet2012", split="validation")
    )
    pixels = 16 if smoke else 256
    return spec(
        Run,
        task=spec(
            Generator,
            network=network,
            process=spec(DDPM, steps=1000, betas="linear", predicts="eps", learned_variance=True),
            tokenizer=vae,
            groups={"generator": spec(Group, optimizer=spec(AdamW, schedule=spec(Constant, lr=1e-4)))},
            label_drop=0.1,
        ),
        data=spec(Loader, source=train, size=pixels, threads=2 if smoke else 16, prefetch=4 if smoke else 16),
        held_out=spec(Loader, source=held_out, size=pixels, flip=False, shuffle=False),
        steps=4 if smoke else 400_000,
        batch=8 if smoke else 256,
        ema=(0.9999,),
        sampler=spec(Ancestral, steps=3 if smoke else 250),
        guidance=spec(ClassifierFree, weight=1.5, channels=3),
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
