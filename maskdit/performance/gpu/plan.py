"""What is run: workloads and their sizes. Known to driver and workers alike, so without JAX or PyTorch."""

import dataclasses
from collections.abc import Mapping
from typing import Any

SIZES = {"S/2": (384, 12, 6), "B/2": (768, 12, 12), "L/2": (1024, 24, 16), "XL/2": (1152, 28, 16)}
"""Width, depth and heads, as `maskdit.networks.dit.SIZES`, which needs JAX."""
PUBLISHED_DECODER = (512, 8, 16)
"""Width, depth and heads that the published MaskDiT builds in."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """A training step.

    Attributes:
      name: of the workload.
      system: `dit` (DDPM with learned variances) or `maskdit` (EDM, with the reconstruction loss where masked).
      batch: images.
      width, depth, heads: of the network, of its encoder in MaskDiT.
      ratio: share of masked patches.
      decoder: width, depth and heads of MaskDiT's decoder.
      input_size, patch, channels, classes: of the latents and labels.
      scan: whether our blocks run under one `lax.scan`.
    """

    name: str
    system: str
    batch: int
    width: int
    depth: int
    heads: int
    ratio: float = 0.0
    decoder: tuple[int, int, int] = PUBLISHED_DECODER
    input_size: int = 32
    patch: int = 2
    channels: int = 4
    classes: int = 1000
    scan: bool = True

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> "Workload":
        """The workload that `dataclasses.asdict` turned into JSON."""
        return cls(**{**fields, "decoder": tuple(fields["decoder"])})

    @property
    def tokens(self) -> int:
        """Patches of an input."""
        return (self.input_size // self.patch) ** 2

    @property
    def keep(self) -> int | None:
        """Patches that the network sees; None for all."""
        return int(self.tokens * (1 - self.ratio)) if self.ratio else None

    @property
    def published(self) -> dict[str, Any]:
        """The arguments of the published model, as the tables of `maskdit.interop` take them."""
        if self.system == "dit":
            return {
                "input_size": self.input_size,
                "patch_size": self.patch,
                "in_channels": self.channels,
                "hidden_size": self.width,
                "depth": self.depth,
                "num_heads": self.heads,
                "num_classes": self.classes,
            }
        return {
            "img_resolution": self.input_size,
            "patch_size": self.patch,
            "hidden_size": self.width,
            "use_decoder": True,
            "decoder_hidden_size": self.decoder[0],
        }


@dataclasses.dataclass(frozen=True)
class Plan:
    """Workloads and how long each is looked at.

    Attributes:
      dit: the plain DiT.
      maskdit: MaskDiT unmasked, 50 and 75 % masked; peers run the first two.
      small: further sizes.
      published_batch: images of a step of the peer as published: per GPU there, 256 on 8.
      warm, steps, rounds: steps before any is timed, steps of a turn, turns.
      sample_batches, sample_steps: of sampling.
      product: side of the matrices whose product gives the arithmetic ceiling.
      copied: bytes of an array whose copying gives the memory's.
      decode: side of a latent, and images decoded at once.
      autoencoder: fields of `maskdit.tokenizers.vae.VAE`; empty for that of Stable Diffusion.
      records: of the loader's data set.
      workers: numbers of the loader's processes, 0 for threads.
      scale: of the phases' estimates.
    """

    dit: Workload
    maskdit: tuple[Workload, ...]
    small: tuple[Workload, ...]
    published_batch: int = 32
    warm: int = 5
    steps: int = 10
    rounds: int = 3
    sample_batches: tuple[int, ...] = (64, 1)
    sample_steps: tuple[int, ...] = (25, 50)
    product: int = 8192
    copied: int = 4 << 30
    decode: tuple[int, int] = (32, 64)
    autoencoder: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    records: int = 8192
    workers: tuple[int, ...] = (0, 8)
    scale: float = 1.0

    @property
    def main(self) -> tuple[Workload, ...]:
        """The workloads that are compiled first."""
        return (self.dit, *self.maskdit)


def full() -> Plan:
    """256-pixel ImageNet: XL/2 at batch 128, and the smaller sizes."""
    return Plan(
        dit=Workload("dit-xl2-256", "dit", 128, *SIZES["XL/2"]),
        maskdit=tuple(
            Workload(f"maskdit-xl2-{round(100 * ratio)}", "maskdit", 128, *SIZES["XL/2"], ratio=ratio)
            for ratio in (0.0, 0.5, 0.75)
        ),
        small=tuple(
            Workload(f"dit-{size[:-2].lower()}2", "dit", batch, *SIZES[size])
            for size, batch in (("S/2", 512), ("B/2", 256), ("L/2", 128))
        ),
    )


def tiny() -> Plan:
    """The same phases in seconds on a CPU."""
    dit = Workload("dit-tiny", "dit", 4, 32, 2, 2, input_size=8, classes=8)
    return Plan(
        dit=dit,
        maskdit=tuple(
            dataclasses.replace(
                dit, name=f"maskdit-tiny-{round(100 * ratio)}", system="maskdit", ratio=ratio, decoder=(16, 1, 2)
            )
            for ratio in (0.0, 0.5, 0.75)
        ),
        small=(dataclasses.replace(dit, name="dit-tiny-1", depth=1),),
        published_batch=2,
        warm=1,
        steps=2,
        rounds=2,
        sample_batches=(2,),
        sample_steps=(2, 4),
        product=128,
        copied=1 << 16,
        decode=(4, 2),
        autoencoder={"channels": (16, 16), "groups": 8, "layers_per_block": 1},
        records=16,
        workers=(0,),
        scale=0.02,
    )
