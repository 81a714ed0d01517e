"""The published DiT-XL/2 (Peebles and Xie 2023, arXiv 2212.09748), fine-tuned on a folder of images at 256 x 256.

    maskdit train --config dit_finetune:10 --workdir DIR --config.data.source.path=IMAGES

The variant is the number of classes, that is, of sub-folders with images, or `smoke`. Weights and autoencoder are
fetched at the first start. The label table is new and learns ten times as fast as the rest;
`--config.task.groups.generator.frozen="('blocks_[0-9]/',)"` leaves the first ten blocks as they are. At 512 x 512:
`--config.task.network.input_size=64 --config.data.size=512 --config.init_from.allow="('label_embed', 'positions')"`.

Meant for 8 TPU v5e chips or one large GPU and some hours. Paper: none, a starting point. Ours: unverified.
"""

from ml_collections import ConfigDict

from maskdit.config import ConfigError, load, pretrained, spec
from maskdit.data.folder import Folder
from maskdit.data.loader import Loader
from maskdit.training.optim import AdamW, Constant, Group


def get_config(variant: str = "10") -> ConfigDict:
    """The config for a number of classes, or `smoke`: DiT's own, tiny and from scratch."""
    smoke = variant == "smoke"
    if not smoke and not (variant.isdigit() and int(variant)):
        raise ConfigError(f"the variant is the number of classes, 1 or more, or smoke; got '{variant}'")
    config = load("dit_imagenet256:smoke" if smoke else "dit_imagenet256:XL/2")
    optimizer = spec(AdamW, schedule=spec(Constant, lr=2e-5, warmup=1 if smoke else 500))
    config.task.groups = ConfigDict({"generator": spec(Group, optimizer=optimizer, rates=(("label_embed", 10.0),))})
    if smoke:
        return config
    config.task.network.classes = ConfigDict({"label": int(variant)})
    config.init_from = pretrained("dit-xl-2-256", allow=("label_embed",))
    config.data = spec(Loader, source=spec(Folder, path="images"), size=256, threads=16, prefetch=16)
    config.held_out = None
    config.steps, config.batch = 10_000, 64
    config.checkpoints.every, config.evaluation.every = 1000, 1000
    return config
