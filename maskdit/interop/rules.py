"""Published state dicts in and out by a table of rows, used in both directions.

A row names a tensor of the published model, the place of ours and how one becomes the other. `{name}` in a pattern
stands for a number and means the same on both sides:

    Row("blocks.{i}.mlp.fc1.weight", "blocks_{i}/mlp/fc1/kernel", TRANSPOSE)

Tensors are numpy arrays, or handles that read themselves from a file when asked. Nothing is skipped silently: what does
not fit is an error that lists names.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax.core import meta

from maskdit.interop.tensors import Tensor, printable

PyTree = Any
_FIELD = re.compile(r"\{(\w+)\}")
UNMATCHED, UNFILLED, MISSHAPED, OTHER_VALUES = "unmatched", "unfilled", "mis-shaped", "other values"
_TITLES = {
    UNMATCHED: "tensors that the model has no place for",
    UNFILLED: "parameters that nothing fills",
    MISSHAPED: "tensors of another shape",
    OTHER_VALUES: "tensors of other values",
}
_SHOWN = 12


class LayoutError(ValueError):
    """A network that a published layout cannot hold, or weights that belong to no layout of it."""


class TableError(ValueError):
    """Tensors that a table cannot place; the message lists the first of them by name.

    Attributes:
      faults: all lines by group: `unmatched`, `unfilled`, `mis-shaped`, `other values`; groups without any are absent.

    Args:
      what: the first line.
      faults: the lines by group.
      advice: the last line: what to do; empty for none.
    """

    def __init__(self, what: str, faults: Mapping[str, Sequence[str]], advice: str = ""):
        self.faults = {group: tuple(lines) for group, lines in faults.items() if lines}
        text, share = [what], max(3, _SHOWN // max(1, len(self.faults)))
        for group, lines in self.faults.items():
            text += [f"  {_TITLES[group]} ({len(lines)}):", *(f"    {line}" for line in lines[:share])]
            text += [f"    and {len(lines) - share} more"] if len(lines) > share else []
        super().__init__("\n".join([*text, advice] if advice else text))


@dataclasses.dataclass(frozen=True)
class Op:
    """How a published tensor becomes ours, and back. Both work on arrays of any strides and give views where they can.

    Attributes:
      forward: published -> ours.
      backward: ours -> published; the inverse of `forward`, so that gradients go back the same way.
    """

    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]


COPY = Op(lambda x: x, lambda x: x)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table.

    Where several rows give the same target, import takes whichever name is there and export writes the first.

    Attributes:
      source: pattern of the published name. Several patterns name equal parts, which are joined along their first axis
        before `op` and split after its inverse.
      target: pattern of the path in our parameters, parts joined by `/`.
      op: how the tensor changes.
      copies: how often the published model repeats the tensor; `{copy}` in the source counts from 0. Import holds all
        against the first, export writes all.
      classes: of a label table: the axis of the published tensor that counts classes, and how many entries it has
        besides them; only for the error message.
    """

    source: str | tuple[str, ...]
    target: str
    op: Op = COPY
    copies: int = 1
    classes: tuple[int, int] | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The patterns of the published names."""
        return (self.source,) if isinstance(self.source, str) else self.source

    def names(self, path: str) -> list[str] | None:
        """The published names, parts or copies, that belong to a path of ours; None where the row is not about it."""
        fields = _match(self.target, path)
        if fields is None:
            return None
        return [part.format(**fields, copy=copy) for part in self.sources for copy in range(self.copies)]

    def path(self, name: str) -> str | None:
        """The path of ours that a published name belongs to; None where the row is not about it."""
        found = (fields for part in self.sources if (fields := _match(part, name)) is not None)
        fields = next(found, None)
        return None if fields is None else self.target.format(**fields)

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        """The tensors, in the order of `names`, that a whole published tensor is stored as."""
        return np.split(tensor, len(self.sources)) if len(self.sources) > 1 else [tensor] * self.copies


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A table that the published model stores and ours computes: checked on import where present, written on export.

    Attributes:
      source: the published name.
      value: gives the tensor in the published layout.
      places: of a table of places: the axis that counts them; only for the error message.
      checked: False for what counts something in training, such as uses of codes: any values pass on import.
    """

    source: str
    value: Callable[[], np.ndarray]
    places: int | None = None
    checked: bool = True


