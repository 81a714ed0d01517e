"""The codebook that a network computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from maskdit.config import build, spec
from maskdit.tokenizers.quantize.bridge import VQBridge, fold
from maskdit.tokenizers.quantize.vq import VQ

BRIDGE = spec(VQBridge, group=4, width=8, depth=2, heads=2, mlp_ratio=2.0)


@pytest.fixture(scope="module")
def bridged():
    quantizer = build(spec(VQ, codes=24, channels=3, l2=True, bridge=BRIDGE))
    z = np.random.default_rng(0).normal(size=(2, 9, 3)).astype(np.float32)
    return quantizer, meta.unbox(quantizer.init(jax.random.key(0), z)), z


def test_every_code_gets_a_gradient_from_one_example(bridged):
    quantizer, variables, z = bridged

    def loss(params):
        return quantizer.apply({"params": params}, z[:1, :1]).losses["codebook"].sum()

    grads = jax.grad(loss)(variables["params"])
    assert (jnp.abs(grads["codebook"]).max(axis=1) > 0).all()
    plain = VQ(24, 3, l2=True)
    raw = {"codebook": variables["params"]["codebook"]}
    alone = jax.grad(lambda p: plain.apply({"params": p}, z[:1, :1]).losses["codebook"].sum())(raw)
    assert (jnp.abs(alone["codebook"]).max(axis=1) > 0).sum() == 1


def test_folded_it_gives_the_same_ids_and_values(bridged):
    quantizer, variables, z = bridged
    plain, params = fold(quantizer, variables["params"])
    assert plain.bridge is None and set(params) == {"codebook"}
    with_bridge, without = quantizer.apply(variables, z), plain.apply({"params": params}, z)
    np.testing.assert_array_equal(with_bridge.ids, without.ids)
    np.testing.assert_allclose(with_bridge.values, without.values, atol=1e-6)
    with pytest.raises(ValueError, match="no bridge"):
        fold(plain, params)


def test_the_bridge_has_a_place_of_its_own_and_its_scan_agrees(bridged):
    quantizer, variables, _ = bridged
    assert set(variables["params"]) == {"codebook", "bridge"}
    scanned = build(spec(VQ, codes=24, channels=3, l2=True, bridge=BRIDGE), bridge=build(BRIDGE, scan=True))
    one, other = (q.apply(variables, method="codebook") for q in (quantizer, scanned))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_codes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="group=5"):
        VQBridge(group=5, width=8, heads=2).init(jax.random.key(0), jnp.zeros((24, 3)))
