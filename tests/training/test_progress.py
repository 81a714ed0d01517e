import io

from rich.console import Console

from maskdit.training import progress
from maskdit.training.progress import Counter


def test_lines_come_now_and_then_and_at_the_end(monkeypatch):
    clock = iter([0.0, 100.0, 102.0, 103.0, 120.0, 121.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    out = io.StringIO()
    with Counter(50, "images", console=Console(file=out)) as counter:
        for _ in range(5):
            counter.add(10)
    lines = out.getvalue().splitlines()
    # the first batch compiles: it counts for no rate
    assert lines == ["10/50 images", "40/50 images  1.5 images/s", "50/50 images  1.9 images/s"]


def test_other_processes_print_nothing():
    out = io.StringIO()
    with Counter(1, "images", show=False, console=Console(file=out)) as counter:
        counter.add(1)
    assert out.getvalue() == ""
