"""Pictures of runs: grids of images, PNG and GIF files, loss curves, figures of sweeps."""

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from maskdit.training.log import is_loss

_WIDE = 30
"""Figures that differ by more than this factor are drawn on a logarithmic axis."""


def grid(images: np.ndarray, columns: int | None = None, padding: int = 2) -> np.ndarray:
    """Lays images out in rows on white, in reading order.

    Args:
      images: uint8 `[N, H, W, 3]`, N at least 1.
      columns: images in a row; None for as many as make the grid square or a little wider than high.
      padding: white pixels around and between images.

    Returns:
      uint8 `[rows * (H + padding) + padding, columns * (W + padding) + padding, 3]`.

    Raises:
      ValueError: for images of another type or shape, and for less than one column.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        raise ValueError(f"a grid is made of uint8 images [N, H, W, 3], N > 0; got {images.dtype} {list(images.shape)}")
    count, height, width, _ = images.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    if columns < 1 or padding < 0:
        raise ValueError(f"a grid has 1 column or more and a padding of 0 or more; got {columns} and {padding}")
    rows = math.ceil(count / columns)
    cells = np.full((rows * columns, height + padding, width + padding, 3), 255, np.uint8)
    cells[:count, padding:, padding:] = images
    sheet = cells.reshape(rows, columns, height + padding, width + padding, 3)  # [rows, columns, h, w, 3]
    sheet = sheet.transpose(0, 2, 1, 3, 4).reshape(rows * (height + padding), columns * (width + padding), 3)
    return np.pad(sheet, ((0, padding), (0, padding), (0, 0)), constant_values=255)


def pairs(images: np.ndarray, others: np.ndarray, columns: int) -> np.ndarray:
    """Lays out two sets of images as `grid` does: a row of the first above the same row of the second.

    Args:
      images, others: uint8 `[N, H, W, 3]`.
      columns: images in a row; what is left of the last one is white.
    """
    rows = -(-len(images) // columns)
    white = np.full((rows * columns, *images.shape[1:]), 255, np.uint8)
    first, second = white.copy(), white
    first[: len(images)], second[: len(others)] = images, others
    cut = (rows, columns, *images.shape[1:])
    return grid(np.stack([first.reshape(cut), second.reshape(cut)], 1).reshape(-1, *images.shape[1:]), columns)


def strip(frames: np.ndarray) -> np.ndarray:
    """Lays out how images came to be: a row for each image, a column for each step.

    Args:
      frames: uint8 `[N, steps, H, W, 3]`.
    """
    return grid(frames.reshape(-1, *frames.shape[2:]), columns=frames.shape[1])


def save_gif(path: str | os.PathLike[str], frames: np.ndarray, seconds: float = 3.0, rest: float = 1.5) -> None:
    """Writes an animation that starts over at its end, local or `gs://`; the folder must exist.

    Args:
      path: the GIF file.
      frames: uint8 `[T, H, W, 3]`; each frame has 256 colours of its own.
      seconds: how long all frames take together; one takes 0.04 to 0.4 seconds.
      rest: how much longer the last one stays, in seconds.

    Raises:
      ValueError: for frames of another type or shape.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(
            f"an animation is made of uint8 frames [T, H, W, 3], T > 0; got {frames.dtype} {list(frames.shape)}"
        )
    each = round(1000 * min(max(seconds / len(frames), 0.04), 0.4))
    times = [each] * (len(frames) - 1) + [each + round(1000 * rest)]
    first, *others = (Image.fromarray(frame) for frame in frames)
    encoded = io.BytesIO()
    first.save(encoded, "GIF", save_all=True, append_images=others, duration=times, loop=0)
    epath.Path(path).write_bytes(encoded.getvalue())


def save_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Writes an image, uint8 `[H, W, 3]`, as a PNG file, local or `gs://`; the folder must exist.

    Raises:
      ValueError: for an image of another type or shape.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image to save is uint8 [H, W, 3]; got {image.dtype} {list(image.shape)}")
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG")
    epath.Path(path).write_bytes(encoded.getvalue())


