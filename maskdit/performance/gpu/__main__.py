"""`python -m maskdit.performance.gpu`; see the package's docstring. Imports the standard library alone."""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from maskdit.performance import gpu
from maskdit.performance.gpu.driver import OURS, TORCH, drive, errors
from maskdit.performance.gpu.phases import phases
from maskdit.performance.gpu.plan import full, tiny
from maskdit.performance.gpu.report import table

PEER_FILES = ("DiT/models.py", "DiT/diffusion/__init__.py", "MaskDiT/models/maskdit.py")
ROOT = str(pathlib.Path(__file__).parents[3])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the driver; the exit code is 1 where something failed. What was skipped for want of time did not."""
    parser = argparse.ArgumentParser(
        "python -m maskdit.performance.gpu", description=(gpu.__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", required=True, help="folder of the results; made")
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a network of a few thousand parameters, on a CPU too")
    parser.add_argument("--peers", metavar="DIR", help=f"folder with the peers' code: {', '.join(PEER_FILES)}")
    parser.add_argument("--phases", metavar="NAME,...", help="these phases alone")
    parser.add_argument("--jax-path", metavar="PATH", help="import path of the JAX worker")
    parser.add_argument("--torch-path", metavar="PATH", help="import path of the PyTorch worker")
    parser.add_argument("--torch-python", default=sys.executable, help="the PyTorch worker's Python (this one)")
    args = parser.parse_args(argv)
    if args.budget <= 0:
        parser.error(f"--budget is a number of seconds, got {args.budget:g}")
    peers = pathlib.Path(args.peers).resolve() if args.peers else None
    missing = [name for name in PEER_FILES if peers and not (peers / name).is_file()]
    if missing:
        parser.error(f"--peers {args.peers} has no {', '.join(missing)}: see `pydoc maskdit.performance.gpu`")
    plan = tiny() if args.tiny else full()
    chosen = phases(plan)
    if args.phases:
        names = args.phases.split(",")
        if unknown := [name for name in names if name not in [phase.name for phase in chosen]]:
            parser.error(f"there are no phases {unknown}: use some of {', '.join(phase.name for phase in chosen)}")
        chosen = tuple(phase for phase in chosen if phase.name in ("start", *names))

    memory = {} if peers is None else {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
    worker = "maskdit.performance.gpu.{}_worker"
    commands = {OURS: ([sys.executable, "-m", worker.format("jax")], _environment(args.jax_path) | memory)}
    if peers is not None:
        command = [args.torch_python, "-m", worker.format("torch"), str(peers)]
        commands[TORCH] = (command, _environment(args.torch_path))
    else:
        print("without --peers: our figures alone")
    out = pathlib.Path(args.out).resolve()
    found = drive(plan, chosen, commands, out, args.budget, say=lambda line: print(line, flush=True))
    report = table(plan, found)
    (out / "table.txt").write_text(report + "\n")
    print("\n" + report)
    return int(any(errors(list(found.values()))))


def _environment(path: str | None) -> dict[str, str]:
    """This process's environment with an import path before the present one, and this library after both."""
    folders = [str(pathlib.Path(folder).resolve()) for folder in (path or "").split(os.pathsep) if folder]
    folders += [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*folders, ROOT])}


if __name__ == "__main__":
    sys.exit(main())
