"""What an evaluation found: a table for the terminal, and a record with all that it takes to repeat it."""

import dataclasses
import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from maskdit.interop.atomic import written_whole
from maskdit.training import distributed

FILE = "metrics.json"
ROUNDING = "images are clipped and rounded to the nearest of 256 levels (uint8) before they are resized"


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured quantity.

    Attributes:
      name: such as `labels/style` or `fid`.
      values: one for each seed.
      beside: figures to read it against, by name, such as `chance`.
      unit: `%` for shares, which the table shows in percent; else what follows the number.
      note: a line for the end of the table.
      label: what the table calls it; None for its name.
    """

    name: str
    values: tuple[float, ...]
    beside: dict[str, float]
    unit: str = "%"
    note: str = ""
    label: str | None = None


def table(figures: Sequence[Figure], num: int, columns: Sequence[str], notes: Iterable[str] = ()) -> str:
    """The figures as text: a row for each, a column for each of its values, their mean, and what to read it against.

    Args:
      figures: what was measured.
      num: images for each value.
      columns: names of the values, such as `seed 0`.
      notes: more lines for the end.
    """
    beside = list(dict.fromkeys(name for figure in figures for name in figure.beside))
    mean = ["mean"] if len(columns) > 1 else []
    titles = [f"{num} images", *columns, *mean, *beside]
    rows = [
        [
            f.label or f.name,
            *(_shown(value, f.unit) for value in (*f.values, *[float(np.mean(f.values))] * len(mean))),
            *(_shown(f.beside.get(name), f.unit) for name in beside),
        ]
        for f in figures
    ]
    widths = [max(len(row[i]) for row in (titles, *rows)) for i in range(len(titles))]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (titles, *rows)
    ]
    return "\n".join([*lines, *dict.fromkeys([*(figure.note for figure in figures if figure.note), *notes])])


def record(figures: Sequence[Figure], about: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What is written: `metrics` by name (`values`, their `mean`, and what to read it against), and the rest.

    Args:
      figures: what was measured.
      about: what of, how and with what, JSON types.
      seconds: how long it took.
    """
    return {
        "metrics": {f.name: {"values": f.values, "mean": float(np.mean(f.values)), **f.beside} for f in figures},
        **about,
        "versions": distributed.versions(),
        "seconds": round(seconds, 1),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write(folder: epath.Path, found: Mapping[str, Any], name: str = FILE) -> None:
    """Writes a record as JSON into a folder; the first process does. What is not finite becomes null."""
    if not distributed.is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / name) as path:
        path.write_text(json.dumps(_finite(found), indent=2) + "\n")


def keep(folder: epath.Path, found: Mapping[str, Any], name: str = FILE) -> None:
    """Writes the record of an evaluation, in place of the one before, and says where."""
    write(folder, found, name)
    if distributed.is_first():
        print(f"wrote {folder / name}")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit:
        return f"{value:.3f} {unit}"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 100 else f"{value:.5g}"
