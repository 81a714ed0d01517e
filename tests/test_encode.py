import copy
import json
import pathlib
import random
import signal
import time

import jax
import numpy as np
import pytest

from maskdit import config as configs
from maskdit.cli import main
from maskdit.data import latent_shards
from maskdit.data.emoji import Emoji
from maskdit.data.encoding import EncodingError
from maskdit.data.folder import Folder
from maskdit.data.hashed_words import HashedWords
from maskdit.data.latent_shards import held
from maskdit.data.latents import Encoded
from maskdit.data.loader import Loader
from maskdit.data.source import DataError, UnreadableRecord
from maskdit.encode import encode
from maskdit.model import load
from maskdit.tokenizers.linear import LinearPatches
from maskdit.tokenizers.maskgit_vqgan import MaskGITVQGAN
from maskdit.tokenizers.pixels import to_float
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.training.mesh import unboxed
from tests.encoded import moments, variables, write_pictures, write_tokenizer
from tests.several import start

COUNT, BROKEN = 23, 5


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("vae") / "vae.npz")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), COUNT, broken=(BROKEN,))


@pytest.fixture
def run(vae, pictures, tmp_path):
    """Encodes the pictures into `out`, 8 at once, 4 to a shard."""

    def call(checkpoint=vae, data=pictures, out=tmp_path / "out", **kw):
        return encode(checkpoint, data, str(out), **{"size": 16, "batch": 8, "shard_records": 4} | kw)

    return call


def names(folder):
    return sorted(path.name for path in pathlib.Path(folder).iterdir() if path.name != ".lock")


def assert_whole(folder, source, dtype="float16"):
    """Every record once, in the source's order, both copies."""
    encoded = Encoded(str(folder))
    assert len(encoded) == len(source)
    for index in range(len(source)):
        if index == BROKEN:
            with pytest.raises(UnreadableRecord, match="not a readable image"):
                encoded[index]
            continue
        image, record = source[index], encoded[index]
        both = moments(np.stack([image["image"], image["image"][:, ::-1]]))
        np.testing.assert_allclose(record["moments"], both, rtol=2e-3 if dtype == "float16" else 1e-5, atol=1e-4)
        assert record["label"] == image["label"] and record["moments"].dtype == dtype


def test_texts_of_a_config_are_stored_and_a_file_replaces_them(run, tmp_path):
    (tmp_path / "words.py").write_text(
        "from maskdit.config import ConfigDict, spec\n"
        "from maskdit.data.emoji import Emoji\n"
        "from maskdit.data.hashed_words import HashedWords\n"
        "from maskdit.data.loader import Loader\n"
        "def get_config():\n"
        "    text = spec(HashedWords, tokens=4, width=6)\n"
        "    return ConfigDict({'data': spec(Loader, source=spec(Emoji, split='val'), size=16, text=text)})\n"
    )
    config, settings = str(tmp_path / "words.py"), {"flips": False, "shard_records": 1000, "batch": 64}
    hashed = Encoded(run(data=config, out=tmp_path / "hashed", **settings))
    np.testing.assert_array_equal(
        hashed[7]["text"][0], HashedWords(4, 6).embed(Emoji("val", ("style",)).caption(7))["text"]
    )
    assert hashed.manifest["text"] == {"hashed_words": {"tokens": 4, "width": 6}} and not hashed.null
    np.save(tmp_path / "text.npy", np.ones((520, 2, 3), np.float32))
    given = Encoded(run(data=config, out=tmp_path / "given", text=str(tmp_path / "text.npy"), **settings))
    assert given.streams.keys() == {"moments", "text"} and given[519]["text"].shape == (1, 2, 3)


def test_each_record_once_with_its_mirror_image(run, pictures, tmp_path):
    out = run(names=True)
    assert_whole(out, Folder(pictures))
    manifest = Encoded(out).manifest
    assert manifest["records"] == COUNT and manifest["shards"] == 6 and manifest["flips"] and manifest["done"]
    assert manifest["latent"]["scale"] == 0.18215 and manifest["streams"]["moments"]["shape"] == [8, 8, 4]
    assert manifest["labels"] == {"label": ["a", "b"]} and len(manifest["checksum"]) == 64
    assert names(out) == [*(f"latents-{i:05d}-of-00006.array_record" for i in range(6)), "manifest.json"]
    before = {path.name: path.stat().st_mtime_ns for path in pathlib.Path(out).glob("latents*")}
    run(names=True)  # complete: nothing is written again
    assert before == {path.name: path.stat().st_mtime_ns for path in pathlib.Path(out).glob("latents*")}


