import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.contracts import Cond, Layout, Plan, Predict, Prediction
from maskdit.draw import Draw
from maskdit.processes.ddpm import DDPM, beta_schedule, spaced

LAYOUT = Layout(grid=(2, 2), patch=2, channels=1)


def predictor(call):
    return Predict(call=call, null=lambda cond: cond, layout=LAYOUT)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_perfect_predictions_give_the_data_and_no_loss(predicts):
    process = DDPM(steps=50, betas="cosine", predicts=predicts, learned_variance=False)
    z = jax.random.normal(jax.random.key(0), (5, 4, 4, 1))
    draws = Draw(1).at(jnp.arange(5))
    t = Draw(1).at(jnp.arange(5)).integers("t", (5,), 0, 50)
    noise = Draw(1).at(jnp.arange(5)).normal("noise", z.shape)
    alpha, sigma = (c.reshape(5, 1, 1, 1) for c in process.alpha_sigma(t))
    perfect = {"eps": noise, "x0": z, "v": alpha * noise - sigma * z}[predicts]
    predict = predictor(lambda x, t, cond, keep: Prediction(x=perfect))
    loss = process.loss(predict, z, Cond(), draws, step=0, plan=Plan())
    np.testing.assert_allclose(loss.value, 0, atol=1e-10)
    x0, _ = process.denoise(predictor(lambda x, t, cond: Prediction(x=perfect)), alpha * z + sigma * noise, t, Cond())
    np.testing.assert_allclose(x0, z, atol=2e-4)


def test_bound_reaches_the_variance_only_and_vanishes_at_the_posterior():
    process = DDPM(steps=20, learned_variance=True)
    z = jax.random.normal(jax.random.key(0), (4, 4, 4, 1))
    xt, t = z + 0.1, jnp.array([3, 5, 10, 19])
    exact = process.bound(z, xt, z, t, jnp.full_like(z, -1.0))
    np.testing.assert_allclose(exact, 0, atol=1e-5)

    def value(out):
        prediction = Prediction(x=out[..., :1], aux={"variance": out[..., 1:]})
        predict = predictor(lambda x, t, cond, keep: prediction)
        return process.loss(predict, z, Cond(), Draw(0).at(jnp.arange(4)), step=0, plan=Plan()).metrics["vb"].sum()

    gradient = jax.grad(value)(0.1 * jnp.ones((4, 4, 4, 2)))
    assert np.all(gradient[..., 0] == 0) and np.any(gradient[..., 1] != 0)


def test_respaced_process_has_the_levels_of_the_full_one():
    process = DDPM(steps=100)
    short = process.respace(process.times(7))
    level = np.cumprod(1 - beta_schedule("linear", 100))
    np.testing.assert_allclose(short.tables["alpha_bar"], level[list(short.kept)])
    np.testing.assert_allclose(np.cumprod(1 - short.tables["beta"]), level[list(short.kept)])
    assert short.kept[0] == 0 and short.kept[-1] == 99


def test_masked_loss_sees_kept_patches_only():
    process, z = DDPM(steps=20, learned_variance=False), jnp.zeros((3, 4, 4, 1))
    noise = Draw(0).at(jnp.arange(3)).normal("noise", z.shape)

    def call(x, t, cond, keep):
        mask = jnp.ones((3, 4)).at[jnp.arange(3)[:, None], keep].set(0)
        wrong = jnp.repeat(jnp.repeat(mask.reshape(3, 2, 2, 1), 2, 1), 2, 2) * 100
        return Prediction(x=noise + wrong, aux={"mask": mask})

    loss = process.loss(predictor(call), z, Cond(), Draw(0).at(jnp.arange(3)), step=0, plan=Plan(keep=2))
    np.testing.assert_allclose(loss.value, 0, atol=1e-10)


@pytest.mark.parametrize(
    ("total", "sections", "spacing", "kept"),
    [
        (10, 10, None, tuple(range(10))),
        (100, 1, None, (0,)),
        (1000, 4, None, (0, 333, 666, 999)),
        (10, 5, "ddim", (0, 2, 4, 6, 8)),
        (9, (2, 1, 3), None, (0, 2, 3, 6, 7, 8)),
    ],
)
def test_spacing(total, sections, spacing, kept):
    assert spaced(total, sections, spacing) == kept


@pytest.mark.parametrize(("sections", "spacing"), [(0, None), (101, None), (60, "ddim"), (5, "even")])
def test_impossible_spacings_are_refused(sections, spacing):
    with pytest.raises(ValueError, match=r"step|spacing|keep"):
        spaced(100, sections, spacing)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="predicts is one of"):
        DDPM(predicts="noise")
