"""TiTok's perceptual loss: LPIPS over VGG16, and the class scores of a ConvNeXt."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.interop import convnext, lpips
from maskdit.tasks.perceptual import Perceptual

INPUTS = ("input", "target")
LEFT_OUT: dict[str, str] = {}


def run(case):
    given, target = case.images("input"), case.images("target")
    networks, frozen = {}, {}
    for name, interop, config in (("lpips", lpips, {"net": "vgg"}), ("convnext", convnext, case.config)):
        if not any(key.startswith(f"{name}.") for key in case.parameters):
            continue  # `model_name` is the other alone
        networks[name], params = _part(case, name, config).model(interop, given, file="safetensors")
        frozen[name] = {"params": params}
    named = re.fullmatch(r"(lpips)?-?(convnext_s)?(?:-([\d.]+)-([\d.]+))?", case.config["model_name"])
    weights = {name: float(text or 1) for name, text in zip(("lpips", "convnext"), named.group(3, 4), strict=True)}
    kept = {name: networks[name] for name, text in zip(weights, named.group(1, 2), strict=True) if text}
    settings = {f"{name}_weight": weight for name, weight in weights.items()}
    perceptual = Perceptual(**kept, **settings, resize=case.config["resize"])

    def measured(frozen, given, target):
        def total(target):
            parts = perceptual.parts(frozen, given * 2 - 1, target * 2 - 1)
            return perceptual.weighted(parts).mean(), parts

        (_, parts), gradient = jax.value_and_grad(total, has_aux=True)(target)
        seen = {}
        if "convnext" in networks:
            resized = perceptual.resized(given * 2 - 1)
            seen["convnext_logits"] = networks["convnext"].apply(frozen["convnext"], resized)
            seen["resized_input"] = jnp.moveaxis((resized + 1) / 2, -1, -3)
        return parts, gradient, seen

    parts, gradient, seen = case.jit(measured)(frozen, given, target)
    if "convnext" in parts:
        parts["convnext"] = parts["convnext"].mean()  # the reference has one number for the batch
    values = {"loss": perceptual.weighted(parts), **parts}
    values = {name: np.reshape(value, (-1, 1, 1, 1) if np.ndim(value) else ()) for name, value in values.items()}
    return values | seen | {"grad_target": case.stored(gradient)}


def _part(case, name, config):
    """The case of one network, whose names have its own before them."""
    state, prefix = case.state(), f"{name}."
    unsigned = case.config.get("absolute_value", ())
    state = {key: np.abs(value) if key in unsigned else value for key, value in state.items()}
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    class Part(type(case)):
        def state(self):
            return state

    kept = [key.removeprefix(prefix) for key in case.kept if key.startswith(prefix)]
    return Part(case.reference, config, {}, kept, {}, {})
