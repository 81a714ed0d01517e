"""DiT weights in the layout of diffusers (`DiTTransformer2DModel`; the folder `transformer` of facebook/DiT-XL-2-256).

Source: huggingface/diffusers, `models/transformers/dit_transformer_2d.py` and `scripts/convert_dit_to_diffusers.py`.

Queries, keys and values are separate products; the embeddings of time and label stand in every block, all equal; the
table of places is not stored. The parts of a modulation come in DiT's order.

The pipeline there computes the time embedding a little differently: its 128 frequencies fall to 1e-4 itself, as
`10000^(-k / 127)`, those of DiT as `10000^(-k / 128)`. That is a fact about its code, not about the weights: these are
the same, and `DiT` here takes them with DiT's own frequencies.
"""

from collections.abc import Mapping
from typing import Any

from maskdit.interop import dit
from maskdit.interop.rules import LayoutError, Row, Table, linear, parts
from maskdit.networks.dit import DiT

HELD = (
    "sample_size",
    "patch_size",
    "in_channels",
    "out_channels",
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "num_embeds_ada_norm",
    "activation_fn",
    "norm_type",
)
"""Entries of the configuration that say what the weights are for."""


def to_config(network: DiT) -> dict[str, Any]:
    """The `config.json` that lies beside the weights: the arguments of `DiTTransformer2DModel`.

    `norm_eps` is DiT's 1e-6 and not the default there, 1e-5.

    Raises:
      LayoutError: where diffusers' model has no such part.
    """
    config, grid = dit.to_reference(network), network.position_grid
    if grid not in (None, network.input_size // network.patch):
        raise LayoutError(
            f"this DiT stretches the places of another grid (position_grid={grid}): diffusers' computes its own table; "
            "use the layout `reference`, which stores it"
        )
    if network.mlp_ratio != 4:
        raise LayoutError(f"this DiT has mlp_ratio={network.mlp_ratio:g}: diffusers' has only 4")
    if not network.label_null:
        raise LayoutError("this DiT has no null label (label_null=False): diffusers' always has one")
    return {
        "_class_name": "DiTTransformer2DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": network.width // network.heads,
        "dropout": 0.0,
        "in_channels": network.channels,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": network.heads,
        "num_embeds_ada_norm": config["num_classes"],
        "num_layers": network.depth,
        "out_channels": network.channels * (2 if network.learned_variance else 1),
        "patch_size": network.patch,
        "sample_size": network.input_size,
        "upcast_attention": False,
    }


def table(config: Mapping[str, Any]) -> Table:
    """The rows of diffusers' names that belong to the arguments of the published `DiT` (`dit.to_reference`)."""
    depth, block = config["depth"], "transformer_blocks.{i}"
    embedder, target = "transformer_blocks.{copy}.norm1.emb", "blocks_{i}"
    rows: list[Row] = [
        dit.label_table(f"{embedder}.class_embedder.embedding_table.weight", config, copies=depth),
        *linear("pos_embed.proj", "patch_embed", dit.patch_kernel(config["patch_size"])),
        *linear(f"{embedder}.timestep_embedder.linear_1", "time_embed/fc1", copies=depth),
        *linear(f"{embedder}.timestep_embedder.linear_2", "time_embed/fc2", copies=depth),
        *linear(f"{block}.norm1.linear", f"{target}/modulation"),
        *linear(tuple(f"{block}.attn1.to_{part}" for part in "qkv"), f"{target}/attn/qkv", parts(3)),
        *linear(f"{block}.attn1.to_out.0", f"{target}/attn/proj"),
        *linear(f"{block}.ff.net.0.proj", f"{target}/mlp/fc1"),
        *linear(f"{block}.ff.net.2", f"{target}/mlp/fc2"),
        *linear("proj_out_1", "final/modulation"),
        *linear("proj_out_2", "final/linear"),
    ]
    return rows
