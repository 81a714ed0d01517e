"""Codes of a frozen tokenizer as targets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.tasks.proxy import ProxyCodes, proxy_cross_entropy
from maskdit.tokenizers.maskgit_vqgan import MaskGITVQGAN
from maskdit.tokenizers.quantize.ema import EMAVQ
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.tokenizers.titok import TiTok
from maskdit.tokenizers.vae import VAE


def test_cross_entropy_is_that_of_each_place():
    ids = jnp.asarray([[[0, 1], [2, 3]], [[4, 0], [0, 0]]])
    np.testing.assert_allclose(proxy_cross_entropy(jnp.zeros((2, 2, 2, 5)), ids), np.log(5), rtol=1e-6)
    sure = 100.0 * jax.nn.one_hot(ids, 5)
    wrong = sure.at[1, 0, 0].set(jnp.roll(sure[1, 0, 0], 1))  # one place of four misses by 100 nats
    np.testing.assert_allclose(proxy_cross_entropy(wrong.astype(jnp.bfloat16), ids), [0.0, 25.0], atol=1e-4)


def test_targets_stand_at_their_places():
    tokenizer = MaskGITVQGAN(VQ(codes=64, channels=2), channels=(2, 2), blocks=1, latent_channels=2, groups=1)
    images = np.random.default_rng(0).uniform(-1, 1, (1, 4, 8, 3)).astype(np.float32)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both(key):
        variables = tokenizer.init(key, images)
        variables["params"]["quantize"]["codebook"] *= 64  # far apart
        values = tokenizer.apply(variables, images, method="encode").values
        ids = ProxyCodes(tokenizer).ids(variables, images)
        return ids, values, variables["params"]["quantize"]["codebook"][ids]

    ids, values, codes = both(jax.random.key(1))
    assert ids.shape == (1, 2, 4) and len(np.unique(ids)) > 1
    np.testing.assert_allclose(codes, values, atol=1e-5)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (VAE(), "this tokenizer has values in a grid"),
        (TiTok(VQ(channels=12)), "this tokenizer has ids in a sequence"),
        (MaskGITVQGAN(EMAVQ(channels=2), latent_channels=2), "this one is of averages"),
    ],
)
def test_tokenizers_without_such_codes_are_refused(tokenizer, message):
    with pytest.raises(ValueError, match=message):
        ProxyCodes(tokenizer)