@dataclasses.dataclass(frozen=True)
class Unused:
    """Published tensors that the model does not need, such as a discriminator's; never written.

    Attributes:
      source: regular expression of the names.
    """

    source: str


Table = Sequence[Row | Fixed | Unused]


def transpose(*axes: int) -> Op:
    """Permutes axes as `numpy.transpose` does."""
    inverse = tuple(int(axis) for axis in np.argsort(axes))
    return Op(lambda x: x.transpose(axes), lambda x: x.transpose(inverse))


def flatten(axes: Sequence[int], leading: Sequence[int]) -> Op:
    """Permutes axes, then joins all but the last, whose sizes are `leading` (one may be -1)."""
    inverse = tuple(int(axis) for axis in np.argsort(axes))
    return Op(
        lambda x: x.transpose(axes).reshape(-1, x.shape[axes[-1]]),
        lambda x: x.reshape(*leading, x.shape[-1]).transpose(inverse),
    )


def parts(count: int) -> Op:
    """A torch linear weight `[count * out, in]` of several outputs as a kernel `[in, count, out]`."""
    return Op(
        lambda x: x.reshape(count, -1, x.shape[-1]).transpose(2, 0, 1),
        lambda x: x.transpose(1, 2, 0).reshape(-1, x.shape[0]),
    )


TRANSPOSE = transpose(1, 0)
"""A torch linear weight `[out, in]` as a kernel `[in, out]`."""
CONV = transpose(2, 3, 1, 0)
"""A torch convolution weight `[out, in, h, w]` as a kernel `[h, w, in, out]`."""
POINTWISE = flatten((2, 3, 1, 0), (1, 1, -1))
"""The weight of a 1x1 convolution `[out, in, 1, 1]` as a kernel `[in, out]`."""


def linear(source: str | tuple[str, ...], target: str, op: Op = TRANSPOSE, copies: int = 1) -> list[Row]:
    """Rows of a product with a weight: `weight` to `kernel` by `op`, and its bias."""
    sources = (source,) if isinstance(source, str) else source
    weight, bias = (tuple(f"{name}.{kind}" for name in sources) for kind in ("weight", "bias"))
    return [Row(weight, f"{target}/kernel", op, copies), Row(bias, f"{target}/bias", copies=copies)]


def import_params(table: Table, state: Mapping[str, Tensor], target: PyTree) -> PyTree:
    """Turns a published state dict into parameters.

    Names and shapes are compared before a parameter is read. Tensors are then read one at a time, so that handles of a
    file need the bytes of the parameters and those of the largest tensor.

    Args:
      table: rows of the model.
      state: published name -> tensor: numpy arrays, or handles that read on `numpy.asarray`. Any float dtype.
      target: our parameters or their shapes (`jax.eval_shape` of init): nested dicts.

    Returns:
      Nested dicts of contiguous numpy arrays with the shapes and dtypes of `target`. An array of `state` that needs no
      change is returned itself, not a copy.

    Raises:
      TableError: listing tensors that no row matches, parameters that nothing filled, tensors of another shape, and
        those of other values: no floats where the parameter is one, not finite, a fixed table or a copy that differs.
    """
    wanted: dict[str, Any] = _flat(meta.unbox(target))
    moves, faults = _plan(table, state, wanted)
    _refuse(faults)
    found = {}
    for path, (row, names) in moves.items():
        found[path], lines = _read(row, names, state, np.dtype(wanted[path].dtype))
        faults[OTHER_VALUES] += lines
    _refuse(faults)
    return _nested(found, meta.unbox(target))


