"""Sweeps over settings of sampling: which points they have, a table of what was measured there, a plot.

Papers report the best point of a sweep over guidance, steps or averages of the weights; which points were tried belongs
to such a figure.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Container, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from numbers import Integral, Real
from typing import Any

from maskdit.config import nearest
from maskdit.evals import pictures

KINDS: dict[str, type] = {"guidance": float, "steps": int, "temperature": float, "ema": str, "step": int}
"""What can be swept, and the type of its values: `ema` names averages of the weights, `step` checkpoints."""
MOST = 1000
"""Points of all sweeps together."""
_ROUNDING = Decimal("1e-6")  # of a step: so far may the last value lie from STOP and be it
_DIGITS = 12  # of whole and decimal places
_BESIDE = ("/deviation", "/error")  # ends of names of figures that stand beside others and are no aim
_FORMS = "NAME=START:STOP:STEP or NAME=VALUE,VALUE,.."


class SweepError(ValueError):
    """A sweep that cannot be made; the message says what can."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A setting and the values to try.

    Attributes:
      name: one of `KINDS`.
      values: of its type, in the order given.
    """

    name: str
    values: tuple[float | int | str, ...]


def parse(text: str) -> Sweep:
    """Reads `guidance=1:4:0.25`, whose STOP is included, or `steps=10,20,50`.

    Values are counted in decimals: the tenth of `0:1:0.1` is 0.9, and no neighbour of it. STEP may be negative.

    Raises:
      SweepError: for another form, an unknown setting, values of another type, a STEP that does not lead to STOP, and
        more than `MOST` values.
    """
    name, equals, body = (part.strip() for part in text.partition("="))
    if not equals or not name:
        raise SweepError(f"a sweep is {_FORMS}, such as guidance=1:4:0.25; got '{text}'")
    if name not in KINDS:
        raise SweepError(f"'{name}' cannot be swept; {nearest(name, list(KINDS))}")
    parts = [part.strip() for part in body.split(",")]
    if "" in parts:
        raise SweepError(f"'{text}' lacks a value; a sweep is {_FORMS}")
    if KINDS[name] is str and ":" in body:
        raise SweepError(f"{name} takes names, which have no ranges: {name}=VALUE,VALUE,..; got '{text}'")
    if KINDS[name] is str:
        values: list[Any] = parts
    elif ":" in body:
        values = [_typed(name, value) for value in _range(text, body)]
    else:
        values = [_typed(name, _number(text, part)) for part in parts]
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise SweepError(f"'{text}' names {twice} more than once: give each value once")
    return Sweep(name, tuple(values))


def points(sweeps: Sequence[Sweep]) -> list[dict[str, Any]]:
    """All combinations of the sweeps' values, the last sweep's changing fastest.

    Raises:
      SweepError: for two sweeps of a setting, and more than `MOST` combinations.
    """
    names = [one.name for one in sweeps]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SweepError(f"{twice} is swept twice: give all its values in one sweep")
    count = math.prod(len(one.values) for one in sweeps)
    if count > MOST:
        raise SweepError(f"the sweeps of {', '.join(names)} make {count} points, and {MOST} are the most: give fewer")
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(one.values for one in sweeps))]


def best(rows: Sequence[Mapping[str, Any]], figure: str, higher: Container[str] = ()) -> int | None:
    """The number of the row with the best value of a figure, the first of equal ones; None where no value is finite.

    Args:
      rows: settings and figures of points.
      figure: a name of them.
      higher: names of figures that are better the higher they are; of others less is better.
    """
    sign = -1 if figure in higher else 1
    found = [(sign * float(row[figure]), i) for i, row in enumerate(rows) if _finite(row.get(figure))]
    return min(found)[1] if found else None


def table(rows: Sequence[Mapping[str, Any]], higher: Container[str] = ()) -> str:
    """Settings and figures as text: a row for each point, `*` at the best value of each figure that differs among them.

    Args:
      rows: of each point its settings (names of `KINDS`) and its figures. What a row lacks is left empty.
      higher: names of figures that are better the higher they are.

    Returns:
      Lines; the last ones say at which settings the first figure is best.
    """
    settings, figures = _columns(rows)
    judged = [name for name in figures if not name.endswith(_BESIDE) and len({row.get(name) for row in rows}) > 1]
    winners = {name: best(rows, name, higher) for name in judged}
    cells = [[*settings, *(f"{name} " for name in figures)]]
    for i, row in enumerate(rows):
        marks = [_shown(row.get(name), 5) + ("*" if winners.get(name) == i else " ") for name in figures]
        cells.append([*(_shown(row.get(name)) for name in settings), *marks])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.rjust, line, widths)).rstrip() for line in cells]
    winner = winners[judged[0]] if judged else None
    if winner is not None:
        where = ", ".join(f"{name} {_shown(rows[winner].get(name))}" for name in settings)
        value = _shown(rows[winner][judged[0]], 5)
        lines.append(f"* best of its column, of {len(rows)} points; {judged[0]} is best at {where}: {value}")
    return "\n".join(lines)


def plot(
    path: str | os.PathLike[str],
    rows: Sequence[Mapping[str, Any]],
    higher: Container[str] = (),
    titles: Mapping[str, str] | None = None,
) -> None:
    """Draws the first distance against the first score, as FID against IS; else the first figure over the setting.

    The values of the first setting that changes stand along a line; other settings have a line for each value.

    Args:
      path: the PNG file.
      rows: as those of `table`; settings first.
      higher: names of figures that are better the higher they are, the scores.
      titles: of axes, by name of a figure or setting; the names by default.

    Raises:
      SweepError: where no setting changes or there is no figure.
    """
    settings, figures = _columns(rows)
    swept = [name for name in settings if len({row.get(name) for row in rows}) > 1]
    if not swept or not figures:
        raise SweepError(
            f"a plot takes a figure and a setting of two or more values; there are {len(figures)} figures at "
            f"{len(rows)} points of {', '.join(settings) or 'no setting'}"
        )
    aims = [name for name in figures if not name.endswith(_BESIDE)]
    distance = next((name for name in aims if name not in higher), None)
    score = next((name for name in aims if name in higher), None)
    x, y = (swept[0], figures[0]) if distance is None or score is None else (score, distance)
    named = {} if titles is None else titles
    pictures.trade_off(
        path,
        rows,
        x,
        y,
        (named.get(x, x), named.get(y, y)),
        along=swept[0],
        lines=swept[1:],
        best=best(rows, y, higher),
    )


def _columns(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Names of settings and of figures, in the order of the rows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [name for name in names if name in KINDS], [name for name in names if name not in KINDS]


def _range(text: str, body: str) -> list[Decimal]:
    parts = body.split(":")
    if len(parts) != 3:
        raise SweepError(f"'{text}' has {len(parts)} parts between colons; a range is START:STOP:STEP")
    start, stop, step = (_number(text, part.strip()) for part in parts)
    if step == 0:
        raise SweepError(f"'{text}' has a STEP of 0: it never comes to {stop}")
    steps = (stop - start) / step
    if steps < 0:
        raise SweepError(f"'{text}' is empty: from {start} a STEP of {step} leads away from {stop}; give {-step}")
    if steps >= MOST:
        raise SweepError(f"'{text}' has more than {MOST} values: take a larger STEP")
    values = [start + i * step for i in range(int(steps + _ROUNDING) + 1)]
    return [*values[:-1], stop] if abs(values[-1] - stop) <= _ROUNDING * abs(step) else values


def _number(text: str, part: str) -> Decimal:
    try:
        number = Decimal(part)
    except InvalidOperation as error:
        raise SweepError(f"'{part}' in '{text}' is no number; a sweep is {_FORMS}") from error
    if not number.is_finite() or (number and abs(number.adjusted()) > _DIGITS):
        raise SweepError(f"'{part}' in '{text}' is not a number that can be counted with")
    return number


def _typed(name: str, value: Decimal) -> float | int:
    if KINDS[name] is float:
        return float(value)
    if value != value.to_integral_value() or value < 1:
        raise SweepError(f"{name} takes whole numbers from 1 on; got {value}")
    return int(value)


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _shown(value: Any, digits: int = 10) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}g}" if isinstance(value, Real) and not isinstance(value, Integral) else str(value)
