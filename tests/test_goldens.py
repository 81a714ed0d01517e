"""Golden cases: what published implementations compute, held against ours.

Each folder below `MASKDIT_GOLDENS` (default `tests/goldens`) is a case: `case.json` and `arrays.npz`. Its runner,
`golden_runners/NAME.py`, declares `INPUTS` (patterns of array names), `LEFT_OUT` (pattern -> reason) and
`run(case) -> {array: value}`. Every other array must come back and agree.

Weights go the way of published ones: the harness writes a file as the authors did, and it is read as `maskdit import`
reads it.
"""

import dataclasses
import fnmatch
import functools
import importlib.util
import json
import os
import pathlib
import tempfile
import types
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from maskdit.config import build
from maskdit.interop import layouts
from maskdit.interop.rules import LayoutError, export_params
from maskdit.interop.state_file import open_state
from tests.interop import torch_writer

HERE = pathlib.Path(__file__).parent
FOLDER = pathlib.Path(os.environ.get("MASKDIT_GOLDENS", HERE / "goldens"))
CASES = sorted(path.parent.name for path in FOLDER.glob("*/case.json"))
PLAIN = {"xla_backend_optimization_level": 0}  # compiling is most of the time of these tests


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    case, runner = Case.read(FOLDER / name), load_runner(name)
    faults = judge(case, runner, runner.run(case))
    assert not faults, f"{name} differs from {case.reference}:\n  " + "\n  ".join(faults)


def test_folder_holds_cases() -> None:
    assert CASES, f"no case.json below {FOLDER}: set MASKDIT_GOLDENS to a folder of cases"


@dataclasses.dataclass(frozen=True)
class Case:
    """A golden case, and what runners need to replay it."""

    reference: str
    config: dict[str, Any]
    parameters: dict[str, list[int]]
    kept: list[str]
    arrays: dict[str, np.ndarray]
    tolerance: dict[str, Any]

    @classmethod
    def read(cls, folder: pathlib.Path) -> "Case":
        text = json.loads((folder / "case.json").read_text())
        with np.load(folder / "arrays.npz") as stored:
            arrays = {name: stored[name] for name in text["arrays"]}
        given = (text["reference"], text["config"], text["parameters"], text["kept"])
        return cls(*given, arrays=arrays, tolerance=text.get("tolerance", {}))

    def state(self) -> dict[str, np.ndarray]:
        """The reference's state dict: parameters from their names, and those fixed tables that are stored."""
        state = {name: filled(name, tuple(shape)) for name, shape in self.parameters.items()}
        tables = {name: self.arrays.get(name.rsplit(".", 1)[-1]) for name in self.kept}
        return state | {name: table for name, table in tables.items() if table is not None}

    def model(
        self, interop: types.ModuleType, *inputs: Any, file: str, counters: tuple[str, ...] = ()
    ) -> tuple[Any, Any]:
        """The network of the case's config, and its parameters, which have been through files.

        Args:
          interop: the module of the reference's table.
          *inputs: an example of what the network is called on.
          file: how the authors published theirs: `safetensors`, or `torch`, with the entry of the checkpoint that
            holds the weights behind a slash.
          counters: published names of what counts uses in training; we write zeros there, or nothing.
        """
        network = build(interop.from_reference(self.config))
        shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "published")
            write_published(path, self.state(), file)
            state = open_state(path)
            assert state.within == file.partition("/")[2]
            params, layout = layouts.read(network, shapes, state)
            self.check_export(layouts.write(network, params, layout), counters)
            check_layouts(network, params, shapes, pathlib.Path(folder, "again"))
        return network, params

    def check_export(self, back: Mapping[str, np.ndarray], counters: tuple[str, ...] = ()) -> None:
        """Holds exported tensors equal to the published ones, and fixed tables within 1e-6."""
        given, back = ({name: x for name, x in state.items() if name not in counters} for state in (self.state(), back))
        assert given.keys() - back.keys() == set(), "these published tensors were not exported"
        assert back.keys() - given.keys() <= set(self.kept), "these exported tensors are not published"
        for name, tensor in given.items():
            tolerance = 1e-6 if name in self.kept else 0
            np.testing.assert_allclose(back[name], tensor, rtol=0, atol=tolerance, err_msg=name)

    def exported(self, interop: types.ModuleType, params: Any) -> dict[str, np.ndarray]:
        """The state dict that our parameters are written as."""
        return export_params(interop.table(self.config), params)

    def images(self, name: str) -> np.ndarray:
        """A stored array with its channels, third from the end, moved to the end."""
        return np.moveaxis(self.arrays[name], -3, -1)

    @staticmethod
    def stored(images: Any) -> np.ndarray:
        """Images of ours as the reference stores them: channels third from the end."""
        return np.moveaxis(np.asarray(images), -1, -3)

    @staticmethod
    def draw(**arrays: Any) -> "Recorded":
        """A draw that gives recorded arrays by name."""
        return Recorded(arrays)

    @staticmethod
    def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """`jax.jit` without optimisation."""
        return jax.jit(function, compiler_options=PLAIN, **options)


