"""What the command line takes: the verbs and their arguments."""

import argparse
from importlib.metadata import version
from typing import Any

from maskdit import config as configs

_OVERRIDES = "Entries of the config are set with --config.PATH=VALUE, such as --config.task.network.width=96."


def parser() -> argparse.ArgumentParser:
    """The parser of the command line. Its results have `verb`, and `overridable`: may entries of a config be set."""
    top = argparse.ArgumentParser(prog="maskdit", description="Train, sample and measure image generators.")
    top.add_argument("--version", action="version", version=f"maskdit {version('maskdit')}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    train = _verb(verbs, "train", "train what a config describes", epilog=_OVERRIDES)
    train.add_argument(
        "--config", required=True, metavar="NAME|FILE[:variant]", help=f"one of {', '.join(configs.names())}, or a file"
    )
    train.add_argument("--workdir", required=True, help="where the run lives; a run that was interrupted goes on")
    train.add_argument(
        "--profile", metavar="FIRST:COUNT", help="trace these steps, counted from 1, into WORKDIR/profile"
    )

    sample = _verb(verbs, "sample", "draw images from a trained model")
    _model_arguments(sample)
    sample.add_argument(
        "--labels",
        action="append",
        metavar="NAME=CLASS,...",
        help="for all images; given several times, in turn by the images' numbers",
    )
    sample.add_argument(
        "--num", type=int, help="number of images (16; of an edit 4; with texts as many as there are texts)"
    )
    sample.add_argument("--seed", type=int, default=0, help="of all draws (0)")
    sample.add_argument("--first", type=int, default=0, help="number of the first image of the seed (0)")
    sample.add_argument("--batch", type=int, default=64, help="images made at once (64)")
    sample.add_argument(
        "--sampler",
        help="in place of the model's own: heun, euler, ddim or ancestral; of masked tokens confidence, halton or "
        "unmasking; of autoregressive models raster",
    )
    sample.add_argument(
        "--text-embeddings", metavar="FILE", help=".npz or .npy of text embeddings, a row for each prompt, in turn"
    )
    sample.add_argument("--image", metavar="FILE", help="an image to edit, of the model's size; transparency is white")
    sample.add_argument(
        "--mask", metavar="FILE", help="of --image and of its size: made anew where it is lighter than mid-grey"
    )
    sample.add_argument(
        "--trajectory", metavar="FILE.gif|FILE.png", help="how the images came to be: an animation, or a row for each"
    )
    sample.add_argument("--weak", metavar="DIR", help="guide with this weaker model in place of dropped labels")
    sample.add_argument("--out", metavar="GRID.png", help="write a picture of the images, of the first 100 at most")
    sample.add_argument(
        "--npz",
        metavar="FILE.npz",
        help="write the images as an array, with their labels; many are drawn in parts: what was interrupted goes on",
    )

    _evaluating(verbs)
    _encoding(verbs)
    _exchanging(verbs)
    _measuring(verbs)
    return top


def _evaluating(verbs: Any) -> None:
    """The verb that measures generators, images and tokenizers."""
    evaluate = _verb(verbs, "evaluate", "measure a generator, images of whatever made them, or a tokenizer")
    evaluate.add_argument(
        "workdir", nargs="?", metavar="CHECKPOINT", help="of a generator: work directory, .npz file or published name"
    )
    evaluate.add_argument("--images", metavar="FOLDER|FILE.npz", help="measure these images in place of samples")
    evaluate.add_argument("--reconstruction", metavar="TOKENIZER", help="measure how a tokenizer gives --data back")
    evaluate.add_argument("--data", metavar="NAME|FILE[:variant]|DIR", help="a config with data, or a folder of images")
    evaluate.add_argument("--size", type=int, help="side of the images of a folder in --data")
    evaluate.add_argument(
        "--metrics",
        help="comma-separated: fd, fid, sfid, is, kd, kid, pr, prdc, mind; of a generator also labels (how often "
        "samples obey their labels) and bits (bits per token of held-out images); by default "
        "fd, of a sweep fd,is; none for a tokenizer's PSNR and SSIM alone",
    )
    evaluate.add_argument("--num", type=int, help="images for each seed (256; of images and of data all)")
    evaluate.add_argument("--seeds", type=int, default=1, help="number of seeds (1)")
    evaluate.add_argument(
        "--reference",
        metavar="FILE.npz|DIR|NAME",
        help="what scores compare with; by default the model's training images",
    )
    evaluate.add_argument(
        "--network",
        metavar="NAME|DIR",
        help="of features: emoji-classifier (default), inception-fid, dinov2-vitl14, ..",
    )
    evaluate.add_argument("--resize", metavar="RULE", help="how images become the network's; its usual rule by default")
    evaluate.add_argument("--lpips", metavar="NAME|DIR", help="of --reconstruction: lpips or lpips-alexnet")
    evaluate.add_argument(
        "--sweep",
        action="append",
        metavar="NAME=START:STOP:STEP",
        help="of guidance, steps, temperature, ema or step; or NAME=VALUE,..",
    )
    evaluate.add_argument("--neighbours", metavar="FILE.png", help="samples beside the nearest training images")
    evaluate.add_argument(
        "--write-reference", metavar="FILE.npz", help="write statistics of --images or --data to compare others with"
    )
    evaluate.add_argument(
        "--out", metavar="DIR", help="where metrics.json goes; by default DIR/evaluation, else NAME.evaluation"
    )
    evaluate.add_argument("--batch", type=int, default=64, help="images at once (64)")
    evaluate.add_argument("--sampler", help="in place of the model's own, as of `maskdit sample`")
    evaluate.add_argument("--balanced", action="store_true", help="ask for classes in turn, not at random")
    evaluate.add_argument(
        "--text-embeddings", metavar="FILE", help=".npz or .npy of text embeddings, a row for each prompt, in turn"
    )
    _sampler_arguments(evaluate)
    _weights_arguments(evaluate)


def _encoding(verbs: Any) -> None:
    """The verb that encodes data sets."""
    encode = _verb(verbs, "encode", "encode a data set with a tokenizer, once", epilog=_OVERRIDES)
    encode.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="of a tokenizer or a generator: work directory, .npz file or name"
    )
    encode.add_argument(
        "--data", required=True, metavar="NAME|FILE[:variant]|DIR", help="a config with the data, or a folder of them"
    )
    encode.add_argument("--out", required=True, metavar="DIR", help="folder to write; what was interrupted goes on")
    encode.add_argument("--size", type=int, help="side of the images; that of the config or the tokenizer by default")
    encode.add_argument(
        "--flips", action=argparse.BooleanOptionalAction, help="mirrored copies too; as the config mirrors by default"
    )
    encode.add_argument(
        "--dtype", default="float16", help="float16 (default; rounds by 1/2048 of each number) or float32, of latents"
    )
    encode.add_argument(
        "--text",
        metavar="FILE",
        help=".npy or .npz of text embeddings [N, T, D] to store beside; a .npz may hold them as `text`, with `pooled` "
        "[N, P], those of the empty text as `null_text` [T, D] and `null_pooled` [P], and numbers [N] of other names",
    )
    encode.add_argument("--names", action="store_true", help="store the records' names")
    encode.add_argument("--batch", type=int, default=64, help="images encoded at once (64)")
    encode.add_argument("--shard-records", type=int, default=8192, metavar="N", help="records of a file (8192)")
    _weights_arguments(encode)


