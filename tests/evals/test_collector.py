"""One pass over images: what it collects, in any chunks, on any devices, and over interruptions."""

import jax
import numpy as np
import pytest
from etils import epath

from maskdit.evals.collector import Collector, Extractor, Wanted, features
from maskdit.training.mesh import MeshShape
from tests.features import images, network, seen

GIVEN = images(43)
ALL = Wanted(spatial=True, logits=True, rows="float32")


@pytest.fixture(scope="module")
def alone():
    return MeshShape().make(jax.devices()[:1])


@pytest.fixture(scope="module")
def said():
    return seen(network(), GIVEN)


def chunks(given, sizes):
    starts = np.cumsum([0, *sizes])
    return [given[start : start + size] for start, size in zip(starts, sizes, strict=False)]


def collected(given=GIVEN, sizes=(43,), wanted=ALL, **how):
    collector = Collector(network(), wanted, **{"batch": 8, **how})
    for some in chunks(given, sizes):
        collector.add(some)
    return collector.finish()


def same(found, other):
    """Bit for bit."""
    assert found.count == other.count
    for part in ("pooled", "spatial"):
        np.testing.assert_array_equal(getattr(found, part).cov, getattr(other, part).cov)
        np.testing.assert_array_equal(getattr(found, part).mean, getattr(other, part).mean)
    np.testing.assert_array_equal(found.logits, other.logits)
    np.testing.assert_array_equal(found.rows, other.rows)


def test_statistics_are_those_of_the_features_on_one_device_and_on_eight(said, alone):
    for devices, batch in ((None, 8), (alone, 8), (alone, 5)):
        found = collected(devices=devices, batch=batch)
        assert found.count == 43
        for gaussian, rows in ((found.pooled, said.pooled), (found.spatial, said.spatial)):
            cov = np.cov(rows.astype(np.float64), rowvar=False)
            np.testing.assert_allclose(gaussian.mean, rows.mean(0, np.float64), rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(gaussian.cov, cov, rtol=0, atol=1e-6 * np.trace(cov))
        np.testing.assert_allclose(found.rows, said.pooled, rtol=1e-5)
        np.testing.assert_allclose(found.logits, said.logits, rtol=1e-5)


def test_chunks_do_not_matter():
    whole = collected()
    for sizes in ((1, 7, 35), (3, 0, 20, 20), (8,) * 5 + (3,)):
        same(collected(sizes=sizes), whole)


def test_rows_are_kept_for_as_many_images_as_asked_for_spread_evenly(said):
    found = collected(sizes=(10, 33), wanted=Wanted(rows="float16", limit=10), total=43)
    assert found.rows.dtype == np.float16 and found.rows.shape == (10, 6) and found.count == 43
    places = [int(np.abs(said.pooled - row.astype(np.float32)).max(1).argmin()) for row in found.rows]
    assert set(np.diff(places)) <= {4, 5} and places[0] < 5 and places[-1] > 37
    assert found.logits is None and found.spatial is None
    np.testing.assert_array_equal(collected(wanted=Wanted(rows="float16", limit=50), total=43).rows.shape, (43, 6))


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path) / "pass"


def begun(folder, *sizes, wanted=ALL, **how):
    """A collector after some images, and nobody who finished it."""
    collector = Collector(network(), wanted, **{"batch": 8, "folder": folder, "key": "k", "total": 43, **how})
    for some in chunks(GIVEN[collector.done :], sizes):
        collector.add(some)
    return collector


def test_an_interrupted_pass_goes_on_to_the_same_numbers(folder):
    wanted = Wanted(spatial=True, logits=True, rows="float16", limit=17)
    begun(folder, 13, wanted=wanted).save()
    second = begun(folder, 20, wanted=wanted)
    assert second.done == 8 + 16
    second.save()
    begun(folder, 19, wanted=wanted)  # cut off before it saved anything
    third = begun(folder, wanted=wanted)
    assert third.done == 24
    third.add(GIVEN[24:])
    same(third.finish(), collected(wanted=wanted, total=43))
    assert not folder.exists()


def test_a_pass_saves_itself_now_and_then(folder, monkeypatch):
    collector = begun(folder)
    monkeypatch.setattr(collector._progress, "seconds", -1.0)
    collector.add(GIVEN[:17])
    again = begun(folder)
    assert again.done == 16
    again.add(GIVEN[16:])
    same(again.finish(), collected())


def test_a_pass_of_something_else_is_not_gone_on_with(folder):
    begun(folder, 16).save()
    for other in ({"key": "other"}, {"batch": 16}, {"wanted": Wanted(rows="float32")}):
        assert begun(folder, **other).done == 0
    assert begun(folder).done == 16
    other = begun(folder, 43, key="other")
    same(other.finish(), collected())


def test_images_that_cannot_be_scored():
    collector = Collector(network(), batch=8)
    for wrong, said in (
        (GIVEN.astype(np.float32), r"uint8 \[N, H, W, 3\], got float32"),
        (GIVEN[..., :1], r"got uint8 \[43, 8, 8, 1\]"),
        (GIVEN[0], r"got uint8 \[8, 8, 3\]"),
    ):
        with pytest.raises(ValueError, match=said):
            collector.add(wrong)
    with pytest.raises(ValueError, match="there are no images to score"):
        collector.finish()
    collector.add(GIVEN[:8])  # a whole batch, so that nothing waits
    with pytest.raises(ValueError, match=r"images of \[9, 9, 3\] after images of \[8, 8, 3\]"):
        collector.add(images(1, size=9))
    with pytest.raises(ValueError, match="2 or more images, got 1"):
        collected(GIVEN[:1], (1,))
    with pytest.raises(ValueError, match="a batch of 0"):
        Extractor(network(), 0)


def test_features_come_chunk_by_chunk(said):
    found = list(features(network(), iter(chunks(GIVEN, (3, 40))), batch=8))
    assert [len(some) for some in found] == [3, 40]
    np.testing.assert_allclose(np.concatenate(found), said.pooled, rtol=1e-5)