def write_published(path: pathlib.Path, state: Mapping[str, np.ndarray], file: str) -> None:
    """Writes a state dict as `Case.model` takes it; a checkpoint holds what else training writes."""
    kind, _, entry = file.partition("/")
    if kind == "safetensors":
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in state.items()}, path)
        return
    tensors = torch_writer.state_dict(dict(state))
    arguments = torch_writer.Call(torch_writer.named("argparse", "Namespace"), (), {"lr": 1e-4})
    others = {"opt": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "args": arguments}
    torch_writer.write_zip(path, {entry: tensors, **others} if entry else tensors)


def check_layouts(network: Any, params: Any, shapes: Any, path: pathlib.Path) -> None:
    """Parameters come back bit for bit through a file of each layout that the published model has."""
    for name in layouts.layouts(network):
        try:
            state = layouts.write(network, params, name)
        except LayoutError:
            continue  # there is no such published model
        write_published(path, state, "safetensors")
        again, found = layouts.read(network, shapes, open_state(path))
        assert found == name
        jax.tree.map(np.testing.assert_array_equal, again, params)


@jax.tree_util.register_pytree_node_class
class Recorded:
    """Recorded arrays with the interface of `maskdit.draw.Draw`; `at(i)` takes entry i of the leading axes."""

    def __init__(self, arrays: Mapping[str, Any]):
        self.arrays = dict(arrays)

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[str, ...]]:
        return tuple(self.arrays.values()), tuple(self.arrays)

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], arrays: tuple[Any, ...]) -> "Recorded":
        return cls(dict(zip(names, arrays, strict=True)))

    def normal(self, name: str, shape: tuple[int, ...]) -> Any:
        if name not in self.arrays:
            raise KeyError(f"'{name}' was not recorded; there are {sorted(self.arrays)}")
        array = self.arrays[name]
        if tuple(array.shape) != tuple(shape):
            raise ValueError(f"draw '{name}' was asked for shape {tuple(shape)}, recorded is {tuple(array.shape)}")
        return jax.numpy.asarray(array)

    uniform = normal

    def integers(self, name: str, shape: tuple[int, ...], low: int, high: int) -> Any:
        return self.normal(name, shape)

    def named(self, name: str) -> "Recorded":
        """The draw of a part: what was recorded under `NAME/...`."""
        head = f"{name}/"
        return Recorded({key.removeprefix(head): array for key, array in self.arrays.items() if key.startswith(head)})

    def at(self, index: Any) -> "Recorded":
        return Recorded({name: jax.numpy.asarray(array)[index] for name, array in self.arrays.items() if array.ndim})


