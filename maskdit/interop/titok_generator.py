"""Published generators of TiTok, in the names of their authors' code.

Source: bytedance/1d-tokenizer `modeling/maskgit.py` (`ImageBert`, a `BertModel` of Hugging Face's transformers, and
`UViTBert`), `modeling/modules/blocks.py`.
"""

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.interop.dit import one_label
from maskdit.interop.rules import LayoutError, Row, Table, Unused, flatten, linear, parts
from maskdit.networks.maskgit import MaskGIT
from maskdit.networks.uvit_bert import UViTBert

LABEL = "label"
"""Name of the published models' one label."""
_DEFAULTS = {"hidden_size": 768, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 3072}
"""Where the configuration leaves them out: the first versions of the code had no others."""


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the network that published arguments describe.

    Dropout is that of `ImageBert`; the blocks of `UViTBert` have none, whatever the configuration says.

    Args:
      config: `codebook_size` and `generator`, the arguments of that name; `label` beside them gives our name of the
        label, else `LABEL`, and `grid` the tokens along each axis where they are no sequence.

    Raises:
      LayoutError: for another `model_type`.
    """
    model = {**_DEFAULTS, **config["generator"]}
    kind = model.get("model_type", "ViT")
    if kind not in ("ViT", "UViT"):
        raise LayoutError(f"model_type={kind!r} in the published configuration: there are 'ViT' and 'UViT'")
    width, depth, hidden = (model[key] for key in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    fields = {
        "vocabulary": config["codebook_size"],
        "grid": tuple(config.get("grid") or (model["image_seq_len"],)),
        "width": width,
        "heads": model["num_attention_heads"],
        "classes": {config.get("label", LABEL): model["condition_num_classes"]},
    }
    if kind == "UViT":
        # Half of the blocks on each side of the middle one; the hidden width goes through a ratio there.
        return spec(UViTBert, depth=depth // 2 * 2, hidden=int(width * (hidden / width)), **fields)
    dropout, attention_dropout = model.get("dropout", 0.0), model.get("attn_drop", 0.0)
    return spec(MaskGIT, depth=depth, hidden=hidden, dropout=dropout, attention_dropout=attention_dropout, **fields)


def to_reference(network: MaskGIT | UViTBert) -> dict[str, Any]:
    """The published arguments that a network of ours has, with `label` and `grid`: the inverse of `from_reference`.

    Raises:
      LayoutError: where it has no label or several.
    """
    label, bert = one_label(network), isinstance(network, MaskGIT)
    return {
        "codebook_size": network.vocabulary,
        "label": label,
        "grid": tuple(network.grid),
        "generator": {
            "model_type": "ViT" if bert else "UViT",
            "hidden_size": network.width,
            "num_hidden_layers": network.depth,
            "num_attention_heads": network.heads,
            "intermediate_size": network.hidden,
            "dropout": network.dropout if isinstance(network, MaskGIT) else 0.0,
            "attn_drop": network.attention_dropout if isinstance(network, MaskGIT) else 0.0,
            "image_seq_len": math.prod(network.grid),
            "condition_num_classes": network.classes[label],
        },
    }


def table(config: Mapping[str, Any]) -> Table:
    """Rows for the names of the published code."""
    return _uvit() if config["generator"].get("model_type", "ViT") == "UViT" else _bert()


def _bert() -> Table:
    embeddings, layer = "model.embeddings", "model.encoder.layer.{i}"
    query = tuple(f"{layer}.attention.self.{part}" for part in ("query", "key", "value"))
    return [
        Row(f"{embeddings}.word_embeddings.weight", "embed/tokens"),
        Row(f"{embeddings}.position_embeddings.weight", "embed/positions"),
        Row(f"{embeddings}.token_type_embeddings.weight", "segments"),
        *_norm(f"{embeddings}.LayerNorm", "norm"),
        Unused(r"model\.embeddings\.position_ids"),
        *linear(query, "blocks_{i}/attn/qkv", parts(3)),
        *linear(f"{layer}.attention.output.dense", "blocks_{i}/attn/proj"),
        *_norm(f"{layer}.attention.output.LayerNorm", "blocks_{i}/norm1"),
        *linear(f"{layer}.intermediate.dense", "blocks_{i}/fc1"),
        *linear(f"{layer}.output.dense", "blocks_{i}/fc2"),
        *_norm(f"{layer}.output.LayerNorm", "blocks_{i}/norm2"),
        *linear("model.lm_head", "head"),
    ]


def _uvit() -> Table:
    rows: list[Row] = [
        Row("embeddings.weight", "embed/tokens"),
        Row("pos_embed", "embed/positions", flatten((0, 1, 2), (1, -1))),
    ]
    for theirs, ours in (
        ("in_blocks.{i}", "in_blocks_{i}"),
        ("mid_block", "mid_block"),
        ("out_blocks.{i}", "out_blocks_{i}"),
    ):
        rows += _norm(f"{theirs}.norm1", f"{ours}/norm1") + _norm(f"{theirs}.norm2", f"{ours}/norm2")
        rows += linear(f"{theirs}.attn.qkv", f"{ours}/attn/qkv", parts(3))
        for layer in ("attn.proj", "mlp.fc1", "mlp.fc2"):
            rows += linear(f"{theirs}.{layer}", f"{ours}/{layer.replace('.', '/').removeprefix('mlp/')}")
    rows += linear("out_blocks.{i}.skip_linear", "out_blocks_{i}/skip")
    return rows + _norm("norm", "norm") + linear("lm_head", "head")


def _norm(source: str, target: str) -> list[Row]:
    return [Row(f"{source}.weight", f"{target}/scale"), Row(f"{source}.bias", f"{target}/bias")]
