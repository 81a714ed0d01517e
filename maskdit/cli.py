"""The command line: `maskdit VERB`.

Each verb is a module of its own; this file reads arguments and turns errors into sentences. JAX is imported after the
process is set up.
"""

import argparse
import contextlib
import itertools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

from absl import logging as absl_logging

from maskdit import config as configs
from maskdit.training.allocator import keep_pages
from maskdit.training.xla import compile_only, keep_programs, leave_out_tpu

_OVERRIDES = "Entries of the config are set with --config.PATH=VALUE, such as --config.task.network.width=96."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; the exit code is 0, 1 after an error that was told in a sentence, 130 after an interrupt."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    known, overrides = _split(arguments)
    parser = _parser()
    args = parser.parse_args(known)
    if overrides and not args.overridable:
        parser.error(f"{args.verb} takes no {overrides[0][0]}: a checkpoint carries its config")
    leave_out_tpu()
    keep_pages()
    sys.path.insert(0, os.getcwd())  # configs and their classes are found as by `python -m`
    try:
        with _speaking():
            if getattr(args, "topology", None):
                compile_only()
            keep_programs()
            args.run(args, overrides)
    except KeyboardInterrupt:
        print(f"maskdit {args.verb}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("MASKDIT_TRACEBACK") or not _ours(error):
            raise
        hint = "" if type(error).__module__.startswith("maskdit.") else " (MASKDIT_TRACEBACK=1 shows where)"
        print(f"maskdit {args.verb}: {error}{hint}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _speaking() -> Iterator[None]:
    """Lets the library's own lines through to standard error, as they are, above a progress bar where there is one."""
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax reports each file that it opens
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # and a failed save fails in each of its tasks
    logger, handler = logging.getLogger("maskdit"), logging.lastResort
    assert handler is not None
    before = logger.level, logger.propagate, handler.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before[1]
        logger.setLevel(before[0])
        handler.setLevel(before[2])


def _train(args: Any, overrides: list[tuple[str, str]]) -> None:
    from maskdit.train import train

    train(_config(args, overrides), args.workdir, args.trust, args.profile)


def _sample(args: Any, overrides: list[tuple[str, str]]) -> None:
    from maskdit.sample import sample

    labels = [_labels(text) for text in args.labels or ()]
    sample(
        args.workdir,
        labels,
        out=args.out,
        npz=args.npz,
        count=args.count,
        steps=args.steps,
        guidance=args.guidance,
        seed=args.seed,
        first=args.first,
        batch=args.batch,
        sampler=args.sampler,
        weak=args.weak,
        ema=args.ema,
        step=args.step,
        trust=args.trust,
    )


def _evaluate(args: Any, overrides: list[tuple[str, str]]) -> None:
    from maskdit.evaluate import evaluate

    evaluate(
        args.workdir,
        metrics=tuple(args.metrics.split(",")),
        num=args.num,
        seeds=tuple(range(args.seeds)),
        steps=args.steps,
        guidance=args.guidance,
        ema=args.ema,
        step=args.step,
        trust=args.trust,
    )


def _import(args: Any, overrides: list[tuple[str, str]]) -> None:
    if args.list:
        from maskdit.interop import published

        print(published.listing())
        return
    from maskdit.importing import import_weights

    if args.name is None:
        raise configs.ConfigError("import takes the name of published weights; maskdit import --list prints them")
    import_weights(args.name, args.source, args.out, overrides=overrides, trust=args.trust)


def _export(args: Any, overrides: list[tuple[str, str]]) -> None:
    from maskdit.exporting import export_weights

    export_weights(
        args.workdir,
        args.out,
        layout=args.layout,
        part=args.part,
        ema=args.ema,
        step=args.step,
        trust=args.trust,
    )


def _describe(args: Any, overrides: list[tuple[str, str]]) -> None:
    from maskdit import describe

    on_slice = args.all or args.latents or args.only or args.sweep
    if args.all == (args.config is not None):
        raise ValueError("describe takes a config, or --all with --topology")
    if on_slice and args.topology is None:
        raise ValueError("--all, --latents, --only and --sweep tell of a slice of TPUs: name one with --topology")
    if args.sweep and (args.all or args.only):
        raise ValueError("--sweep looks for the best way to train one config: it goes without --all and --only")
    if args.all and args.trust:
        raise ValueError("--all takes the configs that ship, which need no --trust")
    if args.topology:
        describe.topology(args.topology)  # refused before anything is printed
    if args.all:
        parts = describe.describe_all(args.topology, overrides, latents=args.latents, only=args.only)
    else:
        config = _config(args, overrides)
        parts = iter(() if args.sweep else (describe.describe(config, args.trust),))
        if args.topology:
            sweep = _sweep(args.sweep) if args.sweep else None
            how = {"latents": args.latents, "only": args.only, "sweep": sweep}
            on = describe.describe_slice(config, args.topology, args.trust, **how)
            parts = itertools.chain(parts, on)
    for part in parts:
        print(part, flush=True)


def _bench(args: Any, overrides: list[tuple[str, str]]) -> None:
    from maskdit import bench
    from maskdit.performance import importing, workloads

    if args.gates == (args.config is not None):
        raise bench.BenchError("bench takes a config, one of c1 and c2, import, or --gates")
    if args.gates or args.config in (*workloads.NAMES, importing.NAME):
        own = {"--gates": ("json",), importing.NAME: ("json", "scratch")}.get(args.config or "--gates", ())
        others = [name for name in ("parts", "at", "synthetic", "scratch", "against", "json") if name not in own]
        given = [*(f"config.{path}" for path, _ in overrides), *(name for name in others if getattr(args, name))]
        if given:
            raise bench.BenchError(f"bench {args.config or '--gates'} takes no --{given[0]}: that goes with a config")
    if args.gates:
        bench.gates(args.rounds, args.json)
    elif args.config in workloads.NAMES:
        workloads.measure(args.config, args.rounds)
    elif args.config == importing.NAME:
        bench.imports(args.rounds, args.scratch, args.json)
    else:
        bench.bench(
            _config(args, overrides),
            args.config,
            parts=tuple(args.parts.split(",")) if args.parts else bench.PARTS,
            rounds=args.rounds,
            at=args.at,
            synthetic=args.synthetic,
            scratch=args.scratch,
            json_file=args.json,
            against=args.against,
            trust=args.trust,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="maskdit", description="Train, sample and measure image generators.")
    parser.add_argument("--version", action="version", version=f"maskdit {version('maskdit')}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    train = _verb(verbs, "train", _train, "train what a config describes", epilog=_OVERRIDES)
    train.add_argument(
        "--config", required=True, metavar="NAME|FILE[:variant]", help=f"one of {', '.join(configs.names())}, or a file"
    )
    train.add_argument("--workdir", required=True, help="where the run lives; a run that was interrupted goes on")
    train.add_argument(
        "--profile", metavar="FIRST:COUNT", help="trace these steps, counted from 1, into WORKDIR/profile"
    )

    sample = _verb(verbs, "sample", _sample, "draw images from a trained model")
    _model_arguments(sample)
    sample.add_argument(
        "--labels", action="append", metavar="NAME=CLASS,...", help="for all images; given several times, in turn"
    )
    sample.add_argument("--count", type=int, default=16, help="number of images (16)")
    sample.add_argument("--seed", type=int, default=0, help="of all draws (0)")
    sample.add_argument("--first", type=int, default=0, help="number of the first image of the seed (0)")
    sample.add_argument("--batch", type=int, default=64, help="images made at once (64)")
    sample.add_argument("--sampler", help="heun, euler, ddim or ancestral, in place of the model's own")
    sample.add_argument("--weak", metavar="DIR", help="guide with this weaker model in place of dropped labels")
    sample.add_argument("--out", metavar="GRID.png", help="write a picture of all images")
    sample.add_argument("--npz", metavar="FILE.npz", help="write the images as an array, with their labels")

    evaluate = _verb(verbs, "evaluate", _evaluate, "measure a trained model")
    _model_arguments(evaluate)
    evaluate.add_argument(
        "--metrics", default="labels", help="comma-separated; labels: how often samples obey their labels"
    )
    evaluate.add_argument("--num", type=int, default=256, help="images for each seed (256)")
    evaluate.add_argument("--seeds", type=int, default=1, help="number of sampling seeds (1)")
    _exchanging(verbs)
    _measuring(verbs)
    return parser


def _exchanging(verbs: Any) -> None:
    """The verbs that bring published weights in and give them out."""
    bring = _verb(verbs, "import", _import, "bring published weights in, as a checkpoint", epilog=_OVERRIDES)
    bring.add_argument(
        "name", nargs="?", metavar="NAME", help="published weights, or the config that a file belongs to"
    )
    bring.add_argument(
        "source",
        nargs="?",
        metavar="FILE",
        help="a file, folder, URL or Hugging Face repository; NAME's own by default",
    )
    bring.add_argument("out", nargs="?", metavar="OUT", help="work directory to write; the cache by default")
    bring.add_argument("--list", action="store_true", help="print what is published, and what it maps to")

    give = _verb(verbs, "export", _export, "write weights in the layout that others load")
    give.add_argument(
        "workdir", metavar="DIR", help="work directory of a training run, or the name of published weights"
    )
    give.add_argument("out", metavar="OUT", help="a .safetensors or .pt file; with --layout diffusers also a folder")
    give.add_argument(
        "--layout", default="reference", help="reference, that of the paper's own code (default), or diffusers"
    )
    give.add_argument("--part", choices=("network", "tokenizer"), help="of a generator; its network by default")
    _weights_arguments(give)


def _measuring(verbs: Any) -> None:
    """The verbs that tell what configs cost and how fast they run."""
    describe = _verb(verbs, "describe", _describe, "parameters, tokens, FLOPs and bytes of a config", epilog=_OVERRIDES)
    describe.add_argument("config", nargs="?", metavar="NAME|FILE[:variant]")
    describe.add_argument(
        "--topology", metavar="v5e:4x4", help="compile for this slice of TPUs: memory, collectives, estimated cycles"
    )
    describe.add_argument("--all", action="store_true", help="a table of every config that ships, on the slice")
    describe.add_argument("--latents", action="store_true", help="training on latents that were encoded beforehand")
    describe.add_argument("--only", choices=("training", "sampling"), help="one kind of program on the slice")
    describe.add_argument(
        "--sweep",
        nargs="?",
        const="",
        action="append",
        metavar="NAME=VALUE,...",
        help="try meshes (mesh=1x16x1,..: data x fsdp x tensor), remat policies (remat=none,..) and batches"
        " (batch=256,..) on the slice, and name the best that fits; given alone, usual meshes and policies",
    )

    bench = _verb(verbs, "bench", _bench, "measure how fast a config runs here", epilog=_OVERRIDES)
    bench.add_argument(
        "config",
        nargs="?",
        metavar="NAME|FILE[:variant]|c1|c2|import",
        help="a config; or steps against matrix products: c1 (DiT-S/2, batch 8), c2 (MaskDiT and DiT, batch 4); or"
        " seconds and memory of bringing in published weights: import",
    )
    bench.add_argument("--parts", metavar="PART,...", help="of loader, step, both, sampler, checkpoint (all)")
    bench.add_argument("--rounds", type=int, default=3, help="blocks of each measurement; medians count (3)")
    bench.add_argument("--at", type=int, default=0, metavar="STEP", help="step of the run whose plan is measured (0)")
    bench.add_argument("--synthetic", action="store_true", help="random images and labels in place of the config's")
    bench.add_argument("--scratch", metavar="DIR", help="where checkpoints or files are written (temporary folder)")
    bench.add_argument("--json", metavar="FILE", help="write the figures")
    bench.add_argument("--against", metavar="FILE", help="compare with what --json wrote earlier, of the same config")
    bench.add_argument("--gates", action="store_true", help="the table of what must hold on a CPU; takes minutes")


def _verb(verbs: Any, name: str, run: Any, text: str, epilog: str = "") -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=epilog, allow_abbrev=False
    )
    parser.set_defaults(run=run, overridable=bool(epilog))
    parser.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE", help="a package whose classes the config may name"
    )
    return parser


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="DIR", help="work directory of a training run, or published weights")
    parser.add_argument("--steps", type=int, help="steps of the sampler; the model's own by default")
    parser.add_argument("--guidance", type=float, help="weight of the guidance, 1 for none; the model's own by default")
    _weights_arguments(parser)


