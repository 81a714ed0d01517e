"""Every config that ships: it reads, builds, travels through JSON, and its smoke variant trains."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import pytest

from maskdit import config as configs
from maskdit.train import train
from maskdit.training.step import create

TITOK = ("L-32", "B-64", "S-128", "L-32-decoder", "B-64-decoder", "S-128-decoder")
TITOK_PIXELS = ("BL-64-vq8k", "BL-128-vq8k", "SL-256-vq8k", "LL-32-vae", "BL-64-vae", "BL-128-vae")
TOKENIZERS = {
    "titok_imagenet256": (*TITOK, *TITOK_PIXELS, "smoke-decoder", "smoke-pixels"),
    "tatitok_imagenet256": ("BL-32-vq", "BL-64-vq", "BL-128-vq", "BL-32-vae", "BL-64-vae", "SL-128-vae"),
    "vae_imagenet256": ("f8d4", "f16d16", "f16d32", "f16d32-aligned"),
    "vqgan_imagenet256": ("llamagen-16", "llamagen-8", "maskgit", "var", "fvq-16", "robusttok", "crt", "fsq", "bsq"),
    "vitok_imagenet256": ("S-B/16", "B-B/16", "S-L/16", "S-S/16", "S-B/16-decoder"),
    "softvq_imagenet256": ("S-64", "B-64", "L-64", "L-32"),
}
VARIANTS = [f"{name}:{variant}" for name, variants in TOKENIZERS.items() for variant in variants]
MILLIONS = {
    "titok_imagenet256:L-32-decoder": 641,
    "titok_imagenet256:B-64-decoder": 205,
    "titok_imagenet256:S-128-decoder": 84,
    "vae_imagenet256:f8d4": 84,
    "vqgan_imagenet256:llamagen-16": 72,
    "vqgan_imagenet256:llamagen-8": 70,
    "vitok_imagenet256:S-B/16": 129,
}
"""Parameters of tokenizers; those of ViTok and LlamaGen are their papers'."""
FULL_SIZE = (
    *MILLIONS,
    "titok_imagenet256:S-128",
    "tatitok_imagenet256:BL-32-vq",
    "vqgan_imagenet256:var",
    "vqgan_imagenet256:crt",
)


@pytest.mark.parametrize("name", configs.names())
def test_config_travels_through_json_and_says_what_it_is_for(name):
    entry = configs.load(name)
    again = configs.from_json(configs.to_json(entry))
    assert configs.differences(entry, again) == []
    assert configs.build(again.task) == configs.build(entry.task)
    text = pathlib.Path(configs.resolve(name).partition(":")[0]).read_text()
    assert "maskdit train --config" in text and ("unverified" in text or "Ours:" in text)


@pytest.mark.parametrize("name", configs.names())
def test_smoke_variant_trains(name, tmp_path):
    entry = configs.load(f"{name}:smoke", {"log.tensorboard": False})
    state = train(entry, str(tmp_path))
    assert int(state.step) == entry.steps


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_of_a_tokenizer_builds_from_what_a_checkpoint_keeps(name):
    entry = configs.load(name)
    again = configs.from_json(configs.to_json(entry))
    assert configs.build(again.task) == configs.build(entry.task)
    assert entry.held_out.size == entry.data.size
    second = name.endswith("-decoder")
    assert configs.is_reference(entry.init_from) and bool(entry.init_from.allow) == second


@pytest.mark.parametrize("name", [name for name in configs.names() if name in TOKENIZERS])
def test_variant_that_does_not_exist_is_refused(name):
    for variant in ("no-such", "no-such-decoder"):
        with pytest.raises(ValueError, match="no-such"):
            configs.load(f"{name}:{variant}")


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_takes_its_images_and_groups_hold_what_is_trained(name):
    entry = configs.load(name)
    task, size = configs.build(entry.task), entry.data.size
    batch = {"image": jax.ShapeDtypeStruct((entry.batch, size, size, 3), jnp.uint8)}
    if getattr(task.tokenizer, "text", None):
        batch["text"] = jax.ShapeDtypeStruct((entry.batch, *task.tokenizer.text), jnp.float16)
    task.check(batch, {})
    state = jax.eval_shape(functools.partial(create, task, (), batch), jax.random.key(0))
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    trained = sum(count(group.select(state.params)) for group in task.groups.values())
    assert (trained < count(state.params)) == name.endswith("-decoder")
    if name in MILLIONS:
        assert round(count(state.params["tokenizer"]) / 1e6) == MILLIONS[name]
