import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.layers import attention as module
from maskdit.layers.attention import BACKENDS, attention, choose


def inputs(dtype: str = "float32") -> tuple[jax.Array, ...]:
    rng = np.random.RandomState(0)
    return tuple(jnp.asarray(rng.standard_normal((2, n, 3, 8)), dtype) for n in (4, 5, 5))


@pytest.mark.parametrize("backend", ("auto", *BACKENDS))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_backends_are_equal(backend, dtype):
    # Where a backend is not there, this holds its fallback.
    q, k, v = inputs(dtype)
    wide = [np.asarray(x, np.float64) for x in (q, k, v)]
    logits = np.einsum("bnhd,bmhd->bhnm", wide[0], wide[1]) / np.sqrt(8)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    wanted = np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), wide[2])
    out = attention(q, k, v, backend=backend)
    assert out.dtype == q.dtype
    np.testing.assert_allclose(np.asarray(out, np.float64), wanted, atol=1e-6 if dtype == "float32" else 2e-2)


def test_large_logits_stay_finite():
    q, k, v = inputs()
    assert np.isfinite(attention(1e4 * q, k, v)).all()


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        (("auto", "gpu", "bfloat16", 72), "cudnn"),
        (("cudnn", "gpu", "float16", 64), "cudnn"),
        (("xla", "gpu", "bfloat16", 64), "xla"),
        (("auto", "gpu", "float32", 64), "xla"),
        (("auto", "gpu", "bfloat16", 9), "xla"),
        (("cudnn", "cpu", "bfloat16", 64), "xla"),
        (("auto", "tpu", "bfloat16", 64), "xla"),
    ],
)
def test_choice_follows_platform_and_shape(given, chosen):
    assert choose(*given) == chosen


def test_the_reason_of_a_fallback_is_logged_once(caplog):
    choose.cache_clear()
    module._say.cache_clear()
    with caplog.at_level(logging.INFO, module.__name__):
        for _ in range(2):
            attention(*inputs(), backend="cudnn")
    assert [record.message for record in caplog.records] == [
        "attention: xla instead of cudnn (the platform is cpu, not gpu; the dtype is float32, not a 16-bit one)"
    ]


def test_unknown_backend_names_the_known():
    with pytest.raises(ValueError, match=r"'flash'.*auto.*xla.*cudnn"):
        attention(*inputs(), backend="flash")
