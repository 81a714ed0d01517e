"""The command line: `maskdit VERB`.

Each verb is a module of its own; `arguments.py` says what they take, this file calls them and turns errors into
sentences. JAX is imported after the process is set up.
"""

import contextlib
import itertools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging as absl_logging

from maskdit import arguments
from maskdit import config as configs
from maskdit.training.allocator import keep_pages
from maskdit.training.xla import compile_only, keep_programs, leave_out_tpu


class UsageError(ValueError):
    """Arguments that do not go together; the message says which do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; the exit code is 0, 1 after an error that was told in a sentence, 130 after an interrupt."""
    known, overrides = _split(list(sys.argv[1:] if argv is None else argv))
    parser = arguments.parser()
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
            _VERBS[args.verb](args, overrides)
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
    files = ("out", "npz", "trajectory", "image", "mask", "weak")
    settings = ("num", "sampler", "steps", "guidance", "temperature", "seed", "first", "batch")
    how = {name: getattr(args, name) for name in (*files, *settings, "ema", "step", "trust")}
    sample(args.workdir, labels, text=args.text_embeddings, **how)


def _evaluate(args: Any, overrides: list[tuple[str, str]]) -> None:
    _check_subject(args)
    how: dict[str, Any] = {
        name: getattr(args, name) for name in ("reference", "network", "resize", "batch", "out", "trust")
    }
    weights = {"ema": args.ema, "step": args.step}
    metrics: dict[str, Any] = (
        {} if args.metrics is None else {"metrics": tuple(name for name in args.metrics.split(",") if name)}
    )
    if args.write_reference:
        from maskdit.evaluate_images import write_statistics

        own = {name: how[name] for name in ("network", "resize", "batch", "trust")}
        write_statistics(args.write_reference, images=args.images, data=args.data, size=args.size, **own)
    elif args.images:
        from maskdit.evaluate_images import evaluate_images

        evaluate_images(args.images, num=args.num, **metrics, **how)
    elif args.reconstruction:
        from maskdit.evaluate_images import evaluate_tokenizer

        if metrics.get("metrics") == ("none",):
            metrics["metrics"] = ()
        own = {"size": args.size, "lpips": args.lpips}
        evaluate_tokenizer(args.reconstruction, args.data, num=args.num, **own, **metrics, **how, **weights)
    else:
        from maskdit.evaluate import evaluate
        from maskdit.evaluate_sweep import evaluate_sweep

        names = ("steps", "guidance", "temperature", "sampler")
        sampling = {**{name: getattr(args, name) for name in names}, "text": args.text_embeddings}
        sampling["balanced"] = args.balanced or None
        common = {
            "num": 256 if args.num is None else args.num,
            "seeds": tuple(range(args.seeds)),
            **metrics,
            **how,
            **weights,
            **sampling,
        }
        if args.sweep:
            evaluate_sweep(args.workdir, args.sweep, **common)
        else:
            evaluate(args.workdir, neighbours=args.neighbours, **common)


def _check_subject(args: Any) -> None:
    """Refuses an evaluation of nothing or of several things, and options that do not go with what is measured."""
    subjects = [name for name in ("workdir", "images", "reconstruction") if getattr(args, name)]
    if args.write_reference:
        subjects = [
            "write_reference",
            *(["workdir"] if args.workdir else []),
            *(["reconstruction"] if args.reconstruction else []),
        ]
    if len(subjects) != 1:
        raise UsageError("evaluate measures one thing: a CHECKPOINT, --images, or --reconstruction with --data")
    generator = (
        "sweep",
        "neighbours",
        "steps",
        "guidance",
        "temperature",
        "sampler",
        "text_embeddings",
        "seeds",
        "balanced",
    )
    weights, scored = ("step", "ema"), ("num", "metrics", "reference", "out")
    takes = {
        "workdir": (*generator, *weights, *scored),
        "images": scored,
        "reconstruction": ("data", "size", "lpips", *weights, *scored),
        "write_reference": ("data", "size"),
    }[subjects[0]]
    others, default = (
        (*generator, *weights, *scored, "data", "size", "lpips"),
        {"seeds": 1, "ema": "default", "balanced": False},
    )
    if wrong := [name for name in others if getattr(args, name) != default.get(name) and name not in takes]:
        shown = "a checkpoint" if subjects[0] == "workdir" else f"--{subjects[0].replace('_', '-')}"
        raise UsageError(f"--{wrong[0].replace('_', '-')} does not go with {shown}")
    if subjects[0] == "reconstruction" and args.data is None:
        raise UsageError("--reconstruction gives images back: say which with --data, a config or a folder")
    if args.sweep and args.neighbours:
        raise UsageError("--neighbours shows one setting's samples: it goes without --sweep")


