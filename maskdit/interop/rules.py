"""Published state dicts in and out by a table of rows, used in both directions.

A row names a tensor of the published model, the place of ours and how one becomes the other. `{name}` in a pattern
stands for a number and means the same on both sides:

    Row("blocks.{i}.mlp.fc1.weight", "blocks_{i}/mlp/fc1/kernel", TRANSPOSE)

Tensors are numpy arrays. Nothing is skipped silently: what does not fit is an error that lists names.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax.core import meta

PyTree = Any
_FIELD = re.compile(r"\{(\w+)\}")


class TableError(ValueError):
    """Tensors that a table cannot place; the message lists them by name."""


@dataclasses.dataclass(frozen=True)
class Op:
    """How a published tensor becomes ours, and back.

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
      source: pattern of the published name.
      target: pattern of the path in our parameters, parts joined by `/`.
      op: how the tensor changes.
    """

    source: str
    target: str
    op: Op = COPY


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A table that the published model stores and ours computes: checked on import where present, written on export.

    Attributes:
      source: the published name.
      value: gives the tensor in the published layout.
    """

    source: str
    value: Callable[[], np.ndarray]


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

    def forward(x: np.ndarray) -> np.ndarray:
        moved = x.transpose(axes)
        if any(size not in (-1, given) for size, given in zip(leading, moved.shape[:-1], strict=True)):
            raise ValueError("other leading sizes")
        return moved.reshape(-1, moved.shape[-1])

    return Op(forward, lambda x: x.reshape(*leading, x.shape[-1]).transpose(inverse))


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


def linear(source: str, target: str, op: Op = TRANSPOSE, bias: bool = True) -> list[Row]:
    """Rows of a product with a weight: `weight` to `kernel` by `op`, and its bias."""
    rows = [Row(f"{source}.weight", f"{target}/kernel", op)]
    return rows + [Row(f"{source}.bias", f"{target}/bias")] if bias else rows


def import_params(table: Table, state: Mapping[str, np.ndarray], target: PyTree) -> PyTree:
    """Turns a published state dict into parameters.

    Args:
      table: rows of the model.
      state: published name -> tensor.
      target: our parameters or their shapes (`jax.eval_shape` of init): nested dicts.

    Returns:
      Nested dicts of numpy arrays with the shapes and dtypes of `target`.

    Raises:
      TableError: listing tensors that no row matches, parameters that nothing filled, and tensors of another shape, or
        of other values where the table is fixed.
    """
    wanted: dict[str, Any] = _flat(meta.unbox(target))
    found: dict[str, np.ndarray] = {}
    faults: list[str] = []
    for name, tensor in state.items():
        row, path = _forward(table, name)
        tensor = np.asarray(tensor)
        if row is None:
            faults.append(f"{name}: no row of the table takes it")
        elif isinstance(row, Fixed):
            faults += _check_fixed(row, tensor)
        elif isinstance(row, Row) and path not in wanted:
            faults.append(f"{name}: the model has no parameter {path}")
        elif isinstance(row, Row) and path in found:
            faults.append(f"{name}: {path} was filled by another tensor already")
        elif isinstance(row, Row):
            value = _converted(row.op, tensor, wanted[path].shape)
            found[path] = np.zeros(0) if value is None else value.astype(wanted[path].dtype)
            if value is None:
                expected = row.op.backward(np.empty(wanted[path].shape, bool)).shape
                faults.append(f"{name}: has shape {tensor.shape}, the model needs {expected}")
    faults += [f"{path}: no tensor of the state dict fills it" for path in wanted if path not in found]
    if faults:
        raise TableError("the state dict does not fit the model:\n  " + "\n  ".join(faults))
    return _nested(found, meta.unbox(target))


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
        row, name = _backward(table, path)
        if row is None:
            left.append(path)
        else:
            state[name] = row.op.backward(np.asarray(value))
    if left:
        raise TableError("no row of the table writes these parameters:\n  " + "\n  ".join(left))
    return state


def _forward(table: Table, name: str) -> tuple[Row | Fixed | Unused | None, str]:
    for row in table:
        if isinstance(row, Unused):
            if re.fullmatch(row.source, name):
                return row, ""
        elif isinstance(row, Fixed):
            if row.source == name:
                return row, ""
        elif (path := _translate(row.source, row.target, name)) is not None:
            return row, path
    return None, ""


def _backward(table: Table, path: str) -> tuple[Row | None, str]:
    for row in table:
        if isinstance(row, Row) and (name := _translate(row.target, row.source, path)) is not None:
            return row, name
    return None, ""


def _translate(pattern: str, other: str, text: str) -> str | None:
    """`text`, which matches `pattern`, written as `other`; None where it does not match."""
    parts = _FIELD.split(pattern)  # literal, field, literal, field, ...
    expression = "".join(f"(?P<{part}>\\d+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    match = re.fullmatch(expression, text)
    return other.format(**match.groupdict()) if match else None


def _converted(op: Op, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        value = op.forward(tensor)
    except ValueError:  # another rank or number of entries
        return None
    return value if value.shape == tuple(shape) else None


def _check_fixed(row: Fixed, tensor: np.ndarray) -> list[str]:
    value = row.value()
    if tensor.shape != value.shape:
        return [f"{row.source}: has shape {tensor.shape}, the model computes {value.shape}"]
    gap = float(np.abs(tensor.astype(np.float64) - value).max())
    if not gap <= 1e-4:  # also where it is not a number
        return [f"{row.source}: differs by up to {gap:.2g} from the table that the model computes"]
    return []


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {p: v for key, sub in tree.items() for p, v in _flat(sub, f"{prefix}/{key}" if prefix else str(key)).items()}


def _nested(flat: Mapping[str, Any], like: PyTree, prefix: str = "") -> PyTree:
    if not isinstance(like, Mapping):
        return flat[prefix]
    return {key: _nested(flat, sub, f"{prefix}/{key}" if prefix else str(key)) for key, sub in like.items()}
