"""A TiTok of the embedded emoji: 32 codes out of 1,024 for an image, 1.7 million parameters.

TiTok (Yu et al. 2024, arXiv 2406.07550) in its later form, which learns pixels in a single stage, as small transformers
on 8 x 8 patches, with a codebook of moving averages whose unused codes are replaced (van den Oord et al. 2017, arXiv
1711.00937).

    maskdit train --config titok_emoji --workdir runs/titok

Meant for 2 CPU cores. Ours: `maskdit study tokenizers`; at full length unverified. Variants: `demo`, and `smoke`,
which runs in seconds.
"""

from ml_collections import ConfigDict

from maskdit.config import pretrained, spec
from maskdit.data.emoji import Emoji
from maskdit.data.loader import Loader
from maskdit.encoders.lpips import LPIPS
from maskdit.tasks.autoencoder import TRAINED, Autoencoder
from maskdit.tasks.perceptual import Perceptual
from maskdit.tasks.reconstruction import Reconstruction
from maskdit.tokenizers.quantize.ema import EMAVQ
from maskdit.tokenizers.titok import TiTok
from maskdit.training.checkpoint import Checkpoints
from maskdit.training.evaluation import Evaluation
from maskdit.training.log import Log
from maskdit.training.mesh import MeshShape
from maskdit.training.optim import AdamW, Cosine, Group
from maskdit.training.run import Run


def get_config(variant: str = "demo") -> ConfigDict:
    """The config of a variant: `demo` or `smoke`."""
    smoke = {"demo": False, "smoke": True}[variant]
    size = (32, 1, 2) if smoke else (128, 4, 4)
    tokenizer = spec(
        TiTok,
        quantize=spec(EMAVQ, codes=64 if smoke else 1024, channels=8, l2=True, decay=0.95, revive=20),
        size=64,
        patch=8,
        tokens=32,
        channels=8,
        encoder=size,
        decoder=size,
    )
    lpips = spec(LPIPS, trunk="alexnet")
    task = spec(
        Autoencoder,
        tokenizer=tokenizer,
        groups={
            "tokenizer": spec(
                Group,
                patterns=(TRAINED,),
                optimizer=spec(AdamW, schedule=spec(Cosine, lr=1e-3, warmup=100, final=0.05), b2=0.99, clip=1.0),
            )
        },
        reconstruction=spec(Reconstruction, l1=1.0, l2=1.0),
        perceptual=spec(Perceptual, lpips=lpips if smoke else pretrained("lpips-alexnet", lpips)),
        perceptual_weight=0.5,
    )
    return spec(
        Run,
        task=task,
        data=spec(Loader, source=spec(Emoji, split="train", labels=()), size=64),
        held_out=spec(Loader, source=spec(Emoji, split="val", labels=()), size=64, flip=False, shuffle=False),
        steps=6 if smoke else 4000,
        batch=8 if smoke else 32,
        ema=(0.999,),
        mesh=spec(MeshShape),
        checkpoints=spec(Checkpoints, every=3 if smoke else 500),
        log=spec(Log, every=3 if smoke else 25),
        evaluation=spec(Evaluation, every=6 if smoke else 1000, examples=16 if smoke else None, images=16),
    )
