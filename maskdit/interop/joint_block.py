"""The blocks of `maskdit.networks.joint_block` in diffusers' names.

Source: huggingface/diffusers `models/attention.py` (JointTransformerBlock), `models/normalization.py`.
"""

import numpy as np

from maskdit.interop.rules import TRANSPOSE, Op, Row, linear, parts

_STREAMS = {
    "image": {
        "modulation": "norm1.linear",
        "qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "norm_q": "attn.norm_q",
        "norm_k": "attn.norm_k",
        "proj": "attn.to_out.0",
        "fc1": "ff.net.0.proj",
        "fc2": "ff.net.2",
    },
    "text": {
        "modulation": "norm1_context.linear",
        "qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "norm_q": "attn.norm_added_q",
        "norm_k": "attn.norm_added_k",
        "proj": "attn.to_add_out",
        "fc1": "ff_context.net.0.proj",
        "fc2": "ff_context.net.2",
    },
}


def _halves(x: np.ndarray) -> np.ndarray:
    """The two halves of the first axis, exchanged."""
    return np.roll(x, x.shape[0] // 2, axis=0)


_SWAP = Op(_halves, _halves)
_SWAP_TRANSPOSE = Op(lambda x: _halves(x).T, lambda x: _halves(x.T))


def scale_and_shift(source: str, target: str) -> list[Row]:
    """Rows of a modulation that gives the scale first there (`AdaLayerNormContinuous`) and the shift here."""
    return [
        Row(f"{source}.weight", f"{target}/kernel", _SWAP_TRANSPOSE),
        Row(f"{source}.bias", f"{target}/bias", _SWAP),
    ]


def joint_rows(source: str, target: str) -> list[Row]:
    """Rows of a joint block; `last` ones have another modulation of the text, see `last_rows`."""
    rows: list[Row] = []
    for stream, names in _STREAMS.items():
        for ours, theirs in names.items():
            here = f"{target}/{stream}/{ours}"
            if isinstance(theirs, tuple):
                rows += linear(tuple(f"{source}.{name}" for name in theirs), here, parts(3))
            elif ours.startswith("norm"):
                rows.append(Row(f"{source}.{theirs}.weight", f"{here}/scale"))
            else:
                rows += linear(f"{source}.{theirs}", here, TRANSPOSE)
    return rows


def last_rows(source: str, target: str) -> list[Row]:
    """Rows of what differs in a `last` block; they must stand before those of `joint_rows`."""
    return scale_and_shift(f"{source}.norm1_context.linear", f"{target}/text/modulation")


def single_rows(source: str, target: str) -> list[Row]:
    """Rows of a single block."""
    rows = linear(f"{source}.norm.linear", f"{target}/modulation")
    rows += linear(tuple(f"{source}.attn.to_{part}" for part in "qkv"), f"{target}/qkv", parts(3))
    rows += [Row(f"{source}.attn.{norm}.weight", f"{target}/{norm}/scale") for norm in ("norm_q", "norm_k")]
    return rows + linear(f"{source}.proj_mlp", f"{target}/fc1") + linear(f"{source}.proj_out", f"{target}/out")
