"""Training of tokenizers: whole runs, the two groups' gradients, weights between losses, stages."""

import functools
import logging
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict, unflatten_dict

import maskdit
from maskdit import config as configs
from maskdit.contracts import ModelError, Plan, Prediction
from maskdit.draw import Draw
from maskdit.encoders.convnext import ConvNeXt
from maskdit.networks.discriminators import PatchDiscriminator
from maskdit.tasks.adversarial import Adversarial
from maskdit.tasks.alignment import FeatureAlignment
from maskdit.tasks.autoencoder import ADVERSARIAL, Autoencoder
from maskdit.tasks.perceptual import Perceptual
from maskdit.tasks.perturbation import LatentPerturbation
from maskdit.tasks.proxy import ProxyCodes
from maskdit.tasks.task import Context, plans
from maskdit.tokenizers.linear import LinearPatches
from maskdit.tokenizers.maskgit_vqgan import MaskGITVQGAN
from maskdit.tokenizers.model import TokenizerModel
from maskdit.tokenizers.pixels import to_float
from maskdit.tokenizers.quantize.bridge import VQBridge
from maskdit.tokenizers.quantize.ema import EMAVQ
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.tokenizers.titok import TiTok
from maskdit.tokenizers.vae import VAE
from maskdit.tokenizers.vqgan import VQGAN
from maskdit.train import train
from maskdit.training.log import RunLog
from maskdit.training.mesh import unboxed
from maskdit.training.optim import Group
from maskdit.training.step import create, train_step

NETWORK = {"channels": (4, 4), "layers_per_block": 1, "latent_channels": 4, "groups": 2, "attention_levels": ()}
CODES = EMAVQ(codes=8, channels=2, decay=0.9, revive=2)
JUDGE = PatchDiscriminator(channels=4, layers=1, groups=2)
START = 2
BOTH = configs.Named(tokenizer=Group(patterns=("^tokenizer/",)), discriminator=Group(patterns=("^discriminator/",)))
GAN = Adversarial(JUDGE, start=START, adaptive=True, lecam=0.1, weight=0.5)
TASK = Autoencoder(VQGAN(CODES, **NETWORK), groups=BOTH, adversarial=GAN, horizon=6)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
BATCH = {"image": jnp.asarray(IMAGES), "row": jnp.arange(4)}


def run(**overrides):
    """The emoji VQGAN's smoke config around TASK: six steps, the adversarial term from the third."""
    settings = {"data.size": 8, "held_out": None, "steps": 6, "horizon": 6, "checkpoints.every": 100, "log.every": 1}
    settings |= {"log.tensorboard": False, "evaluation.images": 0, "evaluation.every": 100, "data.source.split": "val"}
    config = configs.load("vqgan_emoji:smoke", {**settings, **overrides})
    config.task = configs.spec(Autoencoder, tokenizer=TASK.tokenizer, groups=BOTH, adversarial=GAN)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never interrupted: its state and directory."""
    workdir = tmp_path_factory.mktemp("whole")
    return train(run(), str(workdir)), workdir


@pytest.fixture(scope="module")
def made():
    """Parameters and state of TASK, with a discriminator's means that are not zero."""
    params, state = jax.jit(lambda: unboxed(TASK.init(Draw(0), BATCH)))()
    return params, {**state, "lecam": {"real": jnp.float32(0.3), "fake": jnp.float32(-0.2)}}


@functools.partial(jax.jit, static_argnames=("group", "plan"))
def judged(params, state, image, step, *, group, plan):
    """The loss that a group minimises, its slope in all parameters, and its metrics."""

    def value(params):
        outputs = {"tokenizer": Prediction(x=to_float(BATCH["image"][::-1]))} if group == "discriminator" else {}
        context = Context({"image": image}, Draw(3).at(jnp.arange(4)), step, plan, state=state, outputs=outputs)
        loss, _ = TASK.loss(group, params, context)
        return loss.value.mean() + sum(loss.batch.values(), jnp.zeros(())), loss

    (total, loss), slope = jax.value_and_grad(value, has_aux=True)(params)
    return total, slope, loss.metrics


def largest(tree):
    return {path: float(np.abs(leaf).max()) for path, leaf in flatten_dict(tree, sep="/").items()}


def test_stopped_run_goes_on_bitwise(whole, tmp_path, monkeypatch):
    original = RunLog.step

    def step(self, number, *args, **kw):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, number, *args, **kw)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "step", step)
        assert int(train(run(), str(tmp_path)).step) == 3
    state = train(run(), str(tmp_path))
    chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(whole[0]))
    # the comparison is of something: codes, their counts and the discriminator's means have moved
    assert state.task["tokenizer"]["quantize"]["count"].std() > 0
    assert float(state.task["lecam"]["real"]) != 0 and int(state.task["usage"]["seen"].max()) == 5


