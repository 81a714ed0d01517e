"""Editing: what is known stays as it is, and the rest is drawn as ever."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.contracts import Cond, LatentSpec, Layout, ModelError, Predict, Prediction
from maskdit.draw import Draw
from maskdit.processes.autoregressive import Autoregressive
from maskdit.processes.ddpm import DDPM
from maskdit.processes.edm import EDM
from maskdit.processes.masked import BatchCounts, Masked
from maskdit.samplers.ancestral import DDIM, Ancestral
from maskdit.samplers.autoregressive import TokenByToken
from maskdit.samplers.editing import check_edit, composed, known_region, side_of
from maskdit.samplers.heun import Euler, Heun
from maskdit.samplers.sampling import Known, network_calls, walk
from maskdit.samplers.temperature import Constant
from maskdit.samplers.tokens import AncestralUnmasking, Confidence
from maskdit.samplers.unmask import halton

CODES, ROWS = 7, 3
LAYOUT = Layout(grid=(3, 4), vocabulary=CODES)
GRID = LatentSpec(layout="grid", downsample=4, channels=5, vocabulary=CODES)


def listening(x, t, cond, **kw):
    """Logits that lean on the tokens to the left, as a network's do."""
    left = jnp.roll(jnp.where(x == CODES, 0, x), 1, axis=1)
    return Prediction(x=2 * jax.nn.one_hot((left + 1) % CODES, CODES))


TOKENS = Predict(call=listening, null=lambda cond: cond, layout=LAYOUT)


def latents(process):
    """A denoiser that pulls to the mean of all places."""

    def call(x, t, cond, **kw):
        return Prediction(x=0.1 * x + 0.2 * x.mean((1, 2), keepdims=True))

    return Predict(call=call, null=lambda cond: cond, layout=Layout(grid=(2, 3), channels=2))


def run(process, sampler, predict, shape, known=None, fixed=0):
    draw = Draw(5).at(jnp.arange(ROWS))
    go = jax.jit(
        lambda known: walk(process, sampler, predict, draw, shape, Cond(), known=known, fixed=fixed, watch=True)
    )
    state, seen = go(known)
    return np.asarray(state.x), np.asarray(seen)


@pytest.mark.parametrize(
    "sampler",
    [
        Confidence(steps=4),
        Confidence(steps=4, policy=halton, temperature=Constant(1.0)),
        Confidence(steps=4, schedule="cosine", least=0),
        AncestralUnmasking(steps=5),
    ],
    ids=["confidence", "halton", "bare schedule", "unmasking"],
)
def test_known_tokens_are_never_changed_and_all_others_are_told(sampler):
    ids = np.random.default_rng(0).integers(0, CODES, (ROWS, 12)).astype(np.int32)
    stays = np.arange(12) % 3 == 0
    known = Known(x=jnp.asarray(ids), mask=jnp.broadcast_to(stays, ids.shape))
    x, seen = run(Masked(), sampler, TOKENS, ids.shape, known)
    np.testing.assert_array_equal(seen[:, :, stays], np.broadcast_to(ids[:, stays], seen[:, :, stays].shape))
    np.testing.assert_array_equal(x[:, stays], ids[:, stays])
    assert x.max() < CODES, "no masks are left"
    np.testing.assert_array_equal(seen[-1], x)
    free, _ = run(Masked(), sampler, TOKENS, ids.shape)
    assert not np.array_equal(free[:, ~stays], x[:, ~stays]), "what is known is listened to"


def test_an_autoregressive_model_keeps_what_is_known():
    ids = np.random.default_rng(0).integers(0, CODES, (ROWS, 12)).astype(np.int32)
    stays = np.arange(12) >= 8
    x, seen = run(
        Autoregressive(),
        TokenByToken(cache=False),
        TOKENS,
        ids.shape,
        Known(jnp.asarray(ids), jnp.asarray(stays)[None]),
    )
    np.testing.assert_array_equal(x[:, stays], ids[:, stays])
    np.testing.assert_array_equal(seen[-1], x)


@pytest.mark.parametrize(
    ("process", "sampler"),
    [
        (EDM(), Heun(4)),
        (EDM(), Heun(4, churn=2.0)),
        (EDM(), Euler(4)),
        (DDPM(steps=100), Ancestral(4)),
        (DDPM(steps=100), DDIM(4)),
    ],
    ids=["heun", "churn", "euler", "ancestral", "ddim"],
)
def test_known_latents_are_the_images_at_the_end(process, sampler):
    shape = (ROWS, 2, 3, 2)
    z = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    stays = np.zeros((1, 2, 3, 1), bool)
    stays[:, 0, 1:] = True
    x, seen = run(process, sampler, latents(process), shape, Known(jnp.asarray(z), jnp.asarray(stays)))
    np.testing.assert_allclose(np.where(stays, x, z), z, atol=1e-6)
    np.testing.assert_allclose(seen[-1], x, atol=1e-5)
    free, _ = run(process, sampler, latents(process), shape)
    assert np.abs(free - x)[np.broadcast_to(~stays, shape)].min() > 1e-6, "the rest listens to what is known"


