import dataclasses
import itertools
import json
import pathlib
import pickle
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.data.folder import Folder
from maskdit.data.latents import Encoded
from maskdit.data.loader import Loader
from maskdit.data.source import DataError, UnreadableRecord
from maskdit.encode import encode
from maskdit.tokenizers.linear import LinearPatches
from maskdit.tokenizers.vae import VAE
from tests.encoded import TINY, moments, variables, write_pictures, write_tokenizer

BROKEN = 5
WORDS = np.random.default_rng(1).standard_normal((23, 3, 4)).astype(np.float16)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with pictures, one of them broken, texts beside them, and `latents`, both encoded."""
    root = tmp_path_factory.mktemp("encoded")
    pictures = write_pictures(root / "pictures", 23, broken=(BROKEN,))
    np.save(root / "text.npy", WORDS)
    vae = write_tokenizer(root / "vae.npz")
    text = str(root / "text.npy")
    encode(vae, pictures, str(root / "latents"), size=16, batch=8, shard_records=10, dtype="float32", text=text)
    return root


@pytest.fixture
def loaders(place):
    """The same loader with images and with latents."""
    images = Loader(Folder(str(place / "pictures")), size=16, text=str(place / "text.npy"))
    return images, dataclasses.replace(images, latents=str(place / "latents"))


def take(loader, steps, **kw):
    with loader.batches(5, 8, **kw) as stream:
        return list(itertools.islice(stream, steps))


def test_batches_are_those_of_the_images(loaders):
    with_images, with_latents = (take(loader, 7) for loader in loaders)
    replaced = 0
    for ours, theirs in zip(with_latents, with_images, strict=True):
        assert ours.keys() == {"moments", "text", "label", "row", "replaced"}
        for name in ("text", "label", "row", "replaced"):
            np.testing.assert_array_equal(ours[name], theirs[name])
        np.testing.assert_allclose(ours["moments"], moments(theirs["image"]), rtol=1e-4, atol=1e-5)
        replaced += ours["replaced"]
    assert replaced >= 2  # two passes: the broken picture's place is taken by the next, as among images
    assert not np.allclose(
        take(dataclasses.replace(loaders[1], flip=False), 1)[0]["moments"], with_latents[0]["moments"]
    )


def test_batches_depend_on_seed_and_step_alone(loaders):
    whole = take(loaders[1], 4)
    for step, later in enumerate(take(loaders[1], 2, start=2), start=2):
        np.testing.assert_array_equal(later["moments"], whole[step]["moments"])
    parts = [take(dataclasses.replace(loaders[1], threads=0), 4, rows=rows) for rows in (range(4), range(4, 8))]
    for step in range(4):
        joined = np.concatenate([part[step]["moments"] for part in parts])
        np.testing.assert_array_equal(joined, whole[step]["moments"])
    assert pickle.loads(pickle.dumps(loaders[1])) == loaders[1]


def test_one_pass_in_order_is_not_mirrored(loaders):
    with loaders[1].ordered(8) as stream:
        batches = list(stream)
    weight = np.concatenate([batch["weight"] for batch in batches])
    np.testing.assert_array_equal(np.flatnonzero(weight == 0), [BROKEN, 23])
    np.testing.assert_array_equal(batches[0]["moments"][2], Encoded(loaders[1].latents)[2]["moments"][0])
    with pytest.raises(DataError, match=r"fitted to images, and data.latents gives latents: set --config.task.token"):
        next(loaders[1].images(8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 32}, "encoded with size 16, data.size is 32: set --config.data.size=16"),
        ({"fit": "resize"}, "encoded with fit crop, data.fit is resize"),
        ({"source": Folder("elsewhere", split="train")}, "holds the split '', data.source.split is 'train'"),
    ],
)
def test_a_folder_of_other_images_is_refused(loaders, change, message):
    with pytest.raises(DataError, match=message):
        take(dataclasses.replace(loaders[1], **change), 1)


def test_missing_copies_and_texts_are_refused(place, tmp_path):
    pictures = str(place / "pictures")
    folder = encode(str(place / "vae.npz"), pictures, str(tmp_path / "plain"), size=16, flips=False)
    loader = Loader(Folder(pictures), size=16, latents=folder)
    with pytest.raises(DataError, match=r"no mirrored copies and data.flip is on: set --config.data.flip=false"):
        take(loader, 1)
    with pytest.raises(DataError, match=r"data.text is set and .* has no text"):
        take(dataclasses.replace(loader, flip=False, text=str(place / "text.npy")), 1)
    assert take(dataclasses.replace(loader, flip=False), 1)[0]["moments"].dtype == np.float16


def test_all_that_is_known_of_texts_is_stored(place, tmp_path):
    """Embeddings and numbers with each record, the empty text's once; batches are those of the images."""
    rng, pictures = np.random.default_rng(2), str(place / "pictures")
    pooled, null = rng.standard_normal((23, 5)).astype(np.float32), rng.standard_normal((3, 4)).astype(np.float16)
    extra = {"null_text": null, "null_pooled": pooled[0] + 1, "width": np.arange(23.0)}
    np.savez(tmp_path / "text.npz", text=WORDS, pooled=pooled, **extra)
    text = str(tmp_path / "text.npz")
    folder = pathlib.Path(encode(str(place / "vae.npz"), pictures, str(tmp_path / "out"), size=16, text=text))
    images = Loader(Folder(pictures), size=16, text=text)
    latents = dataclasses.replace(images, latents=str(folder))
    names = {"text", "pooled", "null_text", "null_pooled", "scalar/width"}
    for ours, theirs in zip(take(latents, 4), take(images, 4), strict=True):
        assert names == ours.keys() - {"moments", "label", "row", "replaced"} == names & theirs.keys()
        for name in names:
            np.testing.assert_array_equal(ours[name], theirs[name])
            assert ours[name].dtype == theirs[name].dtype
        shown = ours["scalar/width"].astype(int)
        np.testing.assert_array_equal(ours["pooled"], pooled[shown])
        np.testing.assert_array_equal(ours["null_text"], np.stack([null] * 8))
    assert take(dataclasses.replace(latents, text=None), 1)[0].keys() >= names
    (folder / "empty_text.npz").unlink()
    with pytest.raises(DataError, match=r"empty_text.npz', the embeddings of the empty text, cannot be read"):
        take(dataclasses.replace(latents), 1)
    encode(str(place / "vae.npz"), pictures, str(folder), size=16, text=text)
    np.testing.assert_array_equal(take(dataclasses.replace(latents), 1)[0]["null_text"][7], null)