def test_saved_tokenizer_encodes_alike_with_codes_that_no_gradient_trained(whole, tmp_path):
    state, workdir = whole
    model = maskdit.load(str(workdir))
    codes = model.own["state"]["quantize"]["codebook"]
    np.testing.assert_array_equal(codes, state.task["tokenizer"]["quantize"]["codebook"])
    maskdit.save(model, str(tmp_path / "model.npz"))
    again = maskdit.load(str(tmp_path / "model.npz"))
    assert "discriminator" not in again.variables["params"] and "usage" not in again.variables["state"]
    ids = model.encode(IMAGES)
    np.testing.assert_array_equal(again.encode(IMAGES), ids)
    np.testing.assert_array_equal(again.decode(ids), model.decode(ids))


def test_two_programs_and_no_adversarial_term_before_its_start(made):
    assert plans(TASK, 6) == {
        (Plan(), ("tokenizer",)): 0,
        (Plan(phase=ADVERSARIAL), ("tokenizer", "discriminator")): START,
    }
    _, slope, metrics = judged(*made, BATCH["image"], jnp.int32(0), group="tokenizer", plan=Plan())
    assert "gan" not in metrics and not any(largest(slope["discriminator"]).values())
    dead = [path for path, size in largest(slope["tokenizer"]).items() if not size]
    assert not dead, dead


def test_discriminator_learns_from_images_alone(made):
    before, _, _ = judged(*made, BATCH["image"], jnp.int32(0), group="discriminator", plan=Plan())
    value, slope, _ = judged(*made, BATCH["image"], jnp.int32(START), group="discriminator", plan=Plan())
    assert not any(largest(slope["tokenizer"]).values())
    assert all(largest(slope["discriminator"]).values())
    assert 0 < float(before) < float(value)  # LeCam's term counts from the first step, the rest from `start`


def test_each_update_leaves_the_other_network_alone(made):
    state = jax.jit(functools.partial(create, TASK, (), BATCH))(jax.random.key(0))
    step = jax.jit(
        functools.partial(train_step, task=TASK, plan=Plan(phase=ADVERSARIAL), groups=("tokenizer",), microbatches=1)
    )
    after, _ = step(unboxed(state).replace(step=jnp.int32(START)), {}, BATCH, jax.random.key(1))
    before = jax.device_get(unboxed(state))
    chex.assert_trees_all_equal(jax.device_get(after.params["discriminator"]), before.params["discriminator"])
    chex.assert_trees_all_equal(jax.device_get(after.opt["discriminator"]), before.opt["discriminator"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params["tokenizer"], before.params["tokenizer"])
    assert all(jax.tree.leaves(moved))


def test_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer(made):
    params, state = made
    image, variables = to_float(BATCH["image"]), {"params": params["tokenizer"], "state": state["tokenizer"]}
    leaves, path = flatten_dict(params["tokenizer"], sep="/"), TASK.tokenizer.last_layer

    def norm(term):
        def of_kernel(kernel):
            tree = {**variables, "params": unflatten_dict({**leaves, path: kernel}, sep="/")}
            return term(
                TASK.tokenizer.apply(tree, TASK.tokenizer.apply(variables, image, method="encode"), method="decode")
            )

        return jnp.linalg.norm(jax.grad(of_kernel)(leaves[path]))

    def direct():
        distance = norm(lambda x: jnp.square(x - image).mean())
        return distance / (norm(lambda x: -JUDGE.apply({"params": params["discriminator"]}, x).mean()) + 1e-4)

    ratio = jax.jit(direct)()
    plan = Plan(phase=ADVERSARIAL)
    total, _, metrics = judged(*made, BATCH["image"], jnp.int32(START), group="tokenizer", plan=plan)
    np.testing.assert_allclose(metrics["gan_weight"], np.full(4, ratio), rtol=1e-4)
    expected = metrics["reconstruction"] + metrics["commitment"] + 0.5 * ratio * metrics["gan"]
    np.testing.assert_allclose(total, expected.mean(), rtol=1e-5)


def test_gradient_does_not_depend_on_microbatches():
    task = Autoencoder(VQGAN(VQ(codes=8, channels=2), **NETWORK), horizon=6)
    state = unboxed(jax.jit(functools.partial(create, task, (), BATCH))(jax.random.key(0)))

    def gradient(microbatches):
        step = functools.partial(train_step, task=task, plan=Plan(), groups=("tokenizer",), microbatches=microbatches)
        after, metrics = jax.jit(step)(state, {}, BATCH, jax.random.key(1))
        return optax.tree.get(after.opt["tokenizer"], "mu"), metrics

    (one, said), (two, heard) = gradient(1), gradient(2)
    chex.assert_trees_all_close(one, two, atol=2e-6, rtol=1e-4)
    assert max(largest(one).values()) > 1e-5
    np.testing.assert_allclose(said["loss"], heard["loss"], rtol=1e-5)


def test_bridge_is_folded_away_and_ids_stay():
    task = Autoencoder(VQGAN(VQ(codes=8, channels=2, bridge=VQBridge(group=2, width=8, depth=1, heads=2)), **NETWORK))
    params = jax.jit(lambda: meta.unbox(task.init(Draw(0), BATCH)[0]))()
    folded = task.model({"params": params, "frozen": {}, "state": {}}, {})
    assert folded.tokenizer.quantize.bridge is None and set(folded.own["params"]["quantize"]) == {"codebook"}
    ids = TokenizerModel(task.tokenizer, {"params": params}).encode(IMAGES)
    assert len(np.unique(ids)) > 1
    np.testing.assert_array_equal(folded.encode(IMAGES), ids)


@pytest.mark.slow
def test_second_stage_starts_from_the_first_and_keeps_its_encoder_and_codes(tmp_path, caplog):
    small = {"steps": 1, "held_out": None, "evaluation.images": 0, "log.tensorboard": False}
    first = train(configs.load("titok_imagenet256:smoke", small), str(tmp_path / "first"))
    source = {"init_from": str(tmp_path / "first"), "task.groups.tokenizer.optimizer.schedule.warmup": 0}
    with caplog.at_level(logging.INFO, "maskdit.references"):
        config = configs.load("titok_imagenet256:smoke-decoder", {**small, **source})
        second = train(config, str(tmp_path / "second"))
    kept = [record.getMessage() for record in caplog.records if "keeps its initial value" in record.getMessage()]
    assert kept and all(": discriminator/" in line for line in kept)
    assert not any("left out" in record.getMessage() for record in caplog.records)
    before, after = (
        flatten_dict(jax.device_get(tree), sep="/")
        for tree in (first.ema["0.999"]["tokenizer"], second.params["tokenizer"])
    )
    held = [path for path in after if not path.startswith(("decoder/", "pixel/"))]
    assert any(path.startswith("encoder/") for path in held) and "quantize/codebook" in held
    for path in held:
        np.testing.assert_array_equal(after[path], before[path], err_msg=path)
    assert all((after[path] != before[path]).any() for path in after if path.startswith("decoder/") and path in before)
    assert maskdit.load(str(tmp_path / "second")).encode(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 4)


TEXT = TiTok(size=8, patch=4, tokens=3, channels=2, encoder=(8, 1, 2), decoder=(8, 1, 2), text=(2, 6))
PROXY = ProxyCodes(VQGAN(VQ(codes=8, channels=2), **NETWORK))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"adversarial": GAN}, "tokenizer and discriminator, got tokenizer"),
        ({"groups": BOTH}, "are tokenizer, got tokenizer, discriminator"),
        ({"groups": configs.Named(tokenizer=Group(every=2))}, "runs in every step"),
        ({"proxy": PROXY, "perceptual": Perceptual(convnext=ConvNeXt())}, "leave the others out"),
    ],
)
def test_terms_and_groups_that_do_not_go_together_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Autoencoder(TASK.tokenizer, **fields)


