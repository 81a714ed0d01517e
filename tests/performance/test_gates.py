import pytest

from maskdit import config as configs
from maskdit.performance import mesh_bytes
from maskdit.performance.gates import Gate, at_least, at_most, table
from maskdit.performance.timing import Spread
from maskdit.performance.workloads import Outcome, Program


def test_gates_hold_at_their_limits():
    assert at_least("ratio", 1.75, 1.75, ".2f") == Gate("ratio", ">= 1.75", "1.75", True)
    assert at_least("ratio", 1.7499, 1.75, ".2f").passed is False
    assert at_most("stall", 0.1, 0.1, ".3f", " s", " (idle)") == Gate("stall", "<= 0.100 s", "0.100 s (idle)", True)
    assert at_most("stall", 0.11, 0.1, ".3f").passed is False
    lines = table([at_least("a", 2, 1, "d"), at_least("b", 0, 1, "d"), Gate("c", "no peer", "3", None)]).splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["pass", "MISS", "-"]


def test_shares_and_ratios_of_a_workload():
    programs = {
        "slow": Program("slow", 6e9, lambda: None, [0.5, 0.4, 9.0]),
        "fast": Program("fast", 4e9, lambda: None, [0.2, 0.1, 0.3]),
    }
    outcome = Outcome(programs, Spread(40e9, 30e9, 50e9))
    assert outcome.share("slow") == pytest.approx(6e9 / 0.5 / 40e9)
    assert outcome.ratio("slow", "fast") == pytest.approx(2.5)


def test_formulas_of_collectives_are_the_published_bounds():
    run = configs.build(configs.load("dit_imagenet256:XL/2", {"batch": 32}))
    xl = 675_129_632
    assert mesh_bytes.formula("FSDP 8", run, xl) == pytest.approx(2 * (2.7e9 + 1.35e9), rel=1e-2)  # float32
    assert mesh_bytes.formula("data parallel 8", run, xl) == 4 * xl
    assert mesh_bytes.formula("tensor parallel 8", run, xl) == pytest.approx(2 * 2.1e9, rel=2e-2)


def test_a_data_parallel_step_moves_its_gradients_once():
    small = {"input_size": 4, "width": 32, "depth": 1, "heads": 2}
    config = configs.load("dit_imagenet256:S/2", {f"task.network.{name}": value for name, value in small.items()})
    config.batch, config.task.network.dtype = 8, "float32"
    run = configs.build(config)
    kinds, parameters = mesh_bytes.measured("data parallel 8", run)
    assert sum(kinds.values()) == pytest.approx(mesh_bytes.formula("data parallel 8", run, parameters), rel=0.05)
