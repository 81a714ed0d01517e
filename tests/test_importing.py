"""Published files in, as users bring them, and out again; everything that can go wrong leaves nothing behind."""

import dataclasses
import functools
import http.server
import os
import pathlib
import shutil
import signal
import threading

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import maskdit
from maskdit import config as configs
from maskdit import importing
from maskdit.cli import main
from maskdit.exporting import export_weights
from maskdit.importing import import_weights
from maskdit.interop import layouts, published
from maskdit.interop.state_file import open_state
from maskdit.references import WeightsError
from maskdit.tokenizers.model import TokenizerModel
from maskdit.train import TrainingError, train
from maskdit.training import checkpoint
from tests.interop.torch_writer import write_zip

SMALL_VAE = {"channels": "(32, 32)", "layers_per_block": "1"}
SMALL_DIT = {"width": "16", "depth": "2", "heads": "2", "input_size": "8", "classes.label": "10", "dtype": "float32"}
SMALL = dataclasses.replace(
    published.ALIASES["sd-vae-ft-ema"],
    reference={
        "block_out_channels": (32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
    },
)
"""A small VAE as if it were published."""
VAE = [(f"tokenizer.{name}", text) for name, text in SMALL_VAE.items()]


def dit(vae):
    """Overrides that make the config of DiT-XL/2 small."""
    network = [(f"task.network.{name}", text) for name, text in SMALL_DIT.items()]
    tokenizer = [(f"task.tokenizer.spec.{name}", text) for name, text in SMALL_VAE.items()]
    return [*network, *tokenizer, ("task.tokenizer", str(vae)), ("sampler.steps", "2")]


def published_state(module, layout, seed=0):
    """A filled state dict of a module's published layout."""
    rng = np.random.default_rng(seed)
    shapes = layouts.parameter_shapes(module)
    params = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    return {name: np.ascontiguousarray(tensor) for name, tensor in layouts.write(module, params, layout).items()}


@functools.cache
def small(name):
    config = published.ALIASES[name].config()
    overrides = VAE if name.startswith("sd-vae") else dit("unused")
    for path, text in overrides:
        configs.override_text(config, path, text)
    return configs.build(config.tokenizer if name.startswith("sd-vae") else config.task.network)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A VAE in diffusers' names; a DiT in its authors' layout, bare and as a training checkpoint."""
    folder = tmp_path_factory.mktemp("files")
    save_file(published_state(small("sd-vae-ft-ema"), "diffusers"), folder / "vae.safetensors")
    state = published_state(small("dit-xl-2-256"), "reference")
    write_zip(folder / "dit.pt", {"model": {"x_embedder.proj.bias": np.zeros(16)}, "ema": state, "opt": {"step": 3}})
    write_zip(folder / "bare.pt", state)
    return folder


@pytest.fixture(scope="module")
def vae(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("vae") / "out"
    return import_weights("sd-vae-ft-ema", str(files / "vae.safetensors"), str(out), overrides=VAE)


@pytest.fixture(scope="module")
def generator(files, vae, tmp_path_factory):
    out = tmp_path_factory.mktemp("dit") / "out"
    return import_weights("dit-xl-2-256", str(files / "dit.pt"), str(out), overrides=dit(vae))


def test_imported_generator_samples_with_its_vae_and_the_papers_guidance(files, vae, generator):
    model = maskdit.load(generator)
    assert (model.guidance.weight, model.guidance.channels, model.sampler.steps) == (1.5, 3, 2)
    images = model.sample({"label": 7}, count=2)
    assert images.shape == (2, 16, 16, 3) and model.labels({"label": "7"}, count=1) == {"label": ["7"]}
    weights = open_state(files / "dit.pt").tensors
    ours = model.variables["params"]["network"]["blocks_1"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(weights["blocks.1.mlp.fc1.weight"]).T)
    tokenizer = maskdit.load(vae)
    assert isinstance(tokenizer, TokenizerModel)
    np.testing.assert_array_equal(tokenizer.encode(images), model.encode(images))
    latents = tokenizer.encode(images)
    np.testing.assert_array_equal(tokenizer.decode(latents), model.decode(latents))


@pytest.mark.parametrize(
    ("layout", "name"), [("reference", "o.safetensors"), ("reference", "o.pt"), ("diffusers", "o")]
)
def test_out_and_in_again_is_bit_equal(files, vae, generator, tmp_path, layout, name):
    out = export_weights(generator, str(tmp_path / name), layout=layout)
    again = import_weights("dit-xl-2-256", out, str(tmp_path / "again"), overrides=dit(vae))
    assert configs.from_json(checkpoint.read(again).meta["config"]).task.network.width == 16
    left, right = (flatten_dict(checkpoint.read(path).variables, sep="/") for path in (generator, again))
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_array_equal(np.asarray(left[path]), np.asarray(right[path]), err_msg=path)
    if layout == "reference":
        theirs, ours = open_state(files / "bare.pt").tensors, open_state(out).tensors
        assert ours.keys() == theirs.keys()
        for tensor in theirs:  # the table of places is computed anew
            np.testing.assert_allclose(
                np.asarray(ours[tensor]), np.asarray(theirs[tensor]), rtol=0, atol=1e-6 * (tensor == "pos_embed")
            )
    else:
        assert (tmp_path / name / "config.json").exists()


def test_vae_goes_out_in_both_layouts(files, vae, generator, tmp_path):
    export_weights(vae, str(tmp_path / "a.safetensors"), layout="diffusers")
    theirs, ours = load_file(files / "vae.safetensors"), load_file(tmp_path / "a.safetensors")
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    export_weights(generator, str(tmp_path / "b.safetensors"), part="tokenizer")
    assert "decoder.mid.attn_1.q.weight" in load_file(tmp_path / "b.safetensors")


def test_vae_that_is_another_is_refused(generator, vae, files, tmp_path):
    overrides = [(path, "(32, 64)" if path.endswith("channels") else text) for path, text in dit(vae)]
    with pytest.raises(WeightsError, match="is not the tokenizer that this config describes"):
        import_weights("dit-xl-2-256", str(files / "dit.pt"), str(tmp_path / "out"), overrides=overrides)
    assert list(tmp_path.iterdir()) == []


def test_fine_tuning_from_imported_weights(generator, tmp_path):
    config = configs.load("dit_finetune:smoke", {"init_from": generator, "log.tensorboard": False})
    fields = {"width": 16, "depth": 2, "heads": 2}
    for name, value in fields.items():
        configs.override(config, f"task.network.{name}", value)
    with config.unlocked():
        config.task.tokenizer = configs.pretrained(generator)
        config.task.groups.generator.frozen = ("blocks_0/",)
        config.steps, config.evaluation.images = 2, 0
    with pytest.raises(WeightsError, match=r"network/label_embed/label: \[11, 16\] in the source"):
        train(config, str(tmp_path / "run"))
    config.init_from.allow = ("label_embed",)
    train(config, str(tmp_path / "run"))
    run = checkpoint.read(str(tmp_path / "run"), ema="none")
    theirs = flatten_dict(checkpoint.read(generator).variables, sep="/")
    ours = flatten_dict(run.variables, sep="/")
    assert ours["params/network/label_embed/group"].shape == (9, 16)
    np.testing.assert_array_equal(
        ours["params/network/blocks_0/mlp/fc1/kernel"], theirs["params/network/blocks_0/mlp/fc1/kernel"]
    )
    assert not np.array_equal(
        ours["params/network/blocks_1/mlp/fc1/kernel"], theirs["params/network/blocks_1/mlp/fc1/kernel"]
    )
    for path in (path for path in theirs if path.startswith("frozen/")):
        np.testing.assert_array_equal(ours[path], theirs[path])
    with pytest.raises(TrainingError, match=r"holds weights and no run.*--config\.init_from="):
        train(config, generator)


def test_by_name_from_the_cache_after_one_download(files, tmp_path, monkeypatch):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    asked: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=files))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MASKDIT_CACHE", str(tmp_path / "cache"))
    entry = dataclasses.replace(SMALL, source=f"http://127.0.0.1:{server.server_port}/vae.safetensors")
    monkeypatch.setitem(published.ALIASES, "small-vae", entry)
    try:
        first, again = maskdit.load("small-vae"), maskdit.load("small-vae")
        assert asked == ["/vae.safetensors"] and first.tokenizer == again.tokenizer
        shutil.rmtree(tmp_path / "cache")
        assert maskdit.load("small-vae").tokenizer == first.tokenizer
        shutil.rmtree(tmp_path / "cache")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1.*maskdit import small-vae FILE"):
        maskdit.load("small-vae")
    assert not (tmp_path / "cache" / "weights" / "small-vae").exists()


def half(path, to):
    to.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return to


BAD = {
    "another architecture": (lambda f, t: ("dit-xl-2-256", f / "vae.safetensors"), "none of its .* tensors"),
    "another class count": (lambda f, t: ("dit-xl-2-256", f / "dit.pt"), "10 classes"),
    "half a download": (lambda f, t: ("dit-xl-2-256", half(f / "dit.pt", t / "half.pt")), "half.pt"),
    "half of another kind": (lambda f, t: ("sd-vae-ft-ema", half(f / "vae.safetensors", t / "half.st")), "half.st"),
    "no such file": (lambda f, t: ("dit-xl-2-256", t / "nowhere.pt"), "there is no file"),
    "no such name": (lambda f, t: ("dit-xl-2-265", f / "dit.pt"), "did you mean"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_a_sentence_and_leaves_nothing(files, vae, tmp_path, capsys, fault):
    make, message = BAD[fault]
    (tmp_path / "in").mkdir()
    name, file = make(files, tmp_path / "in")
    overrides = VAE if name.startswith("sd") else dit(vae)
    if fault == "another class count":
        overrides = [pair for pair in overrides if "classes" not in pair[0]]
    flags = [f"--config.{path}={text}" for path, text in overrides]
    assert main(["import", name, str(file), str(tmp_path / "out"), *flags]) == 1
    told = capsys.readouterr().err
    assert told.startswith("maskdit import: ") and "Traceback" not in told
    with pytest.raises((ValueError, OSError), match=message):
        import_weights(name, str(file), str(tmp_path / "out"), overrides=overrides)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_nothing_is_written_over_or_without_space_or_leave(files, vae, tmp_path, monkeypatch):
    bring = functools.partial(import_weights, "sd-vae-ft-ema", str(files / "vae.safetensors"), overrides=VAE)
    with pytest.raises(WeightsError, match="is there already"):
        bring(vae)
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="cannot write"):
        bring(str(tmp_path / "file" / "out"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(WeightsError, match=r"no space in .* 0\.00 GB are free"):
        bring(str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "end", [OSError(28, "No space left on device"), KeyboardInterrupt(), signal.SIGTERM, signal.SIGINT]
)
def test_what_breaks_off_half_way_leaves_nothing(files, tmp_path, monkeypatch, end):
    def break_off(workdir, *_):
        (pathlib.Path(workdir) / "checkpoints").mkdir(parents=True)
        if isinstance(end, BaseException):
            raise end
        os.kill(os.getpid(), end)

    monkeypatch.setattr(checkpoint, "write_weights", break_off)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it is ignored
    try:
        with pytest.raises((WeightsError, KeyboardInterrupt, SystemExit)):
            import_weights("sd-vae-ft-ema", str(files / "vae.safetensors"), str(tmp_path / "out"), overrides=VAE)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_two_at_once_do_not_meet(files, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDIT_CACHE", str(tmp_path))
    write, bring = checkpoint.write_weights, lambda: import_weights(str(name), str(files / "vae.safetensors"))
    name = "small-vae"
    monkeypatch.setitem(published.ALIASES, name, SMALL)

    def overtaken(*arguments):
        monkeypatch.setattr(checkpoint, "write_weights", write)
        bring()  # another process comes and goes while this one writes
        write(*arguments)

    monkeypatch.setattr(checkpoint, "write_weights", overtaken)
    assert bring() == str(tmp_path / "weights" / name)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [name]
    assert maskdit.load(name).tokenizer.channels == (32, 32)


def test_exports_that_cannot_be(generator, vae, tmp_path, capsys):
    (tmp_path / "there.safetensors").write_text("")
    (tmp_path / "config.json").write_text("a run's own")
    for arguments, message in (
        ([generator, "o.bin"], "safetensors"),
        ([generator, "o.safetensors", "--layout", "flax"], "no layout 'flax'"),
        ([vae, "o.safetensors", "--part", "network"], "has no network"),
        ([generator, str(tmp_path / "there.safetensors")], "is there already"),
        (["dit-xl-2-265", "o.safetensors"], "did you mean 'dit-xl-2-256'"),
        ([vae, str(tmp_path), "--layout", "diffusers"], "config.json is there already"),
        ([vae, str(tmp_path / "there.safetensors" / "o.pt")], "could not write"),
    ):
        assert main(["export", *arguments]) == 1
        told = capsys.readouterr().err
        assert message in told and "maskdit export: " in told and "Traceback" not in told


def test_imagenet_classes_have_names():
    config, entry = published.ALIASES["dit-xl-2-256"].config(), published.ALIASES["dit-xl-2-256"]
    names = importing._vocabulary(config, entry)["label"]
    assert len(set(names)) == 1000
    assert [names[i] for i in (0, 207, 360, 387, 999)] == [
        "tench", "golden retriever", "otter", "lesser panda", "toilet tissue"
    ]  # fmt: skip
    assert importing._vocabulary(config, None)["label"][207] == "207"  # somebody's own thousand classes


def test_list_names_everything(capsys):
    assert main(["import", "--list"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in published.ALIASES)
    assert main(["import"]) == 1
    assert "--list" in capsys.readouterr().err
