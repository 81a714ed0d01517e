"""The small tokenizers that ship with the library; what they are stands in README.md beside them."""

import importlib.resources

NAMES = {"emoji-vae": "emoji_vae.npz", "emoji-vqgan": "emoji_vqgan.npz"}
"""Name -> file, here."""


def path(name: str) -> str:
    """The model file of a shipped tokenizer, one of `NAMES`."""
    return str(importlib.resources.files(__package__).joinpath(NAMES[name]))
