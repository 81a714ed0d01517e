"""maskdit: diffusion transformers for images in JAX, trained on all or on part of their patches.

import maskdit
model = maskdit.load("runs/demo")
images = model.sample({"style": "noto", "group": "food-drink"}, count=16)
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "save"]

if TYPE_CHECKING:
    from maskdit.model import load, save


def __getattr__(name: str) -> Any:
    """Imports JAX only when a model is asked for: the command line sets up the process before that."""
    if name in ("load", "save"):
        from maskdit import model

        return getattr(model, name)
    raise AttributeError(f"module 'maskdit' has no attribute '{name}'")
