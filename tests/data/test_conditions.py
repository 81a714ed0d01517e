import dataclasses
import logging
from collections.abc import Mapping

import jax
import numpy as np
import pytest

from maskdit.contracts import dropped, null_condition
from maskdit.data.conditions import check_conditions, condition, read_prompts
from maskdit.data.source import DataError

RNG = np.random.default_rng(0)


@dataclasses.dataclass(frozen=True)
class Net:
    """What of a network says what conditions it."""

    classes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    text_width: int | None = 4
    pooled_width: int | None = 6
    scalars: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"height": 512.0, "aesthetic": 6.0})


class Plain:
    """A network of labels alone, without the fields of texts."""

    def __init__(self, **classes):
        self.classes = classes


def batch():
    return {
        "replaced": 0,
        "text": RNG.standard_normal((3, 2, 4)).astype(np.float16),
        "pooled": RNG.standard_normal((3, 6)).astype(np.float16),
        "null_text": np.full((3, 2, 4), 0.5, np.float16),
        "scalar/aesthetic": np.arange(3, dtype=np.float32),
        "scalar/other": np.arange(3, dtype=np.float32),
        "style": np.array([1, 0, 1], np.int32),
        "group": np.array([2, 2, 2], np.int32),
    }


def test_a_condition_is_what_the_network_takes():
    given = batch()
    cond = jax.jit(lambda arrays: condition(Net({"style": 2}), arrays))(given)
    assert cond.labels.keys() == {"style"} and cond.scalars.keys() == {"height", "aesthetic"}
    for name in ("text", "pooled", "null_text"):
        assert getattr(cond, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(cond, name), given[name])
    assert cond.null_pooled is None
    np.testing.assert_array_equal(cond.scalars["height"], [512, 512, 512])
    np.testing.assert_array_equal(cond.scalars["aesthetic"], [0, 1, 2])
    plain = condition(Plain(group=5), given)
    assert plain.labels.keys() == {"group"} and plain.text is None and plain.pooled is None and not plain.scalars


def test_dropped_texts_become_the_empty_one():
    cond = condition(Net({"style": 2}), batch())
    drop = np.array([True, False, True])
    some = dropped(cond, null_condition(cond, {"style": 2}), drop)
    np.testing.assert_array_equal(some.text[0], cond.null_text[0])
    np.testing.assert_array_equal(some.text[1], cond.text[1])
    np.testing.assert_array_equal(some.pooled[2], np.zeros(6))
    np.testing.assert_array_equal(some.labels["style"], [2, 0, 2])
    np.testing.assert_array_equal(some.scalars["aesthetic"], [0, 1, 2])


@pytest.mark.parametrize(
    ("gone", "net", "message"),
    [
        ("text", {}, r"takes texts \(text_width 4\) and the data have no 'text': set data.text=FILE.* --text FILE"),
        ("pooled", {}, r"takes texts \(pooled_width 6\) and the data have no 'pooled'"),
        ("", {"text_width": 5}, r"'text' has embeddings of 4 numbers and the network takes 5: .*text_width=4"),
        ("", {"pooled_width": 5}, r"'pooled' has embeddings of 6 numbers and the network takes 5: .*pooled_width=6"),
    ],
)
def test_data_that_do_not_go_with_the_network(gone, net, message):
    shapes = {name: array for name, array in batch().items() if name != gone}
    with pytest.raises(ValueError, match=message):
        check_conditions(Net(**net), shapes)


def test_shapes_are_enough_and_numbers_of_no_use_are_named(caplog):
    shapes = {name: jax.ShapeDtypeStruct(np.shape(array), np.float32) for name, array in batch().items()}
    with caplog.at_level(logging.WARNING):
        check_conditions(Plain(style=2), {})
        check_conditions(Net(scalars={}), shapes)
        assert not caplog.records
        check_conditions(Net(), shapes)
    assert "takes no other of the data, but aesthetic, height" in caplog.text


def prompts(path, **change):
    given = {name: array for name, array in batch().items() if name in ("text", "pooled")}
    arrays = (
        given | {"null_text": np.full((2, 4), 0.5, np.float32), "names": np.array(["a cat", "a dog", "é"])} | change
    )
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


def test_prompts_are_rows_of_a_file(tmp_path):
    path = prompts(tmp_path / "prompts.npz", height=np.array([1.0, 2, 3]))
    cond = read_prompts(path, Net({"style": 2}))
    assert not cond.labels and cond.null_pooled is None
    assert all(isinstance(leaf, np.ndarray) and len(leaf) == 3 for leaf in jax.tree.leaves(cond))
    with np.load(path) as file:
        np.testing.assert_array_equal(cond.text, file["text"])
        np.testing.assert_array_equal(cond.pooled, file["pooled"])
    np.testing.assert_array_equal(cond.null_text, np.full((3, 2, 4), 0.5))
    np.testing.assert_array_equal(cond.scalars["height"], [1, 2, 3])
    np.testing.assert_array_equal(cond.scalars["aesthetic"], [6, 6, 6])


@pytest.mark.parametrize(
    ("net", "change", "message"),
    [
        (Plain(style=2), {}, "this model takes no texts, and '.*' was given"),
        (Net(), {"pooled": None}, r"has no 'pooled', and this model takes 6 \(pooled_width\)"),
        (Net(text_width=7), {}, r"has 'text' of 4 numbers, and this model takes 7 \(text_width\)"),
        (
            Net(),
            {"hight": np.zeros(3)},
            "has hight, a number that this model does not take; it takes aesthetic, height",
        ),
        (Net(), {"text": np.full((3, 2, 4), np.nan, np.float32)}, "in 'text' that are not finite"),
        (Net(), {"height": np.array([1, np.inf, 0])}, "in 'height' that are not finite"),
        (Net(), {"text": np.zeros((0, 2, 4), np.float32), "pooled": None, "names": None}, "has no rows"),
    ],
)
def test_prompts_that_do_not_go_with_the_model(tmp_path, net, change, message):
    with pytest.raises(DataError, match=message):
        read_prompts(prompts(tmp_path / "prompts.npz", **change), net)


def test_a_decoder_s_own_texts_come_along(tmp_path):
    path = str(tmp_path / "prompts.npz")
    arrays = {"text": (2, 3, 4), "pooled": (2, 6), "decoder_text": (2, 5, 8)}
    np.savez(path, **{name: RNG.standard_normal(shape).astype(np.float32) for name, shape in arrays.items()})
    cond = read_prompts(path, Net())
    assert cond.decoder_text.shape == (2, 5, 8) and cond.text.shape == (2, 3, 4)
    dropped_text = null_condition(cond, {})
    np.testing.assert_array_equal(dropped_text.decoder_text, cond.decoder_text)  # what is decoded keeps its text
