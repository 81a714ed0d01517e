"""MaskDiT on a folder of your own images at 64 x 64, in linear latents.

    maskdit train --config maskdit_folder:10 --workdir DIR --config.data.source.path=IMAGES

The variant is the number of classes, that is, of sub-folders with images; 0 for a flat folder without labels. Meant
for one GPU, or some patience on a CPU; a starting point to change. Ours: unverified.
"""

from ml_collections import ConfigDict

from maskdit.config import ConfigError, spec
from maskdit.data.emoji import Emoji
from maskdit.data.folder import Folder
from maskdit.data.loader import Loader
from maskdit.networks.maskdit import MaskDiT
from maskdit.processes.edm import EDM
from maskdit.processes.masking import MaskSchedule
from maskdit.processes.times import LogNormal
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.heun import Heun
from maskdit.tasks.generator import Generator
from maskdit.tokenizers.linear import LinearPatches
from maskdit.training.checkpoint import Checkpoints
from maskdit.training.evaluation import Evaluation
from maskdit.training.log import Log
from maskdit.training.mesh import MeshShape
from maskdit.training.optim import AdamW, Cosine, Group
from maskdit.training.run import Run


def get_config(variant: str = "0") -> ConfigDict:
    """The config for a number of classes, or `smoke`: a tiny network on unlabelled emoji."""
    smoke = variant == "smoke"
    if not smoke and not variant.isdigit():
        raise ConfigError(f"the variant is the number of classes, 0 for none, or smoke; got '{variant}'")
    count = 0 if smoke else int(variant)
    network = spec(
        MaskDiT,
        input_size=8,
        patch=1,
        channels=24,
        width=32 if smoke else 256,
        depth=2 if smoke else 8,
        heads=2 if smoke else 4,
        decoder_width=16 if smoke else 128,
        decoder_depth=1 if smoke else 2,
        decoder_heads=2,
        classes={"label": count} if count else {},
    )
    optimizer = spec(AdamW, schedule=spec(Cosine, lr=1e-3, warmup=500), b2=0.99, clip=1.0)
    return spec(
        Run,
        task=spec(
            Generator,
            network=network,
            process=spec(EDM, noise_levels=spec(LogNormal, mean=-0.6, std=1.2)),
            tokenizer=spec(LinearPatches, patch=8, channels=24),
            groups={"generator": spec(Group, optimizer=optimizer)},
            masking=spec(MaskSchedule, ratio=0.5, unmasked_from=0.8),
            label_drop=0.1 if count else 0.0,
        ),
        data=spec(Loader, source=spec(Emoji, labels=()) if smoke else spec(Folder, path="images"), size=64),
        steps=4 if smoke else 20_000,
        batch=8 if smoke else 64,
        ema=(0.999,),
        sampler=spec(Heun, steps=3 if smoke else 18),
        guidance=spec(ClassifierFree, weight=2.0) if count else None,
        mesh=spec(MeshShape),
        checkpoints=spec(Checkpoints, every=4 if smoke else 1000),
        log=spec(Log, every=2 if smoke else 100),
        evaluation=spec(Evaluation, every=4 if smoke else 1000, images=8 if smoke else 32),
    )