def damaged(place, tmp_path, fault):
    folder = tmp_path / "latents"
    shutil.copytree(place / "latents", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    shard = folder / "latents-00001-of-00003.array_record"
    if fault == "missing":
        shard.unlink()
    elif fault == "short":
        shard.write_bytes((folder / "latents-00002-of-00003.array_record").read_bytes())
    elif fault == "cut":
        shard.write_bytes(shard.read_bytes()[:-70_000])
    elif fault == "none":
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text(json.dumps(manifest | json.loads(fault)))
    return str(folder)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "lacks 1 of 3 shards, such as latents-00001"),
        ("short", "hold 16 records, manifest.json says 23"),
        ("cut", "cannot be opened|hold 13 records"),
        ("none", "has no manifest.json: give a folder that `maskdit encode` has written"),
        ('{"done": false}', "is unfinished: run the same `maskdit encode` command again"),
        ('{"format": 9}', "is of format 9, this version reads 1"),
    ],
)
def test_folders_that_are_not_whole_are_refused(place, loaders, tmp_path, fault, message):
    with pytest.raises(DataError, match=message):
        take(dataclasses.replace(loaders[1], latents=damaged(place, tmp_path, fault)), 1)


def test_only_the_encoder_that_made_them_is_let_through(loaders):
    loader, vae = loaders[1], VAE(**TINY)
    loader.check_tokenizer(vae, variables())
    params = variables()["params"]
    loader.check_tokenizer(vae, {"params": params | {"decoder": {}}})
    other = {"params": params | {"quant": {"kernel": params["quant"]["kernel"] * 2, "bias": params["quant"]["bias"]}}}
    with pytest.raises(DataError, match=r"made by the encoder of .*vae.npz, VAE with checksum \w{12}; this run's"):
        loader.check_tokenizer(vae, other)
    linear = LinearPatches(patch=2, channels=2)
    given = linear.init(jnp.zeros(2, jnp.uint32), jnp.zeros((1, 4, 4, 3)))
    with pytest.raises(DataError, match="this run's tokenizer, LinearPatches, has an encoder with checksum"):
        loader.check_tokenizer(linear, given)
    with pytest.raises(DataError, match="for runs that train on a frozen tokenizer's latents"):
        loader.check_tokenizer(vae, None)
    loaders[0].check_tokenizer(None, None)  # images are for every run


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((22, 3, 4), np.float32), "has 22 rows of text and the source 23 records"),
        (np.zeros((23, 3), np.float32), r"holds float32 \[23, 3\]; text embeddings are one array \[records, tokens"),
        (np.zeros((23, 3, 4), np.int32), r"holds int32 \[23, 3, 4\]"),
        (None, "cannot be read as a .npy or .npz file"),
    ],
)
def test_texts_that_do_not_fit(loaders, tmp_path, array, message):
    path = tmp_path / "text.npy"
    if array is not None:
        np.save(path, array)
    with pytest.raises(DataError, match=message):
        take(dataclasses.replace(loaders[0], text=str(path)), 1)


def test_texts_come_with_their_images(loaders, tmp_path):
    np.savez(tmp_path / "text.npz", words=WORDS)
    plain = dataclasses.replace(loaders[0], flip=False, shuffle=False)
    for loader in (plain, dataclasses.replace(plain, text=str(tmp_path / "text.npz"))):
        text = take(loader, 1)[0]["text"]
        shown = [0, 1, 2, 3, 4, 6, 6, 7]  # the broken record's place shows the next, with its own text
        np.testing.assert_array_equal(text, WORDS[shown])


def test_ids_that_the_tokenizer_does_not_have_are_a_broken_record(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", 9)
    encode("emoji-vqgan", pictures, str(tmp_path / "latents"), size=64, batch=8, flips=False)
    manifest = tmp_path / "latents" / "manifest.json"
    ids = np.stack([Encoded(str(tmp_path / "latents"))[index]["ids"].max() for index in range(9)])
    said = json.loads(manifest.read_text())
    said["latent"]["vocabulary"] = int(ids.max())  # as if the largest id came from elsewhere
    manifest.write_text(json.dumps(said))
    encoded = Encoded(str(tmp_path / "latents"))
    for index, largest in enumerate(ids):
        if largest < ids.max():
            assert encoded[index]["ids"].max() == largest
        else:
            with pytest.raises(UnreadableRecord, match=f"token id {largest}, the tokenizer has 0 to {largest - 1}"):
                encoded[index]
