"""What lies on disk of an unfinished pass is of one moment, or is not used."""

import jax
import numpy as np
import pytest
from etils import epath

from maskdit.evals.progress_file import Progress
from maskdit.evals.statistics import empty

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def moments(number):
    return {"pooled": empty(np.full(2, number)), "spatial": empty(np.full(3, number))}


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path) / "pass"


@pytest.fixture
def saved(folder):
    """A pass after 4 images and after 6, with rows of all and logits of the last 2; and what was kept."""
    progress, kept = Progress(folder, {"of": 1}), {"rows": [np.ones((3, 2)), np.full((1, 2), 2.0)]}
    progress.save(4, kept, moments(1))
    kept["rows"].append(np.full((2, 2), 3.0))
    kept["logits"] = [np.zeros((2, 5))]
    progress.save(6, kept, moments(2))
    return progress, kept


def resumed(folder, about=None):
    done, kept, sums = Progress(folder, about or {"of": 1}).resume(HERE)
    return done, {name: np.concatenate(parts) for name, parts in kept.items()}, sums


def test_each_save_writes_what_is_new_and_all_is_read_back(folder, saved):
    assert sorted(path.name for path in folder.iterdir()) == [
        *("logits-0000000006.npy", "rows-0000000004.npy", "rows-0000000006.npy", "state.npz")
    ]
    assert np.load(folder / "rows-0000000006.npy").shape == (2, 2)
    done, kept, sums = resumed(folder)
    assert done == 6 and kept["logits"].shape == (2, 5)
    np.testing.assert_array_equal(kept["rows"][:, 0], [1, 1, 1, 2, 3, 3])
    np.testing.assert_array_equal(sums["spatial"].centre, np.full(3, 2.0))
    assert resumed(folder, {"of": 2}) == (0, {}, {})


def test_a_save_that_fails_leaves_the_one_before(folder, saved, monkeypatch):
    progress, kept = saved
    kept["rows"].append(np.full((2, 2), 9.0))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(np, "savez", full)
        progress.save(8, kept, moments(3))
    done, rows, _ = resumed(folder)
    assert done == 6 and rows["rows"].max() == 3


def test_a_file_that_is_cut_off_or_missing_begins_anew(folder, saved):
    whole = (folder / "state.npz").read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"no archive"):
        (folder / "state.npz").write_bytes(broken)
        assert resumed(folder) == (0, {}, {})
    (folder / "state.npz").write_bytes(whole)
    (folder / "rows-0000000004.npy").unlink()
    assert resumed(folder) == (0, {}, {})
    saved[0].remove()
    assert not folder.exists()