def _exchanging(verbs: Any) -> None:
    """The verbs that bring published weights in and give them out."""
    bring = _verb(verbs, "import", "bring published weights in, as a checkpoint", epilog=_OVERRIDES)
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

    fetch = _verb(verbs, "fetch", "bring published weights into the cache, for use without the network")
    fetch.add_argument("names", nargs="+", metavar="NAME", help="published weights; maskdit import --list prints them")

    give = _verb(verbs, "export", "write weights in the layout that others load")
    give.add_argument(
        "workdir", metavar="DIR", help="work directory of a training run, or the name of published weights"
    )
    give.add_argument("out", metavar="OUT", help="a .safetensors or .pt file; with --layout diffusers also a folder")
    give.add_argument(
        "--layout", default="reference", help="reference, that of the paper's own code (default), or diffusers"
    )
    give.add_argument(
        "--part", choices=("network", "tokenizer", "encoder"), help="of a generator; its network by default"
    )
    _weights_arguments(give)


def _measuring(verbs: Any) -> None:
    """The verbs that tell what configs cost and how fast they run."""
    describe = _verb(verbs, "describe", "parameters, tokens, FLOPs and bytes of a config", epilog=_OVERRIDES)
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

    bench = _verb(verbs, "bench", "measure how fast a config runs here", epilog=_OVERRIDES)
    bench.add_argument(
        "config",
        nargs="?",
        metavar="NAME|FILE[:variant]|c1|c2|import|encode|tokens|scores",
        help="a config; or steps against matrix products: c1 (DiT-S/2, batch 8), c2 (MaskDiT and DiT, batch 4); or"
        " seconds and memory of bringing in published weights: import; or encoding against a bare forward pass: encode;"
        " or sampling a few tokens against diffusion: tokens; or Fréchet distances and making features: scores",
    )
    bench.add_argument(
        "--parts",
        metavar="PART,...",
        help="of loader, step, both, sampler, checkpoint; of scores: frechet, devices, rate, order (all)",
    )
    bench.add_argument("--rounds", type=int, default=3, help="blocks of each measurement; medians count (3)")
    bench.add_argument("--at", type=int, default=0, metavar="STEP", help="step of the run whose plan is measured (0)")
    bench.add_argument("--synthetic", action="store_true", help="random images and labels in place of the config's")
    bench.add_argument("--scratch", metavar="DIR", help="where checkpoints or files are written (temporary folder)")
    bench.add_argument("--json", metavar="FILE", help="write the figures")
    bench.add_argument("--against", metavar="FILE", help="compare with what --json wrote earlier, of the same config")
    bench.add_argument("--gates", action="store_true", help="the table of what must hold on a CPU; takes minutes")

    study = _verb(verbs, "study", "train and compare the runs of a study, and print one table")
    study.add_argument("name", metavar="NAME", help="tokenizers, fvq, robusttok or crt; one that was stopped goes on")
    study.add_argument("--workdir", metavar="DIR", help="where the runs live (runs/study-NAME)")
    study.add_argument("--json", metavar="FILE", help="the results (docs/studies/NAME.json)")
    study.add_argument("--only", metavar="RUN", help="train this run alone")
    study.add_argument("--markdown", action="store_true", help="print the table of earlier results, no training")


def _verb(verbs: Any, name: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=epilog, allow_abbrev=False
    )
    parser.set_defaults(overridable=bool(epilog))
    parser.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE", help="a package whose classes the config may name"
    )
    return parser


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="DIR", help="work directory of a training run, or published weights")
    _sampler_arguments(parser)
    _weights_arguments(parser)


def _sampler_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, help="steps of the sampler; the model's own by default")
    parser.add_argument("--guidance", type=float, help="weight of the guidance, 1 for none; the model's own by default")
    parser.add_argument(
        "--temperature", type=float, help="of a token sampler, what its noise starts from; the sampler's own by default"
    )


def _weights_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ema", default="default", help="which average of the weights: its decay, or none for the raw weights"
    )
    parser.add_argument(
        "--step", type=_step, metavar="STEP|best", help="which kept checkpoint; best, by its score; the last by default"
    )


def _step(text: str) -> int | str:
    if text != "best" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"a checkpoint is named by its step or by best, got '{text}'")
    return text if text == "best" else int(text)
