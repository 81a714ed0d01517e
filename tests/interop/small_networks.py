"""Published configurations of small networks, and state dicts that belong to them."""

import functools

import jax
import numpy as np

from maskdit.config import build, from_json, to_json
from maskdit.interop import dit, layouts, maskdit, vae
from maskdit.interop.rules import export_params

DIT = {
    "input_size": 4,
    "patch_size": 2,
    "in_channels": 3,
    "hidden_size": 8,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "num_classes": 5,
    "class_dropout_prob": 0.1,
    "learn_sigma": True,
}
MASKDIT = {
    "img_resolution": 4,
    "img_channels": 3,
    "patch_size": 1,
    "hidden_size": 12,
    "depth": 1,
    "num_heads": 3,
    "mlp_ratio": 4.0,
    "use_decoder": True,
    "decoder_hidden_size": 8,
    "decoder_depth": 2,
    "decoder_num_heads": 2,
    "num_classes": 5,
    "mae_loss_coef": 0.1,
}
DIFFUSERS = {
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "latent_channels": 2,
    "norm_num_groups": 2,
    "scaling_factor": 0.5,
}
COMPVIS = {
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "resolution": 16,
    "embed_dim": 2,
    "z_channels": 2,
    "latent_scale": 0.2,
}
CASES = [
    (dit, DIT),
    (dit, DIT | {"depth": 12, "patch_size": 4, "learn_sigma": False, "class_dropout_prob": 0.0}),
    (maskdit, MASKDIT),
    (maskdit, MASKDIT | {"depth": 11, "mae_loss_coef": 0.0, "num_classes": 0, "img_resolution": 6, "patch_size": 3}),
    (maskdit, MASKDIT | {"use_decoder": False}),
    (vae, DIFFUSERS),
    (vae, DIFFUSERS | {"block_out_channels": [2, 4, 4], "layers_per_block": 2, "use_quant_conv": False}),
    (vae, COMPVIS),
    (vae, COMPVIS | {"ch_mult": [1, 1, 2], "attn_resolutions": [16, 4], "num_res_blocks": 2, "in_channels": 1}),
]


def table_of(interop, config):
    """The table of a published configuration; an autoencoder has one for each kind."""
    if interop is not vae:
        return interop.table(config)
    return vae.compvis(config) if "ch_mult" in config else vae.diffusers(config)


def shapes(entry):
    """Shapes of the parameters of the network of a spec."""
    return _shapes(to_json(entry))


@functools.cache
def _shapes(entry):
    return layouts.parameter_shapes(build(from_json(entry)))


def published(interop, config, seed=0):
    """A random state dict with the names and shapes that the network is written as."""
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes_of(interop, config))
    return export_params(table_of(interop, config), drawn)


def shapes_of(interop, config):
    return shapes(interop.from_reference(config))