def loss_curve(metrics: str | os.PathLike[str], png: str | os.PathLike[str]) -> None:
    """Draws training losses, held-out losses and learning rates of a run over its steps.

    Args:
      metrics: a run's `metrics.jsonl`; a last line that is still being written is passed over.
      png: where the picture goes.

    Raises:
      ValueError: where there is no loss in the file yet.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second to import
    from matplotlib.figure import Figure

    series = _series(epath.Path(metrics).read_text())
    losses = {name: points for name, points in series.items() if is_loss(name)}
    if not losses:
        raise ValueError(f"{os.fspath(metrics)} holds no loss yet: train for at least one log interval")
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    for name, (steps, values) in losses.items():
        if name.startswith("held_out/"):
            axes.plot(steps, values, "o-", markersize=3, label=_label(name))
        else:
            _plot_noisy(axes, steps, values, _label(name))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    rates = {name: points for name, points in series.items() if name.rpartition("/")[2] == "lr"}
    if rates:
        right = axes.twinx()
        for name, (steps, values) in rates.items():
            right.plot(steps, values, ":", color="grey", linewidth=1)
            axes.plot([], [], ":", color="grey", linewidth=1, label=_label(name))  # one legend for both axes
        right.set_ylabel("learning rate")
        right.set_ylim(bottom=0)
    axes.legend(loc="upper right")
    encoded = io.BytesIO()
    canvas.print_png(encoded)
    epath.Path(png).write_bytes(encoded.getvalue())


def trade_off(
    path: str | os.PathLike[str],
    points: Sequence[Mapping[str, Any]],
    x: str,
    y: str,
    labels: tuple[str, str],
    *,
    along: str,
    lines: Sequence[str] = (),
    best: int | None = None,
) -> None:
    """Draws one figure of a sweep's points against another, or against the setting that was swept.

    Args:
      path: the PNG file, local or `gs://`.
      points: settings and figures by name; points where `x` or `y` is missing or not finite are left out.
      x, y: their names.
      labels: titles of the axes.
      along: the setting whose values lie along a line, in their order if they are numbers; they stand beside the
        points where there is room, unless they are `x` itself.
      lines: other settings: each combination of their values has a line.
      best: the number of a point to circle.

    Raises:
      ValueError: where there is no point to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second to import
    from matplotlib.figure import Figure

    drawn = [i for i, point in enumerate(points) if _finite(point.get(y)) and (x == along or _finite(point.get(x)))]
    if not drawn:
        raise ValueError(f"none of {len(points)} points has finite values of {x} and {y}: there is nothing to draw")
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.margins(0.08)
    axes.grid(alpha=0.3)
    heights = [points[i][y] for i in drawn]
    if min(heights) > 0 and max(heights) > _WIDE * min(heights):
        axes.set_yscale("log")
    colors = _plot_lines(axes, [points[i] for i in drawn], x, y, along, lines)
    if best in drawn:
        ring: dict[str, Any] = {
            "markersize": 11,
            "markerfacecolor": "none",
            "markeredgecolor": "black",
            "linestyle": "none",
        }
        label = f"best: {_settings(points[best], (along, *lines))}"
        axes.plot([points[best][x]], [points[best][y]], "o", label=label, **ring)
    if lines or best in drawn:
        title = None if x == along else f"beside points: {along}"
        figure.legend(loc="outside upper center", ncols=4, fontsize=9, title=title, title_fontsize=9)
    if x != along:
        order = [points[i] for i in sorted(drawn, key=lambda i: i != best)]
        spots = [(point[x], point[y], _value(point[along]), colors[_settings(point, lines)]) for point in order]
        _write_beside(canvas, axes, spots)
    encoded = io.BytesIO()
    canvas.print_png(encoded)
    epath.Path(path).write_bytes(encoded.getvalue())


