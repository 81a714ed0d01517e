"""Every config that ships: it reads, builds, travels through JSON, and its smoke variant trains."""

import pathlib

import pytest

from maskdit import config as configs
from maskdit.train import train


@pytest.mark.parametrize("name", configs.names())
def test_config_travels_through_json_and_says_what_it_is_for(name):
    entry = configs.load(name)
    again = configs.from_json(configs.to_json(entry))
    assert configs.differences(entry, again) == []
    assert configs.build(again.task) == configs.build(entry.task)
    text = pathlib.Path(configs.resolve(name).partition(":")[0]).read_text()
    assert "maskdit train --config" in text and ("unverified" in text or "Ours:" in text)


@pytest.mark.parametrize("name", configs.names())
def test_smoke_variant_trains(name, tmp_path):
    entry = configs.load(f"{name}:smoke", {"log.tensorboard": False})
    state = train(entry, str(tmp_path))
    assert int(state.step) == entry.steps
