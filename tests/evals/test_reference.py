"""References: written and read back, those of other tools, and all that samples cannot be compared with."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath

from maskdit.data.image_array import Pictures
from maskdit.evals import reference as references
from maskdit.evals.collector import Collector, Wanted
from maskdit.evals.reference import ScoreError, of_collected, of_loader, of_pictures, read, write
from tests.features import Other, images, loader, network, seen

GIVEN = images(23)
ALL = Wanted(spatial=True, rows="float32")
PLAIN = Wanted()


def cov(rows):
    return np.cov(rows.astype(np.float64), rowvar=False)


@pytest.fixture(scope="module")
def made():
    return of_collected(of_loader(loader(), network(), ALL, batch=8), {"reference": {"source": "noise"}, "images": 23})


@pytest.fixture
def ours(tmp_path, made):
    path = str(tmp_path / "ours.npz")
    write(path, made, network())
    return path


def test_a_loaders_images_are_read_as_they_are_and_unreadable_ones_left_out(made):
    rows = seen(network(), GIVEN).pooled
    np.testing.assert_allclose(made.rows, rows, rtol=1e-5)  # neither mirrored nor shuffled
    np.testing.assert_allclose(made.pooled.cov, cov(rows), atol=1e-6 * np.trace(cov(rows)))
    found = of_loader(loader(broken=(4, 22)), network(), ALL, batch=8)
    assert found.count == 21
    np.testing.assert_array_equal(found.rows, np.delete(made.rows, [4, 22], 0))
    spread = of_loader(loader(), network(), ALL, limit=10, batch=8)
    np.testing.assert_array_equal(spread.rows, made.rows[np.arange(10) * 23 // 10])


def test_an_interrupted_pass_over_a_loader_goes_on(tmp_path, made, monkeypatch):
    folder = epath.Path(tmp_path) / "pass"
    original, done = Collector.add_batch, []

    def cut(self, *given):
        original(self, *given)
        self.save()
        done.append(self.done)
        if len(done) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Collector, "add_batch", cut)
        of_loader(loader(), network(), ALL, batch=8, folder=folder)
    # another set of images does not go on with it
    read_anew = of_loader(loader(seed=1), network(), ALL, batch=8, folder=folder / "other")
    assert np.abs(read_anew.rows - made.rows).max() > 0.1
    monkeypatch.setattr(Collector, "add_batch", lambda self, *given: (done.append(-1), original(self, *given))[1])
    found = of_loader(loader(), network(), ALL, batch=8, folder=folder)
    assert done == [8, 16, -1]
    np.testing.assert_array_equal(found.rows, made.rows)
    np.testing.assert_array_equal(found.pooled.cov, made.pooled.cov)


def test_ours_is_read_back_with_where_it_comes_from(ours, made):
    found = read(ours, network(), ALL)
    for part in ("pooled", "spatial"):
        np.testing.assert_array_equal(getattr(found, part).cov, getattr(made, part).cov)
        assert getattr(found, part).count == 23
    np.testing.assert_array_equal(found.rows, made.rows)
    about = found.about
    assert about["network"] == "inception-fid" and about["checksum"] == network().checksum
    assert about["resize"] == "tf1-bilinear" and about["reference"] == {"source": "noise"} and about["images"] == 23
    assert about["file"] == ours and about["sha256"] == references.sha256(ours) and "jax" in about["versions"]
    json.dumps(about)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def statistics(given=GIVEN):
    said = seen(network(), given)
    return {
        "mu": said.pooled.mean(0, np.float64),
        "sigma": cov(said.pooled),
        "mu_s": said.spatial.mean(0, np.float64),
        "sigma_s": cov(said.spatial),
    }


def test_those_of_other_tools_are_taken_with_inception(tmp_path):
    numbers = statistics()
    adm = npz(tmp_path / "adm.npz", arr_0=GIVEN[:9], **numbers)
    found = read(adm, network(), ALL, batch=8)
    np.testing.assert_array_equal(found.spatial.cov, numbers["sigma_s"])  # its statistics, and features of its images
    np.testing.assert_allclose(found.rows, seen(network(), GIVEN[:9]).pooled, rtol=1e-5)
    assert found.about["statistics"] == "ADM's" and found.pooled.count is None
    two = {name: numbers[name].astype(np.float32) for name in ("mu", "sigma")}
    fid = read(npz(tmp_path / "fid.npz", **two), network(resize="torch-bilinear"), PLAIN)
    assert fid.rows is None and fid.about["resize"] == "not stated" and fid.about["sha256"]
    pictures = read(npz(tmp_path / "pictures.npz", arr_0=GIVEN), network(Other), Wanted(rows="float32"), batch=8)
    assert pictures.pooled.count == 23 and pictures.rows.shape == (23, 6) and pictures.about["images"] == 23


def test_another_network_or_rule_is_refused(ours, tmp_path):
    with pytest.raises(ScoreError, match=r"made with inception-fid, .* with inception-fid: checksum is .* there"):
        read(ours, network(seed=1), PLAIN)
    with pytest.raises(ScoreError, match=r"resize is tf1-bilinear there and torch-bilinear here.*--resize as they"):
        read(ours, network(resize="torch-bilinear"), PLAIN)
    with pytest.raises(ScoreError, match=r"made with inception-fid, .* with other"):
        read(ours, network(Other), PLAIN)
    adm = npz(tmp_path / "adm.npz", **statistics())
    with pytest.raises(ScoreError, match=r"ADM's evaluator, which resizes by tf1-bilinear; .* use --resize tf1"):
        read(adm, network(resize="torch-bilinear"), PLAIN)
    with pytest.raises(ScoreError, match=r"do not say of which network.*use --network inception-fid"):
        read(adm, network(Other), PLAIN)
    wide = npz(tmp_path / "wide.npz", mu=np.zeros(7), sigma=np.eye(7))
    with pytest.raises(ScoreError, match="statistics of 7 features; inception-fid has 6"):
        read(wide, network(), PLAIN)


def test_what_is_not_in_the_file_is_not_made_up(made, tmp_path):
    less = str(tmp_path / "less.npz")
    write(less, dataclasses.replace(made, spatial=None, rows=None), network())
    fid = npz(tmp_path / "fid.npz", mu=np.zeros(6), sigma=np.eye(6))
    for path in (less, fid):
        read(path, network(), PLAIN)
        with pytest.raises(ScoreError, match="no statistics of places"):
            read(path, network(), Wanted(spatial=True))
        with pytest.raises(ScoreError, match="no images or features of images, which kid, pr, prdc and mind"):
            read(path, network(), Wanted(rows="float16"))


def test_files_of_another_kind(tmp_path, ours):
    (tmp_path / "text.npz").write_bytes(b"nothing of this kind")
    (tmp_path / "none.npz").write_bytes(b"")
    whole = epath.Path(ours).read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    np.savez(tmp_path / "objects.npz", mu=np.array([{}], object))
    for name in ("text", "none", "half", "array", "objects"):
        with pytest.raises(ScoreError, match=f"{name}.npz is no .npz file of statistics or images"):
            read(str(tmp_path / f"{name}.npz"), network(), PLAIN)
    with pytest.raises(ScoreError, match="holds nothing: a reference has images as arr_0, or mu and sigma"):
        read(npz(tmp_path / "empty.npz"), network(), PLAIN)
    with pytest.raises(ScoreError, match="holds mu, var: a reference has"):
        read(npz(tmp_path / "var.npz", mu=np.zeros(6), var=np.ones(6)), network(), PLAIN)
    for sigma, said in ((np.eye(5), r"sigma \[D, D\]; got \[6\] and \[5, 5\]"),):
        with pytest.raises(ScoreError, match=said):
            read(npz(tmp_path / "shape.npz", mu=np.zeros(6), sigma=sigma), network(), PLAIN)
    for about in ("no json", "[]", json.dumps({"format": "maskdit statistics 9"})):
        with pytest.raises(ScoreError, match="provenance that is not of this version"):
            read(npz(tmp_path / "later.npz", provenance=np.array(about), mu=np.zeros(6)), network(), PLAIN)
    with pytest.raises(FileNotFoundError):
        read(str(tmp_path / "missing.npz"), network(), PLAIN)
    with pytest.raises(ScoreError, match=r"ends in .npz, got statistics.pt"):
        references.check_path("statistics.pt")


def test_pictures_are_counted(tmp_path):
    pictures = Pictures(npz(tmp_path / "pictures.npz", arr_0=GIVEN))
    found = of_pictures(pictures, network(), ALL, num=9, batch=8)
    np.testing.assert_allclose(found.rows, seen(network(), GIVEN[:9]).pooled, rtol=1e-5)
    with pytest.raises(ScoreError, match="holds 23 images, and 24 are asked for"):
        of_pictures(pictures, network(), ALL, num=24)
