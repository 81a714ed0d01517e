"""A small classifier of the embedded emoji, by style and group: it tells whether generated emoji obey their labels.

    maskdit train --config emoji_classifier --workdir runs/emoji_classifier

Half of the training images are seen through the tokenizer of `maskdit_emoji:linear`, with noise on their latents. Meant
for 2 CPU cores and ten minutes. Variants: `default`, and `smoke`, which runs in seconds. What the command trained ships
as `maskdit/encoders/emoji_classifier.npz`. Ours: style 82 %, group 63 % of held-out images; more in the README beside
it.
"""

from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.data.emoji import Emoji
from maskdit.data.loader import Loader
from maskdit.encoders.classifier import ConvClassifier
from maskdit.tasks.classifier import Classifier
from maskdit.tokenizers.linear import LinearPatches
from maskdit.training.checkpoint import Checkpoints
from maskdit.training.evaluation import Evaluation
from maskdit.training.log import Log
from maskdit.training.mesh import MeshShape
from maskdit.training.optim import AdamW, Cosine, Group
from maskdit.training.run import Run


def get_config(variant: str = "default") -> ConfigDict:
    """The config of a variant: `default` or `smoke`."""
    smoke = {"default": False, "smoke": True}[variant]
    labels = ("style", "group")
    network = spec(
        ConvClassifier,
        classes={"style": 4, "group": 8},
        stem=2,
        widths=(8, 8, 16) if smoke else (32, 64, 128),
        blocks=(0, 1, 1),
        features=16 if smoke else 64,
        groups=8,
    )
    optimizer = spec(AdamW, schedule=spec(Cosine, lr=2e-3, warmup=100), b2=0.99, weight_decay=0.1, clip=1.0)
    task = spec(
        Classifier,
        network=network,
        groups={"classifier": spec(Group, optimizer=optimizer)},
        smoothing=0.1,
        shift=2,
        tokenizer=spec(LinearPatches, patch=8, channels=24),
        degrade=0.5,
        noise=0.1,
    )
    return spec(
        Run,
        task=task,
        data=spec(Loader, source=spec(Emoji, split="train", labels=labels), size=64),
        held_out=spec(Loader, source=spec(Emoji, split="val", labels=labels), size=64, flip=False, shuffle=False),
        steps=10 if smoke else 3600,
        batch=16 if smoke else 32,
        ema=(0.99,),
        mesh=spec(MeshShape),
        checkpoints=spec(Checkpoints, every=5 if smoke else 1000),
        log=spec(Log, every=5 if smoke else 100),
        evaluation=spec(Evaluation, every=10 if smoke else 1000, examples=32 if smoke else None, images=0),
    )