def test_what_is_damaged_or_left_over_is_written_again(run, pictures, caplog):
    out = pathlib.Path(run(dtype="float32"))
    shard = out / "latents-00002-of-00006.array_record"
    shard.write_bytes(shard.read_bytes()[:-70_000])
    (out / ".unfinished-latents-00004-of-00006.array_record").write_bytes(b"half")
    (out / "latents-00005-of-00006.array_record").unlink()
    run(dtype="float32")
    assert "latents-00002-of-00006.array_record does not hold what it should" in caplog.text
    assert_whole(out, Folder(pictures), "float32")
    assert not list(out.glob(".unfinished*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flips": False}, "flips was true, and is false now"),
        ({"dtype": "float32"}, 'streams.moments.dtype was "float16", and is "float32" now'),
        ({"shard_records": 5}, "shard_records was 4, and is 5 now"),
        ({"size": 8}, "size was 16, and is 8 now"),
    ],
)
def test_other_settings_are_refused(run, change, message):
    run()
    with pytest.raises(EncodingError, match=f"begun with other settings: {message}"):
        run(**change)


def test_other_weights_are_refused_but_for_the_decoders(run, tmp_path):
    run()
    for part in ("encoder", "decoder"):
        changed = copy.deepcopy(variables())
        changed["params"][part]["conv_in"]["kernel"] += 0.01
        other = write_tokenizer(tmp_path / f"{part}.npz", changed)
        if part == "decoder":
            run(other)
        else:
            with pytest.raises(EncodingError, match=r"checksum was .* and is .* now"):
                run(other)


def scaled(factor):
    changed = copy.deepcopy(variables())
    changed["params"]["quant"]["kernel"] *= factor
    return changed


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (np.nan, r"moments of .*0000.png are not finite: the tokenizer's weights"),
        (1e7, r"moments of .*0000.png are beyond 65504, the range of float16: encode with float32"),
    ],
)
def test_numbers_that_cannot_be_stored(run, tmp_path, factor, message):
    bad = write_tokenizer(tmp_path / "bad.npz", scaled(factor))
    with pytest.raises(EncodingError, match=message):
        run(bad)
    assert names(tmp_path / "out") == ["manifest.json"]
    assert not json.loads((tmp_path / "out" / "manifest.json").read_text())["done"]


def test_sizes_and_checkpoints_that_do_not_fit(run, tmp_path):
    with pytest.raises(ValueError, match=r"multiples of 2, got \[15, 15\]"):
        run(size=15)
    with pytest.raises(DataError, match="images may be of any size: give --size"):
        run(size=None)
    classifier = pathlib.Path(load.__code__.co_filename).parent / "encoders" / "emoji_classifier.npz"
    with pytest.raises(EncodingError, match="ClassifierModel, without a tokenizer"):
        run(str(classifier))
    with pytest.raises(EncodingError, match=r"--config.task.horizon is no part of the data"):
        run(data="maskdit_emoji", overrides=[("task.horizon", "3")])
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_written(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(EncodingError, match=r"cannot write to .*file/out: Not a directory; name another folder"):
        run(out=tmp_path / "file" / "out")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "data.array_record").write_text("")
    with pytest.raises(EncodingError, match=r"holds other .array_record files"):
        run(out=tmp_path / "taken")
    (tmp_path / "out").mkdir()
    with held(tmp_path / "out"), pytest.raises(EncodingError, match="another process encodes into"):
        run()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(EncodingError, match=r"no space in .*: 23 records take 0\.\d+ GB and 0.00 GB are free"):
        run()


@pytest.mark.parametrize("fails", ["write", "close", "replace"])
def test_a_disk_that_fills_up_leaves_whole_shards_only(run, pictures, tmp_path, monkeypatch, fails):
    real, written = latent_shards.ArrayRecordWriter, []

    class Full:
        def __init__(self, *args):
            self._writer = real(*args)

        def write(self, record):
            written.append(record)
            if fails == "write" and len(written) == 10:
                raise RuntimeError("write() failed: No space left on device\nand more")
            self._writer.write(record)

        def close(self):
            self._writer.close()
            if fails == "close" and len(written) >= 10:
                raise RuntimeError("No space left on device")

    def replace(path, target):
        if "latents-00002" in path.name:
            raise OSError(28, "No space left on device")
        return move(path, target)

    move = pathlib.Path.replace
    with monkeypatch.context() as patched:
        patched.setattr(latent_shards, "ArrayRecordWriter", Full)
        if fails == "replace":
            patched.setattr(pathlib.Path, "replace", replace)
        with pytest.raises(EncodingError, match=r"No space left on device.*; 2 of 6 shards are complete. Make room"):
            run()
    whole = [f"latents-{i:05d}-of-00006.array_record" for i in (0, 1)]
    assert names(tmp_path / "out") == [*whole, "manifest.json"]
    run()
    assert_whole(tmp_path / "out", Folder(pictures))


