import dataclasses
import itertools
import logging
import pickle

import numpy as np
import pytest

from maskdit.config import build, spec
from maskdit.data.emoji import Emoji
from maskdit.data.loader import Loader
from maskdit.data.source import DataError, UnreadableRecord
from maskdit.data.transforms import flips


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Record i is an 8x8 image whose left half is i and right half 255 - i; numbers in `broken` cannot be read."""

    count: int = 23
    broken: tuple[int, ...] = ()

    @property
    def vocabulary(self):
        return {"number": tuple(map(str, range(self.count)))}

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i in self.broken:
            raise UnreadableRecord(self.describe(i), "broken")
        image = np.full((8, 8, 3), i, np.uint8)
        image[:, 4:] = 255 - i
        return {"image": image, "number": i}

    def describe(self, i):
        return f"record {i}"


def take(loader, steps, *, seed=5, batch=8, **kw):
    with loader.batches(seed, batch, **kw) as stream:
        return list(itertools.islice(stream, steps))


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def reference():
    return take(Loader(Numbered(), size=8, threads=0), 7)


def test_batch_contents(reference):
    for batch in reference:
        assert batch["image"].dtype == np.uint8 and batch["image"].shape == (8, 8, 8, 3)
        assert batch["number"].dtype == np.int32 and batch["replaced"] == 0
        np.testing.assert_array_equal(batch["row"], np.arange(8))
        left, right = batch["image"][:, 0, 0, 0], batch["image"][:, 0, 7, 0]
        mirrored = left == 255 - batch["number"]
        np.testing.assert_array_equal(np.where(mirrored, right, left), batch["number"])


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_rows_of_processes_join_to_the_same_batch(reference, processes, threads):
    loader = Loader(Numbered(), size=8, threads=threads)
    parts = [take(loader, 7, rows=rows) for rows in np.arange(8).reshape(processes, -1)]
    for step, whole in enumerate(reference):
        for name in ("image", "number", "row"):
            np.testing.assert_array_equal(np.concatenate([part[step][name] for part in parts]), whole[name])


def test_rows_come_in_the_order_asked_for(reference):
    mixed = take(Loader(Numbered(), size=8), 1, rows=[6, 1])[0]
    np.testing.assert_array_equal(mixed["row"], [6, 1])
    np.testing.assert_array_equal(mixed["image"], reference[0]["image"][[6, 1]])


@pytest.mark.slow
def test_worker_processes_give_the_same_batches():
    loader = Loader(Emoji("val"), size=16)
    assert_equal(
        take(dataclasses.replace(loader, workers=2, threads=1, prefetch=1), 5, start=2), take(loader, 5, start=2)
    )


def test_resumes_at_any_step(reference):
    for start in (1, 3, 6):
        assert_equal(take(Loader(Numbered(), size=8), 7 - start, start=start), reference[start:])


def test_each_pass_shows_every_record_once_in_another_order():
    shown = np.concatenate([b["number"] for b in take(Loader(Numbered(24), size=8), 6)]).reshape(2, 24)
    np.testing.assert_array_equal(np.sort(shown, axis=1), np.tile(np.arange(24), (2, 1)))
    assert (shown[0] != shown[1]).any() and (shown[0] != np.arange(24)).any()
    other = np.concatenate([b["number"] for b in take(Loader(Numbered(24), size=8), 3, seed=6)])
    assert (other != shown[0]).any()
    still = np.concatenate([b["number"] for b in take(Loader(Numbered(24), size=8, shuffle=False), 3)])
    np.testing.assert_array_equal(still, np.arange(24))


def test_flip_is_a_fair_coin_of_seed_and_place():
    places = np.arange(40_000)
    coin = flips(3, places)
    np.testing.assert_array_equal(flips(3, places[[7, 31_000]]), coin[[7, 31_000]])
    for sample in (
        coin,
        coin[1:] ^ coin[:-1],
        coin[64:] ^ coin[:-64],
        coin ^ flips(4, places),
        coin[1:] ^ flips(4, places)[:-1],
    ):
        assert abs(sample.mean() - 0.5) < 0.015  # six standard deviations
    flipped, plain = (take(Loader(Numbered(), size=8, flip=flip), 3) for flip in (True, False))
    for step in range(3):
        expected = flips(5, step * 8 + np.arange(8))
        mirrored = (flipped[step]["image"] != plain[step]["image"]).any(axis=(1, 2, 3))
        np.testing.assert_array_equal(mirrored, expected)


def test_unreadable_record_is_replaced_named_once_and_counted(caplog, reference):
    loader = Loader(Numbered(broken=(4, 9)), size=8)
    with caplog.at_level(logging.WARNING):
        batches = take(loader, 7)
    shown = np.concatenate([b["number"] for b in batches])
    whole = np.concatenate([b["number"] for b in reference])
    bad = np.isin(whole, [4, 9])
    np.testing.assert_array_equal(shown[~bad], whole[~bad])
    for place in np.flatnonzero(bad):
        order = np.roll(whole[place // 23 * 23 :][:23], -(place % 23))  # the pass from here on
        if len(order) == 23:
            assert shown[place] == next(number for number in order if number not in (4, 9))
    assert not np.isin(shown, [4, 9]).any()
    assert sum(b["replaced"] for b in batches) == bad.sum() > 2
    assert sorted(r.getMessage().split(": ", 1)[1] for r in caplog.records) == ["record 4: broken", "record 9: broken"]
    parts = [take(loader, 7, rows=rows) for rows in (range(4), range(4, 8))]
    np.testing.assert_array_equal(
        np.concatenate([p["number"] for pair in zip(*parts, strict=True) for p in pair]), shown
    )


def test_nothing_readable_ends_the_run():
    source = Numbered(6, broken=tuple(range(6)))
    for stream in (Loader(source).batches(0, 4), Loader(source).ordered(4)):
        with (
            stream,
            pytest.raises(DataError, match=r"none of the 6 records can be read; the first was record \d: broken"),
        ):
            next(stream)


def test_fewer_records_than_a_batch(caplog):
    with caplog.at_level(logging.WARNING):
        (batch,) = take(Loader(Numbered(3), size=8), 1)
    assert np.bincount(batch["number"]).sum() == 8 and np.bincount(batch["number"]).min() >= 2
    assert "3 records, less than a batch of 8" in caplog.text


def test_ordered_counts_every_readable_record_once():
    with Loader(Numbered(10, broken=(2,)), size=8).ordered(4) as stream:
        batches = list(stream)
    weight, number = (np.concatenate([b[name] for b in batches]) for name in ("weight", "number"))
    assert len(batches) == 3 and weight.dtype == np.float32
    np.testing.assert_array_equal(number, [0, 1, 3, 3, 4, 5, 6, 7, 8, 9, 0, 1])
    np.testing.assert_array_equal(weight, [1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    assert [b["replaced"] for b in batches] == [1, 0, 0]
    np.testing.assert_array_equal(batches[0]["image"][1, 0, :, 0], [1] * 4 + [254] * 4)  # not mirrored


def test_ordered_limit_is_spread_over_the_source():
    with Loader(Numbered(10), size=8).ordered(4, limit=5) as stream:
        first, second = stream
    np.testing.assert_array_equal(np.concatenate([first["number"], second["number"]]), [0, 2, 4, 6, 8, 0, 2, 4])
    np.testing.assert_array_equal(second["weight"], [1, 0, 0, 0])
    with Loader(Numbered(10), size=8).ordered(4, limit=99, rows=[3]) as stream:
        np.testing.assert_array_equal([b["number"][0] for b in stream], [3, 7, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Loader(Numbered(), size=0), "size must be 1 or more; got 0"),
        (lambda: Loader(Numbered(), threads=-1), "threads must be 0 or more"),
        (
            lambda: Loader(Numbered(), threads=3, prefetch=2),
            r"prefetch \(as large as threads\) must be 3 or more; got 2",
        ),
        (lambda: Loader(Numbered(), fit="pad"), "fit is one of crop, resize; got 'pad'"),
        (lambda: Loader(Numbered()).batches(0, 0), "batch must be 1 or more; got 0"),
        (lambda: Loader(Numbered()).batches(-1, 4), "seed is 0 to"),
        (lambda: Loader(Numbered()).batches(0, 4, start=-2), "start must be 0 or more"),
        (lambda: Loader(Numbered()).batches(0, 4, rows=[4]), "rows are one or more of 0 to 3"),
        (lambda: Loader(Numbered()).batches(0, 4, rows=[]), "rows are one or more"),
        (lambda: Loader(Numbered()).ordered(4, limit=0), "limit must be 1 or more"),
        (lambda: Loader(Numbered(0)).batches(0, 4), "has no records"),
    ],
)
def test_fields_out_of_range(call, message):
    with pytest.raises(DataError, match=message):
        call()


@dataclasses.dataclass(frozen=True)
class Wrong(Numbered):
    fault: str = ""

    @property
    def vocabulary(self):
        return {"row": ("a",)} if self.fault == "name" else super().vocabulary

    def __getitem__(self, i):
        record = super().__getitem__(i)
        if self.fault == "float":
            record["image"] = record["image"] / 255
        if self.fault == "label":
            del record["number"]
        if self.fault == "class" and i == 1:
            record["number"] = -1
        return record


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("float", r"record \d+: .* uint8 array .* got float64 \[8, 8, 3\]"),
        ("label", "has no label 'number'"),
        ("name", "'row'"),
    ],
)
def test_a_source_that_breaks_the_contract(fault, message):
    with pytest.raises(DataError, match=message), Loader(Wrong(fault=fault), size=8).batches(0, 4) as stream:
        next(stream)


def test_a_class_number_out_of_range_is_a_broken_record(caplog):
    with Loader(Wrong(4, fault="class"), size=8).ordered(4) as stream:
        (batch,) = stream
    assert batch["replaced"] == 1 and "number is -1, but there are 4 classes" in caplog.text


def test_loader_is_built_from_a_config_and_pickled():
    loader = build(spec(Loader, source=spec(Emoji, split="val", labels=("group",)), size=32))
    assert loader == Loader(Emoji("val", ("group",)), size=32)
    assert loader.vocabulary["group"][0] == "smileys-emotion"
    assert pickle.loads(pickle.dumps(loader)) == loader
    assert len(pickle.dumps(loader)) < 1000  # opened files stay behind


def test_a_closed_stream_ends():
    stream = Loader(Numbered(), size=8).batches(0, 4)
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []
