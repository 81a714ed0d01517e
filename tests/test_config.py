import dataclasses

import pytest
from ml_collections import ConfigDict, config_flags

from maskdit import config
from maskdit.config import ConfigError, build, from_json, load, override_text, spec, to_json
from maskdit.networks.maskdit import MaskDiT
from maskdit.processes.edm import EDM
from maskdit.processes.times import LogNormal
from maskdit.samplers.tokens import Confidence
from maskdit.samplers.unmask import halton, most_confident


@dataclasses.dataclass(frozen=True)
class Foreign:
    size: int = 1


def test_spec_holds_every_field_and_builds_equal_objects():
    entry = spec(EDM, sigma_max=40.0, noise_levels=spec(LogNormal, mean=-0.4))
    assert entry.target == "maskdit.processes.edm:EDM"
    assert entry.rho == 7.0
    assert build(entry) == EDM(sigma_max=40.0, noise_levels=LogNormal(mean=-0.4))


def test_json_round_trip_keeps_tuples_and_builds_hashable_modules():
    entry = spec(MaskDiT, input_size=8, patch=2, channels=4, width=32, depth=1, heads=2, classes={"b": 3, "a": 2})
    again = from_json(to_json(entry))
    assert hash(build(again)) == hash(build(entry))
    nested = from_json(to_json(spec(EDM, grid=(3.0, (1.0, 0.0)))))
    assert nested.grid == (3.0, (1.0, 0.0))


def test_wrong_field_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'sigma_max'"):
        spec(EDM, sigma_maxx=3.0)
    with pytest.raises(ConfigError, match=r"task\.network\.wdth; did you mean 'width'"):
        load("maskdit_emoji:smoke", {"task.network.wdth": 3})
    with pytest.raises(ConfigError, match="needs"):
        spec(MaskDiT, input_size=8)


def test_wrong_types_are_refused_when_the_config_is_read():
    with pytest.raises(ConfigError, match="takes float"):
        spec(EDM, sigma_max="80")
    with pytest.raises(ConfigError, match="spec"):
        spec(EDM, noise_levels=object())
    with pytest.raises(ConfigError, match="int"):
        load("maskdit_emoji:smoke", {"steps": 2.5})


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("steps", "7", 7),
        ("task.process.sigma_max", "3", 3.0),
        ("ema", "(0.9, 0.99)", (0.9, 0.99)),
        ("log.tensorboard", "false", False),
        ("horizon", "12", 12),
        ("task.network.dtype", "bfloat16", "bfloat16"),
        ("task.network.classes.style", "5", 5),
    ],
)
def test_command_line_values_take_the_type_of_their_entry(path, text, value):
    entry = load("maskdit_emoji:smoke")
    override_text(entry, path, text)
    for part in path.split("."):
        entry = entry[part]
    assert entry == value and type(entry) is type(value)


@pytest.mark.parametrize(
    ("path", "text"), [("steps", "many"), ("ema", "0.9"), ("task", "3"), ("log.tensorboard", "perhaps")]
)
def test_command_line_values_of_another_type_are_refused(path, text):
    with pytest.raises(ConfigError, match=path):
        override_text(load("maskdit_emoji:smoke"), path, text)


def test_none_goes_where_a_field_may_be_none():
    entry = load("maskdit_emoji:smoke")
    for path in ("guidance", "task.masking", "held_out", "checkpoints.keep_every", "task.masking"):
        override_text(entry, path, "None")
    assert entry.guidance is None and entry.task.masking is None and entry.checkpoints.keep_every is None
    with pytest.raises(ConfigError, match="takes int"):
        override_text(entry, "steps", "None")


def test_unknown_variant_and_errors_inside_a_config():
    with pytest.raises(ConfigError, match="has no variant 'huge'; variants"):
        load("maskdit_emoji:huge")
    with pytest.raises(ValueError, match="there is no size 'XL2'"):
        load("dit_imagenet256:XL2")
    with pytest.raises(ConfigError, match="number of classes"):
        load("maskdit_folder:few")


def test_dicts_keep_their_order():
    entry = spec(MaskDiT, input_size=8, patch=2, channels=4, width=32, depth=1, heads=2, classes={"b": 3, "a": 2})
    assert list(build(from_json(to_json(entry))).classes) == ["b", "a"]


def test_foreign_target_is_refused_unless_trusted():
    entry = spec(Foreign, size=3)
    package = Foreign.__module__.partition(".")[0]
    with pytest.raises(ConfigError, match="outside maskdit"):
        build(entry)
    with pytest.raises(ConfigError, match="outside maskdit"):
        build(from_json('{"target": "os:system"}'))
    if package != "maskdit":
        assert build(entry, trust=(package,)).size == 3
    with pytest.raises(ConfigError, match="cannot be imported"):
        build(from_json('{"target": "maskdit.nothing:Here"}'))
    with pytest.raises(ConfigError, match="not a dataclass, linen module or function"):
        build(from_json('{"target": "maskdit.config:TARGET"}'))


def test_differences_name_the_entries():
    ours, theirs = load("maskdit_emoji:smoke"), load("maskdit_emoji:smoke", {"seed": 3})
    assert config.differences(ours, ours) == []
    assert config.differences(ours, theirs) == ["seed: 0 != 3"]


def test_unknown_config_name_is_answered():
    with pytest.raises(ConfigError, match="did you mean 'maskdit_emoji'"):
        load("maskdit_emojy")


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_absl_flags_take_config_files(monkeypatch):
    from absl import flags

    path = config.resolve("maskdit_emoji:smoke")
    values = flags.FlagValues()
    arguments = ["program", f"--config={path}", "--config.task.network.width=48", "--config.ema=(0.5,)"]
    monkeypatch.setattr("sys.argv", arguments)
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(arguments)
    assert values.config.task.network.width == 48
    assert values.config.ema == (0.5,)


def test_a_function_is_a_spec_without_fields() -> None:
    config = spec(Confidence, policy=spec(halton))
    assert build(from_json(to_json(config))).policy is halton
    assert build(spec(Confidence)).policy is most_confident
    with pytest.raises(ConfigError, match="halton is no dataclass, linen module or bare function"):
        spec(halton, base=2)
    with pytest.raises(ConfigError, match="outside maskdit"):
        build(ConfigDict({"target": "os.path:join"}))