@pytest.mark.parametrize(
    ("batch", "error", "sentence"),
    [
        ({"moments": np.zeros((4, 2, 2, 4))}, ValueError, "data.latents=None"),
        ({"image": np.zeros((4, 16, 16, 3))}, ModelError, "takes images of 8 x 8"),
        ({"image": IMAGES}, ValueError, r"\[2, 6\], the data have none: set data.text"),
        ({"image": IMAGES, "text": np.zeros((4, 2, 5))}, ValueError, r"\[2, 6\], the data have \[2, 5\]"),
    ],
)
def test_data_that_the_tokenizer_does_not_take_are_refused(batch, error, sentence):
    with pytest.raises(error, match=sentence):
        Autoencoder(TEXT).check(batch, {})


@pytest.mark.parametrize(
    ("tokenizer", "fields", "sentence"),
    [
        (TASK.tokenizer, {"proxy": PROXY}, "VQGAN tells no proxy codes"),
        (TEXT, {"alignment": FeatureAlignment(ConvNeXt())}, "TiTok has no latents on a grid"),
        (
            LinearPatches(),
            {"adversarial": Adversarial(PatchDiscriminator(), adaptive=True), "groups": BOTH},
            "LinearPatches has no last layer",
        ),
    ],
)
def test_terms_that_the_tokenizer_cannot_have_are_refused(tokenizer, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Autoencoder(tokenizer, **fields)


def test_codes_of_a_continuous_tokenizer_cannot_be_swapped():
    task = Autoencoder(VAE(channels=(32,)), perturbation=LatentPerturbation())
    with pytest.raises(ValueError, match="VAE has no token ids"):
        task.check({"image": IMAGES}, {})


def test_weights_for_what_is_trained_are_refused():
    with pytest.raises(ValueError, match=r"task.tokenizer is trained: .* init_from"):
        TASK.freeze(Draw(0), list, {"tokenizer": None})


def test_a_pixel_decoder_of_another_size_is_refused():
    pixel = MaskGITVQGAN(VQ(codes=9, channels=4), channels=(2, 2), blocks=1, latent_channels=4, groups=1)
    second = TiTok(
        quantize=VQ(codes=7, channels=2),
        size=8,
        patch=4,
        tokens=3,
        channels=2,
        encoder=(8, 1, 2),
        decoder=(8, 1, 2),
        legacy=True,
        proxy_codes=9,
        pixel=pixel,
    )
    with pytest.raises(ValueError, match=r"makes images of \[4, 4, 3\] from those of \[8, 8, 3\]"):
        Autoencoder(second).check({"image": IMAGES}, {})
