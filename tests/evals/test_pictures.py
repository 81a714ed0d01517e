"""Grids keep every pixel in its place; curves show what the records hold."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from maskdit.evals.pictures import grid, loss_curve, save_gif, save_png, strip, trade_off


def images(count, height=3, width=5):
    return np.random.default_rng(0).integers(0, 255, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("count", "columns", "padding"), [(1, None, 2), (5, None, 1), (6, 4, 0), (3, 7, 2)])
def test_grid_holds_each_image_in_reading_order_on_white(count, columns, padding):
    given = images(count)
    sheet = grid(given, columns, padding)
    wide = columns or int(np.ceil(np.sqrt(count)))
    rest = np.ones(sheet.shape[:2], bool)
    for i, image in enumerate(given):
        top, left = padding + i // wide * (3 + padding), padding + i % wide * (5 + padding)
        assert (sheet[top : top + 3, left : left + 5] == image).all()
        rest[top : top + 3, left : left + 5] = False
    assert sheet.shape == (padding + -(-count // wide) * (3 + padding), padding + wide * (5 + padding), 3)
    assert (sheet[rest] == 255).all()


@pytest.mark.parametrize(
    "given",
    [images(2).astype(np.float32), images(2)[0], images(0), images(2)[..., :1]],
    ids=["float", "3d", "none", "grey"],
)
def test_grid_names_what_it_was_given(given):
    with pytest.raises(ValueError, match=r"uint8 images \[N, H, W, 3\].*got"):
        grid(given)


def test_png_returns_the_same_pixels(tmp_path):
    image = images(1, 17, 9)[0]
    save_png(tmp_path / "a.png", image)
    with Image.open(tmp_path / "a.png") as read:
        assert (np.asarray(read) == image).all()
    with pytest.raises(ValueError, match="uint8"):
        save_png(tmp_path / "b.png", image / 255)


def test_strip_has_a_row_for_each_image_and_a_column_for_each_step():
    frames = images(6).reshape(2, 3, 3, 5, 3)
    sheet = strip(frames)
    assert sheet.shape == (2 * 5 + 2, 3 * 7 + 2, 3)
    assert (sheet[7:10, 16:21] == frames[1, 2]).all()


def test_gif_shows_each_frame_and_rests_on_the_last(tmp_path):
    frames = np.stack([np.full((6, 6, 3), shade, np.uint8) for shade in (0, 128, 255)])
    save_gif(tmp_path / "a.gif", frames, seconds=0.6, rest=1.0)
    with Image.open(tmp_path / "a.gif") as read:
        assert (read.n_frames, read.info["loop"]) == (3, 0)
        for number, (frame, time) in enumerate(zip(frames, (200, 200, 1200), strict=True)):
            read.seek(number)
            assert (np.asarray(read.convert("RGB")) == frame).all() and read.info["duration"] == time
    with pytest.raises(ValueError, match=r"frames \[T, H, W, 3\]"):
        save_gif(tmp_path / "b.gif", frames[0])


def drawn(path, records, tail=""):
    (path / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + tail)
    loss_curve(path / "m.jsonl", path / "loss.png")
    with Image.open(io.BytesIO((path / "loss.png").read_bytes())) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_curve_falls_with_the_loss_and_shows_held_out_points_and_rate(tmp_path):
    falling = [{"step": s, "loss": 10.0 - s} for s in range(10)]
    plain = drawn(tmp_path, falling, tail='{"step": 10, "lo')
    assert plain.shape == (540, 960, 3)
    coloured = np.argwhere(np.ptp(plain, axis=2) > 100)
    coloured = coloured[coloured[:, 0] > 120]  # below the legend
    left, right = coloured[coloured[:, 1] < 400], coloured[coloured[:, 1] > 600]
    assert left[:, 0].mean() + 50 < right[:, 0].mean()  # rows count from the top
    more = drawn(tmp_path, [r | {"held_out/loss": 5.0, "lr": 1e-3, "loss/low": None} for r in falling])
    orange = (more[..., 0] > 200) & (abs(more[..., 1] - 127) < 30) & (more[..., 2] < 60)
    assert orange.sum() > 100 > ((plain[..., 0] > 200) & (abs(plain[..., 1] - 127) < 30) & (plain[..., 2] < 60)).sum()


def test_curve_of_no_losses_says_so(tmp_path):
    with pytest.raises(ValueError, match="no loss yet"):
        drawn(tmp_path, [{"step": 1, "lr": 1.0}])


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def sweep(count, steps=(1,)):
    return [{"g": float(i), "s": s, "x": i + s / 10, "y": (i - 2.0) ** 2 + s} for s in steps for i in range(count)]


def test_points_of_a_sweep_are_joined_in_the_order_of_the_setting(tmp_path):
    points = sweep(5)
    trade_off(tmp_path / "a.png", points, "x", "y", ("X", "Y"), along="g")
    trade_off(tmp_path / "b.png", [points[i] for i in (3, 0, 4, 1, 2)], "x", "y", ("X", "Y"), along="g")
    assert abs(pixels(tmp_path / "a.png") - pixels(tmp_path / "b.png")).mean() < 0.5  # texts may lie otherwise
    trade_off(tmp_path / "c.png", points, "x", "y", ("X", "Y"), along="y")
    assert abs(pixels(tmp_path / "a.png") - pixels(tmp_path / "c.png")).mean() > 0.5


def test_each_value_of_another_setting_has_a_line_and_the_best_point_a_ring(tmp_path):
    points = sweep(4, (1, 2))
    trade_off(tmp_path / "a.png", points, "g", "y", ("X", "Y"), along="g", lines=("s",), best=2)
    found = pixels(tmp_path / "a.png")[100:]
    blue, orange = abs(found - [31, 119, 180]).sum(-1) < 30, abs(found - [255, 127, 14]).sum(-1) < 30
    assert blue.sum() > 500 and orange.sum() > 500
    assert np.argwhere(blue)[:, 0].mean() > np.argwhere(orange)[:, 0].mean() + 10  # smaller figures lie lower
    without = tmp_path / "b.png"
    trade_off(without, points, "g", "y", ("X", "Y"), along="g", lines=("s",))
    black = [(pixels(path)[100:530, 120:940].sum(-1) < 200).sum() for path in (tmp_path / "a.png", without)]
    assert black[0] > black[1] + 20


def test_points_without_figures_are_left_out(tmp_path):
    points = sweep(3)
    trade_off(tmp_path / "a.png", points, "x", "y", ("X", "Y"), along="g")
    gaps = [*points, {"g": 9.0, "x": float("nan"), "y": 1.0}, {"g": 10.0, "x": 3.0}]
    trade_off(tmp_path / "b.png", gaps, "x", "y", ("X", "Y"), along="g")
    assert (pixels(tmp_path / "a.png") == pixels(tmp_path / "b.png")).all()
    with pytest.raises(ValueError, match="none of 2 points has finite values of x and y"):
        trade_off(tmp_path / "c.png", gaps[3:], "x", "y", ("X", "Y"), along="g")


def test_names_lie_on_an_axis_of_their_own(tmp_path):
    points = [{"ema": name, "y": y} for name, y in (("none", 900.0), ("0.99", 3.0), ("0.9", 2.0))]
    trade_off(tmp_path / "a.png", points, "ema", "y", ("average", "Y"), along="ema")
    blue = np.argwhere(abs(pixels(tmp_path / "a.png") - [31, 119, 180]).sum(-1) < 30)
    last = blue[blue[:, 1] > 520]
    assert np.ptp(last[:, 0]) > 20  # on a logarithmic axis 3 and 2 can be told apart
