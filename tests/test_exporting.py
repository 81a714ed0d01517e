"""Tokenizers whose codes are averages go out as published ones, whose codes are parameters."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from maskdit import model
from maskdit.exporting import export_weights
from maskdit.interop import layouts
from maskdit.interop.state_file import open_state
from maskdit.tokenizers.model import TokenizerModel, spec_of
from maskdit.tokenizers.quantize.ema import EMAVQ, as_vq
from maskdit.tokenizers.vqgan import VQGAN
from maskdit.training.mesh import unboxed

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("l2", [False, True])
def test_averaged_codes_go_out_and_come_in_as_parameters(tmp_path, l2):
    tokenizer = VQGAN(
        EMAVQ(codes=16, channels=4, l2=l2),
        channels=(32, 32),
        layers_per_block=1,
        latent_channels=8,
        attention_levels=(1,),
    )
    variables = unboxed(jax.jit(tokenizer.init)(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32)))
    parts = {"params": {"tokenizer": variables["params"]}, "state": {"tokenizer": variables["state"]}, "frozen": {}}
    ours = TokenizerModel(tokenizer, parts, ConfigDict({"tokenizer": spec_of(tokenizer)}))
    model.save(ours, str(tmp_path / "ours.npz"))
    out = export_weights(str(tmp_path / "ours.npz"), str(tmp_path / "out.safetensors"))

    quantizer, _ = as_vq(tokenizer.quantize, variables["state"]["quantize"])
    plain = tokenizer.clone(quantize=quantizer)
    params, _ = layouts.read(plain, layouts.parameter_shapes(plain), open_state(out))
    theirs = TokenizerModel(plain, {"params": {"tokenizer": params}})
    ids = ours.encode(IMAGES)
    assert len(np.unique(ids)) > 1
    np.testing.assert_array_equal(theirs.encode(IMAGES), ids)
    np.testing.assert_array_equal(theirs.decode(ids), ours.decode(ids))