def test_values_of_a_tokenizer_without_a_posterior(run, tmp_path, pictures):
    spec, linear = configs.spec(LinearPatches, patch=8, channels=6), LinearPatches(patch=8, channels=6)
    given = jax.device_get(linear.init(jax.random.key(0), np.zeros((1, 16, 16, 3))))
    record = Encoded(run(write_tokenizer(tmp_path / "linear.npz", given, spec), dtype="float32"))[3]
    image = Folder(pictures)[3]["image"]
    for copy_, shown in zip(record["values"], (image, image[:, ::-1]), strict=True):
        expected = linear.apply(given, to_float(shown)[None], method="encode").values[0]
        np.testing.assert_allclose(copy_, expected, atol=1e-5)


def test_ids_of_a_discrete_tokenizer(run, tmp_path, pictures):
    parts = {"channels": (8,), "blocks": 1, "latent_channels": 4, "groups": 4}
    spec = configs.spec(MaskGITVQGAN, quantize=configs.spec(VQ, codes=300, channels=4), **parts)
    given = jax.device_get(jax.jit(configs.build(spec).init)(jax.random.key(0), np.zeros((1, 16, 16, 3))))
    checkpoint = write_tokenizer(tmp_path / "codes.npz", unboxed(given), spec)
    out = run(checkpoint, flips=False)
    source = Folder(pictures)
    with Loader(source, 16, flip=False, latents=out).ordered(5) as batches:
        ids = next(batches)["ids"]
    expected = load(checkpoint).encode(np.stack([source[index]["image"] for index in range(5)]))
    assert Encoded(out).manifest["streams"]["ids"] == {"shape": [256], "dtype": "uint16", "copies": 1}
    assert ids.dtype == np.int32 and len(np.unique(ids)) > 3
    assert (ids == expected).mean() > 0.999  # but for ties


def test_the_command_takes_the_data_of_a_config(vae, tmp_path, capfd):
    arguments = ["encode", vae, "--data", "maskdit_emoji:smoke", "--config.data.source.split=val", "--size", "8"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--no-flips"]) == 0
    manifest = Encoded(str(tmp_path / "out")).manifest
    assert manifest["records"] == 520 and manifest["size"] == 8 and manifest["source"]["split"] == "val"
    assert list(manifest["labels"]) == ["style", "group"] and not manifest["flips"]
    assert "520/520 images" in capfd.readouterr().out
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert "flips was false, and is true now" in capfd.readouterr().err


KILLED = """
import sys
from maskdit.encode import encode
encode(sys.argv[1], sys.argv[2], sys.argv[3], size=16, batch=8, shard_records=3, dtype="float32")
"""


@pytest.mark.slow
def test_killed_five_times_at_random_points(vae, tmp_path):
    pictures, out = write_pictures(tmp_path / "pictures", 240, broken=(BROKEN,)), tmp_path / "out"
    rng, shards = random.Random(0), 80
    for kill in range(5):
        job = start(["-c", KILLED, vae, pictures, str(out)], 1, 1)
        target, end = rng.randrange(kill * 12, kill * 12 + 12), time.monotonic() + 120
        while len(list(out.glob("latents*"))) < target and time.monotonic() < end and job.processes[0].poll() is None:
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.01)
        job.kill()
        assert job.processes[0].returncode == -signal.SIGKILL
        assert len(list(out.glob("latents*"))) < shards
    (ended,) = start(["-c", KILLED, vae, pictures, str(out)], 1, 1).wait()
    assert ended.code == 0, ended.said
    assert_whole(out, Folder(pictures), "float32")
    assert len(list(out.iterdir())) == shards + 2  # with the manifest and the lock


@pytest.mark.slow
def test_two_processes_share_the_shards(vae, pictures, run, tmp_path):
    out = tmp_path / "shared"
    arguments = ["-m", "maskdit.cli", "encode", vae, "--data", pictures, "--size", "16", "--batch", "4"]
    ended = start([*arguments, "--shard-records", "4", "--dtype", "float32", "--out", str(out)], 2, 2).wait()
    assert [one.code for one in ended] == [0, 0], ended[0].said + ended[1].said
    assert_whole(out, Folder(pictures), "float32")
    ours, theirs = (Encoded(str(path)) for path in (run(dtype="float32"), out))
    assert {**ours.manifest, "checkpoint": ""} == {**theirs.manifest, "checkpoint": ""}
    np.testing.assert_allclose(ours[7]["moments"], theirs[7]["moments"], atol=1e-5)