def filled(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of a reference parameter, which follows from its name."""
    x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) >= 2:
        x = x / np.sqrt(np.prod(shape[1:]))
    elif len(shape) == 1 and name.rsplit(".", 1)[-1] in ("weight", "scale", "gamma"):
        x = 1 + 0.1 * x
    else:
        x = 0.1 * x
    return np.asarray(np.abs(x) + 0.5 if name.endswith("running_var") else x, np.float32)


@functools.cache
def load_runner(name: str) -> types.ModuleType:
    path = HERE / "golden_runners" / f"{name.replace('-', '_')}.py"
    if not path.is_file():
        pytest.fail(f"case '{name}' has no runner: write {path.relative_to(HERE)}", pytrace=False)
    spec = importlib.util.spec_from_file_location(f"golden_runner_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def judge(case: Case, runner: Any, values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the values of a runner, one line per array."""
    faults = []
    for name, reference in case.arrays.items():
        declared = any(fnmatch.fnmatchcase(name, pattern) for pattern in (*runner.INPUTS, *runner.LEFT_OUT))
        if declared and name in values:
            faults.append(f"{name}: returned, though declared as an input or left out")
        elif not declared and name not in values:
            faults.append(f"{name}: not returned by the runner")
        elif not declared:
            faults += gap(name, np.asarray(values[name]), reference, case.tolerance.get(name))
    return faults


def gap(name: str, ours: np.ndarray, reference: np.ndarray, tolerance: Any) -> list[str]:
    """Why `ours` does not agree with `reference`; empty where it does. The rules are those of the cases' README."""
    if ours.shape != reference.shape:
        return [f"{name}: has shape {ours.shape}, the reference {reference.shape}"]
    rule = tolerance if isinstance(tolerance, Mapping) else {} if tolerance is None else {"absolute": float(tolerance)}
    may_differ = rule.get("may_differ", 0)
    if not np.issubdtype(reference.dtype, np.floating) and rule.keys() <= {"may_differ"}:
        count = int(np.sum(ours != reference))
        return [f"{name}: {count} entries differ, {may_differ} may"] if count > may_differ else []
    ours, reference = ours.astype(np.float64), reference.astype(np.float64)
    size, largest = np.abs(reference), float(np.abs(reference).max(initial=0.0))
    if "relative" in rule:
        allowed = rule["relative"] * size + 1e-9
    elif "row_relative" in rule:
        rows = size.reshape(len(size), -1).max(axis=1)
        allowed = (rule["row_relative"] * rows).reshape(-1, *(1,) * (size.ndim - 1))
    elif "absolute" in rule:
        allowed = np.asarray(rule["absolute"])
    else:
        allowed = np.asarray(5e-5 * max(1.0, largest) if largest >= 0.1 else max(1e-3 * largest, 1e-6))
    with np.errstate(invalid="ignore"):
        over = ~((np.abs(ours - reference) <= allowed) | (ours == reference))  # also where ours is not a number
    if over.sum() <= may_differ:
        return []
    worst = float(np.abs(ours - reference)[over].max())
    return [
        f"{name}: {int(over.sum())} of {over.size} entries differ by up to {worst:.3g} (largest entry {largest:.3g})"
    ]


@pytest.mark.parametrize(
    ("shift", "reference", "tolerance", "agrees"),
    [
        (4e-5, [1.0, -0.5], None, True),
        (6e-5, [1.0, -0.5], None, False),
        (3.9e-3, [80.0, 0.0], None, True),
        (4e-5, [0.01, 0.02], None, False),
        (1.5e-5, [0.01, 0.02], None, True),
        (0.05, [1.0, 2.0], 0.1, True),
        (0.05, [1.0, 0.1], {"relative": 0.1}, False),
        (0.05, [[1.0, 0.1], [2.0, 0.1]], {"row_relative": 0.1}, True),
        (0.05, [[1.0, 0.1], [0.2, 0.1]], {"row_relative": 0.1}, False),
        (np.nan, [1.0, 2.0], None, False),
        (1, [1, 2], None, False),
        (1, [1, 2], {"may_differ": 2}, True),
        (1, [1, 2], {"may_differ": 1}, False),
        (1, [1, 2], 1, True),
        (2, [1, 2], 1, False),
        (1.0, [1.0, 2.0], {"may_differ": 2}, True),
        (1.0, [1.0, 2.0], {"may_differ": 1}, False),
        (0, [1, 2], None, True),
    ],
)
def test_gap(shift: float, reference: list, tolerance: Any, agrees: bool) -> None:
    array = np.asarray(reference)
    assert (gap("x", array + shift, array, tolerance) == []) == agrees


def test_every_array_is_accounted_for() -> None:
    arrays = {name: np.ones(2) for name in ("given", "skipped_1", "right", "forgotten", "twice")}
    case = Case("nowhere", {}, {}, [], arrays, {})
    runner = types.SimpleNamespace(INPUTS=("given", "twice"), LEFT_OUT={"skipped_*": "a reason"})
    faults = judge(case, runner, {"right": np.ones(2), "twice": np.ones(2)})
    assert [fault.partition(":")[0] for fault in faults] == ["forgotten", "twice"]


def test_case_without_runner_says_what_to_write() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"golden_runners/no_such_model\.py"):
        load_runner("no-such-model")
