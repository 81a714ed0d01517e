"""SoftVQ: means of codes; the published numbers are held by the golden case of its tokenizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.tokenizers.quantize.softvq import SoftVQ


def features(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_each_run_of_tokens_has_its_own_codebook():
    z, codes = features((2, 6, 4)), features((3, 5, 4), 1)
    quantizer = SoftVQ(5, 4, codebooks=3, tau=0.3, entropy=0.0)
    out = quantizer.apply({"params": {"codebook": codes}}, z)
    token = z[1, 3] / np.linalg.norm(z[1, 3])  # the fourth of six: the second codebook
    unit = codes[1] / np.linalg.norm(codes[1], axis=-1, keepdims=True)
    weights = np.exp(unit @ token / 0.3)
    np.testing.assert_allclose(out.values[1, 3], weights @ unit / weights.sum(), atol=1e-6)
    assert int(out.ids[1, 3]) == int(np.argmax(weights)) and out.losses == {}


def test_a_low_temperature_gives_the_codes_themselves():
    z, quantizer = features((2, 4, 8)), SoftVQ(6, 8, codebooks=2, tau=1e-3)
    variables = {"params": {"codebook": features((2, 6, 8), 1)}}
    out = quantizer.apply(variables, z)
    np.testing.assert_allclose(out.values, quantizer.apply(variables, out.ids, method="look_up"), atol=1e-4)
    assert float(out.aux["confidence"]) == pytest.approx(1, abs=1e-4)


def test_codes_learn_from_the_means_and_tokens_through_the_weights():
    z, quantizer = features((1, 2, 4)), SoftVQ(3, 4, codebooks=1, l2=False, tau=0.5)
    codes, g = features((1, 3, 4), 1), features((1, 2, 4), 2)

    def loss(codes, z):
        return jnp.sum(g * quantizer.apply({"params": {"codebook": codes}}, z).values)

    by_codes, by_z = jax.grad(loss, (0, 1))(codes, z)
    weights = jax.nn.softmax(z[0] @ codes[0].T / 0.5)  # [n, V]
    np.testing.assert_allclose(by_codes[0], weights.T @ g[0], atol=1e-5)
    assert np.abs(by_z).min() > 0


def test_tokens_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="codebooks=4"):
        SoftVQ(4, 2, codebooks=4).init(jax.random.key(0), jnp.zeros((1, 6, 2)))
