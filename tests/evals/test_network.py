"""Feature networks by name, and what is said of them."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.contracts import ModelError
from maskdit.encoders.convnext import ConvNeXt
from maskdit.encoders.model import EncoderModel
from maskdit.evals.labels import shipped_classifier
from maskdit.evals.network import OFFLINE, find
from maskdit.model import save
from maskdit.training.mesh import unboxed
from tests.features import Other, images, network, seen


def test_the_network_that_ships_is_found_without_downloads():
    net = find()
    assert net == find(OFFLINE) or net.checksum == find(OFFLINE).checksum
    assert not net.is_inception and net.classes == "the classes of 'group'"
    widths = net.widths
    assert widths.pooled.shape == (1, 64) and widths.logits.shape[1] == 8 and widths.spatial is None
    given = images(3, size=64)
    np.testing.assert_allclose(seen(net, given).pooled, shipped_classifier().features(given), rtol=1e-3, atol=1e-4)
    told = net.described()
    assert told["network"] == OFFLINE and told["resize"] == "clean" and told["size"] == 64
    other = find(resize="tf1-bilinear").described()
    assert other["resize"] == "tf1-bilinear" and other["checksum"] == told["checksum"]


def test_rules_and_networks_that_there_are_not(tmp_path):
    with pytest.raises(ModelError, match="resize rules clean, pil-bicubic, torch-bilinear, tf1-bilinear; got 'edm2'"):
        find(resize="edm2")
    fields = {"channels": (8,), "depths": (1,), "classes": 3}
    params = unboxed(jax.jit(ConvNeXt(**fields).init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)))
    variables = {"params": {"encoder": params["params"]}, "frozen": {}}
    path = str(tmp_path / "convnext.npz")
    save(EncoderModel(ConvNeXt(**fields), variables, ConfigDict({"encoder": spec(ConvNeXt, **fields)})), path)
    with pytest.raises(
        ModelError, match=r"convnext.npz is no network that scores are made with: give emoji-classifier"
    ):
        find(path)
    with pytest.raises(ValueError, match="inception-fi"):
        find("inception-fi")


def test_other_weights_have_another_checksum():
    assert network().checksum != network(seed=1).checksum
    assert network().is_inception and network().classes == "ImageNet's classes" and not network(Other).is_inception
    again = dataclasses.replace(network())
    assert again.widths.spatial.shape == (1, 4)
