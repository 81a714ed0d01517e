"""The wheel holds all of the library, and works where the checkout is not."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser

import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
SHIPPED = (".py", ".npz", ".json", ".txt", ".md")
GIVEN = ("jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "grain", "ml_collections", "chex")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("package")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: a build leaves folders behind that a next one would pick up."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("maskdit", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, cwd=copy)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with nothing in it but the wheel; the packages it needs come from the environment of the tests."""
    folder = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


def run(*command, cwd=None, site=None):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0"
    }
    if site is not None:
        env["PYTHONPATH"] = str(site)
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command} returned {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_wheel_holds_every_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        described = Parser().parsestr(archive.read(metadata).decode())
    files = [path for name in ("maskdit", "configs") for path in (ROOT / name).rglob("*") if path.suffix in SHIPPED]
    paths = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    expected = {f"maskdit/{path}" if path.startswith("configs/") else path for path in paths}
    kept = {name for name in names if ".dist-info/" not in name}
    assert kept == expected, "a folder that is new must be added to packages in pyproject.toml"
    assert {"maskdit/configs/maskdit_emoji.py", "maskdit/data/embedded/LICENSES.txt"} <= kept
    assert any(name.endswith("licenses/LICENSE") for name in names)
    required = [line.split(";")[0] for line in described.get_all("Requires-Dist") if "extra ==" not in line]
    assert all(any(line.startswith(name) for line in required) for name in GIVEN)


def test_installed_package_stands_alone(installed, tmp_path):
    code = """
import maskdit, maskdit.config, maskdit.data.emoji
print(maskdit.__file__)
print(*maskdit.config.names())
print(len(maskdit.data.emoji.Emoji("val")))
"""
    file, names, count = run(sys.executable, "-c", code, cwd=tmp_path, site=installed).splitlines()
    assert pathlib.Path(file) == installed / "maskdit" / "__init__.py"
    assert names.split() == sorted(path.stem for path in (ROOT / "configs").glob("[!_]*.py"))
    assert int(count) == 520


def test_train_and_sample_from_the_wheel(installed, tmp_path):
    maskdit = installed / "bin" / "maskdit"
    run(maskdit, "train", "--config", "maskdit_emoji:smoke", "--workdir", "W", cwd=tmp_path, site=installed)
    assert {"config.json", "metrics.jsonl"} <= {path.name for path in (tmp_path / "W").iterdir()}
    labels = ("--labels", "style=noto,group=food-drink")
    run(maskdit, "sample", "W", *labels, "--steps", 2, "--out", "grid.png", cwd=tmp_path, site=installed)
    with Image.open(tmp_path / "grid.png") as image:
        assert image.mode == "RGB" and min(image.size) >= 64