@pytest.mark.parametrize("kind", ["tokens", "latents"])
def test_where_nothing_is_known_an_edit_draws_what_sampling_draws(kind):
    tokens = kind == "tokens"
    process, sampler = (Masked(), Confidence(steps=3)) if tokens else (EDM(), Heun(3, churn=1.0))
    predict = TOKENS if tokens else latents(process)
    shape = (ROWS, *predict.layout.shape)
    known = Known(x=jnp.zeros(shape, jnp.int32 if tokens else jnp.float32), mask=jnp.zeros(shape, bool))
    for edited, free in zip(
        run(process, sampler, predict, shape, known), run(process, sampler, predict, shape), strict=True
    ):
        np.testing.assert_array_equal(edited, free)


def test_cells_with_any_pixel_to_make_anew_are_made_anew():
    mask = np.zeros((12, 16), bool)
    mask[5, 6], mask[8:, 12:] = True, True
    ids = np.arange(24).reshape(2, 12)
    known = known_region(ids, mask, LAYOUT, GRID)
    np.testing.assert_array_equal(np.flatnonzero(~known.mask[0]), [5, 11])
    assert known.mask.shape == ids.shape
    double = dataclasses.replace(LAYOUT, grid=(24,))  # two codes at each place
    known = known_region(np.zeros((1, 24), int), mask, double, GRID)
    np.testing.assert_array_equal(np.flatnonzero(~known.mask[0]), [10, 11, 22, 23])
    known = known_region(np.zeros((1, 3, 4, 5)), mask, Layout(grid=(3, 4), channels=5), GRID)
    np.testing.assert_array_equal(~known.mask[0, :, :, 0], np.array([[0] * 4, [0, 1, 0, 0], [0, 0, 0, 1]], bool))


def test_pixels_that_the_mask_keeps_are_the_originals():
    rng = np.random.default_rng(0)
    made, originals = (rng.integers(0, 255, (2, 6, 6, 3)).astype(np.uint8) for _ in range(2))
    mask = rng.random((6, 6)) < 0.5
    out = composed(made, originals, mask)
    np.testing.assert_array_equal(out[:, mask], made[:, mask])
    np.testing.assert_array_equal(out[:, ~mask], originals[:, ~mask])
    frames = np.stack([255 - made, made], 1)
    np.testing.assert_array_equal(composed(frames, originals, mask)[:, 1], out)


def test_what_cannot_be_edited_is_told():
    images, mask = np.zeros((1, 16, 16, 3), np.uint8), np.ones((16, 16), bool)
    check_edit(16, GRID, images, mask)
    sequence = LatentSpec(layout="sequence", downsample=4, channels=5, vocabulary=CODES, tokens=32)
    with pytest.raises(ModelError, match="sequence of 32 tokens, each of which tells of the whole image"):
        check_edit(16, sequence, images, mask)
    with pytest.raises(ModelError, match=r"makes images of 32 x 32 .*\[16, 16, 3\].*resize"):
        check_edit(32, GRID, images, mask)
    with pytest.raises(ModelError, match=r"mask is \[16, 8\]"):
        check_edit(16, GRID, images, mask[:, :8])
    with pytest.raises(ModelError, match="black everywhere"):
        check_edit(16, GRID, images, ~mask)


def test_the_side_of_an_image():
    assert side_of(Layout(grid=(8, 8), vocabulary=9), GRID) == 32
    assert side_of(Layout(grid=(64,), vocabulary=9), GRID) == 32
    assert side_of(Layout(grid=(64,), vocabulary=9), GRID, each=4) == 16
    assert side_of(Layout(grid=(8, 8), patch=2, channels=5), GRID) == 64


@pytest.mark.parametrize(
    ("process", "sampler", "message"),
    [
        (Masked(), Confidence(steps=0), "1 to 12, got 0"),
        (Masked(), Confidence(steps=13), "1 to 12, got 13"),
        (Masked(), Heun(4), "this model makes tokens"),
        (Masked(), DDIM(4), "this model makes tokens"),
        (Masked(), TokenByToken(), "trained with Masked"),
        (Masked(), Confidence(steps=4, temperature=-1.0), "0 or more and finite, got -1"),
        (Masked(), Confidence(steps=4, temperature=float("nan")), "0 or more and finite, got nan"),
        (Masked(), Confidence(steps=4, token_temperature=(1.0, 2.0)), "2 temperatures were given for 4"),
        (Masked(counts=BatchCounts()), Confidence(steps=4), "told how many tokens are masked"),
        (Masked(counts=BatchCounts()), AncestralUnmasking(steps=4), "told how many tokens are masked"),
        (Autoregressive(), Confidence(steps=4), "one token after the other"),
        (Autoregressive(), AncestralUnmasking(steps=4), "one token after the other"),
    ],
)
def test_samplers_that_do_not_fit_are_refused_before_anything_runs(process, sampler, message):
    with pytest.raises(ValueError, match=message):
        network_calls(sampler, process, LAYOUT)


def test_token_samplers_refuse_continuous_models():
    for sampler in (Confidence(), AncestralUnmasking(), TokenByToken()):
        with pytest.raises(ValueError, match="continuous latents"):
            network_calls(sampler, EDM(), Layout(grid=(2, 2), channels=3))
