"""`maskdit encode`: a whole data set into latents or token ids, once, for generators to train from.

Every record of the source is encoded once, in the source's order, without its posterior drawn: `data.latents=FOLDER`
then trains what images would have trained. Shards are consecutive ranges of records, so that a run that is killed and
started again writes what is missing and nothing twice; several processes take shards in turn.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit.data.array_record import SUFFIX
from maskdit.data.embeddings import DECODER_TEXT, NULL, POOLED, TEXT, Texts
from maskdit.data.encoding import EncodingError, Job, write_records
from maskdit.data.latent_shards import (
    FolderInUse,
    Shards,
    ShardWriter,
    held,
    remove_unfinished,
    write_empty_text,
    write_manifest,
)
from maskdit.data.latents import FORMAT, LATENTS, Stream, read_manifest
from maskdit.data.loader import Loader
from maskdit.data.named import is_folder, named
from maskdit.interop.atomic import ending_on_sigterm
from maskdit.model import load
from maskdit.tokenizers.model import TokenizerModel, spec_of
from maskdit.tokenizers.streams import Encoder, encoder_checksum, stored_shape
from maskdit.training import distributed, placement
from maskdit.training.mesh import MeshShape
from maskdit.training.progress import Counter

_LOG = logging.getLogger(__name__)
_REST = 16 << 20
"""Bytes that a folder may take besides its arrays."""
_SHARD = 128 << 10
"""Bytes that a shard may take besides its records."""
_SMALL = 256
"""Bytes that a record may take besides its arrays."""
_MAY_DIFFER = ("checkpoint", "done")
DTYPES = ("float16", "float32")


@distributed.together()
def encode(
    checkpoint: str,
    data: str,
    out: str,
    *,
    overrides: Sequence[tuple[str, str]] = (),
    size: int | None = None,
    flips: bool | None = None,
    dtype: str = "float16",
    text: str | None = None,
    names: bool = False,
    batch: int = 64,
    shard_records: int = 8192,
    ema: str = "default",
    step: int | str | None = None,
    trust: Iterable[str] = (),
) -> str:
    """Encodes a data set, going on where an earlier call was cut off.

    Args:
      checkpoint: a tokenizer or a generator, as `maskdit.load` takes it.
      data: a config (`NAME[:variant]` or a file), whose `data` is encoded, or a folder of images or ArrayRecord shards.
      out: the folder to write, local or mounted; one for all processes.
      overrides: entries of the config below `data` to set, as pairs of a path and a text.
      size: side of the images; the config's by default, for a folder that of the tokenizer where it has one.
      flips: whether mirror images are encoded too; as the loader mirrors by default.
      dtype: of moments and values. float16 rounds each number by at most 1/2048 of itself, far less than the least
        noise that generators train with, and halves the folder; float32 keeps them.
      text: a file of text embeddings to store beside, in place of the config's; see
        `maskdit.data.embeddings.Embeddings`.
      names: whether to store each record's name.
      batch: images encoded at once, rounded up to what divides over the devices.
      shard_records: records of a shard.
      ema, step: which weights of the checkpoint.
      trust: packages besides `maskdit` whose classes the configs may name.

    Returns:
      The folder.

    Raises:
      EncodingError, DataError, ConfigError, ModelError, OSError: with a sentence that says what to do. Shards that are
        complete stay, and no others.
    """
    asked: dict[str, Any] = {"size": size, "flips": flips, "dtype": dtype, "text": text, "names": names, "batch": batch}
    asked |= {"shard_records": shard_records, "ema": ema, "step": step, "overrides": [list(pair) for pair in overrides]}
    distributed.agree(verb="encode", checkpoint=checkpoint, data=data, out=out, trust=list(trust), **asked)
    _check(dtype, batch, shard_records, out)
    model = _tokenizer(load(checkpoint, ema=ema, step=step, trust=trust), checkpoint)
    config = _data(data, overrides, size, text, model)
    loader: Loader = configs.build(config, trust)
    if not isinstance(loader, Loader):
        raise EncodingError(f"the data of {data} are no maskdit.data.loader.Loader, but a {type(loader).__name__}")
    flips = loader.flip if flips is None else flips
    loader = dataclasses.replace(loader, flip=False)
    job = _job(model, loader, pathlib.Path(out), flips, dtype, names, batch, shard_records)
    manifest = _manifest(job, model, checkpoint, config)
    with contextlib.ExitStack() as stack:
        folder = job.shards.folder
        _prepare(folder)
        problem = distributed.first(lambda: _hold(stack, folder))
        if problem:
            raise EncodingError(problem)
        with _told(job.shards):
            missing = distributed.first(lambda: _begin(job, manifest))
            mine = missing[jax.process_index() :: jax.process_count()]
            stack.enter_context(ending_on_sigterm())
            _write(job, model, mine)
            distributed.barrier()
            distributed.first(lambda: _finish(job, manifest))
    if distributed.is_first():
        done = len(job.shards) - len(missing)
        before = f", {done} of them complete before" if done else ""
        _LOG.info("wrote %s: %d records in %d shard(s)%s", out, job.shards.records, len(job.shards), before)
    return out


def _check(dtype: str, batch: int, shard_records: int, out: str) -> None:
    if dtype not in DTYPES:
        raise EncodingError(f"dtype is {' or '.join(DTYPES)}, got '{dtype}'")
    for name, value in (("batch", batch), ("shard-records", shard_records)):
        if value < 1:
            raise EncodingError(f"{name} must be 1 or more, got {value}")
    if "://" in out:
        raise EncodingError(f"ArrayRecord files are local ones, got {out}: name a local folder, or mount the bucket")


def _tokenizer(model: Any, checkpoint: str) -> TokenizerModel:
    """The tokenizer of what was loaded."""
    found = model if isinstance(model, TokenizerModel) else getattr(model, "coder", None)
    if found is None:
        raise EncodingError(f"{checkpoint} is a {type(model).__name__}, without a tokenizer: name one of a tokenizer")
    return found


def _data(
    data: str, overrides: Sequence[tuple[str, str]], size: int | None, text: str | None, model: TokenizerModel
) -> ConfigDict:
    """The spec of the loader."""
    if is_folder(data):
        size = size or model.latent.size
    config = named(data, size)
    if text is not None and "text" in config.data:
        with config.data.ignore_type():
            config.data.text = None  # may be a spec, which no text replaces
    given = [("data.size", str(size))] * (size is not None) + [("data.text", text)] * (text is not None)
    for path, value in (*overrides, *given):
        if not path.startswith("data."):
            raise EncodingError(f"--config.{path} is no part of the data: encode takes --config.data.PATH=VALUE")
        configs.override_text(config, path, str(value))
    if "latents" in config.data:
        config.data.latents = None  # set in a config that trains from the folder
    return config.data


def _job(
    model: TokenizerModel,
    loader: Loader,
    folder: pathlib.Path,
    flips: bool,
    dtype: str,
    names: bool,
    batch: int,
    shard_records: int,
) -> Job:
    model.check_images((1, loader.size, loader.size, 3))
    records = len(loader.records)
    if not records:
        raise EncodingError(f"{loader.source!r} has no records: choose another split or path")
    if taken := set(loader.vocabulary) & {*LATENTS, TEXT, POOLED, DECODER_TEXT, *NULL, "name", "unreadable"}:
        raise EncodingError(f"the source calls a label '{min(taken)}', a name with another use: rename it")
    name, shape = stored_shape(model.tokenizer, model.own, loader.size)
    small = (model.latent.vocabulary or 0) <= 2**16
    kept = ("uint16" if small else "int32") if name == "ids" else dtype
    streams = {name: Stream(shape, kept, 1 + flips)}
    if loader.texts is not None:
        streams |= {name: Stream(*how) for name, how in loader.texts.arrays.items()}
    ways = placement.ways(_devices())
    batch = -(-min(batch, records) // ways) * ways
    return Job(loader, streams, Shards(folder, records, shard_records), flips, names, batch)


def _manifest(job: Job, model: TokenizerModel, checkpoint: str, data: ConfigDict) -> dict[str, Any]:
    """What the folder says of itself; JSON types."""
    loader = job.loader
    about = f" step {model.step}" if model.step is not None else ""
    found = {
        "format": FORMAT,
        "checkpoint": f"{checkpoint}{about}",
        "tokenizer": json.loads(configs.to_json(spec_of(model.tokenizer))),
        "checksum": encoder_checksum(model.tokenizer, model.own, loader.size),
        "latent": dataclasses.asdict(model.latent),
        "size": loader.size,
        "fit": loader.fit,
        "flips": job.flips,
        "source": json.loads(configs.to_json(data.source)),
        "labels": loader.vocabulary,
        "text": None if (texts := loader.texts) is None else texts.description | _null(texts),
        "names": job.names,
        "records": job.shards.records,
        "shard_records": job.shards.size,
        "shards": len(job.shards),
        "streams": {name: dataclasses.asdict(stream) for name, stream in job.streams.items()},
        "done": False,
    }
    return json.loads(json.dumps(found))


def _null(texts: Texts) -> dict[str, Any]:
    """What the manifest says of the empty text; nothing where there is none."""
    return {"null": sorted(texts.null)} if texts.null else {}


def _prepare(folder: pathlib.Path) -> None:
    """Makes the folder, and sees that every process can write in it."""
    from etils import epath

    problem = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            problem = "it is read-only"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise EncodingError(f"cannot write to {folder}: {problem}; name another folder with --out")
    if distributed.peers() is not None:
        distributed.share(epath.Path(folder))


def _hold(stack: contextlib.ExitStack, folder: pathlib.Path) -> str:
    """Holds the folder until the stack is left; else says why not."""
    try:
        stack.enter_context(held(folder))
    except FolderInUse:
        return f"another process encodes into {folder} now: wait for its end, or name another folder with --out"
    return ""


def _begin(job: Job, manifest: dict[str, Any]) -> list[int]:
    """Sees what is there, says in the manifest what is to come, and gives the shards that are missing."""
    folder = job.shards.folder
    before = read_manifest(str(folder))
    if before is None and any(path.name.endswith(SUFFIX) and path.name[0] != "." for path in folder.iterdir()):
        raise EncodingError(f"{folder} holds other {SUFFIX} files: name another folder with --out")
    if before is not None and (difference := _difference(before, manifest)):
        raise EncodingError(
            f"{folder} was begun with other settings: {difference}. Use those, or name another folder with --out"
        )
    remove_unfinished(folder)
    missing = job.shards.missing()
    damaged = [job.shards.path(number) for number in missing if job.shards.path(number).exists()]
    for path in damaged:
        _LOG.warning("%s does not hold what it should: it is written again", path)
        path.unlink()
    _check_space(job, missing)
    if before is None or (before["done"] and missing):
        write_manifest(folder, manifest)
    return missing


def _check_space(job: Job, missing: list[int]) -> None:
    records = sum(len(job.shards.range(number)) for number in missing)
    needed = records * (_SMALL + sum(stream.nbytes for stream in job.streams.values())) + len(missing) * _SHARD + _REST
    free = shutil.disk_usage(job.shards.folder).free
    if missing and free < needed:
        raise EncodingError(
            f"no space in {job.shards.folder}: {records} records take {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB "
            "are free; make some, or name another folder with --out"
        )


def _write(job: Job, model: TokenizerModel, numbers: list[int]) -> None:
    """Encodes and writes the shards of this process."""
    if not numbers:
        return
    dtype = job.streams[job.latents].dtype
    encoder = Encoder(model.tokenizer, model.own, _devices(), dtype, job.flips)
    total = sum(len(job.shards.range(number)) for number in numbers)
    with Counter(total, "images", show=distributed.is_first()) as counter, ShardWriter(job.shards) as writer:
        write_records(job, encoder, numbers, writer, counter.add)


def _finish(job: Job, manifest: dict[str, Any]) -> None:
    missing = job.shards.missing()
    if missing:
        raise EncodingError(f"{job.shards.path(missing[0])} is gone: run the same command again, it goes on from there")
    if (texts := job.loader.texts) is not None and texts.null:
        write_empty_text(job.shards.folder, texts.null)
    write_manifest(job.shards.folder, manifest | {"done": True})


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first entry in which two manifests differ, in words."""
    for key in now:
        if key in _MAY_DIFFER or before.get(key) == now[key]:
            continue
        old, new = before.get(key), now[key]
        path = key
        while isinstance(old, dict) and isinstance(new, dict):
            part = next(part for part in {**old, **new} if old.get(part) != new.get(part))
            path, old, new = f"{path}.{part}", old.get(part), new.get(part)
        return f"{path} was {_short(old)}, and is {_short(new)} now"
    return ""


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:76]} ..."


def _devices() -> Any:
    """This process's devices: it works on shards of its own, and waits for no other."""
    return MeshShape().make(jax.local_devices())


@contextlib.contextmanager
def _told(shards: Shards) -> Iterator[None]:
    """Tells what the disk refuses in a sentence."""
    try:
        yield
    except OSError as error:
        complete = len(shards) - len(shards.missing())
        raise EncodingError(
            f"cannot write to {shards.folder}: {error.strerror or error}; {complete} of {len(shards)} shards are "
            "complete. Make room, or see to the folder, and run the same command again: it goes on from there"
        ) from error
