"""What sampling costs, by the formulas of networks."""

from typing import Any

from maskdit.samplers.sampling import Sampler, Stretch, guided_runs


def sampling_macs(sampler: Sampler, process: Any, network: Any, guidance: Any = None) -> int:
    """Multiply-adds of a network in a whole run, for one sample; a guided call is two.

    Args:
      sampler: one whose steps do not process whole inputs says by `macs(network, run)` what a step takes.
      process: the process.
      network: a module with `layout` and `macs`; with a `masked` argument where runs count masks.
      guidance: None for none.
    """
    process = process.respace(sampler.grid(process, network.layout))
    runs = guided_runs(sampler, process, network.layout, guidance)
    return sum((run.stop - run.start) * (1 + run.guided) * _step(sampler, network, run) for run in runs)


def _step(sampler: Any, network: Any, run: Stretch) -> int:
    if hasattr(sampler, "macs"):
        return sampler.macs(network, run)
    counted = {} if run.masked is None else {"masked": run.masked, "fresh": run.fresh}
    return run.calls * network.macs(**counted)
