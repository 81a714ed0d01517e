"""An encoder with its weights, as `maskdit.load` gives it."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import maskdit
from maskdit.config import spec
from maskdit.contracts import ModelError
from maskdit.encoders.convnext import ConvNeXt
from maskdit.encoders.lpips import LPIPS
from maskdit.encoders.model import EncoderModel
from maskdit.model import save
from maskdit.training.mesh import unboxed
from tests.features import InceptionV3, images, network, seen

FIELDS = {LPIPS: {"channels": (4, 4, 4, 4, 4)}, ConvNeXt: {"channels": (8,), "depths": (1,), "classes": 3}}


def made(cls):
    encoder = cls(**FIELDS[cls])
    params = unboxed(jax.jit(encoder.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)))["params"]
    config = ConfigDict({"encoder": spec(cls, **FIELDS[cls])})
    return EncoderModel(encoder, {"params": {"encoder": params}, "frozen": {}}, config)


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def test_bytes_and_floats_are_the_same_images():
    model, floats = made(ConvNeXt), (IMAGES / 127.5 - 1).astype(np.float32)
    features = model.features(IMAGES)
    assert features.shape == (3, 8)
    np.testing.assert_allclose(features, model.features(floats), atol=1e-5)


def test_a_distance_is_of_pairs():
    model = made(LPIPS)
    together = model.distance(IMAGES, IMAGES[::-1])
    np.testing.assert_allclose(together[:1], model.distance(IMAGES[:1], IMAGES[2:]), rtol=1e-5)
    assert together[1] < 1e-6 < together[0]


def test_a_saved_encoder_is_loaded_again(tmp_path):
    model = made(ConvNeXt)
    save(model, str(tmp_path / "encoder.npz"))
    again = maskdit.load(str(tmp_path / "encoder.npz"))
    np.testing.assert_array_equal(again.features(IMAGES), model.features(IMAGES))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0], r"images are \[B, H, W, 3\] .* got \[32, 32, 3\]"),
        (IMAGES.astype(np.int64), "got int64"),
        (IMAGES > 127, "got bool"),
        (IMAGES.astype(complex), "got complex128"),
        (IMAGES.astype(str), "got <U"),
        (IMAGES / 255 * 2, r"lie in \[-1, 1\]; give uint8"),
        (IMAGES[:1], r"pairs have one shape, got \[1, 32, 32, 3\] and \[3, 32, 32, 3\]"),
    ],
)
def test_bad_images_are_sentences(images, message):
    with pytest.raises(ModelError, match=message):
        made(LPIPS).distance(images, IMAGES)


def test_a_classifier_has_no_distance():
    with pytest.raises(ModelError, match="ConvNeXt gives features, no distance: load lpips"):
        made(ConvNeXt).distance(IMAGES, IMAGES)


def test_a_network_for_scores_resizes_bytes_by_a_rule_of_its_own():
    net = network()
    model = EncoderModel(InceptionV3(), {"params": {"encoder": net.variables["params"]}})
    given = images(3, size=13)
    for found, wanted in (
        (model.features(given), seen(net, given)),
        (model.features(given, "torch-bilinear"), seen(network(resize="torch-bilinear"), given)),
    ):
        for part in ("pooled", "spatial", "logits"):
            np.testing.assert_allclose(getattr(found, part), getattr(wanted, part), atol=1e-4)
    rules = [model.features(given, rule).spatial for rule in (None, "torch-bilinear")]
    assert np.abs(rules[0] - rules[1]).max() > 0.01
    with pytest.raises(ModelError, match="resize rules tf1-bilinear, torch-bilinear; got 'clean'"):
        model.features(given, "clean")
    with pytest.raises(ModelError, match="InceptionV3 takes images as uint8, got float32"):
        model.features((given / 255).astype(np.float32))
    with pytest.raises(ModelError, match="ConvNeXt takes images as they are: resize=clean is not for it"):
        made(ConvNeXt).features(IMAGES, "clean")
