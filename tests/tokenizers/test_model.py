import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.contracts import ModelError
from maskdit.tokenizers.model import TokenizerModel, spec_of
from maskdit.tokenizers.quantize.ema import EMAVQ
from maskdit.tokenizers.quantize.residual import ResidualVQ
from maskdit.tokenizers.titok import TiTok
from maskdit.tokenizers.vae import VAE
from maskdit.tokenizers.vqgan import VQGAN

RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.randint(0, 256, (3, 16, 16, 3)).astype(np.uint8)


def model(tokenizer):
    variables = jax.jit(tokenizer.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    state = {"state": {"tokenizer": variables["state"]}} if "state" in variables else {}
    return TokenizerModel(tokenizer, {"params": {"tokenizer": variables["params"]}, **state})


@pytest.fixture(scope="module")
def discrete():
    network = {"channels": (8, 8), "layers_per_block": 1, "latent_channels": 8, "groups": 4, "attention_levels": ()}
    return model(VQGAN(quantize=EMAVQ(codes=16, channels=4), patch=2, **network))


@pytest.fixture(scope="module")
def sequence():
    small = {"size": 16, "patch": 8, "tokens": 3, "channels": 4, "encoder": (16, 1, 2), "decoder": (16, 1, 2)}
    return model(TiTok(text=(2, 5), **small))


def test_ids_stand_for_what_the_decoder_takes(discrete):
    ids = discrete.encode(IMAGES)
    assert ids.shape == (3, 16) and ids.dtype == np.int32
    made = discrete.reconstruct(IMAGES)
    assert made.dtype == np.uint8 and made.shape == IMAGES.shape
    # a code and its straight-through copy differ in the last bit, which may turn a rounding
    assert np.abs(discrete.decode(ids).astype(int) - made).max() <= 1
    np.testing.assert_array_equal(discrete.decode(ids), discrete.decode(ids.reshape(3, 4, 4)))
    other = discrete.decode((ids + 1) % 16)
    assert np.abs(other.astype(int) - made).max() > 1, "the image depends on the ids"


@pytest.fixture(scope="module")
def residual():
    network = {"channels": (8, 8), "layers_per_block": 1, "latent_channels": 8, "groups": 4, "attention_levels": ()}
    return model(VQGAN(quantize=ResidualVQ(codes=16, channels=4, levels=3), patch=2, **network))


def test_ids_of_several_levels_are_decoded(residual):
    ids = residual.encode(IMAGES)
    assert ids.shape == (3, 16 * 3)
    made = residual.decode(ids)
    assert np.abs(made.astype(int) - residual.reconstruct(IMAGES)).max() <= 1
    np.testing.assert_array_equal(residual.decode(ids.reshape(3, 4, 4, 3)), made)
    wide = residual.decode(ids.reshape(3, 4, 4, 3)[:, :2])
    assert wide.shape == (3, 8, 16, 3)
    for wrong in (ids[:, :16], ids[:, :47], ids.reshape(3, 4, 12), ids.reshape(3, 8, 3, 2)):
        with pytest.raises(ModelError, match=r"with 3 codes at each position, or \[B, h, w, 3\]; got"):
            residual.decode(wrong)


def test_ids_of_several_levels_of_a_sequence_are_decoded():
    small = {"size": 16, "patch": 8, "tokens": 3, "channels": 4, "encoder": (16, 1, 2), "decoder": (16, 1, 2)}
    titok = model(TiTok(quantize=ResidualVQ(codes=16, channels=4, levels=2), **small))
    ids = titok.encode(IMAGES)
    assert ids.shape == (3, 6) and titok.decode(ids).shape == IMAGES.shape
    with pytest.raises(ModelError, match=r"3 tokens of 2 codes: ids are \[B, 6\], got \[3, 3\]"):
        titok.decode(ids[:, :3])


def test_uint8_and_float_images_are_the_same_images(discrete):
    np.testing.assert_array_equal(discrete.encode(IMAGES), discrete.encode(IMAGES / 127.5 - 1))


@pytest.mark.parametrize(
    "images, message",
    [
        (IMAGES[:, :10], "multiples of 4"),
        (IMAGES[0], r"\[B, H, W, 3\]"),
        (IMAGES[:0], r"above 0; got \[0,"),
        (IMAGES.astype(np.int64), "int64"),
        (IMAGES > 127, "got bool"),
        (np.full(IMAGES.shape, np.nan), "finite"),
        (IMAGES.astype(np.float32), r"lie in \[-1, 1\]"),
    ],
)
def test_images_that_do_not_fit_are_refused(discrete, images, message):
    for verb in (discrete.encode, discrete.reconstruct):
        with pytest.raises(ModelError, match=message):
            verb(images)


@pytest.mark.parametrize(
    "latents, message",
    [
        (np.full((1, 16), 16), "0 to 15, got 16 to 16"),
        (np.full((1, 16), -1), "got -1"),
        (np.zeros((1, 15), int), "square grid"),
        (np.zeros((1, 4, 4, 3)), r"\[B, h, w, 4\]"),
        (np.full((1, 4, 4, 4), np.inf), "finite"),
        (np.zeros((1, 16), bool), "got bool"),
        (np.zeros((1, 4, 4, 4), complex), "got complex128"),
        (np.zeros((1, 4, 4, 1), int), "square grid, or"),
    ],
)
def test_latents_that_do_not_fit_are_refused(discrete, latents, message):
    with pytest.raises(ModelError, match=message):
        discrete.decode(latents)


def test_a_sequence_has_its_length_and_its_size(sequence):
    text = np.ones((3, 2, 5), np.float32)
    latents = sequence.encode(IMAGES)
    assert latents.shape == (3, 3, 4)
    assert (sequence.decode(latents, text) != sequence.decode(latents, 0 * text)).any(), "the decoder reads the text"
    with pytest.raises(ModelError, match="16 x 16"):
        sequence.encode(np.zeros((1, 32, 32, 3), np.uint8), text[:1])
    with pytest.raises(ModelError, match=r"\[B, 3, 4\]"):
        sequence.decode(latents[:, :2], text)
    with pytest.raises(ModelError, match="no token ids"):
        sequence.decode(np.zeros((3, 3), int), text)
    with pytest.raises(ModelError, match="reads a text"):
        sequence.decode(latents)
    with pytest.raises(ModelError, match=r"\[3, 2, 5\]"):
        sequence.decode(latents, text[:, :1])


def test_a_tokenizer_without_text_takes_none(discrete):
    with pytest.raises(ModelError, match="reads no text"):
        discrete.encode(IMAGES, np.ones((3, 2, 5), np.float32))


@pytest.mark.parametrize("tokenizer", [VAE(channels=(8, 16), scale=0.5), VQGAN(quantize=EMAVQ(codes=7), patch=2)])
def test_a_spec_makes_the_tokenizer_again(tokenizer):
    from maskdit.config import build

    assert build(spec_of(tokenizer)) == tokenizer
