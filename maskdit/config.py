"""Configs: specs of objects as plain data.

A config is an `ml_collections.ConfigDict`, returned by `get_config(variant)` in a Python file and made of
`spec(Class, **fields)` entries: the class's import path and every field with its default. `build` makes the objects. It
is data: it goes to JSON and back, takes overrides from the command line, and travels in each checkpoint.

    config = load("maskdit_emoji:smoke", {"task.network.width": 96})
    task = build(config.task)
"""

import ast
import dataclasses
import difflib
import importlib
import json
import pathlib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict, config_dict

TARGET = "target"
_LINEN_FIELDS = ("parent", "name")
_SCALARS = (int, float, bool, str)


class ConfigError(ValueError):
    """A config that cannot be read or built; the message says what to change."""


class Named(dict):
    """A dict that can be hashed, as the fields of what configs build must be; do not change it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items(), key=lambda item: item[0])))


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A reference to weights from elsewhere; see `pretrained`.

    Attributes:
      source: a work directory, a model file, or the name of published weights; None for none.
      spec: of the object that takes the weights; None for that of the source, filled in when a run starts.
      allow: regular expressions of parameters that may differ: they keep their initial values, or are left out.
      checksum: of the source's parameters, filled in when a run starts.
    """

    source: str | None = None
    spec: Any = None
    allow: tuple[str, ...] = ()
    checksum: str | None = None


def pretrained(source: str, spec: ConfigDict | None = None, allow: tuple[str, ...] = ()) -> ConfigDict:
    """A reference to weights from elsewhere, in the place of a spec: `build` makes the object of its `spec`, weights
    come when a run starts. Arguments as `Pretrained`'s fields."""
    return _checked(Pretrained, {"source": source, "spec": spec, "allow": tuple(allow)})


def is_reference(entry: Any) -> bool:
    """Whether an entry was made by `pretrained`."""
    return isinstance(entry, ConfigDict | Mapping) and entry.get(TARGET) == f"{__name__}:{Pretrained.__qualname__}"


def spec(cls: Any, **fields: Any) -> ConfigDict:
    """Describes an object to be built later.

    Args:
      cls: a dataclass, a linen module, or a function, itself the object. Its import path is stored as `target`.
      **fields: its fields; those not given are stored with their defaults, so that each can be overridden.

    Raises:
      ConfigError: for a field that the class does not have, with the nearest one that it has, and for a field without
        default that is not given.
    """
    return _checked(cls, fields)


def build(entry: Any, trust: Iterable[str] = (), **extra: Any) -> Any:
    """Makes the object that a spec describes, nested specs first; for a reference to weights, the object of its spec.

    Args:
      entry: a spec; a dict of specs or values gives a dict; anything else is returned as it is.
      trust: packages besides `maskdit` whose classes may be built. A config can come with a checkpoint from anywhere,
        and a target is code by name: name only packages that you know.
      **extra: fields to set over those of the spec.

    Raises:
      ConfigError: for a target outside `maskdit` and `trust`, one that does not exist, and for fields that its class
        does not have.
    """
    if not isinstance(entry, ConfigDict | Mapping):
        if extra:
            raise ConfigError(f"only a spec takes fields; got {entry!r} with {sorted(extra)}")
        return tuple(build(item, trust) for item in entry) if isinstance(entry, tuple | list) else entry
    if is_reference(entry):
        return build(entry["spec"], trust, **extra)
    fields = {key: build(value, trust) for key, value in entry.items() if key != TARGET}
    if TARGET not in entry:
        return Named({**fields, **extra})
    cls = _resolve(entry[TARGET], tuple(trust))
    given = dict(_checked(cls, {**fields, **extra}, convert=False))
    return cls if isinstance(cls, types.FunctionType) else cls(**given)  # a function is the setting itself