def _read(row: Row, names: list[str], state: Mapping[str, Tensor], dtype: np.dtype) -> tuple[np.ndarray, list[str]]:
    """A parameter from its tensors, and what is wrong with their values."""
    copies = names[1:] if row.copies > 1 else []
    joined = len(row.sources) > 1
    first = np.concatenate([np.asarray(state[n]) for n in names]) if joined else np.asarray(state[names[0]])
    with np.errstate(over="ignore"):  # told below
        array = np.asarray(row.op.forward(first), dtype, order="C")
    if not np.isfinite(array).all():
        told = ", ".join(names if joined else names[:1])
        return array, [f"{told}: not all its values are finite numbers of {dtype}"]
    differing = [name for name in copies if not np.array_equal(first, np.asarray(state[name]))]
    return array, [f"{name}: differs from {names[0]}, of which it is a copy" for name in differing]


def export_params(table: Table, params: PyTree, *, fixed: bool = True) -> dict[str, np.ndarray]:
    """Turns parameters, or a tree of the same structure such as their gradient, into a published state dict.

    Args:
      table: rows of the model.
      params: nested dicts of arrays.
      fixed: whether the fixed tables are written too; a gradient has none.

    Raises:
      TableError: listing parameters that no row writes.
    """
    state = {row.source: row.value() for row in table if isinstance(row, Fixed)} if fixed else {}
    left = []
    for path, value in _flat(meta.unbox(params)).items():
        row, names = next(_rows_of(table, path), (None, []))
        if row is None:
            left.append(f"{path}: no row of the table writes it")
        else:
            state.update(zip(names, row.split(row.op.backward(np.asarray(value))), strict=True))
    if left:
        raise TableError("the parameters do not fit the published model:", {UNMATCHED: left})
    return state


def taken(table: Table, names: Iterable[str], target: PyTree) -> int:
    """How many of these names belong to a parameter of `target`, or to a fixed table."""
    wanted = _flat(meta.unbox(target))
    stored = {row.source for row in table if isinstance(row, Fixed)}
    for path in wanted:
        for _, places in _rows_of(table, path):
            stored.update(places)
    return sum(name in stored for name in names)


Faults = dict[str, list[str]]
Moves = dict[str, tuple[Row, list[str]]]