def _encode(args: Any, overrides: list[tuple[str, str]]) -> None:
    from maskdit.encode import encode

    names = ("size", "flips", "dtype", "text", "names", "batch", "shard_records", "ema", "step", "trust")
    how = {name: getattr(args, name) for name in names}
    encode(args.checkpoint, args.data, args.out, overrides=overrides, **how)


def _import(args: Any, overrides: list[tuple[str, str]]) -> None:
    if args.list:
        from maskdit.interop import published

        print(published.listing())
        return
    from maskdit.importing import import_weights

    if args.name is None:
        raise configs.ConfigError("import takes the name of published weights; maskdit import --list prints them")
    import_weights(args.name, args.source, args.out, overrides=overrides, trust=args.trust)


def _fetch(args: Any, overrides: list[tuple[str, str]]) -> None:
    from maskdit.fetch import fetch

    fetch(args.names)


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
        raise UsageError("describe takes a config, or --all with --topology")
    if on_slice and args.topology is None:
        raise UsageError("--all, --latents, --only and --sweep tell of a slice of TPUs: name one with --topology")
    if args.sweep and (args.all or args.only):
        raise UsageError("--sweep looks for the best way to train one config: it goes without --all and --only")
    if args.all and args.trust:
        raise UsageError("--all takes the configs that ship, which need no --trust")
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
    from maskdit.performance import encoding, importing, scores, tokens, workloads

    if args.gates == (args.config is not None):
        raise bench.BenchError("bench takes a config, one of c1 and c2, import, encode, tokens, scores, or --gates")
    if args.gates or args.config in (*workloads.NAMES, importing.NAME, encoding.NAME, tokens.NAME, scores.NAME):
        files = ("json", "scratch")
        takes = {"--gates": ("json",), importing.NAME: files, encoding.NAME: files, tokens.NAME: ("json",)}
        takes[scores.NAME] = ("json", "parts")
        own = takes.get(args.config or "--gates", ())
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
    elif args.config == encoding.NAME:
        bench.encodes(args.rounds, args.scratch, args.json)
    elif args.config == tokens.NAME:
        bench.tokens(args.rounds, args.json)
    elif args.config == scores.NAME:
        parts = tuple(args.parts.split(",")) if args.parts else scores.PARTS
        bench.scores(args.rounds, args.json, parts=parts)
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


def _study(args: Any, overrides: list[tuple[str, str]]) -> None:
    from maskdit import study

    plan = study.find(args.name)
    if args.markdown:
        print(study.table(plan, study.read(args.name, args.json), markdown=True))
    else:
        study.study(plan, args.workdir, json_file=args.json, only=args.only)


_VERBS = {
    "train": _train,
    "sample": _sample,
    "evaluate": _evaluate,
    "encode": _encode,
    "import": _import,
    "fetch": _fetch,
    "export": _export,
    "describe": _describe,
    "bench": _bench,
    "study": _study,
}


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
        raise UsageError(f"--labels takes NAME=CLASS pairs with commas between, got '{text}'")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _ours(error: Exception) -> bool:
    """Whether an error carries a sentence of this library: `ValueError`, `OSError`, or a class of its own."""
    return isinstance(error, ValueError | OSError) or type(error).__module__.startswith("maskdit.")


if __name__ == "__main__":
    sys.exit(main())
