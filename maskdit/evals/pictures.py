"""Pictures of runs: grids of images, PNG and GIF files, loss curves."""

import io
import json
import math
import os
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from maskdit.training.log import is_loss


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