def load(source: str | pathlib.Path, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """Reads a config by name or file, without flags.

    Args:
      source: `NAME`, `NAME:variant`, `path/to/file.py` or `path/to/file.py:variant`; names are those of `names()`.
      overrides: dotted path -> value, such as `{"task.network.width": 96}`.

    Raises:
      ConfigError: for an unknown name or variant, and for an override that does not exist (the nearest is named) or
        is of another type.
    """
    config = _get_config(*_cut(resolve(str(source))))
    for key, value in (overrides or {}).items():
        override(config, key, value)
    return config


def override(config: ConfigDict, path: str, value: Any) -> None:
    """Sets one existing entry, given by its dotted path, to a value of the same type; of a reference, its source.

    Raises:
      ConfigError: where there is no such entry, with the nearest; where the type differs.
    """
    node, last = _find(config, path)
    if is_reference(node[last]) and isinstance(value, str):
        node, last = node[last], "source"
    try:
        node[last] = tuple(value) if isinstance(value, list) else value
    except TypeError as error:
        raise ConfigError(f"config.{path} is {type(node[last]).__name__}, got {value!r}") from error


def override_text(config: ConfigDict, path: str, text: str) -> None:
    """Sets one existing entry from text, as `--config.PATH=TEXT` does: the text is read as the entry's own type.

    Raises:
      ConfigError: where there is no such entry, with the nearest; where the text does not fit the entry.
    """
    node, last = _find(config, path)
    if is_reference(node[last]):
        return override(config, path, text) if text != "None" else override_text(config, f"{path}.source", text)
    now = node[last]
    if text == "None" and _optional(node, last):
        with node.ignore_type():
            node[last] = None
        return
    if isinstance(now, ConfigDict):
        raise ConfigError(f"config.{path} is a group; set one of its entries: {', '.join(now)}")
    override(config, path, _parse(path, text, now))


def _parse(path: str, text: str, now: Any) -> Any:
    if isinstance(now, str):
        return text
    if isinstance(now, bool):
        words = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in words:
            raise ConfigError(f"config.{path} takes true or false, got {text!r}")
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(now, float) and isinstance(value, int):
        value = float(value)
    if (isinstance(now, tuple) and not isinstance(value, tuple | list)) or (
        isinstance(now, int | float) and type(value) is not type(now)
    ):
        raise ConfigError(f"config.{path} takes {type(now).__name__} (now {now!r}), got {text!r}")
    return value


def _optional(node: ConfigDict, name: str) -> bool:
    """Whether a spec's field may be None."""
    if node[name] is None or TARGET not in node:
        return node[name] is None
    hint = typing.get_type_hints(_import(node[TARGET])).get(name)
    return hint is Any or type(None) in typing.get_args(hint)


def _find(config: ConfigDict, path: str) -> tuple[ConfigDict, str]:
    """The group and the last name of a dotted path."""
    node, parts = config, path.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, ConfigDict) or part not in node:
            known = nearest(part, list(node) if node else [])
            raise ConfigError(f"there is no config.{'.'.join(parts[: depth + 1])}; {known}")
        if depth < len(parts) - 1:
            node = node[part]
    return node, parts[-1]


def to_json(config: ConfigDict) -> str:
    """The config as JSON text; placeholders that were never set become null."""
    return json.dumps(_plain(config), indent=2)


def from_json(text: str) -> ConfigDict:
    """The config of a JSON text. Configs hold no lists, so every JSON array becomes a tuple."""

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return ConfigDict({key: restore(item) for key, item in value.items()}, sort_keys=False)
        return tuple(restore(item) for item in value) if isinstance(value, list) else value

    return restore(json.loads(text))


def differences(ours: ConfigDict, theirs: ConfigDict) -> list[str]:
    """Lines `path: ours != theirs` for each entry in which two configs differ."""
    left, right = _flat(_plain(ours)), _flat(_plain(theirs))
    return [
        f"{key}: {left.get(key, '(absent)')!r} != {right.get(key, '(absent)')!r}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key, _plain) != right.get(key, _plain)
    ]


def completed(config: Any, trust: Iterable[str] = ()) -> Any:
    """A stored config with the fields that its classes have got since it was stored, at their defaults."""
    if not isinstance(config, ConfigDict):
        return config
    fields = {key: completed(value, trust) for key, value in config.items() if key != TARGET}
    if TARGET not in config:
        return ConfigDict(fields, sort_keys=False)
    return _checked(_resolve(config[TARGET], tuple(trust)), fields)


def names() -> list[str]:
    """Names of the configs that come with the library."""
    return sorted(path.stem for path in _configs_dir().glob("*.py") if not path.stem.startswith("_"))


def resolve(source: str) -> str:
    """Turns `NAME[:variant]` into `path/to/NAME.py[:variant]`; a path to a file, local or `gs://`, stays.

    Raises:
      ConfigError: where there is neither such a file nor such a name.
    """
    name, variant = _cut(source)
    if "://" in name or pathlib.Path(name).is_file():
        return source
    path = _configs_dir() / f"{pathlib.Path(name).stem}.py"
    if not path.is_file() or (name.endswith(".py") and "/" in name and not name.startswith("configs/")):
        raise ConfigError(f"no config file '{name}' and no config of that name; {nearest(name, names())}")
    return f"{path}:{variant}" if variant else str(path)


