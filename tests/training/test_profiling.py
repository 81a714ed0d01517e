"""Traces hold the steps asked for, under their numbers."""

import pytest
from jax.profiler import ProfileData

from maskdit.train import train
from maskdit.training.profiling import STEP, ProfileError, Window
from tests.tiny import tiny


def test_trace_holds_the_steps_of_the_window(tmp_path):
    train(tiny({"steps": 5}), str(tmp_path), profile="2:3")
    (file,) = (tmp_path / "profile" / "plugins" / "profile").glob("*/*.xplane.pb")
    events = [
        event for plane in ProfileData.from_file(str(file)).planes for line in plane.lines for event in line.events
    ]
    numbers = [dict(event.stats).get("step_num") for event in events if event.name == STEP]
    assert sorted(numbers) == [2, 3, 4]
    with pytest.raises(ProfileError, match="is at its last step, 5"):
        train(tiny({"steps": 5}), str(tmp_path), profile="2:3")


@pytest.mark.parametrize("text", ["10", "10:", "0:5", "3:0", "a:b", "5-9"])
def test_windows_that_cannot_be_read(text):
    with pytest.raises(ProfileError, match=f"FIRST:COUNT.*got '{text}'"):
        Window.parse(text)


@pytest.mark.parametrize("window", [Window(10, 1), Window(19, 3)])
def test_windows_outside_of_the_run(window):
    with pytest.raises(ProfileError, match="does the steps 11 to 20"):
        window.check(done=10, total=20)
    Window(11, 10).check(done=10, total=20)
