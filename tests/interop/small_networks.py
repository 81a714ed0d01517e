"""Published configurations of small networks, and state dicts that belong to them."""

import functools

import jax
import numpy as np

from maskdit.config import build, from_json, to_json
from maskdit.interop import dit, layouts, llamagen_vq, maskdit, maskgit_vqgan, vae, var_vqvae
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
MASKGIT = {
    "model": {
        "channel_mult": [1, 2],
        "num_resolutions": 2,
        "dropout": 0.0,
        "hidden_channels": 32,
        "num_channels": 3,
        "num_res_blocks": 1,
        "z_channels": 4,
    },
    "num_embeddings": 5,
    "commitment_cost": 0.5,
}
TAMING = {
    "ddconfig": {
        "double_z": False,
        "z_channels": 4,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
    "n_embed": 5,
    "embed_dim": 4,
}
LLAMAGEN = {
    "codebook_size": 7,
    "codebook_embed_dim": 3,
    "codebook_l2_norm": False,
    "commit_loss_beta": 0.5,
    "entropy_loss_ratio": 0.1,
    "encoder_ch_mult": [1, 2, 2],
    "decoder_ch_mult": [2, 1, 4],
    "z_channels": 6,
    "ch": 32,
    "num_res_blocks": 1,
}
VAR = {
    "vocab_size": 6,
    "z_channels": 4,
    "ch": 32,
    "beta": 0.5,
    "using_znorm": True,
    "quant_conv_ks": 1,
    "quant_resi": 0.25,
    "share_quant_resi": 3,
    "v_patch_nums": [1, 2],
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "using_sa": False,
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
    (vae, COMPVIS | {"ch_mult": [2, 1]}),
    (maskgit_vqgan, MASKGIT),
    (maskgit_vqgan, MASKGIT | {"model": MASKGIT["model"] | {"channel_mult": [3, 2]}}),
    (maskgit_vqgan, TAMING),
    (llamagen_vq, LLAMAGEN),
    (llamagen_vq, LLAMAGEN | {"decoder_ch_mult": [1, 2, 2], "codebook_l2_norm": True, "num_res_blocks": 2}),
    (llamagen_vq, LLAMAGEN | {"encoder_ch_mult": [2, 2, 4]}),
    (var_vqvae, VAR),
    (var_vqvae, VAR | {"share_quant_resi": 1, "using_sa": True, "v_patch_nums": [1, 2, 3]}),
    (var_vqvae, VAR | {"ch_mult": [2, 2], "share_quant_resi": 4}),
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
