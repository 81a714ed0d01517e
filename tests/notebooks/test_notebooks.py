"""The notebooks run from top to bottom, each in a kernel of its own, on a small model in place of a published one."""

import base64
import io
import os
import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from maskdit.train import train
from tests.tiny import tiny

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LABELS = [0, 9, 387, 974]

# What stands in place of the cells of parameters.
SMALL_SAMPLE = """
source = "model"
labels = {labels}
steps = 2
guidance = 4.0
seed = 0
"""
SMALL_TRAIN = """
workdir = "run"
split = "val"
steps = 4
every = 2
batch = 8
width = 16
depth = 1
"""
SMALL_TOKENIZERS = """
continuous = "emoji-vae"
discrete = "emoji-vqgan"
shown = 4
measured = 12
"""
SMALL_TOKENS = """
workdir = "run"
split = "val"
steps = 2
batch = 8
width = 16
depth = 1
shown = 3
"""


def tagged(notebook, tag):
    (cell,) = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]
    return cell


def names(text):
    """The variables that a cell sets."""
    return re.findall(r"^(\w+) = ", text, re.MULTILINE)


def outputs(name, folder, parameters, monkeypatch):
    """Runs a notebook in a folder; the outputs of each code cell, by the cell's id."""
    notebook = nbformat.read(ROOT / "notebooks" / name, 4)
    cell = tagged(notebook, "parameters")
    assert names(parameters) == names(cell.source), "the test replaces every parameter"
    cell.source = parameters
    notebook.cells.remove(tagged(notebook, "install"))
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):  # nothing of this machine's user
        monkeypatch.setenv(variable, str(folder / "jupyter"))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # the kernel starts elsewhere
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where)
    client.execute(env={**os.environ, "PYTHONPATH": path})
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def text(cell):
    """What a cell wrote to standard output and what it evaluated to."""
    written = [output.text for output in cell if output.get("name") == "stdout"]
    return "\n".join(written + [output.data["text/plain"] for output in cell if "data" in output])


def picture(cell):
    (data,) = [output.data["image/png"] for output in cell if "image/png" in output.get("data", {})]
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.convert("L").getextrema()[0] < 250, "the picture is blank"
    return image


def sheet(columns, rows, side=64):
    """Size of a grid of images with 2 pixels around and between them."""
    return columns * (side + 2) + 2, rows * (side + 2) + 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_committed_without_traces_of_a_run(path):
    raw = path.read_text()
    notebook = nbformat.reads(raw, 4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)
    assert not re.search(r"(?<![\w.:/~])/[a-z]+/", "".join(cell.source for cell in notebook.cells)), "absolute paths"
    assert str(ROOT) not in raw
    assert "pip install" in tagged(notebook, "install").source


@pytest.mark.slow
def test_load_and_sample(tmp_path, monkeypatch):
    quick = {"task.groups.generator.optimizer.schedule.warmup": 1, "ema": (0.5,)}  # so that labels show in the samples
    train(tiny({"steps": 12, **quick}), str(tmp_path / "model"))
    cells = outputs("01_load_and_sample.ipynb", tmp_path, SMALL_SAMPLE.format(labels=LABELS), monkeypatch)
    assert re.fullmatch(r"\d+,\d{3} parameters on cpu\n", text(cells["load"])), "and nothing of other packages"
    assert "maskdit.networks.maskdit:MaskDiT" in text(cells["config"])
    # numbers beyond the classes start again from 0: 9 of 8 groups is the second
    assert "people-body" in text(cells["classes"])
    sampled, guided, coded = (picture(cells[name]) for name in ("sample", "guidance", "latents"))
    assert sampled.size == sheet(4, 1)
    assert guided.size == coded.size == sheet(len(LABELS), 2)
    above, below = (guided.crop((0, top, guided.width, top + 66)).tobytes() for top in (0, 66))
    assert below == sampled.crop((0, 0, guided.width, 66)).tobytes(), "the lower row are the samples"
    assert above != below, "guidance changes them"
    psnr = re.search(r"\(4, 64, 64, 3\) -> latents \(4, 4, 4, 24\); PSNR ([\d.]+) dB", text(cells["latents"]))
    assert psnr and 10 < float(psnr[1]) < 90


@pytest.mark.slow
def test_train_tiny(tmp_path, monkeypatch):
    cells = outputs("02_train_tiny.ipynb", tmp_path, SMALL_TRAIN, monkeypatch)
    assert "ratio: 0.5" in text(cells["config"])
    assert re.search(r"parameters; mesh .*cpu", text(cells["train"])), "the library's log lines are shown"
    assert re.search(r"step 4/4 +loss \d", text(cells["train"]))
    assert picture(cells["train"]).size == (960, 540)
    assert picture(cells["sample"]).size == sheet(8, 4)
    assert "task.masking.ratio: 0.0 != 0.5" in text(cells["unmasked"])
    assert "Plan(keep=None) from step 0" in text(cells["unmasked"])
    said = re.findall(r"^(half masked|unmasked): \d+ images/s, held-out loss \d", text(cells["compare"]), re.MULTILINE)
    assert said == ["half masked", "unmasked"]
    assert min(picture(cells["compare"]).size) > 200


@pytest.mark.slow
def test_tokenizers(tmp_path, monkeypatch):
    cells = outputs("03_tokenizers.ipynb", tmp_path, SMALL_TOKENIZERS, monkeypatch)
    assert "vocabulary=None" in text(cells["load"]) and "vocabulary=1024" in text(cells["load"])
    assert "latents (4, 8, 8, 8) float32  ids (4, 64) int32" in text(cells["reconstruct"])
    assert picture(cells["reconstruct"]).size == sheet(4, 3)
    figures = dict(re.findall(r"(\w+): PSNR ([\d.]+) dB", text(cells["quality"])))
    assert figures.keys() == {"continuous", "discrete"} and all(20 < float(psnr) < 60 for psnr in figures.values())
    assert min(picture(cells["tokens"]).size) > 50
    used = re.search(r"used: ([\d.]+)% of 1024 codes, perplexity (\d+)", text(cells["usage"]))
    assert used and 5 < float(used[1]) <= 12 * 64 / 1024 * 100
    assert min(picture(cells["usage"]).size) > 100


@pytest.mark.slow
def test_tokens(tmp_path, monkeypatch):
    cells = outputs("04_tokens.ipynb", tmp_path, SMALL_TOKENS, monkeypatch)
    assert "vocabulary=1024" in text(cells["load"]) and "Confidence(" in text(cells["load"])
    assert picture(cells["sample"]).size == sheet(3, 2)
    assert picture(cells["trajectory"]).size == sheet(8, 2)
    edits = [picture(cells[name]).convert("RGB") for name in ("inpaint", "outpaint", "class")]
    assert [edit.size for edit in edits] == [sheet(6, 1)] * 3
    inpainted, outpainted, _ = edits
    middle, edge = (20, 20, 44, 44), (0, 0, 12, 12)

    def part(edit, column, box):
        left = 2 + 66 * column
        return edit.crop((left + box[0], 2 + box[1], left + box[2], 2 + box[3])).tobytes()

    for column in range(2, 6):
        assert part(inpainted, column, edge) == part(inpainted, 0, edge)
        assert part(inpainted, column, middle) != part(inpainted, 0, middle)
        assert part(outpainted, column, middle) == part(outpainted, 0, middle)