def _plot_lines(
    axes: Any, points: Sequence[Mapping[str, Any]], x: str, y: str, along: str, lines: Sequence[str]
) -> dict[str, Any]:
    """Draws a line for each combination of values of `lines`; gives their colours by its name."""
    from matplotlib import colormaps

    by_line: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        by_line.setdefault(_settings(point, lines), []).append(point)
    if len(by_line) > 10:  # the usual colours would come again
        axes.set_prop_cycle(color=colormaps["viridis"](np.linspace(0, 0.95, len(by_line))))
    colors = {}
    for name, members in by_line.items():
        if all(_finite(point[along]) for point in members):
            members = sorted(members, key=lambda point: point[along])
        places = [point[x] for point in members], [point[y] for point in members]
        (drawn,) = axes.plot(*places, "o-", markersize=4, label=name or None)
        colors[name] = drawn.get_color()
    return colors


def _write_beside(canvas: Any, axes: Any, spots: Sequence[tuple[float, float, str, Any]]) -> None:
    """Writes coloured texts beside points where they hide least of the lines, never on each other, in order."""
    canvas.draw()  # only now is known where points lie
    curves = [axes.transData.transform(np.column_stack(line.get_data())) for line in axes.lines]
    ink = np.concatenate([_dense(curve) for curve in curves])
    taken: list[Any] = []
    for x, y, text, color in spots:
        free: list[tuple[int, int, Any, Any]] = []
        for right, up in ((6, 6), (6, -6), (-6, 6), (-6, -6), (0, 9), (0, -9), (9, 0), (-9, 0)):
            sides = (("right", "center", "left")[np.sign(right) + 1], ("top", "center", "bottom")[np.sign(up) + 1])
            style = {"ha": sides[0], "va": sides[1], "fontsize": 8, "color": color}
            note = axes.annotate(text, (x, y), (right, up), textcoords="offset points", **style)
            box = note.get_window_extent(canvas.get_renderer())
            inside = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
            if inside and not any(box.overlaps(other) for other in taken):
                free.append((box.padded(2).count_contains(ink), len(free), note, box))
            note.remove()
        if free:
            _, _, note, box = min(free, key=lambda one: one[:2])
            axes.add_artist(note)
            note.set_in_layout(False)  # nothing moves any more
            taken.append(box.padded(1))


def _dense(curve: np.ndarray) -> np.ndarray:
    """Places along a line through points `[N, 2]`, a pixel or two apart."""
    parts = [curve[-1:]]
    for a, b in zip(curve[:-1], curve[1:], strict=True):
        count = int(np.abs(b - a).max()) // 2 + 1
        parts.append(a + (b - a) * np.arange(count)[:, None] / count)
    return np.concatenate(parts)


def _settings(point: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {_value(point.get(name))}" for name in names)


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, Real) else str(value)


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _series(text: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (steps, values) of the lines of a `metrics.jsonl`."""
    points: dict[str, list[tuple[int, float]]] = {}
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        for name, value in record.items():
            if value is not None:
                points.setdefault(name, []).append((record["step"], value))
    return {name: (np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])) for name, pairs in points.items()}


def _plot_noisy(axes: Any, steps: np.ndarray, values: np.ndarray, label: str) -> None:
    """A running mean over a twentieth of the run, with the values themselves faint behind it."""
    window = len(values) // 20
    if window < 2:
        axes.plot(steps, values, label=label)
        return
    smooth = np.convolve(values, np.ones(window) / window, "valid")
    (line,) = axes.plot(steps[window - 1 :], smooth, label=f"{label}, mean of {window}")
    axes.plot(steps, values, color=line.get_color(), alpha=0.3, linewidth=0.8, zorder=0)


def _label(name: str) -> str:
    return {"loss": "training loss", "held_out/loss": "held-out loss", "lr": "learning rate"}.get(name, name)
