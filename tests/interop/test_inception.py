"""The FID's Inception from a file of the published layout, by the command that users give."""

import numpy as np
import pytest

import maskdit
from maskdit import config as configs
from maskdit.cli import main
from maskdit.encoders.inception import InceptionV3
from maskdit.interop import inception, layouts
from maskdit.interop.published import ALIASES
from maskdit.interop.rules import LayoutError, TableError
from maskdit.interop.state_file import State, open_state
from tests.interop.test_published import golden
from tests.interop.torch_writer import state_dict, write_legacy


def published(fill):
    """A state dict as the file has it, its counts of batches included."""
    state = {}
    for name, shape in golden("inception-fid")[1].items():
        state[name] = fill(shape)
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return state


def hollow(shape):
    return np.broadcast_to(np.zeros((), np.float32), shape)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("file") / ALIASES["inception-fid"].file
    write_legacy(path, state_dict(published(lambda shape: rng.standard_normal(shape, np.float32))))
    return path


def test_the_published_file_is_brought_in_and_loaded(file, tmp_path, capsys):
    assert main(["import", "inception-fid", str(file), str(tmp_path / "in")]) == 0, capsys.readouterr().err
    model, theirs = maskdit.load(str(tmp_path / "in")), open_state(file).tensors
    assert model.encoder == InceptionV3()
    ours = model.variables["params"]["encoder"]
    kernel, weight = ours["mixed_6b"]["branch7x7_2"]["kernel"], theirs["Mixed_6b.branch7x7_2.conv.weight"]
    np.testing.assert_array_equal(kernel, np.asarray(weight).transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(ours["conv2d_1a_3x3"]["mean"], theirs["Conv2d_1a_3x3.bn.running_mean"])
    np.testing.assert_array_equal(ours["fc"]["kernel"], np.asarray(theirs["fc.weight"]).T)


def test_torchvisions_network_is_told_apart():
    state = published(hollow)
    state |= {"fc.weight": hollow((1000, 2048)), "fc.bias": hollow((1000,))}
    state["AuxLogits.conv0.conv.weight"] = hollow((128, 768, 1, 1))
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
