"""Published arguments of RAR: the inverse, and what the published model does not have."""

import dataclasses

import pytest

from maskdit.config import build
from maskdit.interop import rar
from maskdit.interop.rules import LayoutError
from maskdit.networks.rar import RAR

CONFIG = {
    "codebook_size": 5,
    "generator": {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "dropout": 0.1,
        "attn_drop": 0.2,
        "image_seq_len": 4,
        "condition_num_classes": 3,
    },
}


def network(**generator) -> RAR:
    return build(rar.from_reference(CONFIG | {"generator": CONFIG["generator"] | generator}))


@pytest.mark.parametrize(("length", "grid"), [(4, (2, 2)), (6, (6,))])
def test_arguments_come_back(length, grid):
    net = network(image_seq_len=length)
    assert net.grid == grid and (net.dropout, net.attention_dropout) == (0.1, 0.2)
    assert build(rar.from_reference(rar.to_reference(net))) == net
    oblong = dataclasses.replace(net, grid=(2, length // 2), parent=None)
    assert build(rar.from_reference(rar.to_reference(oblong))) == oblong


def test_networks_that_were_not_published_are_refused():
    with pytest.raises(LayoutError, match="spare_steps=7"):
        rar.to_reference(dataclasses.replace(network(), spare_steps=7, parent=None))
    with pytest.raises(LayoutError, match="0 labels"):
        rar.to_reference(dataclasses.replace(network(), classes={}, parent=None))