def _plan(table: Table, state: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> tuple[Moves, Faults]:
    """Which tensors make which parameter, from names and shapes; only fixed tables are read."""
    faults: Faults = {group: [] for group in _TITLES}
    moves: Moves = {}
    for path, leaf in wanted.items():
        options = list(_rows_of(table, path))
        chosen = next((option for option in options if any(name in state for name in option[1])), None)
        if chosen is None:
            expected = f"the state dict has no {options[0][1][0]}" if options else "no row of the table fills it"
            faults[UNFILLED].append(f"{path}: {expected}")
            continue
        moves[path] = row, names = chosen
        shapes = [part.shape for part in row.split(row.op.backward(_hollow(leaf.shape)))]
        for name, shape in zip(names, shapes, strict=True):
            if name not in state:
                faults[UNFILLED].append(f"{path}: the state dict has no {name}")
            elif tuple(state[name].shape) != shape:
                faults[MISSHAPED].append(_misshaped(row, name, tuple(state[name].shape), shape))
            elif jnp.issubdtype(leaf.dtype, jnp.floating) and not _is_float(state[name]):
                faults[OTHER_VALUES].append(f"{name}: holds {state[name].dtype}, the model needs floats")
    used = {name for _, names in moves.values() for name in names}
    for name, tensor in state.items():
        if name not in used:
            group, line = _leftover(table, name, tensor, wanted)
            faults[group] += [line] if line else []
    return moves, faults


def _misshaped(row: Row, name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    line = f"{name}: has shape {shape}, the model needs {expected}"
    if row.classes is None or len(shape) != len(expected):
        return line
    axis, extra = row.classes
    if any(size != expected[i] for i, size in enumerate(shape) if i != axis):
        return line  # another network
    given, label = shape[axis] - extra, row.target.rpartition("/")[2]
    return (
        f"{line}: the file has {given} classes, the network {expected[axis] - extra}: bring it in with "
        f"--config.task.network.classes.{label}={given}"
    )


def _leftover(table: Table, name: str, tensor: Tensor, wanted: Mapping[str, Any]) -> tuple[str, str]:
    """What is wrong with a tensor that makes no parameter, and of which group; an empty line where nothing is."""
    for row in table:
        if isinstance(row, Unused):
            if re.fullmatch(row.source, name):
                return UNMATCHED, ""
        elif isinstance(row, Fixed):
            if row.source == name:
                return _check_fixed(row, tensor)
        elif (path := row.path(name)) in wanted:
            return UNMATCHED, f"{printable(name)}: {path} was filled by another tensor already"
        elif path is not None:
            return UNMATCHED, f"{printable(name)}: the model has no parameter {printable(path)}"
    return UNMATCHED, f"{printable(name)}: no row of the table takes it"


def _check_fixed(row: Fixed, tensor: Tensor) -> tuple[str, str]:
    if not row.checked:
        return OTHER_VALUES, ""
    value, shape = row.value(), tuple(tensor.shape)
    if shape != value.shape:
        line = f"{row.source}: has shape {shape}, the model computes {value.shape}"
        if row.places is not None and len(shape) == value.ndim:
            axis = row.places % value.ndim
            if shape[:axis] + shape[axis + 1 :] == value.shape[:axis] + value.shape[axis + 1 :]:
                line += (
                    f": the file is of a grid of {shape[axis]} places, this network of {value.shape[axis]}: another "
                    "resolution; take another name of `maskdit import --list`, or set "
                    "--config.task.network.input_size"
                )
        return MISSHAPED, line
    if not _is_float(tensor):
        return OTHER_VALUES, f"{row.source}: holds {tensor.dtype}, the model computes floats"
    gap = float(np.abs(np.asarray(tensor).astype(np.float64) - value).max())
    rounding = float(ml_dtypes.finfo(tensor.dtype).eps)  # of the file: its entries are at most 1
    if not gap <= max(1e-4, rounding):  # also where it is not a number
        return OTHER_VALUES, f"{row.source}: differs by up to {gap:.2g} from the table that the model computes"
    return OTHER_VALUES, ""


def _is_float(tensor: Tensor) -> bool:
    return jnp.issubdtype(tensor.dtype, jnp.floating)


def _refuse(faults: Faults) -> None:
    if any(faults.values()):
        raise TableError("the state dict does not fit the model:", faults)


def _rows_of(table: Table, path: str) -> Iterator[tuple[Row, list[str]]]:
    """The rows that write a parameter, with their published names."""
    return ((row, names) for row in table if isinstance(row, Row) and (names := row.names(path)) is not None)


def _hollow(shape: tuple[int, ...]) -> np.ndarray:
    """An array of a shape without its bytes."""
    return np.broadcast_to(np.zeros((), np.bool_), shape)


@functools.cache
def _expression(pattern: str) -> re.Pattern:
    pieces = _FIELD.split(pattern)  # literal, field, literal, field, ...
    return re.compile("".join(f"(?P<{part}>\\d+)" if i % 2 else re.escape(part) for i, part in enumerate(pieces)))


def _match(pattern: str, text: str) -> dict[str, str] | None:
    """The numbers that the fields of a pattern stand for in a text; None where it does not match."""
    match = _expression(pattern).fullmatch(text)
    return match.groupdict() if match else None


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {p: v for key, sub in tree.items() for p, v in _flat(sub, f"{prefix}/{key}" if prefix else str(key)).items()}


def _nested(flat: Mapping[str, Any], like: PyTree, prefix: str = "") -> PyTree:
    if not isinstance(like, Mapping):
        return flat[prefix]
    return {key: _nested(flat, sub, f"{prefix}/{key}" if prefix else str(key)) for key, sub in like.items()}
