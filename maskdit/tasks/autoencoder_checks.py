"""What an `Autoencoder` refuses before anything is made: terms that do not go together, and data that do not fit."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from maskdit.contracts import Cond
from maskdit.tokenizers.model import TokenizerModel


def terms(task: Any) -> None:
    """Holds the terms of an `Autoencoder` against each other and against its tokenizer.

    Raises:
      ValueError: with the terms that do not go together.
    """
    others = (task.perceptual, task.adversarial, task.perturbation, task.alignment, task.next_token)
    name = type(task.tokenizer).__name__
    if task.proxy is not None and any(term is not None for term in others):
        raise ValueError("proxy codes stand in place of all terms of images and latents: leave the others out")
    if task.proxy is not None and not hasattr(task.tokenizer, "logits"):
        raise ValueError(f"{name} tells no proxy codes: it has no method `logits`")
    if task.alignment is not None and task.tokenizer.latent.layout != "grid":
        raise ValueError(f"alignment is of places in the image: {name} has no latents on a grid")
    if task.adversarial is not None and task.adversarial.adaptive and not hasattr(task.tokenizer, "last_layer"):
        raise ValueError(f"{name} has no last layer to adapt the adversarial weight at: set adaptive=False")


def data(task: Any, batch: Mapping[str, Any]) -> None:
    """Holds the arrays of a batch, or their shapes, against what an `Autoencoder` takes.

    Raises:
      ValueError: for data without images, images of another size, and missing texts.
    """
    if "image" not in batch:
        raise ValueError("a tokenizer is trained on images: set data.latents=None")
    shape = tuple(batch["image"].shape)
    TokenizerModel(task.tokenizer, {}).check_images(shape)
    for name, (_, module) in task.frozen_networks().items():
        if name in ("lpips", "convnext"):  # which say what is too small for them
            jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape[1:])))
    if task.perturbation is not None:
        task.perturbation.check(task.tokenizer)
    if task.proxy is not None:
        _proxy(task, shape[1])
    else:
        _decoded(task, shape)
    text = getattr(task.tokenizer, "text", None)
    if text is not None and ("text" not in batch or tuple(batch["text"].shape[1:]) != tuple(text)):
        found = list(batch["text"].shape[1:]) if "text" in batch else "none"
        raise ValueError(f"the tokenizer reads text embeddings {list(text)}, the data have {found}: set data.text")


def _proxy(task: Any, side: int) -> None:
    """Holds the codes that the tokenizer tells against those that it is to tell."""
    image = jnp.zeros((1, side, side, 3))

    def told() -> Any:
        variables = task.tokenizer.init(jax.random.key(0), image)
        latents = task.tokenizer.apply(variables, image, method="encode")
        return task.tokenizer.apply(variables, latents, method="logits")

    found, theirs = jax.eval_shape(told).shape[1:], task.proxy.tokenizer.latent
    wanted = (side // theirs.downsample, side // theirs.downsample, theirs.vocabulary)
    if found != wanted:
        raise ValueError(
            f"the proxy codes of an image are {list(wanted[:2])} of {wanted[2]}, the tokenizer tells {list(found[:2])} "
            f"of {found[2]}: change its patch and proxy_codes"
        )


def _decoded(task: Any, shape: tuple[int, ...]) -> None:
    """Holds the shape of what is decoded against that of the images."""
    image = jnp.zeros((1, *shape[1:]))
    cond = Cond(text=jnp.zeros((1, *task.tokenizer.text))) if getattr(task.tokenizer, "text", None) else Cond()

    def decoded() -> Any:
        variables = task.tokenizer.init(jax.random.key(0), image, cond)
        latents = task.tokenizer.apply(variables, image, cond, method="encode")
        return task.tokenizer.apply(variables, latents, cond, method="decode")

    found = jax.eval_shape(decoded).shape
    if found != image.shape:
        name = type(task.tokenizer).__name__
        raise ValueError(
            f"{name} makes images of {list(found[1:])} from those of {list(shape[1:])}: change its patches, or the "
            "levels of its decoder"
        )
