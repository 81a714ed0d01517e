"""Weights from elsewhere: how they enter a run, what is refused, and that they belong to the run afterwards."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from maskdit import config as configs
from maskdit import references
from maskdit.config import ConfigError, pretrained, spec
from maskdit.references import Weights, WeightsError
from maskdit.tokenizers.linear import LinearPatches
from maskdit.train import TrainingError, train
from maskdit.training import checkpoint
from maskdit.training.mesh import MeshShape
from tests.tiny import tiny

STILL = {"steps": 1, "task.groups.generator.optimizer.schedule.lr": 0.0, "checkpoints.every": 1}
"""One step that changes nothing: what a run saves then is what it began with."""


def flat(tree):
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A trained run."""
    workdir = tmp_path_factory.mktemp("source")
    train(tiny({"steps": 3, "ema": (0.5,)}), str(workdir))
    return workdir


@pytest.fixture(scope="module")
def begun(source, tmp_path_factory):
    """A run that began with the weights and the tokenizer of another, and its log."""
    workdir, config = tmp_path_factory.mktemp("begun"), tiny({**STILL, "init_from": str(source)})
    with config.unlocked():
        config.task.tokenizer = pretrained(str(source))
    train(config, str(workdir))
    return workdir, config


def test_run_begins_with_the_averages_of_its_source(source, begun):
    theirs, ours = checkpoint.read(str(source)), checkpoint.read(str(begun[0]), ema="none")
    averages = checkpoint.read(str(begun[0]))
    for path, leaf in flat(theirs.variables["params"]).items():
        np.testing.assert_array_equal(flat(ours.variables["params"])[path], leaf, err_msg=path)
        # 0.9 x + 0.1 x is x up to rounding
        np.testing.assert_allclose(flat(averages.variables["params"])[path], leaf, rtol=1e-6, err_msg=path)
    raw = checkpoint.read(str(source), ema="none").variables["params"]
    assert any(not np.array_equal(leaf, flat(ours.variables["params"])[path]) for path, leaf in flat(raw).items())


def test_tokenizer_comes_with_its_spec_and_weights(source, begun):
    theirs, ours = checkpoint.read(str(source)), checkpoint.read(str(begun[0]))
    for path, leaf in flat(theirs.variables["frozen"]).items():
        np.testing.assert_array_equal(flat(ours.variables["frozen"])[path], leaf, err_msg=path)
    entry = configs.from_json(ours.meta["config"]).task.tokenizer
    assert configs.build(entry) == configs.build(tiny().task.tokenizer)
    assert len(entry.checksum) == 64


def test_run_goes_on_without_its_source_and_refuses_another(begun, tmp_path):
    workdir, config = begun
    config = config.copy_and_resolve_references()
    config.steps, config.init_from.source = 2, str(tmp_path / "gone")
    with pytest.raises(TrainingError, match=r"init_from\.source") as caught:
        train(config, str(workdir))
    assert "spec" not in str(caught.value) and "checksum" not in str(caught.value)  # one line for one change
    moved = tmp_path / "moved"
    shutil.copytree(workdir, moved)
    config.init_from.source = begun[1].init_from.source
    with_other_allow = config.copy_and_resolve_references()
    with_other_allow.init_from.allow = ("x",)
    with pytest.raises(TrainingError, match=r"init_from\.allow"):
        train(with_other_allow, str(moved))
    stored = json.loads((moved / "config.json").read_text())
    for path in (("init_from",), ("task", "tokenizer")):
        entry = stored
        for part in path:
            entry = entry[part]
        entry["source"] = str(tmp_path / "gone")  # as if the source had been at a place that is empty now
    (moved / "config.json").write_text(json.dumps(stored))
    config.init_from.source = config.task.tokenizer.source = str(tmp_path / "gone")
    assert int(train(config, str(moved)).step) == 2


def test_source_that_changed_before_the_first_checkpoint_is_refused(source, tmp_path):
    workdir, copy = tmp_path / "run", tmp_path / "source"
    shutil.copytree(source, copy)
    workdir.mkdir()
    config = tiny({**STILL, "init_from": str(copy)})
    devices = MeshShape().make()
    resolved, weights = references.resolve(config, None, False, devices)
    assert config.init_from.checksum is None and weights["init_from"].source == str(copy)
    again, _ = references.resolve(config, resolved, False, devices)
    assert again.init_from.checksum == resolved.init_from.checksum
    resolved.init_from.checksum = "0" * 64
    with pytest.raises(WeightsError, match="have changed since"):
        references.resolve(config, resolved, False, devices)


