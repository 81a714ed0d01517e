"""MaskGen's published weights, of the models with codes.

Source: bytedance/1d-tokenizer `modeling/maskgen.py` (MaskGen_VQ), with blocks of diffusers.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.interop.joint_block import joint_rows, last_rows, scale_and_shift
from maskdit.interop.rules import LayoutError, Op, Row, Table, Unused, linear
from maskdit.networks.maskgen import SCORE, MaskGen

TEXT_WIDTH, AESTHETIC = 768, 6.0
"""Of the published code, where the arguments do not say."""


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the network that published arguments describe.

    Args:
      config: `vq_model` and `maskgen`, the arguments of these names.
    """
    tokens, model = config["vq_model"], config["maskgen"]
    scored, text = model["micro_condition"], tokens.get("text_embed_dim", TEXT_WIDTH)
    return spec(
        MaskGen,
        vocabulary=tokens["codebook_size"],
        grid=(tokens["num_latent_tokens"],),
        width=model["decoder_embed_dim"],
        depth=model["decoder_depth"],
        heads=model["decoder_num_heads"],
        text_width=text,
        pooled_width=text,
        scalars={SCORE: model.get("sample_aesthetic_score", AESTHETIC)} if scored else {},
        score_width=model.get("micro_condition_embed_dim", 256),
        tied=model.get("weight_tying", True),
        spare=model["condition_num_classes"] + 1,
    )


def to_reference(network: MaskGen) -> dict[str, Any]:
    """The published arguments that a network of ours has: the inverse of `from_reference`.

    Raises:
      LayoutError: where the published model has no such part.
    """
    for holds, what in (
        (not network.classes, f"labels ({', '.join(network.classes)})"),
        (len(network.grid) == 1, f"tokens on a grid of {tuple(network.grid)}"),
        (
            network.text_width == network.pooled_width,
            f"texts of {network.text_width} numbers per token and {network.pooled_width} of the whole",
        ),
        (network.spare > 0, "no row behind the mask's in its embedding (spare=0)"),
    ):
        if not holds:
            raise LayoutError(f"this MaskGen has {what}: the published model (layout `reference`) has no such variant")
    model = {
        "decoder_embed_dim": network.width,
        "decoder_depth": network.depth,
        "decoder_num_heads": network.heads,
        "micro_condition": bool(network.scalars),
        "micro_condition_embed_dim": network.score_width,
        "condition_num_classes": network.spare - 1,
        "weight_tying": network.tied,
        "sample_aesthetic_score": network.scalars.get(SCORE, AESTHETIC),
    }
    tokens = {
        "codebook_size": network.vocabulary,
        "num_latent_tokens": network.grid[0],
        "text_embed_dim": network.text_width,
    }
    return {"vq_model": tokens, "maskgen": model}


_FIRST = Op(lambda x: x[0], lambda x: x[None])
"""A table `[1, K, D]` as `[K, D]`."""


def table(config: Mapping[str, Any]) -> Table:
    """Rows for the published names."""
    model = config["maskgen"]
    last = model["decoder_depth"] - 1
    rows: list[Row | Unused] = [
        Row("embeddings.weight", "embedding"),
        Row("pos_embed", "positions", _FIRST),
        *linear("text_embed_proj", "text_embed"),
        *linear("cond_pooled_proj", "pooled_embed"),
        *last_rows(f"blocks.{last}", f"blocks_{last}"),
        *joint_rows("blocks.{i}", "blocks_{i}"),
        *scale_and_shift("norm.linear", "final/modulation"),
    ]
    if model.get("weight_tying", True):
        rows.append(Unused(r"lm_head\.weight"))  # the embeddings again
    else:
        rows += linear("lm_head", "head")
    return rows
