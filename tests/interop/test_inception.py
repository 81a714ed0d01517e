"""The FID's Inception from a file of the published layout, by the command that users give."""

import json

import numpy as np
import pytest

import maskdit
from maskdit import config as configs
from maskdit.cli import main
from maskdit.encoders.inception import InceptionV3
from maskdit.evals.collector import Collector
from maskdit.interop import inception, layouts
from maskdit.interop.published import ALIASES
from maskdit.interop.rules import LayoutError, TableError
from maskdit.interop.state_file import State, open_state
from tests.interop.test_published import golden
from tests.interop.torch_writer import state_dict, write_legacy


def published(fill):
    """A state dict as the file has it, its counts of batches included; `fill(name, shape)` gives the arrays."""
    state = {}
    for name, shape in golden("inception-fid")[1].items():
        state[name] = fill(name, shape)
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return state


def hollow(name, shape):
    return np.broadcast_to(np.zeros((), np.float32), shape)


def filled(rng):
    """Numbers with which activations stay of one size from layer to layer."""

    def fill(name, shape):
        drawn = rng.standard_normal(shape, np.float32)
        if name.endswith("running_var"):
            return 1 + 0.1 * np.abs(drawn)
        return (
            drawn * np.float32(np.sqrt(2 / np.prod(shape[1:])))
            if len(shape) > 1
            else 0.1 * drawn + ("bn.weight" in name)
        )

    return fill


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / ALIASES["inception-fid"].file
    write_legacy(path, state_dict(published(filled(np.random.default_rng(0)))))
    return path


@pytest.fixture(scope="module")
def imported(file, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("imported") / "in")
    assert main(["import", "inception-fid", str(file), path]) == 0
    return path


def test_the_published_file_is_brought_in_and_loaded(file, imported):
    model, theirs = maskdit.load(imported), open_state(file).tensors
    assert model.encoder == InceptionV3()
    ours = model.variables["params"]["encoder"]
    kernel, weight = ours["mixed_6b"]["branch7x7_2"]["kernel"], theirs["Mixed_6b.branch7x7_2.conv.weight"]
    np.testing.assert_array_equal(kernel, np.asarray(weight).transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(ours["conv2d_1a_3x3"]["mean"], theirs["Conv2d_1a_3x3.bn.running_mean"])
    np.testing.assert_array_equal(ours["fc"]["kernel"], np.asarray(theirs["fc.weight"]).T)


def test_torchvisions_network_is_told_apart():
    state = published(hollow)
    state |= {"fc.weight": hollow("", (1000, 2048)), "fc.bias": hollow("", (1000,))}
    state["AuxLogits.conv0.conv.weight"] = hollow("", (128, 768, 1, 1))
    with pytest.raises(TableError) as error:
        layouts.read(InceptionV3(), layouts.parameter_shapes(InceptionV3()), State(state, "torchvision.pth"))
    assert "fc.weight: has shape (1000, 2048), the model needs (1008, 2048)" in str(error.value)
    assert error.value.faults["unmatched"] == ("AuxLogits.conv0.conv.weight: no row of the table takes it",)


def test_published_arguments():
    for network in (InceptionV3(), InceptionV3(num_classes=10, epsilon=1e-5, size=139)):
        assert configs.build(inception.from_reference(inception.to_reference(network))) == network
    assert configs.build(inception.from_reference({})) == configs.build(ALIASES["inception-fid"].spec())
    with pytest.raises(LayoutError, match="running_stats=False"):
        inception.from_reference({"running_stats": False})
    with pytest.raises(LayoutError, match="torchvision"):
        inception.from_reference({"use_fid_inception": False})


def test_images_are_scored_by_it_against_a_reference_of_adms_form(imported, tmp_path, capsys, monkeypatch):
    given = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "samples.npz", arr_0=given)
    adm = {"mu": np.zeros(2048), "sigma": np.eye(2048) / 4, "mu_s": np.ones(2023), "sigma_s": np.zeros((2023, 2023))}
    np.savez(tmp_path / "VIRTUAL_labeled.npz", arr_0=given, **adm)
    collected, finish = [], Collector.finish
    monkeypatch.setattr(Collector, "finish", lambda self: (collected.append(finish(self)), collected[-1])[1])
    how = ["--images", str(tmp_path / "samples.npz"), "--network", imported, "--batch", "8"]
    against = ["--metrics", "fid,sfid,is,kid,pr", "--reference", str(tmp_path / "VIRTUAL_labeled.npz")]
    assert main(["evaluate", *how, *against]) == 0, capsys.readouterr().err
    kept = json.loads((tmp_path / "samples.evaluation" / "metrics.json").read_text())
    found = {name: figure["mean"] for name, figure in kept["metrics"].items()}
    reference, samples = collected
    rows = samples.rows.astype(np.float64)
    np.testing.assert_array_equal(reference.rows, samples.rows)
    apart = rows - rows.mean(0)
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(apart @ apart.T / 7), 0)).sum() / 2  # of S1 S2, S2 = I / 4
    fid = np.square(rows.mean(0)).sum() + np.square(apart).sum() / 7 + 512 - 2 * roots
    assert found["fid"] == pytest.approx(fid, rel=1e-5)
    sfid = np.square(samples.spatial.mean - 1).sum() + np.trace(samples.spatial.cov)
    assert found["sfid"] == pytest.approx(sfid, rel=1e-5) and samples.spatial.width == 2023
    # the features of the file's own images, which are the same ones
    assert found["kid"] < 0 and found["pr/precision"] == found["pr/recall"] == 1
    assert 1 <= found["is"] < 8 and "is/torch-fidelity" not in found  # whose 10 splits 8 images do not fill
    assert kept["features"]["resize"] == "tf1-bilinear" and kept["reference"]["statistics"] == "ADM's"
    table = capsys.readouterr().out
    assert "FID (" in table and "few images (8 for 2048 features)" in table