def test_other_labels_need_leave_and_get_new_tables(source, tmp_path):
    config = tiny({**STILL, "init_from": str(source), "data.source.labels": ("style", "subgroup")})
    with config.unlocked():
        config.task.network.classes = configs.ConfigDict({"style": 4, "subgroup": 95})
        config.held_out = None
    with pytest.raises(WeightsError) as caught:
        train(config, str(tmp_path / "run"))
    message = str(caught.value)
    assert "network/label_embed/subgroup: [95, 16] here, not in the source" in message
    assert "network/label_embed/group: [8, 16] in the source, not here" in message
    assert "style" not in message
    line = message.rpartition("--config.init_from.")[2]
    assert line == "allow=\"('network/label_embed/group', 'network/label_embed/subgroup')\""
    path, _, text = line.partition("=")
    configs.override_text(config, f"init_from.{path}", text.strip('"'))
    train(config, str(tmp_path / "run"))
    ours = flat(checkpoint.read(str(tmp_path / "run"), ema="none").variables["params"])
    theirs = flat(checkpoint.read(str(source)).variables["params"])
    assert ours.keys() ^ theirs.keys() == {"network/label_embed/group", "network/label_embed/subgroup"}
    assert np.abs(ours["network/label_embed/subgroup"]).max() > 0
    np.testing.assert_array_equal(ours["network/label_embed/style"], theirs["network/label_embed/style"])


def test_another_resolution_stretches_the_places_and_the_run_goes_on(source, tmp_path):
    finer = {"task.tokenizer.patch": 8, "task.network.input_size": 8}
    config = tiny({**STILL, "init_from": str(source), **finer})
    with pytest.raises(WeightsError) as caught:
        train(config, str(tmp_path / "run"))
    assert "network/positions: a grid of 8 x 8 here, 4 x 4 in the source" in str(caught.value)
    assert "tokenizer: another than the source's (patch: 8 != 16)" in str(caught.value)
    assert not list((tmp_path / "run").iterdir())
    config.init_from.allow = ("positions", "^tokenizer$")
    train(config, str(tmp_path / "run"))
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["task"]["network"]["position_grid"] == 4 and config.task.network.position_grid is None
    config.steps = 2
    assert int(train(config, str(tmp_path / "run")).step) == 2
    config.task.network.position_grid = 8  # asked for: nothing to tell
    chosen, weights = references.resolve(config, None, False, MeshShape().make())
    assert chosen.task.network.position_grid == 8 and list(weights["init_from"].differences) == ["tokenizer"]


def test_tokenizer_of_the_source_comes_along(source, tmp_path):
    config = tiny({**STILL, "init_from": str(source), "data.source.split": "train", "seed": 5})
    train(config, str(tmp_path / "run"))
    ours, theirs = (flat(checkpoint.read(str(path)).variables["frozen"]) for path in (tmp_path / "run", source))
    for path, leaf in theirs.items():  # and is not fitted to the other images
        np.testing.assert_array_equal(ours[path], leaf, err_msg=path)