def _weights_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ema", default="default", help="which average of the weights: its decay, or none for the raw weights"
    )
    parser.add_argument("--step", type=int, help="which kept checkpoint; the last by default")


def _split(arguments: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Takes `--config.PATH=VALUE` and `--config.PATH VALUE` out of the arguments."""
    known, overrides, rest = [], [], iter(arguments)
    for argument in rest:
        if not argument.startswith("--config."):
            known.append(argument)
            continue
        path, equals, value = argument[len("--config.") :].partition("=")
        overrides.append((path, value if equals else next(rest, "")))
    return known, overrides


def _config(args: Any, overrides: list[tuple[str, str]]) -> Any:
    config = configs.load(args.config)
    for path, text in overrides:
        configs.override_text(config, path, text)
    return config


def _sweep(texts: list[str]) -> dict[str, list[str]]:
    return {name: values.split(",") for name, _, values in (text.partition("=") for text in texts if text)}


def _labels(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    if any(not equals for _, equals, _ in pairs):
        raise ValueError(f"--labels takes NAME=CLASS pairs with commas between, got '{text}'")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _ours(error: Exception) -> bool:
    """Whether an error carries a sentence of this library: `ValueError`, `OSError`, or a class of its own."""
    return isinstance(error, ValueError | OSError) or type(error).__module__.startswith("maskdit.")


if __name__ == "__main__":
    sys.exit(main())