def _checked(cls: Any, fields: Mapping[str, Any], convert: bool = True) -> Any:
    """All fields of a class, given ones over defaults; a ConfigDict when `convert`, else a dict for its constructor."""
    if isinstance(cls, types.FunctionType) and not fields:
        return ConfigDict({TARGET: f"{cls.__module__}:{cls.__qualname__}"}) if convert else {}
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ConfigError(f"{cls.__module__}.{cls.__qualname__} is no dataclass, linen module or bare function")
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}
    if "parent" in known:  # a linen module
        known = {name: f for name, f in known.items() if name not in _LINEN_FIELDS}
    for key in fields:
        if key not in known:
            raise ConfigError(f"{cls.__name__} has no field '{key}'; {nearest(key, list(known))}")
    if TARGET in known:
        raise ConfigError(f"{cls.__name__} has a field '{TARGET}', where specs keep the class: rename the field")
    missing = [name for name, field in known.items() if name not in fields and _default(field) is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"{cls.__name__} needs {', '.join(missing)}")
    if not convert:
        return dict(fields)
    hints = typing.get_type_hints(cls)
    entry: dict[str, Any] = {TARGET: f"{cls.__module__}:{cls.__qualname__}"}
    for name, field in known.items():
        value = fields[name] if name in fields else _default(field)
        _check_type(f"{cls.__name__}.{name}", value, hints.get(name))
        entry[name] = _entry(value, hints.get(name))
    return ConfigDict(entry, sort_keys=False)


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _entry(value: Any, hint: Any = None) -> Any:
    """A value as a config holds it: tuples for lists, dicts for mappings, typed placeholders for None."""
    if value is None:
        scalar = [kind for kind in typing.get_args(hint) if kind in _SCALARS]
        return config_dict.placeholder(scalar[0]) if len(scalar) == 1 else None
    if isinstance(value, ConfigDict | int | float | bool | str):
        return value
    if isinstance(value, types.FunctionType):
        return spec(value)
    if isinstance(value, Mapping):
        return ConfigDict({key: _entry(item) for key, item in value.items()}, sort_keys=False)
    if isinstance(value, list | tuple):
        return tuple(_entry(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value) if f.init and f.name not in _LINEN_FIELDS]
        return spec(type(value), **{name: getattr(value, name) for name in fields})
    raise ConfigError(f"a config holds numbers, strings, tuples, dicts and specs, not {value!r}: use spec(Class, ...)")


def _check_type(name: str, value: Any, hint: Any) -> None:
    """Refuses a scalar where the annotation names another scalar type."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None or isinstance(value, config_dict.FieldReference):
        return
    if not kinds or not all(kind in (*_SCALARS, type(None)) for kind in kinds):
        return
    accepted = (*kinds, int) if float in kinds else kinds
    if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, accepted):
        raise ConfigError(f"{name} takes {' or '.join(getattr(k, '__name__', str(k)) for k in kinds)}, got {value!r}")


def _resolve(target: str, trust: tuple[str, ...]) -> Any:
    module = target.partition(":")[0]
    package = module.partition(".")[0]
    if package != "maskdit" and not any(module == p or module.startswith(f"{p}.") for p in trust):
        raise ConfigError(
            f"target '{target}' is outside maskdit: if you know that package, pass trust=('{package}',) "
            f"or --trust={package}"
        )
    found = _import(target)
    if not dataclasses.is_dataclass(found) and not isinstance(found, types.FunctionType):
        raise ConfigError(f"target '{target}' is not a dataclass, linen module or function")
    return found


def _import(target: str) -> Any:
    module, _, name = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"target '{target}' cannot be imported: {error}") from error
    return found


def _cut(source: str) -> tuple[str, str]:
    """`PATH[:variant]` in two."""
    head, slashes, tail = source.rpartition("://")
    name, _, variant = tail.partition(":")
    return head + slashes + name, variant


def _get_config(path: str, variant: str) -> ConfigDict:
    if not path.endswith(".py"):
        raise ConfigError(f"'{path}' is not a Python file")
    module = types.ModuleType(f"maskdit_config_{pathlib.Path(path).stem}")
    module.__file__ = path
    try:
        exec(compile(epath.Path(path).read_text(), path, "exec"), module.__dict__)
    except (ImportError, OSError) as error:
        raise ConfigError(f"'{path}' cannot be read: {error}") from error
    if not hasattr(module, "get_config"):
        raise ConfigError(f"'{path}' defines no get_config(variant)")
    try:
        return module.get_config(variant) if variant else module.get_config()
    except KeyError as error:
        if not variant or error.args != (variant,):
            raise
        said = re.split(r"\.\s", (module.__doc__ or "").partition("Variants")[2])[0]
        raise ConfigError(f"'{path}' has no variant '{variant}'" + (f"; variants{said}" if said else "")) from error


def _configs_dir() -> pathlib.Path:
    """`configs/` of a checkout, or the copy inside an installed package."""
    package = pathlib.Path(__file__).parent
    return (package.parent if (package.parent / "pyproject.toml").is_file() else package) / "configs"


def nearest(word: str, options: list[str]) -> str:
    """For a word that is none of the options: which was perhaps meant, or which there are."""
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(sorted(options)) or 'none'}"


def _plain(value: Any) -> Any:
    if isinstance(value, ConfigDict):
        return {key: _plain(value[key]) for key in value}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, config_dict.FieldReference):
        return value.get()
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix.rstrip("."): value}
    return dict(pair for key, item in value.items() for pair in _flat(item, f"{prefix}{key}.").items())