def test_run_of_before_a_field_was_there_goes_on(source, tmp_path):
    shutil.copytree(source, tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    stored = json.loads(path.read_text())
    del stored["init_from"], stored["task"]["network"]["position_grid"]
    del stored["task"]["groups"]["generator"]["frozen"], stored["task"]["groups"]["generator"]["rates"]
    path.write_text(json.dumps(stored))
    assert int(train(tiny({"steps": 4, "ema": (0.5,)}), str(tmp_path / "old")).step) == 4


def test_shapes_that_differ_are_listed_with_both():
    tree = {"table": jnp.ones((3, 2)), "kernel": jnp.ones((2, 2)), "bias": jnp.ones(3), "old": jnp.ones(1)}
    shapes = {"table": jnp.ones((5, 2)), "kernel": jnp.ones((2, 2)), "bias": jnp.ones(3), "new": jnp.ones(4)}
    with pytest.raises(WeightsError) as caught:
        Weights("init_from", "runs/a", tree, ("old",)).fitting(shapes)
    assert "table: [5, 2] here, [3, 2] in the source" in str(caught.value)
    assert "\"('old', 'new', 'table')\"" in str(caught.value)  # what is allowed already stays in the line to copy
    allowed = Weights("init_from", "runs/a", tree, ("old", "new", "^table$"))
    assert list(allowed.fitting(shapes)) == ["kernel", "bias"]
    made = allowed.over(lambda: {"table": jnp.zeros((5, 2)), "kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(3)})
    assert [float(made[name].sum()) for name in ("table", "kernel", "bias")] == [0, 4, 3]


def test_weights_of_another_network_are_called_that():
    tree = {"network": {f"blocks_{i}": {"kernel": jnp.ones((2, 2))} for i in range(20)}, "bias": jnp.ones(2)}
    shapes = {"network": {f"blocks_{i}": {"kernel": jnp.ones((3, 3))} for i in range(20)}, "bias": jnp.ones(2)}
    with pytest.raises(WeightsError, match="weights of another network") as caught:
        Weights("init_from", "runs/a", tree).fitting(shapes)
    assert "and 8 more" in str(caught.value) and "allow=" not in str(caught.value)
    fewer = {**shapes, **{f"more_{i}": jnp.ones(1) for i in range(20)}}
    whole = {**tree, **{f"more_{i}": jnp.ones(1) for i in range(20)}}
    with pytest.raises(WeightsError) as caught:
        Weights("init_from", "runs/a", whole).fitting(fewer)
    pattern = str(caught.value).rpartition("('")[2].partition("'")[0]
    assert pattern == "network/"  # not `network/blocks_1`, which is found in `network/blocks_10` too


def test_checksum_does_not_depend_on_the_mesh_and_sees_every_change():
    values = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    tree = {"a": {"kernel": values, "bias": np.zeros(3, np.float32)}}
    whole = references.checksum(tree)
    devices = MeshShape(data=2, fsdp=4).make()
    cut = jax.device_put(values, NamedSharding(devices, PartitionSpec("fsdp", "data")))
    assert references.checksum({"a": {"kernel": cut, "bias": tree["a"]["bias"]}}) == whole
    swapped, nudged = values.copy(), values.copy()
    swapped[[0, 3]] = swapped[[3, 0]]
    nudged[7, 5] = np.nextafter(nudged[7, 5], 9)
    others = [
        {"a": {"kernel": swapped, "bias": tree["a"]["bias"]}},
        {"a": {"kernel": nudged, "bias": tree["a"]["bias"]}},
        {"a": {"kernel": values.reshape(6, 8), "bias": tree["a"]["bias"]}},
        {"b": tree["a"]},
        {"a": {"kernel": values.astype(np.float16), "bias": tree["a"]["bias"]}},
    ]
    assert len({whole, *map(references.checksum, others)}) == 6


def test_what_is_not_there_is_told_with_the_nearest_name(tmp_path, source):
    with pytest.raises(WeightsError, match="did you mean 'dit-xl-2-256'"):
        references.find("dit-xl-2-265")
    with pytest.raises(WeightsError, match=r"there is no .*nowhere"):
        references.find(str(tmp_path / "nowhere"))
    (tmp_path / "weights.pt").write_bytes(b"PK")
    for file in (str(tmp_path / "weights.pt"), "https://example.org/weights.pt", "hf://owner/name"):
        with pytest.raises(WeightsError, match=r"bring the weights in first, maskdit import NAME"):
            references.find(file)
    for fault, message in (
        ({"init_from.allow": ("x",)}, "set config.init_from to their source too"),
        ({"init_from": str(source), "init_from.allow": ("[",)}, "no regular expression"),
    ):
        with pytest.raises(WeightsError, match=message):
            references.resolve(tiny(fault), None, False, MeshShape().make())
    config = tiny({"init_from": str(source)})
    with config.unlocked():
        config.task.network = pretrained(str(source), config.task.network)
    with pytest.raises(WeightsError, match=r"nothing for config\.task\.network"):
        references.resolve(config, None, False, MeshShape().make())


def test_references_in_configs():
    entry = pretrained("runs/vae", spec(LinearPatches, patch=4, channels=6), allow=("x",))
    assert configs.build(entry) == LinearPatches(patch=4, channels=6)
    assert configs.build(entry, patch=2) == LinearPatches(patch=2, channels=6)
    config = configs.ConfigDict({"task": {"tokenizer": entry}, "init_from": spec(configs.Pretrained)})
    configs.override_text(config, "task.tokenizer", "dit-xl-2-256")
    configs.override_text(config, "init_from", "123")
    assert (config.task.tokenizer.source, config.init_from.source) == ("dit-xl-2-256", "123")
    again = configs.from_json(configs.to_json(config))
    assert configs.differences(config, again) == [] and configs.build(again.init_from) is None
    configs.override_text(config, "task.tokenizer", "None")
    assert config.task.tokenizer.source is None and configs.build(config.task.tokenizer) == configs.build(entry)
    with pytest.raises(ConfigError, match="no field 'sauce'"):
        spec(configs.Pretrained, sauce="x")
